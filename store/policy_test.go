package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"guywire/mesh"
)

// policyCommands uses every part of the policy, with two members.
func policyCommands(a, b mesh.NodeID) []Command {
	return []Command{
		{SetNode: &SetNode{Node: a, MaxDegree: new(4), Tags: &[]string{"site", "hub"}}},
		{SetNode: &SetNode{Node: b, Transit: new(false)}},
		{SetTopology: &SetTopology{Dense: true}},
		{SetTopology: &SetTopology{Mode: TopologyHub, Hub: "hub"}},
		{SetPairs: &SetPairs{Pin: []Pair{{a, b}}}},
		{SetDrain: &SetDrain{Node: a, Drain: true}},
		{SetDrain: &SetDrain{Node: b, Uplink: "lte", Drain: true}},
		{SetDrain: &SetDrain{Node: b, Uplink: "wan", Peer: a, Remote: "isp1", Drain: true}},
	}
}

// sites is a world with the hub and n more nodes, and the ids of all.
func sites(t *testing.T, n int) (*world, []mesh.NodeID) {
	t.Helper()
	w := newWorld(t)
	inv := w.addToken(1, func(t *Token) { t.Uses = n })
	ids := []mesh.NodeID{w.root.id()}
	for i := range n {
		j := newJoiner(fmt.Sprintf("site-%d", i+1), fmt.Sprint("site", i+1))
		w.must(j.join(inv))
		ids = append(ids, j.id())
	}
	return w, ids
}

func TestPolicyRefusals(t *testing.T) {
	stranger := newJoiner("x", "x").id()
	many := make([]Pair, MaxPairs+1)
	for i := range many {
		many[i] = Pair{mesh.NodeID{byte(i), byte(i >> 8)}, mesh.NodeID{byte(i), byte(i >> 8), 1}}
	}
	for name, c := range map[string]struct {
		code string
		make func(hub, a, b mesh.NodeID) Command
	}{
		"unknown mode":    {CodeInvalid, func(_, _, _ mesh.NodeID) Command { return Command{SetTopology: &SetTopology{Mode: "star"}} }},
		"hub without tag": {CodeInvalid, func(_, _, _ mesh.NodeID) Command { return Command{SetTopology: &SetTopology{Mode: TopologyHub}} }},
		"full with tag": {CodeInvalid, func(_, _, _ mesh.NodeID) Command {
			return Command{SetTopology: &SetTopology{Mode: TopologyFull, Hub: "core"}}
		}},
		"auto with tag": {CodeInvalid, func(_, _, _ mesh.NodeID) Command { return Command{SetTopology: &SetTopology{Hub: "core"}} }},
		"dense full": {CodeInvalid, func(_, _, _ mesh.NodeID) Command {
			return Command{SetTopology: &SetTopology{Mode: TopologyFull, Dense: true}}
		}},
		"malformed tag": {CodeInvalid, func(_, _, _ mesh.NodeID) Command {
			return Command{SetTopology: &SetTopology{Mode: TopologyHub, Hub: "a b"}}
		}},
		"no hub": {CodeTopologyRefused, func(_, _, _ mesh.NodeID) Command {
			return Command{SetTopology: &SetTopology{Mode: TopologyHub, Hub: "nobody"}}
		}},
		"pair with itself":      {CodeInvalid, func(_, a, _ mesh.NodeID) Command { return Command{SetPairs: &SetPairs{Pin: []Pair{{a, a}}}} }},
		"pin a stranger":        {CodeNotFound, func(_, a, _ mesh.NodeID) Command { return Command{SetPairs: &SetPairs{Pin: []Pair{{a, stranger}}}} }},
		"forbid a stranger":     {CodeNotFound, func(_, a, _ mesh.NodeID) Command { return Command{SetPairs: &SetPairs{Forbid: []Pair{{stranger, a}}}} }},
		"unpin a stranger":      {CodeNotFound, func(_, a, _ mesh.NodeID) Command { return Command{SetPairs: &SetPairs{Unpin: []Pair{{stranger, a}}}} }},
		"allow a stranger":      {CodeNotFound, func(_, a, _ mesh.NodeID) Command { return Command{SetPairs: &SetPairs{Allow: []Pair{{stranger, a}}}} }},
		"pin what is forbidden": {CodeTopologyRefused, func(hub, a, _ mesh.NodeID) Command { return Command{SetPairs: &SetPairs{Pin: []Pair{{hub, a}}}} }},
		"forbid what is pinned": {CodeTopologyRefused, func(hub, _, b mesh.NodeID) Command { return Command{SetPairs: &SetPairs{Forbid: []Pair{{hub, b}}}} }},
		"pin and forbid": {CodeTopologyRefused, func(_, a, b mesh.NodeID) Command {
			return Command{SetPairs: &SetPairs{Pin: []Pair{{a, b}}, Forbid: []Pair{{b, a}}}}
		}},
		"forbid the last way": {CodeTopologyRefused, func(_, a, b mesh.NodeID) Command { return Command{SetPairs: &SetPairs{Forbid: []Pair{{a, b}}}} }},
		"no transit between":  {CodeTopologyRefused, func(_, _, b mesh.NodeID) Command { return Command{SetNode: &SetNode{Node: b, Transit: new(false)}} }},
		"nothing to set":      {CodeInvalid, func(_, a, _ mesh.NodeID) Command { return Command{SetNode: &SetNode{Node: a}} }},
		"set a stranger": {CodeNotFound, func(_, _, _ mesh.NodeID) Command {
			return Command{SetNode: &SetNode{Node: stranger, Transit: new(true)}}
		}},
		"cap 1":        {CodeInvalid, func(_, a, _ mesh.NodeID) Command { return Command{SetNode: &SetNode{Node: a, MaxDegree: new(1)}} }},
		"negative cap": {CodeInvalid, func(_, a, _ mesh.NodeID) Command { return Command{SetNode: &SetNode{Node: a, MaxDegree: new(-1)}} }},
		"cap of no bounds": {CodeInvalid, func(_, a, _ mesh.NodeID) Command {
			return Command{SetNode: &SetNode{Node: a, MaxDegree: new(MaxDegreeCap + 1)}}
		}},
		"malformed node tag": {CodeInvalid, func(_, a, _ mesh.NodeID) Command { return Command{SetNode: &SetNode{Node: a, Tags: &[]string{""}}} }},
		"many tags": {CodeInvalid, func(_, a, _ mesh.NodeID) Command {
			return Command{SetNode: &SetNode{Node: a, Tags: new(make([]string, MaxTags+1))}}
		}},
		"drain a stranger": {CodeNotFound, func(_, _, _ mesh.NodeID) Command { return Command{SetDrain: &SetDrain{Node: stranger, Drain: true}} }},
		"drain no uplink": {CodeInvalid, func(_, a, _ mesh.NodeID) Command {
			return Command{SetDrain: &SetDrain{Node: a, Uplink: "a b", Drain: true}}
		}},
		"drain half a link": {CodeInvalid, func(_, a, b mesh.NodeID) Command {
			return Command{SetDrain: &SetDrain{Node: a, Uplink: "wan", Peer: b, Drain: true}}
		}},
		"drain a link of none": {CodeInvalid, func(_, a, _ mesh.NodeID) Command {
			return Command{SetDrain: &SetDrain{Node: a, Uplink: "wan", Remote: "wan", Drain: true}}
		}},
		"drain an adjacency": {CodeInvalid, func(_, a, b mesh.NodeID) Command {
			return Command{SetDrain: &SetDrain{Node: a, Peer: b, Remote: "wan", Drain: true}}
		}},
		"drain a link to itself": {CodeInvalid, func(_, a, _ mesh.NodeID) Command {
			return Command{SetDrain: &SetDrain{Node: a, Uplink: "wan", Peer: a, Remote: "lte", Drain: true}}
		}},
		"drain a link to a stranger": {CodeNotFound, func(_, a, _ mesh.NodeID) Command {
			return Command{SetDrain: &SetDrain{Node: a, Uplink: "wan", Peer: stranger, Remote: "lte", Drain: true}}
		}},
		"drain a stranger's link": {CodeNotFound, func(_, a, _ mesh.NodeID) Command {
			return Command{SetDrain: &SetDrain{Node: stranger, Uplink: "wan", Peer: a, Remote: "lte", Drain: true}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w, ids := sites(t, 2)
			hub, a, b := ids[0], ids[1], ids[2]
			w.must(w.by(Command{SetPairs: &SetPairs{Pin: []Pair{{b, hub}}, Forbid: []Pair{{hub, a}}}}))
			w.refused(c.code, w.by(c.make(hub, a, b)))
		})
	}
	t.Run("many pairs", func(t *testing.T) {
		w, _ := sites(t, 1)
		w.refused(CodeNotFound, w.by(Command{SetPairs: &SetPairs{Pin: many}}))
		var all []Pair
		s := *w.s
		fresh := *New()
		for _, p := range many { // as if they were members
			for _, id := range []mesh.NodeID{p.A, p.B} {
				fresh.Nodes[id] = Node{ID: id, Name: id.String()}
			}
			all = append(all, MakePair(p.A, p.B))
		}
		s.Nodes = fresh.Nodes
		if r := s.setPairs(SetPairs{Pin: all}); r == nil || r.Code != CodeTopologyRefused {
			t.Error(r)
		}
		if r := s.setPairs(SetPairs{Pin: all[1:]}); r != nil {
			t.Error(r)
		}
	})
	t.Run("many drains", func(t *testing.T) {
		w, ids := sites(t, 1)
		for i := range MaxDrains {
			w.must(w.by(Command{SetDrain: &SetDrain{Node: ids[1], Uplink: fmt.Sprint("u", i), Drain: true}}))
		}
		w.refused(CodeInvalid, w.by(Command{SetDrain: &SetDrain{Node: ids[1], Uplink: "more", Drain: true}}))
		w.must(w.by(Command{SetDrain: &SetDrain{Node: ids[1], Uplink: "u7", Drain: true}}))
		// Maintenance of the whole node must always be possible.
		w.must(w.by(Command{SetDrain: &SetDrain{Node: ids[1], Drain: true}}))
		w.refused(CodeInvalid, w.by(Command{SetDrain: &SetDrain{Node: ids[1], Uplink: "more", Drain: true}}))
	})
	t.Run("drains in the record of another", func(t *testing.T) {
		w, ids := sites(t, 1)
		peer := ids[1]
		bad := newJoiner("bad", "bad")
		for i := 0; bad.id().Compare(peer) < 0; i++ { // the drain of a link is with the lower id
			bad = newJoiner("bad", fmt.Sprint("bad", i))
		}
		w.join(bad)
		drain := func(i int) Command {
			return Command{SetDrain: &SetDrain{Node: bad.id(), Uplink: fmt.Sprint("u", i), Peer: peer, Remote: "wan", Drain: true}}
		}
		for i := range maxPairDrains {
			w.must(w.as(bad, drain(i)))
		}
		w.refused(CodeForbidden, w.as(bad, drain(maxPairDrains)))
		if n := len(w.s.Nodes[peer].Drains); n != maxPairDrains {
			t.Errorf("it has %d drains", n)
		}
		w.must(w.as(bad, drain(0))) // it is drained
		w.must(w.as(bad, Command{SetDrain: &SetDrain{Node: bad.id(), Uplink: "u0", Drain: true}}))
		w.must(w.as(bad, Command{SetDrain: &SetDrain{Node: bad.id(), Drain: true}}))
		w.must(w.by(drain(maxPairDrains)))
	})
	t.Run("drains in version 2", func(t *testing.T) {
		w := oldWorld(t)
		for i := range MaxDrains {
			w.must(w.by(Command{SetDrain: &SetDrain{Node: w.root.id(), Uplink: fmt.Sprint("u", i), Drain: true}}))
		}
		// As a node of that version judges it: all must.
		w.refused(CodeInvalid, w.by(Command{SetDrain: &SetDrain{Node: w.root.id(), Drain: true}}))
	})
	t.Run("at init", func(t *testing.T) {
		w := &world{TB: t, s: New()}
		c := initCommand(newJoiner("hub", "hub"))
		c.Init.Settings.Topology.Mode = TopologyFull
		w.refused(CodeInvalid, c)
	})
}

// Hub and spoke keeps a hub for as long as operators can; when the last one
// is removed the mesh goes on, and may be changed.
func TestLastHub(t *testing.T) {
	w, ids := sites(t, 2)
	tag := func(id mesh.NodeID, tags ...string) Command {
		return w.by(Command{SetNode: &SetNode{Node: id, Tags: new(append([]string{}, tags...))}})
	}
	w.must(tag(ids[1], "core", "core", "a"))
	if got := w.s.Nodes[ids[1]].Tags; !slices.Equal(got, []string{"a", "core"}) {
		t.Errorf("tags %v", got)
	}
	w.must(w.by(Command{SetTopology: &SetTopology{Mode: TopologyHub, Hub: "core"}}))
	w.refused(CodeTopologyRefused, tag(ids[1], "a"))
	w.must(tag(ids[2], "core"))
	w.must(tag(ids[1]))
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: ids[2]}}))
	w.must(tag(ids[1], "b"))
	w.must(w.by(Command{SetPairs: &SetPairs{Pin: []Pair{{ids[0], ids[1]}}}}))
	w.must(w.by(Command{SetTopology: &SetTopology{}}))
	if w.s.Mesh.Topology.Mode != TopologyAuto || len(w.s.Mesh.Topology.Pinned) != 1 {
		t.Errorf("%+v", w.s.Mesh.Topology)
	}
}

// Who drained, and when, is said by the first of two who ask for the same.
func TestDrainIsIdempotent(t *testing.T) {
	w, ids := sites(t, 1)
	c := w.by(Command{SetDrain: &SetDrain{Node: ids[1], Uplink: "lte", Drain: true}})
	w.must(c)
	c.Now, c.By.Node = testNow.AddDate(0, 0, 1), ids[1]
	w.must(c)
	d := w.s.Nodes[ids[1]].UplinkDrain("lte")
	if d == nil || !d.Since.Equal(testNow) || d.By != w.root.id() {
		t.Errorf("drained %+v", d)
	}
	if w.s.Nodes[ids[1]].Drained() != nil || w.s.Nodes[ids[1]].UplinkDrain("") != nil {
		t.Error("one uplink drains the whole node")
	}
	c.SetDrain = &SetDrain{Node: ids[1], Uplink: "lte"}
	w.must(c)
	w.must(c)
	if len(w.s.Nodes[ids[1]].Drains) != 0 {
		t.Errorf("%+v", w.s.Nodes[ids[1]].Drains)
	}
}

// Both ends of a link must agree on whether it is drained, whichever of them
// it was named from.
func TestLinkDrain(t *testing.T) {
	uplinks := []string{"wan", "lte"}
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 3))
		w, ids := sites(t, 2)
		w.rare = 50
		type end struct {
			node   mesh.NodeID
			uplink string
		}
		ends, links := map[end]bool{}, map[[2]end]bool{} // the slow answer
		for range 6 {
			node, peer := ids[rng.IntN(3)], ids[rng.IntN(3)]
			c := SetDrain{Node: node, Uplink: uplinks[rng.IntN(2)], Drain: rng.IntN(3) > 0}
			here := end{node, c.Uplink}
			switch {
			case rng.IntN(3) == 0:
				ends[here] = c.Drain
			case node != peer:
				c.Peer, c.Remote = peer, uplinks[rng.IntN(2)]
				there := end{peer, c.Remote}
				links[[2]end{here, there}], links[[2]end{there, here}] = c.Drain, c.Drain
			default:
				c.Uplink = "" // the whole node is another matter
			}
			w.must(w.by(Command{SetDrain: &c}))
		}
		for _, a := range ids {
			for _, b := range ids {
				for _, u := range uplinks {
					for _, v := range uplinks {
						here, there := end{a, u}, end{b, v}
						want := a != b && (ends[here] || ends[there] || links[[2]end{here, there}])
						if got := a != b && w.s.LinkDrain(a, mesh.LinkID{Peer: b, Local: u, Remote: v}) != nil; got != want {
							t.Errorf("seed %d: link %s of %s to %s of %s drained: %v, want %v", seed, u, a, v, b, got, want)
						}
					}
				}
			}
		}
	}
}

// Random rules are refused when they would part a mesh that is whole.
func TestPolicyNeverParts(t *testing.T) {
	refused, taken := 0, 0
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 4))
		w, ids := sites(t, 2+rng.IntN(4))
		w.rare = 20
		for range 30 {
			pair := func() Pair {
				i := rng.IntN(len(ids))
				return Pair{ids[i], ids[(i+1+rng.IntN(len(ids)-1))%len(ids)]}
			}
			var c Command
			switch p := pair(); rng.IntN(10) {
			case 0:
				c.SetPairs = &SetPairs{Pin: []Pair{p}, Allow: []Pair{p}}
			case 1:
				c.SetPairs = &SetPairs{Unpin: []Pair{p}}
			case 2:
				c.SetNode = &SetNode{Node: p.A, Tags: new([]string{"core"}[rng.IntN(2):])}
			case 3:
				c.SetTopology = &SetTopology{Mode: []TopologyMode{TopologyAuto, TopologyFull}[rng.IntN(2)]}
			case 4:
				c.SetTopology = &SetTopology{Mode: TopologyHub, Hub: "core"}
			case 5, 6:
				c.SetNode = &SetNode{Node: p.A, Transit: new(rng.IntN(3) == 0)}
			default:
				c.SetPairs = &SetPairs{Forbid: []Pair{p, pair()}, Unpin: []Pair{p}}
			}
			before := w.s
			if r := w.apply(w.by(c)); r.Refused == nil {
				taken++
			} else {
				refused++
			}
			if whole(before) && !whole(w.s) {
				t.Fatalf("seed %d: %+v parts the mesh", seed, c)
			}
			if a, b := w.s.parted(); a.IsZero() != whole(w.s) {
				t.Fatalf("seed %d: parted says %s %s after %+v", seed, a, b, c)
			}
		}
	}
	if refused < 50 || taken < 200 {
		t.Errorf("%d refused and %d taken prove little", refused, taken)
	}
}

// whole is the closure of all pairs that may have a link, over transit nodes
// (Warshall 1962).
func whole(s *State) bool {
	top := s.Mesh.Topology
	hubs := 0
	hub := func(id mesh.NodeID) bool { return slices.Contains(s.Nodes[id].Tags, top.Hub) }
	for id := range s.Nodes {
		if hub(id) {
			hubs++
		}
	}
	way := map[[2]mesh.NodeID]bool{}
	for a := range s.Nodes {
		for b := range s.Nodes {
			p := MakePair(a, b)
			ok := top.Mode != TopologyHub || hubs == 0 || hub(a) || hub(b) || slices.Contains(top.Pinned, p)
			way[[2]mesh.NodeID{a, b}] = a == b || ok && !slices.Contains(top.Forbidden, p)
		}
	}
	for k, n := range s.Nodes {
		for a := range s.Nodes {
			for b := range s.Nodes {
				if !n.NoTransit && way[[2]mesh.NodeID{a, k}] && way[[2]mesh.NodeID{k, b}] {
					way[[2]mesh.NodeID{a, b}] = true
				}
			}
		}
	}
	for _, ok := range way {
		if !ok {
			return false
		}
	}
	return true
}

// When the node between two others is removed the mesh may be in parts; then
// rules can be changed at will.
func TestPartedByRemoval(t *testing.T) {
	w, ids := sites(t, 3)
	w.must(w.by(Command{SetPairs: &SetPairs{Forbid: []Pair{{ids[0], ids[1]}, {ids[0], ids[3]}}}}))
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: ids[2]}}))
	w.must(w.by(Command{SetNode: &SetNode{Node: ids[1], MaxDegree: new(3)}}))
	w.must(w.by(Command{SetPairs: &SetPairs{Allow: []Pair{{ids[1], ids[0]}}}}))
	w.refused(CodeTopologyRefused, w.by(Command{SetPairs: &SetPairs{Forbid: []Pair{{ids[1], ids[0]}}}}))
}

func TestRemovedNodeIsForgotten(t *testing.T) {
	w, ids := sites(t, 2)
	for _, c := range policyCommands(ids[1], ids[2]) {
		w.must(w.by(c))
	}
	w.must(w.by(Command{SetPairs: &SetPairs{Forbid: []Pair{{ids[0], ids[2]}}}}))
	w.must(w.by(Command{SetDrain: &SetDrain{Node: ids[0], Uplink: "wan", Peer: ids[2], Remote: "lte", Drain: true}}))
	w.must(w.by(Command{SetDrain: &SetDrain{Node: ids[0], Uplink: "wan", Peer: ids[1], Remote: "lte", Drain: true}}))
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: ids[2]}}))
	checkForgotten(t, w.s, ids[2])
	if w.s.LinkDrain(ids[0], mesh.LinkID{Peer: ids[1], Local: "wan", Remote: "lte"}) == nil {
		t.Error("the drain of another link went too")
	}
}

// checkForgotten fails when the policy still names a node.
func checkForgotten(t *testing.T, s *State, gone mesh.NodeID) {
	t.Helper()
	if slices.ContainsFunc(slices.Concat(s.Mesh.Topology.Pinned, s.Mesh.Topology.Forbidden), func(p Pair) bool { return p.A == gone || p.B == gone }) {
		t.Errorf("%s is gone and has a rule in %+v", gone, s.Mesh.Topology)
	}
	for _, n := range s.Nodes {
		if slices.ContainsFunc(n.Drains, func(d Drain) bool { return d.Peer == gone }) {
			t.Errorf("%s is gone and a link to it drained: %+v", gone, n.Drains)
		}
	}
}

// checkSame fails unless two states differ in nothing but their index: what a
// lost answer makes an operator's client ask again.
func checkSame(t *testing.T, a, b *State, c Command) {
	t.Helper()
	x, y := *a, *b
	x.Index, y.Index = 0, 0
	if Hash(&x) != Hash(&y) {
		t.Errorf("asked twice, %+v did something else", c)
	}
}
