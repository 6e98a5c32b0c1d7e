package world

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"guywire/integration/lab"
	"guywire/mesh/api"
)

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// The sites of the tests, as in the demo network.
func testSites() []*Site {
	public := []api.Uplink{{Name: "isp1", Interface: "isp1", NAT: "none"}}
	return []*Site{
		{Name: "fra", Host: "fra-host", LAN: prefixes("10.1.0.0/24"), WAN: []string{"isp1"}, Uplinks: public},
		{Name: "lon", Host: "lon-host", LAN: prefixes("10.2.0.0/24"), WAN: []string{"isp1"}, Uplinks: public},
		{Name: "nyc", Host: "nyc-host", LAN: prefixes("10.3.0.0/24"), WAN: []string{"isp1"}, Uplinks: public},
		{Name: "sto", Host: "sto-host", LAN: prefixes("10.4.0.0/24"), WAN: []string{"isp1", "isp2"}, Uplinks: []api.Uplink{
			{Name: "fibre", Interface: "isp1", NAT: "none"}, {Name: "lte", Interface: "isp2", NAT: "none"},
		}},
		{Name: "mad", Host: "mad-host", LAN: prefixes("10.5.0.0/24"), WAN: []string{"isp1"}, Uplinks: []api.Uplink{{Name: "isp1", Interface: "isp1", NAT: "easy"}}},
	}
}

func byName(sites []*Site) map[string]*Site {
	m := map[string]*Site{}
	for _, s := range sites {
		m[s.Name] = s
	}
	return m
}

func route(to string, cost float64, peers ...string) api.Route {
	r := api.Route{Prefix: netip.MustParsePrefix(to), CostMs: new(cost)}
	for _, p := range peers {
		r.NextHops = append(r.NextHops, api.NextHop{Peer: p})
	}
	return r
}

func TestDirectPair(t *testing.T) {
	const fra, lon, nyc, sto, mad = "10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24", "10.5.0.0/24"
	for name, c := range map[string]struct {
		routes map[string][]api.Route
		want   string
	}{
		"the cheapest": {map[string][]api.Route{
			"fra": {route(lon, 2.5, "lon"), route(nyc, 36, "nyc")},
			"lon": {route(fra, 2.5, "fra"), route(nyc, 36.5, "nyc")},
			"nyc": {route(fra, 36, "fra"), route(lon, 36.5, "lon")},
		}, "fra lon"},
		"not over two tunnels": {map[string][]api.Route{
			"fra": {route(lon, 2.5, "lon", "lon"), route(nyc, 36, "nyc")},
			"lon": {route(fra, 2.5, "fra")},
			"nyc": {route(fra, 36, "fra")},
		}, "fra nyc"},
		"not by a third, even one way": {map[string][]api.Route{
			"fra": {route(lon, 2.5, "lon"), route(nyc, 36, "nyc")},
			"lon": {route(fra, 2.5, "nyc")},
			"nyc": {route(fra, 36, "fra")},
		}, "fra nyc"},
		"not behind a NAT": {map[string][]api.Route{
			"fra": {route(mad, 1, "mad"), route(sto, 9, "sto")},
			"mad": {route(fra, 1, "fra")},
			"sto": {route(fra, 9, "fra")},
		}, "fra sto"},
		"not without a cost": {map[string][]api.Route{
			"fra": {{Prefix: netip.MustParsePrefix(lon), NextHops: []api.NextHop{{Peer: "lon"}}}},
			"lon": {route(fra, 2, "fra")},
		}, ""},
		"none": {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, err := directPair(testSites(), c.routes)
			got := ""
			if err == nil {
				got = a.Name + " " + b.Name
			}
			if got != c.want {
				t.Errorf("got %q (%v), want %q", got, err, c.want)
			}
		})
	}
}

// labStatus is a piece of the demo lab.
func labStatus() *lab.Status {
	node := func(name string, kind lab.Kind, ifaces ...lab.Interface) lab.NodeStatus {
		return lab.NodeStatus{Name: name, Kind: kind, Interfaces: ifaces}
	}
	iface := func(name string, a ...string) lab.Interface {
		return lab.Interface{Name: name, Addresses: prefixes(a...)}
	}
	return &lab.Status{
		Nodes: []lab.NodeStatus{
			node("isp1", lab.Router), node("isp2", lab.Router), node("mad-nat", lab.NAT),
			node("fra", lab.Site, iface("isp1", "198.18.2.2/30", "2001:db8:2::2/64"), iface("lan", "10.1.0.1/24")),
			node("sto", lab.Site, iface("isp1", "198.18.2.6/30"), iface("isp2", "198.18.3.10/30", "2001:db8:3::2/64"), iface("lan", "10.4.0.1/24")),
			node("mad", lab.Site, iface("isp1", "10.200.1.2/30")),
		},
		Links: []lab.LinkStatus{
			{Name: "fra:isp1", Ends: [2]string{"fra:isp1", "isp1:to-fra"}},
			{Name: "sto:isp1", Ends: [2]string{"sto:isp1", "isp1:to-sto"}},
			{Name: "sto:isp2", Ends: [2]string{"isp2:to-sto", "sto:isp2"}},
			{Name: "mad:isp1", Ends: [2]string{"mad:isp1", "mad-nat:to-mad"}},
		},
	}
}

func TestSpotFor(t *testing.T) {
	sites := byName(testSites())
	got, err := spotFor(Leg{Node: "sto", Local: "lte", Peer: "fra", Remote: "isp1"}, sites, labStatus())
	want := spot{router: "isp2", a: addrs("198.18.3.10", "2001:db8:3::2"), b: addrs("198.18.2.2", "2001:db8:2::2")}
	if err != nil || !cmp.Equal(got, want, cmp.AllowUnexported(spot{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	for what, l := range map[string]Leg{
		"behind mad-nat": {Node: "fra", Local: "isp1", Peer: "mad", Remote: "isp1"},
		"no interface":   {Node: "fra", Local: "isp1", Peer: "sto", Remote: "satellite"},
	} {
		if got, err := spotFor(l, sites, labStatus()); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: got %+v, %v", what, got, err)
		}
	}
}

func TestHealthy(t *testing.T) {
	link := api.Link{Peer: "lon", Local: "isp1", Remote: "isp1", State: api.LinkUp}
	well := func() api.Status {
		return api.Status{
			Enrolled: true, Ready: true, Node: &api.SelfInfo{Leader: "fra"}, Nodes: api.Count{Good: 5, Total: 5},
			Kernel: api.Revision{Wanted: 3, Applied: 3},
		}
	}
	wanted := []linkKey{{"lon", "isp1", "isp1"}}
	for want, change := range map[string]func(*api.Status, *api.Link){
		"":                     func(*api.Status, *api.Link) {},
		"in no mesh":           func(s *api.Status, _ *api.Link) { s.Node = nil },
		"not in the kernel":    func(s *api.Status, _ *api.Link) { s.Ready = false },
		"no leader":            func(s *api.Status, _ *api.Link) { s.Node.Leader = "" },
		"4 of 5":               func(s *api.Status, _ *api.Link) { s.Nodes.Good = 4 },
		"revision 2":           func(s *api.Status, _ *api.Link) { s.Kernel.Applied = 2 },
		"suspect: silent":      func(_ *api.Status, l *api.Link) { l.State, l.Reason = api.LinkSuspect, "silent" },
		"lon isp1 → isp1 is g": func(_ *api.Status, l *api.Link) { l.Remote = "isp2" },
	} {
		s, l := well(), link
		change(&s, &l)
		if got := healthy(s, []api.Link{l}, wanted); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	degraded := link
	degraded.State = api.LinkDegraded
	if got := healthy(well(), []api.Link{degraded}, wanted); got != "" {
		t.Errorf("a degraded link carries traffic, but: %s", got)
	}
}

func TestSitesOf(t *testing.T) {
	status := labStatus()
	host := lab.NodeStatus{Name: "fra-host", Kind: lab.Host, Interfaces: []lab.Interface{{Name: "eth0", Addresses: prefixes("10.1.0.10/24", "fd86::a/64")}}}
	status.Nodes = append(status.Nodes, host)
	sites, err := sitesOf(status, []string{"fra"})
	if err != nil {
		t.Fatal(err)
	}
	s := sites[0]
	if s.Host4 != addrs("10.1.0.10")[0] || s.Host6 != addrs("fd86::a")[0] || !slices.Equal(s.LAN, prefixes("10.1.0.0/24")) || !slices.Equal(s.WAN, []string{"isp1"}) {
		t.Errorf("got %+v", s)
	}
	for _, name := range []string{"isp1", "nobody", "sto"} { // no site, no node, no host
		if _, err := sitesOf(status, []string{name}); err == nil {
			t.Errorf("%s is taken for a site with a host", name)
		}
	}
}

const procNetDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  100      RX0    0    0    0     0          0         0      100       1    0    0    0     0       0          0
 gw-2a: 9000      RX1    0    0    0     0          0         0     TXB       TX1    0    0    0     0       0          0
`

func TestCounters(t *testing.T) {
	read := func(at time.Duration, rx0, rx1, tx1, txb string) counters {
		t.Helper()
		c, err := parseCounters(at, strings.NewReplacer("RX0", rx0, "RX1", rx1, "TX1", tx1, "TXB", txb).Replace(procNetDev))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first, second := read(time.Second, "5", "10", "20", "8000"), read(1500*time.Millisecond, "5", "60", "270", "9000")
	if got, want := second.since(first), (Rates{"lo": {}, "gw-2a": {100, 500, 16000}}); !cmp.Equal(got, want) {
		t.Errorf("rates %v, want %v", got, want)
	}
	// A device made anew under its old name counts from zero: no rate is better than a huge one.
	if _, there := read(2*time.Second, "6", "1", "1", "1").since(second)["gw-2a"]; there {
		t.Error("a rate of a device that was made anew")
	}
	for _, bad := range []string{" eth0: 1 2 3\n", " eth0: 1 x 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n"} {
		if c, err := parseCounters(0, bad); err == nil {
			t.Errorf("%q: %v", bad, c)
		}
	}
}

func FuzzParseCounters(f *testing.F) {
	f.Add(strings.NewReplacer("RX0", "1", "RX1", "2", "TX1", "3", "TXB", "4").Replace(procNetDev))
	f.Add("a:b:c")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCounters(time.Second, text)
		if err == nil && len(c.devices) > strings.Count(text, ":") {
			t.Errorf("%d devices of %q", len(c.devices), text)
		}
	})
}
