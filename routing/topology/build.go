package topology

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"time"

	"guywire/mesh"
)

// A density is how many links a partial mesh spends.
type density struct {
	cap     int // links of a node without a cap of its own
	nearest int // links of each node to its nearest
	strata  int // links drawn by distance, one a stratum, ...
	drawn   int // ... for nodes that have fewer links than this
	gaps    int // per cent of destinations that may lack a second next hop, ...
	fills   int // ... before a node adds at most so many links
}

var (
	usual = density{cap: 12, nearest: 1, strata: 2, drawn: 6, gaps: 7, fills: 2}
	dense = density{cap: 18, nearest: 2, strata: 4, drawn: 18, gaps: 1, fills: 4}
)

const (
	// minDegree is what every node gets, where that many others have room.
	minDegree = 5
	// anchors is how many nodes on the ring everyone else is tied to.
	anchors = 2
	// maxWeight bounds for how many usual nodes one with a large cap counts.
	maxWeight = 16
	// unknown is the distance between nodes of which nothing is known.
	unknown = math.MaxUint32
	// maxRTT is the largest round trip time believed.
	maxRTT = 10 * time.Second
)

// Build gives the links that the whole mesh wants. It is a function of the set
// of nodes and the policy: the order of the slice does not matter, and what is
// compared are integers, so every node computes the same graph. IDs are unique;
// of several nodes with one ID any may be taken.
//
// A partial mesh has a backbone that needs no measurements, and links chosen by
// distance, each to the first choice that has room:
//
//   - ring: the reachable transit nodes in the order of a hash, in a circle;
//   - anchor: every other node is tied to two of these, one drawn and one near,
//     evenly. So any one node may fail, and no two unreachable nodes need to
//     connect, before the mesh falls apart;
//   - nearest: the node at the least distance;
//   - stratum: of S strata one of the nodes at rank n^(s/S) to n^((s+1)/S) by
//     distance, drawn by rendezvous hashing (Thaler, Ravishankar 1998), so that
//     a node which joins, leaves or moves changes the draws it wins or loses
//     and no others;
//   - fill: see cover.
//
// Where a distance is unknown a draw stands in for it. The work is O(n² log n),
// the memory n²/8 bytes.
func Build(nodes []Node, p Policy) *Graph {
	b := newBuilder(nodes, p)
	for _, pair := range p.Pins {
		if i, j, ok := b.numbers(pair); ok {
			b.link(i, j, ByPin)
		}
	}
	hubs := b.hubs(p)
	switch {
	case p.Mode == Hub && len(hubs) > 0:
		for _, i := range hubs {
			b.linkAll(i, ByHub)
		}
	case p.Mode == Full || len(b.nodes) <= FullMesh || len(b.transit) == 0:
		for i := range b.nodes {
			b.linkAll(i, ByFull)
		}
	default:
		b.backbone()
		b.choose()
		b.mend()
	}
	return b.graph()
}

// builder is a graph in the making. Nodes are numbers in the order of IDs.
type builder struct {
	density
	nodes    []Node
	key      []uint64   // place on the ring
	order    []int      // transit nodes first, then by key
	transit  []int      // the transit nodes among them
	onRing   []bool     // member of the backbone
	placed   []bool     // has a coordinate worth using
	measured [][]toward // by node, sorted by to
	caps     []int
	shut     bitset // pairs to which no link can be added: linked, forbidden, or one node
	adj      [][]half
}

// toward is a measured distance.
type toward struct {
	to  int
	rtt uint32 // µs
}

func newBuilder(nodes []Node, p Policy) *builder {
	nodes = slices.SortedStableFunc(slices.Values(nodes), func(x, y Node) int { return x.ID.Compare(y.ID) })
	nodes = slices.CompactFunc(nodes, func(x, y Node) bool { return x.ID == y.ID })
	n := len(nodes)
	b := &builder{
		density: usual, nodes: nodes,
		key: make([]uint64, n), order: make([]int, n), onRing: make([]bool, n), placed: make([]bool, n),
		measured: make([][]toward, n), caps: make([]int, n), shut: newBitset(n), adj: make([][]half, n),
	}
	if p.Dense {
		b.density = dense
	}
	for i, node := range nodes {
		b.key[i], b.order[i] = position(p.Salt, node.ID), i
		b.placed[i] = node.Coordinate.Settled && node.Coordinate.Check() == nil
		b.shut.set(i, i)
		b.caps[i] = node.Cap
		if node.Cap <= 0 {
			b.caps[i] = b.cap
		}
		for id, rtt := range node.RTT {
			if j, ok := b.number(id); ok && j != i && rtt > 0 && rtt <= maxRTT {
				us := uint32((rtt + time.Microsecond - 1) / time.Microsecond)
				b.measured[i] = append(b.measured[i], toward{j, us})
				b.measured[j] = append(b.measured[j], toward{i, us})
			}
		}
	}
	for i, list := range b.measured {
		slices.SortFunc(list, func(x, y toward) int { return cmp.Or(x.to-y.to, cmp.Compare(x.rtt, y.rtt)) })
		b.measured[i] = slices.CompactFunc(list, func(x, y toward) bool { return x.to == y.to })
	}
	slices.SortFunc(b.order, func(i, j int) int { return cmp.Or(cmp.Compare(b.key[i], b.key[j]), i-j) })
	for _, i := range b.order {
		if nodes[i].Transit {
			b.transit = append(b.transit, i)
		}
	}
	slices.SortStableFunc(b.order, func(i, j int) int { return leaf(nodes[i]) - leaf(nodes[j]) })
	for _, pair := range p.Forbids {
		if i, j, ok := b.numbers(pair); ok {
			b.shut.set(i, j)
			b.shut.set(j, i)
		}
	}
	return b
}

func leaf(n Node) int {
	if n.Transit {
		return 0
	}
	return 1
}

func (b *builder) number(id mesh.NodeID) (int, bool) {
	return slices.BinarySearchFunc(b.nodes, id, func(n Node, id mesh.NodeID) int { return n.ID.Compare(id) })
}

func (b *builder) numbers(pair [2]mesh.NodeID) (i, j int, ok bool) {
	i, known := b.number(pair[0])
	j, ok = b.number(pair[1])
	return i, j, ok && known
}

func (b *builder) hubs(p Policy) []int {
	var out []int
	for i, node := range b.nodes {
		if p.HubTag != "" && slices.Contains(node.Tags, p.HubTag) {
			out = append(out, i)
		}
	}
	return out
}

// position is the place of a node on the mesh's ring.
func position(salt mesh.MeshID, id mesh.NodeID) uint64 {
	sum := sha256.Sum256(slices.Concat([]byte("guywire ring 2\x00"), salt[:], id[:]))
	return binary.BigEndian.Uint64(sum[:])
}

// What draws are for.
const (
	forAnchor uint64 = iota
	forRank
	forNearest
	forStratum // the first stratum; the others follow
)

// draw is a pseudo-random number for the ordered pair i, j and a purpose: the
// finaliser of SplitMix64 (Steele, Lea, Flood 2014) over the two positions,
// because a digest for every pair would cost more than all else.
func (b *builder) draw(i, j int, purpose uint64) uint64 {
	x := b.key[i] + bits.RotateLeft64(b.key[j], 31)*0x9e3779b97f4a7c15 + purpose*0xd1b54a32d192ed03
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// score is j's best draw. A node with a large cap has more than one.
func (b *builder) score(i, j int, purpose uint64) uint64 {
	best := b.draw(i, j, purpose)
	for ticket := 1; ticket < b.weight(j); ticket++ {
		best = max(best, b.draw(i, j, purpose+uint64(ticket)<<8))
	}
	return best
}

// weight is how many usual nodes i counts for: how often it draws, and is drawn.
func (b *builder) weight(i int) int { return min(max(b.caps[i]/b.cap, 1), maxWeight) }

// room reports whether i may have another link.
func (b *builder) room(i int) bool { return len(b.adj[i]) < b.caps[i] }

// link adds an edge, unless it exists or must not.
func (b *builder) link(i, j int, why Reason) bool {
	if b.shut.has(i, j) {
		return false
	}
	b.shut.set(i, j)
	b.shut.set(j, i)
	b.adj[i] = append(b.adj[i], half{int32(j), why})
	b.adj[j] = append(b.adj[j], half{int32(i), why})
	return true
}

func (b *builder) linkAll(i int, why Reason) {
	for j := range b.nodes {
		b.link(i, j, why)
	}
}

func (b *builder) linked(i, j int) bool {
	return slices.ContainsFunc(b.adj[i], func(h half) bool { return int(h.to) == j })
}

// backbone lays the ring and ties everyone else to it.
func (b *builder) backbone() {
	var ring []int
	for _, i := range b.transit {
		if b.nodes[i].Reachable {
			ring = append(ring, i)
		}
	}
	if len(ring) == 1 { // only over this one can all others be sure to meet
		b.linkAll(ring[0], ByAnchor)
	}
	if len(ring) < 2 {
		ring = b.transit
	}
	for at, i := range ring {
		b.onRing[i] = true
		for step := range len(ring) - 1 { // past pairs that are forbidden
			if j := ring[(at+1+step)%len(ring)]; b.link(i, j, ByRing) || b.linked(i, j) {
				break
			}
		}
	}
	b.anchor(ring)
}

// anchor ties all nodes that are not on the ring to it. No node on the ring
// gets much more than its share, but caps do not count.
func (b *builder) anchor(ring []int) {
	load, limit := make([]int, len(b.nodes)), make([]int, len(b.nodes))
	tickets := 0
	for _, j := range ring {
		tickets += b.weight(j)
	}
	for _, j := range ring {
		share := anchors * (len(b.nodes) - len(ring)) * b.weight(j) / tickets
		limit[j] = 4
		for limit[j] < share+share/4+1 {
			limit[j] += limit[j] / 2 // in large steps, so that it seldom changes when nodes come and go
		}
	}
	distance := make([]uint32, len(b.nodes))
	for _, i := range b.order {
		if b.onRing[i] {
			continue
		}
		tied := 0
		for _, h := range b.adj[i] {
			if j := int(h.to); b.nodes[j].Transit && b.sure(i, j) {
				tied++ // a pin is as good
			}
		}
		b.distances(i, distance)
		drawn := func(x, y int) int { return cmp.Compare(b.score(i, y, forAnchor), b.score(i, x, forAnchor)) }
		near := func(x, y int) int { return cmp.Or(cmp.Compare(distance[x], distance[y]), drawn(x, y)) }
		tie := func(among []int, order func(x, y int) int, limited bool) {
			best := -1
			for _, j := range among {
				if !b.shut.has(i, j) && (!limited || load[j] < limit[j]) && (best < 0 || order(j, best) < 0) {
					best = j
				}
			}
			if best >= 0 && tied < anchors && b.link(i, best, ByAnchor) {
				load[best]++
				tied++
			}
		}
		tie(ring, drawn, true)
		tie(ring, near, true)
		for range anchors { // what forbidden pairs left undone
			tie(ring, drawn, false)
			tie(b.transit, drawn, false)
		}
	}
}

// choose adds the links that depend on distance.
func (b *builder) choose() {
	wishes := b.wishes()
	for range b.nearest {
		for _, i := range b.order {
			b.grant(i, wishes[i].near, ByNearest)
		}
	}
	for s := range b.strata {
		for _, i := range b.order {
			for range b.weight(i) {
				// A drawn anchor does what the farthest stratum does.
				if len(b.adj[i]) < b.drawn*b.weight(i) && (b.onRing[i] || s < b.strata-1) {
					b.grant(i, wishes[i].strata[s], ByStratum)
				}
			}
		}
	}
	b.fill(wishes)
}

// grant links i to the first of list that has room. Nearest links may use half
// a cap only, else a node in the middle of a large city has links to that city
// and no others.
func (b *builder) grant(i int, list []int32, why Reason) {
	for _, to := range list {
		j := int(to)
		if b.room(i) && b.room(j) && (why != ByNearest || len(b.adj[j]) < b.caps[j]/2) && b.link(i, j, why) {
			return
		}
	}
}

// mend joins what forbidden pairs have cut, over links that any NAT permits
// first: a spanning forest over what there is (Kruskal 1956).
func (b *builder) mend() {
	for _, sure := range []bool{true, false} {
		u := newUnion(len(b.nodes))
		parts := len(b.transit)
		for _, i := range b.transit {
			for _, h := range b.adj[i] {
				if j := int(h.to); b.nodes[j].Transit && (!sure || b.sure(i, j)) && u.join(i, j) {
					parts--
				}
			}
		}
		for at, i := range b.transit {
			if parts == 1 {
				break
			}
			for _, j := range b.transit[at+1:] {
				if (!sure || b.sure(i, j)) && u.find(i) != u.find(j) && b.link(i, j, ByAnchor) {
					u.join(i, j)
					parts--
				}
			}
		}
	}
}

// sure reports whether i and j can connect whatever NAT one of them is behind.
func (b *builder) sure(i, j int) bool { return b.nodes[i].Reachable || b.nodes[j].Reachable }

func (b *builder) graph() *Graph {
	g := &Graph{adj: b.adj}
	for i, node := range b.nodes {
		g.ids = append(g.ids, node.ID)
		g.transit = append(g.transit, node.Transit)
		slices.SortFunc(b.adj[i], func(x, y half) int { return int(x.to - y.to) })
	}
	return g
}

// bitset is a square matrix of bits.
type bitset struct {
	n     int
	words []uint64
}

func newBitset(n int) bitset { return bitset{n, make([]uint64, (n*n+63)/64)} }

func (s bitset) has(i, j int) bool {
	at := i*s.n + j
	return s.words[at/64]>>(at%64)&1 != 0
}

func (s bitset) set(i, j int) {
	at := i*s.n + j
	s.words[at/64] |= 1 << (at % 64)
}
