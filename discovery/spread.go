package discovery

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Bounds of a spread. Each end sends to one address, which others must have proven to
// be the peer's, and never more than this, whatever the peer does.
const (
	// SpreadPackets is the most that the easy end sends in one spread. The last
	// spreadTalk are for what follows a match.
	SpreadPackets = 1024
	spreadTalk    = 64
	// SpreadProbes is how many ports the easy end tries.
	SpreadProbes = SpreadPackets - spreadTalk
	spreadEvery  = 2 * time.Millisecond // between two of them, and between the hard end's sockets
	spreadBurst  = 16                   // that leave at once if they are late
	// SpreadSockets is how many ports of its NAT the hard end takes, so that one of
	// 4,096 entries still has room. Each sends twice, so that the hard end sends at
	// most SpreadPacketsHard.
	SpreadSockets     = 128
	SpreadPacketsHard = 2*SpreadSockets + spreadTalk
	// spreadAgain is when the hard end's sockets send for the second time: the easy
	// end has sent all by then, though it may begin most of a second later.
	spreadAgain = 3 * time.Second
	// SpreadTime is a good length for a spread: both, and some round trips.
	SpreadTime = 5 * time.Second

	// The ports that NATs choose from (RFC 4787 REQ-3, and what Linux does).
	spreadPortFirst = 1024
	spreadPorts     = 1<<16 - spreadPortFirst

	spreadsADay = 2 // towards one address, by one node
	day         = 24 * time.Hour
)

// ErrSpread: these two ends do not look for a path by chance.
var ErrSpread = errors.New("no attempt by chance ports")

// A Spread is one end's part in a search for a path by chance, where the hard end's NAT
// gives each destination another random port, and the easy end's lets in only what it
// has sent to, by address and port, so that neither knows where to send. The hard end
// sends from many sockets to the easy end's endpoint, and has as many outside ports
// towards it; the easy end sends from its one port to many ports of the hard end's
// outside address. Where one was guessed, both filters are open: the birthday
// problem, see SpreadOdds. The first packets of the hard end do not arrive, since they
// would surprise the easy end's NAT (bug B40); those that do arrive come when all is
// open that will be.
type Spread struct {
	Hard bool
	// Peer is the easy end's endpoint, or the hard end's address with port 0.
	Peer netip.AddrPort
}

// SpreadOdds is the probability that a spread finds a path if no packet is lost and the
// hard end's NAT chooses evenly: of spreadPorts ports the hard end has some, and
// the easy end tries others without repeating itself, so it misses with
// probability C(ports-sockets, probes)/C(ports, probes), which is about
// exp(-sockets·probes/ports). It is 0.85 for SpreadSockets and SpreadProbes.
// Source: D. Anderson, How NAT traversal works, tailscale.com/blog, 2020 (256 sockets
// and 1,024 probes there: 0.98).
func SpreadOdds(sockets, probes int) float64 {
	miss := 1.0
	for i := range probes {
		miss *= max(0, 1-float64(sockets)/float64(spreadPorts-i))
	}
	return 1 - miss
}

// CanSpread reports whether a spread may find a path between two uplinks that find none
// otherwise: IPv4 passes at both ends, and exactly one NAT is symmetric.
func CanSpread(a, b Uplink) bool {
	return spreads(a.forwarded(a.NAT, netip.Addr.Is4), b.forwarded(b.NAT, netip.Addr.Is4))
}

func spreads(a, b NAT) bool {
	easy := func(n NAT) bool { return n == NATEasy || n == NATEasyPortChanged }
	return easy(a) && b == NATSymmetric || a == NATSymmetric && easy(b)
}

// PlanSpread gives the part of the end that made ours. seen are the addresses at which
// others see the other end now; an address that theirs names itself does not count. It
// fails with ErrSpread.
func PlanSpread(ours, theirs Offer, seen []netip.Addr) (Spread, error) {
	if !spreads(ours.NAT, theirs.NAT) {
		return Spread{}, fmt.Errorf("%w: they are for a symmetric NAT and an easy one, here they are %s and %s", ErrSpread, ours.NAT, theirs.NAT)
	}
	i := slices.IndexFunc(theirs.Candidates, func(c Candidate) bool {
		return c.Kind == CandidateReflexive && c.Addr.Addr().Is4() && Global(c.Addr.Addr()) && slices.Contains(seen, c.Addr.Addr())
	})
	if i < 0 {
		return Spread{}, fmt.Errorf("%w: no other member sees the far end where it says that it is", ErrSpread)
	}
	s := Spread{Hard: ours.NAT == NATSymmetric, Peer: theirs.Candidates[i].Addr}
	if !s.Hard {
		s.Peer = netip.AddrPortFrom(s.Peer.Addr(), 0)
	}
	return s, nil
}

// paths are what a check by chance tries, from start on.
func (s Spread) paths(random *rand.Rand, start time.Time) (list []*path) {
	at := func(i int) time.Time { return start.Add(time.Duration(i) * spreadEvery) }
	if s.Hard {
		for i := range SpreadSockets {
			list = append(list, &path{cand: Candidate{Kind: CandidateReflexive, Addr: s.Peer}, socket: i, next: at(i)})
		}
		return list
	}
	for i, port := range spreadSample(random) {
		list = append(list, &path{cand: Candidate{Kind: CandidatePeerReflexive, Addr: netip.AddrPortFrom(s.Peer.Addr(), port)}, next: at(i)})
	}
	return list
}

// spreadSample gives SpreadProbes different ports.
func spreadSample(random *rand.Rand) (ports []uint16) {
	taken := make(map[uint16]bool, SpreadProbes)
	for len(ports) < SpreadProbes {
		if p := uint16(spreadPortFirst + random.IntN(spreadPorts)); !taken[p] {
			taken[p], ports = true, append(ports, p)
		}
	}
	return ports
}

// blind gives the time to live of a path's next packet before anything has come from
// there, and the pause after it; no pause: it is the last.
func (s Spread) blind(before int) (ttl int, pause time.Duration) {
	if s.Hard && before == 0 {
		return primeTTL, spreadAgain
	}
	return 0, 0
}

// most is how many packets this end sends.
func (s Spread) most() int {
	if s.Hard {
		return SpreadPacketsHard
	}
	return SpreadPackets
}

// tried says what was done in vain.
func (s Spread) tried(paths []*path, sent int) error {
	begun := 0
	for _, p := range paths {
		if p.blind > 0 {
			begun++
		}
	}
	what := "%w by chance ports, tried %d of %d with %d packets"
	of := spreadPorts
	if s.Hard {
		what, of = "%w by chance ports, tried %d sockets of %d with %d packets", SpreadSockets
	}
	return fmt.Errorf(what+" (%.0f %% of such attempts find one)", ErrNoPath, begun, of, sent, 100*SpreadOdds(SpreadSockets, SpreadProbes))
}

// A SpreadBudget bounds the spreads of a node by the addresses that they go to. The
// zero value is ready.
type SpreadBudget struct {
	last map[netip.Addr][]time.Time // within a day, at most spreadsADay each
}

// Allow takes one spread to the target from what is allowed, if any is left.
func (b *SpreadBudget) Allow(now time.Time, target netip.Addr) bool {
	if b.last == nil {
		b.last = map[netip.Addr][]time.Time{}
	}
	recent := func(list []time.Time) []time.Time {
		return slices.DeleteFunc(list, func(t time.Time) bool { return now.Sub(t) >= day })
	}
	for a, list := range b.last {
		if list = recent(list); len(list) == 0 {
			delete(b.last, a)
		} else {
			b.last[a] = list
		}
	}
	if len(b.last[target]) >= spreadsADay || len(b.last) >= maxTargets {
		return false
	}
	b.last[target] = append(b.last[target], now)
	return true
}
