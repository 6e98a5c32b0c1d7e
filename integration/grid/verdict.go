package grid

import (
	"slices"
	"time"

	"guywire/mesh/api"
)

// A verdict is what two sites say about the links between them.
type verdict struct {
	way   Way       // Direct or Carrier when both ends have a link up, else Transit
	at    time.Time // since when
	final bool
	why   string // there is no direct link
}

// grace is how long a failed attempt is not the last word: the next one begins a second later and may do.
const grace = 4 * time.Second

// judge says what the sites have decided. was is what it said last.
func judge(now time.Time, ends [2][]api.Link, was verdict) verdict {
	best := verdict{way: Transit, at: was.at, why: was.why}
	for _, a := range ends[0] {
		for _, b := range ends[1] {
			if a.Local != b.Remote || a.Remote != b.Local || !up(a) || !up(b) {
				continue
			}
			v := verdict{way: Direct, final: true, at: latest(a.Since, b.Since)}
			if carried(a) || carried(b) {
				v.way = Carrier
			}
			if best.way.Worse(v.way) {
				best = v
			}
		}
	}
	if best.final {
		return best
	}
	for _, l := range slices.Concat(ends[0], ends[1]) {
		if why := failure(l); why != "" && best.why == "" {
			best.at, best.why = now, why
		}
	}
	best.final = best.why != "" && now.Sub(best.at) >= grace
	return best
}

func up(l api.Link) bool { return l.State == api.LinkUp || l.State == api.LinkDegraded }

// carried reports whether TLS carries the link: WireGuard then talks to this end's own process.
func carried(l api.Link) bool { return l.Endpoint.Addr().IsLoopback() }

// failure is why there is no link, as its end sees it; empty while it does not know.
func failure(l api.Link) string {
	if l.Device == "" {
		return l.Reason
	}
	return ""
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
