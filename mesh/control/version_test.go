package control

import (
	"slices"
	"testing"

	"guywire/mesh"
	"guywire/store"
)

// TestVersionRises: a mesh made before commands were signed goes on to the newest
// version when nobody is left who could not follow, and what it promised holds.
func TestVersionRises(t *testing.T) {
	t.Parallel()
	one := foundedAt(t, 0)
	text := one.token(TokenRequest{})
	all := []*machine{one, one.admitted("two", TokenRequest{}), one.admitted("three", TokenRequest{})}
	votersAre(t, all, all...)
	four := one.admitted("four", TokenRequest{})
	all = append(all, four)
	old := four.stream(one, position{}) // it does not say which version it reads
	one.streams.leave(mesh.NodeID{}, 0)

	leader := leaderOf(t, all[:3])
	leader.tend()
	if version := leader.State().Mesh.Version; version != 0 {
		t.Fatalf("the mesh has version %d while an old follower is there", version)
	}
	if got := leader.Status().Outdated; !slices.Equal(got, []mesh.NodeID{four.ID()}) {
		t.Errorf("held back by %v, want %s", got, four.ID())
	}
	r := four.propose(four.grant(1)) // as the root of every member may
	sameState(t, all, r.Index)
	old.body.Close()
	eventually(t, "all have the newest version", func() bool {
		return !slices.ContainsFunc(all, func(m *machine) bool { return m.State().Mesh.Version != store.Version })
	})
	registered(t, all[:3])
	sameState(t, all, one.State().Index)

	for _, m := range all {
		self := m.State().Nodes[m.ID()]
		if operator := slices.Contains(self.Roles, store.NodeOperator); operator != (m == one) || self.EverVoted != self.Voter {
			t.Errorf("%s: roles %v, has voted %v, is a voter %v", self.Name, self.Roles, self.EverVoted, self.Voter)
		}
	}
	if _, _, err := four.CreateToken(t.Context(), TokenRequest{}); err == nil {
		t.Error("a node without the role is an operator still")
	}
	// Tokens of before are good, and commands are signed from now on.
	n := newMachine(t)
	n.run(Join(t.Context(), n.config, text, JoinRequest{Name: "five"}, nil))
	one.propose(store.Command{SetRoles: &store.SetRoles{Node: four.ID(), Roles: []store.NodeRole{store.NodeOperator}}})
	r = four.propose(four.grant(2))
	sameState(t, append(all, n), r.Index)
}
