package flow

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// sentReport is the report of a sender that sent n packets on time.
func sentReport(n uint64) SendReport {
	return SendReport{
		Flow: 1, Interval: interval, Sent: n, StartMono: start, EndMono: packet(n - 1).Sent,
		Start: time.Unix(0, 0).Add(start),
	}
}

func received(as []arrival) RecvReport {
	r := RecvReport{GapIntervals: 3}
	if len(as) > 0 {
		r.Flows = []FlowReport{{Flow: 7, Received: 5}, book(as)}
	}
	return r
}

func TestMerge(t *testing.T) {
	at := func(seq uint64) time.Duration { return packet(seq).Sent + delay }
	for name, c := range map[string]struct {
		sent   uint64
		in     []arrival
		lost   uint64
		losses []LossRun
		gaps   []Gap
	}{
		"nothing lost": {10, onTime(span(0, 9)...), 0, nil, nil},
		"nothing sent": {0, nil, 0, nil, nil},
		"nothing received": {
			100, nil, 100,
			[]LossRun{{0, 100, start}},
			[]Gap{{StartMono: start, Length: 99 * interval, Lost: 100, FirstAfter: 100, Open: true}},
		},
		"the first lost": {
			100, onTime(span(20, 99)...), 20,
			[]LossRun{{0, 20, start}},
			[]Gap{{StartMono: start + delay, Length: 20 * interval, Lost: 20, FirstAfter: 20}},
		},
		"the last lost": {
			100, onTime(span(0, 79)...), 20,
			[]LossRun{{80, 20, packet(80).Sent}},
			[]Gap{{StartMono: at(79), Length: 20 * interval, Lost: 20, LastBefore: 79, FirstAfter: 100, Open: true}},
		},
		"one lost at each end is no gap": {
			100, onTime(span(1, 98)...), 2,
			[]LossRun{{0, 1, start}, {99, 1, packet(99).Sent}},
			nil,
		},
		"everywhere": {
			100, onTime(append(span(10, 40), span(50, 89)...)...), 29,
			[]LossRun{{0, 10, start}, {41, 9, packet(41).Sent}, {90, 10, packet(90).Sent}},
			[]Gap{
				{StartMono: start + delay, Length: 10 * interval, Lost: 10, FirstAfter: 10},
				{StartMono: at(40), Length: 10 * interval, Lost: 9, LastBefore: 40, FirstAfter: 50},
				{StartMono: at(89), Length: 10 * interval, Lost: 10, LastBefore: 89, FirstAfter: 100, Open: true},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Merge(sentReport(c.sent), received(c.in))
			if err != nil {
				t.Fatal(err)
			}
			if m.Lost != c.lost || m.Received+m.Lost != c.sent {
				t.Errorf("%d sent, %d received, %d lost, want %d", m.Sent, m.Received, m.Lost, c.lost)
			}
			for i := range c.gaps {
				c.gaps[i].Start = time.Unix(0, 0).Add(c.gaps[i].StartMono)
			}
			utc := cmp.Transformer("UTC", func(t time.Time) time.Time { return t.UTC() })
			if d := cmp.Diff(c.losses, m.Losses, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("losses (-want +got):\n%s", d)
			}
			if d := cmp.Diff(c.gaps, m.Gaps, cmpopts.EquateEmpty(), utc); d != "" {
				t.Errorf("gaps (-want +got):\n%s", d)
			}
		})
	}
}

func TestMergeRefusesStrangers(t *testing.T) {
	if _, err := Merge(sentReport(10), received(onTime(span(0, 10)...))); !errors.Is(err, ErrMismatch) {
		t.Errorf("more received than sent: %v", err)
	}
}

func TestMergeLeavesTheReportsAlone(t *testing.T) {
	r := received(onTime(append(span(5, 40), span(50, 89)...)...))
	before := book(onTime(append(span(5, 40), span(50, 89)...)...))
	if _, err := Merge(sentReport(100), r); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, r.Flows[1]); d != "" {
		t.Errorf("changed (-want +got):\n%s", d)
	}
}

// TestWindow: what an event cost is counted by when packets were due, and the gap it made is given whole.
func TestWindow(t *testing.T) {
	s := sentReport(300)
	s.Failed, s.SendErrors = 30, map[string]uint64{"network is unreachable": 30}
	s.Failures = []SendFailure{{110, 30, "network is unreachable"}}
	m, err := Merge(s, received(onTime(append(append(span(0, 99), span(150, 199)...), span(210, 299)...)...)))
	if err != nil {
		t.Fatal(err)
	}
	type cost struct {
		Sent, Lost, Unreachable uint64
		Gaps                    int
		Worst                   time.Duration
	}
	due := func(seq uint64) time.Duration { return packet(seq).Sent }
	for name, c := range map[string]struct {
		from, to time.Duration
		want     cost
	}{
		"everything":           {0, 2 * start, cost{300, 60, 30, 2, 51 * interval}},
		"before":               {due(0), due(90), cost{Sent: 90}},
		"the first event":      {due(95), due(190), cost{95, 50, 30, 1, 51 * interval}},
		"half of it":           {due(120), due(130), cost{10, 10, 10, 1, 51 * interval}},
		"the second event":     {due(195), due(250), cost{55, 10, 0, 1, 11 * interval}},
		"ends at a due packet": {due(99), due(100), cost{Sent: 1}},
		"empty":                {due(120), due(120), cost{}},
		"upside down":          {due(130), due(120), cost{}},
		"after":                {due(400), due(500), cost{}},
	} {
		w := m.Window(c.from, c.to)
		got := cost{w.Sent, w.Lost, w.SendErrors["network is unreachable"], w.Gaps, w.WorstGap.Length}
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestMeter(t *testing.T) {
	m := meter{interval: 100 * ms}
	m.opened(10 * time.Second)
	m.received(10*time.Second+50*ms, 100)
	m.opened(10*time.Second + 60*ms)
	m.received(10*time.Second+90*ms, 10)
	m.received(10*time.Second+340*ms, 7) // 250 ms of silence
	m.closed(10*time.Second + 350*ms)
	m.closed(10*time.Second + 360*ms)
	m.opened(20 * time.Second) // silence without a stream is none
	m.received(20*time.Second+40*ms, 1)
	if m.stall != 250*ms || m.stallStart != 10*time.Second+90*ms {
		t.Errorf("longest stall %v at %v", m.stall, m.stallStart)
	}
	m.finish(20*time.Second + 400*ms) // still open, silent for 360 ms
	if m.stall != 360*ms || m.stallStart != 20*time.Second+40*ms {
		t.Errorf("longest stall %v at %v", m.stall, m.stallStart)
	}
	if m.bytes != 118 || len(m.series) != 104 || m.series[0] != 110 || m.series[3] != 7 || m.series[100] != 1 || m.series[103] != 0 {
		t.Errorf("%d bytes, series %v", m.bytes, m.series)
	}
}

func TestSendFailuresRunTogether(t *testing.T) {
	r := SendReport{SendErrors: map[string]uint64{}}
	a, b := errors.New("a"), errors.New("b")
	for seq, err := range []error{nil, a, a, b, nil, b, a} {
		if r.Sent = uint64(seq); err != nil {
			r.fail(err)
		}
	}
	want := []SendFailure{{1, 2, "a"}, {3, 1, "b"}, {5, 1, "b"}, {6, 1, "a"}}
	if d := cmp.Diff(want, r.Failures); d != "" {
		t.Errorf("failures (-want +got):\n%s", d)
	}
	if r.Failed != 5 || r.SendErrors["a"] != 3 || r.SendErrors["b"] != 2 {
		t.Errorf("%d failed: %v", r.Failed, r.SendErrors)
	}
}
