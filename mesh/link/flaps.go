package link

import (
	"math"
	"time"
)

const (
	// suspicion is what a suspicion counts beside a fall.
	suspicion = 0.25
	// flapMemory is the time in which half of the flaps are forgotten.
	flapMemory = 2 * time.Minute
	// firstHold follows the first fall; each further doubles it, up to mostHold.
	firstHold = time.Second
	mostHold  = time.Minute
	// mostFlaps bounds the memory.
	mostFlaps = 7
)

// flaps damp a link that fails again and again, in the manner of RFC 2439: each
// failure is a penalty, which decays, and the penalty sets for how long a link
// that came back must stay before it is used: 1, 2, 4 .. 60 s. The times are
// those of an overlay, where a link has peers to lean on, not those of BGP.
type flaps struct {
	penalty float64
	at      time.Time // when penalty was right
	until   time.Time // the link is damped
}

func (f *flaps) add(now time.Time, weight float64) {
	f.penalty = min(f.now(now)+weight, mostFlaps)
	f.at = now
}

func (f *flaps) now(now time.Time) float64 {
	return f.penalty * math.Exp2(-float64(now.Sub(f.at))/float64(flapMemory))
}

// hold begins when the link is back.
func (f *flaps) hold(now time.Time) {
	// The fall that has just ended has decayed a little: it is still one.
	if p := f.now(now) + 0.1; p >= 1 {
		f.until = now.Add(min(time.Duration(float64(firstHold)*math.Exp2(p-1)), mostHold))
	}
}
