package wire

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const ms = time.Millisecond

// TestFate is the table of decisions that need no chance: arrivals in, fates out.
func TestFate(t *testing.T) {
	type frame struct {
		at   time.Duration
		size int
	}
	everyMS := func(n, size int) (fs []frame) {
		for i := range n {
			fs = append(fs, frame{time.Duration(i) * ms, size})
		}
		return fs
	}
	out := func(at ...time.Duration) (fs []fate) {
		for _, a := range at {
			fs = append(fs, fate{release: a})
		}
		return fs
	}
	for name, c := range map[string]struct {
		imp  Impairment
		in   []frame
		want []fate
	}{
		"perfect": {Impairment{}, everyMS(3, 100), out(0, ms, 2*ms)},
		"delay":   {Impairment{Delay: 30 * ms}, everyMS(3, 100), out(30*ms, 31*ms, 32*ms)},
		"mtu": {
			Impairment{MTU: 100},
			[]frame{{0, 100 + etherHeader}, {0, 101 + etherHeader}},
			[]fate{{}, {outcome: tooLarge}},
		},
		"rate spaces a burst": {Impairment{Rate: 8_000_000}, []frame{{0, 1000}, {0, 1000}, {0, 500}}, out(ms, 2*ms, 2500*time.Microsecond)},
		"rate forgets idle time": {
			Impairment{Rate: 8_000_000, Delay: 10 * ms},
			[]frame{{0, 1000}, {5 * ms, 1000}, {5 * ms, 1000}},
			out(11*ms, 16*ms, 17*ms),
		},
		"rate leaves slower traffic alone": {Impairment{Rate: 8_000_000}, everyMS(3, 500), out(500*time.Microsecond, 1500*time.Microsecond, 2500*time.Microsecond)},
		"a frame larger than the buffer passes an idle bottleneck": {
			Impairment{Rate: 8_000},
			[]frame{{0, 65_549}, {0, 100}},
			[]fate{{release: 65_549 * ms}, {outcome: overflowed}},
		},
		"all lost":       {Impairment{Loss: 1}, everyMS(2, 100), []fate{{outcome: lost}, {outcome: lost}}},
		"all duplicated": {Impairment{Duplicate: 1}, everyMS(2, 100), []fate{{duplicate: true}, {release: ms, duplicate: true}}},
		"nonsense is brought into range": {
			Impairment{Delay: -ms, Jitter: -ms, Loss: math.NaN(), Duplicate: -1, Reorder: math.Inf(-1), MTU: -5},
			everyMS(2, 100), out(0, ms),
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, q := newLine(1, AtoB), queue{}
			l.set(0, c.imp, &q)
			var got []fate
			for _, f := range c.in {
				got = append(got, l.admit(f.at, f.size, f.size-etherHeader))
			}
			for i := range got {
				if got[i].outcome != delivered {
					got[i] = fate{outcome: got[i].outcome}
				}
			}
			if d := cmp.Diff(c.want, got, cmp.AllowUnexported(fate{})); d != "" {
				t.Errorf("fates (-want +got):\n%s", d)
			}
		})
	}
}

// TestBufferIsBounded: a burst into a bottleneck keeps what 50 ms or 64 kB hold, and no more.
func TestBufferIsBounded(t *testing.T) {
	for _, c := range []struct {
		rate  uint64
		bytes int
	}{
		{1_000_000, bufferBytes},            // slow: 64 kB
		{100_000_000, 100_000_000 / 8 / 20}, // fast: 50 ms
	} {
		l, q := newLine(1, AtoB), queue{}
		l.set(0, Impairment{Rate: c.rate}, &q)
		accepted := 0
		for range 10_000 {
			if l.admit(0, 1000, 986).outcome == delivered {
				accepted += 1000
			}
		}
		if accepted > c.bytes || accepted < c.bytes-1000 {
			t.Errorf("rate %d: buffer took %d bytes, want just below %d", c.rate, accepted, c.bytes)
		}
	}
}

// TestShares compares what chance did over many frames with what was asked. The bounds are 6 standard deviations.
func TestShares(t *testing.T) {
	const n = 200_000
	for _, p := range []float64{0.001, 0.02, 0.3, 0.9} {
		l, q := newLine(7, BtoA), queue{}
		l.set(0, Impairment{Loss: p, Duplicate: p, Reorder: p}, &q)
		var losses, copies, moved float64
		for i := range n {
			f := l.admit(time.Duration(i)*ms, 100, 86)
			if f.outcome == lost {
				losses++
			}
			if f.duplicate {
				copies++
			}
			if f.reordered {
				moved++
			}
		}
		within := func(what string, got, of float64) {
			t.Helper()
			if want, slack := p*of, 6*math.Sqrt(of*p*(1-p)); math.Abs(got-want) > slack {
				t.Errorf("%s at %v: %v of %v, want %v ± %v", what, p, got, of, want, slack)
			}
		}
		within("loss", losses, n)
		within("duplicates", copies, n-losses)
		within("reordered", moved, n-losses)
	}
}

func TestJitter(t *testing.T) {
	const n = 50_000
	imp := Impairment{Delay: 20 * ms, Jitter: 10 * ms}
	admit := func(gap time.Duration) (delays []time.Duration) {
		l, q := newLine(3, AtoB), queue{}
		l.set(0, imp, &q)
		last := time.Duration(0)
		for i := range n {
			now := time.Duration(i) * gap
			f := l.admit(now, 100, 86)
			if f.release < last {
				t.Fatalf("frame %d, %v apart: released at %v, before the one ahead of it at %v", i, gap, f.release, last)
			}
			last = f.release
			delays = append(delays, f.release-now)
		}
		return delays
	}
	for _, gap := range []time.Duration{0, 100 * time.Microsecond, ms, 15 * ms} {
		delays := admit(gap)
		if low, high := slices.Min(delays), slices.Max(delays); low < imp.Delay || high >= imp.Delay+imp.Jitter {
			t.Errorf("%v apart: delays span %v to %v, want them in [20ms, 30ms)", gap, low, high)
		}
	}
	// Further apart than the jitter, the order binds nobody and the delay is uniform: mean 25 ms.
	var sum time.Duration
	for _, d := range admit(15 * ms) {
		sum += d
	}
	if mean := sum / n; mean < 24900*time.Microsecond || mean > 25100*time.Microsecond {
		t.Errorf("mean delay %v, want 25ms", mean)
	}
}

// TestReorder: only frames marked as reordered are overtaken, and they are, when others come close behind.
func TestReorder(t *testing.T) {
	l, q := newLine(5, AtoB), queue{}
	l.set(0, Impairment{Delay: 3 * ms, Jitter: ms, Reorder: 0.1}, &q)
	fates := make([]fate, 10_000)
	for i := range fates {
		fates[i] = l.admit(time.Duration(i)*ms, 100, 86)
	}
	overtaken, moved := 0, 0
	for i, f := range fates[:len(fates)-20] {
		passed := slices.ContainsFunc(fates[i+1:i+20], func(later fate) bool { return later.release < f.release })
		if passed && !f.reordered {
			t.Fatalf("frame %d was overtaken without being reordered", i)
		}
		if f.reordered {
			moved++
			if passed {
				overtaken++
			}
		}
	}
	if moved == 0 || overtaken < moved*99/100 {
		t.Errorf("%d of %d reordered frames were overtaken", overtaken, moved)
	}
}

func TestSameSeedSameFate(t *testing.T) {
	run := func(seed uint64, dir Direction) (fates []fate) {
		l, q := newLine(seed, dir), queue{}
		l.set(0, Impairment{Jitter: ms, Loss: .2, Duplicate: .2, Reorder: .2, Rate: 1e6}, &q)
		for i := range 500 {
			fates = append(fates, l.admit(time.Duration(i)*ms, 100, 86))
		}
		return fates
	}
	if !slices.Equal(run(1, AtoB), run(1, AtoB)) {
		t.Error("the same seed gave two different runs")
	}
	if slices.Equal(run(1, AtoB), run(2, AtoB)) {
		t.Error("different seeds gave the same run")
	}
	if slices.Equal(run(1, AtoB), run(1, BtoA)) {
		t.Error("both directions gave the same run")
	}
}

// TestSetOnlyHurries: a change of settings brings frames on the way forward if it can, never back, and keeps their order.
func TestSetOnlyHurries(t *testing.T) {
	slow := Impairment{Delay: 100 * ms, Jitter: 20 * ms, Rate: 1_000_000, Reorder: 0.2}
	for name, next := range map[string]Impairment{
		"same":     slow,
		"slower":   {Delay: time.Second, Rate: 1000},
		"faster":   {Delay: 10 * ms, Rate: 10_000_000},
		"perfect":  {},
		"no rate":  {Delay: 100 * ms},
		"no delay": {Rate: 1_000_000},
	} {
		t.Run(name, func(t *testing.T) {
			l, q := newLine(9, AtoB), queue{}
			l.set(0, slow, &q)
			var last time.Duration
			for i := range 60 {
				if f := l.admit(0, 1000, 986); f.outcome == delivered {
					last = max(last, f.release)
					q.push(f.release, binary.BigEndian.AppendUint32(make([]byte, 996), uint32(i)))
				}
			}
			before := map[uint32]time.Duration{}
			var order []uint32
			q.sort()
			for _, it := range q.items {
				id := binary.BigEndian.Uint32(it.frame[996:])
				before[id] = it.release
				order = append(order, id)
			}
			l.set(0, next, &q)
			var after []uint32
			for q.len() > 0 {
				at := q.head()
				id := binary.BigEndian.Uint32(q.pop()[996:])
				after = append(after, id)
				if at > before[id] {
					t.Errorf("frame %d was put off from %v to %v", id, before[id], at)
				}
				if limit := serialize(1000*len(order), next.Rate) + next.Delay + next.Jitter; at > limit {
					t.Errorf("frame %d leaves at %v, later than a line that was always so good would need: %v", id, at, limit)
				}
				last = at
			}
			if !slices.Equal(order, after) {
				t.Errorf("order changed from %v to %v", order, after)
			}
			if f := l.admit(0, 1000, 986); f.outcome == delivered && !f.reordered && name == "perfect" && f.release != 0 {
				t.Errorf("after healing a frame still takes %v", f.release)
			}
		})
	}
}

func TestQueueLeavesInOrder(t *testing.T) {
	q, rng := queue{}, newLine(11, AtoB).rng
	var want []item
	for i := range 2000 {
		at := time.Duration(rng.IntN(300))
		frame := binary.BigEndian.AppendUint16(nil, uint16(i))
		q.push(at, frame)
		want = append(want, item{at, uint64(i), frame})
		if i%3 == 0 { // interleave pops
			slices.SortFunc(want, func(a, b item) int { return a.compare(&b) })
			if got := q.pop(); !slices.Equal(got, want[0].frame) {
				t.Fatalf("pop gave %v, want %v", got, want[0].frame)
			}
			want = want[1:]
		}
	}
	slices.SortFunc(want, func(a, b item) int { return a.compare(&b) })
	for _, w := range want {
		if at, got := q.head(), q.pop(); at != w.release || !slices.Equal(got, w.frame) {
			t.Fatalf("got %v at %v, want %v at %v", got, at, w.frame, w.release)
		}
	}
	if q.len() != 0 || q.bytes != 0 {
		t.Errorf("empty queue has %d frames, %d bytes", q.len(), q.bytes)
	}
}

func TestQueueIsBounded(t *testing.T) {
	var q queue
	for !q.full(maxFrame) {
		q.push(0, make([]byte, 60))
	}
	if q.len() > maxQueuedFrames {
		t.Errorf("%d small frames", q.len())
	}
	q = queue{}
	for !q.full(maxFrame) {
		q.push(0, make([]byte, maxFrame))
	}
	if q.bytes > maxQueuedBytes || q.bytes < maxQueuedBytes-maxFrame {
		t.Errorf("%d bytes of large frames, want just below %d", q.bytes, maxQueuedBytes)
	}
}

func FuzzPayloadSize(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 13))
	f.Add(append(make([]byte, 12), 0x81, 0x00))
	f.Add(append(make([]byte, 12), 0x81, 0x00, 0, 1, 8, 0, 0x45))
	f.Add(append(make([]byte, 12), 0x08, 0x00, 0x45))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if n := payloadSize(frame); n < 0 || n > max(len(frame)-etherHeader, 0) || n < len(frame)-etherHeader-vlanTag {
			t.Errorf("payload of %d bytes in a frame of %d", n, len(frame))
		}
	})
}
