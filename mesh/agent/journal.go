package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"guywire/mesh/api"
)

// A journal remembers the last events of this node, for meshctl events.
type journal struct {
	base uint64 // index before the first event of this life

	mu     sync.Mutex // guards the rest
	events []api.Event
	last   uint64
	grown  chan struct{} // closed and replaced at each addition
}

// newJournal makes the journal of a life that begins now. Indexes begin at the
// clock, in milliseconds since 1970, so that they rise from one life to the
// next: a follower that comes back after a restart goes on with what is new.
func newJournal(now time.Time) *journal {
	base := uint64(max(now.UnixMilli(), 0))
	return &journal{base: base, last: base, grown: make(chan struct{})}
}

func (j *journal) add(e api.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	e.Index = j.last
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	j.events = append(j.events, e)
	if len(j.events) > eventLog {
		j.events = slices.Clone(j.events[len(j.events)-eventLog*3/4:])
	}
	close(j.grown)
	j.grown = make(chan struct{})
}

func (j *journal) newest() *api.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.events) == 0 {
		return nil
	}
	e := j.events[len(j.events)-1]
	return &e
}

// after gives what is remembered after index since, and how to wait for more.
func (j *journal) after(since uint64) (events []api.Event, grown <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if since < j.base || since > j.last {
		since = j.base // of an earlier life, whose clock may have been ahead
	}
	first := j.last - uint64(len(j.events)) // index before the oldest
	if since < first {
		lost := first - since
		gap := api.Event{Index: first, Time: time.Now(), Kind: "gap", Sentence: fmt.Sprintf("%d earlier events are forgotten", lost)}
		return append([]api.Event{gap}, j.events...), j.grown
	}
	return slices.Clone(j.events[since-first:]), j.grown
}

// follow emits what happens after since; without follow it ends with what is
// remembered.
func (j *journal) follow(ctx context.Context, since uint64, follow bool, emit func(api.Event) error) error {
	for {
		events, grown := j.after(since)
		for _, e := range events {
			if err := emit(e); err != nil {
				return err
			}
			since = e.Index
		}
		if !follow {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil
		}
	}
}
