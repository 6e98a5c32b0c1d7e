package flow

import (
	"slices"
	"sort"
	"time"
)

// account keeps the books of one flow at its receiver. It is pure: arrivals go in with their times, a report comes out.
type account struct {
	gapIntervals int
	report       FlowReport
	latency      histogram
	lastSent     time.Duration // send time of the packet LastSeq
}

func newAccount(p Packet, gapIntervals int) *account {
	return &account{
		gapIntervals: gapIntervals,
		report:       FlowReport{Flow: p.Flow, Interval: p.Interval},
	}
}

// arrive books one packet of the flow that arrived at at.
func (a *account) arrive(p Packet, at time.Duration) {
	r := &a.report
	if r.Received == 0 {
		r.FirstSeq, r.LastSeq = p.Seq, p.Seq
		r.FirstArrivalMono, r.LastArrivalMono = at, at
		r.Received = 1
		a.lastSent = p.Sent
		a.latency.add(at - p.Sent)
		return
	}
	before, sentBefore := r.LastSeq, a.lastSent
	switch {
	case p.Seq > r.LastSeq:
		if missing := p.Seq - r.LastSeq - 1; missing > 0 {
			a.lose(len(r.Losses), LossRun{r.LastSeq + 1, missing, a.lastSent + r.Interval})
		}
		r.LastSeq, a.lastSent = p.Seq, p.Sent
	case p.Seq < r.FirstSeq:
		if missing := r.FirstSeq - p.Seq - 1; missing > 0 {
			a.lose(0, LossRun{p.Seq + 1, missing, p.Sent + r.Interval})
		}
		r.FirstSeq = p.Seq
		r.Reordered++
	case a.find(p):
		r.Reordered++
	default:
		r.Duplicates++
		return
	}
	r.Received++
	a.latency.add(at - p.Sent)
	a.measureGap(p, at, before, sentBefore)
}

// lose inserts a run at index i.
func (a *account) lose(i int, run LossRun) {
	a.report.Losses = slices.Insert(a.report.Losses, i, run)
	a.trim()
}

// trim forgets the oldest quarter of the runs when there are too many; a quarter, so that the cost of moving the rest is
// shared by many. The packets stay lost, even if one should still come.
func (a *account) trim() {
	r := &a.report
	if len(r.Losses) <= maxLosses {
		return
	}
	for _, l := range r.Losses[:maxLosses/4] {
		r.LossesOmitted += l.Count
	}
	r.Losses = slices.Delete(r.Losses, 0, maxLosses/4)
}

// find takes a packet that arrives late out of the run it was missing from, and reports whether it was missing.
func (a *account) find(p Packet) bool {
	r := &a.report
	i := firstBehind(r.Losses, p.Seq)
	if i == len(r.Losses) || r.Losses[i].FirstSeq > p.Seq {
		return false
	}
	run := r.Losses[i]
	parts := []LossRun{
		{run.FirstSeq, p.Seq - run.FirstSeq, run.SentMono},
		{p.Seq + 1, run.end() - p.Seq - 1, p.Sent + r.Interval},
	}
	parts = slices.DeleteFunc(parts, func(l LossRun) bool { return l.Count == 0 })
	r.Losses = slices.Replace(r.Losses, i, i+1, parts...)
	a.trim()
	return true
}

// measureGap closes the silence since the last arrival. before is the highest number received until now and sentBefore
// its send time.
func (a *account) measureGap(p Packet, at time.Duration, before uint64, sentBefore time.Duration) {
	r := &a.report
	start := r.LastArrivalMono
	length := max(at-start, 0) // the kernel's stamps of two processors may cross
	r.LastArrivalMono = start + length
	r.LongestGap = max(r.LongestGap, length)
	if r.Interval == 0 || length <= time.Duration(a.gapIntervals)*r.Interval {
		return
	}
	if len(r.Gaps) == maxGaps {
		r.GapsOmitted++
		return
	}
	g := Gap{StartMono: start, Length: length, LastBefore: before, FirstAfter: p.Seq}
	if p.Seq > before {
		onTime := sentBefore + time.Duration(p.Seq-before)*r.Interval
		g.SenderLate = min(max(p.Sent-onTime, 0), length)
	}
	r.Gaps = append(r.Gaps, g)
}

// result returns the report so far. wall is the wall-clock time at monotonic zero.
func (a *account) result(wall time.Time) FlowReport {
	r := a.report
	r.Latency = a.latency.summary()
	r.Losses = slices.Concat([]LossRun{}, r.Losses)
	r.Lost = r.LossesOmitted
	for _, l := range r.Losses {
		r.Lost += l.Count
	}
	r.Gaps = slices.Concat([]Gap{}, r.Gaps)
	for i := range r.Gaps {
		g := &r.Gaps[i]
		g.Start = wall.Add(g.StartMono)
		g.Lost = lostBetween(r.Losses, g.LastBefore+1, g.FirstAfter)
	}
	return r
}

// lostBetween counts the lost packets numbered in [from, to).
func lostBetween(losses []LossRun, from, to uint64) (n uint64) {
	if from >= to {
		return 0
	}
	for _, l := range losses[firstBehind(losses, from):] {
		if l.FirstSeq >= to {
			break
		}
		n += min(l.end(), to) - max(l.FirstSeq, from)
	}
	return n
}

// firstBehind returns the index of the first run that reaches to seq or beyond it.
func firstBehind(losses []LossRun, seq uint64) int {
	return sort.Search(len(losses), func(i int) bool { return losses[i].end() > seq })
}
