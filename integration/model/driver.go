package model

import (
	"time"
)

// A driver brings a node's kernel to what its router wants, and tells the
// router how far it got.
type driver struct {
	version uint64 // of the router, as last looked at
	dirty   bool
	plan    *plan // being carried out
	looking bool  // a look at the router is due
}

// A plan is one look at what the router wants, and the changes that lead
// there.
type plan struct {
	step   uint64
	want   kernel
	filter bool // only the filter changes: the router is not settled
	left   int  // operations not done
}

// notice looks whether the router wants something else than before.
func (n *node) notice() {
	if n.router == nil {
		return
	}
	d := &n.driver
	if v := n.router.Version(); v != d.version {
		d.version, d.dirty = v, true
	}
	if !d.dirty || d.looking {
		return
	}
	if d.plan != nil {
		if n.w.rng.IntN(2) == 0 {
			return // what is under way is finished first
		}
		n.w.trace("%s gives its plan up", n)
		d.plan = nil
	}
	d.looking = true
	n.later(n.pause(n.lazy), func() {
		d.looking = false
		n.look()
	})
}

// pause is a random time up to most; often none at all.
func (n *node) pause(most time.Duration) time.Duration {
	if most <= 0 || n.w.rng.IntN(2) == 0 {
		return 0
	}
	return time.Duration(n.w.rng.Int64N(int64(most)))
}

// look makes a plan and begins to carry it out.
func (n *node) look() {
	d, w := &n.driver, n.w
	d.version, d.dirty = n.router.Version(), false
	p := n.newPlan()
	d.plan = p
	ops := n.operations(p)
	p.left = len(ops)
	w.trace("%s plans step %d: %d operations", n, p.step, len(ops))
	if w.opt.Broken == CommitsEarly {
		n.commit(p.step)
	}
	if len(ops) == 0 {
		n.finish(p)
		return
	}
	took := n.pause(n.slow)
	if n.w.rng.IntN(100) == 0 {
		took += time.Duration(w.rng.Int64N(int64(3 * time.Second)))
	}
	var at time.Duration
	for i, op := range ops {
		if took > 0 {
			at += time.Duration(w.rng.Int64N(int64(2*took))) / time.Duration(len(ops))
		}
		op := op
		if i == 0 && took == 0 {
			n.carryOut(p, op)
		} else {
			n.later(at, func() { n.carryOut(p, op) })
		}
	}
}

// carryOut does one operation, unless the plan was given up.
func (n *node) carryOut(p *plan, op func()) {
	if n.driver.plan != p || n.w.stopped {
		return
	}
	if n.w.now < n.failing && n.w.rng.IntN(2) == 0 {
		n.later(time.Duration(20+n.w.rng.IntN(300))*time.Millisecond, func() { n.carryOut(p, op) })
		return
	}
	op()
	if p.left--; p.left == 0 {
		n.later(n.pause(n.slow/4), func() { n.finish(p) })
	}
}

// finish reports a plan that is in the kernel.
func (n *node) finish(p *plan) {
	if n.driver.plan != p {
		return
	}
	n.driver.plan = nil
	first := !n.settled && !p.filter
	n.settled = n.settled || first
	n.commit(p.step)
	if first && n.w.cruel && !n.w.quiet {
		// The kernel follows this run, and nobody has heard of that.
		e := n.ends[n.w.rng.IntN(len(n.ends))]
		n.reprice(e, 0)
		n.crash(nil, n.w.upTo(20*time.Millisecond))
		n.reprice(e, 0)
	}
}

func (n *node) commit(step uint64) {
	n.w.trace("%s commits step %d", n, step)
	n.router.Committed(step)
	n.wake(0)
	n.notice()
}

// newPlan asks the router what it wants.
func (n *node) newPlan() *plan {
	w := n.w
	t := n.router.Table()
	p := &plan{step: t.Step, filter: !n.router.Settled()}
	for _, e := range n.ends {
		if n.router.Admits(e.peer.id) {
			p.want.admits = p.want.admits.with(e.peer.i)
		}
	}
	if p.filter {
		return p
	}
	for _, d := range t.Destinations {
		var legs set
		for _, s := range d.Successors {
			legs = legs.with(w.number[s.Peer])
		}
		for _, prefix := range d.Prefixes {
			i := w.space.index[prefix]
			p.want.has = p.want.has.with(i)
			p.want.legs[i] = legs
		}
	}
	p.want.local = n.delivers()
	if w.mindful {
		p.want.has |= w.granted(n.log)
	}
	p.want.has &^= p.want.local
	for i := range p.want.local.all {
		p.want.legs[i] = 0
	}
	switch w.opt.Broken {
	case ShortestPath:
		n.shortest(p)
	case IgnoresHolds:
		p.want.admits |= n.kernel.admits
	}
	if w.labels {
		n.label(p)
	}
	return p
}

// delivers are the prefixes that are behind the node itself.
func (n *node) delivers() set {
	out := set(0).with(n.i)
	for p, origins := range n.w.history[n.log] {
		if origins.has(n.i) {
			out = out.with(p)
		}
	}
	return out
}

// operations are the changes from the kernel as it is to the plan, in the
// order in which they are to be done.
func (n *node) operations(p *plan) (ops []func()) {
	k, want, w := &n.kernel, &p.want, n.w
	var first, last []func()
	if gone := k.admits &^ want.admits; gone != 0 {
		first = append(first, func() {
			w.trace("%s refuses %v", n, names(gone))
			n.refuse(gone)
		})
	}
	if p.filter {
		return first
	}
	for u := range (want.admits &^ k.admits).all {
		last = append(last, func() {
			w.trace("%s admits n%d", n, u)
			n.admit(u)
		})
	}
	for i := range w.space.prefixes {
		has, local, legs := want.has.has(i), want.local.has(i), want.legs[i]
		if has == k.has.has(i) && local == k.local.has(i) && legs == k.legs[i] {
			continue
		}
		change := func(legs set) func() {
			return func() {
				w.trace("%s: %v has=%v local=%v to %v", n, w.space.prefixes[i], has, local, names(legs))
				n.setRoute(i, has, local, legs, &want.rd[i])
			}
		}
		if has && k.has.has(i) && w.rng.IntN(4) == 0 {
			between := legs & k.legs[i]
			if w.rng.IntN(2) == 0 {
				between = legs | k.legs[i]
			}
			if between != legs && between != k.legs[i] {
				// Both must happen, in this order: they are one operation
				// that puts the second off.
				ops = append(ops, func() {
					change(between)()
					p.left++
					n.later(n.pause(n.slow/4), func() { n.carryOut(p, change(legs)) })
				})
				continue
			}
		}
		ops = append(ops, change(legs))
	}
	if w.disorder {
		ops = append(append(first, ops...), last...)
		w.rng.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
		return ops
	}
	w.rng.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
	return append(append(first, ops...), last...)
}

// label notes the distances behind a plan.
func (n *node) label(p *plan) {
	for i, key := range n.w.space.keys {
		f, _ := n.router.Feasibility(key)
		for _, r := range f.Reports {
			p.want.rd[i][n.w.number[r.Peer]] = r.Distance
		}
	}
}
