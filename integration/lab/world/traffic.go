package world

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"guywire/integration/lab/flow"
)

// The measured flow: a call's worth of packets, dense enough to see a gap of a few milliseconds.
const (
	FlowPPS  = 500
	flowSize = 200 // bytes of UDP payload
	flowPort = 7000
	echoPort = 7002
)

// NoGap is the longest silence that is not listed as a gap.
const (
	NoGap        = gapIntervals * time.Second / FlowPPS
	gapIntervals = 3 // of the flow
)

// PPS is the rate of the measured flow where machines are slower: slow ones are not to drown in it.
func (w *World) PPS() int { return max(FlowPPS/max(w.Pace, 1), 20) }

// A Traffic is a flow each way between the hosts of two sites.
type Traffic struct {
	w          *World
	ends       [2]*Site
	recv, send []*Program // recv[i] and send[i] are of the flow that ends[i] sends
}

// StartTraffic starts both flows and returns when packets are being sent. The caller ends it by Stop or Abandon.
func (w *World) StartTraffic(ctx context.Context, a, b *Site) (*Traffic, error) {
	if clocks, several := w.Nodes.(interface{ Synchronise(context.Context) error }); several {
		if err := clocks.Synchronise(ctx); err != nil {
			return nil, err
		}
	}
	t := &Traffic{w: w, ends: [2]*Site{a, b}}
	for i := range t.ends {
		to := t.ends[1-i]
		t.recv = append(t.recv, w.Launch(ctx, to.Host, w.Exe, "flow", "udp-recv", "--listen", netip.AddrPortFrom(to.Host4, flowPort).String()))
	}
	for _, p := range t.recv {
		if _, err := p.Started(ctx); err != nil {
			t.Abandon()
			return nil, err
		}
	}
	for i, from := range t.ends {
		to := netip.AddrPortFrom(t.ends[1-i].Host4, flowPort).String()
		t.send = append(t.send, w.Launch(ctx, from.Host, w.Exe, "flow", "udp-send", "--to", to,
			"--flow", fmt.Sprint(i+1), "--pps", fmt.Sprint(w.PPS()), "--size", fmt.Sprint(flowSize)))
	}
	return t, nil
}

// underWay is longer than any path of the lab: what was sent last has arrived or never will.
const underWay = 500 * time.Millisecond

// Stop ends the flows, senders first, and gives the account of each direction.
func (t *Traffic) Stop(ctx context.Context) (results [2]flow.Result, err error) {
	defer t.Abandon()
	var sent [2]flow.SendReport
	var received [2]flow.RecvReport
	if err = stopAll(ctx, t.send, sent[:]); err != nil {
		return results, err
	}
	if err = Pause(ctx, underWay); err != nil {
		return results, err
	}
	if err = stopAll(ctx, t.recv, received[:]); err != nil {
		return results, err
	}
	for i := range results {
		if results[i], err = flow.Merge(sent[i], received[i]); err != nil {
			return results, err
		}
	}
	return results, nil
}

// Abandon ends the flows without an account.
func (t *Traffic) Abandon() {
	killAll(t.send...)
	killAll(t.recv...)
}

// text names the flow.
func (t *Traffic) text() string { return t.ends[0].Host + " ↔ " + t.ends[1].Host }

// Rates counts, for span, what the devices of all sites carry.
func (w *World) Rates(ctx context.Context, span time.Duration) (map[string]Rates, error) {
	carried := make([]Rates, len(w.Sites))
	err := w.Each(w.Sites, func(s *Site) error {
		out, err := w.Run(ctx, s.Name, "", w.Exe, InsideVerb, "rates", "--for", span.String())
		if err != nil {
			return err
		}
		return json.Unmarshal(out, &carried[slices.Index(w.Sites, s)])
	})
	bySite := map[string]Rates{}
	for i, s := range w.Sites {
		bySite[s.Name] = carried[i]
	}
	return bySite, err
}

// countFor is how long packets are counted to find the way of a flow.
const countFor = 400 * time.Millisecond

// traces finds the way of both flows by the counters of all sites. Only one traffic may run.
func (t *Traffic) traces(ctx context.Context) (ways [2]Trace, err error) {
	carried, err := t.w.Rates(ctx, countFor)
	if err != nil {
		return ways, err
	}
	t.w.Look(ctx)
	for i, from := range t.ends {
		if ways[i], err = follow(from.Name, t.ends[1-i].Name, float64(t.w.PPS()), carried, t.w.Links); err != nil {
			return ways, err
		}
	}
	return ways, nil
}

// traceLimit is how long a flow may take to have a way, and restLimit how long it is waited for that it keeps to one.
const (
	traceLimit = 15 * time.Second
	restLimit  = 20 * time.Second
)

// Settled waits until both flows have a way from end to end.
func (t *Traffic) Settled(ctx context.Context) (ways [2]Trace, err error) {
	err = t.w.Until(ctx, "flow "+t.text(), traceLimit, func(ctx context.Context) (string, error) {
		for _, p := range append(t.send[:len(t.send):len(t.send)], t.recv...) {
			select {
			case <-p.ended:
				return "", p.failure()
			default:
			}
		}
		found, err := t.traces(ctx)
		if err != nil {
			return err.Error(), nil
		}
		ways = found
		return "", nil
	})
	return ways, err
}

// atRest waits until both flows have kept to their ways for a while, but not for ever: one that is about to move would have
// left before it is hit.
func (t *Traffic) atRest(ctx context.Context, ways [2]Trace) ([2]Trace, error) {
	for deadline := time.Now().Add(restLimit); ; {
		if err := Pause(ctx, quiet); err != nil {
			return ways, err
		}
		before := ways
		var err error
		ways, err = t.Settled(ctx)
		same := slices.Equal(before[0], ways[0]) && slices.Equal(before[1], ways[1])
		if err != nil || same || time.Now().After(deadline) {
			return ways, err
		}
		counts := t.w.uplinkCounts()
		t.w.Screen.Progress("%s moves to %s", t.text(), ways[0].text(counts))
	}
}

// A Felt is what one event did to the traffic between two hosts. Gaps and losses are the worse and the sum of both directions.
type Felt struct {
	Event      string      `json:"event"`
	Flow       string      `json:"flow"`
	GapMs      float64     `json:"gap_ms"`    // without what a late sender adds; 0: no silence above the next
	NoGapMs    float64     `json:"no_gap_ms"` // the longest silence that is not listed
	Open       bool        `json:"open"`      // the flow did not come back
	Sent       uint64      `json:"sent"`      // packets in the time looked at
	Lost       uint64      `json:"lost"`
	Before     string      `json:"path_before"`
	After      string      `json:"path_after"`
	BackBefore string      `json:"path_back_before"`
	BackAfter  string      `json:"path_back_after"`
	Astray     string      `json:"astray"`     // why the flow had no way afterwards; empty: it had
	Directions []Direction `json:"directions"` // from A, then from B

	Sites []string `json:"-"` // on any of the ways
}

// A Direction is what one of the two flows felt.
type Direction struct {
	From    string       `json:"from"`
	To      string       `json:"to"`
	GapMs   float64      `json:"gap_ms"` // as in Felt
	Felt    flow.Window  `json:"felt"`
	Latency flow.Latency `json:"latency"` // of the whole flow
	// LostAtReceiver of the lost packets at most, in the whole flow, met a full socket of the receiving host.
	LostAtReceiver uint64 `json:"lost_at_receiver"`
}

// account fills in what the flows felt from the event at `at` until end.
func (r *Felt) account(ends [2]*Site, results [2]flow.Result, at, end time.Duration) {
	for i, res := range results {
		r.NoGapMs = float64(gapIntervals*res.Interval) / float64(time.Millisecond)
		// What was under way at the event was sent one path delay before.
		from := at - min(res.Latency.P99, underWay)
		felt := res.Window(from, end)
		gap := float64(felt.WorstGap.Length-felt.WorstGap.SenderLate) / float64(time.Millisecond)
		r.Directions = append(r.Directions, Direction{ends[i].Host, ends[1-i].Host, gap, felt, res.Latency, res.LostAtReceiver})
		r.GapMs = max(r.GapMs, gap)
		for _, g := range res.Gaps {
			r.Open = r.Open || g.Open && g.StartMono < end
		}
		r.Sent += felt.Sent
		r.Lost += felt.Lost
	}
}
