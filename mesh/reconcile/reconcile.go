// Package reconcile makes the kernel what the core wants, and keeps it so.
//
// The core sets a desired state; the reconciler plans (kernel.Plan holds the
// order), does, retries, looks again, and repairs what others broke. What it
// promises:
//
//   - Set never blocks, and the latest state wins, also in the middle of an
//     older plan: a failover waits for one operation at most.
//   - Nothing is done before every backend was looked at once, and nothing is
//     deleted before the first complete desired state.
//   - A failed operation is tried again after 100 ms, doubling up to a minute.
//     What does not depend on it goes on, what does waits and says for what.
//   - A look that was overtaken by own operations is thrown away, so what is
//     taken for the kernel's state has been true at one moment.
//   - Nothing is said to be safe before the kernel confirmed it. After an
//     operation whose outcome nobody knows, that is after the next look.
//   - Stopping changes nothing in the kernel. To tear down, set an empty
//     complete state and wait for its report.
package reconcile

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"guywire/mesh/kernel"
)

// Backends has the backend of each part, by kernel.Part. One may stand in
// several places.
type Backends [kernel.Parts]kernel.Backend

// Options are what a Reconciler tells others by. All may be nil.
type Options struct {
	// Report is called by Run's goroutine when how far the latest desired
	// state is has changed. It must not block.
	Report func(Report)
	// Event is called by Run's goroutine for what others changed and we are
	// about to repair. It must not block.
	Event func(Event)
	// Log gets warnings of failures, and that they are over.
	Log *slog.Logger
}

// A Report says how far a desired state is in the kernel.
type Report struct {
	Revision uint64
	// Done: everything is as wanted.
	Done bool
	// Safe: the kernel has confirmed that nothing forwards beyond what is
	// wanted and that the filter is in force; only additions are missing. A
	// loop-free acknowledgement waits for this and not for Done. Never for a
	// state that is not complete. See kernel.Model.Safe.
	Safe bool
	// Filtered: the kernel has confirmed the filter, as far as the state has
	// one; see kernel.Model.Filtered. Safe implies it.
	Filtered bool
	// Waiting are the objects that are not as wanted, at most 100 of them.
	Waiting []Object
}

// An Object is something in the kernel that is not as wanted.
type Object struct {
	Name  string
	Part  kernel.Part
	Op    string    // what is to be done
	Error string    // of the last try; "" if it was not tried
	Needs string    // what it waits for; "" if nothing
	Since time.Time // when it was first found not to be as wanted
	Retry time.Time // when it is tried again; zero: when what it waits for is there
}

// An Event is something of ours that others changed or removed.
type Event struct {
	Time   time.Time
	Part   kernel.Part
	Object string
	Repair string // the operation that makes it right again
	More   int    // how many further objects this event stands for
}

// Status is what an operator sees.
type Status struct {
	Wanted  uint64 // latest revision set
	Done    uint64 // latest revision that was completely in the kernel
	Safe    bool   // see Report, for Wanted
	Pending int    // how many objects are not as wanted
	Objects []Object
	Parts   [kernel.Parts]PartStatus
}

// PartStatus is how one backend does.
type PartStatus struct {
	Part     kernel.Part
	Observed time.Time // last good look; zero: none yet
	Error    string    // of the last look
	Repairs  uint64    // objects that others changed, since the start
	Ops      uint64    // operations that succeeded
	Failures uint64    // operations that failed
}

// A Reconciler owns what is between the core and the backends. Its methods
// are safe for concurrent use; Run is called once.
type Reconciler struct {
	backends Backends
	opts     Options
	wake     chan struct{} // holds one: there is news for the loop
	sets     atomic.Uint64 // how often Set was called

	mu     sync.Mutex
	want   kernel.State
	kicked [kernel.Parts]bool
	status Status
}

// New gives a reconciler that does nothing until Run.
func New(backends Backends, opts Options) *Reconciler {
	if opts.Report == nil {
		opts.Report = func(Report) {}
	}
	if opts.Event == nil {
		opts.Event = func(Event) {}
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	r := &Reconciler{backends: backends, opts: opts, wake: make(chan struct{}, 1)}
	for part := range kernel.Parts {
		r.status.Parts[part].Part = part
	}
	return r
}

// Set makes want the desired state. Its slices must be sorted and never change
// again. It does not block; a state that was not yet worked on is forgotten.
func (r *Reconciler) Set(want kernel.State) {
	r.mu.Lock()
	r.want = want
	r.status.Wanted = want.Revision
	r.mu.Unlock()
	r.sets.Add(1)
	r.poke()
}

// Kick asks for a look at parts of the kernel, or at all of it without
// arguments, because something may have happened there. It does not block.
func (r *Reconciler) Kick(parts ...kernel.Part) {
	r.mu.Lock()
	for part := range kernel.Parts {
		r.kicked[part] = r.kicked[part] || len(parts) == 0
	}
	for _, part := range parts {
		r.kicked[part] = true
	}
	r.mu.Unlock()
	r.poke()
}

// poke wakes the loop; if it is about to wake up anyway, that will do.
func (r *Reconciler) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Status gives a copy of how things stand.
func (r *Reconciler) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Objects = append([]Object(nil), s.Objects...)
	return s
}

// update changes the status.
func (r *Reconciler) update(change func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.status)
}

// Run works until ctx ends, and returns its cause. Nothing in the kernel is
// undone.
func (r *Reconciler) Run(ctx context.Context) error {
	l := newLoop(r)
	var observers sync.WaitGroup
	defer observers.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for part := range kernel.Parts {
		observers.Go(func() { l.observer(ctx, part) })
	}
	return l.run(ctx)
}
