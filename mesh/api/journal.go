package api

import (
	"context"
	"sync"
)

// A journal is the transcript of one join: written by it, read from any index
// by any number of clients while it grows.
type journal struct {
	mu    sync.Mutex // guards the rest
	steps []JoinStep // the last maxJoinSteps
	last  uint64     // index of the newest
	done  bool
	err   error
	grown chan struct{} // closed and replaced at each change
}

func newJournal() *journal { return &journal{grown: make(chan struct{})} }

// add numbers a step and appends it.
func (j *journal) add(s JoinStep) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	s.Index = j.last
	j.steps = append(j.steps, s)
	if len(j.steps) > maxJoinSteps {
		j.steps = j.steps[1:]
	}
	j.wakeLocked()
}

// finish closes the journal; err is what the join failed with.
func (j *journal) finish(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.done, j.err = true, err
	j.wakeLocked()
}

func (j *journal) wakeLocked() {
	close(j.grown)
	j.grown = make(chan struct{})
}

// running reports whether the join is under way.
func (j *journal) running() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.done
}

// after gives the steps after index since, and how to wait for more.
func (j *journal) after(since uint64) (steps []JoinStep, done bool, grown <-chan struct{}, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	first := j.last - uint64(len(j.steps)) // index before the oldest
	from := min(max(since, first), j.last) - first
	return j.steps[from:len(j.steps):len(j.steps)], j.done, j.grown, j.err
}

// follow emits all after since until the join ends, and returns its error.
func (j *journal) follow(ctx context.Context, since uint64, emit func(JoinStep) error) error {
	for {
		steps, done, grown, failed := j.after(since)
		for _, s := range steps {
			if err := emit(s); err != nil {
				return err
			}
			since = s.Index
		}
		if done {
			return failed
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
