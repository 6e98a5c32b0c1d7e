package sim

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/core"
	"guywire/store"
)

// Epoch is when every simulation begins.
var Epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	// kernelTime is what a write of a kernel takes, and routeTime each route
	// in it (measured at 20 to 28 µs).
	kernelTime = 2 * time.Millisecond
	routeTime  = 25 * time.Microsecond
	// attemptTime is what a link attempt takes.
	attemptTime = 150 * time.Millisecond
	// logTime is the longest that a node takes to follow the log.
	logTime = 100 * time.Millisecond
	// gossipEvery is how often nodes hear what others have published.
	gossipEvery = time.Second
)

// A World is a set of nodes and the internet between them. Set its fields
// before the nodes start; the functions may answer differently from one moment
// to the next.
type World struct {
	Now   time.Time
	Nodes []*Node
	// Delay gives the one-way delay between two uplinks of two nodes, and
	// whether a packet gets through at all: if not in both directions, the two
	// cannot connect.
	Delay func(from, to End) (time.Duration, bool)
	// Silenced are tunnels whose packets are lost although others between the same
	// uplinks are not; nil: none.
	Silenced func(*tunnel) bool
	// Class is how good a path an attempt finds between two uplinks.
	Class func(from, to End) discovery.PathClass
	// Jitter is the standard deviation of every packet's delay, as a share of
	// it. Packets overtake each other.
	Jitter float64
	// KernelTime is how long a node's kernel takes to be written, beside the
	// time for each changed route; nil: two milliseconds.
	KernelTime func(*Node) time.Duration
	// Traffic makes all links carry some, so that all are probed fast. Flows
	// carry some along the paths that the kernels choose.
	Traffic bool
	Flows   []Flow
	// Check is called after every event that changed a kernel, Told with
	// everything that a core tells of; nil: nobody listens.
	Check func(*World)
	Told  func(*Node, core.Fact)
	// Events counts what happened. Loops are the forwarding loops that ever
	// were.
	Events uint64
	Loops  []string

	seed       uint64
	now        time.Duration // since Epoch
	announced  time.Duration // when somebody last did
	rng        *rand.Rand
	queue      queue
	alarms     alarms
	order      uint64
	changed    bool
	state      *store.State
	byID       map[mesh.NodeID]*Node
	graphs     graphs
	signatures signatures
	news       []discovery.Facts // in the order in which they were published
	faults     faults
	counts     map[string]core.Count

	columns  []column
	columnOf map[netip.Prefix]int32
	mark     uint32
}

// An End is one uplink of one node.
type End struct {
	Node   int
	Uplink string
}

// A column is one prefix of the mesh and who has it.
type column struct {
	prefix netip.Prefix
	owner  *Node
	local  bool // the node's own address: what arrives for it is no transit
}

// New makes a world of nodes, node i having the uplinks uplinks[i]. Nodes do
// not run before Start.
func New(seed uint64, uplinks [][]string) *World {
	w := &World{
		Now: Epoch, seed: seed, rng: rand.New(rand.NewPCG(seed, 86)),
		Delay: func(End, End) (time.Duration, bool) { return 5 * time.Millisecond, true },
		Class: func(End, End) discovery.PathClass { return discovery.ClassDirect },
		state: &store.State{
			Version: store.Version, Index: 1, Nodes: map[mesh.NodeID]store.Node{}, Removed: map[mesh.NodeID]store.Tombstone{},
			Mesh: store.Settings{ID: mesh.MeshID{1}, Pool4: netip.MustParsePrefix("10.86.0.0/16"), Pool6: netip.MustParsePrefix("2001:db8:86::/48")},
		},
		byID:       map[mesh.NodeID]*Node{},
		columnOf:   map[netip.Prefix]int32{},
		counts:     map[string]core.Count{},
		signatures: signatures{},
	}
	w.faults.init()
	for _, names := range uplinks {
		n := w.add(names)
		w.state.Nodes[n.ID] = n.member()
	}
	w.After(gossipEvery, w.gossip)
	w.After(flowEvery, w.flow)
	return w
}

// Uplinks gives n nodes the same uplinks.
func Uplinks(n int, names ...string) [][]string {
	out := make([][]string, n)
	for i := range out {
		out[i] = names
	}
	return out
}

// add makes a node that is no member yet.
func (w *World) add(uplinks []string) *Node {
	i := len(w.Nodes)
	var keySeed [32]byte
	binary.BigEndian.PutUint64(keySeed[:], w.seed)
	binary.BigEndian.PutUint32(keySeed[8:], uint32(i))
	priv := ed25519.NewKeyFromSeed(keySeed[:])
	identity := mesh.IdentityKey(priv.Public().(ed25519.PublicKey))
	v6 := w.state.Mesh.Pool6.Addr().As16()
	v6[14], v6[15] = byte((i+1)>>8), byte(i+1)
	n := &Node{
		Index: i, ID: identity.NodeID(), Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + i>>8), byte(i), 0}), 24),
		world: w, priv: priv, identity: identity,
		addr4: netip.AddrFrom4([4]byte{10, 86, byte((i + 1) >> 8), byte(i + 1)}), addr6: netip.AddrFrom16(v6),
		byDevice: map[string]*tunnel{}, byLink: map[mesh.LinkID]*tunnel{},
	}
	for slot, name := range uplinks {
		n.host.Uplinks = append(n.host.Uplinks, mesh.Uplink{
			Name: name, Slot: uint8(slot + 1), Interface: name, Up: true, Default4: true, MTU: 1500,
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{198, byte(18 + slot), byte(i >> 8), byte(i)})},
		})
	}
	n.fib = &fib{}
	w.Nodes = append(w.Nodes, n)
	w.byID[n.ID] = n
	for _, p := range []netip.Prefix{n.Prefix, netip.PrefixFrom(n.addr4, 32), netip.PrefixFrom(n.addr6, 128)} {
		w.columnOf[p] = int32(len(w.columns))
		w.columns = append(w.columns, column{prefix: p, owner: n, local: p != n.Prefix})
	}
	return n
}

// member is what the log says of a node.
func (n *Node) member() store.Node {
	return store.Node{
		ID: n.ID, Name: fmt.Sprintf("n%d", n.Index), Identity: n.identity,
		Keys:  []store.Key{{Epoch: 1, Public: mesh.WireGuardKey(n.identity)}},
		Addr4: n.addr4, Addr6: n.addr6, Prefixes: []netip.Prefix{n.Prefix},
		Control: []netip.AddrPort{netip.AddrPortFrom(n.host.Uplinks[0].Addrs[0], mesh.ControlPort)},
	}
}

// SetTopology sets the operator's policy, before the nodes start.
func (w *World) SetTopology(t store.Topology) { w.state.Mesh.Topology = t }

// StartAll starts every node.
func (w *World) StartAll() {
	for i := range w.Nodes {
		w.Start(i)
	}
}

// Change changes what the log says, and lets every node learn of it in its own
// time.
func (w *World) Change(change func(*store.State)) {
	s := *w.state
	s.Nodes, s.Removed = maps.Clone(s.Nodes), maps.Clone(s.Removed)
	s.Index++
	change(&s)
	w.state = &s
	for _, n := range w.Nodes {
		if n.Running {
			w.After(time.Duration(w.rng.Int64N(int64(logTime))), func() { n.step(core.StateChanged{State: &s}) })
		}
	}
}

// Join admits a new node and starts it.
func (w *World) Join(uplinks ...string) *Node {
	n := w.add(uplinks)
	w.Change(func(s *store.State) { s.Nodes[n.ID] = n.member() })
	w.Start(n.Index)
	return n
}

// Leave removes a node from the log and switches it off.
func (w *World) Leave(i int) {
	n := w.Nodes[i]
	w.Change(func(s *store.State) {
		node := s.Nodes[n.ID]
		delete(s.Nodes, n.ID)
		s.Removed[n.ID] = store.Tombstone{Name: node.Name, Identity: node.Identity, Keys: node.Keys, Addr4: node.Addr4, Addr6: node.Addr6, At: w.Now}
	})
	w.Die(i)
}

// gossip lets every node hear what was published since the last time, except
// from the far side of a partition: that it hears when it is healed.
func (w *World) gossip() {
	w.After(gossipEvery, w.gossip)
	news := w.news
	w.news = nil
	for _, n := range w.Nodes {
		if !n.Running {
			n.missed = nil // it is told everything when it starts
			continue
		}
		missed := n.missed
		n.missed = nil
		n.hear(missed)
		n.hear(news)
	}
}

// hear takes what others have published, as far as it can come here.
func (n *Node) hear(list []discovery.Facts) {
	for _, f := range list {
		switch author := n.world.byID[f.Node]; {
		case author == n:
		case n.world.faults.parted(author.Index, n.Index):
			n.missed = append(n.missed, f)
		default:
			n.step(core.FactsChanged{Facts: f})
		}
	}
}
