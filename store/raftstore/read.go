package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// ReadIndex gives an index such that the state at it, or at any above it, has
// all that was acknowledged anywhere before the call; State is at least there
// when it returns. So a read of it is linearizable (Ongaro 2014, section 6.4).
// It costs a round trip to a majority and writes nothing, but once in a term.
// Only the leader can: others return a NotLeaderError, and so does, for some
// seconds, a leader that stood still.
func (s *Store) ReadIndex(ctx context.Context) (uint64, error) {
	term := s.raft.CurrentTerm()
	if err := s.knowCommitted(ctx, term); err != nil {
		return 0, s.explainRead(err)
	}
	commit := s.raft.CommitIndex()
	if err := s.wait(ctx, s.raft.VerifyLeader()); err != nil {
		return 0, s.explainRead(err)
	}
	if s.raft.CurrentTerm() != term || s.pulse.missed(time.Now(), s.config.Timing.Lease/2) {
		// It led again, and commit is of before that; or it stood still.
		return 0, s.explainRead(raft.ErrLeadershipLost)
	}
	index, err := s.lastCommand(commit)
	if err != nil {
		return 0, err
	}
	return index, s.reach(ctx, index)
}

// A barrier is the entry with which a leader learns what is committed: what the
// leaders before committed is known to be so only with the first of its own term.
type barrier struct {
	term uint64
	done chan struct{} // closed when err is set
	err  error
}

// knowCommitted waits until this voter, as the leader of a term, knows all that
// was committed before it. That takes one entry, whoever asks meanwhile.
func (s *Store) knowCommitted(ctx context.Context, term uint64) error {
	s.reads.Lock()
	b := s.barrier
	if b == nil || b.term != term {
		b = &barrier{term: term, done: make(chan struct{})}
		s.barrier = b
		go func() {
			err := s.wait(context.Background(), s.raft.Barrier(enqueueTimeout))
			if err == nil && s.raft.CurrentTerm() != term {
				err = raft.ErrLeadershipLost
			}
			s.reads.Lock()
			if b.err = err; err != nil && s.barrier == b {
				s.barrier = nil // the next one tries again
			}
			s.reads.Unlock()
			close(b.done)
		}()
	}
	s.reads.Unlock()
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A pulse tells whether this process stood still lately: was stopped, starved,
// or its machine suspended. raft confirms its leadership with whatever answers
// to heartbeats arrive, and to a process that stood still longer than its lease
// those arrive that were given before another was elected.
type pulse struct {
	mu      sync.Mutex // guards the fields below
	last    time.Time
	stopped time.Time // end of the last time without a beat
}

// beat is called several times in a lease.
func (p *pulse) beat(now time.Time, limit time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.last.IsZero() && now.Sub(p.last) > limit {
		p.stopped = now
	}
	p.last = now
}

// missed reports whether beats were missing for longer than limit so lately
// that a call between voters from before may still be answered.
func (p *pulse) missed(now time.Time, limit time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Sub(p.last) > limit || !p.stopped.IsZero() && now.Sub(p.stopped) < rpcTimeout
}

// beats keeps the pulse until the store is closed.
func (s *Store) beats() {
	tick := time.NewTicker(s.config.Timing.Lease / 8)
	defer tick.Stop()
	for {
		s.pulse.beat(time.Now(), s.config.Timing.Lease/2)
		select {
		case <-tick.C:
		case <-s.failed:
			return
		}
	}
}

// lastCommand is the index of the last command at or below index; the entries
// after it are raft's own and no states have their indexes.
func (s *Store) lastCommand(index uint64) (uint64, error) {
	for ; index > s.State().Index; index-- {
		var entry raft.Log
		switch err := s.log.read(index, &entry); {
		case errors.Is(err, raft.ErrLogNotFound) && index <= s.State().Index: // cut behind a snapshot meanwhile
			return s.State().Index, nil
		case err != nil:
			return 0, fmt.Errorf("read the log: %w", err)
		case entry.Type == raft.LogCommand:
			return index, nil
		}
	}
	return s.State().Index, nil
}

// reach waits until the state is at index.
func (s *Store) reach(ctx context.Context, index uint64) error {
	changed, stop := s.Watch()
	defer stop()
	for s.State().Index < index {
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.failed:
			return ErrClosed
		}
	}
	return nil
}

// explainRead is explain for what has no outcome: the end of leadership means
// no more than to ask another.
func (s *Store) explainRead(err error) error {
	if errors.Is(err, raft.ErrLeadershipLost) {
		err = raft.ErrNotLeader
	}
	return s.explain(err)
}
