package flow

import (
	"fmt"
	"slices"
	"time"
)

// Result is the exact account of one flow, from both its ends.
type Result struct {
	Flow     uint32        `json:"flow"`
	Interval time.Duration `json:"interval_ns"`
	Sent     uint64        `json:"sent"`
	Received uint64        `json:"received"`
	Lost     uint64        `json:"lost"` // Sent - Received
	// LostAtSend of them never left the sending host, for the reasons in SendErrors; LostAtReceiver at most reached the
	// receiving host and found its socket buffer full, over all its flows.
	LostAtSend     uint64            `json:"lost_at_send"`
	SendErrors     map[string]uint64 `json:"send_errors"`
	LostAtReceiver uint64            `json:"lost_at_receiver"`
	LossShare      float64           `json:"loss_share"` // Lost / Sent, 0 to 1
	Duplicates     uint64            `json:"duplicates"`
	Reordered      uint64            `json:"reordered"`
	LongestGap     time.Duration     `json:"longest_gap_ns"`
	Gaps           []Gap             `json:"gaps"`
	Losses         []LossRun         `json:"losses"`
	Latency        Latency           `json:"latency"`
	LateSends      uint64            `json:"late_sends"`
	StartMono      time.Duration     `json:"start_mono_ns"` // when packet 0 was due
	EndMono        time.Duration     `json:"end_mono_ns"`   // when the last packet was sent

	failures []SendFailure
}

// Merge puts the two ends of the flow that s sent together. It adds what the receiver cannot know: losses before the
// first and after the last packet received, as gaps too. The sender must have stopped before the receiver, or the
// packets of the time between count as lost. The error is ErrMismatch, if the receiver saw packets that s never sent.
func Merge(s SendReport, r RecvReport) (Result, error) {
	f := FlowReport{Flow: s.Flow, Interval: s.Interval}
	if i := slices.IndexFunc(r.Flows, func(f FlowReport) bool { return f.Flow == s.Flow }); i >= 0 {
		f = r.Flows[i]
	}
	if f.Received > 0 && f.LastSeq >= s.Sent {
		return Result{}, fmt.Errorf("flow %d: received packet %d of %d sent; give each sender a flow number of its own: %w",
			s.Flow, f.LastSeq, s.Sent, ErrMismatch)
	}
	m := Result{
		Flow: s.Flow, Interval: s.Interval, Sent: s.Sent, Received: f.Received, Lost: s.Sent - f.Received,
		LostAtSend: s.Failed, SendErrors: s.SendErrors, LostAtReceiver: r.Overflowed,
		Duplicates: f.Duplicates, Reordered: f.Reordered, LongestGap: f.LongestGap, Latency: f.Latency,
		LateSends: s.Late, StartMono: s.StartMono, EndMono: s.EndMono, failures: s.Failures,
	}
	if s.Sent > 0 {
		m.LossShare = float64(m.Lost) / float64(s.Sent)
	}
	m.Losses, m.Gaps = slices.Concat([]LossRun{}, f.Losses), slices.Concat([]Gap{}, f.Gaps)
	switch {
	case s.Sent == 0:
	case f.Received == 0:
		m.Losses = []LossRun{{Count: s.Sent}}
		m.Gaps = []Gap{edge(s, Gap{StartMono: s.StartMono, Length: s.EndMono - s.StartMono, Lost: s.Sent, FirstAfter: s.Sent, Open: true})}
	default:
		if f.FirstSeq > 0 {
			m.Losses = slices.Insert(m.Losses, 0, LossRun{Count: f.FirstSeq})
			start := s.StartMono + f.Latency.Min // when the first packet should have arrived
			m.Gaps = slices.Insert(m.Gaps, 0,
				edge(s, Gap{StartMono: start, Length: f.FirstArrivalMono - start, Lost: f.FirstSeq, FirstAfter: f.FirstSeq}))
		}
		if tail := s.Sent - 1 - f.LastSeq; tail > 0 {
			m.Losses = append(m.Losses, LossRun{FirstSeq: f.LastSeq + 1, Count: tail})
			end := s.EndMono + f.Latency.Min // when the last packet should have arrived
			m.Gaps = append(m.Gaps, edge(s, Gap{
				StartMono: f.LastArrivalMono, Length: end - f.LastArrivalMono, Lost: tail,
				LastBefore: f.LastSeq, FirstAfter: s.Sent, Open: true,
			}))
		}
	}
	for i := range m.Losses {
		m.Losses[i].SentMono = m.due(m.Losses[i].FirstSeq)
	}
	m.Gaps = slices.DeleteFunc(m.Gaps, func(g Gap) bool { return g.Length <= time.Duration(r.GapIntervals)*s.Interval })
	for _, g := range m.Gaps {
		m.LongestGap = max(m.LongestGap, g.Length)
	}
	return m, nil
}

// edge completes a gap at the start or the end of a flow.
func edge(s SendReport, g Gap) Gap {
	g.Start = s.Start.Add(g.StartMono - s.StartMono)
	g.Length = max(g.Length, 0)
	return g
}

// due returns when packet seq was due to be sent.
func (m Result) due(seq uint64) time.Duration { return m.StartMono + time.Duration(seq)*m.Interval }

// Window is what a flow suffered in a span of time.
type Window struct {
	From time.Duration `json:"from_mono_ns"`
	To   time.Duration `json:"to_mono_ns"`
	Sent uint64        `json:"sent"` // packets due in [From, To)
	Lost uint64        `json:"lost"` // of them
	// SendErrors are the reasons of those of the lost that the sending host refused, by error text.
	SendErrors map[string]uint64 `json:"send_errors"`
	Gaps       int               `json:"gaps"`
	// WorstGap is the longest gap of which any part lies in the window, in its whole length; the zero Gap if there is
	// none, that is if no silence was longer than the receiver's number of intervals.
	WorstGap Gap `json:"worst_gap"`
}

// Window returns what the flow suffered between two moments of CLOCK_MONOTONIC, for instance from an event until the
// next one. Packets belong to the moment at which they were due, gaps to all moments they span.
func (m Result) Window(from, to time.Duration) Window {
	w := Window{From: from, To: to, SendErrors: map[string]uint64{}}
	if from >= to {
		return w
	}
	first, end := m.seqAt(from), m.seqAt(to)
	w.Sent = end - first
	w.Lost = lostBetween(m.Losses, first, end)
	for _, f := range m.failures {
		if lo, hi := max(f.FirstSeq, first), min(f.FirstSeq+f.Count, end); lo < hi {
			w.SendErrors[f.Error] += hi - lo
		}
	}
	for _, g := range m.Gaps {
		if g.StartMono >= to || g.End() <= from {
			continue
		}
		w.Gaps++
		if g.Length > w.WorstGap.Length {
			w.WorstGap = g
		}
	}
	return w
}

// seqAt returns the number of the first packet that is due at at or later, at most Sent.
func (m Result) seqAt(at time.Duration) uint64 {
	if at <= m.StartMono || m.Interval <= 0 {
		return 0
	}
	return min(uint64((at-m.StartMono-1)/m.Interval)+1, m.Sent)
}
