package reconcile

import (
	"context"
	"log/slog"
	"time"

	"guywire/mesh"
	"guywire/mesh/kernel"
)

// A look is the state of looking at one part. Each part is looked at by its
// own goroutine, so that a long dump does not delay a cut.
type look struct {
	request chan struct{} // holds one: to the observer
	known   bool          // there was a good look
	wanted  bool          // there is a reason to look
	busy    bool          // the observer is at it
	ops     uint64        // operations done on the part
	began   uint64        // ops when the observer began
	spoilt  time.Time     // since when operations overtook every look; zero: they did not
	ended   time.Time     // of the last look
	retry   time.Time     // after a failed one
	wait    time.Duration // before that retry
}

// A result is what an observer found.
type result struct {
	part  kernel.Part
	state kernel.State
	err   error
}

// observer looks at one part whenever it is asked to.
func (l *loop) observer(ctx context.Context, part kernel.Part) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.looks[part].request:
		}
		res := l.look(ctx, part)
		select {
		case <-ctx.Done():
			return
		case l.results <- res:
		}
	}
}

func (l *loop) look(ctx context.Context, part kernel.Part) result {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	state, err := l.r.backends[part].Observe(ctx)
	return result{part, state, err}
}

// due is when the part is to be looked at next, unless someone is at it.
func (k *look) due() (time.Time, bool) {
	switch {
	case k.busy:
		return time.Time{}, false
	case !k.retry.IsZero():
		return k.retry, true
	case k.wanted:
		return k.ended.Add(pace), true
	default:
		return k.ended.Add(resync), true
	}
}

// startLooks asks the observers of all parts that are due.
func (l *loop) startLooks(now time.Time) {
	for i := range l.looks {
		k := &l.looks[i]
		if due, ok := k.due(); !ok || due.After(now) {
			continue
		}
		k.busy, k.wanted, k.began = true, false, k.ops
		k.request <- struct{}{} // never blocks: it is not busy
	}
}

func (l *loop) takeKicks() {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	for part, kicked := range l.r.kicked {
		if kicked {
			l.looks[part].wanted = true
		}
	}
	l.r.kicked = [kernel.Parts]bool{}
}

func (l *loop) allKnown() bool {
	for i := range l.looks {
		if !l.looks[i].known {
			return false
		}
	}
	return true
}

// observed takes in what an observer found.
func (l *loop) observed(ctx context.Context, res result) {
	k := &l.looks[res.part]
	k.busy = false
	if res.err == nil && k.ops != k.began {
		k.ended = time.Now()
		if k.spoilt.IsZero() {
			k.spoilt = k.ended
		}
		if k.ended.Sub(k.spoilt) < blind {
			k.wanted = true
			return
		}
		res = l.look(ctx, res.part) // with operations at rest: this goroutine does them
	}
	if ctx.Err() != nil {
		return
	}
	k.ended = time.Now()
	if res.err != nil {
		if k.wait == 0 {
			l.r.opts.Log.Warn("cannot look at the kernel", slog.String("part", res.part.String()), slog.String(mesh.LogError, res.err.Error()))
		}
		k.wait = min(max(2*k.wait, retryFirst), retryLast)
		k.retry = k.ended.Add(k.wait)
		l.r.update(func(s *Status) { s.Parts[res.part].Error = res.err.Error() })
		return
	}
	k.spoilt, k.wait, k.retry = time.Time{}, 0, time.Time{}
	for _, f := range l.failures {
		f.doubt = f.doubt && kernel.PartOf(f.op) != res.part
	}
	before := l.pending()
	l.model.Observe(res.part, res.state)
	l.r.update(func(s *Status) {
		s.Parts[res.part].Error = ""
		s.Parts[res.part].Observed = k.ended
	})
	if k.known {
		l.drift(res.part, before)
	}
	k.known = true
}

// pending gives the objects that are known not to be as wanted.
func (l *loop) pending() map[string]bool {
	out := map[string]bool{}
	if l.set == 0 {
		return out
	}
	for _, op := range l.model.Plan(l.want) {
		out[kernel.Object(op)] = true
	}
	return out
}

// drift tells of objects that were as wanted before the look, and are not.
func (l *loop) drift(part kernel.Part, before map[string]bool) {
	if l.set == 0 {
		return
	}
	var events []Event
	now := time.Now()
	for _, op := range l.model.Plan(l.want) {
		name := kernel.Object(op)
		if before[name] {
			continue
		}
		before[name] = true // a filter may need several operations
		events = append(events, Event{Time: now, Part: kernel.PartOf(op), Object: name, Repair: op.String()})
	}
	if len(events) == 0 {
		return
	}
	l.r.update(func(s *Status) { s.Parts[part].Repairs += uint64(len(events)) })
	if more := len(events) - eventsMax; more > 0 {
		events = events[:eventsMax]
		events[eventsMax-1].More = more
	}
	for _, e := range events {
		l.r.opts.Event(e)
	}
}
