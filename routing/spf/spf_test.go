package spf_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"guywire/mesh"
	"guywire/routing/spf"
)

func id(n int) mesh.NodeID { return mesh.NodeID{byte(n >> 16), byte(n >> 8), byte(n), 7} }

// A model is a graph that is edited beside the real one and knows nothing
// but how to ask every edge again and again.
type model struct {
	cost map[[2]int]mesh.Cost
	mode map[int]spf.Transit
}

func newModel() *model {
	return &model{cost: map[[2]int]mesh.Cost{}, mode: map[int]spf.Transit{}}
}

// distances are those from root to the nodes below n, by Bellman and Ford.
func (m *model) distances(root, n int) []mesh.Cost {
	const none = 1 << 62
	dist := make([]uint64, n)
	for i := range dist {
		dist[i] = none
	}
	dist[root] = 0
	for moved := true; moved; {
		moved = false
		for e, c := range m.cost {
			d := dist[e[0]] + uint64(c)
			if e[0] != root && m.mode[e[0]] == spf.LastResort {
				d += uint64(spf.Penalty)
			}
			if (e[0] == root || m.mode[e[0]] != spf.Stub) && d < dist[e[1]] {
				dist[e[1]], moved = d, true
			}
		}
	}
	out := make([]mesh.Cost, n)
	for i, d := range dist {
		if out[i] = mesh.Infinite; d < none {
			out[i] = mesh.Cost(min(d, uint64(mesh.Infinite-1)))
		}
	}
	return out
}

// joined says which of the nodes below n are joined to which without the node
// removed, by Warshall.
func (m *model) joined(removed, n int) [][]bool {
	reach := make([][]bool, n)
	for i := range reach {
		reach[i] = make([]bool, n)
		reach[i][i] = true
	}
	for e := range m.cost {
		if e[0] != removed && e[1] != removed {
			reach[e[0]][e[1]], reach[e[1]][e[0]] = true, true
		}
	}
	for k := range n {
		for i := range n {
			for j := range n {
				reach[i][j] = reach[i][j] || reach[i][k] && reach[k][j]
			}
		}
	}
	return reach
}

// A pair is a graph and its model; the node that is id(i) for the graph is i
// for the model, and has the number i in both.
type pair struct {
	*testing.T
	g     *spf.Graph
	m     *model
	roots []int
	trees []*spf.Tree
	last  [][]mesh.Cost // what each tree said when it was last looked at
}

func newPair(t *testing.T, n int) *pair {
	p := &pair{T: t, g: spf.NewGraph(), m: newModel()}
	for i := range n {
		p.g.Node(id(i))
	}
	return p
}

func (p *pair) set(a, b int, c mesh.Cost) {
	p.g.Set(id(a), id(b), c)
	if c >= mesh.Infinite {
		delete(p.m.cost, [2]int{a, b})
	} else if a != b {
		p.m.cost[[2]int{a, b}] = max(c, 1)
	}
}

func (p *pair) both(a, b int, c mesh.Cost) {
	p.set(a, b, c)
	p.set(b, a, c)
}

func (p *pair) remove(a, b int) {
	p.g.Remove(id(a), id(b))
	delete(p.m.cost, [2]int{a, b})
}

func (p *pair) transit(n int, mode spf.Transit) {
	p.g.SetTransit(id(n), mode)
	p.m.mode[n] = mode
}

func (p *pair) removeNode(n int) {
	p.g.RemoveNode(id(n))
	delete(p.m.mode, n)
	for e := range p.m.cost {
		if e[0] == n || e[1] == n {
			delete(p.m.cost, e)
		}
	}
}

func (p *pair) plant(root int) {
	p.roots = append(p.roots, root)
	p.trees = append(p.trees, spf.NewTree(p.g, root))
	p.last = append(p.last, p.m.distances(root, p.g.Len()))
	p.compare(len(p.trees)-1, p.last[len(p.trees)-1])
}

// compare holds the distances of tree i against those wanted.
func (p *pair) compare(i int, want []mesh.Cost) {
	p.Helper()
	for n, w := range want {
		if got := p.trees[i].Distance(n); got != w {
			p.Fatalf("tree of %d: node %d at %d, want %d", p.roots[i], n, got, w)
		}
	}
}

// update lets tree i catch up and checks all that it says.
func (p *pair) update(i int) {
	p.Helper()
	p.compare(i, p.last[i]) // edits alone move nothing
	changed := p.trees[i].Update()
	want := p.m.distances(p.roots[i], p.g.Len())
	p.compare(i, want)
	var moved []int
	for n, w := range want {
		if n < len(p.last[i]) && p.last[i][n] != w || n >= len(p.last[i]) && w != mesh.Infinite {
			moved = append(moved, n)
		}
	}
	if slices.Sort(changed); !slices.Equal(changed, moved) {
		p.Fatalf("tree of %d: changed %v, want %v", p.roots[i], changed, moved)
	}
	p.last[i] = want
}

// islands checks the graph without the node removed.
func (p *pair) islands(removed int) {
	p.Helper()
	label := p.g.Islands(removed)
	joined := p.m.joined(removed, p.g.Len())
	next := 0
	for i, l := range label {
		if i == removed {
			if l != -1 {
				p.Fatalf("the removed node %d has the label %d", i, l)
			}
			continue
		}
		if l > next || l < 0 {
			p.Fatalf("without %d: labels %v do not count from 0", removed, label)
		}
		next = max(next, l+1)
		for j, k := range label {
			if j != removed && (k == l) != joined[i][j] {
				p.Fatalf("without %d: labels %v: %d and %d joined: %v", removed, label, i, j, joined[i][j])
			}
		}
	}
}

// play reads a script of edits and checks what follows from it.
func play(t *testing.T, script []byte) {
	next := func(below int) int {
		if len(script) == 0 {
			return 0
		}
		b := script[0]
		script = script[1:]
		return int(b) % below
	}
	n := 2 + next(24)
	p := newPair(t, 1+n/2) // the others appear when they are named
	node := func() int {
		i := next(n)
		for p.g.Len() <= i {
			p.g.Node(id(p.g.Len()))
		}
		return i
	}
	cost := func() mesh.Cost {
		switch c := next(64); c {
		case 61:
			return spf.Penalty
		case 62:
			return mesh.Infinite - 1
		case 63:
			return mesh.Infinite
		default:
			return mesh.Cost(c % 6)
		}
	}
	p.plant(0)
	for len(script) > 0 {
		switch next(16) {
		case 0, 1, 2:
			p.set(node(), node(), cost())
		case 3, 4, 5, 6:
			p.both(node(), node(), cost())
		case 7:
			a, b := node(), node()
			p.remove(a, b)
			if next(2) == 0 {
				p.remove(b, a)
			}
		case 8, 9:
			p.transit(node(), spf.Transit(next(3)))
		case 10:
			p.removeNode(node())
		case 11:
			if root := node(); len(p.trees) < 4 {
				p.plant(root)
			}
		case 12:
			p.islands(node() - 1)
		default: // the others fall behind
			p.update(next(len(p.trees)))
		}
	}
	for i := range p.trees {
		p.update(i)
	}
	p.islands(-1)
}

func TestRandomEdits(t *testing.T) {
	for seed := range uint64(1000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		script := make([]byte, 20+rng.IntN(700))
		for i := range script {
			script[i] = byte(rng.Uint32())
		}
		if play(t, script); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzEdits(f *testing.F) {
	f.Add([]byte{3, 3, 0, 1, 1, 3, 1, 2, 1, 13, 0, 8, 1, 1, 13, 0, 10, 1})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) <= 4096 {
			play(t, script)
		}
	})
}

// A mesh as it is used: the tree of a node and those of its neighbours, one
// event at a time, and now and then a wave of them.
func TestNineTrees(t *testing.T) {
	const n = 150
	rng := rand.New(rand.NewPCG(3, 4))
	p := newPair(t, n)
	for i := range n {
		p.both(i, (i+1)%n, mesh.Cost(1+rng.IntN(20)))
		for range 3 {
			p.both(i, rng.IntN(n), mesh.Cost(1+rng.IntN(20)))
		}
	}
	for _, root := range append([]int{0}, rng.Perm(n)[:8]...) {
		p.plant(root)
	}
	for event := range 120 {
		wave := 1
		if event%10 == 9 {
			wave = 1 + rng.IntN(n/2)
		}
		for range wave {
			a, b := rng.IntN(n), rng.IntN(n)
			switch rng.IntN(8) {
			case 0:
				p.transit(a, spf.Transit(rng.IntN(3)))
			case 1:
				p.both(a, b, mesh.Cost(1+rng.IntN(20)))
			case 2:
				p.remove(a, (a+1)%n)
				p.remove((a+1)%n, a)
			default:
				p.both(a, (a+1)%n, mesh.Cost(1+rng.IntN(40)))
			}
		}
		for i := range p.trees {
			p.update(i)
		}
	}
}

func TestNumbers(t *testing.T) {
	g := spf.NewGraph()
	if _, ok := g.Lookup(id(5)); ok {
		t.Error("an empty graph has a node")
	}
	g.Remove(id(5), id(6))
	g.RemoveNode(id(5))
	g.Set(id(5), id(6), mesh.Infinite)
	g.Set(id(5), id(5), 1)
	if g.Len() != 0 {
		t.Errorf("%d nodes came from edits that say nothing", g.Len())
	}
	five := g.Node(id(5))
	g.Set(id(6), id(5), 1)
	g.RemoveNode(id(5))
	six, ok := g.Lookup(id(6))
	if again, kept := g.Lookup(id(5)); !ok || !kept || again != five || g.Node(id(5)) != five || six == five || g.Len() != 2 {
		t.Errorf("numbers do not stay with their ids")
	}
	if g.ID(five) != id(5) || g.ID(six) != id(6) {
		t.Error("ID is not the inverse of Node")
	}
}

// What a node does for others says nothing about its own packets.
func TestTransitAtTheEnds(t *testing.T) {
	for _, mode := range []spf.Transit{spf.Full, spf.Stub, spf.LastResort} {
		p := newPair(t, 3)
		p.both(0, 1, 10)
		p.both(1, 2, 10)
		p.transit(0, mode)
		p.transit(2, mode)
		if d := spf.NewTree(p.g, 0).Distance(2); d != 20 {
			t.Errorf("transit %d at both ends: distance %d, want 20", mode, d)
		}
	}
}

func TestLastResortLoses(t *testing.T) {
	p := newPair(t, 4)
	p.both(0, 1, 1)
	p.both(1, 3, 1)
	p.both(0, 2, 30_000_000) // thirty seconds
	p.both(2, 3, 30_000_000)
	p.transit(1, spf.LastResort)
	tree := spf.NewTree(p.g, 0)
	if d := tree.Distance(3); d != 60_000_000 {
		t.Errorf("with a choice: distance %d, want the path that avoids the drained node", d)
	}
	p.removeNode(2)
	tree.Update()
	if d := tree.Distance(3); d != spf.Penalty+2 {
		t.Errorf("without a choice: distance %d, want the path through the drained node", d)
	}
}

// However dear a path is, it is one, until the sum leaves 40 bits.
func TestSumsSaturateBelowInfinite(t *testing.T) {
	const n = 600
	for _, drained := range []bool{false, true} {
		p := newPair(t, n)
		c := mesh.Infinite - 1
		for i := range n {
			if drained {
				p.transit(i, spf.LastResort)
				c = 1
			}
			if i > 0 {
				p.both(i-1, i, c)
			}
		}
		tree := spf.NewTree(p.g, 0)
		if d := tree.Distance(400); d != mesh.Infinite-1 {
			t.Errorf("drained %v: the far node is at %d, want %d", drained, d, mesh.Infinite-1)
		}
		if reached := tree.Distance(n-1) < mesh.Infinite; reached != drained {
			t.Errorf("drained %v: the last node is reached: %v", drained, reached)
		}
		if drained {
			if a, b := tree.Distance(31), tree.Distance(32); a >= b || b >= mesh.Infinite-1 {
				t.Errorf("30 and 31 drained nodes: %d and %d cannot be told from more", a, b)
			}
		}
		// Nodes beyond the cut have only each other left.
		p.remove(200, 201)
		if changed := tree.Update(); tree.Distance(201) != mesh.Infinite || tree.Distance(200) == mesh.Infinite || slices.Contains(changed, 200) {
			t.Errorf("drained %v: after the cut at 200: %d, %d", drained, tree.Distance(200), tree.Distance(201))
		}
	}
}

// Nodes that are added are out of reach until Update says otherwise.
func TestNewNodes(t *testing.T) {
	g := spf.NewGraph()
	tree := spf.NewTree(g, g.Node(id(0)))
	n := g.Node(id(1))
	if d, changed := tree.Distance(n), tree.Update(); d != mesh.Infinite || len(changed) != 0 {
		t.Errorf("a node without edges: distance %d, changed %v", d, changed)
	}
	g.Set(id(0), id(1), 3)
	if d, changed := tree.Distance(n), tree.Update(); d != mesh.Infinite || !slices.Equal(changed, []int{n}) || tree.Distance(n) != 3 {
		t.Errorf("before Update %d, changed %v, after %d", d, changed, tree.Distance(n))
	}
	if changed := tree.Update(); len(changed) != 0 {
		t.Errorf("nothing happened and changed is %v", changed)
	}
}
