package sim

import (
	"net/netip"
	"strings"
	"time"

	"guywire/mesh"
	"guywire/mesh/core"
	"guywire/mesh/kernel"
	"guywire/routing/wire"
)

// A tunnel is one end of a link.
type tunnel struct {
	node, peer *Node
	link       mesh.LinkID
	device     string
	here       End
	there      End
	far        *tunnel // the other end; nil: it never was

	wanted     bool   // the agent keeps a record of it
	installed  bool   // it is in the kernel
	alias      string // and this is its alias
	generation string // which both ends must agree on, for one knows the other's port by it

	listed  bool // the filter knows it
	held    bool // and lets no transit in
	sources []netip.Prefix
	covers  []uint64 // the nodes all of whose prefixes are among sources; nil: to be found

	sent, received uint64 // as WireGuard counts, bytes
	Sent           Usage
	good           time.Duration // since when it could work, see Oracle
	isGood         bool
}

// outer is what UDP and IPv4 add to a packet of the tunnel.
const outer = 28

// tunnelSize is what WireGuard counts for a datagram: inner IPv6 and UDP,
// padding, its own header and tag.
func tunnelSize(payload int) uint64 { return uint64((48+payload+15)/16*16 + 32) }

// remember takes the core's records: its tunnels' names.
func (n *Node) remember() {
	n.records = n.Core.Records()
	for _, t := range n.tunnels {
		t.wanted = false
	}
	for _, r := range n.records {
		t := n.byLink[r.Link]
		if t == nil {
			peer := n.world.byID[r.Link.Peer]
			t = &tunnel{node: n, peer: peer, link: r.Link, here: End{n.Index, r.Link.Local}, there: End{peer.Index, r.Link.Remote}}
			n.tunnels = append(n.tunnels, t)
			n.byLink[r.Link] = t
			if far := peer.byLink[r.Link.Back(n.ID)]; far != nil {
				t.far, far.far = far, t
			}
		}
		t.wanted, t.device = true, r.Device
		n.byDevice[r.Device] = t
	}
}

// path gives the delay from one uplink to another now, and whether anything
// gets through.
func (w *World) path(from, to End) (time.Duration, bool) {
	a, b := w.Nodes[from.Node], w.Nodes[to.Node]
	if a.Dead || b.Dead || !a.up(from.Uplink) || !b.up(to.Uplink) {
		return 0, false
	}
	d, ok := w.Delay(from, to)
	if !ok {
		return 0, false
	}
	extra, ok := w.faults.pass(from.Node, to.Node)
	return d + extra, ok
}

// works reports whether both kernels have the tunnel, and a packet gets
// through to the far end.
func (t *tunnel) works() bool {
	_, ok := t.reaches()
	return ok
}

func (t *tunnel) reaches() (time.Duration, bool) {
	if w := t.node.world; !t.joined() || w.Silenced != nil && w.Silenced(t) {
		return 0, false
	}
	return t.node.world.path(t.here, t.there)
}

// joined reports whether both kernels have the tunnel.
func (t *tunnel) joined() bool {
	return t.installed && t.far != nil && t.far.installed && t.generation == t.far.generation
}

// carry lets a packet arrive at the far end after a while, or not at all.
func (t *tunnel) carry(e event) {
	if !t.installed {
		return
	}
	w := t.node.world
	t.sent += e.size
	d, ok := t.reaches()
	if !ok {
		return
	}
	if loss := w.faults.loss(t.here.Node, t.there.Node); loss > 0 && w.rng.Float64() < loss {
		return
	}
	if w.Jitter > 0 {
		d = max(time.Duration(float64(d)*(1+w.Jitter*w.rng.NormFloat64())), d/2)
	}
	e.to = t.far
	w.push(d, e)
}

// send gives a datagram to a tunnel. It is decoded once, as it will arrive.
func (n *Node) send(d core.Datagram) {
	t := n.byDevice[d.Device]
	if t == nil {
		return
	}
	message, err := wire.Decode(d.Payload)
	if err != nil {
		panic(err)
	}
	size := tunnelSize(len(d.Payload))
	if t.installed {
		*n.Sent.kind(message.Body) += size + outer
		*t.Sent.kind(message.Body) += size + outer
	}
	t.carry(event{message: message, size: size})
}

// arrive takes a datagram off the tunnel.
func (t *tunnel) arrive(m wire.Message, size uint64) {
	if !t.installed {
		return
	}
	t.received += size
	t.node.step(core.Received{Device: t.device, Message: m, At: t.node.world.Now})
}

// ask sends an echo request to the far end's kernel.
func (n *Node) ask(device string) {
	if t := n.byDevice[device]; t != nil {
		t.sendEcho(echoRequest)
	}
}

func (t *tunnel) sendEcho(kind echo) {
	size := tunnelSize(0)
	if t.installed {
		t.node.Sent.Echo += size + outer
		t.Sent.Echo += size + outer
	}
	t.carry(event{echo: kind, size: size})
}

// echoed takes an echo request or answer off the tunnel. The kernel answers,
// whether there is an agent or not.
func (t *tunnel) echoed(kind echo) {
	if !t.installed {
		return
	}
	t.received += tunnelSize(0)
	if kind == echoRequest {
		t.sendEcho(echoReply)
		return
	}
	t.node.step(core.Echoed{Device: t.device, At: t.node.world.Now})
}

// installTunnels brings the tunnels up to a kernel's state, and gives those
// that are new and those that let transit in now and did not before.
func (n *Node) installTunnels(s kernel.State) (made, admitted []*tunnel) {
	there := make(map[*tunnel]*kernel.Tunnel, len(s.Tunnels))
	for i := range s.Tunnels {
		there[n.byDevice[s.Tunnels[i].Name]] = &s.Tunnels[i]
	}
	for _, t := range n.tunnels {
		k := there[t]
		switch {
		case k == nil:
			t.installed, t.alias, t.sent, t.received = false, "", 0, 0
		case !t.installed || t.alias != k.Alias:
			if !t.installed {
				made = append(made, t)
			}
			t.installed, t.alias = true, k.Alias
			t.generation = k.Alias[strings.LastIndexByte(k.Alias, ' ')+1:]
		}
	}
	type verdict struct{ listed, held bool }
	before := make([]verdict, len(n.tunnels))
	for i, t := range n.tunnels {
		before[i] = verdict{t.listed, t.held}
		t.listed, t.held = s.Filter.IsZero(), false
	}
	for _, l := range s.Filter.Links {
		t := n.byDevice[l.Device]
		if t == nil {
			continue
		}
		t.listed, t.held = true, l.Held
		if !identical(t.sources, l.Sources) {
			t.sources, t.covers = l.Sources, nil
		}
	}
	for i, t := range n.tunnels {
		if t.listed && !t.held && (!before[i].listed || before[i].held) {
			admitted = append(admitted, t)
		}
	}
	return made, admitted
}

// identical reports whether two slices are one and the same.
func identical[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// trafficRate is what Traffic is in each direction, bytes/s.
const trafficRate = 50_000

// count lets the traffic of the time since the last reading pass and feeds the
// counters.
func (n *Node) count(life int, since time.Duration) {
	if n.lives != life || !n.Running {
		return
	}
	w := n.world
	bytes := uint64((w.now - since).Seconds() * trafficRate)
	clear(w.counts)
	for _, t := range n.tunnels {
		if !t.installed {
			continue
		}
		if w.Traffic {
			t.sent += bytes
			if t.far != nil && t.far.works() {
				t.received += bytes
			}
		}
		w.counts[t.device] = core.Count{Received: t.received, Sent: t.sent}
	}
	n.step(core.Counted{Devices: w.counts})
	n.countSoon(life)
}

// countSoon reads the counters again when the core wants it.
func (n *Node) countSoon(life int) {
	since := n.world.now
	n.world.After(max(n.countEvery, leastCount), func() { n.count(life, since) })
}

// leastCount is the least time between two readings of the counters, flowEvery
// how often flows pass.
const (
	leastCount = 10 * time.Millisecond
	flowEvery  = 25 * time.Millisecond
)

// A Flow is traffic from one node to another and back.
type Flow struct {
	From, To int
	Rate     uint64 // in each direction, bytes/s
}

// flow lets all flows pass for a moment.
func (w *World) flow() {
	w.After(flowEvery, w.flow)
	for i, f := range w.Flows {
		for _, way := range [][2]int{{f.From, f.To}, {f.To, f.From}} {
			w.follow(uint32(i), w.Nodes[way[0]], w.Nodes[way[1]], uint64(float64(f.Rate)*flowEvery.Seconds()))
		}
	}
}

// follow lets a packet's bytes go where the kernels send them: at each node
// one leg is chosen by the flow.
func (w *World) follow(flow uint32, from, to *Node, bytes uint64) (arrived bool) {
	const hops = 64
	column := w.columnOf[to.Prefix]
	at := from
	for range hops {
		if at == to {
			return true
		}
		legs := at.fib.legs(column)
		if len(legs) == 0 {
			return false
		}
		t := legs[choose(legs, flow, uint32(at.Index))].tunnel
		t.sent += bytes
		if !t.works() {
			return false
		}
		t.far.received += bytes
		if !t.far.admits(from, true) {
			return false
		}
		at = t.peer
	}
	return false
}

// choose gives the leg that a flow takes at a node, by weight.
func choose(legs []leg, flow, node uint32) int {
	sum := uint32(0)
	for _, l := range legs {
		sum += l.weight
	}
	x := (flow*0x9e3779b9 ^ node*0x85ebca6b) * 0xc2b2ae35
	x = (x ^ x>>15) % max(sum, 1)
	for i, l := range legs {
		if x < l.weight {
			return i
		}
		x -= l.weight
	}
	return 0
}
