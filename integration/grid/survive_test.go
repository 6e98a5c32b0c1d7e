package grid

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/discovery"
	"guywire/integration/lab"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
)

// recovery is how long a pair may take to be direct again. It is no measure: the seconds are logged.
const recovery = time.Minute

// mesh makes a mesh in which the two sites have a direct link within the limit, and closes it at the end of the test.
func mesh(t *testing.T, n *lab.Network, within time.Duration) *Mesh {
	t.Helper()
	return meshBy(t, n, Direct, within)
}

// meshBy is mesh for another way than a direct link.
func meshBy(t *testing.T, n *lab.Network, way Way, within time.Duration) *Mesh {
	t.Helper()
	needLab(t)
	m, err := together(t.Context(), options(), n, way, within)
	if m != nil {
		t.Cleanup(func() {
			if t.Failed() {
				kept := filepath.Join(os.TempDir(), "guywire-failed-"+m.Lab.Name())
				t.Logf("what the nodes left, keys too, is kept in %s (%v)", kept, m.keep(kept))
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	must(t, err)
	return m
}

// becomes waits until the pair's traffic takes the way, and logs the seconds since the event, which is now.
func (m *Mesh) becomes(t *testing.T, event string, way Way) {
	t.Helper()
	r, err := m.recovers(t.Context(), way, recovery)
	tell(t, event, way, r, err)
}

func tell(t *testing.T, event string, way Way, r Recovery, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", event, err)
	}
	t.Logf("%s: pings answered after %.1f s, %s after %.1f s", event, r.Ping, way, r.Direct)
}

// must ends the test when the lab cannot do what it needs.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestB40BothBoxes brings two neighbours together whose offers take a long way round, so that the first check of one is at the
// other's box long before anything has left there. A box that answers unasked packets then gives the port away.
func TestB40BothBoxes(t *testing.T) {
	for _, p := range []Cell{{Left: "easy", Right: "easy"}, {Left: "easy", Right: "open"}, {Left: "open", Right: "open"}} {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			n := p.network()
			for _, h := range helpers {
				n.Nodes[h].Uplinks[0].Delay = 80 * time.Millisecond
			}
			for _, site := range []string{left, right} {
				n.Nodes[boxOf(site)].Uplinks[0].Delay = 2 * time.Millisecond
			}
			mesh(t, n, limit) // a later attempt may be luck
		})
	}
}

// TestNATReboot switches the right site's box off and on: it forgets its mappings, and a box that chooses ports chooses others.
func TestNATReboot(t *testing.T) {
	for _, p := range []Cell{{Left: "easy", Right: "easy"}, {Left: "easy", Right: "port"}, {Left: "public", Right: "symmetric"}} {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			r, err := mesh(t, p.network(), recovery).Survive(t.Context(), Reboot, recovery)
			tell(t, "the box is back", Direct, r, err)
		})
	}
}

// TestAddressChange gives the right site's box, or itself, another address.
func TestAddressChange(t *testing.T) {
	for _, p := range []Cell{{Left: "easy", Right: "easy"}, {Left: "easy", Right: "port"}, {Left: "public", Right: "public"}} {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			r, err := mesh(t, p.network(), recovery).Survive(t.Context(), Readdress, recovery)
			tell(t, "the address has changed", Direct, r, err)
		})
	}
}

// TestMappingExpiry keeps the right site silent until its box has forgotten it. The box then chooses another port, so that the
// left site's filter knows nothing of what comes.
func TestMappingExpiry(t *testing.T) {
	t.Parallel()
	short := kinds["port"]
	short.box.MappingTimeout = 3 * time.Second
	m := mesh(t, network(map[string]kind{left: kinds["easy"], right: short}), recovery)
	// Both sides of the box: either direction keeps a mapping.
	for _, link := range []string{right + ":isp1", boxOf(right) + ":wan"} {
		must(t, m.Lab.Cut(t.Context(), link, ""))
	}
	ok, err := poll(t.Context(), recovery, func() (bool, error) {
		out, err := m.Run(t.Context(), boxOf(right), "", m.Exe, world.InsideVerb, "mappings")
		return string(out) == "0\n", err
	})
	if err != nil || !ok {
		t.Fatalf("the box forgets: %v, %v", ok, err)
	}
	must(t, m.Lab.Heal(t.Context(), ""))
	m.becomes(t, "the mappings have expired", Direct)
}

// TestSuspend stops the right site for longer than its peers wait for it.
func TestSuspend(t *testing.T) {
	t.Parallel()
	m := mesh(t, Cell{Left: "easy", Right: "port"}.network(), recovery)
	must(t, m.Lab.Suspend(t.Context(), right, 15*time.Second, 0))
	m.becomes(t, "awake", Direct)
}

// TestRestartReusesPort restarts all of the right site's programs. Its tunnel has the port that it had, for which its box and
// its peer's still have mappings.
func TestRestartReusesPort(t *testing.T) {
	t.Parallel()
	m := mesh(t, Cell{Left: "easy", Right: "easy"}.network(), recovery)
	before := m.ports(t)
	m.remembers(t)
	must(t, m.Lab.KillAll(t.Context(), right, 0))
	_, err := m.Lab.Start(t.Context(), right, "", nil)
	must(t, err)
	m.becomes(t, "restarted", Direct)
	if after := m.ports(t); after != before {
		t.Errorf("the link has other ports than before the restart: %s, not %s", after, before)
	}
}

// TestCarrierThenUDP lets UDP through a firewall that dropped it, and drops it again: TLS carries the link for exactly as long
// as nothing better does.
func TestCarrierThenUDP(t *testing.T) {
	t.Parallel()
	m := meshBy(t, Cell{Left: "public", Right: "blocked"}.network(), Carrier, recovery)
	must(t, m.Lab.UDP(t.Context(), boxOf(right), true))
	m.becomes(t, "UDP passes", Direct)
	must(t, m.Lab.UDP(t.Context(), boxOf(right), false))
	m.becomes(t, "UDP is dropped again", Carrier)
}

// TestUplinkChange moves the right site from one uplink to another, as when a cable is put elsewhere: from behind a box to a
// public address, and back.
func TestUplinkChange(t *testing.T) {
	t.Parallel()
	n := Cell{Left: "easy", Right: "easy"}.network()
	n.Nodes[right].Uplinks = append(n.Nodes[right].Uplinks, &lab.Uplink{To: internet, Properties: wire})
	m := mesh(t, n, recovery)
	first, second := right+":isp1", right+":isp2"
	for i, event := range []string{"the first uplink", "the other uplink", "the first again"} {
		must(t, m.Lab.Carrier(t.Context(), []string{first, second}[i%2], true))
		must(t, m.Lab.Carrier(t.Context(), []string{second, first}[i%2], false))
		m.becomes(t, event, Direct)
	}
}

// TestVictimOfALiar has the right site declare the address of a machine that has nothing to do with the mesh. Each other node
// looks whether the site is there, with as few packets as it spends on any address that never answered, and the machine gets
// nothing else.
func TestVictimOfALiar(t *testing.T) {
	t.Parallel()
	const victim, most = "victim", 60 // what discovery lets one node spend there at once
	n := Cell{Left: "public", Right: "public"}.network()
	at := netip.MustParsePrefix("198.18.1.202/30")
	n.Nodes[victim] = &lab.Node{Kind: lab.Host, Uplinks: []*lab.Uplink{{To: internet, Address: at}}}
	n.Nodes[right].Meshd = lab.Settings{"uplinks": []any{map[string]any{"interface": "isp1", "endpoint": at.Addr().String()}}}
	m := mesh(t, n, recovery) // the site's own addresses are among what is tried
	unasked := func() (n int) {
		out, err := m.Run(t.Context(), victim, "", m.Exe, world.InsideVerb, "unasked")
		must(t, err)
		_, err = fmt.Sscan(string(out), &n)
		must(t, err)
		return n
	}
	// As often as the site likes, which lies to make others look again.
	for range 3 {
		_, err := m.Lab.Readdress(t.Context(), right+":isp1")
		must(t, err)
		m.becomes(t, "the liar has moved", Direct)
	}
	if got, others := unasked(), len(helpers)+1; got == 0 || got > others*most {
		t.Errorf("%d packets at the victim, want some and at most %d from each of %d nodes", got, most, others)
	} else {
		t.Logf("%d packets at the victim, from %d nodes", got, others)
	}
}

// TestSpread has two sites look for a path by chance that have no other: whether they find one is luck. Their boxes see no
// more flows than that may cost, and traffic goes on whichever way.
func TestSpread(t *testing.T) {
	t.Parallel()
	n := Cell{Left: "easy", Right: "symmetric"}.network()
	for _, site := range []string{left, right} {
		n.Nodes[site].Meshd = lab.Settings{"nat": map[string]any{"spread": "eager"}}
	}
	m := meshBy(t, n, Transit, recovery)
	const others = 100 // flows of tunnels, STUN and attempts as ever; a search in vain makes these:
	made := map[string]int{boxOf(left): discovery.SpreadProbes, boxOf(right): discovery.SpreadSockets}
	peak, way, why := map[string]int{}, None, ""
	ended, err := poll(t.Context(), 2*recovery, func() (bool, error) {
		for box := range made {
			var flows int
			out, err := m.Run(t.Context(), box, "", m.Exe, world.InsideVerb, "mappings")
			if err == nil {
				_, err = fmt.Sscan(string(out), &flows)
			}
			if err != nil {
				return false, err
			}
			peak[box] = max(peak[box], flows)
		}
		ends, err := m.links(t.Context())
		if err != nil {
			return false, err
		}
		way, why = None, ""
		for _, links := range ends {
			for _, l := range links {
				switch {
				case up(l):
					way = Direct
				case strings.Contains(l.Reason, "by chance ports, tried"):
					way, why = Transit, l.Reason
				}
			}
		}
		return way != None, nil
	})
	if err != nil || !ended {
		t.Fatalf("nothing was tried, or nothing said about it: %v", err)
	}
	for box, n := range made {
		if peak[box] > n+others || way == Transit && peak[box] < n {
			t.Errorf("%s: %d flows at most, of which the search makes %d", box, peak[box], n)
		}
	}
	if _, ok, err := m.until(t.Context(), way, recovery); err != nil || !ok {
		t.Errorf("pings do not go by %s: %v", way, err)
	}
	t.Logf("by chance: %s %s; flows at most %v", way, why, peak)
}

// remembers waits until the right site has written down its direct link's port: an agent that dies within a second of a link's first
// packet may have to look for it again.
func (m *Mesh) remembers(t *testing.T) {
	t.Helper()
	ends, err := m.links(t.Context())
	must(t, err)
	written, err := poll(t.Context(), recovery, func() (bool, error) {
		blob, _ := os.ReadFile(filepath.Join(m.Lab.Dir(), "nodes", right, "state", "cache", "links"))
		return !slices.ContainsFunc(ends[1], func(l api.Link) bool {
			return up(l) && !strings.Contains(string(blob), fmt.Sprintf(`"port":%d,`, l.LocalPort))
		}), nil
	})
	if err != nil || !written {
		t.Fatalf("%s has not written down its link: %v", right, err)
	}
}

// ports tells the direct link's local ports and endpoints at both ends.
func (m *Mesh) ports(t *testing.T) (s string) {
	t.Helper()
	ends, err := m.links(t.Context())
	must(t, err)
	for _, links := range ends {
		for _, l := range links {
			if up(l) {
				s += fmt.Sprintf("%d to %s at %s; ", l.LocalPort, l.Peer, l.Endpoint)
			}
		}
	}
	return s
}
