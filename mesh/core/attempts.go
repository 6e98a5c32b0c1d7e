package core

import (
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/link"
)

const (
	// retryFirst and retryMost bound the pause between attempts of one link.
	retryFirst = time.Second
	retryMost  = time.Minute
	// restFor is the same where nothing lets hope for success. A change at either
	// end ends it.
	restFor = 15 * time.Minute
	// reseatAfter is how long a link stays down before a new attempt looks for
	// another way to the same uplink: a short cut is over by then.
	reseatAfter = 2 * time.Second
	// deferFor is how long the end that is not the initiator waits before it
	// tries itself.
	deferFor = 3 * time.Second
	// maxCarriers is how many links of a node are carried in streams: three, so
	// that it has ways when a node in the middle fails, and short ones to some.
	maxCarriers = 3
	// maxSpreads is how many searches by chance ports a link gets within spreadSpan,
	// and spreadWait how long one waits for another link's.
	maxSpreads = 2
	spreadSpan = 24 * time.Hour
	spreadWait = 30 * time.Second
)

// An Effort is what attempts have taken, those too that yielded to the far end's.
type Effort struct {
	Begun   int // by this end
	Packets int // that this end has sent, whoever began
	Bytes   int // in these
}

func (e *Effort) add(more Effort) {
	e.Begun, e.Packets, e.Bytes = e.Begun+more.Begun, e.Packets+more.Packets, e.Bytes+more.Bytes
}

// attemptIfDue starts an attempt for a link that has no tunnel or a dead one.
func (n *Node) attemptIfDue(e *entry) {
	if e.attempting || n.state == nil {
		return
	}
	if beside := n.entries[e.rec.Link.Beside()]; beside != nil && beside.rec.Order > e.rec.Order {
		return // it takes over
	}
	since := e.wanted
	if e.judge != nil {
		if s := e.judge.State(); s != link.Down && s != link.Probing {
			return
		}
		since = e.judge.Since().Add(reseatAfter)
	}
	switch {
	case !e.news.IsZero() && (e.judge == nil || e.news.After(e.judge.Since())):
		since = e.news // the other end cannot know
	case !n.initiates(e.rec.Link.Peer):
		since = since.Add(deferFor)
	}
	due := latest(since, e.retry)
	local, ok := n.uplink(e.rec.Link.Local)
	if !ok || !local.Up {
		return // tried again when the uplink comes back
	}
	carrier := n.needsCarrier(e)
	if carrier {
		due = latest(e.wanted, e.retry) // nobody else can begin
	} else if why := n.hopeless(e.rec.Link); why != "" {
		n.noLink(e, why)
		due = latest(due, latest(e.wanted, e.changed).Add(restFor))
	}
	if due.After(n.now) {
		e.dueBy(due)
		return
	}
	spread := !carrier && n.spreadDue(e)
	if spread && n.spreading() {
		e.spreadAt = n.now.Add(spreadWait)
		e.retry = e.spreadAt
		e.dueBy(e.retry)
		return
	}
	if spread {
		e.spreadAt = time.Time{}
	}
	e.attempting, e.carrying, e.spreading = true, carrier, spread
	n.ready.Attempt = append(n.ready.Attempt, Attempt{Link: e.rec.Link, Carrier: carrier, Spread: spread, PathRTT: n.roundTrip(e.rec.Link.Peer)})
}

// planSpread plans a search by chance ports for a link whose attempts have become
// hopeless, if its ends are of the kind that it helps and there were few of late.
func (n *Node) planSpread(e *entry) {
	enough := len(e.spreads) == maxSpreads && n.now.Sub(e.spreads[0]) < spreadSpan
	if n.cfg.SpreadAfter == 0 || !e.spreadAt.IsZero() || enough || !n.canSpread(e.rec.Link) {
		return
	}
	// Many links become hopeless in one moment, and each node has one search at a time.
	e.spreadAt = n.now.Add(n.cfg.SpreadAfter + time.Duration(n.cfg.Rand.Int64N(int64(n.cfg.SpreadAfter)/2+1)))
	if !n.initiates(e.rec.Link.Peer) {
		e.spreadAt = e.spreadAt.Add(deferFor)
	}
}

func (n *Node) canSpread(id mesh.LinkID) bool {
	facts := n.facts[id.Peer]
	i := slices.IndexFunc(facts.Uplinks, func(u discovery.Uplink) bool { return u.Name == id.Remote })
	return i >= 0 && discovery.CanSpread(n.outside[id.Local], facts.Uplinks[i])
}

func (n *Node) spreadDue(e *entry) bool {
	return !e.spreadAt.IsZero() && !n.now.Before(e.spreadAt) && n.canSpread(e.rec.Link)
}

// spreading reports whether a search by chance ports is under way here.
func (n *Node) spreading() bool {
	for _, e := range n.entries {
		if e.spreading {
			return true
		}
	}
	return false
}

// needsCarrier reports whether a link is to be carried in a stream: no UDP passes
// its uplink, its far end can be dialled, and this node has no link but such.
func (n *Node) needsCarrier(e *entry) bool {
	id := e.rec.Link
	if len(n.state.Nodes[id.Peer].Control) == 0 || !blocked(n.outside[id.Local]) {
		return false
	}
	carriers := 0
	for _, other := range n.entries {
		if other == e {
			continue
		}
		switch {
		case other.attempting && other.carrying:
			carriers++
		case other.judge == nil || other.judge.State() == link.Down:
		case other.rec.Class == discovery.ClassCarrier:
			carriers++
		case other.judge.Usable():
			return false
		}
	}
	return carriers < maxCarriers
}

// blocked reports whether UDP is known not to pass an uplink.
func blocked(u discovery.Uplink) bool {
	shut := func(n discovery.NAT) bool { return n == discovery.NATBlocked }
	open := func(n discovery.NAT) bool { return !shut(n) && n != discovery.NATAbsent && n != discovery.NATUnknown }
	return (shut(u.NAT) || shut(u.NAT6)) && !open(u.NAT) && !open(u.NAT6)
}

// hopeless says why two uplinks cannot have a direct path, as far as their ends
// know what lies before them; or nothing.
func (n *Node) hopeless(id mesh.LinkID) string {
	facts := n.facts[id.Peer]
	i := slices.IndexFunc(facts.Uplinks, func(u discovery.Uplink) bool { return u.Name == id.Remote })
	if i < 0 {
		return ""
	}
	if e, why := discovery.Expect(n.outside[id.Local], facts.Uplinks[i]); e == discovery.Never {
		return why
	}
	return ""
}

// noLink notes why there is no link, and tells it when that is news.
func (n *Node) noLink(e *entry, why string) {
	if e.why == "" {
		id := e.rec.Link
		n.fact(Fact{Kind: LinkFailed, Node: id.Peer, Link: id, Sentence: "no link to " + n.linkName(id) + " yet", Cause: why})
	}
	e.why = why
}

// roundTrip is about how long a message to the node and its answer take; zero:
// not known.
func (n *Node) roundTrip(peer mesh.NodeID) time.Duration {
	here, there := n.distances.Coordinate, n.facts[peer].Distances.Coordinate
	if here.IsZero() || there.IsZero() {
		return 0
	}
	return here.Distance(there)
}

// initiates says which end begins: the one that cannot be reached, for it can
// reach the other; else the one with the lower id.
func (n *Node) initiates(peer mesh.NodeID) bool {
	mine := len(n.state.Nodes[n.cfg.Self].Control) > 0
	theirs := len(n.state.Nodes[peer].Control) > 0
	if mine != theirs {
		return theirs
	}
	return n.cfg.Self.Compare(peer) < 0
}

// seenOutside takes what one of our uplinks looks like from outside.
func (n *Node) seenOutside(ev Surveyed) {
	name := ev.Uplink.Name
	old, known := n.outside[name]
	n.outside[name] = ev.Uplink
	if known && !ev.Resumed && old.SameOutside(ev.Uplink) {
		n.compareLifetimes(old, ev.Uplink)
		return
	}
	n.ready.Dirty = true
	n.networkChanged(name, !known) // the first look is no change: tunnels of an earlier agent may do
	if blocked(ev.Uplink) {
		for id, e := range n.entries {
			if id.Local == name && e.attempting && !e.carrying {
				n.ready.Cancel = append(n.ready.Cancel, id)
			}
		}
	}
}

// networkChanged lets hope anew for an uplink's links, or for those only that have no
// tunnel. This end begins: the others cannot know.
func (n *Node) networkChanged(uplink string, tunnelless bool) {
	for id, e := range n.entries {
		if id.Local == uplink && (e.judge == nil || !tunnelless) {
			e.hope(n.now)
			e.news = n.now
		}
	}
}

// compareFacts lets hope anew for links to uplinks that have changed.
func (n *Node) compareFacts(old, now discovery.Facts) {
	for id, e := range n.entries {
		if id.Peer != now.Node {
			continue
		}
		named := func(u discovery.Uplink) bool { return u.Name == id.Remote }
		i, j := slices.IndexFunc(old.Uplinks, named), slices.IndexFunc(now.Uplinks, named)
		if i < 0 || j < 0 {
			continue
		}
		n.compareLifetimes(old.Uplinks[i], now.Uplinks[j])
		if !old.Uplinks[i].SameOutside(now.Uplinks[j]) {
			e.hope(n.now)
		}
	}
}

// compareLifetimes has the tunnels' keepalives changed when they have to be.
func (n *Node) compareLifetimes(old, now discovery.Uplink) {
	n.ready.Dirty = n.ready.Dirty || old.Lifetime != now.Lifetime || old.Lifetime6 != now.Lifetime6
}

// hope forgets that attempts failed.
func (e *entry) hope(now time.Time) {
	e.retry, e.failures, e.seats, e.why, e.changed, e.due = now, 0, 0, "", now, time.Time{}
	e.spreadAt = time.Time{}
}

// attempted takes the end of an attempt, ours or the far end's.
func (n *Node) attempted(ev AttemptDone) {
	e := n.entries[ev.Link]
	if e == nil {
		if e = n.beside(ev); e == nil {
			return
		}
	}
	carried := e.carrying
	e.attempting, e.carrying, e.spreading, e.due = false, false, false, time.Time{}
	e.effort.add(ev.Effort)
	if ev.Yielded { // the far end's attempt is under way
		e.retry = n.now.Add(retryFirst)
		return
	}
	if ev.Spread {
		e.spreads = append(e.spreads[max(0, len(e.spreads)+1-maxSpreads):], n.now)
	}
	if ev.Err != "" {
		e.failures++
		pause := min(retryFirst<<min(e.failures-1, 10), retryMost)
		switch carrier := n.needsCarrier(e); {
		case carrier && !carried:
			pause = 0 // when it began, it was not known that no UDP passes
		case ev.Hopeless && !carrier:
			pause = restFor
		}
		e.retry = n.now.Add(pause + time.Duration(n.cfg.Rand.Int64N(int64(pause)/4+1)))
		if ev.Hopeless && !ev.Spread {
			if n.planSpread(e); !e.spreadAt.IsZero() && e.spreadAt.Before(e.retry) {
				e.retry = e.spreadAt
			}
		}
		n.noLink(e, ev.Err)
		return
	}
	// A path that was proven and still gives no link: too much is going on already.
	e.spreadAt = time.Time{}
	e.failures, e.why, e.news, e.retry = 0, "", time.Time{}, n.now.Add(min(reseatAfter<<min(e.seats, 10), retryMost))
	e.seats++
	e.rec.Generation, e.rec.Port, e.rec.Endpoint, e.rec.Class = ev.ID, ev.Port, ev.Endpoint, ev.Class
	e.rec.Carrier = ev.Carrier
	e.rec.Peer = ev.Peer.Public
	e.rec.Epoch = n.epoch()
	if e.judge == nil {
		e.rec.Device = deviceName(n.name(ev.Link.Peer), ev.Link, func(s string) bool { return n.byDevice[s] != nil })
		e.rec.Slot = n.freeSlot()
		n.byDevice[e.rec.Device] = e
	}
	switch {
	case e.judge == nil:
		e.judge = link.New(n.now, ev.First, n.phase)
	case e.judge.State() != link.Up:
		e.judge = link.Renew(n.now, ev.First, e.judge)
	default:
		e.judge.Moved()
	}
	n.sizeTunnels()
	n.ready.Dirty, n.ready.Save = true, true
	made := Fact{Kind: LinkMade, Node: ev.Link.Peer, Link: ev.Link, Sentence: "tunnel to " + n.linkName(ev.Link) + " at " + ev.Endpoint.String()}
	if ev.Class == discovery.ClassCarrier {
		made.Sentence, made.Cause = "tunnel to "+n.linkName(ev.Link)+" over TLS", "UDP does not pass an uplink of one end"
	}
	if ev.Spread {
		made.Cause = "found by chance ports"
	}
	n.fact(made)
}
