package netns

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"guywire/mesh"
	"guywire/mesh/api"
)

// TestUplinks: each tunnel of a site with two ISPs leaves by its own, whatever
// the main table prefers. One ISP after the other drops all packets without
// that anybody is told; each time the other one carries.
func TestUplinks(t *testing.T) {
	w := build(t, `
nodes:
  core: {kind: router}
  isp1: {kind: router}
  isp2: {kind: router}
  a:
    kind: site
    lan: 10.1.0.0/24
    lan6: "fd86:0:0:1::/64"
    uplinks: [{to: isp1, name: one}, {to: isp2, name: two}]
  b: {kind: site, lan: 10.2.0.0/24, lan6: "fd86:0:0:2::/64", uplinks: [{to: core}]}
links:
  - {ends: [core, isp1]}
  - {ends: [core, isp2]}
`)
	w.mesh("a", "b")
	w.talk("a", "b")
	tunnels := func() (up []string) { // by their uplinks
		for _, l := range ask[api.Links](w, "a", "links").Links {
			if l.State == api.LinkUp || l.State == api.LinkDegraded {
				up = append(up, l.Local)
			}
		}
		return up
	}
	both := func() string {
		if up := tunnels(); len(up) != 2 {
			return fmt.Sprintf("up are those by %v", up)
		}
		return ""
	}
	w.until("a tunnel by each uplink", both)

	// Each uplink has a rule for its mark, and a default route in its table.
	found := w.snapshot("a")
	for i, uplink := range []string{"one", "two"} {
		u := mesh.Uplink{Slot: uint8(i + 1)}
		for _, want := range []string{
			fmt.Sprintf("rule %d family 2 mark %#x table %d protocol %d ", mesh.RuleUplinkBase+i+1, u.Mark(), u.Table(), mesh.RouteProtocol),
			fmt.Sprintf("route -/0 family 2 table %d protocol %d type 1 metric 1 dev %q ", u.Table(), mesh.RouteProtocol, uplink),
		} {
			if !slices.ContainsFunc(found, func(line string) bool { return strings.HasPrefix(line, want) }) {
				t.Errorf("a has no %s", want)
			}
		}
	}

	for _, dead := range []string{"one", "two"} {
		link := "a:" + dead
		if err := w.lab.Cut(t.Context(), link, ""); err != nil {
			t.Fatal(err)
		}
		w.until("the other tunnel alone is up", func() string {
			if up := tunnels(); len(up) != 1 || slices.Contains(up, dead) {
				return fmt.Sprintf("up are those by %v", up)
			}
			return ""
		})
		w.talk("a", "b")
		if err := w.lab.Heal(t.Context(), link); err != nil {
			t.Fatal(err)
		}
		w.until("both tunnels are up again", both)
	}
}
