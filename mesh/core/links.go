package core

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/link"
	"guywire/routing/wire"
)

const (
	// standby is how many armed legs of a group in use are probed fast.
	standby = 1
	// alarmPace is what each false alarm of late adds to the least interval of
	// probes, alarmPaceMost the most; it halves every alarmHalfLife.
	alarmPace     = 10 * time.Millisecond
	alarmPaceMost = 100 * time.Millisecond
	alarmHalfLife = 5 * time.Second
	// alarmsApart: those within it are one, since a machine that did not run for a
	// moment is suspected over all its links at once.
	alarmsApart = 250 * time.Millisecond
	// maxSlot bounds next-hop slots: each stands for two objects below the groups.
	maxSlot = 1<<15 - 1
	// sightEvery is how often the far end is told where its packets come from while
	// that stays the same, sightLeast the least time between two words on ours.
	sightEvery = 5 * time.Minute
	sightLeast = time.Second
	// silenceEvery is the pause between two words to the far end that it is
	// not heard.
	silenceEvery = 100 * time.Millisecond
)

// entry is a wanted link: before its first success only retry and failures
// count, afterwards it has a record, a device and a judge.
type entry struct {
	rec     Record
	judge   *link.Link // nil: no tunnel yet
	traffic Traffic
	due     time.Time // when to look at it; zero: what it depends on has changed

	wanted     time.Time // since when
	news       time.Time // when our network changed last; zero: not since it is wanted
	changed    time.Time // when either end's did; zero: the same
	retry      time.Time // of the next attempt
	failures   int
	effort     Effort // of all attempts
	seats      int    // that it was given since it was up last
	why        string // the last attempt failed, or there is none
	attempting bool
	carrying   bool           // by a stream
	spreading  bool           // by chance ports
	spreadAt   time.Time      // when that is due next; zero: it is not
	spreads    []time.Time    // when the last of them ended, the far end's too
	roamed     time.Time      // when the far end's endpoint was first seen
	improving  bool           // an attempt for the lane beside this one is under way
	improved   time.Time      // and this is when the last one began
	retires    bool           // the lane beside this one takes over
	told       time.Time      // when the far end was last told that it is not heard
	sight      netip.AddrPort // of the far end, as it was last told,
	sighted    time.Time      // and when
	heard      time.Time      // when the far end last told us ours
	seen       worth          // as the routes last took it
}

func (e *entry) target() Target { return Target{e.rec.Device, e.rec.Link.Peer.LinkLocal()} }

// rank orders links by how much they can be trusted with a message.
func rank(e *entry) int {
	return [...]int{link.Up: 0, link.Suspect: 1, link.Headless: 2, link.Probing: 3, link.Down: 4}[e.judge.State()]
}

// dueBy makes the next look no later than t.
func (e *entry) dueBy(t time.Time) {
	if t.Before(e.due) {
		e.due = t
	}
}

// restore takes a link known before the start.
func (n *Node) restore(r Record) {
	e := &entry{rec: r, wanted: n.now, retry: n.now.Add(reseatAfter)}
	if r.Alive {
		e.judge = link.Adopt(n.now, n.phase)
		n.adopted = true
	} else {
		e.judge = link.New(n.now, n.first(r.Link.Peer), n.phase)
	}
	n.entries[r.Link], n.order = e, nil
	n.byDevice[r.Device] = e
	n.peers[r.Link.Peer] = true
}

// first says which end of a new tunnel sends first.
func (n *Node) first(peer mesh.NodeID) bool { return n.cfg.Self.Compare(peer) < 0 }

// plan makes the set of entries equal to the wanted links. It follows every
// change of the log, the host, a neighbour's facts and the mesh's shape, so it is
// here that what was decided about links by these becomes void.
func (n *Node) plan() {
	n.touch()
	if n.state == nil {
		return
	}
	neighbours := n.rewire()
	for _, id := range n.shape.wanted {
		facts, known := n.facts[id]
		if !known {
			continue
		}
		for _, local := range n.host.Uplinks {
			for _, remote := range facts.Uplinks {
				link := mesh.LinkID{Peer: id, Local: local.Name, Remote: remote.Name}
				if n.entries[link] == nil && n.entries[link.Beside()] == nil {
					n.order = nil
					n.entries[link] = &entry{rec: Record{Link: link}, wanted: n.now, retry: n.now}
					n.peers[id] = true
				}
			}
		}
	}
	for _, e := range n.sorted() {
		if why := n.unwanted(e.rec.Link, neighbours); why != "" {
			n.remove(e.rec.Link, why)
		}
	}
	n.sizeTunnels()
	for id := range n.peers {
		if !slices.ContainsFunc(n.sorted(), func(e *entry) bool { return e.rec.Link.Peer == id }) {
			n.router.DropNeighbour(id)
			delete(n.peers, id)
		}
	}
}

// sizeTunnels tells every link how large its device's packets can be.
func (n *Node) sizeTunnels() {
	for id, e := range n.entries {
		if u, ok := n.uplink(id.Local); ok && e.judge != nil {
			e.judge.SetMTU(n.mtu(u))
			e.due = time.Time{}
		}
	}
}

// unwanted says why a link is to go, or nothing. While too little is known,
// everything stays.
func (n *Node) unwanted(id mesh.LinkID, neighbours []mesh.NodeID) string {
	if _, member := n.state.Nodes[id.Peer]; !member {
		return "its node left the mesh"
	}
	if !slices.Contains(neighbours, id.Peer) {
		return "its node is no neighbour any more"
	}
	if _, ok := n.uplink(id.Local); !ok && len(n.host.Uplinks) > 0 {
		return "uplink " + id.Local + " is gone"
	}
	if f, known := n.facts[id.Peer]; known {
		for _, u := range f.Uplinks {
			if u.Name == id.Remote {
				return ""
			}
		}
		return "the far end has no uplink " + id.Remote + " any more"
	}
	return ""
}

func (n *Node) remove(id mesh.LinkID, why string) {
	e := n.entries[id]
	delete(n.entries, id)
	n.order = nil
	if e.judge == nil {
		return
	}
	delete(n.byDevice, e.rec.Device)
	n.ready.Dirty, n.ready.Save = true, true
	n.lastCause, n.causedAt = "link to "+n.name(id.Peer)+" removed: "+why, n.now
	n.fact(Fact{Kind: LinkRemoved, Node: id.Peer, Link: id, Sentence: "link to " + n.name(id.Peer) + " removed", Cause: why})
}

// epoch is our newest WireGuard key.
func (n *Node) epoch() mesh.Epoch {
	keys := n.state.Nodes[n.cfg.Self].Keys
	if len(keys) == 0 {
		return 0
	}
	return keys[len(keys)-1].Epoch
}

// freeSlot is the next-hop slot after the last one given that no link has: the
// kernel may still forward by the slot of a link that has just gone.
func (n *Node) freeSlot() uint16 {
	taken := map[uint16]bool{}
	for _, e := range n.entries {
		taken[e.rec.Slot] = true
	}
	for {
		n.slot = n.slot%maxSlot + 1
		if !taken[n.slot] {
			return n.slot
		}
	}
}

// measured takes the tunnels' counters. A far end that roamed is remembered
// where it went.
func (n *Node) measured(tunnels map[string]Traffic) {
	for device, t := range tunnels {
		e := n.byDevice[device]
		if e == nil {
			continue
		}
		if t.Endpoint != e.traffic.Endpoint {
			e.roamed = n.now
		}
		e.traffic = t
		n.tellSight(e)
		if t.Endpoint != (netip.AddrPort{}) && t.Endpoint != e.rec.Endpoint && e.judge.State() == link.Up {
			e.rec.Endpoint = t.Endpoint
			n.ready.Save = true
		}
	}
}

// tellSight tells the far end where its packets come from: again when that changes,
// and often enough for it to be believed.
func (n *Node) tellSight(e *entry) {
	at := e.traffic.Endpoint
	if !e.judge.Usable() || e.rec.Class == discovery.ClassCarrier || discovery.Usable(at) != nil || at == e.sight && n.now.Sub(e.sighted) < sightEvery {
		return
	}
	e.sight, e.sighted = at, n.now
	n.send(e, wire.Sight{Endpoint: at})
}

// hearSight takes the far end's word on where our packets come from.
func (n *Node) hearSight(e *entry, s wire.Sight) {
	if e.rec.Class == discovery.ClassCarrier || discovery.Usable(s.Endpoint) != nil || n.now.Sub(e.heard) < sightLeast {
		return
	}
	e.heard = n.now
	n.ready.Sights = append(n.ready.Sights, Sight{Link: e.rec.Link, Port: e.rec.Port, Witness: e.rec.Endpoint, Endpoint: s.Endpoint})
}

// counted takes the devices' counters: links that are used are probed fast, and
// those that would take over from them as well.
func (n *Node) counted(devices map[string]Count) {
	for _, e := range n.sorted() {
		if c, ok := devices[e.rec.Device]; ok && e.judge != nil {
			n.judged(e, func() { e.judge.Traffic(n.now, c.Received, c.Sent) })
		}
	}
	n.setPaces()
}

// falseAlarm notes that a suspicion was taken back.
func (n *Node) falseAlarm() {
	if n.now.Sub(n.alarmed) < alarmsApart {
		return
	}
	n.alarms = n.falseAlarms() + 1
	n.alarmed = n.now
}

// falseAlarms is how many suspicions were taken back lately.
func (n *Node) falseAlarms() float64 {
	return n.alarms * math.Exp2(-n.now.Sub(n.alarmed).Seconds()/alarmHalfLife.Seconds())
}

// setPaces says what each link is used for.
func (n *Node) setPaces() {
	pace := map[*entry]link.Pace{}
	for i := range n.routes.groups {
		g := &n.routes.groups[i]
		if !slices.ContainsFunc(g.carry, func(l leg) bool { return l.e.judge.Busy(n.now) }) {
			continue
		}
		for i, l := range g.legs {
			if i < len(g.carry)+standby {
				pace[l.e] = max(pace[l.e], link.Backup)
			}
		}
	}
	quick := map[string]int{} // links of each uplink that are probed fast
	for _, e := range n.entries {
		if e.judge == nil {
			continue
		}
		if e.judge.Busy(n.now) {
			pace[e] = link.Carrying
		}
		if pace[e] != link.Idle {
			quick[e.rec.Link.Local]++
		}
	}
	// When suspicions turn out wrong again and again, machines are starved, and
	// fast probes are part of the load: all slow down until it is calm.
	floor := min(time.Duration(n.falseAlarms()*float64(alarmPace)), alarmPaceMost)
	n.countEvery = time.Second
	for _, e := range n.sorted() {
		if e.judge == nil {
			continue
		}
		id := e.rec.Link
		u, _ := n.uplink(id.Local)
		e.judge.SetPace(n.now, pace[e], n.metered(id), max(floor, link.Floor(quick[id.Local], u.ProbeBudget/8)))
		n.countEvery = min(n.countEvery, e.judge.CountEvery())
		e.due = time.Time{}
		n.due(e.judge.Deadline(n.now))
	}
}

// judged runs a change of a link's verdict and tells of what came of it.
func (n *Node) judged(e *entry, change func()) {
	before := e.judge.State()
	change()
	e.due = time.Time{}
	after := e.judge.State()
	if before == after {
		return
	}
	if before == link.Suspect && after == link.Up {
		n.falseAlarm()
	}
	if after == link.Up {
		e.seats = 0
	}
	n.due(n.now)
	n.routes.changed(before, after)
	n.ready.Dirty = true
	if before == link.Up {
		n.router.Nudge(e.rec.Link.Peer)
	}
	kind := map[link.State]FactKind{link.Up: LinkUp, link.Suspect: LinkSuspect, link.Headless: LinkHeadless, link.Down: LinkDown}[after]
	sentence := "link to " + n.linkName(e.rec.Link) + " is " + after.String()
	n.lastCause, n.causedAt = sentence+": "+e.judge.Reason(), n.now
	n.fact(Fact{Kind: kind, Node: e.rec.Link.Peer, Link: e.rec.Link, Sentence: sentence, Cause: e.judge.Reason(), From: before.String(), To: after.String()})
}

// Records are what to keep of the links over a restart, in order.
func (n *Node) Records() []Record {
	var out []Record
	for _, e := range n.sorted() {
		if e.judge != nil {
			out = append(out, e.rec)
		}
	}
	return out
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// tellSilence tells a neighbour that we hear nothing on a link: it may be dead
// in one direction only.
func (n *Node) tellSilence(deaf *entry) {
	if !deaf.judge.Deaf(n.now) {
		return
	}
	if n.only(deaf.rec.Link) == nil {
		return // the word would not say which of the two lanes
	}
	if n.now.Sub(deaf.told) >= silenceEvery {
		n.tellDeaf(deaf)
	}
	deaf.dueBy(deaf.told.Add(silenceEvery))
}

// tellDeaf says over every other link to the same neighbour that nothing can
// arrive on this one.
func (n *Node) tellDeaf(deaf *entry) {
	deaf.told = n.now
	l := deaf.rec.Link
	for _, e := range n.sorted() {
		if e != deaf && e.rec.Link.Peer == l.Peer && e.judge != nil && e.judge.State() == link.Up {
			n.send(e, wire.Silence{Links: []wire.LinkName{{Local: l.Local, Remote: l.Remote}}})
		}
	}
}

// fail takes links down on hard evidence, and tells the far ends of those that
// were in use.
func (n *Node) fail(links []*entry, reason string) {
	var used []*entry
	for _, e := range links {
		if e.judge.Usable() {
			used = append(used, e)
		}
		n.judged(e, func() { e.judge.Fail(n.now, reason) })
	}
	for _, e := range used {
		n.tellDeaf(e)
	}
}
