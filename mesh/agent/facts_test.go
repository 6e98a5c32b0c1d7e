package agent

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/control"
	"guywire/mesh/core"
	"guywire/store"
)

// TestStatesReplayOnlyNewFacts: what is known of a node goes into the core once
// for each time that the node comes, not with every commit of the log.
func TestStatesReplayOnlyNewFacts(t *testing.T) {
	founded := planeConfig(t)
	p, err := control.Init(t.Context(), founded, control.InitRequest{
		Mesh: "lab", Name: "one", Pool4: netip.MustParsePrefix("10.86.0.0/16"), Pool6: netip.MustParsePrefix("fd12:3456:789a::/48"),
	})
	one := runPlane(t, p, err)
	m := memberOf(t, one, founded)
	m.events, m.done = make(chan core.Event, eventQueue), t.Context().Done()
	said := map[mesh.NodeID]discovery.Signed{}
	for _, name := range []string{"two", "three"} {
		text, _, err := one.CreateToken(t.Context(), control.TokenRequest{Name: name, Roles: []store.NodeRole{store.NodeNoVote}})
		if err != nil {
			t.Fatal(err)
		}
		config := planeConfig(t)
		p, err := control.Join(t.Context(), config, text, control.JoinRequest{Name: name}, nil)
		id := runPlane(t, p, err).ID()
		said[id], err = discovery.Facts{Mesh: one.State().Mesh.ID, Node: id, Serial: 1}.Sign(config.Ring.Sign)
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both are in the log", func() bool { return len(m.weigh().state.Nodes) == 3 })
	state := m.standing.Load().state
	for _, s := range said {
		m.heard(s)
	}
	var two mesh.NodeID
	for id := range said {
		two = id
	}
	nodes := func(before, now *store.State) (out []mesh.NodeID) {
		for _, f := range m.renew(before, now) {
			out = append(out, f.Node)
		}
		return out
	}
	if got := nodes(&store.State{}, state); len(got) != 2 {
		t.Errorf("at the start: %v", got)
	}
	banned := state.Without(two)
	if got := nodes(state, banned); len(got) > 0 || len(m.directory.All()) != 1 {
		t.Errorf("a ban: %v; known are %v", got, m.directory.All())
	}
	m.heard(said[two]) // standing has it still
	if got := nodes(banned, banned); len(got) > 0 || len(m.directory.All()) != 2 {
		t.Errorf("nothing happened: %v; known are %v", got, m.directory.All())
	}
	if got := nodes(banned, state); !slices.Equal(got, []mesh.NodeID{two}) {
		t.Errorf("a ban is over: %v, want %v", got, two)
	}

	for len(m.events) > 0 {
		<-m.events
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.followState(ctx) }()
	tags := []string{"office"}
	if _, err := one.Operate(t.Context(), store.Command{SetNode: &store.SetNode{Node: two, Tags: &tags}}); err != nil {
		t.Fatal(err)
	}
	for seen := false; !seen; {
		select {
		case ev := <-m.events:
			switch ev := ev.(type) {
			case core.FactsChanged:
				t.Errorf("facts about %s are replayed", ev.Facts.Node)
			case core.StateChanged:
				seen = slices.Equal(ev.State.Nodes[two].Tags, tags)
			}
		case <-time.After(patient):
			t.Fatal("no new state")
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for len(m.events) > 0 {
		if ev, ok := (<-m.events).(core.FactsChanged); ok {
			t.Errorf("facts about %s are replayed", ev.Facts.Node)
		}
	}
}

func TestServesSTUN(t *testing.T) {
	at := func(list ...string) (out []netip.AddrPort) {
		out = []netip.AddrPort{}
		for _, s := range list {
			out = append(out, netip.MustParseAddrPort(s))
		}
		return out
	}
	control := at("203.0.113.1:1", "203.0.113.1:443", "[2001:db8::1]:1")
	for _, c := range []struct {
		control, measured, before, want []netip.AddrPort
	}{
		{control, nil, nil, at("203.0.113.1:8686", "[2001:db8::1]:8686")},
		{control, nil, at("[2001:db8::1]:8686"), at("[2001:db8::1]:8686")},
		{control, at("203.0.113.1:8686"), at("[2001:db8::1]:8686"), at("203.0.113.1:8686")},
		{control, at(), at("[2001:db8::1]:8686"), nil},
		{control, nil, at(), nil},
		{nil, at("203.0.113.1:8686"), nil, nil}, // not reached there any more
	} {
		if got := servesSTUN(c.control, c.measured, c.before); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
