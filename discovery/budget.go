package discovery

import (
	"net/netip"
	"time"
)

// Limits of what one node sends to one address that has not authenticated
// itself: over all attempts and whoever asked for them, so that several members
// together cannot aim a node at a victim, nor one by many uplinks.
const (
	blindBurst = 60
	blindEvery = 200 * time.Millisecond // after the burst
	blindMost  = 120                    // of a longer burst, as many again in each blindSpan
	blindSpan  = 10 * time.Minute
	// maxTargets bounds the addresses remembered per generation. A flood of them
	// makes us at most twice as generous.
	maxTargets = 4096
)

// An Allowance says who may be sent packets before anything has come from there.
type Allowance interface {
	// Allow takes one packet to the target from what is allowed, if any is left.
	Allow(now time.Time, target netip.Addr) bool
	// Proven says that the target has authenticated itself: it wants what it gets.
	Proven(target netip.Addr)
}

// A Budget is the Allowance of a node, an IPv6 /64 being one target. The zero value
// is ready.
type Budget struct {
	young, old map[netip.Addr]*spending
	since      time.Time
}

// spending is when the two allowances of an address are full again (generic cell
// rate algorithm).
type spending struct{ short, long time.Time }

// Allow implements Allowance.
func (b *Budget) Allow(now time.Time, target netip.Addr) bool {
	target = network(target)
	if b.young == nil || len(b.young) >= maxTargets || now.Sub(b.since) > blindSpan {
		b.old, b.young, b.since = b.young, map[netip.Addr]*spending{}, now
	}
	s := b.young[target]
	if s == nil {
		if s = b.old[target]; s == nil {
			s = &spending{}
		}
		b.young[target] = s
	}
	short := latest(s.short, now).Add(blindEvery)
	long := latest(s.long, now).Add(blindSpan / blindMost)
	if short.Sub(now) > blindBurst*blindEvery || long.Sub(now) > blindSpan {
		return false
	}
	s.short, s.long = short, long
	return true
}

// Proven implements Allowance.
func (b *Budget) Proven(target netip.Addr) {
	delete(b.young, network(target))
	delete(b.old, network(target))
}

func network(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.PrefixFrom(a, 64).Masked().Addr()
	}
	return a
}
