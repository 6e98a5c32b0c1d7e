package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"guywire/mesh"
)

// A disk is what a logStore keeps its records on: raft-boltdb.
type disk interface {
	raft.LogStore
	raft.StableStore
	Close() error
}

// A logStore is raft-boltdb with three things added.
//
// Commit tracking: each entry carries, in its Extensions, the commit index
// known when it was written, in the same transaction. It stays true wherever
// the entry is copied, since a commit index never goes back. A restarted voter
// therefore knows all it had committed but at most the last batch, which only
// the next batch would have told.
//
// Checksums: neither raft-boltdb nor the data pages of bbolt have any, and a
// command with a flipped bit may still be a command. What an entry says is
// summed together with its commit index (CRC-32C, RFC 9260 appendix B), and so
// are the term and the vote. Logs of before have none up to some entry.
//
// A stall guard: raft sends heartbeats from a goroutine of their own, so a
// leader whose disk hangs would lead for ever (hashicorp/raft issue 503). A
// write that fails or does not return in time makes the guard fail for good:
// the owner shuts raft down, and no later write is tried. An entry that cannot
// be read any more has the same end.
type logStore struct {
	disk    disk
	staged  atomic.Uint64
	summed  atomic.Uint64 // the first entry with a checksum, as all have that follow; 0: there is none
	running atomic.Bool   // raft reads, and panics where it cannot
	stall   time.Duration
	failed  atomic.Bool
	onFail  func(error) // called once, before the call returns; must not block
}

var (
	_ raft.CommitTrackingLogStore = (*logStore)(nil)
	_ raft.MonotonicLogStore      = (*logStore)(nil)
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
	go func() { done <- guarded(call) }()
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
	l.fail(err)
	return err
}

func (l *logStore) fail(err error) {
	if l.failed.CompareAndSwap(false, true) {
		l.onFail(err)
	}
}

// guarded makes errors of what bbolt does on a damaged file: it panics, and it
// follows references to beyond the end of its mapping.
func guarded(call func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return call()
}

// IsMonotonic implements raft.MonotonicLogStore: a log has no gaps. So raft
// empties the log when it installs a snapshot from the leader.
func (l *logStore) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore.
func (l *logStore) FirstIndex() (uint64, error) { return l.disk.FirstIndex() }

// LastIndex implements raft.LogStore.
func (l *logStore) LastIndex() (uint64, error) { return l.disk.LastIndex() }

// GetLog implements raft.LogStore. While raft runs, a damaged entry ends the
// calling goroutine, which is one of raft's: raft would panic on the error and
// take the agent down, where the owner need only shut raft down.
func (l *logStore) GetLog(index uint64, log *raft.Log) error {
	err := l.read(index, log)
	if errors.Is(err, ErrDamaged) && l.running.Load() {
		l.fail(err)
		runtime.Goexit()
	}
	return err
}

// read gives an entry that is what was written; raft.ErrLogNotFound: there is
// none, ErrDamaged: it is another.
func (l *logStore) read(index uint64, log *raft.Log) error {
	switch err := guarded(func() error { return l.disk.GetLog(index, log) }); {
	case errors.Is(err, raft.ErrLogNotFound):
		return err
	case err != nil:
		return fmt.Errorf("%w: entry %d: %w", ErrDamaged, index, err)
	case log.Index != index:
		return fmt.Errorf("%w: entry %d says that it is %d", ErrDamaged, index, log.Index)
	case len(log.Extensions) == extensionSize:
		if sum(log, log.Extensions[:8]) != binary.BigEndian.Uint32(log.Extensions[8:]) {
			return fmt.Errorf("%w: entry %d does not have its checksum", ErrDamaged, index)
		}
	case len(log.Extensions) != 0 && len(log.Extensions) != 8, l.sums(index):
		return fmt.Errorf("%w: entry %d has no checksum", ErrDamaged, index)
	}
	return nil
}

// sums reports whether the entry must have a checksum.
func (l *logStore) sums(index uint64) bool {
	first := l.summed.Load()
	return first != 0 && index >= first
}

// StoreLog implements raft.LogStore.
func (l *logStore) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. What Extensions a leader sent is not
// looked at: they say what its disk knew.
func (l *logStore) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	batch := make([]*raft.Log, len(logs))
	for i, log := range logs {
		entry := *log // a copy: raft goes on using its own
		commit := binary.BigEndian.AppendUint64(make([]byte, 0, extensionSize), min(l.staged.Load(), entry.Index))
		entry.Extensions = binary.BigEndian.AppendUint32(commit, sum(&entry, commit))
		batch[i] = &entry
	}
	if first := batch[0].Index; !l.sums(first) {
		l.summed.Store(first)
	}
	return l.write("append to the log", func() error { return l.disk.StoreLogs(batch) })
}

// extensionSize is that of what the log store adds to an entry: the commit
// index and the checksum. Before there were checksums it was 8 bytes or none.
const extensionSize = 8 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum is the checksum of an entry and of the commit index stored with it.
func sum(log *raft.Log, commit []byte) uint32 {
	var head [8 + 1 + 8 + 8]byte
	copy(head[:], commit)
	head[8] = byte(log.Type)
	binary.BigEndian.PutUint64(head[9:], log.Term)
	binary.BigEndian.PutUint64(head[17:], log.Index)
	return crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, log.Data)
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
	if err := l.read(last, &log); err != nil {
		return 0, err
	}
	if len(log.Extensions) < 8 {
		return 0, nil
	}
	return min(binary.BigEndian.Uint64(log.Extensions), last), nil
}

// Set implements raft.StableStore. It keeps the vote.
func (l *logStore) Set(key, value []byte) error {
	return l.write("save the vote", func() error { return l.disk.Set(key, sealed(key, value)) })
}

// Get implements raft.StableStore.
func (l *logStore) Get(key []byte) (value []byte, err error) {
	err = guarded(func() error {
		b, err := l.disk.Get(key)
		if err == nil {
			value, err = unsealed(key, b)
		}
		return err
	})
	return value, err
}

// SetUint64 implements raft.StableStore. It keeps the term. raft panics when
// this fails, which would take the agent down, so a failure is reported to the
// owner and not to raft: a term in memory only is harmless, since neither a
// vote nor an entry can be given in it any more.
func (l *logStore) SetUint64(key []byte, value uint64) error {
	b := sealed(key, binary.BigEndian.AppendUint64(nil, value))
	err := l.write("save the term", func() error { return l.disk.Set(key, b) })
	if errors.Is(err, ErrDisk) {
		return nil
	}
	return err
}

// GetUint64 implements raft.StableStore.
func (l *logStore) GetUint64(key []byte) (uint64, error) {
	b, err := l.Get(key)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("%w: %s has %d bytes", ErrDamaged, key, len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}

// sealed adds to a value of the stable store the checksum of it and its key.
func sealed(key, value []byte) []byte {
	return binary.BigEndian.AppendUint32(slices.Clone(value), sealOf(key, value))
}

func unsealed(key, b []byte) ([]byte, error) {
	n := len(b) - 4
	if n < 0 || sealOf(key, b[:n]) != binary.BigEndian.Uint32(b[n:]) {
		return nil, fmt.Errorf("%w: %s does not have its checksum", ErrDamaged, key)
	}
	return b[:n], nil
}

func sealOf(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// stableKeys are those under which raft keeps its term and its vote.
var stableKeys = []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand"}

// sealedKey says that the stable store has checksums.
var sealedKey = []byte("Sealed")

// check reads everything, because raft panics on what it cannot read later.
func (l *logStore) check() error {
	if err := l.checkStable(); err != nil {
		return err
	}
	first, last, err := l.bounds()
	if err != nil || first == 0 {
		return err
	}
	if term, err := l.GetUint64([]byte(stableKeys[0])); err != nil || term == 0 {
		return fmt.Errorf("%w: it has entries and no term", ErrDamaged) // raft would vote again in an old one
	}
	l.summed.Store(0)
	for i := first; i <= last; i++ {
		var log raft.Log
		if err := l.read(i, &log); errors.Is(err, raft.ErrLogNotFound) {
			return fmt.Errorf("%w: entry %d: %w", ErrDamaged, i, err)
		} else if err != nil {
			return err
		}
		if len(log.Extensions) == extensionSize && !l.sums(i) {
			l.summed.Store(i)
		}
	}
	return nil
}

// join checks that the log goes on where the newest snapshot ends; both are 0
// without one. A log that ends before the snapshot, or is another's that the
// snapshot replaced, is one that raft was killed before emptying: that is done
// here (Ongaro and Ousterhout, figure 13, rules 6 and 7 of the InstallSnapshot RPC).
func (l *logStore) join(index, term uint64) error {
	first, last, err := l.bounds()
	if err != nil || first == 0 {
		return err
	}
	if first > index+1 {
		return fmt.Errorf("%w: the newest snapshot ends at entry %d and the log begins at %d", ErrDamaged, index, first)
	}
	replaced := last < index
	if !replaced && first <= index {
		var entry raft.Log
		if err := l.read(index, &entry); err != nil {
			return err
		}
		replaced = entry.Term != term
	}
	if !replaced {
		return nil
	}
	committed, err := l.committed()
	if err != nil {
		return err
	}
	if last >= index && committed >= index {
		return fmt.Errorf("%w: the newest snapshot and the log disagree about entry %d", ErrDamaged, index)
	}
	return l.DeleteRange(first, last)
}

// bounds are the first and the last index of the log; both 0: it is empty.
func (l *logStore) bounds() (first, last uint64, err error) {
	err = guarded(func() (err error) {
		if first, err = l.disk.FirstIndex(); err == nil {
			last, err = l.disk.LastIndex()
		}
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return first, last, nil
}

// checkStable reads the term and the vote. Those of before there were
// checksums get them now.
func (l *logStore) checkStable() error {
	_, err := l.Get(sealedKey)
	seal := isNotFound(err)
	if err != nil && !seal {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	for _, key := range stableKeys {
		var value []byte
		if seal {
			if value, err = l.disk.Get([]byte(key)); err == nil {
				if value, err = oldStable(key, value); err == nil {
					err = l.Set([]byte(key), value)
				}
			}
		} else {
			_, err = l.Get([]byte(key))
		}
		if err != nil && !isNotFound(err) {
			return fmt.Errorf("%w: read %s: %w", ErrDamaged, key, err)
		}
	}
	if seal {
		return l.Set(sealedKey, []byte{})
	}
	return nil
}

// oldStable passes on what raft itself stored, if it can be that.
func oldStable(key string, value []byte) ([]byte, error) {
	if key == "LastVoteCand" {
		_, err := mesh.ParseNodeID(string(value))
		return value, err
	}
	if len(value) != 8 {
		return nil, fmt.Errorf("it has %d bytes", len(value))
	}
	return value, nil
}

// isNotFound reports whether a key is unknown. raft compares the text, too:
// its stable stores share no error.
func isNotFound(err error) bool { return err != nil && err.Error() == "not found" }
