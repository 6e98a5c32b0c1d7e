package coordinate

import (
	"cmp"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"guywire/mesh"
)

const (
	// round is the time between two moves of the coordinate, passes how often
	// each known round trip pushes or pulls in one.
	round  = 10 * time.Second
	passes = 8
	// A coordinate settles after this long, if its error is small, or at last.
	settleAfter  = 5 * time.Minute
	settledError = 40 // per cent
	settleAtLast = 20 * time.Minute
	// period is how often what is published is looked at, and patience is how
	// many looks in a row must find it wrong before it changes.
	period   = 45 * time.Second
	patience = 3
	// maxPatience ends the doubling of patience where no coordinate does well.
	maxPatience = 64
	// tolerance is the relative error that is put up with. Round trips below
	// floor count as floor: 3 ms are put up with in any case.
	tolerance = 0.20
	floor     = 15 * time.Millisecond
	// gain is the share of the old error below which a coordinate is better.
	// At 0.8 the nodes of a young mesh wait for each other, and paths stay 4 %
	// longer: together they could improve, but none alone.
	gain = 0.9
	// maxEntries bounds the published round trips; keep is how long one is
	// believed that nobody measures any more.
	maxEntries = 64
	keep       = 24 * time.Hour
)

// A Report is what a node publishes about distances, and what topology reads.
type Report struct {
	Coordinate Published
	RTT        map[mesh.NodeID]time.Duration // to neighbours, and to those it had; at most 64
}

// A Publisher keeps one node's Report.
type Publisher struct {
	vivaldi   *vivaldi
	published Published
	first     time.Time // first move
	wrong     int       // looks in a row at which the coordinate was
	patience  int       // looks of that kind before it changes
	entries   map[mesh.NodeID]*entry
	nextRound time.Time
	nextLook  time.Time
}

// entry is a measured round trip.
type entry struct {
	published time.Duration // 0: not yet
	newest    time.Duration // smallest since the last look, 0: none
	last      time.Duration // smallest of the last period that had one
	at        time.Time     // of the newest measurement
	wrong     int           // looks in a row
}

// NewPublisher makes the publisher of a node that last published last; zero at
// its first start. rng says which way two nodes on one spot part.
func NewPublisher(now time.Time, rng *rand.Rand, last Report) *Publisher {
	if last.Coordinate.Check() != nil {
		last.Coordinate = Published{}
	}
	p := &Publisher{
		vivaldi: newVivaldi(rng, last.Coordinate), published: last.Coordinate, patience: patience,
		entries: map[mesh.NodeID]*entry{},
	}
	for id, rtt := range last.RTT {
		if possible(rtt) {
			p.entries[id] = &entry{published: rtt, last: rtt, at: now}
		}
	}
	return p
}

func possible(rtt time.Duration) bool { return rtt > 0 && rtt <= limit*time.Microsecond }

// Observe takes a measured round trip time, best the smallest of some seconds.
// Impossible ones are ignored.
func (p *Publisher) Observe(now time.Time, peer mesh.NodeID, rtt time.Duration) {
	if !possible(rtt) {
		return
	}
	e := p.entries[peer]
	if e == nil {
		e = &entry{}
		p.entries[peer] = e
	}
	if e.newest == 0 || rtt < e.newest {
		e.newest = rtt
	}
	e.at = now
}

// Update moves the coordinate and gives the report, and whether it is news. Call
// it every ten seconds; more often does nothing. coordinateOf gives what a node
// has published, zero when it has not; what fails Check is left out.
//
// A round trip is published at the next look, 45 s at most after the first
// measurement. It changes when three looks in a row found the smallest of their
// periods more than 20 % and 3 ms away. A coordinate is news at every move until
// it is settled, which takes five minutes; after that it changes when it was, on
// average over all measured round trips, as wrong as that at three looks in a
// row, and the new one is better.
func (p *Publisher) Update(now time.Time, coordinateOf func(mesh.NodeID) Published) (Report, bool) {
	changed := false
	if !now.Before(p.nextRound) {
		p.nextRound = now.Add(round)
		changed = p.move(now, p.springs(coordinateOf))
	}
	if !now.Before(p.nextLook) {
		p.nextLook = now.Add(period)
		for _, e := range p.entries {
			changed = e.look() || changed
		}
		changed = p.trim(now) || changed
		changed = p.look(p.springs(coordinateOf)) || changed
	}
	r := Report{Coordinate: p.published, RTT: map[mesh.NodeID]time.Duration{}}
	for id, e := range p.entries {
		if e.published > 0 {
			r.RTT[id] = e.published
		}
	}
	return r, changed
}

// spring is a measured round trip to a known place.
type spring struct {
	end Published
	rtt time.Duration
}

func (p *Publisher) springs(coordinateOf func(mesh.NodeID) Published) []spring {
	var out []spring
	for _, id := range slices.SortedFunc(maps.Keys(p.entries), mesh.NodeID.Compare) {
		if end := coordinateOf(id); !end.IsZero() && end.Check() == nil {
			out = append(out, spring{end, p.entries[id].rtt()})
		}
	}
	return out
}

// move lets the springs pull, and publishes where to as long as the coordinate
// is not settled. A node without springs publishes, too: somebody must be first.
func (p *Publisher) move(now time.Time, springs []spring) bool {
	if p.first.IsZero() && len(springs) > 0 {
		p.first = now
	}
	for range passes {
		for _, s := range springs {
			p.vivaldi.update(s.end, s.rtt.Seconds())
		}
	}
	current := p.vivaldi.published()
	if p.published.Settled || current == p.published {
		return false
	}
	if age := now.Sub(p.first); !p.first.IsZero() {
		current.Settled = age >= settleAfter && current.Error <= settledError || age >= settleAtLast
	}
	p.published = current
	return true
}

// look compares a settled coordinate with what is measured.
func (p *Publisher) look(springs []spring) bool {
	current := p.vivaldi.published()
	current.Settled = p.published.Settled
	var before, after float64
	for _, s := range springs {
		before += off(p.published.Distance(s.end), s.rtt)
		after += off(current.Distance(s.end), s.rtt)
	}
	fine := before <= tolerance*float64(len(springs))
	if fine {
		p.patience = patience
	}
	if !p.published.Settled || fine || after >= gain*before {
		p.wrong = 0
		return false
	}
	p.wrong++
	if p.wrong < p.patience {
		return false
	}
	p.published, p.wrong, p.patience = current, 0, min(2*p.patience, maxPatience)
	return true
}

// trim forgets what is too old, and the oldest of too many.
func (p *Publisher) trim(now time.Time) bool {
	trimmed := false
	newestFirst := slices.SortedFunc(maps.Keys(p.entries), func(a, b mesh.NodeID) int {
		return cmp.Or(p.entries[b].at.Compare(p.entries[a].at), a.Compare(b))
	})
	for n, id := range newestFirst {
		if n >= maxEntries || now.Sub(p.entries[id].at) > keep {
			delete(p.entries, id)
			trimmed = true
		}
	}
	return trimmed
}

// rtt is the best that is known.
func (e *entry) rtt() time.Duration {
	if e.newest > 0 {
		return e.newest
	}
	return e.last
}

// look ends a period and reports whether the published round trip changed.
func (e *entry) look() bool {
	if e.newest == 0 {
		return false
	}
	e.last, e.newest = e.newest, 0
	if e.published > 0 && off(e.published, e.last) <= tolerance {
		e.wrong = 0
		return false
	}
	e.wrong++
	if e.published > 0 && e.wrong < patience {
		return false
	}
	e.published, e.wrong = e.last, 0
	return true
}

// off is the relative error of a prediction.
func off(predicted, measured time.Duration) float64 {
	return math.Abs((predicted - measured).Seconds()) / max(measured, floor).Seconds()
}
