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
	// round is the time between two moves of the coordinate.
	round = 10 * time.Second
	// period is how often what is published is looked at, and patience is how
	// many looks in a row must find it wrong before it changes.
	passes       = 8
	placeTol = 0.2
	settle       = 5 * time.Minute
	settledError = 40
	settleAnyway = 20 * time.Minute
	period       = 45 * time.Second
	patience     = 3
	// tolerance is the relative error that is put up with. Round trips below
	// floor count as floor: 3 ms are put up with in any case.
	tolerance = 0.2
	floor     = 15 * time.Millisecond
	// gain is the share of the old error at which a new coordinate is better.
	gain = 0.95
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
	wrong     int // looks in a row
	entries   map[mesh.NodeID]*entry
	first     time.Time
	nextRound time.Time
	nextLook  time.Time
}

// entry is a measured round trip.
type entry struct {
	published time.Duration // 0: not yet
	newest    time.Duration // smallest since the last look, 0: none
	last      time.Duration // smallest before the last look
	at        time.Time     // of the newest measurement
	wrong     int           // looks in a row
}

// NewPublisher makes a Publisher that starts where last, the node's report from
// before a restart, left it; a zero Report starts anew.
func NewPublisher(now time.Time, rng *rand.Rand, last Report) *Publisher {
	if last.Coordinate.Check() != nil {
		last.Coordinate = Published{}
	}
	p := &Publisher{published: last.Coordinate, vivaldi: newVivaldi(rng, last.Coordinate), entries: map[mesh.NodeID]*entry{}}
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
// it every ten seconds; more often changes nothing. coordinateOf gives what a
// node has published, zero when it has not; what fails Check is left out.
//
// What is published changes when it was more than 20 % and 3 ms wrong in three
// periods of 45 s in a row: a round trip against the smallest of the period; the
// coordinate, on average, against all round trips, and only if the new one does
// better. A coordinate that is not Usable is followed at every call: nobody
// builds on it, and others need it to find their place.
func (p *Publisher) Update(now time.Time, coordinateOf func(mesh.NodeID) Published) (Report, bool) {
	changed := false
	if !now.Before(p.nextRound) {
		p.nextRound = now.Add(round)
		changed = p.move(now, coordinateOf)
	}
	if !now.Before(p.nextLook) {
		p.nextLook = now.Add(period)
		changed = p.look(now, coordinateOf) || changed
	}
	r := Report{Coordinate: p.published, RTT: map[mesh.NodeID]time.Duration{}}
	for id, e := range p.entries {
		if e.published > 0 {
			r.RTT[id] = e.published
		}
	}
	return r, changed
}

// move lets every known round trip push or pull the node once, and reports
// whether the others must be told at once.
func (p *Publisher) move(now time.Time, coordinateOf func(mesh.NodeID) Published) bool {
	for range passes {
		for _, id := range slices.SortedFunc(maps.Keys(p.entries), mesh.NodeID.Compare) {
			if theirs := coordinateOf(id); !theirs.IsZero() && theirs.Check() == nil {
				if p.first.IsZero() {
					p.first = now
				}
				p.vivaldi.update(theirs, p.entries[id].rtt().Seconds())
			}
		}
	}
	current := p.vivaldi.published()
	if p.published.Settled || current == p.published {
		return false
	}
	age := now.Sub(p.first)
	current.Settled = !p.first.IsZero() && (age >= settle && current.Error <= settledError || age >= settleAnyway)
	p.published = current
	return true
}

// look compares what is published with what is measured.
func (p *Publisher) look(now time.Time, coordinateOf func(mesh.NodeID) Published) bool {
	changed := p.trim(now)
	current := p.vivaldi.published()
	var before, after float64 // relative errors, summed
	n := 0
	for _, id := range slices.SortedFunc(maps.Keys(p.entries), mesh.NodeID.Compare) {
		e := p.entries[id]
		if theirs := coordinateOf(id); !theirs.IsZero() && theirs.Check() == nil && !p.published.IsZero() {
			before += off(p.published.Distance(theirs), e.rtt())
			after += off(current.Distance(theirs), e.rtt())
			n++
		}
		changed = e.look() || changed
	}
	if before > placeTol*float64(n) && after < gain*before {
		p.wrong++
	} else {
		p.wrong = 0
	}
	if p.wrong >= patience && p.published.Settled {
		current.Settled = true
		p.published, p.wrong = current, 0
		return true
	}
	return changed
}

// trim forgets what is too old, and the oldest of too many.
func (p *Publisher) trim(now time.Time) bool {
	trimmed := false
	newestFirst := slices.SortedFunc(maps.Keys(p.entries), func(a, b mesh.NodeID) int {
		return cmp.Or(p.entries[b].at.Compare(p.entries[a].at), a.Compare(b))
	})
	for n, id := range newestFirst {
		if e := p.entries[id]; n >= maxEntries || now.Sub(e.at) > keep {
			delete(p.entries, id)
			trimmed = trimmed || e.published > 0
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
