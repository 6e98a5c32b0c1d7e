package link

import (
	"math/bits"
	"time"

	"guywire/mesh"
)

const (
	// costStep quantises announced costs, so that noise is not news.
	costStep mesh.Cost = 250
	// costSettle is how long a measured cost must differ before it is announced.
	costSettle = 5 * time.Second
	// lossPenalty is added per unit of loss: 1 % costs as much as 5 ms.
	lossPenalty = 500_000
)

// measure takes a round trip time.
func (l *Link) measure(at time.Time, rtt time.Duration) {
	if l.last != 0 {
		d := rtt - l.last
		if d < 0 {
			d = -d
		}
		l.jitter += (d - l.jitter) / 16
	}
	l.last = rtt
	l.rtt.add(l.clock(at)/int64(time.Second), rtt)
}

// Cost is the link's metric: half the smallest recent round trip plus a
// penalty for loss, in steps of 250 µs. It changes only after the measurement
// has differed by more than a tenth and a millisecond for five seconds.
func (l *Link) Cost(now time.Time) mesh.Cost {
	loss := max(l.loss.share(), l.txLoss)
	if loss < 0.005 {
		loss = 0
	}
	measured := mesh.Cost(l.rtt.min()/2/time.Microsecond) + mesh.Cost(loss*lossPenalty)
	measured = max((measured+costStep/2)/costStep*costStep, costStep)
	diff := max(measured, l.cost) - min(measured, l.cost)
	switch {
	case l.rtt.min() == 0:
		return max(l.cost, costStep) // nothing measured yet
	case l.cost == 0, measured < l.cost && now.Sub(l.since) < costSettle:
		// The first probes of a link wait for its handshake and measure too
		// much; what a young link does better counts at once.
		l.cost = measured
	case diff <= max(l.cost/10, 1000):
		l.costMoved = time.Time{}
	case l.costMoved.IsZero():
		l.costMoved = now
	case now.Sub(l.costMoved) >= costSettle:
		l.cost, l.costMoved = measured, time.Time{}
	}
	if l.state == Headless && now.Sub(l.since) > headlessPatience {
		return l.cost.Add(headlessPenalty)
	}
	return l.cost
}

// A minFilter keeps the minimum of about the last ten seconds, in ten buckets.
type minFilter struct {
	buckets [10]struct {
		second int64
		min    time.Duration
	}
	newest int64
}

func (f *minFilter) add(second int64, v time.Duration) {
	b := &f.buckets[second%int64(len(f.buckets))]
	if b.second != second || v < b.min {
		b.second, b.min = second, v
	}
	f.newest = max(f.newest, second)
}

func (f *minFilter) min() time.Duration {
	var best time.Duration
	for _, b := range f.buckets {
		if b.min != 0 && b.second > f.newest-int64(len(f.buckets)) && (best == 0 || b.min < best) {
			best = b.min
		}
	}
	return best
}

// A lossWindow counts which of the last 256 probes arrived.
type lossWindow struct {
	bits [4]uint64 // 1: lost
	seen int
}

// add records that, after step-1 lost probes, one arrived.
func (w *lossWindow) add(step uint32) {
	for range min(step-1, 256) {
		w.shift(1)
	}
	w.shift(0)
}

func (w *lossWindow) shift(bit uint64) {
	for i := range w.bits {
		w.bits[i], bit = w.bits[i]<<1|bit, w.bits[i]>>63
	}
	w.seen = min(w.seen+1, 256)
}

func (w *lossWindow) share() float64 {
	if w.seen == 0 {
		return 0
	}
	lost := 0
	for _, b := range w.bits {
		lost += bits.OnesCount64(b)
	}
	return float64(lost) / float64(w.seen)
}
