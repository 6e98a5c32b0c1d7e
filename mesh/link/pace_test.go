package link

import (
	"testing"
	"time"

	"guywire/routing/wire"
)

// TestProbeBytes: what links cost on the wire, with WireGuard, UDP and IPv4,
// both directions together.
func TestProbeBytes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pace    Pace
		metered bool
		most    float64 // bit/s
	}{
		{Idle, false, 2_000},
		{Backup, false, 185_000},
		{Carrying, false, 245_000},
		{Idle, true, 1_000},
		{Backup, true, 10_000},
		{Carrying, true, 40_000},
	} {
		for _, loss := range []float64{0, 0.01} {
			p := newPair()
			p.loss = [2]float64{loss, loss}
			for _, l := range p.ends {
				l.SetMTU(1420)
			}
			p.pace(c.pace, c.metered)
			p.run(time.Minute) // with the search for the MTU
			p.forget()
			span := 500 * paces[p.ends[0].class()][c.pace]
			p.run(span)
			rate := 8 * float64(p.bytes[0]+p.bytes[1]) / span.Seconds()
			t.Logf("metered %-5t %-8s loss %.0f %%: %.2f kbit/s, %.3f probes a second and end", c.metered, c.pace, 100*loss, rate/1000, float64(p.sent[0]+p.sent[1])/2/span.Seconds())
			if most := c.most * (1 + 20*loss); rate > most {
				t.Errorf("metered %t, %s, loss %.0f %%: %.0f bit/s, at most %.0f wanted", c.metered, c.pace, 100*loss, rate, most)
			}
		}
	}
}

// A faster pace begins at once at both ends, although only one asks for it.
func TestFasterPaceIsImmediate(t *testing.T) {
	for _, metered := range []bool{false, true} {
		p := newPair()
		p.pace(Idle, metered)
		p.run(20*time.Second + 700*time.Millisecond)
		p.ends[0].SetPace(p.now, Carrying, metered, 0)
		p.run(2*p.delay + 2*time.Millisecond)
		want := paces[p.ends[0].class()][Carrying]
		for i, l := range p.ends {
			if l.announced != want {
				t.Errorf("end %d probes every %s a round trip after the other began to carry", i, l.announced)
			}
		}
		if l := p.ends[0]; l.interval != want {
			t.Errorf("end 0 still counts with a probe each %s", l.interval)
		}
	}
}

// A slower pace begins when the far end knows of it: the loss of the news makes
// no silence.
func TestSlowerPaceWaitsToBeKnown(t *testing.T) {
	p := newPair()
	p.ends[1].SetPace(p.now, Idle, false, 500*time.Millisecond) // it seldom answers
	p.run(5 * time.Second)
	p.forget()
	p.ends[0].SetPace(p.now, Idle, false, 0)
	p.loss[0] = 1
	p.run(2*15*time.Millisecond - 2*time.Millisecond)
	p.loss[0] = 0
	p.run(10 * time.Second)
	if len(p.history) > 0 {
		t.Errorf("%v", p.history)
	}
	if p.sent[0] > 60 || p.ends[0].announced != paces[0][Idle] {
		t.Errorf("%d probes in ten idle seconds", p.sent[0])
	}
}

// When traffic begins on an idle link whose path has died, the questions
// without answer show it, long before the slow pace would.
func TestFasterPaceFindsDeadPath(t *testing.T) {
	p := newPair()
	p.pace(Idle, false)
	p.run(20*time.Second + 100*time.Millisecond)
	p.cut()
	p.ends[0].SetPace(p.now, Carrying, false, 0)
	p.run(2*p.delay + 3*15*time.Millisecond + 2*minRoom)
	if s := p.ends[0].State(); s != Suspect {
		t.Errorf("%s", s)
	}
}

// A round trip that has grown is no missing answer.
func TestFasterPaceOnALongerPath(t *testing.T) {
	p := newPair()
	p.pace(Idle, false)
	p.run(20 * time.Second)
	p.forget()
	p.delay = 100 * time.Millisecond
	p.run(7 * time.Second)
	p.pace(Carrying, false)
	p.run(5 * time.Second)
	if len(p.history) > 0 {
		t.Errorf("%v", p.history)
	}
}

// A far end that has been silent for long is asked once a second.
func TestSilentLinkIsProbedSlowly(t *testing.T) {
	p := newPair()
	p.run(5 * time.Second)
	p.cut()
	p.run(time.Minute)
	p.forget()
	p.run(time.Minute)
	if n := p.sent[0]; n < 55 || n > 65 {
		t.Errorf("%d probes in a minute", n)
	}
}

// Changes of pace, however often, whoever makes them, on a path with loss,
// make no silence.
func TestChangesOfPaceAreNoSilence(t *testing.T) {
	t.Parallel()
	for _, loss := range []float64{0, 0.05} {
		p := newPair()
		p.delay = 60 * time.Millisecond
		p.run(2 * time.Second)
		p.forget()
		p.loss = [2]float64{loss, loss}
		changes := 0
		for range 1500 {
			l := p.ends[p.rng.IntN(2)]
			l.SetPace(p.now, Pace(p.rng.IntN(3)), p.rng.IntN(4) == 0, time.Duration(p.rng.Int64N(int64(40*time.Millisecond))))
			changes++
			p.run(time.Duration(p.rng.ExpFloat64() * float64(400*time.Millisecond)))
		}
		suspects := p.entered[0][Suspect] + p.entered[1][Suspect]
		t.Logf("loss %.0f %%: %d suspicions in %d changes and %s", 100*loss, suspects, changes, p.now.Sub(start).Round(time.Second))
		p.never(t, Down)
		if loss == 0 && suspects > 0 {
			t.Errorf("%s", p.history[0])
		}
		if suspects > 40 { // a few a minute are the loss's
			t.Errorf("%d suspicions", suspects)
		}
	}
}

// The budget is kept against the far end's wish.
func TestFloor(t *testing.T) {
	p := newPair()
	floor := Floor(8, 8*ProbeBytes*10)
	if floor != 100*time.Millisecond {
		t.Fatalf("a floor of %s for ten probes a second", floor)
	}
	if Floor(8, 0) != 0 {
		t.Error("no budget is no bound")
	}
	p.ends[0].SetPace(p.now, Backup, false, floor)
	p.run(5 * time.Second)
	p.forget()
	p.run(10 * time.Second)
	if n := p.sent[0]; n < 95 || n > 105 {
		t.Errorf("%d probes in ten seconds at 100 ms", n)
	}
	if n := p.sent[1]; n < 600 {
		t.Errorf("the other end, without budget, sends %d", n)
	}
}

// Probes of fast links leave on the node's grid: all links of a node in one go.
func TestGrid(t *testing.T) {
	a, b := New(start, true, 3*time.Millisecond), New(start.Add(time.Second+123*time.Microsecond), true, 3*time.Millisecond)
	b.born = a.born
	for _, l := range []*Link{a, b} {
		l.spoke, l.announced, l.every, l.good = true, 15*time.Millisecond, 15*time.Millisecond, 1
		l.state = Up
		l.demand.pace = Carrying
	}
	now := start.Add(2 * time.Second)
	a.advance(now)
	b.advance(now.Add(2 * time.Millisecond))
	if !a.nextSend.Equal(b.nextSend) {
		t.Errorf("next probes are %s apart", b.nextSend.Sub(a.nextSend))
	}
	for range 1000 {
		now = now.Add(time.Millisecond + 77*time.Microsecond)
		a.advance(now)
		if gap := a.nextSend.Sub(now); gap < a.every/4 || gap > a.every*5/4 {
			t.Fatalf("a gap of %s at %s", gap, a.every)
		}
	}
}

// Traffic on an idle link makes it fast, without anybody's word.
func TestTrafficOnAnIdleLink(t *testing.T) {
	p := newPair()
	p.pace(Idle, false)
	p.polls = 500 * time.Millisecond
	p.run(10 * time.Second)
	if p.ends[0].announced != paces[0][Idle] {
		t.Fatalf("an idle link is probed every %s", p.ends[0].announced)
	}
	p.flow[0] = 20_000
	p.run(1100 * time.Millisecond)
	for i, l := range p.ends {
		if l.announced != paces[0][Carrying] {
			t.Errorf("end %d probes a busy link every %s", i, l.announced)
		}
	}
	p.flow[0] = 0
	p.run(10 * time.Second)
	if p.ends[0].announced != paces[0][Idle] {
		t.Errorf("after the traffic it is probed every %s", p.ends[0].announced)
	}
	if len(p.history) > 2 {
		t.Errorf("%v", p.history)
	}
}

// What gossip exchanges now and then does not make an idle link fast.
func TestBurstOnAnIdleLink(t *testing.T) {
	p := newPair()
	p.pace(Idle, false)
	p.polls = idleCount
	p.run(10 * time.Second)
	for range 20 {
		p.flow = [2]uint64{200_000, 200_000}
		p.run(busySettle / 2)
		p.flow = [2]uint64{}
		p.run(2 * busyPause)
	}
	for i, l := range p.ends {
		if l.announced != paces[0][Idle] {
			t.Errorf("end %d probes every %s", i, l.announced)
		}
	}
	if sent := p.sent[0]; sent > 60 {
		t.Errorf("%d probes in a minute", sent)
	}
}

// Dense traffic replaces probes where the counters are read often enough.
func TestDenseTrafficReplacesProbes(t *testing.T) {
	for _, c := range []struct {
		polls time.Duration
		least int // probes in ten seconds
		most  int
	}{
		{0, 95, 105},
		{50 * time.Millisecond, 24, 40},
		{500 * time.Millisecond, 95, 110},
	} {
		p := newPair()
		p.pace(Carrying, true)
		p.polls, p.flow = c.polls, [2]uint64{1e6, 1e6}
		p.run(5 * time.Second)
		p.forget()
		p.run(10 * time.Second)
		if n := p.sent[0]; n < c.least || n > c.most {
			t.Errorf("counters each %s: %d probes in ten seconds", c.polls, n)
		}
		if len(p.history) > 0 {
			t.Errorf("counters each %s: %v", c.polls, p.history)
		}
	}
}

// Traffic that arrives proves the path although every probe is lost: the link
// is headless, not down.
func TestTrafficIsProofOfLife(t *testing.T) {
	p := newPair()
	p.polls, p.flow = 50*time.Millisecond, [2]uint64{1e6, 1e6}
	p.run(3 * time.Second)
	p.agent[1], p.kernel[1] = false, false
	p.run(10 * time.Second)
	if s := p.ends[0].State(); s != Headless {
		t.Errorf("%s", s)
	}
	p.never(t, Down)
	p.flow[1] = 0
	p.run(2 * time.Second)
	if s := p.ends[0].State(); s != Down {
		t.Errorf("%s when the traffic has ended", s)
	}
}

// Traffic that leaves while nothing comes is a suspicion, until a probe comes.
func TestOneWayTraffic(t *testing.T) {
	p := newPair()
	p.pace(Carrying, true)
	p.run(3 * time.Second)
	l := p.ends[0]
	at := l.heard
	l.Traffic(at, 1000, 1000)
	early := l.suspectAt()
	l.Traffic(at.Add(120*time.Millisecond), 1000, 90_000)
	if l.oneWay.IsZero() || !l.suspectAt().Before(early) {
		t.Fatal("nothing came while much left, and nothing follows from it")
	}
	if due := l.Deadline(at.Add(120 * time.Millisecond)); due.After(at.Add(130 * time.Millisecond)) {
		t.Errorf("no probe asks at once: the next deadline is after %s", due.Sub(at))
	}
	l.Receive(at.Add(130*time.Millisecond), 7, wire.Probe{Seq: l.rxSeq + 1, Interval: 100_000, Flags: wire.Hears, EchoSeq: l.seq})
	if !l.oneWay.IsZero() {
		t.Error("a probe came and the suspicion stays")
	}
}

// Counters that begin anew (the device was made again) prove nothing.
func TestCountersThatGoBack(t *testing.T) {
	p := newPair()
	p.polls = 50 * time.Millisecond
	p.run(3 * time.Second)
	heard := p.ends[0].heard
	p.counts[0].rx, p.counts[0].tx = 5, 5
	p.ends[0].Traffic(p.now, 5, 5)
	if p.ends[0].heard != heard || !p.ends[0].oneWay.IsZero() {
		t.Error("a reset of the counters is taken for traffic")
	}
}
