package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// A disk is what a logStore keeps its records on: raft-boltdb.
type disk interface {
	raft.LogStore
	raft.StableStore
	Close() error
}

// A logStore is raft-boltdb with two things added.
//
// Commit tracking: each batch carries, in the Extensions of its last entry,
// the commit index known when it was written, in the same transaction. It
// stays true wherever the entry is copied, since a commit index never goes
// back. A restarted voter therefore knows all it had committed but at most the
// last batch, which only the next batch would have told.
//
// A stall guard: raft sends heartbeats from a goroutine of their own, so a
// leader whose disk hangs would lead for ever (hashicorp/raft issue 503). A
// write that fails or does not return in time makes the guard fail for good:
// the owner shuts raft down, and no later write is tried.
type logStore struct {
	disk   disk
	staged atomic.Uint64
	stall  time.Duration
	failed atomic.Bool
	onFail func(error) // called once, before the write returns; must not block
}

var (
	_ raft.CommitTrackingLogStore = (*logStore)(nil)
	_ raft.StableStore            = (*logStore)(nil)
)

// write runs one write under the guard. After a stall the call may still reach
// the disk; that is safe because nothing is acknowledged and this process does
// not use the log again before it has been closed.
func (l *logStore) write(what string, call func() error) error {
	if l.failed.Load() {
		return ErrDisk
	}
	done := make(chan error, 1)
	go func() { done <- call() }()
	timer := time.NewTimer(l.stall)
	defer timer.Stop()
	var err error
	select {
	case err = <-done:
		if err == nil {
			return nil
		}
		err = fmt.Errorf("%w: %s: %w", ErrDisk, what, err)
	case <-timer.C:
		err = fmt.Errorf("%w: %s did not return in %s", ErrDisk, what, l.stall)
	}
	if l.failed.CompareAndSwap(false, true) {
		l.onFail(err)
	}
	return err
}

// FirstIndex implements raft.LogStore.
func (l *logStore) FirstIndex() (uint64, error) { return l.disk.FirstIndex() }

// LastIndex implements raft.LogStore.
func (l *logStore) LastIndex() (uint64, error) { return l.disk.LastIndex() }

// GetLog implements raft.LogStore.
func (l *logStore) GetLog(index uint64, log *raft.Log) error { return l.disk.GetLog(index, log) }

// StoreLog implements raft.LogStore.
func (l *logStore) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore.
func (l *logStore) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	batch := append([]*raft.Log(nil), logs...)
	last := *batch[len(batch)-1] // a copy: raft goes on using its own
	last.Extensions = binary.BigEndian.AppendUint64(nil, min(l.staged.Load(), last.Index))
	batch[len(batch)-1] = &last
	return l.write("append to the log", func() error { return l.disk.StoreLogs(batch) })
}

// DeleteRange implements raft.LogStore.
func (l *logStore) DeleteRange(first, last uint64) error {
	return l.write("cut the log", func() error { return l.disk.DeleteRange(first, last) })
}

// StageCommitIndex implements raft.CommitTrackingLogStore.
func (l *logStore) StageCommitIndex(index uint64) error {
	l.staged.Store(index)
	return nil
}

// GetCommitIndex implements raft.CommitTrackingLogStore by not telling: raft
// v1.8.0, told of an index, replays up to it and then looks for its voters in
// later entries only, so that it starts without knowing any. Store.recover
// does the replay in its place, before raft starts.
func (l *logStore) GetCommitIndex() (uint64, error) { return 0, nil }

// committed is the highest index that is known on disk to be committed.
func (l *logStore) committed() (uint64, error) {
	last, err := l.disk.LastIndex()
	if err != nil || last == 0 {
		return 0, err
	}
	var log raft.Log
	if err := l.disk.GetLog(last, &log); err != nil {
		return 0, err
	}
	if len(log.Extensions) != 8 {
		return 0, nil
	}
	return min(binary.BigEndian.Uint64(log.Extensions), last), nil
}

// Set implements raft.StableStore. It keeps the vote.
func (l *logStore) Set(key, value []byte) error {
	return l.write("save the vote", func() error { return l.disk.Set(key, value) })
}

// Get implements raft.StableStore.
func (l *logStore) Get(key []byte) ([]byte, error) { return l.disk.Get(key) }

// SetUint64 implements raft.StableStore. It keeps the term. raft panics when
// this fails, which would take the agent down, so a failure is reported to the
// owner and not to raft: a term in memory only is harmless, since neither a
// vote nor an entry can be given in it any more.
func (l *logStore) SetUint64(key []byte, value uint64) error {
	err := l.write("save the term", func() error { return l.disk.SetUint64(key, value) })
	if errors.Is(err, ErrDisk) {
		return nil
	}
	return err
}

// GetUint64 implements raft.StableStore.
func (l *logStore) GetUint64(key []byte) (uint64, error) { return l.disk.GetUint64(key) }

// check reads every entry, because raft panics on one that it cannot read
// later. bbolt panics on damaged pages, which is an error here too.
func (l *logStore) check() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	first, err := l.disk.FirstIndex()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	last, err := l.disk.LastIndex()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if first == 0 {
		return nil
	}
	for i := first; i <= last; i++ {
		var log raft.Log
		if err := l.disk.GetLog(i, &log); err != nil {
			return fmt.Errorf("%w: entry %d: %w", ErrDamaged, i, err)
		}
		if log.Index != i {
			return fmt.Errorf("%w: entry %d says that it is %d", ErrDamaged, i, log.Index)
		}
	}
	return nil
}
