package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/mesh/kernel"
)

// A loop is what Run's goroutine owns.
type loop struct {
	r     *Reconciler
	model *kernel.Model
	want  kernel.State
	set   uint64 // r.sets when want was taken; 0: there is none yet

	looks    [kernel.Parts]look
	results  chan result // holds one of each part
	failures map[string]*failure
	since    map[string]time.Time // object → when it was first not as wanted
	told     Report               // last report
}

// A failure is an object whose operation failed.
type failure struct {
	op     kernel.Op
	set    uint64 // the desired state it was for
	err    error
	wait   time.Duration
	retry  time.Time // zero: when what it waits for is there
	doubt  bool      // it may have been done all the same: nobody looked since
	wanted bool      // the latest plan holds the very operation
}

func newLoop(r *Reconciler) *loop {
	l := &loop{
		r: r, model: kernel.NewModel(kernel.State{}),
		results:  make(chan result, kernel.Parts),
		failures: map[string]*failure{}, since: map[string]time.Time{},
	}
	for part := range l.looks {
		l.looks[part].request = make(chan struct{}, 1)
	}
	return l
}

func (l *loop) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.r.wake:
		case <-timer.C:
		case res := <-l.results:
			l.observed(ctx, res)
		}
		l.takeKicks()
		l.pass(ctx)
		l.startLooks(time.Now())
		timer.Reset(time.Until(l.deadline()))
	}
}

// take gets the latest desired state.
func (l *loop) take() {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	l.set = l.r.sets.Load()
	l.want = l.r.want
}

// pass plans and does until there is nothing left that can be done now.
func (l *loop) pass(ctx context.Context) {
	if l.r.sets.Load() == 0 || !l.allKnown() {
		return
	}
	for range rounds {
		l.take()
		waiting, did, complete := l.do(ctx, l.model.Plan(l.want))
		if ctx.Err() != nil {
			return
		}
		if complete && did == 0 {
			l.report(waiting)
			return
		}
	}
	// Newer states keep coming, and with them wake-ups: others get their turn.
}

// do does what can be done of a plan. It breaks off when there is a newer
// desired state: complete is false then.
func (l *loop) do(ctx context.Context, ops []kernel.Op) (waiting []Object, did int, complete bool) {
	now := time.Now()
	planned := make(map[string]bool, len(ops))
	for _, f := range l.failures {
		f.wanted = false
	}
	for _, op := range ops {
		if l.r.sets.Load() != l.set || ctx.Err() != nil {
			return nil, did, false
		}
		name := kernel.Object(op)
		planned[name] = true
		object := Object{Name: name, Part: kernel.PartOf(op)}
		failed := l.failures[name]
		if failed != nil {
			same := reflect.DeepEqual(failed.op, op)
			failed.wanted = failed.wanted || same
			if failed.set != l.set && !same {
				failed = nil // this is another operation, which may well succeed
			}
		}
		switch {
		case failed != nil && now.Before(failed.retry):
			object.Error, object.Retry = failed.err.Error(), failed.retry
		default:
			if object.Needs = l.model.Waits(l.want, op); object.Needs != "" {
				break
			}
			err := l.doOne(ctx, op)
			if err == nil {
				did++
				continue
			}
			if ctx.Err() != nil {
				return nil, did, false
			}
			f := l.failures[name]
			object.Error, object.Retry = f.err.Error(), f.retry
		}
		object.Op = op.String()
		waiting = append(waiting, object)
	}
	waiting = append(waiting, l.doubts()...)
	l.tidy(now, planned, waiting)
	return waiting, did, true
}

// doOne does one operation and notes how it went.
func (l *loop) doOne(ctx context.Context, op kernel.Op) error {
	part, name := kernel.PartOf(op), kernel.Object(op)
	opCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := l.r.backends[part].Do(opCtx, op)
	l.looks[part].ops++
	if err == nil {
		l.model.Apply(op)
		if _, failed := l.failures[name]; failed {
			delete(l.failures, name)
			l.r.opts.Log.Info("kernel change succeeded after a failure", slog.String("object", name))
		}
		l.r.update(func(s *Status) { s.Parts[part].Ops++ })
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	f := l.failures[name]
	if f == nil {
		f = &failure{}
		l.failures[name] = f
		l.r.opts.Log.Warn("kernel change failed", slog.String("object", name), slog.String(mesh.LogError, err.Error()),
			slog.Uint64(mesh.LogRevision, l.want.Revision))
	}
	if f.set != l.set && !reflect.DeepEqual(f.op, op) {
		f.wait = 0
	}
	f.wait = min(max(2*f.wait, retryFirst), retryLast)
	f.op, f.set, f.err, f.retry = op, l.set, err, time.Now().Add(f.wait)
	f.doubt, f.wanted = f.doubt || !errors.Is(err, kernel.ErrRefused), true
	l.looks[part].wanted = true // whatever is there now is not what we thought
	l.r.update(func(s *Status) { s.Parts[part].Failures++ })
	return err
}

// tidy forgets failures and ages of objects that are as wanted by now; now is
// when the operations began.
func (l *loop) tidy(now time.Time, planned map[string]bool, waiting []Object) {
	maps.DeleteFunc(l.failures, func(name string, f *failure) bool {
		if !f.retry.After(now) {
			f.retry = time.Time{} // was due and was not tried: the clock will not tell when
		}
		return !planned[name] && !f.doubt
	})
	waits := make(map[string]bool, len(waiting))
	for i, o := range waiting {
		waits[o.Name] = true
		if _, ok := l.since[o.Name]; !ok {
			l.since[o.Name] = now
		}
		waiting[i].Since = l.since[o.Name]
	}
	maps.DeleteFunc(l.since, func(name string, _ time.Time) bool { return !waits[name] })
}

// doubts gives the objects of failed operations that are not wanted any more
// and may have been done all the same, say when only the answer was lost. As
// long as nobody looked, the model says nothing certain of these.
func (l *loop) doubts() []Object {
	var out []Object
	for _, name := range slices.Sorted(maps.Keys(l.failures)) {
		if f := l.failures[name]; f.doubt && !f.wanted {
			out = append(out, Object{
				Name: name, Part: kernel.PartOf(f.op), Op: f.op.String(), Error: f.err.Error(), Needs: "a look at it",
			})
		}
	}
	return out
}

// certain reports whether nothing is in doubt that bears on where packets go.
// What is in doubt of a tunnel or a setting does so only if it is not wanted
// any more: one that cannot be made must not stop the routing protocol.
func (l *loop) certain(parts ...kernel.Part) bool {
	for _, f := range l.failures {
		if part := kernel.PartOf(f.op); f.doubt && slices.Contains(parts, part) &&
			(!f.wanted || part == kernel.PartForwarding || part == kernel.PartFilter) {
			return false
		}
	}
	return true
}

// report tells how far the desired state is, if that has changed.
func (l *loop) report(waiting []Object) {
	done := len(waiting) == 0
	rep := Report{
		Revision: l.want.Revision, Done: done,
		Safe:     l.certain(kernel.PartForwarding, kernel.PartFilter, kernel.PartTunnels) && l.model.Safe(l.want),
		Filtered: l.certain(kernel.PartFilter) && l.model.Filtered(l.want),
		Waiting:  slices.Clone(waiting[:min(len(waiting), listMax)]),
	}
	l.r.update(func(s *Status) {
		s.Safe, s.Pending, s.Objects = rep.Safe, len(waiting), rep.Waiting
		if done {
			s.Done = rep.Revision
		}
	})
	if !reflect.DeepEqual(rep, l.told) {
		l.told = rep
		l.r.opts.Report(rep)
	}
}

// deadline is when the loop has to act again without being asked.
func (l *loop) deadline() time.Time {
	next := time.Now().Add(resync)
	for _, f := range l.failures {
		if !f.retry.IsZero() && f.retry.Before(next) {
			next = f.retry
		}
	}
	for i := range l.looks {
		if due, ok := l.looks[i].due(); ok && due.Before(next) {
			next = due
		}
	}
	return next
}
