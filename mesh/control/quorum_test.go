package control

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/store"
)

func TestWantedVoters(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ nodes, reachable, voters, want int }{
		{1, 1, 1, 1},
		{2, 2, 1, 1},
		{3, 2, 1, 1},
		{3, 3, 1, 3},
		{20, 20, 3, 3},
		{21, 4, 3, 3},
		{21, 5, 3, 5},
		{500, 400, 5, 5},
		{4, 0, 3, 3}, // voters count as reachable: nothing is torn down for a bad measurement
	} {
		state, ids := nodes(tc.nodes, tc.reachable)
		if got := wanted(state, ids[:tc.voters]); got != tc.want {
			t.Errorf("%+v: %d voters wanted", tc, got)
		}
	}
}

// nodes are n members, the first of them reachable, none recorded as voter.
func nodes(n, reachable int) (*store.State, []mesh.NodeID) {
	state := store.New()
	var ids []mesh.NodeID
	for i := range n {
		id := mesh.NodeID{byte(i >> 8), byte(i), 1}
		node := store.Node{ID: id, Name: fmt.Sprintf("n%d", i), Joined: time.Unix(int64(1000+i), 0)}
		if i < reachable {
			node.Control = []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:8686")}
		}
		state.Nodes[id] = node
		ids = append(ids, id)
	}
	return state, ids
}

// TestDecideConverges runs the leader's steps on random meshes until there is
// nothing to do, and holds every step to the rules.
func TestDecideConverges(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		n := 1 + r.IntN(30)
		state, ids := nodes(n, r.IntN(n+1))
		r.Shuffle(n, func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		self := ids[0]
		voters := slices.Clone(ids[:1+r.IntN(min(n, 6))])
		var learners []mesh.NodeID
		if len(voters) < n && r.IntN(2) == 0 {
			learners = append(learners, ids[len(voters)])
		}
		if r.IntN(2) == 0 {
			voters = append(voters, mesh.NodeID{9, 9, 9}) // removed from the mesh
		}
		for id, node := range state.Nodes {
			node.Voter = r.IntN(3) == 0
			state.Nodes[id] = node
		}
		bad := map[mesh.NodeID]bool{}
		for _, id := range ids[1:] {
			bad[id] = r.IntN(5) == 0
		}
		barred := func(id mesh.NodeID) bool { return bad[id] }
		for steps := 0; ; steps++ {
			if steps > 100 {
				t.Fatalf("seed %d: no end", seed)
			}
			s := decide(state, voters, learners, self, barred)
			if s.isZero() {
				break
			}
			without := func(in []mesh.NodeID, id mesh.NodeID) []mesh.NodeID {
				return slices.DeleteFunc(slices.Clone(in), func(o mesh.NodeID) bool { return o == id })
			}
			switch {
			case s.remove == self || s.dismiss == self:
				t.Fatalf("seed %d: the leader acts against itself: %+v", seed, s)
			case !s.remove.IsZero():
				voters, learners = without(voters, s.remove), without(learners, s.remove)
			case !s.record.IsZero():
				node := state.Nodes[s.record]
				node.Voter = s.vote
				state.Nodes[s.record] = node
			case len(s.promote) > 0:
				for _, id := range s.promote {
					node := state.Nodes[id]
					if len(node.Control) == 0 || barred(id) || slices.Contains(voters, id) {
						t.Fatalf("seed %d: %s cannot become a voter", seed, id)
					}
					voters, learners = append(voters, id), without(learners, id)
					node.Voter = true
					state.Nodes[id] = node
				}
				if len(voters)%2 == 0 {
					t.Fatalf("seed %d: %d voters after a promotion", seed, len(voters))
				}
			default:
				voters = without(voters, s.dismiss)
			}
		}
		want := wanted(state, voters)
		if len(voters) > want || !slices.Contains(voters, self) {
			t.Fatalf("seed %d: %d voters, want %d", seed, len(voters), want)
		}
		if have := len(voters); have < want && len(candidates(state, voters, barred)) >= 2 {
			t.Fatalf("seed %d: %d voters of %d, and candidates are left", seed, have, want)
		}
		for _, id := range ids {
			if state.Nodes[id].Voter != slices.Contains(voters, id) {
				t.Fatalf("seed %d: the state does not say who votes", seed)
			}
		}
	}
}

func TestTokenServers(t *testing.T) {
	t.Parallel()
	state, ids := nodes(5, 0)
	control := func(i int, voter bool, addrs ...string) {
		n := state.Nodes[ids[i]]
		n.Voter = voter
		for _, a := range addrs {
			n.Control = append(n.Control, netip.MustParseAddrPort(a))
		}
		state.Nodes[ids[i]] = n
	}
	control(1, false, "203.0.113.1:1")
	control(2, true, "203.0.113.2:1", "203.0.113.2:2")
	control(4, false, "203.0.113.4:1", "203.0.113.4:2")
	if got := fmt.Sprint(tokenServers(state, ids[4])); got != "[203.0.113.4:1 203.0.113.2:1 203.0.113.1:1]" {
		t.Errorf("servers: %s", got)
	}
	state, ids = nodes(1, 0)
	control(0, true, "203.0.113.2:1", "203.0.113.2:2")
	if got := fmt.Sprint(tokenServers(state, ids[0])); got != "[203.0.113.2:1 203.0.113.2:2]" {
		t.Errorf("servers of a single node: %s", got)
	}
}
