package core

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/discovery"
	"guywire/mesh"
)

var spreadLink = mesh.LinkID{Peer: id(2), Local: "isp1", Remote: "a"}

// spreader is a node behind a symmetric NAT whose only neighbour's is of that kind.
func spreader(after time.Duration, theirs discovery.NAT) *Node {
	n := node(state(2, 1, 2))
	n.cfg.SpreadAfter = after
	n.Step(start, Surveyed{Uplink: discovery.Uplink{Name: "isp1", NAT: discovery.NATSymmetric, NAT6: discovery.NATAbsent}})
	f := facts(2, "a")
	f.Uplinks[0].NAT, f.Uplinks[0].NAT6 = theirs, discovery.NATAbsent
	n.Step(start, FactsChanged{Facts: f})
	return n
}

// follow fails each attempt of the link a second after its start, and tells when each
// began; those by chance ports are negative. busy: the far end has no time for these.
func follow(n *Node, until time.Duration, busy bool) (begun []time.Duration) {
	now, spread := start, false
	r := n.Step(now, AttemptDone{Link: spreadLink, Err: "nothing arrived", Hopeless: true})
	for now.Before(start.Add(until)) {
		for _, a := range r.Attempt {
			if a.Link == spreadLink {
				at := now.Sub(start)
				if spread = a.Spread; spread {
					at = -at
				}
				begun = append(begun, at)
				now = now.Add(time.Second)
				r = n.Step(now, AttemptDone{Link: spreadLink, Err: "no match", Hopeless: !spread || !busy, Spread: spread && !busy})
			}
		}
		now = now.Add(time.Second)
		r = n.Step(now, Tick{})
	}
	return begun
}

// Chance ports are tried when attempts have been hopeless for a while, twice a day, and
// only where they may help; the usual attempts go on.
func TestSpreadIsLateAndRare(t *testing.T) {
	const after = 10 * time.Minute
	count := func(begun []time.Duration) (spread, usual int) {
		for _, b := range begun {
			if b < 0 {
				spread++
			} else {
				usual++
			}
		}
		return spread, usual
	}
	begun := follow(spreader(after, discovery.NATEasy), 20*time.Hour, false)
	if len(begun) < 3 || begun[0] > -after || begun[0] < -2*after || begun[1] < 0 {
		t.Fatalf("begun at %v", begun)
	}
	if spread, usual := count(begun); spread != maxSpreads || usual < 60 {
		t.Errorf("%d by chance, %d others: %v", spread, usual, begun)
	}
	if spread, _ := count(follow(spreader(after, discovery.NATEasy), 50*time.Hour, false)); spread < 2*maxSpreads || spread > 3*maxSpreads {
		t.Errorf("%d in two days", spread)
	}
	if spread, _ := count(follow(spreader(after, discovery.NATEasy), 5*time.Hour, true)); spread <= maxSpreads {
		t.Errorf("%d that the far end had no time for: they count", spread)
	}
	for what, n := range map[string]*Node{
		"off": spreader(0, discovery.NATEasy), "hard and hard": spreader(after, discovery.NATSymmetric), "public": spreader(after, discovery.NATNone),
	} {
		if spread, _ := count(follow(n, 5*time.Hour, false)); spread > 0 {
			t.Errorf("%s: %d by chance", what, spread)
		}
	}
}

// A change of the network lets hope for the usual attempts, and the wait begins anew.
func TestSpreadWaitsAnew(t *testing.T) {
	n := spreader(10*time.Minute, discovery.NATEasy)
	n.Step(start, AttemptDone{Link: spreadLink, Err: "nothing arrived", Hopeless: true})
	n.Step(start.Add(time.Minute), Surveyed{Uplink: discovery.Uplink{Name: "isp1", NAT: discovery.NATSymmetric, NAT6: discovery.NATAbsent}, Resumed: true})
	r := n.Step(start.Add(16*time.Minute), Tick{})
	if slices.ContainsFunc(r.Attempt, func(a Attempt) bool { return a.Spread }) {
		t.Errorf("begun: %+v", r.Attempt)
	}
}

// One search is under way at a time: that of another link waits.
func TestOneSpreadAtATime(t *testing.T) {
	n := spreader(10*time.Minute, discovery.NATEasy)
	n.Step(start, Surveyed{Uplink: discovery.Uplink{Name: "isp2", NAT: discovery.NATSymmetric, NAT6: discovery.NATAbsent}})
	other := mesh.LinkID{Peer: id(2), Local: "isp2", Remote: "a"}
	for _, l := range []mesh.LinkID{spreadLink, other} {
		n.Step(start, AttemptDone{Link: l, Err: "nothing arrived", Hopeless: true})
	}
	var begun []mesh.LinkID
	step := func(now time.Time, ev Event) {
		for _, a := range n.Step(now, ev).Attempt {
			if a.Spread {
				begun = append(begun, a.Link)
			}
		}
	}
	at := start.Add(16 * time.Minute)
	step(at, Tick{})
	step(at.Add(time.Minute), Tick{})
	if len(begun) != 1 {
		t.Fatalf("at once: %v", begun)
	}
	step(at.Add(2*time.Minute), AttemptDone{Link: begun[0], Err: "no match", Hopeless: true, Spread: true})
	step(at.Add(4*time.Minute), Tick{})
	if len(begun) != 2 || begun[0] == begun[1] {
		t.Errorf("begun: %v", begun)
	}
}

// What was found is a link like others, and it is said how it was found.
func TestSpreadMakesALink(t *testing.T) {
	n := spreader(10*time.Minute, discovery.NATEasy)
	r := n.Step(start, AttemptDone{Link: spreadLink, Spread: true, Port: 51800, Endpoint: netip.MustParseAddrPort("203.0.113.9:4711"), Class: discovery.ClassTranslated})
	if !slices.ContainsFunc(r.Facts, func(f Fact) bool { return f.Kind == LinkMade && strings.Contains(f.Cause, "chance ports") }) {
		t.Errorf("%+v", r.Facts)
	}
}

// An endpoint that moves is known to have moved, so that nobody vouches for it at once.
func TestRoamedIsNoted(t *testing.T) {
	n := node(state(2, 1, 2))
	n.Step(start, FactsChanged{Facts: facts(2, "a")})
	l := made(n, 2)
	device := n.entries[l].rec.Device
	at := func(after time.Duration, endpoint string) time.Time {
		n.Step(start.Add(after), Measured{Tunnels: map[string]Traffic{device: {Endpoint: netip.MustParseAddrPort(endpoint)}}})
		for _, v := range n.Links() {
			if v.Record.Link == l {
				return v.Roamed
			}
		}
		t.Fatal("no such link")
		return time.Time{}
	}
	for _, c := range []struct {
		after    time.Duration
		endpoint string
		want     time.Duration
	}{{time.Second, "203.0.113.9:1", time.Second}, {9 * time.Second, "203.0.113.9:1", time.Second}, {10 * time.Second, "203.0.113.9:2", 10 * time.Second}} {
		if got := at(c.after, c.endpoint); !got.Equal(start.Add(c.want)) {
			t.Errorf("after %s at %s: since %s", c.after, c.endpoint, got.Sub(start))
		}
	}
}
