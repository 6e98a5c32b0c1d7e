package agent

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/core"
	"guywire/store"
)

// TestNATWords: documents of the API hold the kinds as package discovery names
// them, and no others.
func TestNATWords(t *testing.T) {
	var kinds []string
	for n := discovery.NATUnknown; !strings.HasPrefix(n.String(), "NAT("); n++ {
		kinds = append(kinds, n.String())
	}
	for _, name := range []string{"NAT", "NAT6"} {
		f, _ := reflect.TypeFor[api.Uplink]().FieldByName(name)
		if got := strings.Split(f.Tag.Get("enum"), ","); !slices.Equal(got, kinds) {
			t.Errorf("%s: %q, want %q", name, got, kinds)
		}
	}
}

// TestPathWords: the same of the ways that links take.
func TestPathWords(t *testing.T) {
	var classes []string
	for c := discovery.PathClass(0); !strings.HasPrefix(c.String(), "PathClass("); c++ {
		classes = append(classes, c.String())
	}
	f, _ := reflect.TypeFor[api.Link]().FieldByName("Path")
	if got := strings.Split(f.Tag.Get("enum"), ","); !slices.Equal(got, classes) {
		t.Errorf("%q, want %q", got, classes)
	}
}

// TestPairsWithoutLinks: each says whether a link can be expected, and why not.
func TestPairsWithoutLinks(t *testing.T) {
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	key := mesh.IdentityKey(private.Public().(ed25519.PublicKey))
	peer, hub, far := key.NodeID(), mesh.NodeID{2}, mesh.NodeID{3}
	state := &store.State{Nodes: map[mesh.NodeID]store.Node{peer: {Name: "peer"}, hub: {Name: "hub"}, far: {Name: "far"}}}
	link := func(to mesh.NodeID, local, remote, reason string, usable bool) core.LinkView {
		return core.LinkView{Record: core.Record{Link: mesh.LinkID{Peer: to, Local: local, Remote: remote}}, Reason: reason, Usable: usable, Tunnel: usable}
	}
	m := &member{
		directory: discovery.NewDirectory(mesh.MeshID{1}, 8),
		surveys: map[string]survey{
			"lte": {Uplink: discovery.Uplink{Name: "lte", NAT: discovery.NATSymmetric, NAT6: discovery.NATAbsent}},
			"dsl": {Uplink: discovery.Uplink{Name: "dsl", NAT: discovery.NATEasy, NAT6: discovery.NATAbsent}},
		},
	}
	said, err := discovery.Facts{Mesh: mesh.MeshID{1}, Node: peer, Serial: 1, Uplinks: []discovery.Uplink{
		{Name: "wan", NAT: discovery.NATSymmetric, NAT6: discovery.NATAbsent},
	}}.Sign(func(b []byte) []byte { return ed25519.Sign(private, b) })
	if err == nil {
		_, err = m.directory.Merge(time.Now(), said, key)
	}
	if err != nil {
		t.Fatal(err)
	}
	never := link(peer, "lte", "wan", "no direct link to peer: nothing arrived", false)
	v := view{
		running: &running{member: m}, state: state,
		links: []core.LinkView{
			never, link(peer, "dsl", "wan", "nothing arrived", false), link(far, "dsl", "wan", "", false),
			link(hub, "dsl", "wan", "", true), link(hub, "lte", "wan", "down", false),
		},
		routes: []core.RouteView{{Origins: []mesh.NodeID{peer}, Carry: []core.LegView{{Link: mesh.LinkID{Peer: hub}}}}},
	}
	var got []string
	for _, p := range v.pairs() {
		got = append(got, fmt.Sprintf("%s %s-%s %s via %q: %s; %s", p.Peer, p.Local, p.Remote, p.Expected, p.Via, p.Why, p.Reason))
	}
	want := []string{
		`far dsl-wan perhaps via "": too little is known of the two uplinks yet; `,
		`peer lte-wan never via "hub": both ends are behind symmetric NATs; no direct link to peer: nothing arrived`,
		`peer dsl-wan perhaps via "hub": one end is behind a symmetric NAT: it works only if the other end's NAT does not filter by port; nothing arrived`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("pairs:\n%s", strings.Join(got, "\n"))
	}
	if got := v.link(never).Reason; got != "transit: both ends are behind symmetric NATs" {
		t.Errorf("meshctl links says %q", got)
	}
	v.routes = nil
	if got := v.link(never).Reason; got != "both ends are behind symmetric NATs" {
		t.Errorf("of a node that is not reached meshctl links says %q", got)
	}
}

// A symmetric NAT that lets tunnels in stands in nobody's way.
func TestForwardedNeedsNoAdvice(t *testing.T) {
	for _, forwarded := range []bool{false, true} {
		c := api.UplinkCheck{Uplink: api.Uplink{Name: "wan", Up: true, NAT: "symmetric"}, UDP: "passes"}
		if forwarded {
			c.Forwarded = []netip.Addr{netip.MustParseAddr("203.0.113.5")}
		}
		if got := networkAdvice(api.Netcheck{Uplinks: []api.UplinkCheck{c}}); (len(got) == 0) != forwarded {
			t.Errorf("forwarded %v: %+v", forwarded, got)
		}
	}
}

// TestNetworkAdvice: one line for each problem, and none where all is well.
func TestNetworkAdvice(t *testing.T) {
	at := netip.MustParseAddrPort("203.0.113.1:8686")
	servers := []api.ServerCheck{{Server: at, RTTMs: new(1.0)}, {Server: at, RTTMs: new(2.0)}}
	well := func() api.Netcheck {
		return api.Netcheck{
			Control: []netip.AddrPort{at}, STUN: []netip.AddrPort{at},
			Uplinks: []api.UplinkCheck{{Uplink: api.Uplink{Name: "wan", Up: true, NAT: "easy", NAT6: "none"}, UDP: "passes", Checked: new(time.Time), Servers: servers}},
		}
	}
	for want, change := range map[string]func(*api.Netcheck){
		"":                          func(*api.Netcheck) {},
		"no answer from its STUN":   func(c *api.Netcheck) { c.STUN = nil },
		"Uplink wan is down":        func(c *api.Netcheck) { c.Uplinks[0].Uplink.Up = false },
		"it carries no direct link": func(c *api.Netcheck) { c.Uplinks[0].UDP = "blocked" },
		"its links go over TLS":     func(c *api.Netcheck) { c.Uplinks[0].UDP, c.Uplinks[0].Carried = "blocked", 1 },
		"No public node":            func(c *api.Netcheck) { c.Uplinks[0].Servers, c.Uplinks[0].UDP = nil, "unknown" },
		"not been measured":         func(c *api.Netcheck) { c.Uplinks[0] = api.UplinkCheck{Uplink: c.Uplinks[0].Uplink, UDP: "unknown"} },
		"symmetric NAT":             func(c *api.Netcheck) { c.Uplinks[0].Uplink.NAT = "symmetric" },
		"Only one public node":      func(c *api.Netcheck) { c.Uplinks[0].Servers = servers[:1] },
		"No direct link to b (x → y), ": func(c *api.Netcheck) {
			c.Pairs = []api.PairCheck{{Peer: "b", Local: "x", Remote: "y", Expected: api.ExpectDirect, Reason: "nothing arrived"}}
		},
	} {
		c := well()
		change(&c)
		got := networkAdvice(c)
		if want == "" {
			if len(got) > 0 {
				t.Errorf("all is well, but: %+v", got)
			}
			continue
		}
		if len(got) != 1 || !strings.Contains(got[0].Sentence, want) || got[0].Next == "" {
			t.Errorf("%q: %+v", want, got)
		}
	}
	// A node behind a NAT is no problem of its own.
	c := well()
	c.Control, c.STUN = nil, nil
	if got := networkAdvice(c); len(got) > 0 {
		t.Errorf("%+v", got)
	}
}
