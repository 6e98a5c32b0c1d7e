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

// mesh makes a mesh in which the two sites have a direct link within the limit, and closes it at the end of the test.
func mesh(t *testing.T, n *lab.Network, within time.Duration) *Mesh {
	t.Helper()
	needLab(t)
	m, err := together(t.Context(), options(), n, within)
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

// becomes waits until the pair's traffic takes a direct link, and logs the seconds since the event, which is now.
func (m *Mesh) becomes(t *testing.T, event string) {
	t.Helper()
	r, err := m.recovers(t.Context(), recovery)
	tell(t, event, r, err)
}

func tell(t *testing.T, event string, r Recovery, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", event, err)
	}
	t.Logf("%s: pings answered after %.1f s, by a direct link after %.1f s", event, r.Ping, r.Direct)
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
			tell(t, "the box is back", r, err)
		})
	}
}

// TestAddressChange gives the right site's box, or itself, another address.
func TestAddressChange(t *testing.T) {
	for _, p := range []Cell{{Left: "easy", Right: "easy"}, {Left: "easy", Right: "port"}, {Left: "public", Right: "public"}} {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			r, err := mesh(t, p.network(), recovery).Survive(t.Context(), Readdress, recovery)
			tell(t, "the address has changed", r, err)
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
	m.becomes(t, "the mappings have expired")
}

// TestSuspend stops the right site for longer than its peers wait for it.
func TestSuspend(t *testing.T) {
	t.Parallel()
	m := mesh(t, Cell{Left: "easy", Right: "port"}.network(), recovery)
	must(t, m.Lab.Suspend(t.Context(), right, 15*time.Second, 0))
	m.becomes(t, "awake")
}

// TestRestartReusesPort restarts all of the right site's programs. Its tunnel has the port that it had, for which its box and
// its peer's still have mappings.
func TestRestartReusesPort(t *testing.T) {
	t.Parallel()
	m := mesh(t, Cell{Left: "easy", Right: "easy"}.network(), recovery)
	before := m.ports(t)
	must(t, m.Lab.KillAll(t.Context(), right, 0))
	_, err := m.Lab.Start(t.Context(), right, "", nil)
	must(t, err)
	m.becomes(t, "restarted")
	if after := m.ports(t); after != before {
		t.Errorf("the link has other ports than before the restart: %s, not %s", after, before)
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
