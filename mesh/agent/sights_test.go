package agent

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/core"
)

func endpoints(list ...string) (out []netip.AddrPort) {
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

// What neighbours see adds to what servers say, and is believed no more than they.
func TestSightsAreBelievedLikeServers(t *testing.T) {
	saw := func(server, mapped string) discovery.Reflexion {
		return discovery.Reflexion{Server: netip.MustParseAddrPort(server), Mapped: netip.MustParseAddrPort(mapped)}
	}
	const one, two, three, six = "198.51.100.1:8686", "198.51.100.2:8686", "198.51.100.3:8686", "[2001:db8::1]:51800"
	for name, c := range map[string]struct {
		answers, sights []discovery.Reflexion
		want            []netip.AddrPort
	}{
		"nobody else":              {nil, []discovery.Reflexion{saw(one, "203.0.113.1:1")}, endpoints("203.0.113.1:1")},
		"two that differ":          {nil, []discovery.Reflexion{saw(one, "203.0.113.1:1"), saw(two, "192.0.2.9:1")}, nil},
		"two that agree":           {nil, []discovery.Reflexion{saw(one, "203.0.113.1:1"), saw(two, "203.0.113.1:2"), saw(three, "192.0.2.9:1")}, endpoints("203.0.113.1:1")},
		"a liar beside servers":    {[]discovery.Reflexion{saw(one, "203.0.113.1:1"), saw(two, "203.0.113.1:1")}, []discovery.Reflexion{saw(three, "192.0.2.9:1")}, endpoints("203.0.113.1:1")},
		"a liar beside one server": {[]discovery.Reflexion{saw(one, "203.0.113.1:1")}, []discovery.Reflexion{saw(two, "192.0.2.9:1")}, endpoints("203.0.113.1:1")},
		"one voice twice":          {[]discovery.Reflexion{saw(one, "203.0.113.1:1"), saw(two, "192.0.2.9:1")}, []discovery.Reflexion{saw("198.51.100.2:51800", "192.0.2.9:7")}, nil},
		"a server is seconded":     {[]discovery.Reflexion{saw(one, "203.0.113.1:1"), saw(two, "192.0.2.9:1")}, []discovery.Reflexion{saw(three, "203.0.113.1:7")}, endpoints("203.0.113.1:1")},
		"the other family":         {[]discovery.Reflexion{saw(one, "203.0.113.1:1")}, []discovery.Reflexion{saw(six, "[2001:db8:9::1]:7")}, endpoints("203.0.113.1:1", "[2001:db8:9::1]:7")},
	} {
		var sights []sight
		for _, r := range c.sights {
			sights = append(sights, sight{Reflexion: r})
		}
		if got := withSights(discovery.Agreed(c.answers), c.answers, sights); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// Sights expire, and do not outlive the addresses of their uplink.
func TestSightsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &member{agent: &Agent{names: newNames(testConfig(t, ""), nil, nil)}, surveys: map[string]survey{}, sights: map[string]map[mesh.LinkID]sight{}, doubted: map[string]time.Time{}}
		host := func(addr string) {
			m.host.Store(&core.Host{Uplinks: []mesh.Uplink{{Name: "wan", Interface: "eth0", Up: true, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}}})
		}
		host("10.0.0.2")
		outside := func() string {
			m.mu.Lock()
			defer m.mu.Unlock()
			return fmt.Sprint(m.outsideOf("wan").Reflexive)
		}
		see := func(peer byte, witness, endpoint string, port uint16) {
			m.noteSight(core.Sight{
				Link: mesh.LinkID{Peer: mesh.NodeID{peer}, Local: "wan", Remote: "a"}, Port: port,
				Witness: netip.MustParseAddrPort(witness), Endpoint: netip.MustParseAddrPort(endpoint),
			})
		}
		see(1, "192.168.0.7:51800", "203.0.113.9:51900", 51900)
		see(1, "198.51.100.1:51800", "10.0.0.2:51900", 51900)
		if got := outside(); got != "[]" {
			t.Errorf("words on a network that both are in count: %s", got)
		}
		see(1, "198.51.100.1:51800", "203.0.113.1:51900", 51900)
		if got, kept := outside(), fmt.Sprint(m.portsKept("wan")); got != "[203.0.113.1:51900]" || kept != "[203.0.113.1]" {
			t.Errorf("seen at %s, ports kept at %s", got, kept)
		}
		time.Sleep(20 * time.Minute)
		see(2, "198.51.100.2:51800", "203.0.113.1:40001", 51901) // this one's port was changed
		time.Sleep(11 * time.Minute)
		if got, kept := outside(), fmt.Sprint(m.portsKept("wan")); got != "[203.0.113.1:40001]" || kept != "[]" {
			t.Errorf("half an hour later: seen at %s, ports kept at %s", got, kept)
		}
		host("10.7.0.2")
		if got := outside(); got != "[]" {
			t.Errorf("with another address: %s", got)
		}
		host("10.0.0.2")
		time.Sleep(candidateLife)
		if got := outside(); got != "[]" {
			t.Errorf("long after: %s", got)
		}

		// A word that does not fit the last survey has it repeated.
		m.surveys["wan"] = survey{
			Uplink: discovery.Uplink{Name: "wan", Reflexive: endpoints("203.0.113.1:7")}, at: time.Now(),
			answers: []discovery.Reflexion{{Server: netip.MustParseAddrPort("198.51.100.9:8686"), Mapped: netip.MustParseAddrPort("203.0.113.1:7")}},
		}
		see(1, "198.51.100.1:51800", "203.0.113.1:51900", 51900)
		if !m.doubted["wan"].IsZero() {
			t.Error("a word that fits is doubted")
		}
		see(1, "198.51.100.1:51800", "203.0.113.77:51900", 51900)
		if got := outside(); m.doubted["wan"].IsZero() || got != "[203.0.113.1:7]" {
			t.Errorf("seen at %s, doubted at %s", got, m.doubted["wan"])
		}
		time.Sleep(candidateLife + time.Second)
		if got := outside(); got != "[]" {
			t.Errorf("a survey that was not repeated is believed: %s", got)
		}
	})
}
