package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"guywire/integration/lab/flow"
)

// The measured flow: a call's worth of packets, dense enough to see a gap of a few milliseconds.
const (
	flowPPS  = 500
	flowSize = 200 // bytes of UDP payload
	flowPort = 7000
	echoPort = 7002
)

// noGap is the longest silence that is not listed as a gap: three intervals of the flow.
const noGap = 3 * time.Second / flowPPS

// A traffic is a flow each way between the hosts of two sites.
type traffic struct {
	w          *world
	ends       [2]*site
	recv, send []*program // recv[i] and send[i] are of the flow that ends[i] sends
}

// start starts both flows and returns when packets are being sent. The caller ends it by stop or abandon.
func (w *world) start(ctx context.Context, a, b *site) (*traffic, error) {
	t := &traffic{w: w, ends: [2]*site{a, b}}
	for i := range t.ends {
		to := t.ends[1-i]
		t.recv = append(t.recv, w.launch(ctx, to.host, "", w.exe, "flow", "udp-recv", "--listen", netip.AddrPortFrom(to.host4, flowPort).String()))
	}
	for _, p := range t.recv {
		if _, err := p.started(ctx); err != nil {
			t.abandon()
			return nil, err
		}
	}
	for i, from := range t.ends {
		to := netip.AddrPortFrom(t.ends[1-i].host4, flowPort).String()
		t.send = append(t.send, w.launch(ctx, from.host, "", w.exe, "flow", "udp-send", "--to", to,
			"--flow", fmt.Sprint(i+1), "--pps", fmt.Sprint(flowPPS), "--size", fmt.Sprint(flowSize)))
	}
	return t, nil
}

// underWay is longer than any path of the lab: what was sent last has arrived or never will.
const underWay = 500 * time.Millisecond

// stop ends the flows, senders first, and gives the account of each direction.
func (t *traffic) stop(ctx context.Context) (results [2]flow.Result, err error) {
	defer t.abandon()
	var sent [2]flow.SendReport
	var received [2]flow.RecvReport
	if err = stopAll(ctx, t.send, sent[:]); err != nil {
		return results, err
	}
	if err = pause(ctx, underWay); err != nil {
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

// abandon ends the flows without an account.
func (t *traffic) abandon() {
	killAll(t.send...)
	killAll(t.recv...)
}

// text names the flow.
func (t *traffic) text() string { return t.ends[0].host + " ↔ " + t.ends[1].host }

// countFor is how long packets are counted to find the way of a flow.
const countFor = 400 * time.Millisecond

// traces finds the way of both flows by the counters of all sites. Only one traffic may run.
func (t *traffic) traces(ctx context.Context) (ways [2]trace, err error) {
	w := t.w
	carried := make([]rates, len(w.sites))
	err = w.each(w.sites, func(s *site) error {
		out, err := w.run(ctx, s.name, "", w.exe, insideVerb, "rates", "--for", countFor.String())
		if err != nil {
			return err
		}
		for i := range w.sites {
			if w.sites[i] == s {
				return json.Unmarshal(out, &carried[i])
			}
		}
		return nil
	})
	if err != nil {
		return ways, err
	}
	w.look(ctx)
	bySite := map[string]rates{}
	for i, s := range w.sites {
		bySite[s.name] = carried[i]
	}
	for i, from := range t.ends {
		if ways[i], err = follow(from.name, t.ends[1-i].name, flowPPS, bySite, w.links); err != nil {
			return ways, err
		}
	}
	return ways, nil
}

// traceLimit is how long a flow may take to have a way.
const traceLimit = 15 * time.Second

// settled waits until both flows have a way from end to end.
func (t *traffic) settled(ctx context.Context) (ways [2]trace, err error) {
	err = t.w.until(ctx, "flow "+t.text(), traceLimit, func(ctx context.Context) (string, error) {
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

// A Row is what one event did to the traffic between two hosts. Gaps and losses are the worse and the sum of both directions.
type Row struct {
	Step       int          `json:"step"`
	Event      string       `json:"event"`
	Flow       string       `json:"flow"`
	GapMs      float64      `json:"gap_ms"` // without what a late sender adds; 0: no silence above 6 ms
	Open       bool         `json:"open"`   // the flow did not come back
	Sent       uint64       `json:"sent"`   // packets in the time looked at
	Lost       uint64       `json:"lost"`
	Before     string       `json:"path_before"`
	After      string       `json:"path_after"`
	BackBefore string       `json:"path_back_before"`
	BackAfter  string       `json:"path_back_after"`
	LimitMs    float64      `json:"limit_ms"` // promised; 0: none
	NoLoss     bool         `json:"lossless"` // promised
	Verdict    string       `json:"verdict"`  // ok, slow or FAIL
	Why        string       `json:"why"`      // of the verdict, unless ok
	Windows    []flowWindow `json:"directions"`

	sites []string // whose logs matter
}

// flowWindow is what one direction felt.
type flowWindow struct {
	From   string       `json:"from"`
	To     string       `json:"to"`
	Felt   flow.Window  `json:"felt"`
	Result flow.Latency `json:"latency"` // of the whole flow
	// LostAtReceiver of the lost packets at most, in the whole flow, met a full socket of the receiving host.
	LostAtReceiver uint64 `json:"lost_at_receiver"`
}

// account fills in what the flows felt from the event at `at` until end.
func (r *Row) account(ends [2]*site, results [2]flow.Result, at, end time.Duration) {
	for i, res := range results {
		// What was under way at the event was sent one path delay before.
		from := at - min(res.Latency.P99, underWay)
		felt := res.Window(from, end)
		r.Windows = append(r.Windows, flowWindow{ends[i].host, ends[1-i].host, felt, res.Latency, res.LostAtReceiver})
		gap := felt.WorstGap
		r.GapMs = max(r.GapMs, float64(gap.Length-gap.SenderLate)/float64(time.Millisecond))
		for _, g := range res.Gaps {
			r.Open = r.Open || g.Open && g.StartMono < end
		}
		r.Sent += felt.Sent
		r.Lost += felt.Lost
	}
}
