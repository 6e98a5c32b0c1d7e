package coordinate

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
)

var start = time.Unix(1_000_000, 0)

func id(i int) mesh.NodeID { return mesh.NodeID{6: byte(i >> 8), 7: byte(i)} }

func at(x int32) Published {
	return Published{Vector: [Dimensions]int32{x}, Height: 1000, Error: 10, Settled: true}
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Published)
		ok     bool
	}{
		"a good one":        {func(*Published) {}, true},
		"nothing":           {func(p *Published) { *p = Published{} }, true},
		"the farthest":      {func(p *Published) { p.Vector[7], p.Height, p.Adjustment = -limit, limit, -limit }, true},
		"too far":           {func(p *Published) { p.Vector[7] = limit + 1 }, false},
		"too far back":      {func(p *Published) { p.Vector[0] = math.MinInt32 }, false},
		"no height":         {func(p *Published) { p.Height = 0 }, false},
		"negative height":   {func(p *Published) { p.Height = -1 }, false},
		"too high":          {func(p *Published) { p.Height = math.MaxInt32 }, false},
		"adjusted too much": {func(p *Published) { p.Adjustment = limit + 1 }, false},
		"less than nothing": {func(p *Published) { p.Adjustment = math.MinInt32 }, false},
		"no error":          {func(p *Published) { p.Error = 0 }, false},
		"too much error":    {func(p *Published) { p.Error = maxError + 1 }, false},
		"settled nowhere":   {func(p *Published) { *p = Published{Settled: true} }, false},
	} {
		p := at(5)
		c.change(&p)
		if err := p.Check(); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDistance(t *testing.T) {
	a, b := at(0), at(3000)
	b.Vector[1] = 4000
	if d := a.Distance(b); d != 7*time.Millisecond {
		t.Errorf("3, 4 and two heights of 1 make %v, not 7 ms", d)
	}
	a.Adjustment, b.Adjustment = -500, 200
	if d := a.Distance(b); d != 6700*time.Microsecond {
		t.Errorf("adjusted %v, not 6.7 ms", d)
	}
	a.Adjustment = -9000
	if d := a.Distance(b); d != 7*time.Millisecond {
		t.Errorf("an adjustment to less than nothing counts: %v", d)
	}
}

// One update, worked by hand: 10 ms and heights of 2 and 1 predict 13 ms where
// 23 are measured; both errors are 50 %, so an eighth of 10 ms pushes.
func TestUpdate(t *testing.T) {
	v := newVivaldi(rand.New(rand.NewPCG(1, 1)), Published{Vector: [Dimensions]int32{10_000}, Height: 2000, Error: 50})
	v.update(Published{Height: 1000, Error: 50}, 0.023)
	want := Published{Vector: [Dimensions]int32{11_250}, Height: 2375, Adjustment: 209, Error: 50}
	if got := v.published(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	v.update(Published{Height: 1000, Error: 1}, 9.9)
	if got := v.published().Vector[0]; got != 31_250 {
		t.Errorf("a sample moved the node to %d µs, more than 20 ms", got)
	}
}

func TestTwoOnOneSpotPart(t *testing.T) {
	v := newVivaldi(rand.New(rand.NewPCG(1, 1)), Published{})
	v.update(Published{Height: minHeight, Error: 50}, 0.1)
	if v.distance(vector{}) < 0.015 {
		t.Errorf("still %v from each other", v.distance(vector{}))
	}
}

func TestGravity(t *testing.T) {
	v := newVivaldi(rand.New(rand.NewPCG(1, 1)), Published{Vector: [Dimensions]int32{6_000_000}, Height: 10, Error: 10})
	v.update(Published{Vector: [Dimensions]int32{5_000_000}, Height: 10, Error: 10}, 1.00002)
	if got := v.published().Vector[0]; got != 5_998_400 { // (6/150)² s nearer
		t.Errorf("at %d µs", got)
	}
}

func FuzzDistance(f *testing.F) {
	f.Add(int32(0), int32(0), int32(10), int32(0), int32(limit), int32(-limit), int32(limit), int32(-limit))
	f.Fuzz(func(t *testing.T, x, y, h, adj, x2, y2, h2, adj2 int32) {
		p := Published{Vector: [Dimensions]int32{x, y, x, y, x, y, x, y}, Height: h, Adjustment: adj, Error: 1}
		q := Published{Vector: [Dimensions]int32{x2, y2, x2, y2, x2, y2, x2, y2}, Height: h2, Adjustment: adj2, Error: 1}
		if p.Check() != nil || q.Check() != nil {
			return
		}
		if d := p.Distance(q); d <= 0 || d != q.Distance(p) || d > 100*time.Second {
			t.Errorf("%v from %+v to %+v, %v back", d, p, q, q.Distance(p))
		}
		v := newVivaldi(rand.New(rand.NewPCG(1, 1)), p)
		if v.published() != p {
			t.Errorf("%+v comes back as %+v", p, v.published())
		}
		for range 3 {
			v.update(q, 1e-6)
			v.update(q, 10)
		}
		if err := v.published().Check(); err != nil {
			t.Errorf("%+v leads to %+v", p, v.published())
		}
	})
}

// cloud is a set of nodes in a plane with access lines, and what they publish.
type cloud struct {
	rng        *rand.Rand
	place      [][3]float64 // ms: x, y, height
	publishers []*Publisher
	reports    []Report
	now        time.Time
	rough      bool // detours of up to four times, which no space can hold
}

func newCloud(seed uint64, n int) *cloud {
	c := &cloud{rng: rand.New(rand.NewPCG(seed, 1)), now: start, reports: make([]Report, n)}
	for i := range n {
		c.place = append(c.place, [3]float64{100 * c.rng.Float64(), 100 * c.rng.Float64(), 1 + 9*c.rng.Float64()})
		c.publishers = append(c.publishers, NewPublisher(start, rand.New(rand.NewPCG(seed, uint64(i))), Report{}))
	}
	return c
}

func (c *cloud) rtt(i, j int) time.Duration {
	a, b := c.place[i], c.place[j]
	ms := math.Hypot(a[0]-b[0], a[1]-b[1]) + a[2] + b[2]
	if c.rough {
		ms *= 1 + 3*rand.New(rand.NewPCG(uint64(min(i, j)), uint64(max(i, j)))).Float64()
	}
	return time.Duration(ms * float64(time.Millisecond))
}

// run lets every node measure the 12 after it, and gives how often which node
// had news.
func (c *cloud) run(d time.Duration) []int {
	n := len(c.place)
	news := make([]int, n)
	for end := c.now.Add(d); c.now.Before(end); c.now = c.now.Add(round) {
		for i := range n {
			for k := 1; k <= 12; k++ {
				noise := 1 + 0.05*math.Abs(c.rng.NormFloat64())
				c.publishers[i].Observe(c.now, id((i+k)%n), time.Duration(float64(c.rtt(i, (i+k)%n))*noise))
			}
			var changed bool
			c.reports[i], changed = c.publishers[i].Update(c.now, c.of)
			if changed {
				news[i]++
			}
		}
	}
	return news
}

func (c *cloud) of(id mesh.NodeID) Published { return c.reports[int(id[6])<<8|int(id[7])].Coordinate }

// wrong is the median relative error of predictions among some nodes.
func (c *cloud) wrong(nodes int) float64 {
	var all []float64
	for i := range nodes {
		for j := range i {
			true := c.rtt(i, j).Seconds()
			all = append(all, math.Abs(c.reports[i].Coordinate.Distance(c.reports[j].Coordinate).Seconds()-true)/true)
		}
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func sum(list []int) (n int) {
	for _, x := range list {
		n += x
	}
	return n
}

func TestPredictsWhatWasNeverMeasured(t *testing.T) {
	c := newCloud(1, 40)
	c.run(6 * time.Minute)
	for i, r := range c.reports {
		if !r.Coordinate.Settled {
			t.Errorf("node %d has not settled: %+v", i, r.Coordinate)
		}
	}
	if wrong := c.wrong(40); wrong > 0.15 {
		t.Errorf("median error %.3f", wrong)
	}
	c.run(10 * time.Minute)
	if news := sum(c.run(30 * time.Minute)); news > 4 {
		t.Errorf("%d news in half an hour in which nothing happened", news)
	}
	t.Logf("median error %.3f", c.wrong(40))
}

// Where no coordinate does well the news grow rare: twice an hour.
func TestHopelessCasesFallSilent(t *testing.T) {
	c := newCloud(6, 25)
	c.rough = true
	c.run(time.Hour)
	missed := 0
	for i, r := range c.reports {
		off := 0.0
		for peer, rtt := range r.RTT {
			off += math.Abs(float64(r.Coordinate.Distance(c.of(peer))-rtt)) / float64(rtt)
		}
		if off > tolerance*float64(len(r.RTT)) {
			missed++
		}
		if !r.Coordinate.Settled {
			t.Errorf("node %d never settled", i)
		}
	}
	if news := sum(c.run(time.Hour)); news > 60 || missed == 0 {
		t.Errorf("%d news; %d nodes are off by more than is put up with", news, missed)
	}
}

// When the path to everyone becomes longer by 30 ms at one node, that node says
// so, once or twice, after three looks; the others need not.
func TestNewsWhenItIsTrueForLong(t *testing.T) {
	c := newCloud(2, 30)
	c.run(20 * time.Minute)
	c.place[7][2] += 30
	if news := c.run(80 * time.Second); sum(news) > 0 {
		t.Errorf("news before it was true for three looks: %v", news)
	}
	c.place[7][2] -= 30
	if news := c.run(10 * time.Minute); sum(news) > 0 {
		t.Errorf("a passing delay was news: %v", news)
	}
	c.place[7][2] += 30
	news := c.run(20 * time.Minute)
	if news[7] < 1 || news[7] > 3 {
		t.Errorf("node 7 had news %d times", news[7])
	}
	off := 0.0
	for j := range 30 {
		if j != 7 {
			off += math.Abs(float64(c.reports[7].Coordinate.Distance(c.reports[j].Coordinate))/float64(c.rtt(7, j))-1) / 29
		}
	}
	if off > 0.2 {
		t.Errorf("what it says is %.2f wrong", off)
	}
}

func TestALiarDragsNobodyFar(t *testing.T) {
	c := newCloud(3, 40)
	c.run(20 * time.Minute)
	honest := c.wrong(39)
	lie := Published{Height: minHeight, Error: 1, Settled: true}
	for range 200 {
		for k := range lie.Vector {
			lie.Vector[k] = int32(c.rng.IntN(2)*2-1) * limit
		}
		for i := range 39 {
			c.publishers[i].Update(c.now, func(id mesh.NodeID) Published {
				if id[7] == 39 {
					return lie
				}
				return c.of(id)
			})
		}
		c.now = c.now.Add(round)
	}
	for i := range 39 {
		c.reports[i], _ = c.publishers[i].Update(c.now, c.of)
	}
	if wrong := c.wrong(39); wrong > max(2*honest, 0.2) {
		t.Errorf("median error %.3f, without the liar %.3f", wrong, honest)
	}
}

func TestImpossibleIsIgnored(t *testing.T) {
	p := NewPublisher(start, rand.New(rand.NewPCG(1, 1)), Report{Coordinate: Published{Height: -5}, RTT: map[mesh.NodeID]time.Duration{id(1): -1, id(2): time.Hour}})
	for _, rtt := range []time.Duration{0, -time.Second, 11 * time.Second, math.MaxInt64, math.MinInt64} {
		p.Observe(start, id(3), rtt)
	}
	p.Observe(start, id(4), time.Millisecond)
	r, changed := p.Update(start, func(mesh.NodeID) Published { return Published{Height: 7} })
	if !changed || r.Coordinate.IsZero() || r.Coordinate.Check() != nil || len(r.RTT) != 1 || r.RTT[id(4)] != time.Millisecond {
		t.Errorf("%v %+v", changed, r)
	}
}

func nobody(mesh.NodeID) Published { return Published{} }

// looks feeds one round trip a period to a publisher and gives what it says.
func looks(p *Publisher, now *time.Time, rtt ...time.Duration) []time.Duration {
	var out []time.Duration
	for _, d := range rtt {
		p.Observe(*now, id(1), d+20*time.Millisecond) // the smallest counts
		p.Observe(*now, id(1), d)
		r, _ := p.Update(*now, nobody)
		out = append(out, r.RTT[id(1)])
		*now = now.Add(period)
	}
	return out
}

func TestRoundTripsArePublishedWithHysteresis(t *testing.T) {
	const ms = time.Millisecond
	p, now := NewPublisher(start, rand.New(rand.NewPCG(1, 1)), Report{}), start
	for _, c := range []struct{ see, say []time.Duration }{
		{[]time.Duration{50 * ms, 59 * ms, 41 * ms, 50 * ms}, []time.Duration{50 * ms, 50 * ms, 50 * ms, 50 * ms}},
		{[]time.Duration{70 * ms, 70 * ms, 50 * ms, 70 * ms, 70 * ms}, []time.Duration{50 * ms, 50 * ms, 50 * ms, 50 * ms, 50 * ms}},
		{[]time.Duration{71 * ms, 30 * ms}, []time.Duration{71 * ms, 71 * ms}}, // the third in a row
		{[]time.Duration{4 * ms, 4 * ms, 6 * ms, 1 * ms, 2 * ms}, []time.Duration{71 * ms, 4 * ms, 4 * ms, 4 * ms, 4 * ms}},
	} {
		if got := looks(p, &now, c.see...); !slices.Equal(got, c.say) {
			t.Errorf("saw %v, said %v, not %v", c.see, got, c.say)
		}
	}
}

func TestReportIsBounded(t *testing.T) {
	p := NewPublisher(start, rand.New(rand.NewPCG(1, 1)), Report{})
	for i := range 200 {
		p.Observe(start.Add(time.Duration(i)), id(i), time.Millisecond)
	}
	r, _ := p.Update(start.Add(time.Second), nobody)
	if len(r.RTT) != maxEntries || r.RTT[id(199)] == 0 || r.RTT[id(199-maxEntries)] != 0 {
		t.Errorf("%d round trips, the newest %v", len(r.RTT), r.RTT[id(199)])
	}
	later := start.Add(keep + time.Minute)
	p.Observe(later, id(3), time.Millisecond)
	if r, changed := p.Update(later, nobody); len(r.RTT) != 1 || !changed {
		t.Errorf("%d round trips a day later, news %v", len(r.RTT), changed)
	}
}

func TestRestartIsNoNews(t *testing.T) {
	c := newCloud(4, 30)
	c.run(20 * time.Minute)
	before := c.wrong(30)
	for i := range c.publishers {
		c.publishers[i] = NewPublisher(c.now, rand.New(rand.NewPCG(9, uint64(i))), c.reports[i])
		if r, changed := c.publishers[i].Update(c.now, c.of); changed || r.Coordinate != c.reports[i].Coordinate || len(r.RTT) != len(c.reports[i].RTT) {
			t.Fatalf("node %d: news %v, %+v", i, changed, r)
		}
	}
	if news := sum(c.run(20 * time.Minute)); news > 3 {
		t.Errorf("%d news after the restart", news)
	}
	if after := c.wrong(30); after > before+0.02 {
		t.Errorf("median error %.3f, before the restart %.3f", after, before)
	}
}

// The same measurements and the same seed give the same reports.
func TestDeterministic(t *testing.T) {
	a, b := newCloud(5, 20), newCloud(5, 20)
	a.run(10 * time.Minute)
	b.run(10 * time.Minute)
	for i := range a.reports {
		if a.reports[i].Coordinate != b.reports[i].Coordinate {
			t.Fatalf("node %d: %+v and %+v", i, a.reports[i].Coordinate, b.reports[i].Coordinate)
		}
	}
}
