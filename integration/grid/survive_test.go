package grid

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/world"
)

// recovery is how long a pair may take to be direct again. It is no measure: the seconds are logged.
const recovery = time.Minute

// pair is two kinds, as in a cell.
type pair struct{ left, right string }

func (p pair) String() string { return p.left + "~" + p.right }

func (p pair) network() *lab.Network { return network(kinds[p.left], kinds[p.right]) }

// together makes a mesh in which the two sites have a direct link within the limit.
func together(t *testing.T, n *lab.Network, within time.Duration) *mesh {
	t.Helper()
	m := joined(t, n)
	m.becomes(t, "at first", Direct, within)
	return m
}

// joined makes a mesh with the two sites in it.
func joined(t *testing.T, n *lab.Network) *mesh {
	t.Helper()
	needLab(t)
	m, err := build(t.Context(), options(), n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			kept := filepath.Join(os.TempDir(), "guywire-failed-"+m.Lab.Name())
			t.Logf("what the nodes left, keys too, is kept in %s (%v)", kept, m.keep(kept))
		}
		if err := m.close(); err != nil {
			t.Error(err)
		}
	})
	for _, site := range []string{left, right} {
		if err := m.join(t.Context(), site); err != nil {
			t.Fatal(err)
		}
		if err := m.surveyed(t.Context(), site); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// becomes waits until the pair's traffic takes the way, and logs the seconds since the event, which is now: until any ping was
// answered, and until the way was that.
func (m *mesh) becomes(t *testing.T, event string, way Way, within time.Duration) {
	t.Helper()
	since := time.Now()
	var answered time.Duration
	var v verdict
	var last trace
	ok, err := poll(t.Context(), within, func() (bool, error) {
		ends, err := m.links(t.Context())
		if err != nil {
			return false, err
		}
		v = judge(time.Now(), ends, verdict{})
		if last, err = m.trace(t.Context()); err != nil {
			return false, err
		}
		if answered == 0 && last.Answered > 0 {
			answered = time.Since(since)
		}
		return v.way == way && last.takes(way), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		t.Fatalf("%s: not %s in %s; pings first answered after %.1f s, at last %+v; the links say %s %s", event, way, within, answered.Seconds(), last, v.way, v.why)
	}
	t.Logf("%s: pings answered after %.1f s, %s after %.1f s", event, answered.Seconds(), way, time.Since(since).Seconds())
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
	for _, p := range []pair{{"easy", "easy"}, {"easy", "open"}, {"open", "open"}} {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			n := p.network()
			for _, h := range helpers {
				n.Nodes[h].Uplinks[0].Delay = 80 * time.Millisecond
			}
			for _, site := range []string{left, right} {
				n.Nodes[boxOf(site)].Uplinks[0].Delay = 2 * time.Millisecond
			}
			together(t, n, limit) // a later attempt may be luck
		})
	}
}

// TestNATReboot switches the right site's box off and on: it forgets its mappings, and a box that chooses ports chooses others.
func TestNATReboot(t *testing.T) {
	for _, p := range []pair{{"easy", "easy"}, {"easy", "port"}, {"public", "symmetric"}} {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			m := together(t, p.network(), recovery)
			must(t, m.Lab.Reboot(t.Context(), boxOf(right), time.Second))
			m.becomes(t, "the box is back", Direct, recovery)
		})
	}
}

// TestAddressChange gives the right site's box, or itself, another address.
func TestAddressChange(t *testing.T) {
	for p, link := range map[pair]string{
		{"easy", "easy"}:     boxOf(right) + ":wan",
		{"easy", "port"}:     boxOf(right) + ":wan",
		{"public", "public"}: right + ":isp1",
	} {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			m := together(t, p.network(), recovery)
			_, err := m.Lab.Readdress(t.Context(), link)
			must(t, err)
			m.becomes(t, "the address has changed", Direct, recovery)
		})
	}
}

// TestMappingExpiry keeps the right site silent until its box has forgotten it. The box then chooses another port, so that the
// left site's filter knows nothing of what comes.
func TestMappingExpiry(t *testing.T) {
	t.Parallel()
	short := kinds["port"]
	short.box.MappingTimeout = 3 * time.Second
	m := together(t, network(kinds["easy"], short), recovery)
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
	m.becomes(t, "the mappings have expired", Direct, recovery)
}

// TestSuspend stops the right site for longer than its peers wait for it.
func TestSuspend(t *testing.T) {
	t.Parallel()
	m := together(t, pair{"easy", "port"}.network(), recovery)
	must(t, m.Lab.Suspend(t.Context(), right, 15*time.Second, 0))
	m.becomes(t, "awake", Direct, recovery)
}

// TestRestartReusesPort restarts all of the right site's programs. Its tunnel has the port that it had, for which its box and
// its peer's still have mappings.
func TestRestartReusesPort(t *testing.T) {
	t.Parallel()
	m := together(t, pair{"easy", "easy"}.network(), recovery)
	before := m.ports(t)
	must(t, m.Lab.KillAll(t.Context(), right, 0))
	_, err := m.Lab.Start(t.Context(), right, "", nil)
	must(t, err)
	m.becomes(t, "restarted", Direct, recovery)
	if after := m.ports(t); after != before {
		t.Errorf("the link has other ports than before the restart: %s, not %s", after, before)
	}
}

// TestCarrierThenUDP lets UDP through a firewall that dropped it, and drops it again: TLS carries the link for exactly as long
// as nothing better does.
func TestCarrierThenUDP(t *testing.T) {
	t.Parallel()
	m := joined(t, pair{"public", "blocked"}.network())
	m.becomes(t, "at first", Carrier, recovery)
	must(t, m.Lab.UDP(t.Context(), boxOf(right), true))
	m.becomes(t, "UDP passes", Direct, 2*recovery)
	must(t, m.Lab.UDP(t.Context(), boxOf(right), false))
	m.becomes(t, "UDP is dropped again", Carrier, 2*recovery)
}

// TestUplinkChange moves the right site from one uplink to another, as when a cable is put elsewhere: from behind a box to a
// public address, and back.
func TestUplinkChange(t *testing.T) {
	t.Parallel()
	n := pair{"easy", "easy"}.network()
	other := &lab.Uplink{To: internet, Properties: wire}
	n.Nodes[right].Uplinks = append(n.Nodes[right].Uplinks, other)
	m := joined(t, n)
	first, second := right+":isp1", right+":isp2"
	for i, event := range []string{"at first", "the other uplink", "the first again"} {
		must(t, m.Lab.Carrier(t.Context(), []string{first, second}[i%2], true))
		must(t, m.Lab.Carrier(t.Context(), []string{second, first}[i%2], false))
		m.becomes(t, event, Direct, recovery)
	}
}

// ports tells the direct link's local ports and endpoints at both ends.
func (m *mesh) ports(t *testing.T) (s string) {
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
