package topology

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/routing/topology/coordinate"
)

// mixed is a world in which some nodes are unreachable and some not transit.
func mixed(seed uint64, n int, unreachable, leaves float64) *world {
	w, rng := newWorld(seed, n), rand.New(rand.NewPCG(seed, 8))
	for i := range w.nodes {
		w.nodes[i].Reachable = rng.Float64() >= unreachable
		w.nodes[i].Transit = rng.Float64() >= leaves
	}
	return w
}

// bare is a mesh without coordinates, ids 1, 2, 3 …
func bare(n int) []Node {
	nodes := make([]Node, n)
	for i := range nodes {
		nodes[i] = Node{ID: id(i + 1), Reachable: true, Transit: true}
	}
	return nodes
}

func id(i int) mesh.NodeID { return mesh.NodeID{6: byte(i >> 8), 7: byte(i)} }

func pair(i, j int) [2]mesh.NodeID { return [2]mesh.NodeID{id(i), id(j)} }

func TestSameAnswerWhateverTheOrder(t *testing.T) {
	for _, n := range []int{1, 2, 12, 13, 40, 150} {
		w, rng := mixed(uint64(n), n, 0.4, 0.2), rand.New(rand.NewPCG(1, uint64(n)))
		for i := range w.nodes {
			w.nodes[i].RTT = map[mesh.NodeID]time.Duration{}
			for range 5 {
				j := rng.IntN(n)
				w.nodes[i].RTT[w.nodes[j].ID] = w.rtt(i, j)
			}
			if i%5 == 0 {
				w.nodes[i].Tags = []string{"dc", "core"}
			}
		}
		some := func() [2]mesh.NodeID { return [2]mesh.NodeID{w.nodes[rng.IntN(n)].ID, w.nodes[rng.IntN(n)].ID} }
		for _, p := range []Policy{{}, {Dense: true}, {Mode: Full}, {Mode: Hub, HubTag: "core"}, {Mode: Hub, HubTag: "none"}} {
			p.Pins, p.Forbids = [][2]mesh.NodeID{some(), some()}, [][2]mesh.NodeID{some(), some(), some()}
			want := Build(w.nodes, p).Edges()
			for range 3 {
				order := slices.Clone(w.nodes)
				rng.Shuffle(n, func(i, j int) { order[i], order[j] = order[j], order[i] })
				for _, pairs := range [][][2]mesh.NodeID{p.Pins, p.Forbids} {
					slices.Reverse(pairs)
					slices.Reverse(pairs[0][:])
				}
				if got := Build(order, p).Edges(); !slices.Equal(got, want) {
					t.Fatalf("n %d, %+v: another order gives other links", n, p.Mode)
				}
			}
		}
	}
}

func TestModes(t *testing.T) {
	hubs := bare(30)
	for _, i := range []int{4, 9, 20} {
		hubs[i].Tags = []string{"eu", "hub"}
	}
	for name, c := range map[string]struct {
		nodes []Node
		p     Policy
		links int // 0: partial
		why   Reason
	}{
		"nobody":                         {nil, Policy{}, 0, NotWanted},
		"one":                            {bare(1), Policy{}, 0, NotWanted},
		"small is full":                  {bare(FullMesh), Policy{}, 66, ByFull},
		"full":                           {bare(30), Policy{Mode: Full}, 435, ByFull},
		"hubs":                           {hubs, Policy{Mode: Hub, HubTag: "hub"}, 3 + 3*27, ByHub},
		"no hub in a small mesh is full": {bare(6), Policy{Mode: Hub, HubTag: "hub"}, 15, ByFull},
		"the tag matters in mode hub":    {hubs[:12], Policy{HubTag: "hub"}, 66, ByFull},
	} {
		g := Build(c.nodes, c.p)
		if got := len(g.Edges()); got != c.links {
			t.Errorf("%s: %d links, want %d", name, got, c.links)
		}
		for _, e := range g.Edges() {
			if e.Reason != c.why {
				t.Errorf("%s: %v", name, e)
			}
		}
	}
	if got, want := Build(hubs, Policy{Mode: Hub, HubTag: "hup"}).Edges(), Build(hubs, Policy{}).Edges(); !slices.Equal(got, want) {
		t.Error("a tag that nobody has is not as Auto")
	}
	if a, b := Build(bare(30), Policy{}), Build(bare(30), Policy{Salt: mesh.MeshID{1}}); slices.Equal(a.Edges(), b.Edges()) {
		t.Error("two meshes have the same ring")
	}
	leaves := bare(30)
	for i := range leaves {
		leaves[i].Transit = false
	}
	if got := len(Build(leaves, Policy{}).Edges()); got != 435 {
		t.Errorf("nobody is transit: %d links, want all 435", got)
	}
}

func TestEveryReasonHasAWord(t *testing.T) {
	words := map[string]bool{}
	for r := NotWanted; r <= ByFill; r++ {
		words[r.String()] = true
	}
	if len(words) != int(ByFill)+1 {
		t.Errorf("%d reasons, words %v", ByFill+1, words)
	}
}

func TestPinsAndForbids(t *testing.T) {
	for _, mode := range []Mode{Auto, Full, Hub} {
		nodes := bare(40)
		nodes[0].Tags = []string{"hub"}
		p := Policy{Mode: mode, HubTag: "hub", Forbids: [][2]mesh.NodeID{pair(2, 1), pair(3, 30)}}
		for j := 2; j <= 40; j++ {
			p.Pins = append(p.Pins, pair(j, 3)) // far above its cap
		}
		p.Pins = append(p.Pins, pair(5, 5), pair(5, 999))
		g := Build(nodes, p)
		if len(g.Neighbours(id(3))) < 37 {
			t.Errorf("mode %d: %d links for 37 pins", mode, len(g.Neighbours(id(3))))
		}
		for _, e := range g.Edges() {
			if e.A == id(1) && e.B == id(2) || e.A == id(3) && e.B == id(30) {
				t.Errorf("mode %d: forbidden %v", mode, e)
			}
			if (e.A == id(3) || e.B == id(3)) && e.A != id(1) && e.Reason != ByPin {
				t.Errorf("mode %d: a pin is called %v", mode, e)
			}
		}
	}
}

func TestForbiddenPairsAreWorkedAroundOrReported(t *testing.T) {
	// Two halves of which only nodes 20 and 21 may meet.
	var forbids [][2]mesh.NodeID
	for i := 1; i <= 20; i++ {
		for j := 21; j <= 40; j++ {
			if i != 20 || j != 21 {
				forbids = append(forbids, pair(i, j))
			}
		}
	}
	g := Build(bare(40), Policy{Forbids: forbids})
	if parts := g.Parts(); len(parts) != 1 || len(parts[0]) != 40 {
		t.Errorf("one permitted pair joins the halves, not %v", parts)
	}
	if !slices.Contains(g.Neighbours(id(20)), id(21)) {
		t.Error("it is not used")
	}
	for salt := range byte(10) { // of two permitted pairs the one that can surely connect
		nodes := bare(40)
		nodes[18].Reachable, nodes[21].Reachable = false, false
		p := Policy{Salt: mesh.MeshID{salt}}
		for _, f := range forbids {
			if f != pair(19, 22) {
				p.Forbids = append(p.Forbids, f)
			}
		}
		if !slices.Contains(Build(nodes, p).Neighbours(id(20)), id(21)) {
			t.Errorf("salt %d: the halves depend on a link between unreachable nodes", salt)
		}
	}
	g = Build(bare(40), Policy{Forbids: append(forbids, pair(20, 21))})
	if parts := g.Parts(); len(parts) != 2 || parts[0][0] != id(1) || parts[1][0] != id(21) || len(parts[1]) != 20 {
		t.Errorf("two halves, not %v", parts)
	}
}

func TestParts(t *testing.T) {
	leaf := bare(14)
	leaf[13].Transit = false
	var alone [][2]mesh.NodeID
	for i := 1; i < 14; i++ {
		alone = append(alone, pair(i, 14))
	}
	hub := bare(20)
	hub[7].Tags, hub[7].Transit = []string{"hub"}, false
	small := bare(4)
	for i := range small {
		small[i].Transit = false
	}
	for name, c := range map[string]struct {
		g    *Graph
		want []int // sizes
	}{
		"nobody":                    {Build(nil, Policy{}), nil},
		"full":                      {Build(bare(5), Policy{}), []int{5}},
		"full, nobody transit":      {Build(small, Policy{}), []int{4}},
		"leaf that may meet no one": {Build(leaf, Policy{Forbids: alone}), []int{13, 1}},
		"leaf that may meet one":    {Build(leaf, Policy{Forbids: alone[1:]}), []int{14}},
		"the hub is not transit":    {Build(hub, Policy{Mode: Hub, HubTag: "hub"}), []int{2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
	} {
		var got []int
		for _, part := range c.g.Parts() {
			got = append(got, len(part))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: parts of %v nodes, want %v", name, got, c.want)
		}
	}
}

// Over links with a reachable end alone, the transit nodes hang together, and
// everyone else is tied to two of them, after the loss of any one node, too.
func TestUnreachablePairsAndLeavesDoNotMatter(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 9))
		w := mixed(seed, 13+rng.IntN(70), rng.Float64(), 0.7*rng.Float64())
		core := 0
		for _, n := range w.nodes {
			if n.Transit && n.Reachable {
				core++
			}
		}
		p := Policy{Dense: seed%4 == 0}
		for range len(w.nodes) { // no pin makes it worse
			p.Pins = append(p.Pins, [2]mesh.NodeID{w.nodes[rng.IntN(len(w.nodes))].ID, w.nodes[rng.IntN(len(w.nodes))].ID})
		}
		g := Build(w.nodes, p)
		for lost := -1; lost < len(w.nodes) && core > 0; lost++ {
			if lost >= 0 && core < 3 {
				break // one or two nodes carry all: that cannot be helped
			}
			if cut := w.cut(g, lost); len(cut) > 0 {
				t.Errorf("seed %d: %d of %d nodes, %d reachable and transit, are cut off when %d is lost", seed, len(cut), len(w.nodes), core, lost)
			}
		}
		if len(g.Parts()) != 1 {
			t.Errorf("seed %d: %d parts", seed, len(g.Parts()))
		}
	}
}

// cut gives the nodes that do not reach the largest set of transit nodes over
// links with a reachable end, without the node lost.
func (w *world) cut(g *Graph, lost int) []int {
	index := w.index()
	u := newUnion(len(w.nodes))
	edges := slices.DeleteFunc(g.Edges(), func(e Edge) bool {
		i, j := index[e.A], index[e.B]
		return i == lost || j == lost || !w.nodes[i].Reachable && !w.nodes[j].Reachable
	})
	for _, e := range edges {
		if i, j := index[e.A], index[e.B]; w.nodes[i].Transit && w.nodes[j].Transit {
			u.join(i, j)
		}
	}
	size, root := make([]int, len(w.nodes)), 0
	for i := range w.nodes {
		if size[u.find(i)]++; size[u.find(i)] > size[root] {
			root = u.find(i)
		}
	}
	in := make([]bool, len(w.nodes))
	for i, n := range w.nodes {
		in[i] = i == lost || n.Transit && u.find(i) == root
	}
	for _, e := range edges {
		i, j := index[e.A], index[e.B]
		in[i] = in[i] || !w.nodes[i].Transit && w.nodes[j].Transit && u.find(j) == root
		in[j] = in[j] || !w.nodes[j].Transit && w.nodes[i].Transit && u.find(i) == root
	}
	var out []int
	for i := range in {
		if !in[i] {
			out = append(out, i)
		}
	}
	return out
}

func TestEvenlyAnchored(t *testing.T) {
	w := mixed(4, 200, 0.7, 0)
	g := Build(w.nodes, Policy{})
	core, most, anchored := 0, 0, map[mesh.NodeID]int{}
	for _, n := range w.nodes {
		if n.Reachable {
			core++
		}
	}
	for _, e := range g.Edges() {
		if e.Reason == ByAnchor {
			anchored[e.A]++
			anchored[e.B]++
		}
	}
	for _, n := range w.nodes {
		if n.Reachable {
			most = max(most, anchored[n.ID])
		} else if anchored[n.ID] != anchors {
			t.Errorf("%s has %d anchors", n.ID, anchored[n.ID])
		}
	}
	if d := w.measure(g).degree; d > 8.5 {
		t.Errorf("degree %.2f", d)
	}
	if share := float64(anchors*(200-core)) / float64(core); float64(most) > 1.25*share+3 {
		t.Errorf("one node anchors %d, the mean is %.1f", most, share)
	}
}

// The only reachable node has a link to everyone: nothing else is sure.
func TestOneReachableNode(t *testing.T) {
	nodes := bare(50)
	for i := range nodes {
		nodes[i].Reachable = i == 17
	}
	if got := len(Build(nodes, Policy{}).Neighbours(id(18))); got != 49 {
		t.Errorf("it has %d links of 49", got)
	}
}

func TestLargeCapDrawsLinks(t *testing.T) {
	w := newWorld(7, 300)
	before := w.measure(Build(w.nodes, Policy{}))
	for i := range 10 {
		w.nodes[i*30].Cap = 120
	}
	g := Build(w.nodes, Policy{})
	after, most := w.measure(g), 0
	for i := range 10 {
		most = max(most, len(g.Neighbours(w.nodes[i*30].ID)))
	}
	t.Logf("10 transit sites of cap 120, the largest with %d links: stretch %.3f for %.3f", most, after.mean, before.mean)
	if most < 36 || most > 120 || after.mean >= before.mean {
		t.Errorf("largest has %d links, stretch %.3f for %.3f", most, after.mean, before.mean)
	}
}

// Two words about one distance: the smaller counts, and both before coordinates.
func TestMeasuredDistances(t *testing.T) {
	nodes := bare(60)
	at := func(x int32) coordinate.Published {
		return coordinate.Published{Vector: [coordinate.Dimensions]int32{x}, Height: 100, Error: 10, Settled: true}
	}
	for i := range nodes {
		nodes[i].Coordinate = at(int32(i) * 10_000)
	}
	nodes[0].RTT = map[mesh.NodeID]time.Duration{id(40): time.Second, id(50): -1, id(51): time.Hour, id(1): 1}
	nodes[39].RTT = map[mesh.NodeID]time.Duration{id(1): time.Millisecond, id(2): 0}
	b := newBuilder(nodes, Policy{})
	row := make([]uint32, len(nodes))
	b.distances(0, row)
	if row[39] != 1000 || row[49] != 490_200 || row[50] != 500_200 {
		t.Errorf("distances %d, %d, %d; want 1000, 490200, 500200 µs", row[39], row[49], row[50])
	}
	if near := b.wishes()[0].near; near[0] != 39 || near[1] != 1 {
		t.Errorf("nearest are %v", near[:2])
	}
	nodes[5].Coordinate.Settled = false
	nodes[6].Coordinate.Height = -1
	b = newBuilder(nodes, Policy{})
	b.distances(0, row)
	if row[5] != unknown || row[6] != unknown {
		t.Error("a coordinate that is not settled, or invalid, is used")
	}
}

// Five nodes in a row, 10 ms apart. Node 2 links to 1 and 3, so that towards
// each side it has one next hop; 4 would be a second towards 5 and is none when
// it is not transit.
func TestCover(t *testing.T) {
	for _, transit := range []bool{true, false} {
		nodes := bare(5)
		for i := range nodes {
			nodes[i].Coordinate = coordinate.Published{Vector: [coordinate.Dimensions]int32{int32(i) * 10_000}, Height: 100, Error: 10, Settled: true}
		}
		nodes[3].Transit = transit
		b := newBuilder(nodes, Policy{})
		b.link(1, 0, ByRing)
		b.link(1, 2, ByRing)
		c := b.newCover()
		want := 2 // towards 4 and 5
		if !transit {
			want = 1
		}
		if got := c.gain(1, 3); got != want || c.gaps(1) != 4 {
			t.Errorf("transit %v: gain %d, not %d; %d gaps, not 4", transit, got, want, c.gaps(1))
		}
		c.count(1, 3)
		if got := c.gaps(1); got != 4-want {
			t.Errorf("transit %v: then %d gaps, not %d", transit, got, 4-want)
		}
	}
}

func TestSpared(t *testing.T) {
	ids := func(list ...int) (out []mesh.NodeID) {
		for _, i := range list {
			out = append(out, id(i))
		}
		return out
	}
	for _, c := range []struct{ want, present, spared []mesh.NodeID }{
		{ids(1, 2), ids(1, 2, 3, 4), nil},
		{ids(1, 2), ids(4, 2, 3), ids(3)},
		{ids(1, 2), ids(4, 3), ids(3, 4)},
		{ids(1, 2, 5), ids(4), ids(4)},
		{nil, ids(4), nil},
	} {
		if got := spared(c.want, c.present); !slices.Equal(got, c.spared) {
			t.Errorf("want %v, present %v: spared %v, not %v", c.want, c.present, got, c.spared)
		}
	}
}

func FuzzBuild(f *testing.F) {
	f.Add([]byte{40, 0, 3, 7}, uint8(0))
	f.Add([]byte("twenty nodes and a policy with pins"), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, kind uint8) {
		next := func() (b byte) {
			if len(data) > 0 {
				b, data = data[0], data[1:]
			}
			return b
		}
		nodes := make([]Node, next()%48)
		some := func() int { return int(next())%50 + 1 } // a stranger at times
		for i := range nodes {
			flags := next()
			nodes[i] = Node{ID: id(i + 1), Reachable: flags&1 != 0, Transit: flags&2 != 0, Cap: int(int8(next())) / 4}
			if flags&4 != 0 {
				nodes[i].Tags = []string{"hub"}
			}
			for k := range nodes[i].Coordinate.Vector[:2] {
				nodes[i].Coordinate.Vector[k] = int32(int8(next())) << 18 // invalid at times
			}
			nodes[i].Coordinate.Height, nodes[i].Coordinate.Error = int32(flags), 30
			nodes[i].Coordinate.Settled = flags&8 != 0
			if flags&16 != 0 {
				nodes[i].RTT = map[mesh.NodeID]time.Duration{id(some()): time.Duration(int8(next())) << 28}
			}
		}
		p := Policy{Mode: Mode(kind % 3), HubTag: "hub", Dense: kind&8 != 0}
		for range next() % 16 {
			p.Pins = append(p.Pins, pair(some(), some()))
			p.Forbids = append(p.Forbids, pair(some(), some()), pair(some(), some()))
		}
		g := Build(nodes, p)
		edges := g.Edges()

		reversed := slices.Clone(nodes)
		slices.Reverse(reversed)
		if !slices.Equal(edges, Build(reversed, p).Edges()) {
			t.Error("another order gives other links")
		}
		forbidden := func(a, b mesh.NodeID) bool {
			return slices.Contains(p.Forbids, [2]mesh.NodeID{a, b}) || slices.Contains(p.Forbids, [2]mesh.NodeID{b, a})
		}
		must := map[mesh.NodeID]int{} // links that ignore caps
		for _, e := range edges {
			if e.A.Compare(e.B) >= 0 || forbidden(e.A, e.B) {
				t.Errorf("link %v", e)
			}
			if !slices.Contains(g.Neighbours(e.A), e.B) || !slices.Contains(g.Neighbours(e.B), e.A) {
				t.Errorf("link %v has one end", e)
			}
			if e.Reason < ByNearest {
				must[e.A]++
				must[e.B]++
			}
		}
		for _, node := range nodes {
			limit := node.Cap
			if limit <= 0 {
				limit = newBuilder(nil, p).cap
			}
			if degree := len(g.Neighbours(node.ID)); degree > max(limit, must[node.ID]) {
				t.Errorf("%s has %d links, cap %d, %d for connectivity", node.ID, degree, limit, must[node.ID])
			}
		}
		for _, pin := range p.Pins {
			known := max(number(pin[0]), number(pin[1])) <= len(nodes)
			if known && pin[0] != pin[1] && !forbidden(pin[0], pin[1]) && !slices.Contains(g.Neighbours(pin[0]), pin[1]) {
				t.Errorf("pin %v is missing", pin)
			}
		}
		// No policy but Hub may cut what all permitted links together connect.
		if p.Mode != Hub {
			all := p
			all.Mode, all.Pins = Full, nil
			if got, want := g.Parts(), Build(nodes, all).Parts(); len(got) != len(want) {
				t.Errorf("%d parts, of which permitted links could make %d", len(got), len(want))
			}
		}
	})
}

func number(id mesh.NodeID) int { return int(id[6])<<8 | int(id[7]) }

func ExampleGraph_Edges() {
	nodes := []Node{
		{ID: mesh.NodeID{1}, Reachable: true, Transit: true, Tags: []string{"dc"}},
		{ID: mesh.NodeID{2}, Transit: true},
		{ID: mesh.NodeID{3}, Transit: true},
	}
	g := Build(nodes, Policy{Mode: Hub, HubTag: "dc", Pins: [][2]mesh.NodeID{{{3}, {2}}}})
	for _, e := range g.Edges() {
		fmt.Println(e.A, e.B, e.Reason)
	}
	// Output:
	// 0100000000000000 0200000000000000 hub
	// 0100000000000000 0300000000000000 hub
	// 0200000000000000 0300000000000000 pin
}
