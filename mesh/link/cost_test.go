package link

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
)

// watch runs and counts the changes of end 0's cost.
func (p *pair) watch(d time.Duration) (changes int) {
	cost := p.ends[0].Cost(p.now)
	for end := p.now.Add(d); p.now.Before(end); {
		p.run(50 * time.Millisecond)
		if c := p.ends[0].Cost(p.now); c != cost {
			cost, changes = c, changes+1
		}
	}
	return changes
}

// normal is jitter whose round trip has the given standard deviation, cut at
// zero delay.
func normal(deviation time.Duration) func(*rand.Rand) time.Duration {
	return func(r *rand.Rand) time.Duration {
		return max(time.Duration(r.NormFloat64()*float64(deviation)/math.Sqrt2), -2*deviation)
	}
}

// spikes is jitter with rare, long queues.
func spikes(r *rand.Rand) time.Duration {
	if r.IntN(200) == 0 {
		return time.Duration(r.ExpFloat64() * float64(40*time.Millisecond))
	}
	return time.Duration(r.ExpFloat64() * float64(time.Millisecond))
}

// TestNoiseIsNoNews: announcements per hour on noisy but steady paths.
func TestNoiseIsNoNews(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		prepare func(*pair)
		most    float64 // per hour
	}{
		{"10 % jitter on 20 ms", func(p *pair) { p.jitter = normal(2 * time.Millisecond) }, 2},
		{"10 % jitter on 100 ms", func(p *pair) { p.delay, p.jitter = 50*time.Millisecond, normal(10*time.Millisecond) }, 2},
		{"10 % jitter on 300 ms", func(p *pair) { p.delay, p.jitter = 150*time.Millisecond, normal(30*time.Millisecond) }, 2},
		{"10 % jitter on 100 ms, metered", func(p *pair) {
			p.delay, p.jitter = 50*time.Millisecond, normal(10*time.Millisecond)
			p.pace(Carrying, true)
		}, 3},
		{"10 % jitter on 100 ms, idle", func(p *pair) {
			p.delay, p.jitter = 50*time.Millisecond, normal(10*time.Millisecond)
			p.pace(Idle, false)
		}, 5},
		{"a spike of 80 ms each 10 s, metered", func(p *pair) {
			p.pace(Carrying, true)
			p.jitter = func(*rand.Rand) time.Duration {
				if p.now.Sub(start)%(10*time.Second) < 100*time.Millisecond {
					return 80 * time.Millisecond
				}
				return 0
			}
		}, 0},
		{"queues now and then", func(p *pair) { p.jitter = spikes }, 3},
		{"queues now and then, idle", func(p *pair) {
			p.jitter = spikes
			p.pace(Idle, false)
		}, 5},
		{"0.1 % loss", func(p *pair) { p.loss = [2]float64{0.001, 0.001} }, 16},
		{"1 % loss", func(p *pair) { p.loss = [2]float64{0.01, 0.01} }, 6},
		{"5 % loss", func(p *pair) { p.loss = [2]float64{0.05, 0.05} }, 6},
	} {
		p := newPair()
		c.prepare(p)
		p.run(time.Minute)
		n := float64(p.watch(time.Duration(*hours * float64(time.Hour))))
		t.Logf("%-32s %4.0f announcements an hour, cost %d µs", c.name, n / *hours, p.ends[0].Cost(p.now))
		if most := c.most * *hours; n > most+2*math.Sqrt(most)+1 {
			t.Errorf("%s: %.0f announcements in %.1f h, at most %.0f an hour wanted", c.name, n, *hours, c.most)
		}
	}
}

// One outlier is no jitter; a run of them is.
func TestOneOutlierIsNoJitter(t *testing.T) {
	l := New(start, true, 0)
	now := start
	feed := func(n int, rtt func(i int) time.Duration) {
		for i := range n {
			now = now.Add(15 * time.Millisecond)
			l.measure(now, rtt(i))
		}
	}
	feed(100, func(int) time.Duration { return 20 * time.Millisecond })
	feed(1, func(int) time.Duration { return 500 * time.Millisecond })
	feed(1, func(int) time.Duration { return 20 * time.Millisecond })
	if l.jitter > time.Millisecond {
		t.Errorf("one late answer makes %s of jitter", l.jitter)
	}
	feed(60, func(i int) time.Duration { return time.Duration(20+30*(i%2)) * time.Millisecond })
	if l.jitter < 25*time.Millisecond || l.jitter > 30*time.Millisecond {
		t.Errorf("answers that differ by 30 ms make %s of jitter", l.jitter)
	}
}

// Probes that overtake each other are late, not lost.
func TestDisorderIsNoLoss(t *testing.T) {
	p := newPair()
	p.delay, p.jitter = 150*time.Millisecond, normal(30*time.Millisecond)
	p.run(time.Minute)
	for range 60 {
		p.run(time.Second)
		if v := p.ends[0].lossy.value; v > 0 {
			t.Fatalf("%d probes of 256 counted as lost where all arrive", v)
		}
	}
}

// TestGreyFailure: loss or delay that appears shows in the cost within two
// seconds, and the cost comes back slowly.
func TestGreyFailure(t *testing.T) {
	t.Parallel()
	both := func(share float64) func(*pair) { return func(p *pair) { p.loss = [2]float64{share, share} } }
	slower := func(d time.Duration) func(*pair) { return func(p *pair) { p.delay += d / 2 } }
	for _, c := range []struct {
		name   string
		pace   Pace
		fail   func(*pair)
		more   mesh.Cost     // µs, at least, in the end
		within time.Duration // in nine of ten cases
	}{
		{"2 % loss", Carrying, both(0.02), 5_000, 3 * time.Second},
		{"5 % loss", Carrying, both(0.05), 5_000, 2 * time.Second},
		{"30 % loss", Carrying, both(0.30), 100_000, 2 * time.Second},
		{"5 % loss on a backup", Backup, both(0.05), 5_000, 5 * time.Second},
		{"10 % loss one way", Carrying, func(p *pair) { p.loss[0] = 0.1 }, 5_000, 2 * time.Second},
		{"50 ms more", Carrying, slower(50 * time.Millisecond), 20_000, 2 * time.Second},
		{"300 ms more", Carrying, slower(300 * time.Millisecond), 140_000, 2 * time.Second},
		{"30 ms of jitter", Carrying, func(p *pair) { p.jitter = uniform(30 * time.Millisecond) }, 5_000, 2 * time.Second},
		{"50 ms more on a backup", Backup, slower(50 * time.Millisecond), 20_000, 2 * time.Second},
	} {
		var took []time.Duration
		for i := range 10 {
			p := newPair()
			p.rng = rand.New(rand.NewPCG(uint64(i), 3))
			p.pace(c.pace, false)
			p.run(15*time.Second + time.Duration(p.rng.Int64N(int64(time.Second))))
			before, at := p.ends[0].Cost(p.now), p.now
			c.fail(p)
			for p.ends[0].Cost(p.now) < before+c.more && p.now.Sub(at) < 10*time.Second {
				p.run(20 * time.Millisecond)
			}
			took = append(took, p.now.Sub(at))
		}
		slices.Sort(took)
		t.Logf("%-24s +%d µs after %s, nine of ten %s", c.name, c.more, took[len(took)/2], took[len(took)*9/10])
		if d := took[len(took)*9/10]; d > c.within {
			t.Errorf("%s: %s", c.name, d)
		}
	}
}

func TestCostComesBackSlowly(t *testing.T) {
	p := newPair()
	p.run(time.Minute)
	good := p.ends[0].Cost(p.now)
	p.loss, p.delay = [2]float64{0.1, 0.1}, 60*time.Millisecond
	p.run(time.Minute)
	p.loss, p.delay = [2]float64{}, 10*time.Millisecond
	bad, at := p.ends[0].Cost(p.now), p.now
	p.run(29 * time.Second)
	if c := p.ends[0].Cost(p.now); c < bad {
		t.Fatalf("cost falls from %d to %d µs before half a minute of calm", bad, c)
	}
	steps := p.watch(16 * time.Second)
	if c := p.ends[0].Cost(p.now); c < bad/8 {
		t.Errorf("cost falls from %d to %d µs in %s", bad, c, p.now.Sub(at))
	}
	steps += p.watch(5 * time.Minute)
	t.Logf("from %d to %d µs in %d steps", bad, p.ends[0].Cost(p.now), steps)
	if c := p.ends[0].Cost(p.now); c > good+good/8+1000 {
		t.Errorf("cost %d µs %s after the trouble, before it %d", c, p.now.Sub(at), good)
	}
	if steps < 2 || steps > 12 {
		t.Errorf("%d steps", steps)
	}
	// Trouble that returns meanwhile holds it up.
	p.loss = [2]float64{0.1, 0.1}
	p.run(10 * time.Second)
	bad = p.ends[0].Cost(p.now)
	for range 10 {
		p.loss = [2]float64{}
		p.run(20 * time.Second)
		p.loss = [2]float64{0.1, 0.1}
		p.run(5 * time.Second)
	}
	if c := p.ends[0].Cost(p.now); c < bad/2 {
		t.Errorf("cost %d µs although it loses a tenth every 25 s; %d before", c, bad)
	}
}

// A tunnel that takes another path is not judged by the old one, neither for better nor
// for worse, and what was on its way is not lost.
func TestMovedTunnelIsMeasuredAnew(t *testing.T) {
	p := newPair()
	p.run(time.Minute)
	good := p.ends[0].Cost(p.now)
	p.loss, p.delay = [2]float64{0.1, 0.1}, 60*time.Millisecond
	p.run(time.Minute)
	if bad := p.ends[0].Cost(p.now); bad < 2*good {
		t.Fatalf("cost %d µs, before the trouble %d", bad, good)
	}
	p.loss, p.delay, p.flight = [2]float64{}, 10*time.Millisecond, nil
	for _, l := range p.ends {
		l.Moved()
	}
	p.run(3 * time.Second)
	for i, l := range p.ends {
		if c := l.Cost(p.now); c > good+good/8+1000 || l.State() != Up {
			t.Errorf("end %d: cost %d µs and %s, before the trouble %d", i, c, l.State(), good)
		}
	}
	p.delay = 60 * time.Millisecond
	for _, l := range p.ends {
		l.Moved()
	}
	p.run(3 * time.Second)
	if c := p.ends[0].Cost(p.now); c < 50_000 {
		t.Errorf("cost %d µs over a path of 60 ms", c)
	}
}

// A window agrees with a slow model: extremes of at least the last n values or
// of the span, and of nothing twice as old.
func TestWindowAgainstTheModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, mean := range []time.Duration{15 * time.Millisecond, 300 * time.Millisecond, 4 * time.Second} {
		w := newWindow(8, time.Second)
		type value struct{ at, v int64 }
		var all []value
		at := int64(0)
		for range 3000 {
			at += int64(r.ExpFloat64() * float64(mean))
			v := value{at, 1 + r.Int64N(1000)}
			all = append(all, v)
			w.add(v.at, v.v)
			extremes := func(from int64) (low, high int64) {
				low = math.MaxInt64
				for _, o := range all[max(len(all)-3000, 0):] {
					if o.at >= from {
						low, high = min(low, o.v), max(high, o.v)
					}
				}
				return low, high
			}
			// The oldest bucket begins at one of the values.
			oldest := w.buckets[(w.newest+1)%8].from
			if w.filled < 8 {
				oldest = 0
			}
			if low, high := extremes(oldest); low != w.min() || high != w.max() {
				t.Fatalf("window says %d..%d, the values since %d %d..%d", w.min(), w.max(), oldest, low, high)
			}
			if w.filled == w.count && at-oldest < 7*int64(time.Second) {
				t.Fatalf("a full window covers %s", time.Duration(at-oldest))
			}
		}
	}
}

func TestLossWindowAgainstTheModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var w lossWindow
	var all []bool
	for range 3 * lossSlow {
		step := 1
		if r.IntN(5) == 0 {
			step += r.IntN(9)
		}
		for range step - 1 {
			all = append(all, true)
		}
		all = append(all, false)
		w.add(uint32(step))
		if r.IntN(4) == 0 { // one is overtaken, or comes twice
			before := r.IntN(min(len(all), 2*lossFast))
			all[len(all)-1-before] = false
			w.found(uint32(before))
		}
		count := func(n int) (lost, bursts int) {
			recent := all[max(len(all)-n, 0):]
			for i, l := range recent {
				if l {
					lost++
					if i == 0 || !recent[i-1] {
						bursts++
					}
				}
			}
			return lost, bursts
		}
		before := all
		all = all[:max(len(all)-lossLag, 0)]
		fast, _ := count(lossFast)
		all = before
		slow, bursts := count(lossSlow)
		if w.fast != fast || w.slow != slow || w.bursts != bursts {
			t.Fatalf("window: %d, %d in %d bursts; model: %d, %d in %d", w.fast, w.slow, w.bursts, fast, slow, bursts)
		}
	}
}
