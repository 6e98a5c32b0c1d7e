package link

import "time"

// measure takes a round trip time.
func (l *Link) measure(at time.Time, rtt time.Duration) {
	if l.last != 0 {
		// One outlier is not jitter: what counts of it is bounded by what is
		// usual, so that only a run of them raises the mean.
		d := min((rtt - l.last).Abs(), 4*l.jitter+time.Millisecond)
		l.jitter += (d - l.jitter) / 16
	}
	l.last = rtt
	l.rtt.add(l.clock(at), int64(rtt))
	l.recent.add(l.clock(at), int64(rtt))
}

// A window keeps the extremes of recent values, in a ring of buckets. A bucket
// begins with a value and takes all others of its span. So a window covers
// about buckets × span while values are frequent, and as many values as it has
// buckets while they are rare.
type window struct {
	span    int64 // ns
	count   int
	newest  int
	filled  int
	buckets [10]struct{ from, min, max int64 }
}

func newWindow(buckets int, span time.Duration) window {
	return window{count: buckets, span: int64(span)}
}

func (w *window) add(at, v int64) {
	b := &w.buckets[w.newest]
	if w.filled > 0 && at-b.from < w.span {
		b.min, b.max = min(b.min, v), max(b.max, v)
		return
	}
	if w.filled > 0 {
		w.newest = (w.newest + 1) % w.count
	}
	w.filled = min(w.filled+1, w.count)
	b = &w.buckets[w.newest]
	b.from, b.min, b.max = at, v, v
}

// min is the smallest value, 0 if there is none.
func (w *window) min() int64 {
	if w.filled == 0 {
		return 0
	}
	best := w.buckets[0].min
	for _, b := range w.buckets[1:w.filled] {
		best = min(best, b.min)
	}
	return best
}

// max is the largest value, 0 if there is none.
func (w *window) max() int64 {
	var best int64
	for _, b := range w.buckets[:w.filled] {
		best = max(best, b.max)
	}
	return best
}

const (
	// lossFast and lossSlow are the lengths of the two windows of loss, in
	// probes; the fast one ends lossLag before the newest, because what others
	// have overtaken seems lost for a while.
	lossFast = 128
	lossSlow = 1024
	lossLag  = 8
)

// A lossWindow counts which of the last probes arrived.
type lossWindow struct {
	lost   [lossSlow]bool
	next   int // place of the oldest
	seen   int
	fast   int // lost in the fast window
	slow   int // lost in the slow one
	bursts int // losses among those that follow no other loss
}

// add records that, after step-1 lost probes, one arrived.
func (w *lossWindow) add(step uint32) {
	for range step - 1 {
		w.push(true)
	}
	w.push(false)
}

// found takes back the loss of a probe that others have overtaken: it is as
// many before the newest.
func (w *lossWindow) found(before uint32) {
	back := int(before) + 1
	if back >= lossSlow || !*w.at(back) {
		return
	}
	*w.at(back) = false
	w.slow--
	if back > lossLag && back <= lossLag+lossFast {
		w.fast--
	}
	switch older, newer := back+1 < lossSlow && *w.at(back + 1), *w.at(back - 1); {
	case older && newer:
		w.bursts++
	case !older && !newer:
		w.bursts--
	}
}

// at is the place of the probe that is so many back; 1 is the newest.
func (w *lossWindow) at(back int) *bool { return &w.lost[(w.next+lossSlow-back)%lossSlow] }

func (w *lossWindow) push(lost bool) {
	if *w.at(lossLag) {
		w.fast++
	}
	if *w.at(lossLag + lossFast) {
		w.fast--
	}
	if *w.at(lossSlow) {
		w.slow--
		if !*w.at(lossSlow - 1) {
			w.bursts-- // its last loss leaves
		}
	}
	if lost {
		w.slow++
		if !*w.at(1) {
			w.bursts++
		}
	}
	*w.at(0) = lost
	w.next = (w.next + 1) % lossSlow
	w.seen = min(w.seen+1, lossSlow)
}

// share is the part lost in the fast window; a shorter history counts as
// preceded by success.
func (w *lossWindow) share() float64 { return float64(w.fast) / lossFast }

// slowShare is the part lost in the slow window.
func (w *lossWindow) slowShare() float64 { return float64(w.slow) / float64(max(w.seen, lossFast)) }

// shape is the share lost, now or over a longer time, whichever is worse, and
// the mean length of a burst of losses.
func (w *lossWindow) shape() (share, burst float64) {
	return max(w.share(), w.slowShare()), float64(max(w.slow, 1)) / float64(max(w.bursts, 1))
}
