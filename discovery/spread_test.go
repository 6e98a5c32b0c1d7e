package discovery

import (
	"errors"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// The figures that are published, and those of a small case that can be counted.
func TestSpreadOdds(t *testing.T) {
	for _, c := range []struct {
		sockets, probes int
		want, off       float64
	}{
		{256, 1024, 0.983, 0.001},
		{SpreadSockets, SpreadProbes, 0.8535, 0.0001},
		{1, 1, 1.0 / spreadPorts, 1e-9},
		{0, 1000, 0, 0},
		{1000, 0, 0, 0},
		{spreadPorts, 1, 1, 0},
		{2, 2, 1 - float64(spreadPorts-2)*(spreadPorts-3)/(spreadPorts*(spreadPorts-1)), 1e-9},
	} {
		if got := SpreadOdds(c.sockets, c.probes); math.Abs(got-c.want) > c.off {
			t.Errorf("%d sockets, %d probes: %v, want %v", c.sockets, c.probes, got, c.want)
		}
	}
	if got := SpreadOdds(SpreadSockets, SpreadProbes); math.Abs(got-(1-math.Exp(-float64(SpreadSockets)*SpreadProbes/spreadPorts))) > 0.01 {
		t.Errorf("%v is far from the estimate in the comment", got)
	}
}

// Ports are tried once each, all over the range, and in an order of the seed's own.
func TestSpreadSample(t *testing.T) {
	a, b := spreadSample(rand.New(rand.NewPCG(1, 1))), spreadSample(rand.New(rand.NewPCG(2, 1)))
	seen, upper, same := map[uint16]bool{}, 0, 0
	for i, p := range a {
		if seen[p] || p < spreadPortFirst {
			t.Errorf("port %d again, or none of theirs", p)
		}
		seen[p] = true
		if p >= 1<<15 {
			upper++
		}
		if p == b[i] {
			same++
		}
	}
	if len(a) != SpreadProbes || upper < SpreadProbes/3 || upper > 2*SpreadProbes/3 || same > 5 {
		t.Errorf("%d ports, %d in the upper half, %d as by another seed", len(a), upper, same)
	}
}

func TestCanSpread(t *testing.T) {
	up := func(n NAT, forwarded ...netip.Addr) Uplink {
		return Uplink{NAT: n, NAT6: NATAbsent, Forwarded: forwarded}
	}
	for _, c := range []struct {
		a, b Uplink
		want bool
	}{
		{up(NATEasy), up(NATSymmetric), true},
		{up(NATEasyPortChanged), up(NATSymmetric), true},
		{up(NATSymmetric), up(NATSymmetric), false},
		{up(NATEasy), up(NATEasy), false},
		{up(NATNone), up(NATSymmetric), false},
		{up(NATBlocked), up(NATSymmetric), false},
		{up(NATUnknown), up(NATSymmetric), false},
		{up(NATEasy, netip.MustParseAddr("203.0.113.1")), up(NATSymmetric), false}, // is let in anyway
	} {
		if got, back := CanSpread(c.a, c.b), CanSpread(c.b, c.a); got != c.want || back != c.want {
			t.Errorf("%s and %s: %v, %v", c.a.NAT, c.b.NAT, got, back)
		}
	}
}

// A node that the budget knows too many addresses of sends nothing more by chance.
func TestSpreadBudget(t *testing.T) {
	var b SpreadBudget
	now := time.Unix(2_000_000_000, 0)
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}) }
	for i := range 10 {
		at := now.Add(time.Duration(i) * 6 * time.Hour)
		if got, want := b.Allow(at, addr(1)), i%4 < 2; got != want {
			t.Errorf("after %s: %v", at.Sub(now), got)
		}
	}
	now = now.Add(100 * time.Hour)
	for i := range maxTargets {
		b.last[addr(i)] = []time.Time{now}
	}
	if b.Allow(now, netip.MustParseAddr("192.0.2.1")) {
		t.Error("there is no end to addresses")
	}
	if !b.Allow(now.Add(day), netip.MustParseAddr("192.0.2.1")) || len(b.last) != 1 {
		t.Errorf("%d addresses of yesterday are remembered", len(b.last)-1)
	}
}

// The address must be named by the peer and seen by others.
func TestPlanSpread(t *testing.T) {
	at, seen := ap("203.0.113.5:40001"), netip.MustParseAddr("203.0.113.5")
	ours, theirs := testOffer(), testOffer()
	ours.NAT, theirs.NAT = NATSymmetric, NATEasy
	theirs.Candidates = []Candidate{{CandidateReflexive, ap("192.0.2.1:7")}, {CandidateHost, at}, {CandidateReflexive, at}}
	if s, err := PlanSpread(ours, theirs, []netip.Addr{seen}); err != nil || !s.Hard || s.Peer != at {
		t.Errorf("%+v, %v", s, err)
	}
	ours.NAT, theirs.NAT = theirs.NAT, ours.NAT
	if s, err := PlanSpread(ours, theirs, []netip.Addr{seen}); err != nil || s.Hard || s.Peer != netip.AddrPortFrom(seen, 0) {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := PlanSpread(ours, theirs, []netip.Addr{netip.MustParseAddr("203.0.113.6")}); !errors.Is(err, ErrSpread) {
		t.Errorf("%+v, %v", s, err)
	}
}

// An end that was held up catches up slowly, and still sends all.
func TestSpreadCatchesUpSlowly(t *testing.T) {
	start := time.Unix(2_000_000_000, 0)
	for _, s := range []Spread{{Peer: ap("203.0.113.5:0")}, {Hard: true, Peer: ap("203.0.113.5:40001")}} {
		c := NewCheck(CheckPlan{Controlling: !s.Hard, Spread: &s, Start: start, Deadline: start.Add(SpreadTime)})
		var times []time.Time
		for now, r := start, (CheckReady{}); !r.Done; now = r.Deadline {
			if now.Equal(start.Add(100 * time.Millisecond)) {
				now = now.Add(1400 * time.Millisecond)
			}
			r = c.Tick(now)
			for range r.Send {
				times = append(times, now)
			}
		}
		if want := map[bool]int{false: SpreadProbes, true: 2 * SpreadSockets}[s.Hard]; len(times) != want {
			t.Errorf("hard %v: %d packets, want %d", s.Hard, len(times), want)
		}
		const window = 100 * time.Millisecond
		most := int(window/spreadEvery) + spreadBurst + 1
		for i := 0; i+most < len(times); i++ {
			if took := times[i+most].Sub(times[i]); took < window {
				t.Fatalf("hard %v: %d packets within %s", s.Hard, most+1, took)
			}
		}
	}
}
