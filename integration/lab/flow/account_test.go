package flow

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	ms       = time.Millisecond
	interval = 2 * ms
	start    = time.Hour // of the sender, on the monotonic clock
	delay    = 5 * ms
)

// packet is number seq of a flow that started at start and was sent when it was due.
func packet(seq uint64) Packet {
	return Packet{Kind: Data, Flow: 1, Seq: seq, Sent: start + time.Duration(seq)*interval, Interval: interval}
}

// arrival is a packet and when it came.
type arrival struct {
	p  Packet
	at time.Duration
}

// onTime are arrivals of the given numbers, each delay after it was sent.
func onTime(seqs ...uint64) (as []arrival) {
	for _, s := range seqs {
		as = append(as, arrival{packet(s), packet(s).Sent + delay})
	}
	return as
}

// span returns the numbers from first to last.
func span(first, last uint64) (seqs []uint64) {
	for s := first; s <= last; s++ {
		seqs = append(seqs, s)
	}
	return seqs
}

func book(as []arrival) FlowReport {
	a := newAccount(as[0].p, 3)
	for _, x := range as {
		a.arrive(x.p, x.at)
	}
	return a.result(time.Unix(0, 0))
}

func TestAccount(t *testing.T) {
	at := func(seq uint64) time.Duration { return packet(seq).Sent + delay }
	late := func(as []arrival, by time.Duration) []arrival { // the sender is late from here on
		for i := range as {
			as[i].p.Sent += by
			as[i].at += by
		}
		return as
	}
	for name, c := range map[string]struct {
		in   []arrival
		want FlowReport
	}{
		"all": {onTime(span(0, 9)...), FlowReport{LastSeq: 9, Received: 10, LongestGap: interval}},
		"one lost is no gap": {onTime(0, 1, 3, 4), FlowReport{
			LastSeq: 4, Received: 4, Lost: 1, LongestGap: 2 * interval,
			Losses: []LossRun{{2, 1, packet(2).Sent}},
		}},
		"an outage": {onTime(0, 1, 30, 31), FlowReport{
			LastSeq: 31, Received: 4, Lost: 28, LongestGap: 29 * interval,
			Losses: []LossRun{{2, 28, packet(2).Sent}},
			Gaps:   []Gap{{StartMono: at(1), Length: 29 * interval, Lost: 28, LastBefore: 1, FirstAfter: 30}},
		}},
		"duplicates": {onTime(0, 1, 1, 2, 0, 2), FlowReport{LastSeq: 2, Received: 3, Duplicates: 3, LongestGap: interval}},
		"reordered": {
			[]arrival{{packet(0), at(0)}, {packet(2), at(2)}, {packet(3), at(3)}, {packet(1), at(3)}, {packet(4), at(4)}},
			FlowReport{LastSeq: 4, Received: 5, Reordered: 1, LongestGap: 2 * interval},
		},
		"reordered into the middle of a run, then twice": {
			[]arrival{{packet(0), at(0)}, {packet(6), at(3)}, {packet(3), at(3)}, {packet(3), at(3)}},
			FlowReport{
				LastSeq: 6, Received: 3, Reordered: 1, Duplicates: 1, Lost: 4, LongestGap: 3 * interval,
				Losses: []LossRun{{1, 2, packet(1).Sent}, {4, 2, packet(4).Sent}},
			},
		},
		"reordered before the first": {
			[]arrival{{packet(5), at(5)}, {packet(3), at(5)}, {packet(6), at(6)}},
			FlowReport{
				FirstSeq: 3, LastSeq: 6, Received: 3, Reordered: 1, Lost: 1, LongestGap: interval,
				Losses: []LossRun{{4, 1, packet(4).Sent}},
			},
		},
		"held back, not lost": {
			[]arrival{{packet(0), at(0)}, {packet(1), at(20)}, {packet(2), at(20)}, {packet(20), at(20)}},
			FlowReport{
				LastSeq: 20, Received: 4, Lost: 17, LongestGap: 20 * interval,
				Losses: []LossRun{{3, 17, packet(3).Sent}},
				Gaps:   []Gap{{StartMono: at(0), Length: 20 * interval, LastBefore: 0, FirstAfter: 1}},
			},
		},
		"a gap whose packets come after it": {
			[]arrival{{packet(0), at(0)}, {packet(10), at(10)}, {packet(4), at(10)}, {packet(11), at(11)}},
			FlowReport{
				LastSeq: 11, Received: 4, Reordered: 1, Lost: 8, LongestGap: 10 * interval,
				Losses: []LossRun{{1, 3, packet(1).Sent}, {5, 5, packet(5).Sent}},
				Gaps:   []Gap{{StartMono: at(0), Length: 10 * interval, Lost: 8, LastBefore: 0, FirstAfter: 10}},
			},
		},
		"the sender slept": {
			append(onTime(0, 1), late(onTime(2, 3), 50*ms)...),
			FlowReport{
				LastSeq: 3, Received: 4, LongestGap: 50*ms + interval,
				Gaps: []Gap{{StartMono: at(1), Length: 50*ms + interval, LastBefore: 1, FirstAfter: 2, SenderLate: 50 * ms}},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := book(c.in)
			c.want.Flow, c.want.Interval = 1, interval
			opts := cmp.Options{cmpopts.EquateEmpty(), cmpopts.IgnoreFields(FlowReport{}, "Latency", "FirstArrivalMono", "LastArrivalMono")}
			for i := range c.want.Gaps {
				c.want.Gaps[i].Start = time.Unix(0, 0).Add(c.want.Gaps[i].StartMono)
			}
			if d := cmp.Diff(c.want, got, opts); d != "" {
				t.Errorf("report (-want +got):\n%s", d)
			}
		})
	}
}

// TestAccountAgainstModel compares the runs with a set of numbers, over random loss, duplication and reordering.
func TestAccountAgainstModel(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 0))
		var as []arrival
		for seq := range uint64(200) {
			for range []int{0, 1, 1, 1, 2}[rng.IntN(5)] {
				as = append(as, arrival{packet(seq), packet(seq).Sent + delay + time.Duration(rng.IntN(40))*ms})
			}
		}
		slices.SortStableFunc(as, func(a, b arrival) int { return int(a.at - b.at) })
		seen := map[uint64]bool{}
		want := FlowReport{FirstSeq: as[0].p.Seq}
		for i, a := range as {
			switch {
			case seen[a.p.Seq]:
				want.Duplicates++
			case i > 0 && a.p.Seq < want.LastSeq:
				want.Reordered++
			}
			seen[a.p.Seq] = true
			want.FirstSeq, want.LastSeq = min(want.FirstSeq, a.p.Seq), max(want.LastSeq, a.p.Seq)
		}
		want.Received = uint64(len(seen))
		want.Lost = want.LastSeq - want.FirstSeq + 1 - want.Received
		got := book(as)
		for _, l := range got.Losses {
			for s := l.FirstSeq; s < l.end(); s++ {
				if seen[s] {
					t.Fatalf("seed %d: packet %d is listed as lost and came", seed, s)
				}
			}
			if l.SentMono != packet(l.FirstSeq).Sent {
				t.Fatalf("seed %d: run %+v was sent at %v", seed, l, packet(l.FirstSeq).Sent)
			}
		}
		got = FlowReport{
			FirstSeq: got.FirstSeq, LastSeq: got.LastSeq, Received: got.Received, Lost: got.Lost,
			Duplicates: got.Duplicates, Reordered: got.Reordered,
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("seed %d (-want +got):\n%s", seed, d)
		}
	}
}

// TestAccountIsBounded: every second packet lost, for longer than the lists are, and still no packet is miscounted.
func TestAccountIsBounded(t *testing.T) {
	const received = maxLosses + 1000
	a := newAccount(packet(0), 1) // two intervals of silence are a gap
	for i := range uint64(received) {
		a.arrive(packet(2*i), packet(2*i).Sent+delay)
	}
	r := a.result(time.Time{})
	const listed = received - 1 - maxLosses/4
	if len(r.Losses) != listed || len(r.Gaps) != maxGaps || r.GapsOmitted != received-1-maxGaps {
		t.Errorf("%d losses, %d gaps, %d omitted", len(r.Losses), len(r.Gaps), r.GapsOmitted)
	}
	if r.Lost != received-1 || r.LossesOmitted != maxLosses/4 {
		t.Errorf("%d lost, %d of them not listed, want %d", r.Lost, r.LossesOmitted, received-1)
	}
	a.arrive(packet(1), packet(2*received).Sent) // forgotten: it cannot be told from a copy
	if again := a.result(time.Time{}); again.Received != r.Received || again.Duplicates != 1 {
		t.Errorf("a forgotten packet that came after all: %+v", again.Duplicates)
	}
}

func TestHistogram(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var h histogram
	var all []time.Duration
	for range 10_000 {
		d := time.Duration(rng.Uint64() >> (1 + rng.IntN(63)))
		h.add(d)
		all = append(all, d)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 1} {
		truth := all[int(q*float64(len(all)))-1]
		if got := h.quantile(q); got < truth || float64(got) > float64(truth)*(1+1.0/subBuckets)+1 {
			t.Errorf("quantile %v is %d, want %d or up to 3.2 %% more", q, got, truth)
		}
	}
	if s := h.summary(); s.Min != all[0] || s.Max != all[len(all)-1] {
		t.Errorf("summary %+v", s)
	}
	if s := new(histogram).summary(); s != (Latency{}) {
		t.Errorf("nothing summed up to %+v", s)
	}
	for v := range uint64(1 << 20) {
		if i := bucket(v); uint64(bucketEnd(i)) < v || i > 0 && uint64(bucketEnd(i-1)) >= v {
			t.Fatalf("%d is not in its bucket %d", v, i)
		}
	}
	if i := bucket(1<<63 - 1); i >= buckets {
		t.Errorf("the largest duration is in bucket %d of %d", i, buckets)
	}
}
