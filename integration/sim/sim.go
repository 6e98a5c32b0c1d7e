// Package sim runs many cores in one goroutine on a virtual clock: a
// discrete-event simulation of tunnels, kernels and link attempts around the
// very mesh/core that the agent runs. A run is identical bit for bit from its
// seed.
package sim

import (
	"bytes"
	"container/heap"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/core"
	"guywire/mesh/kernel"
	"guywire/routing/wire"
	"guywire/store"
)

// Epoch is when every simulation begins.
var Epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	kernelTime  = 2 * time.Millisecond   // from Dirty to KernelDone
	attemptTime = 150 * time.Millisecond // of a link attempt
)

// A World is a set of nodes and the internet between them.
type World struct {
	Now   time.Time
	Nodes []*Node
	rng   *rand.Rand
	queue events
	order uint64
	state *store.State
	// Delay gives the one-way delay between two uplinks of two nodes, and
	// whether a packet gets through at all.
	Delay func(from, to End) (time.Duration, bool)
	// Traffic makes all links carry some, so that all are probed fast.
	Traffic bool
	// Check is called after every event that changed a kernel, when set.
	Check   func(*World)
	changed bool
	Facts   []string
}

// An End is one uplink of one node.
type End struct {
	Node   int
	Uplink string
}

// A Node is one simulated site.
type Node struct {
	Index   int
	Core    *core.Node
	ID      mesh.NodeID
	Prefix  netip.Prefix
	Kernel  kernel.State // what is installed
	Running bool

	world   *World
	priv    ed25519.PrivateKey
	host    core.Host
	started int
	wakeup  uint64 // order of the wake-up that counts
	pending bool   // a kernel write is on its way
	records []core.Record
	counts  map[string]core.Count
}

// New makes a world of nodes, node i having the uplinks uplinks[i]. Nodes do
// not run before Start.
func New(seed uint64, uplinks [][]string) *World {
	w := &World{Now: Epoch, rng: rand.New(rand.NewPCG(seed, 86))}
	w.Delay = func(End, End) (time.Duration, bool) { return 5 * time.Millisecond, true }
	w.state = &store.State{
		Version: store.Version, Index: 1,
		Mesh:  store.Settings{ID: mesh.MeshID{1}, Pool4: netip.MustParsePrefix("10.86.0.0/16"), Pool6: netip.MustParsePrefix("2001:db8:86::/48")},
		Nodes: map[mesh.NodeID]store.Node{},
	}
	for i, names := range uplinks {
		var keySeed [32]byte
		binary.BigEndian.PutUint64(keySeed[:], seed)
		binary.BigEndian.PutUint32(keySeed[8:], uint32(i))
		priv := ed25519.NewKeyFromSeed(keySeed[:])
		identity := mesh.IdentityKey(priv.Public().(ed25519.PublicKey))
		n := &Node{Index: i, ID: identity.NodeID(), world: w, priv: priv, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + i>>8), byte(i), 0}), 24)}
		for slot, name := range names {
			n.host.Uplinks = append(n.host.Uplinks, mesh.Uplink{
				Name: name, Slot: uint8(slot + 1), Interface: name, Up: true, Default4: true, MTU: 1500,
				Addrs: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(slot), byte(i)})},
			})
		}
		v6 := netip.MustParseAddr("2001:db8:86::").As16()
		v6[14], v6[15] = byte((i+1)>>8), byte(i+1)
		w.state.Nodes[n.ID] = store.Node{
			ID: n.ID, Name: fmt.Sprintf("n%d", i), Identity: identity,
			Keys:  []store.Key{{Epoch: 1, Public: mesh.WireGuardKey(identity)}},
			Addr4: netip.AddrFrom4([4]byte{10, 86, byte((i + 1) >> 8), byte(i + 1)}), Addr6: netip.AddrFrom16(v6),
			Prefixes: []netip.Prefix{n.Prefix},
			Control:  []netip.AddrPort{netip.AddrPortFrom(n.host.Uplinks[0].Addrs[0], mesh.ControlPort)},
		}
		w.Nodes = append(w.Nodes, n)
	}
	return w
}

// Start runs a node's agent, anew after Kill: its kernel is found as it was
// left.
func (w *World) Start(i int) {
	n := w.Nodes[i]
	n.started++
	records := n.records
	for j := range records {
		for _, t := range n.Kernel.Tunnels {
			records[j].Alive = records[j].Alive || t.Name == records[j].Device
		}
	}
	n.Core = core.New(w.Now, core.Config{
		Self: n.ID, Mesh: w.state.Mesh.ID, Incarnation: uint64(w.Now.UnixMicro()),
		Sign:    func(b []byte) []byte { return ed25519.Sign(n.priv, b) },
		Rand:    rand.New(rand.NewPCG(uint64(i), uint64(n.started))),
		Records: records,
	})
	n.Running, n.pending, n.counts = true, false, map[string]core.Count{}
	n.step(core.StateChanged{State: w.state})
	n.step(core.HostChanged{Host: n.host})
	for _, other := range w.Nodes {
		if other != n {
			n.step(core.FactsChanged{Facts: other.facts()})
		}
	}
	if w.Traffic {
		life := n.started
		w.after(countEvery, func() { n.count(life) })
	}
}

const (
	countEvery = 100 * time.Millisecond
	countBytes = 5000 // in each direction, every countEvery
)

// count lets the traffic of a moment pass and feeds the counters.
func (n *Node) count(life int) {
	if n.started != life || !n.Running {
		return
	}
	devices := map[string]core.Count{}
	for _, r := range n.records {
		c := n.counts[r.Device]
		c.Sent += countBytes
		if peer, here, there, ok := n.ends(r.Device); ok && peer.up(there.Uplink) && n.up(here.Uplink) {
			if _, passes := n.world.Delay(there, here); passes {
				c.Received += countBytes
			}
		}
		devices[r.Device] = c
	}
	n.counts = devices
	n.step(core.Counted{Devices: devices})
	n.world.after(countEvery, func() { n.count(life) })
}

// StartAll starts every node.
func (w *World) StartAll() {
	for i := range w.Nodes {
		w.Start(i)
	}
}

// Kill ends a node's agent; its kernel goes on forwarding.
func (w *World) Kill(i int) { w.Nodes[i].Running = false }

// SetUplink changes an uplink's carrier.
func (w *World) SetUplink(i int, name string, up bool) {
	n := w.Nodes[i]
	uplinks := append([]mesh.Uplink(nil), n.host.Uplinks...)
	for j := range uplinks {
		if uplinks[j].Name == name {
			uplinks[j].Up = up
		}
	}
	n.host.Uplinks = uplinks
	if n.Running {
		n.step(core.HostChanged{Host: n.host})
	}
}

func (n *Node) facts() discovery.Facts {
	f := discovery.Facts{Mesh: n.world.state.Mesh.ID, Node: n.ID, Serial: 1}
	for _, u := range n.host.Uplinks {
		f.Uplinks = append(f.Uplinks, discovery.Uplink{Name: u.Name, Addrs: u.Addrs})
	}
	return f
}

// Run lets virtual time pass.
func (w *World) Run(d time.Duration) {
	end := w.Now.Add(d)
	for len(w.queue) > 0 && !w.queue[0].at.After(end) {
		e := heap.Pop(&w.queue).(event)
		w.Now = e.at
		e.do()
		if w.Check != nil && w.changed {
			w.Check(w)
		}
		w.changed = false
	}
	w.Now = end
}

func (w *World) after(d time.Duration, do func()) uint64 {
	w.order++
	heap.Push(&w.queue, event{w.Now.Add(d), w.order, do})
	return w.order
}

// step feeds the core and carries out what it wants.
func (n *Node) step(ev core.Event) {
	if !n.Running {
		return
	}
	w := n.world
	r := n.Core.Step(w.Now, ev)
	life := n.started
	for _, d := range r.Send {
		n.transmit(d.Device, func(peer *Node, device string) {
			if peer.Running {
				m, err := wire.Decode(bytes.Clone(d.Payload))
				if err != nil {
					panic(err)
				}
				peer.step(core.Received{Device: device, Message: m, At: w.Now})
			}
		})
	}
	for _, target := range r.Echo {
		n.transmit(target.Device, func(peer *Node, device string) {
			peer.transmit(device, func(back *Node, own string) { back.step(core.Echoed{Device: own, At: w.Now}) })
		})
	}
	for _, a := range r.Attempt {
		w.after(attemptTime, func() { n.attempt(a.Link) })
	}
	if r.Save {
		n.records = n.Core.Records()
	}
	if r.Dirty && !n.pending {
		n.pending = true
		w.after(kernelTime, func() {
			if n.started != life || !n.Running {
				return
			}
			n.pending = false
			want := n.Core.Desired()
			n.install(want, want.Complete)
			n.step(core.KernelDone{Revision: want.Revision})
		})
	}
	for _, f := range r.Facts {
		w.Facts = append(w.Facts, fmt.Sprintf("%8.3f n%d %s (%s)", f.At.Sub(Epoch).Seconds(), n.Index, f.Sentence, f.Cause))
	}
	if !r.Deadline.IsZero() {
		var id uint64
		id = w.after(max(r.Deadline.Sub(w.Now), 0), func() {
			if n.wakeup == id && n.started == life {
				n.step(core.Tick{})
			}
		})
		n.wakeup = id
	}
}

// install makes the kernel what it should be; before the first complete
// desired state nothing is taken away.
func (n *Node) install(want kernel.State, complete bool) {
	n.world.changed = true
	if complete {
		n.Kernel = want
		return
	}
	merged := want
	for _, t := range n.Kernel.Tunnels {
		found := false
		for _, w := range want.Tunnels {
			found = found || w.Name == t.Name
		}
		if !found {
			merged.Tunnels = append(merged.Tunnels, t)
		}
	}
	for _, h := range n.Kernel.NextHops {
		found := false
		for _, w := range want.NextHops {
			found = found || w.ID == h.ID
		}
		if !found {
			merged.NextHops = append(merged.NextHops, h)
		}
	}
	merged.Routes = append(merged.Routes, n.Kernel.Routes...)
	if !want.FilterComplete {
		merged.Filter = n.Kernel.Filter
	}
	n.Kernel = merged
}

// ends says where the far end of a device is: the peer, and both uplinks.
func (n *Node) ends(device string) (peer *Node, here, there End, ok bool) {
	for _, r := range n.records {
		if r.Device != device {
			continue
		}
		for _, p := range n.world.Nodes {
			if p.ID == r.Link.Peer {
				return p, End{n.Index, r.Link.Local}, End{p.Index, r.Link.Remote}, true
			}
		}
	}
	return nil, End{}, End{}, false
}

// transmit carries something over a tunnel to the device at the other end.
func (n *Node) transmit(device string, arrive func(peer *Node, device string)) {
	peer, here, there, ok := n.ends(device)
	if !ok {
		return
	}
	for _, u := range n.host.Uplinks {
		if u.Name == here.Uplink && !u.Up {
			return
		}
	}
	d, passes := n.world.Delay(here, there)
	if !passes {
		return
	}
	n.world.after(d, func() {
		for _, r := range peer.records {
			if r.Link == (mesh.LinkID{Peer: n.ID, Local: there.Uplink, Remote: here.Uplink}) {
				arrive(peer, r.Device)
			}
		}
	})
}

// attempt ends a link attempt at both ends.
func (n *Node) attempt(link mesh.LinkID) {
	w := n.world
	for _, p := range w.Nodes {
		if p.ID != link.Peer {
			continue
		}
		_, there := w.Delay(End{n.Index, link.Local}, End{p.Index, link.Remote})
		_, back := w.Delay(End{p.Index, link.Remote}, End{n.Index, link.Local})
		if !there || !back || !p.Running {
			n.step(core.AttemptDone{Link: link, Err: "no answer"})
			return
		}
		w.order++
		id, port := w.order, uint16(mesh.TunnelPortFirst+w.rng.IntN(1000))
		reply := mesh.LinkID{Peer: n.ID, Local: link.Remote, Remote: link.Local}
		n.step(core.AttemptDone{Link: link, ID: id, Port: port, Endpoint: netip.AddrPortFrom(p.host.Uplinks[0].Addrs[0], port), Peer: w.state.Nodes[p.ID].Keys[0]})
		p.step(core.AttemptDone{Link: reply, ID: id, Port: port, Endpoint: netip.AddrPortFrom(n.host.Uplinks[0].Addrs[0], port), Peer: w.state.Nodes[n.ID].Keys[0]})
	}
}

type event struct {
	at    time.Time
	order uint64
	do    func()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].order < q[j].order
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}
