package rendezvous

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"guywire/discovery"
	"guywire/mesh"
)

const (
	nearest   = 2    // servers that are asked for being near
	strangers = 1    // and for chance, so that others get to be known
	maxRanked = 1024 // servers remembered
)

// A ranking knows which STUN servers answer, and how fast.
type ranking struct {
	mu    sync.Mutex
	known map[netip.AddrPort]health
}

type health struct {
	rtt    time.Duration
	misses int // since the last answer
}

// note takes in how a gathering went.
func (r *ranking) note(g *discovery.Gathering) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil || len(r.known) > maxRanked {
		r.known = map[netip.AddrPort]health{}
	}
	answers := g.Answers()
	for _, s := range g.Servers() {
		h := r.known[s]
		if i := slices.IndexFunc(answers, func(a discovery.Reflexion) bool { return a.Server == s }); i >= 0 {
			h = health{rtt: answers[i].RTT}
		} else {
			h.misses++
		}
		r.known[s] = h
	}
}

// choose gives the servers of one address family to ask: the nearest that answer,
// and others by chance. Of a mesh with one server it gives two ports of that.
func (r *ranking) choose(servers []netip.AddrPort) []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Clone(servers)
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	rank := func(s netip.AddrPort) (int, time.Duration) {
		switch h, known := r.known[s]; {
		case !known:
			return 1, 0
		case h.misses == 0:
			return 0, h.rtt
		default:
			return 1 + h.misses, 0
		}
	}
	slices.SortStableFunc(list, func(a, b netip.AddrPort) int {
		am, art := rank(a)
		bm, brt := rank(b)
		return cmp.Or(cmp.Compare(am, bm), cmp.Compare(art, brt))
	})
	chosen := list[:min(len(list), nearest)]
	rest := list[len(chosen):]
	rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	chosen = append(slices.Clone(chosen), rest[:min(len(rest), strangers)]...)
	if len(chosen) == 1 && chosen[0].Port() == mesh.StunPort {
		chosen = append(chosen, netip.AddrPortFrom(chosen[0].Addr(), mesh.StunPortSecond))
	}
	return chosen
}

// A budget is the node's allowance, for all attempts at once.
type budget struct {
	mu sync.Mutex
	b  discovery.Budget
}

func (b *budget) Allow(now time.Time, target netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Allow(now, target)
}

func (b *budget) Proven(target netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Proven(target)
}
