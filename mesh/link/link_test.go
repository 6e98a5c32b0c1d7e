package link

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"guywire/routing/wire"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// A pair is the two ends of one link and the path between them, on a virtual
// clock of one millisecond.
type pair struct {
	now     time.Time
	ends    [2]*Link
	delay   time.Duration
	loss    [2]float64 // of what end i sends
	agent   [2]bool    // end i's agent runs
	kernel  [2]bool    // end i's kernel answers echoes
	jitter  time.Duration
	rng     *rand.Rand
	flight  []packet
	history []string
}

type packet struct {
	at   time.Time
	to   int
	deed func(*Link)
}

func newPair() *pair {
	p := &pair{now: start, delay: 10 * time.Millisecond, rng: rand.New(rand.NewPCG(1, 1))}
	for i := range p.ends {
		p.ends[i] = New(start, i == 0, time.Duration(i)*7*time.Millisecond)
		p.agent[i], p.kernel[i] = true, true
	}
	return p
}

func (p *pair) send(from int, deed func(*Link)) {
	if p.rng.Float64() < p.loss[from] {
		return
	}
	d := p.delay
	if p.jitter > 0 {
		d += time.Duration(p.rng.Int64N(int64(p.jitter)))
	}
	p.flight = append(p.flight, packet{p.now.Add(d), 1 - from, deed})
}

func (p *pair) run(d time.Duration) {
	for end := p.now.Add(d); p.now.Before(end); p.now = p.now.Add(time.Millisecond) {
		before := [2]State{p.ends[0].State(), p.ends[1].State()}
		var rest []packet
		arrived := p.flight
		p.flight = nil
		for _, f := range arrived {
			if f.at.After(p.now) {
				rest = append(rest, f)
			} else if p.agent[f.to] {
				f.deed(p.ends[f.to])
			}
		}
		p.flight = append(rest, p.flight...)
		for i, l := range p.ends {
			if !p.agent[i] {
				continue
			}
			l.Tick(p.now)
			if l.Echo(p.now) && p.kernel[1-i] {
				asked := i
				if p.rng.Float64() >= p.loss[i] && p.rng.Float64() >= p.loss[1-i] {
					p.flight = append(p.flight, packet{p.now.Add(2 * p.delay), asked, func(l *Link) { l.Echoed(p.now) }})
				}
			}
			if probe, due := l.Probe(p.now, true, 0); due {
				p.send(i, func(l *Link) { l.Receive(p.now, 7, probe) })
			}
			if l.State() != before[i] {
				p.history = append(p.history, fmt.Sprintf("%s end %d: %s (%s)", p.now.Sub(start), i, l.State(), l.Reason()))
			}
			if d := l.Deadline(p.now); !d.After(p.now) {
				panic("a deadline that is not in the future")
			}
		}
	}
}

func (p *pair) want(t *testing.T, a, b State) {
	t.Helper()
	if p.ends[0].State() != a || p.ends[1].State() != b {
		t.Fatalf("ends are %s and %s, want %s and %s\n%v", p.ends[0].State(), p.ends[1].State(), a, b, p.history)
	}
}

func TestComesUpAndMeasures(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	p.want(t, Up, Up)
	for i, l := range p.ends {
		if rtt := l.RTT(); rtt < 20*time.Millisecond || rtt > 25*time.Millisecond {
			t.Errorf("end %d measures %s on a path of 20 ms", i, rtt)
		}
		if !l.Usable() {
			t.Errorf("end %d is not usable", i)
		}
		if c := l.Cost(p.now); c < 9_500 || c > 12_500 {
			t.Errorf("end %d costs %d µs on a path of 10 ms", i, c)
		}
	}
}

func TestSilentCutSuspectThenDown(t *testing.T) {
	p := newPair()
	p.run(2 * time.Second)
	p.loss = [2]float64{1, 1}
	p.run(suspectMisses*Interval + 60*time.Millisecond)
	p.want(t, Suspect, Suspect)
	p.run(3 * Interval)
	p.want(t, Down, Down)
}

// An outage is no loss: the next one is seen as quickly as the first.
func TestOutagesDoNotSlowDetection(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	for range 5 {
		p.loss = [2]float64{1, 1}
		p.run(time.Second)
		p.loss = [2]float64{}
		p.run(3 * time.Second)
		p.want(t, Up, Up)
	}
	for i, l := range p.ends {
		if n := l.downMisses(); n != minMisses {
			t.Errorf("end %d waits for %d misses on a path without loss", i, n)
		}
	}
}

func TestDownComesBackOnBothEnds(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	p.loss = [2]float64{1, 1}
	p.run(time.Second)
	p.want(t, Down, Down)
	p.loss = [2]float64{}
	p.run(returnProbes*Interval + 300*time.Millisecond)
	p.want(t, Up, Up)
}

func TestOneWayCutTakesBothEndsDown(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	p.loss = [2]float64{1, 0}
	p.run(time.Second)
	p.want(t, Down, Down)
	p.loss = [2]float64{}
	p.run(2 * time.Second)
	p.want(t, Up, Up)
}

func TestDeadAgentIsHeadlessNotDown(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	p.agent[1] = false
	p.run(5 * time.Second)
	if p.ends[0].State() != Headless || !p.ends[0].Usable() {
		t.Fatalf("%s, usable %t: its kernel forwards", p.ends[0].State(), p.ends[0].Usable())
	}
	before := p.ends[0].Cost(p.now)
	p.run(headlessPatience)
	if after := p.ends[0].Cost(p.now); after < before.Add(headlessPenalty) {
		t.Errorf("cost %d: transit should avoid a node without agent", after)
	}
	p.kernel[1] = false
	p.run(time.Second)
	if p.ends[0].State() != Down {
		t.Errorf("%s although nothing answers", p.ends[0].State())
	}
}

func TestDeadAgentNeverDownInBetween(t *testing.T) {
	p := newPair()
	p.delay = 80 * time.Millisecond
	p.run(3 * time.Second)
	p.history = nil
	p.agent[1] = false
	p.run(3 * time.Second)
	for _, h := range p.history {
		if strings.Contains(h, Down.String()) {
			t.Error(h)
		}
	}
}

func TestLossAloneDoesNotTakeALinkDown(t *testing.T) {
	for _, loss := range []float64{0.01, 0.05, 0.10} {
		p := newPair()
		p.run(time.Second)
		p.history = nil
		p.loss = [2]float64{loss, loss}
		p.run(10 * time.Minute)
		for _, h := range p.history {
			if strings.Contains(h, Down.String()) {
				t.Errorf("loss %.0f %%: %s", 100*loss, h)
			}
		}
		if rx, _ := p.ends[0].Loss(); rx < loss/3 || rx > 3*loss+0.02 {
			t.Errorf("loss %.0f %% is measured as %.1f %%", 100*loss, 100*rx)
		}
	}
}

func TestDownMissesFollowLoss(t *testing.T) {
	l := New(start, true, 0)
	if n := l.downMisses(); n != minMisses {
		t.Errorf("without loss %d", n)
	}
	for range 128 {
		l.loss.add(5) // four of five lost
	}
	if n := l.downMisses(); n != maxMisses {
		t.Errorf("with heavy loss %d", n)
	}
}

func TestStarvedAgentExcusesItsNeighbours(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	p.history = nil
	p.now = p.now.Add(400 * time.Millisecond) // nothing of ours ran
	for i := range p.ends {
		p.ends[i].Excuse(p.now, 400*time.Millisecond)
	}
	p.run(time.Second)
	p.want(t, Up, Up)
	for _, h := range p.history {
		t.Errorf("%s", h)
	}
}

// Deadlines keep the monotonic reading of the time that they are made from, so
// that a step of the wall clock moves none of them.
func TestDeadlinesKeepTheMonotonicClock(t *testing.T) {
	now := time.Now()
	l := New(now, true, time.Millisecond)
	for d := time.Duration(0); d < time.Second; d += 10 * time.Millisecond {
		l.Probe(now.Add(d), true, 0)
		if next := l.Deadline(now.Add(d)); !strings.Contains(next.String(), "m=") {
			t.Fatalf("%s has lost its monotonic reading", next)
		}
	}
}

func TestDuplicatesAndOvertakenProbesChangeNothing(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	l := *p.ends[0]
	old := wire.Probe{Seq: l.rxSeq - 3, Flags: wire.HoldsDown, Interval: 40_000}
	p.ends[0].Receive(p.now, 7, old)
	if p.ends[0].State() != Up || p.ends[0].rxAt != l.rxAt {
		t.Error("an old probe was heard")
	}
}

func TestRestartedFarEndKeepsTheVerdict(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	p.ends[0].Receive(p.now, 8, wire.Probe{Seq: 1, Interval: 40_000, Flags: wire.Hears | wire.Accepts})
	if p.ends[0].State() != Up || !p.ends[0].Usable() {
		t.Error("a new incarnation took the link down")
	}
}

func TestCostIgnoresNoiseAndFollowsSteps(t *testing.T) {
	p := newPair()
	p.jitter = time.Millisecond
	p.run(5 * time.Second)
	first, changes := p.ends[0].Cost(p.now), 0
	for range 600 {
		p.run(100 * time.Millisecond)
		if c := p.ends[0].Cost(p.now); c != first {
			changes++
			first = c
		}
	}
	if changes > 0 {
		t.Errorf("%d changes in a minute of jitter", changes)
	}
	p.delay = 40 * time.Millisecond
	for range 250 {
		p.run(100 * time.Millisecond)
		p.ends[0].Cost(p.now)
	}
	if c := p.ends[0].Cost(p.now); c < 38_000 {
		t.Errorf("cost %d µs twenty-five seconds after the path became 40 ms", c)
	}
}

// The end that is not first stays silent until it hears the other, so that the
// two ends never begin a handshake at the same moment.
func TestOnlyOneEndBegins(t *testing.T) {
	l := New(start, false, 0)
	if _, due := l.Probe(start.Add(firstAfter+Interval), true, 0); due {
		t.Error("the second end spoke first")
	}
	if _, due := l.Probe(start.Add(yieldFor), true, 0); !due {
		t.Error("the second end waits for ever")
	}
	l = New(start, false, 0)
	at := start.Add(100 * time.Millisecond)
	l.Receive(at, 1, wire.Probe{Seq: 1, Interval: 40_000})
	if _, due := l.Probe(at, true, 0); !due {
		t.Error("the second end does not answer")
	}
}
