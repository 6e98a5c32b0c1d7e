package control

import (
	"net/netip"
	"sync"
	"time"
)

// A limiter bounds what those may do who need no right for it: it fills one
// token bucket for each source, and one for all together. It is pure: time
// comes in and must not go back.
type limiter struct {
	source, all rate
	buckets     map[string]bucket
	total       bucket
}

// A rate is what a bucket lets through: each a second, after a burst.
type rate struct{ each, burst float64 }

// A bucket is what was left at a time.
type bucket struct {
	left float64
	at   time.Time
}

func newLimiter(source, all rate, now time.Time) limiter {
	return limiter{source: source, all: all, buckets: map[string]bucket{}, total: bucket{all.burst, now}}
}

// allow takes one from the buckets of a source; false: nothing is left, and
// nothing was taken.
func (l *limiter) allow(source string, now time.Time) bool {
	b, known := l.buckets[source]
	if !known {
		if len(l.buckets) >= maxSources {
			l.forget(now)
		}
		b = bucket{l.source.burst, now}
	}
	b, total := b.filled(l.source, now), l.total.filled(l.all, now)
	// One more source than can be remembered could be any, so it gets nothing.
	if b.left < 1 || total.left < 1 || !known && len(l.buckets) >= maxSources {
		return false
	}
	b.left--
	total.left--
	l.buckets[source], l.total = b, total
	return true
}

// A gate is a limiter for several goroutines.
type gate struct {
	mu      sync.Mutex // guards limiter
	limiter limiter
}

func (g *gate) allow(source string, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.limiter.allow(source, now)
}

func (b bucket) filled(r rate, now time.Time) bucket {
	b.left, b.at = min(r.burst, b.left+r.each*max(0, now.Sub(b.at).Seconds())), now
	return b
}

// forget drops the sources whose buckets are full again.
func (l *limiter) forget(now time.Time) {
	for source, b := range l.buckets {
		if b.filled(l.source, now).left >= l.source.burst {
			delete(l.buckets, source)
		}
	}
}

// sourceOf is what one attacker has: an address, or all of an IPv6 network.
func sourceOf(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if !a.Is6() {
		return a.String()
	}
	return netip.PrefixFrom(a, 64).Masked().String()
}

// A tally counts what happens often and should be told rarely.
type tally struct {
	count int
	since time.Time // of the last report
}

// add counts one; due: it is time to report this many.
func (t *tally) add(now time.Time, every time.Duration) (count int, due bool) {
	t.count++
	if !t.since.IsZero() && now.Sub(t.since) < every {
		return 0, false
	}
	count, t.count, t.since = t.count, 0, now
	return count, true
}
