package link

import (
	"flag"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var hours = flag.Float64("hours", 0.1, "virtual hours of each path in TestLossAlone and TestNoiseIsNoNews")

// detection gives how long after a cut end 0 took to suspect, sorted.
func detection(t *testing.T, cuts int, prepare func(*pair), state State) []time.Duration {
	t.Helper()
	out := make([]time.Duration, 0, cuts)
	for i := range cuts {
		p := newPair()
		p.rng = rand.New(rand.NewPCG(uint64(i), 2))
		p.delay = 100 * time.Microsecond
		prepare(p)
		p.run(3*time.Second + time.Duration(p.rng.Int64N(int64(slowest))))
		p.want(t, Up, Up)
		p.cut()
		at := p.now
		for deadline := p.now.Add(time.Minute); p.ends[0].State() < state; p.run(time.Millisecond) {
			if p.now.After(deadline) {
				t.Fatalf("a cut was not seen in a minute; %s", p.ends[0].State())
			}
		}
		out = append(out, p.now.Sub(at))
	}
	slices.Sort(out)
	return out
}

// TestDetection pins how quickly a silent cut is seen at each pace. The times
// are virtual, so they are the same on every machine.
func TestDetection(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		prepare     func(*pair)
		median, max time.Duration
	}{
		{"carrying", func(p *pair) { p.pace(Carrying, false) }, 45 * time.Millisecond, 55 * time.Millisecond},
		{"carrying, 10 ms of jitter", func(p *pair) { p.jitter = uniform(10 * time.Millisecond) }, 55 * time.Millisecond, 70 * time.Millisecond},
		{"carrying, traffic both ways, counters at 67 Hz", func(p *pair) {
			p.pace(Carrying, false)
			p.polls, p.flow = 15*time.Millisecond, [2]uint64{1e5, 1e5}
		}, 36 * time.Millisecond, 48 * time.Millisecond},
		{"backup", func(p *pair) { p.pace(Backup, false) }, 180 * time.Millisecond, 200 * time.Millisecond},
		{"idle", func(p *pair) { p.pace(Idle, false) }, 1300 * time.Millisecond, 2200 * time.Millisecond},
		{"metered, carrying", func(p *pair) { p.pace(Carrying, true) }, 275 * time.Millisecond, 320 * time.Millisecond},
		{"metered, carrying, dense traffic, counters at 20 Hz", func(p *pair) {
			p.pace(Carrying, true)
			p.polls, p.flow = 50*time.Millisecond, [2]uint64{1e6, 1e6}
		}, 170 * time.Millisecond, 240 * time.Millisecond},
		{"metered, backup", func(p *pair) { p.pace(Backup, true) }, 800 * time.Millisecond, 1100 * time.Millisecond},
		{"metered, idle", func(p *pair) { p.pace(Idle, true) }, 4 * time.Second, 6 * time.Second},
	} {
		got := detection(t, 40, c.prepare, Suspect)
		down := detection(t, 10, c.prepare, Down)
		median, last := got[len(got)/2], got[len(got)-1]
		t.Logf("%-52s suspect: median %s, last %s; down: median %s", c.name, median, last, down[len(down)/2])
		if median > c.median || last > c.max {
			t.Errorf("%s: median %s and last %s exceed %s and %s", c.name, median, last, c.median, c.max)
		}
	}
}

func uniform(most time.Duration) func(*rand.Rand) time.Duration {
	return func(r *rand.Rand) time.Duration { return time.Duration(r.Int64N(int64(most))) }
}

// TestLossAlone: random loss makes suspicions as the arithmetic of independent
// losses predicts, and no link goes down. Without an answering kernel the
// number of misses alone must prevent it.
func TestLossAlone(t *testing.T) {
	t.Parallel()
	for _, loss := range []float64{0.01, 0.03, 0.05, 0.10} {
		p := newPair()
		p.delay = 5 * time.Millisecond
		p.kernel = [2]bool{}
		p.run(5 * time.Second)
		p.loss = [2]float64{loss, loss}
		p.run(time.Minute)
		p.forget()
		p.run(time.Duration(*hours * float64(time.Hour)))
		suspects := p.entered[0][Suspect] + p.entered[1][Suspect]
		days := 2 * *hours / 24
		perDay := float64(24*time.Hour/paces[0][Carrying]) * math.Pow(loss, suspectMisses) * (1 - loss)
		t.Logf("loss %4.0f %%: %.0f suspicions a day and end at 15 ms, predicted %.0f (%d in %.1f h); down after %d misses, %d downs",
			100*loss, float64(suspects)/days, perDay, suspects, *hours, p.ends[0].downMisses(paces[0][Carrying]), p.entered[0][Down]+p.entered[1][Down])
		p.never(t, Down)
		// Suspicion by the far end's word counts, too: twice as many.
		if most := 2*perDay*days + 4*math.Sqrt(2*perDay*days) + 4; float64(suspects) > most {
			t.Errorf("loss %.0f %%: %d suspicions, at most %.0f expected", 100*loss, suspects, most)
		}
		if rx, tx := p.ends[0].Loss(); rx < loss/3 || rx > 3*loss+0.02 || tx < loss/3 || tx > 3*loss+0.02 {
			t.Errorf("loss %.0f %% is measured as %.1f %% and %.1f %%", 100*loss, 100*rx, 100*tx)
		}
	}
}

// A pace may be slow: loss on an idle link must not take it down either.
func TestLossAloneAtEveryPace(t *testing.T) {
	t.Parallel()
	for _, metered := range []bool{false, true} {
		for _, pace := range []Pace{Idle, Backup, Carrying} {
			p := newPair()
			p.delay = 40 * time.Millisecond
			p.kernel = [2]bool{}
			p.pace(pace, metered)
			p.run(10 * time.Second)
			p.loss = [2]float64{0.05, 0.05}
			const probes = 20_000
			p.run(probes * paces[p.ends[0].class()][pace])
			p.never(t, Down)
			t.Logf("metered %t, %s: %d suspicions in %d probes with 5 %% loss", metered, pace, p.entered[0][Suspect]+p.entered[1][Suspect], probes)
		}
	}
}

func TestDownMissesFollowLoss(t *testing.T) {
	// How many misses 1 % .. 30 % of independent loss demand, and what bursts add.
	want := func(share float64, burst int, pace time.Duration, k int) {
		t.Helper()
		l := New(start, true, 0)
		every := int(math.Round(float64(burst) / share)) // probes from burst to burst
		for n := range lossSlow {
			l.loss.push(n%every < burst)
		}
		// Only the long window is under test.
		l.loss.fast = 0
		if got := l.downMisses(pace); got < k-1 || got > k+1 {
			t.Errorf("%.0f %% in bursts of %d at %s: %d misses, want %d", 100*share, burst, pace, got, k)
		}
	}
	const slow = 40 * time.Millisecond
	want(0.01, 1, slow, 5)
	want(0.03, 1, slow, 6)
	want(0.05, 1, slow, 6)
	want(0.10, 1, slow, 8)
	want(0.30, 1, slow, 12)
	want(0.03, 2, slow, 12)
	want(0.01, 1, 15*time.Millisecond, 10) // at least 150 ms
	want(0.10, 1, 15*time.Millisecond, 10)
	want(0.30, 1, 15*time.Millisecond, 12)
	want(0.01, 1, time.Second, 5)
}

// Both agents get no CPU for 30 % of the time, up to 300 ms at a stretch, and
// the path loses 1 %: nobody goes down.
func TestStarvedEnds(t *testing.T) {
	for seed := range uint64(2) {
		p := newPair()
		p.rng = rand.New(rand.NewPCG(seed, 4))
		p.run(5 * time.Second)
		p.loss = [2]float64{0.01, 0.01}
		for i := range p.ends {
			p.guards[i] = &Guard{}
			p.stalls[i] = stall{mean: 350 * time.Millisecond, most: 300 * time.Millisecond}
		}
		p.forget()
		p.run(10 * time.Minute)
		t.Logf("%d suspicions, %d times headless, %d downs in 10 min", p.entered[0][Suspect]+p.entered[1][Suspect],
			p.entered[0][Headless]+p.entered[1][Headless], p.entered[0][Down]+p.entered[1][Down])
		p.never(t, Down)
	}
}

// A path, or a far end, that holds everything back now and then is suspected
// at first and granted the time afterwards.
func TestRoomIsLearned(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	p.hold = [2]time.Duration{time.Second, 80 * time.Millisecond}
	p.run(20 * time.Second)
	if p.entered[0][Suspect] == 0 {
		t.Error("80 ms of silence were no suspicion even at first")
	}
	p.forget()
	p.run(time.Minute)
	if len(p.history) > 0 {
		t.Errorf("%v", p.history)
	}
	p.hold = [2]time.Duration{}
	p.run(time.Minute)
	if r := p.ends[0].room; r > 2*minRoom {
		t.Errorf("%s of room after a calm minute", r)
	}
}

// A node that stalls for 400 ms and is then judged before it has read its
// sockets blames nobody.
func TestGuardExcusesOwnStall(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	p.forget()
	p.flight = nil
	p.now = p.now.Add(400 * time.Millisecond) // nothing of ours ran
	for _, l := range p.ends {
		(&Guard{at: p.now.Add(-400 * time.Millisecond)}).Watch(p.now, 400*time.Millisecond, []*Link{l})
	}
	p.run(time.Second)
	p.want(t, Up, Up)
	for _, h := range p.history {
		t.Errorf("%s", h)
	}
}

// fan is one node with several neighbours, in step.
type fan []*pair

func newFan(n int) fan {
	f := make(fan, n)
	for i := range f {
		f[i] = newPair()
		f[i].guards[0] = &Guard{}
		f[i].rng = rand.New(rand.NewPCG(uint64(i), 5))
	}
	for i, p := range f {
		for j, o := range f {
			if i != j {
				p.others[0] = append(p.others[0], o.ends[0])
			}
		}
	}
	return f
}

func (f fan) run(d time.Duration) {
	for range d / time.Millisecond {
		for _, p := range f {
			p.run(time.Millisecond)
		}
	}
}

// until runs until end 0 of every one of the pairs has a state, and says how long it took.
func (f fan) until(s State, of fan) time.Duration {
	at := f[0].now
	for slices.ContainsFunc(of, func(p *pair) bool { return p.ends[0].State() < s }) && f[0].now.Sub(at) < 10*time.Second {
		f.run(time.Millisecond)
	}
	return f[0].now.Sub(at)
}

// When all links of a node fall silent at once, judgement waits, but no longer
// than once more; when one does, it does not wait.
func TestGuardHoldsWhenAllAreSilent(t *testing.T) {
	took := func(cut int, s State) time.Duration {
		f := newFan(3)
		f.run(2 * time.Second)
		for _, p := range f[:cut] {
			p.cut()
		}
		return f.until(s, f[:cut])
	}
	for _, s := range []State{Suspect, Down} {
		one, two, all := took(1, s), took(2, s), took(3, s)
		t.Logf("%s after %s, %s and %s when one, two and all links are cut", s, one, two, all)
		if two > one+one/2 {
			t.Errorf("%s takes %s for two of three links, %s for one", s, two, one)
		}
		if all < one+one/3 || all > 2*one+20*time.Millisecond {
			t.Errorf("%s takes %s when all links are silent, %s for one", s, all, one)
		}
	}
}

// Lateness of the node's own timers widens its windows, and is forgotten.
func TestGuardForgets(t *testing.T) {
	var g Guard
	l := New(start, true, 0)
	links := []*Link{l}
	g.Watch(start, 80*time.Millisecond, links)
	if l.grace != 80*time.Millisecond {
		t.Errorf("a grace of %s after 80 ms", l.grace)
	}
	// A hundred datagrams of the same stall, read one after the other, are one
	// stall.
	l.heard = start
	for range 100 {
		g.Watch(start, 80*time.Millisecond, links)
	}
	if !l.heard.Equal(start) || l.grace != 80*time.Millisecond {
		t.Errorf("excused until %s, grace %s", l.heard, l.grace)
	}
	g.Watch(start.Add(time.Second), 0, links)
	if l.grace < 35*time.Millisecond || l.grace > 45*time.Millisecond {
		t.Errorf("a grace of %s one second later", l.grace)
	}
	g.Watch(start.Add(10*time.Second), tolerated, links)
	if l.grace > time.Millisecond {
		t.Errorf("a grace of %s ten seconds later", l.grace)
	}
}
