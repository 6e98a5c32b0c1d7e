package core

import (
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/link"
)

// Between the same uplinks two tunnels stand for a moment, on two lanes: one that
// was made because its path is better, and the one that it takes over from. What
// each end does with them depends on its own judgement only, and leaves the other
// the time to come to the same.

const (
	// takeOverAfter is how long the newer tunnel has been up when the older one is
	// drained, and as long again when it goes.
	takeOverAfter = 2 * time.Second
	// provingTime is when a newer tunnel goes that is not up.
	provingTime = 10 * time.Second
	// improveEvery is how often a better path is looked for unless something has
	// changed, improveCarrier where packets go through a stream.
	improveEvery   = 30 * time.Minute
	improveCarrier = time.Minute
)

// improveIfDue looks for a better path than that of a link that is up.
func (n *Node) improveIfDue(e *entry) {
	if e.improving || e.judge.State() != link.Up || e.rec.Class <= discovery.ClassLAN || n.entries[e.rec.Link.Beside()] != nil || n.state == nil {
		return
	}
	local, ok := n.uplink(e.rec.Link.Local)
	if !ok || !local.Up || n.hopeless(e.rec.Link) != "" {
		return
	}
	from := latest(e.judge.Since(), e.improved)
	var due time.Time
	switch {
	case e.changed.After(from):
		due = e.changed
	case e.rec.Class == discovery.ClassCarrier:
		due = from.Add(improveCarrier)
	case e.rec.Class == discovery.ClassTranslated:
		due = from.Add(improveEvery)
	default:
		return
	}
	if !n.initiates(e.rec.Link.Peer) {
		due = due.Add(deferFor)
	}
	if due.After(n.now) {
		e.dueBy(due)
		return
	}
	e.improving, e.improved = true, n.now
	n.ready.Attempt = append(n.ready.Attempt, Attempt{Link: e.rec.Link.Beside(), PathRTT: n.roundTrip(e.rec.Link.Peer), Below: e.rec.Class})
}

// beside takes the end of an attempt for a lane that is not there: it is to take
// over from the other one. It gives the new lane's entry, if there is a path.
func (n *Node) beside(ev AttemptDone) *entry {
	old := n.entries[ev.Link.Beside()]
	if old == nil {
		return nil // unwanted meanwhile
	}
	old.improving = false
	if ev.Err != "" {
		return nil
	}
	e := &entry{rec: Record{Link: ev.Link, Order: old.rec.Order + 1}, wanted: n.now}
	n.entries[ev.Link], n.order = e, nil
	return e
}

// takeOver moves on from an older tunnel to the newer one beside it.
func (n *Node) takeOver(e *entry) {
	old := n.entries[e.rec.Link.Beside()]
	if old == nil || old.judge == nil || e.judge == nil || old.rec.Order > e.rec.Order {
		return
	}
	retires := false
	if since := e.judge.Since(); e.judge.State() == link.Up {
		drained, gone := since.Add(takeOverAfter), since.Add(2*takeOverAfter)
		switch {
		case !n.now.Before(gone):
			n.remove(old.rec.Link, "a better path has taken over")
			return
		case !n.now.Before(drained):
			retires = true
			e.dueBy(gone)
		default:
			e.dueBy(drained)
		}
	} else if end := e.wanted.Add(provingTime); n.now.Before(end) {
		e.dueBy(end)
	} else if old.judge.Usable() {
		n.remove(e.rec.Link, "its path does not hold")
		return
	}
	if old.retires != retires {
		old.retires = retires
		n.weigh(old)
	}
}

// only gives the one entry between two uplinks that has a tunnel; nil: there is
// none, or two.
func (n *Node) only(id mesh.LinkID) *entry {
	a, b := n.entries[id], n.entries[id.Beside()]
	switch {
	case a != nil && a.judge != nil && (b == nil || b.judge == nil):
		return a
	case b != nil && b.judge != nil && (a == nil || a.judge == nil):
		return b
	}
	return nil
}
