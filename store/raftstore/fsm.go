package raftstore

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"guywire/store"
)

// A Change is one command of the log, as followers get it: applied to the
// state at Prev it gives the state at Index.
type Change struct {
	Prev    uint64
	Index   uint64
	Command []byte       // as store.EncodeCommand wrote it; must not be changed
	Head    store.Digest // of the audit trail of the state at Index
}

// A Verdict says how a state of somebody else stands to this voter's.
type Verdict string

// Verdicts.
const (
	Known    Verdict = "known"    // this voter was there: what Since gives continues it
	Diverged Verdict = "diverged" // it has another history
	Ahead    Verdict = "ahead"    // this voter is not there yet, or never will be
	Unknown  Verdict = "unknown"  // so long ago, or so many snapshots, that it cannot be told
)

// An fsm is the bridge between raft and store.Apply. raft calls Apply,
// Snapshot and Restore from one goroutine; everybody else reads the state.
type fsm struct {
	state  atomic.Pointer[store.State]
	notify func()      // the state changed; must not block
	fail   func(error) // this voter cannot go on; must not block

	stopped error // raft's goroutine only: why nothing is applied any more

	mu      sync.Mutex // guards changes and bytes
	changes []Change   // newest last, without gaps, bounded
	bytes   int
}

var _ raft.FSM = (*fsm)(nil)

// Apply implements raft.FSM; the answer is a store.Result or an error.
func (f *fsm) Apply(log *raft.Log) any {
	if f.stopped != nil {
		return f.stopped
	}
	before := f.state.Load()
	if log.Index <= before.Index {
		return store.Result{Index: log.Index} // recovered from disk already; nobody waits for the answer
	}
	command, err := store.DecodeCommand(log.Data)
	if err != nil { // of a newer version: guessing would part this voter from the others
		f.stopped = fmt.Errorf("entry %d of the replicated log: %w", log.Index, err)
		f.fail(f.stopped)
		return f.stopped
	}
	after, result := store.Apply(before, log.Index, command)
	f.keep(Change{Prev: before.Index, Index: after.Index, Command: slices.Clone(log.Data), Head: after.Audit.Head})
	f.state.Store(after)
	f.notify()
	return result
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return snapshot{f.state.Load()}, nil }

// Restore implements raft.FSM. What is committed never changes, so a snapshot
// older than the state is part of it and is passed over.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	state, err := store.Restore(b)
	if err != nil {
		return err
	}
	if state.Index < f.state.Load().Index {
		return nil
	}
	f.mu.Lock()
	f.changes, f.bytes = nil, 0
	f.mu.Unlock()
	f.state.Store(state)
	f.notify()
	return nil
}

func (f *fsm) keep(c Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changes = append(f.changes, c)
	f.bytes += len(c.Command)
	drop := 0
	for len(f.changes)-drop > 1 && (len(f.changes)-drop > maxChanges || f.bytes > maxChangeBytes) {
		f.bytes -= len(f.changes[drop].Command)
		drop++
	}
	if drop > 0 {
		f.changes = slices.Delete(f.changes, 0, drop)
	}
}

// since gives up to limit changes that follow the state at index after; false:
// that index is not known here any more, or never was.
func (f *fsm) since(after uint64, limit int) ([]Change, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, found := slices.BinarySearchFunc(f.changes, after, func(c Change, index uint64) int {
		switch {
		case c.Prev < index:
			return -1
		case c.Prev > index:
			return 1
		default:
			return 0
		}
	})
	if !found {
		return nil, f.state.Load().Index == after
	}
	return slices.Clone(f.changes[i:min(len(f.changes), i+limit)]), true
}

// verdict compares a state at index whose audit trail ends with head.
func (f *fsm) verdict(index uint64, head store.Digest) Verdict {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.state.Load()
	mine, known := now.Audit.Head, now.Index == index
	if i, found := slices.BinarySearchFunc(f.changes, index, func(c Change, index uint64) int { return cmp.Compare(c.Index, index) }); found {
		mine, known = f.changes[i].Head, true
	}
	switch {
	case index > now.Index && !known: // a change is kept just before its state is
		return Ahead
	case !known:
		return Unknown
	case mine != head:
		return Diverged
	default:
		return Known
	}
}

type snapshot struct{ state *store.State }

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	b, err := store.Snapshot(s.state)
	if err == nil {
		_, err = sink.Write(b)
	}
	if err != nil {
		_ = sink.Cancel() // the first error is the one that counts
		return err
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (snapshot) Release() {}
