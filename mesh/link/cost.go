package link

import (
	"math"
	"time"

	"guywire/mesh"
)

const (
	// costStep quantises costs.
	costStep mesh.Cost = 250
	// lossLinear and lossSquare are the price of loss, µs per percent of round
	// trips lost and per percent squared; lossMost bounds it.
	lossLinear = 2_500
	lossSquare = 250
	lossMost   = 1_000_000
	// headlessPenalty is added for a far end that has had no agent for
	// headlessPatience: transit avoids it.
	headlessPenalty mesh.Cost = 500_000
	// delaySettle is how long a larger delay must last to be believed, and
	// delayProbes how many of our intervals.
	delaySettle = 300 * time.Millisecond
	delayProbes = 3
	// lossBits is how many lost probes in the last 2 × lossFast are evidence.
	lossBits = 3
	// calmBuckets × calmSpan is how long a link must have been better before
	// its cost falls; then it falls by half the difference each calmStep.
	calmBuckets = 7
	calmSpan    = 5 * time.Second
	calmStep    = 10 * time.Second
	// youth is the time in which a new link's cost falls at once: its first
	// probes wait for the handshake and measure too much.
	youth = 5 * time.Second
)

// Cost is the link's metric, the time that it seems to take one way in µs:
//
//   - half of the smallest round trip of the last second, which ignores
//     queues but sees a step of the path;
//   - the jitter of round trips, that is twice that of one way, as in the
//     effective latency of the E-model's common simplification (ITU-T G.107);
//   - for x percent of round trips lost, 2.5·x + 0.25·x² ms;
//   - half a second if the far end has had no agent for ten seconds.
//
// Delay and loss are announced as levels: they rise soon after the evidence is
// beyond noise, and fall in steps once the link has been better for half a
// minute, so that noise is no news and a link that was bad comes back slowly.
func (l *Link) Cost(now time.Time) mesh.Cost {
	if l.state == Headless && now.Sub(l.since) >= headlessPatience {
		return max(l.cost, costStep).Add(headlessPenalty)
	}
	return max(l.cost, costStep)
}

// appraise brings the cost up to date; tx is the share of our newest probes
// that the far end has missed.
func (l *Link) appraise(at time.Time, tx float64) {
	now := l.clock(at)
	if l.recent.filled == 0 {
		return
	}
	us := (l.recent.min()/2 + int64(l.jitter)) / int64(time.Microsecond)
	margin := max(l.delay.value/10, int64(l.jitter/time.Microsecond)*3/4, 1000)
	l.delay.update(now, us, margin, margin, max(delaySettle, delayProbes*l.every))
	lost := int64(l.loss.fast) + int64(math.Round(tx*lossFast))
	noise := int64(math.Sqrt(float64(l.lossy.value))) // of a Poisson count
	l.lossy.update(now, lost, 4*noise+lossBits-1, max(min(l.lossy.value/2, 2+noise), 2), 0)

	percent := 100 * float64(l.lossy.value) / lossFast
	price := min(lossLinear*percent+lossSquare*percent*percent, lossMost)
	cost := mesh.Cost(l.delay.value) + mesh.Cost(price)
	l.cost = (cost + costStep/2) / costStep * costStep
}

// A level follows a noisy value up soon and down late. It is the one place
// where hysteresis is decided.
type level struct {
	value   int64
	first   int64 // time of the first value, ns
	rising  int64 // since when the value has been above the level, ns; 0: it is not
	stepped int64 // last fall, ns
	calm    window
}

// update takes a value at a time in ns. The level rises to one that has been
// more than up above it for settle, and falls while the largest of the last
// half minute is at least down below it.
func (l *level) update(at, v, up, down int64, settle time.Duration) {
	l.calm.add(at, v)
	if l.first == 0 {
		l.first, l.value = at, v
	}
	switch worst := l.calm.max(); {
	case v > l.value+up:
		if l.rising == 0 {
			l.rising = at
		}
		if at-l.rising >= int64(settle) {
			l.value, l.rising = v, 0
		}
	case v < l.value && at-l.first < int64(youth):
		l.value, l.rising = v, 0
	default:
		l.rising = 0
		if l.value-worst < max(down, 1) || at-l.stepped < int64(calmStep) {
			return
		}
		l.stepped = at
		l.value = (l.value + worst) / 2
		if l.value-worst < down {
			l.value = worst
		}
	}
}
