package control

import (
	"cmp"
	"slices"

	"guywire/mesh"
	"guywire/store"
)

// A step is the next change to who is a voter; at most one kind of work at a
// time, so that each begins from what is true.
type step struct {
	remove  mesh.NodeID   // from the log: it is no member any more
	record  mesh.NodeID   // in the state, that the log has it as voter (vote) or not
	vote    bool          // of record
	promote []mesh.NodeID // all of them, or fewer by an even number
	dismiss mesh.NodeID   // take its vote
}

// isZero reports whether there is nothing to do.
func (s step) isZero() bool {
	return s.remove.IsZero() && s.record.IsZero() && len(s.promote) == 0 && s.dismiss.IsZero()
}

// wanted is how many voters a mesh should have: three, five above manyNodes,
// and one while fewer than three nodes can be reached from outside, since two
// voters stop when either does.
func wanted(state *store.State, voters []mesh.NodeID) int {
	reachable := 0
	for id, n := range state.Nodes {
		if len(n.Control) > 0 || slices.Contains(voters, id) {
			reachable++
		}
	}
	switch {
	case reachable < 3:
		return 1
	case reachable >= 5 && len(state.Nodes) > manyNodes:
		return 5
	default:
		return 3
	}
}

// decide gives the next step of the leader self. A voter that is down is not
// replaced: it may come back, and every change costs a majority.
func decide(state *store.State, voters, learners []mesh.NodeID, self mesh.NodeID, barred func(mesh.NodeID) bool) step {
	for _, id := range slices.Concat(voters, learners) {
		if _, member := state.Nodes[id]; !member && id != self {
			return step{remove: id}
		}
	}
	for _, id := range oldest(state) {
		if has := slices.Contains(voters, id); has != state.Nodes[id].Voter {
			return step{record: id, vote: has}
		}
	}
	for _, id := range learners {
		if barred(id) {
			return step{remove: id}
		}
	}
	want := wanted(state, voters)
	switch {
	case len(voters) < want:
		candidates := candidates(state, voters, barred)
		n := min(want-len(voters), len(candidates))
		if (len(voters)+n)%2 == 0 {
			n-- // an even number of voters survives no more than one fewer, and stops more often
		}
		if n > 0 {
			return step{promote: candidates[:n]}
		}
	case len(voters) > want:
		order := oldest(state)
		for _, id := range slices.Backward(order) {
			if slices.Contains(voters, id) && id != self {
				return step{dismiss: id}
			}
		}
	}
	return step{}
}

// candidates are the nodes that could become voters, oldest first.
func candidates(state *store.State, voters []mesh.NodeID, barred func(mesh.NodeID) bool) []mesh.NodeID {
	return slices.DeleteFunc(oldest(state), func(id mesh.NodeID) bool {
		return len(state.Nodes[id].Control) == 0 || slices.Contains(voters, id) || barred(id)
	})
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
