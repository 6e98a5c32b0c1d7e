package control

import (
	"errors"
	"testing"

	"guywire/mesh"
	"guywire/store"
)

// What an operator decides on any member holds on all of them, and on the one
// that starts again alone.
func TestPolicyReachesAll(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	self, other := all[3].ID(), all[0].ID()
	for _, c := range []store.Command{
		{SetTopology: &store.SetTopology{Dense: true}},
		{SetPairs: &store.SetPairs{Pin: []store.Pair{{A: self, B: other}}}},
		{SetNode: &store.SetNode{Node: self, Transit: new(false), Tags: &[]string{}}},
		{SetDrain: &store.SetDrain{Node: self, Uplink: "lte", Drain: true}},
	} {
		if _, err := all[3].Operate(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	sameState(t, all, all[3].State().Index)

	drain := store.Command{SetDrain: &store.SetDrain{Node: mesh.NodeID{1}, Drain: true}}
	_, err := all[3].Operate(t.Context(), drain)
	if refused, ok := errors.AsType[*store.Refusal](err); !ok || refused.Code != store.CodeNotFound {
		t.Errorf("a stranger drained: %v", err)
	}

	for _, m := range all[:3] {
		if err := m.shut(); err != nil {
			t.Fatal(err)
		}
	}
	all[3].restart()
	state := all[3].State()
	n := state.Nodes[self]
	if !state.Mesh.Topology.Dense || len(state.Mesh.Topology.Pinned) != 1 || !n.NoTransit || n.UplinkDrain("lte") == nil || n.UplinkDrain("lte").By != self {
		t.Errorf("alone after a restart: %+v %+v", state.Mesh.Topology, n)
	}
}
