package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"guywire/integration/lab"
)

// A kind of fault.
type kind int

const (
	cutBoth   kind = iota // a cable goes silent
	cutOneWay             // it does so in one direction
	cutPath               // what two uplinks say to each other vanishes in a router; their other traffic does not
	impair                // a cable becomes lossy or slow
	unplug                // a cable loses its carrier
	killAgent             // a meshd gets SIGKILL and is started again
	kinds                 // how many there are
)

var kindNames = [kinds]string{"cut", "one-way cut", "path cut", "impairment", "carrier loss", "agent killed"}

// A fault is one thing that breaks, and is repaired.
type fault struct {
	kind     kind
	at, span time.Duration
	target   string         // link, path or site
	from     string         // cutOneWay: the sending node
	bad      lab.Properties // impair: what is added
}

func (f fault) String() string {
	s := fmt.Sprintf("%6.2f s  %s of %s for %.2f s", f.at.Seconds(), kindNames[f.kind], f.target, f.span.Seconds())
	switch f.kind {
	case cutOneWay:
		s += ", what " + f.from + " sends"
	case impair:
		s += ", " + f.bad.String()
	}
	return s
}

// What a plan may break. Everything is in order, or equal seeds would not give equal plans.
type targets struct {
	cables  []cable
	uplinks []string // cables that can lose their carrier
	paths   []string // between uplinks that a router can tell apart
	sites   []string
}

// A cable is a link with a node at each end.
type cable struct {
	name string
	ends [2]string
}

const (
	firstFault    = 500 * time.Millisecond
	meanBreak     = 450 * time.Millisecond // between the beginnings of two faults
	shortestFault = 200 * time.Millisecond // fault
	longestFault  = 4 * time.Second
	together      = 3 // faults at a time
)

// plan decides what breaks within span. No target has two faults at a time, and no fault lasts beyond the span.
func plan(seed uint64, span time.Duration, t targets) (faults []fault) {
	rng := rand.New(rand.NewPCG(seed, 10))
	busy := func(at time.Duration, same func(fault) bool) (n int) {
		for _, f := range faults {
			if f.at+f.span >= at && (same == nil || same(f)) {
				n++
			}
		}
		return n
	}
	for at := firstFault; ; at += time.Duration(rng.ExpFloat64() * float64(meanBreak)) {
		f := fault{kind: kind(rng.IntN(int(kinds))), at: at, span: shortestFault + time.Duration(rng.Float64()*rng.Float64()*float64(longestFault-shortestFault))}
		if f.at+f.span > span {
			if at+shortestFault > span {
				break
			}
			f.span = span - at
		}
		switch f.kind {
		case cutPath:
			f.target = pick(rng, t.paths)
		case killAgent:
			f.target = pick(rng, t.sites)
		case unplug:
			f.target = pick(rng, t.uplinks)
		default:
			c := pick(rng, t.cables)
			f.target = c.name
			switch f.kind {
			case cutOneWay:
				f.from = c.ends[rng.IntN(2)]
			case impair:
				f.bad = lab.Properties{Loss: lab.Ratio(0.02 + 0.28*rng.Float64())}
				if rng.IntN(2) == 0 {
					f.bad = lab.Properties{Delay: time.Duration(50+rng.IntN(250)) * time.Millisecond}
				}
			}
		}
		if busy(at, nil) < together && busy(at, func(o fault) bool { return o.target == f.target }) == 0 {
			faults = append(faults, f)
		}
	}
	slices.SortStableFunc(faults, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return faults
}

func pick[T any](rng *rand.Rand, from []T) T { return from[rng.IntN(len(from))] }
