package control

import (
	"cmp"
	"net/netip"
	"slices"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

// candidates are all members as the state has them: who could be a voter.
func candidates(state *store.State) []raftstore.Candidate {
	list := make([]raftstore.Candidate, 0, len(state.Nodes))
	for id, n := range state.Nodes {
		c := raftstore.Candidate{
			ID: id, Site: n.Site, Joined: n.Joined, Reachable: len(n.Control) > 0,
			Barred:  slices.Contains(n.Roles, store.NodeNoVote),
			Drained: slices.ContainsFunc(n.Drains, func(d store.Drain) bool { return d.Uplink == "" && d.Peer.IsZero() && d.Remote == "" }),
		}
		if c.Reachable {
			c.Network = network(n.Control[0].Addr())
		}
		list = append(list, c)
	}
	return list
}

// network is what shares the fate of an address: its /24 or /48.
func network(a netip.Addr) netip.Prefix {
	bits := 48
	if a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// oldest are all members in the order in which they joined.
func oldest(state *store.State) []mesh.NodeID {
	ids := make([]mesh.NodeID, 0, len(state.Nodes))
	for id := range state.Nodes {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b mesh.NodeID) int {
		return cmp.Or(state.Nodes[a].Joined.Compare(state.Nodes[b].Joined), a.Compare(b))
	})
	return ids
}
