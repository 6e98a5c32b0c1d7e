package core

import (
	"net/netip"
	"testing"

	"guywire/discovery"
	"guywire/mesh"
)

// A tunnel says something as often as what stands before its two ends needs, by the
// address family of its path, and changes that when it is measured anew.
func TestKeepaliveFollowsLifetimes(t *testing.T) {
	const endless = discovery.LifetimeEndless
	for name, c := range map[string]struct {
		ours, theirs discovery.Uplink
		endpoint     string
		class        discovery.PathClass
		want         uint16
	}{
		"not measured":      {discovery.Uplink{}, discovery.Uplink{}, "198.18.0.9:51900", discovery.ClassTranslated, 20},
		"two NATs":          {discovery.Uplink{Lifetime: 115}, discovery.Uplink{Lifetime: 25}, "198.18.0.9:51900", discovery.ClassTranslated, 20},
		"one NAT":           {discovery.Uplink{Lifetime: endless}, discovery.Uplink{Lifetime: 55}, "198.18.0.9:51900", discovery.ClassDirect, 50},
		"nothing stands":    {discovery.Uplink{Lifetime: endless}, discovery.Uplink{Lifetime: endless}, "198.18.0.9:51900", discovery.ClassDirect, 0},
		"the other family":  {discovery.Uplink{Lifetime: endless, Lifetime6: 25}, discovery.Uplink{Lifetime: endless, Lifetime6: endless}, "[2001:db8::9]:51900", discovery.ClassDirect, 20},
		"carried in stream": {discovery.Uplink{Lifetime: endless}, discovery.Uplink{Lifetime: endless}, "127.0.0.1:9", discovery.ClassCarrier, 20},
	} {
		link := mesh.LinkID{Peer: id(2), Local: "isp1", Remote: "a"}
		n := node(state(2, 1, 2), Record{
			Link: link, Device: "gw-n2-abcde", Slot: 1, Port: 51900, Class: c.class,
			Endpoint: netip.MustParseAddrPort(c.endpoint), Epoch: 1, Peer: mesh.WireGuardKey{2}, Alive: true,
		})
		c.ours.Name, c.theirs.Name = "isp1", "a"
		bare := facts(2, "a")
		n.Step(start, FactsChanged{Facts: bare})
		n.Step(start, Surveyed{Uplink: discovery.Uplink{Name: "isp1"}})
		keepalive := func() uint16 {
			t.Helper()
			tunnels := n.Desired().Tunnels
			if len(tunnels) != 1 {
				t.Fatalf("%s: %d tunnels", name, len(tunnels))
			}
			return tunnels[0].Keepalive
		}
		if got := keepalive(); got != 20 {
			t.Errorf("%s: %d s before anything was measured", name, got)
		}
		ours := n.Step(start, Surveyed{Uplink: c.ours})
		known := bare
		known.Serial++
		known.Uplinks = []discovery.Uplink{c.theirs}
		theirs := n.Step(start, FactsChanged{Facts: known})
		if got := keepalive(); got != c.want {
			t.Errorf("%s: %d s, want %d", name, got, c.want)
		}
		if c.ours.Lifetime != 0 && !ours.Dirty || c.theirs.Lifetime != 0 && !theirs.Dirty {
			t.Errorf("%s: the tunnels are not looked at", name)
		}
		if len(ours.Attempt)+len(theirs.Attempt) > 0 {
			t.Errorf("%s: a link is tried anew", name)
		}
	}
}
