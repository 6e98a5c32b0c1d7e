package control

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

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

func TestCandidates(t *testing.T) {
	t.Parallel()
	state, ids := nodes(4, 2)
	set := func(i int, change func(*store.Node)) {
		n := state.Nodes[ids[i]]
		change(&n)
		state.Nodes[ids[i]] = n
	}
	set(0, func(n *store.Node) { n.Site = "a"; n.Drains = []store.Drain{{Uplink: "eth0"}} })
	set(1, func(n *store.Node) {
		n.Control = []netip.AddrPort{netip.MustParseAddrPort("[2001:db8:1:2::3]:1")}
		n.Drains = []store.Drain{{}}
	})
	set(2, func(n *store.Node) { n.Roles = []store.NodeRole{store.NodeNoVote} })
	want := map[mesh.NodeID]raftstore.Candidate{
		ids[0]: {Site: "a", Reachable: true, Network: netip.MustParsePrefix("203.0.113.0/24")},
		ids[1]: {Reachable: true, Network: netip.MustParsePrefix("2001:db8:1::/48"), Drained: true},
		ids[2]: {Barred: true},
		ids[3]: {},
	}
	for _, got := range candidates(state) {
		expected := want[got.ID]
		expected.ID, expected.Joined = got.ID, state.Nodes[got.ID].Joined
		if got != expected {
			t.Errorf("got %+v, want %+v", got, expected)
		}
		delete(want, got.ID)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}
