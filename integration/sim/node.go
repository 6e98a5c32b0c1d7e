package sim

import (
	"crypto/ed25519"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/core"
	"guywire/mesh/kernel"
	"guywire/routing/wire"
)

// A Node is one simulated site.
type Node struct {
	Index   int
	Core    *core.Node
	ID      mesh.NodeID
	Prefix  netip.Prefix
	Running bool // its agent does
	Dead    bool // it is switched off: its kernel is empty
	// Sent counts what its tunnels carried away, bytes on the wire.
	Sent Usage
	// Announced counts its announcements, fragment by fragment, Published
	// what it told gossip, bytes.
	Announced, Published int

	world        *World
	priv         ed25519.PrivateKey
	identity     mesh.IdentityKey
	addr4, addr6 netip.Addr
	host         core.Host
	facts        discovery.Facts
	missed       []discovery.Facts
	lives        int // of its agent

	countEvery time.Duration // between two readings of its counters
	alarm      time.Duration
	alarmed    int // its place among the alarms, from 1; 0: none

	kernel  kernel.State // what is installed; nobody changes it
	fib     *fib         // the same, to be followed fast
	writing bool         // the kernel is being written
	dirty   bool         // and has to be written again

	tunnels  []*tunnel // every one that it ever had
	byDevice map[string]*tunnel
	byLink   map[mesh.LinkID]*tunnel
	records  []core.Record

	mark   uint32 // of searches
	diedAt time.Duration
}

// Start runs a node's agent, anew after Kill: its kernel is found as it was
// left.
func (w *World) Start(i int) {
	n := w.Nodes[i]
	n.lives++
	records := slices.Clone(n.records)
	for j := range records {
		records[j].Alive = n.byDevice[records[j].Device].installed
	}
	n.Core = core.New(w.Now, core.Config{
		Self: n.ID, Mesh: w.state.Mesh.ID, Incarnation: uint64(w.Now.UnixMicro()),
		Sign: func(b []byte) []byte {
			n.Announced++
			w.announced = w.now
			return ed25519.Sign(n.priv, b)
		},
		Rand:      rand.New(rand.NewPCG(w.seed<<32|uint64(i), uint64(n.lives))),
		Records:   records,
		Distances: n.facts.Distances,
		Build:     w.graphs.build,
		Verify:    w.signatures.verify,
	})
	n.Running, n.Dead, n.writing, n.dirty, n.missed = true, false, false, false, nil
	n.step(core.StateChanged{State: w.state})
	n.step(core.HostChanged{Host: n.host})
	n.publish()
	for _, other := range w.Nodes {
		if _, member := w.state.Nodes[other.ID]; member && other != n && other.facts.Serial > 0 {
			n.hear([]discovery.Facts{other.facts})
		}
	}
	n.countSoon(n.lives)
}

// Kill ends a node's agent; its kernel goes on forwarding.
func (w *World) Kill(i int) {
	n := w.Nodes[i]
	n.Running = false
	w.alarms.clear(n)
}

// Die switches a node off.
func (w *World) Die(i int) {
	n := w.Nodes[i]
	w.Kill(i)
	n.Dead, n.diedAt = true, w.now
	n.install(kernel.State{}, &fib{})
}

// Reboot switches a node off and, after some time, on again.
func (w *World) Reboot(i int, away time.Duration) {
	w.Die(i)
	w.After(away, func() { w.Start(i) })
}

// SetUplink changes an uplink's carrier.
func (w *World) SetUplink(i int, name string, up bool) {
	n := w.Nodes[i]
	n.host.Uplinks = slices.Clone(n.host.Uplinks)
	for j := range n.host.Uplinks {
		if n.host.Uplinks[j].Name == name {
			n.host.Uplinks[j].Up = up
		}
	}
	n.step(core.HostChanged{Host: n.host})
}

// up reports whether an uplink has carrier.
func (n *Node) up(uplink string) bool {
	for i := range n.host.Uplinks {
		if n.host.Uplinks[i].Name == uplink {
			return n.host.Uplinks[i].Up
		}
	}
	return false
}

// publish tells gossip what the node is.
func (n *Node) publish() {
	f := discovery.Facts{
		Mesh: n.world.state.Mesh.ID, Node: n.ID, Distances: n.facts.Distances,
		Serial: discovery.NextSerial(n.facts.Serial, uint64(n.world.Now.UnixMicro())),
	}
	for _, u := range n.host.Uplinks {
		f.Uplinks = append(f.Uplinks, discovery.Uplink{Name: u.Name, Addrs: u.Addrs})
	}
	n.facts = f
	n.world.news = append(n.world.news, f)
	encoded, err := f.Encode()
	if err != nil {
		panic(err)
	}
	n.Published += len(encoded)
}

// step feeds the core and carries out what it wants.
func (n *Node) step(ev core.Event) {
	if !n.Running {
		return
	}
	w := n.world
	r := n.Core.Step(w.Now, ev)
	n.countEvery = r.CountEvery
	if r.Save {
		n.remember()
	}
	for _, d := range r.Send {
		n.send(d)
	}
	for _, target := range r.Echo {
		n.ask(target.Device)
	}
	for _, a := range r.Attempt {
		w.After(attemptTime, func() { n.attempt(a) })
	}
	if r.Distances != nil {
		n.facts.Distances = *r.Distances
		n.publish()
	}
	if w.Told != nil {
		for _, f := range r.Facts {
			w.Told(n, f)
		}
	}
	if r.Deadline.IsZero() {
		w.alarms.clear(n)
	} else {
		w.alarms.set(n, max(r.Deadline.Sub(Epoch), w.now))
	}
	if r.Dirty {
		n.dirty = true
		if !n.writing {
			n.write()
		}
	}
}

// write makes the kernel what the core wants now, once it is written.
func (n *Node) write() {
	w := n.world
	n.writing, n.dirty = true, false
	want := n.Core.Desired()
	revision := want.Revision
	if !want.Complete {
		// Before the first complete desired state nothing is taken away.
		model := kernel.NewModel(n.kernel)
		for _, op := range model.Plan(want) {
			model.Apply(op)
		}
		want = model.State()
	}
	next, changed := n.compile(want.Routes, want.NextHops)
	takes := kernelTime
	if w.KernelTime != nil {
		takes = w.KernelTime(n)
	}
	life := n.lives
	w.After(takes+time.Duration(changed)*routeTime, func() {
		if n.lives != life || !n.Running {
			return
		}
		n.writing = false
		n.install(want, next)
		n.step(core.KernelDone{Revision: revision})
		if n.dirty && !n.writing {
			n.write()
		}
	})
}

// attempt ends a link attempt at both ends.
func (n *Node) attempt(a core.Attempt) {
	w, link := n.world, a.Link
	p := w.byID[link.Peer]
	reply := link.Back(n.ID)
	here, there := End{n.Index, link.Local}, End{p.Index, link.Remote}
	_, forth := w.path(here, there)
	_, back := w.path(there, here)
	switch {
	case !forth || !back || !p.Running:
		n.step(core.AttemptDone{Link: link, Err: "no answer"})
		return
	case a.Below != 0 && w.Class(here, there) >= a.Below:
		n.step(core.AttemptDone{Link: link, Err: "nothing better"})
		return
	case !n.Running:
		return
	}
	// An offer and its answer bring the facts along.
	p.hear([]discovery.Facts{n.facts})
	n.hear([]discovery.Facts{p.facts})
	w.order++
	id, port := w.order, uint16(mesh.TunnelPortFirst+w.rng.IntN(1000))
	n.step(core.AttemptDone{Link: link, ID: id, Port: port, Class: w.Class(here, there), Endpoint: netip.AddrPortFrom(p.host.Uplinks[0].Addrs[0], port), Peer: w.state.Nodes[p.ID].Keys[0]})
	p.step(core.AttemptDone{Link: reply, ID: id, Port: port, Class: w.Class(here, there), First: true, Endpoint: netip.AddrPortFrom(n.host.Uplinks[0].Addrs[0], port), Peer: w.state.Nodes[n.ID].Keys[0]})
}

// Usage is bytes on the wire of an uplink, with all headers, by what they are.
type Usage struct {
	Probes  uint64 // including padded ones
	Control uint64 // sessions, announcements, distances, words about silence
	Echo    uint64
}

// kind gives the counter of a message.
func (u *Usage) kind(body wire.Body) *uint64 {
	if _, probe := body.(wire.Probe); probe {
		return &u.Probes
	}
	return &u.Control
}
