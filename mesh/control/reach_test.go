package control

import (
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"guywire/mesh"
	"guywire/store"
)

// TestReachIsNotTheWordOfAMember: what an ordinary member answers to a node
// that asks where it is reached changes nothing in that node's record but what
// it says of itself.
func TestReachIsNotTheWordOfAMember(t *testing.T) {
	t.Parallel()
	one := founded(t)
	own := one.config.Advertise()
	elsewhere := netip.MustParseAddrPort("203.0.113.1:8686")
	noVote := TokenRequest{Roles: []store.NodeRole{store.NodeNoVote}}
	var asked atomic.Int32
	bad := newMachine(t)
	plane, err := Join(t.Context(), bad.config, one.token(noVote), JoinRequest{Name: "bad"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	plane.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/reach" {
			plane.mux.ServeHTTP(w, r)
			return
		}
		asked.Add(1)
		Reply(w, reachAnswer{Reached: append(slices.Clone(own), elsewhere)})
	})
	bad.run(plane, nil)
	eventually(t, "the member can be reached", func() bool { return len(one.State().Nodes[bad.ID()].Control) > 0 })
	var heard witness
	for range 2 {
		reached, err := one.askReach(&heard)
		if err != nil || !slices.Equal(reached, own) {
			t.Fatalf("reached at %v, %v; want %v", reached, err, own)
		}
	}
	if asked.Load() == 0 {
		t.Fatal("the member was not asked")
	}
	// Who can ask a voter asks nobody else.
	two := one.admitted("two", noVote)
	eventually(t, "the second can be reached", func() bool { return len(one.State().Nodes[two.ID()].Control) > 0 })
	for range 20 {
		if reached, err := two.askReach(&heard); err != nil || slices.Contains(reached, elsewhere) {
			t.Fatalf("reached at %v, %v", reached, err)
		}
	}
	if slices.Contains(one.State().Nodes[one.ID()].Control, elsewhere) {
		t.Error("it is in the state")
	}
}

func TestWitness(t *testing.T) {
	t.Parallel()
	a, b := mesh.NodeID{1}, mesh.NodeID{2}
	own, x, y := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("203.0.113.1:1"), netip.MustParseAddrPort("203.0.113.2:1")
	var w witness
	for i, step := range []struct {
		from       mesh.NodeID
		said, want []netip.AddrPort
	}{
		{a, []netip.AddrPort{own, x}, []netip.AddrPort{own}},
		{a, []netip.AddrPort{own, x}, []netip.AddrPort{own}}, // the same one again proves nothing
		{b, []netip.AddrPort{y}, nil},
		{a, []netip.AddrPort{x, y}, []netip.AddrPort{y}},
		{b, []netip.AddrPort{x, own}, []netip.AddrPort{x, own}},
		{b, nil, nil},
		{a, []netip.AddrPort{x}, nil},
	} {
		if got := w.believe(step.from, step.said, []netip.AddrPort{own}); !slices.Equal(got, step.want) {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
}
