package agent

import (
	"net/netip"
	"testing"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/core"
	"guywire/mesh/link"
)

// TestLossyLinksAreDegraded: what loses more than the limit is not simply up,
// and each finding about a link says what to do.
func TestLossyLinksAreDegraded(t *testing.T) {
	v := view{running: &running{member: &member{}}, state: lookedAt()}
	record := core.Record{Link: mesh.LinkID{Peer: mesh.NodeID{2}, Local: "lte", Remote: "wan"}, Device: "gw-2b"}
	for _, tt := range []struct {
		name     string
		state    link.State
		in, out  float64
		want     api.LinkState
		why      string
		sentence string // of the finding; empty: there is none
	}{
		{"clean", link.Up, 0, 0, api.LinkUp, "as it was", ""},
		{"at the limit", link.Up, lossLimit, lossLimit, api.LinkUp, "as it was", ""},
		{"out", link.Up, 0.001, 0.042, api.LinkDegraded, "loss 4.2 % out, limit 2 %", "Link to two (lte → wan) is degraded: loss 4.2 % out, limit 2 %"},
		{"in", link.Up, 0.3, 0, api.LinkDegraded, "loss 30.0 % in, limit 2 %", "Link to two (lte → wan) is degraded: loss 30.0 % in, limit 2 %"},
		{"both", link.Up, 0.03, 0.05, api.LinkDegraded, "loss 5.0 % out and 3.0 % in, limit 2 %", "Link to two (lte → wan) is degraded: loss 5.0 % out and 3.0 % in, limit 2 %"},
		{"down", link.Down, 1, 1, api.LinkDown, "as it was", "Link to two (lte → wan) is down: as it was"},
		{"suspect", link.Suspect, 1, 1, api.LinkSuspect, "as it was", ""},
		{"no agent", link.Headless, 0, 0, api.LinkDegraded, "as it was", "two forwards, but its agent does not answer"},
	} {
		l := core.LinkView{Record: record, Tunnel: true, State: tt.state, Reason: "as it was", LossIn: tt.in, LossOut: tt.out}
		if got := v.link(l); got.State != tt.want || got.Reason != tt.why {
			t.Errorf("%s: %s, %q; want %s, %q", tt.name, got.State, got.Reason, tt.want, tt.why)
		}
		f, bad := v.linkFinding(l)
		if bad != (tt.sentence != "") || f.Sentence != tt.sentence || bad && (f.Level != api.Degraded || f.Next == "") {
			t.Errorf("%s: finding %t %+v, want %q", tt.name, bad, f, tt.sentence)
		}
	}
	if _, bad := v.linkFinding(core.LinkView{Record: record, LossIn: 1}); bad {
		t.Error("a link that has no tunnel loses")
	}
}

// What join and ping say of ways is what docs/cli.md shows.
func TestWaysInWords(t *testing.T) {
	addr, seen := netip.MustParseAddr("10.0.0.9"), netip.MustParseAddrPort("198.18.9.9:40211")
	for _, tt := range []struct {
		uplink api.Uplink
		want   string
	}{
		{api.Uplink{Name: "fibre", Interface: "eth0", NAT: "none", Addrs: []netip.Addr{addr}}, "uplink fibre (eth0): public, 10.0.0.9"},
		{api.Uplink{Name: "lte", Interface: "wwan0", NAT: "symmetric", Addrs: []netip.Addr{addr}, Reflexive: []netip.AddrPort{seen}}, "uplink lte (wwan0): behind symmetric NAT, seen as 198.18.9.9"},
		{api.Uplink{Name: "lte", Interface: "wwan0", NAT: "unknown"}, "uplink lte (wwan0): NAT unknown"},
		{api.Uplink{Name: "lte", Interface: "wwan0", NAT: "absent", NAT6: "none", Addrs: []netip.Addr{addr}}, "uplink lte (wwan0): IPv6 only, public, 10.0.0.9"},
		{api.Uplink{Name: "lte", Interface: "wwan0", NAT: "easy", NAT6: "none", Reflexive: []netip.AddrPort{seen}}, "uplink lte (wwan0): IPv4 easy NAT, IPv6 public, seen as 198.18.9.9"},
		{api.Uplink{Name: "lte", Interface: "wwan0", NAT: "easy-port-changed", NAT6: "absent"}, "uplink lte (wwan0): easy NAT that changes ports"},
		{api.Uplink{Name: "lte", Interface: "wwan0", NAT: "blocked", Addrs: []netip.Addr{addr}}, "uplink lte (wwan0): UDP blocked, 10.0.0.9"},
	} {
		if got := describeUplink(tt.uplink); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	peer := mesh.NodeID{2}
	hop := hopAnswer{Hop: api.Hop{Peer: "two"}, Next: peer, link: mesh.LinkID{Peer: peer, Local: "fibre", Remote: "wan"}}
	for want, got := range map[string]string{
		"direct, fibre → wan":  hop.words(peer),
		"via two, fibre → wan": hop.words(mesh.NodeID{3}),
		"this node":            hopAnswer{Here: true}.words(peer),
		"no path":              hopAnswer{}.words(peer),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
