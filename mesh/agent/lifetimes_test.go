package agent

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"guywire/discovery"
	"guywire/mesh"
)

// Lifetimes are measured once for each network that an uplink is in, and what was not
// found is tried again, but not on metered uplinks.
func TestLifetimesAreMeasuredAfterChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &member{agent: &Agent{names: newNames(testConfig(t, ""), nil, nil)}, surveys: map[string]survey{}, lifetimes: map[string]lifetime{}}
		u := mesh.Uplink{Name: "wan", Up: true, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}
		look := func(outside string) {
			m.surveys["wan"] = survey{
				Uplink: discovery.Uplink{Name: "wan", Addrs: u.Addrs, NAT: discovery.NATEasy, Reflexive: endpoints(outside)}, at: time.Now(),
				answers: []discovery.Reflexion{{Server: netip.MustParseAddrPort("198.51.100.1:8686"), Mapped: netip.MustParseAddrPort(outside)}},
			}
		}
		due := func(what string, u mesh.Uplink, then time.Time, want bool) {
			t.Helper()
			if got := m.lifetimeDue(u, then); got != want {
				t.Errorf("%s: due %v", what, got)
			}
		}
		metered, down := u, u
		metered.Metered, down.Up = true, false
		due("not surveyed", u, time.Time{}, false)
		look("203.0.113.1:7")
		due("at once", u, time.Time{}, false)
		time.Sleep(lifetimeAfter)
		due("soon after", u, time.Time{}, true)
		due("down", down, time.Time{}, false)
		began := time.Now()
		due("under way", u, began, false)

		m.lifetimes["wan"] = lifetime{of: m.surveys["wan"].Uplink, four: 55}
		time.Sleep(24 * time.Hour)
		due("measured", u, began, false)
		look("203.0.113.1:9") // another port only
		time.Sleep(lifetimeAfter)
		due("surveyed again", u, began, false)
		if got := m.outsideOf("wan").Lifetime; got != 55 {
			t.Errorf("lifetime %s", got)
		}
		look("203.0.113.2:7")
		if got := m.outsideOf("wan").Lifetime; got != discovery.LifetimeUnknown {
			t.Errorf("in another network: %s", got)
		}
		time.Sleep(lifetimeAfter)
		due("another network", u, began, true)
		due("another network, metered", metered, began, true)

		m.lifetimes["wan"] = lifetime{of: m.surveys["wan"].Uplink, partial: true}
		due("nothing found", u, began, true)
		due("nothing found, metered", metered, began, false)
		due("nothing found a moment ago", u, time.Now(), false)
	})
}
