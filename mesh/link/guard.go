package link

import (
	"math"
	"time"
)

const (
	// tolerated lateness of the node's own timers is no trouble.
	tolerated = 5 * time.Millisecond
	// lateMemory is the time in which half of the lateness is forgotten.
	lateMemory = time.Second
	// forgotten is lateness that is none any more.
	forgotten = time.Millisecond
	// chorus is how many links must fall silent together to be a sign.
	chorus = 2
	// held is more than any window; a link takes one window of it at most.
	held = time.Hour
)

// A Guard keeps a starving node from blaming its neighbours. It does what
// Lifeguard's local health multiplier does for gossip (Dadgar, Phillips and
// Currey, arXiv 1707.00788): who is late himself waits longer for others. The
// zero value is ready.
//
// Every window is granted at most once more, so a real outage of everything is
// seen within twice the usual time, and the time in which the node did not run.
type Guard struct {
	late time.Duration // worst lately
	at   time.Time     // when it was right
	// grace is what all links are granted.
	grace time.Duration
}

// Watch looks at the node's own health before its links are judged: late is
// how long after its own deadline the node was called, or how old the newest
// datagram was when it was read, whichever is more; links are all links of
// the node. What has arrived must have been received before. It reports whether
// the links' deadlines may be others than before.
func (g *Guard) Watch(now time.Time, late time.Duration, links []*Link) (changed bool) {
	if since := now.Sub(g.at); !g.at.IsZero() {
		g.late = time.Duration(float64(g.late) * math.Exp2(-float64(since)/float64(lateMemory)))
		if g.late < forgotten {
			g.late = 0
		}
		late = min(late, since) // earlier lateness has been excused
	}
	g.at = now
	if late > tolerated {
		g.late = max(g.late, late)
		for _, l := range links {
			l.excuse(now, late)
		}
	}
	grace := g.late
	if allSilent(now, links) {
		grace = held
	}
	if grace == 0 && g.grace == 0 {
		return false
	}
	g.grace = grace
	for _, l := range links {
		l.grace = grace
	}
	return true
}

// allSilent reports whether every link that is used misses two probes. Then
// there is no better link either, and nothing is lost by a second look.
func allSilent(now time.Time, links []*Link) bool {
	usable := 0
	for _, l := range links {
		if !l.Usable() || l.heard.IsZero() {
			continue
		}
		l.grace = 0
		if now.Before(l.echoFrom()) {
			return false
		}
		usable++
	}
	return usable >= chorus
}
