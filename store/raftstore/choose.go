package raftstore

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
)

const (
	// fiveVotersAbove is the number of members above which a mesh that chooses
	// for itself has five voters, spareAbove that above which it has a learner
	// that is ready to replace one.
	fiveVotersAbove = 20
	spareAbove      = 5
)

// A Candidate is a member of the mesh as the leader sees it.
type Candidate struct {
	ID      mesh.NodeID
	Site    string       // where it is, as an operator said; empty: nobody said
	Network netip.Prefix // that of its control address, /24 or /48: two in one share their fate
	Joined  time.Time

	Voter, Learner bool // in the Raft configuration

	Reachable bool // from other nodes
	Healthy   bool // answers, and has the log to its end
	Stable    bool // has been healthy for some time
	Failed    bool // has not answered for so long that it is replaced
	Drained   bool // is about to stop: does not lead, and gives up its vote to a substitute
	Barred    bool // must not be a voter: its role, or a try that failed lately
}

// fit reports whether the node could become a voter.
func (c Candidate) fit() bool { return c.Reachable && !c.Barred && !c.Failed && !c.Drained }

// stays reports whether the node could be one of the voters, or remain one.
func (c Candidate) stays() bool { return c.fit() || c.Voter && !c.Barred }

// rank orders candidates by how much their vote is worth. A vote that is not
// fit is kept only where there is nobody else.
func (c Candidate) rank() int {
	switch {
	case c.fit():
		return 0
	case c.Failed:
		return 3
	case c.Drained:
		return 2
	default: // others do not reach it, but it answers
		return 1
	}
}

// An Input is what Choose decides on.
type Input struct {
	Self       mesh.NodeID // the leader
	Candidates []Candidate // all live members
	Wanted     int         // voters: 1, 3 or 5; 0: as many as suit the mesh
	// Shrink: there have been more voters than the mesh can keep for some time,
	// so it may give up some that work. Respread: they have been the same for so
	// long that one that works may give way to one at a better place.
	Shrink, Respread bool
}

// Changes are the next steps towards the voters that the mesh should have, in
// the order in which they are taken. Together Promote and Demote leave a number
// of voters that is odd if it was, but for a leader that must not be a voter and
// has no heir yet; and a majority that works.
type Changes struct {
	Learn   []mesh.NodeID // give them the log
	Promote []mesh.NodeID // give them a vote
	Demote  []mesh.NodeID // take it, once those are promoted
	Forget  []mesh.NodeID // learners that are not needed: take the log
	Leader  mesh.NodeID   // hand leadership over to it; zero: do not
}

// IsZero reports whether all is as it should be.
func (c Changes) IsZero() bool {
	return len(c.Learn)+len(c.Promote)+len(c.Demote)+len(c.Forget) == 0 && c.Leader.IsZero()
}

// Choose gives the next changes of who is a voter. Voters are nodes that others
// reach, spread over as many sites, and then networks, as there are; among
// equals those that are voters already, then the oldest. One that failed is
// replaced once its substitute is ready, and kept as long as there is none.
//
// Applied over and over, with nothing else changing, it comes to rest.
func Choose(in Input) Changes {
	want := in.want()
	chosen := in.pick(nil, want)
	spare := []Candidate(nil)
	if len(in.Candidates) > spareAbove && len(chosen) == want {
		spare = in.pick(chosen, want+1)[want:]
		spare = slices.DeleteFunc(spare, func(c Candidate) bool { return c.Voter || !c.fit() })
	}
	has := func(list []Candidate, id mesh.NodeID) bool {
		return slices.ContainsFunc(list, func(c Candidate) bool { return c.ID == id })
	}
	var changes Changes
	for _, c := range slices.Concat(chosen, spare) {
		if !c.Voter && !c.Learner {
			changes.Learn = append(changes.Learn, c.ID)
		}
	}
	var ready, drop []Candidate
	voters, healthy := 0, 0
	for _, c := range chosen {
		if c.Learner && c.Stable {
			ready = append(ready, c)
		}
	}
	for _, c := range in.Candidates {
		switch {
		case c.Voter:
			voters++
			if c.Healthy || c.ID == in.Self {
				healthy++
			}
			if !has(chosen, c.ID) && c.ID != in.Self {
				drop = append(drop, c)
			}
		case c.Learner && !has(chosen, c.ID) && !has(spare, c.ID):
			changes.Forget = append(changes.Forget, c.ID)
		}
	}
	slices.SortStableFunc(drop, func(a, b Candidate) int { // the dead first, then the youngest
		return cmp.Or(compareBool(b.Failed, a.Failed), compareBool(a.Healthy, b.Healthy), b.Joined.Compare(a.Joined), b.ID.Compare(a.ID))
	})
	p, d := step(voters, healthy, want, len(ready), drop)
	for _, c := range ready[:p] {
		changes.Promote = append(changes.Promote, c.ID)
	}
	for _, c := range drop[:d] {
		changes.Demote = append(changes.Demote, c.ID)
	}
	if slices.ContainsFunc(chosen, func(c Candidate) bool { return c.ID == in.Self && !c.Drained }) {
		return changes
	}
	for _, c := range chosen {
		if c.Voter && c.Healthy && !c.Drained {
			changes.Leader = c.ID
			return changes
		}
	}
	if !has(chosen, in.Self) && len(changes.Promote) == 0 && len(ready) > 0 {
		changes.Promote = []mesh.NodeID{ready[0].ID} // an even number, until it leads
	}
	return changes
}

// want is how many voters the mesh should have: an odd number in the long run,
// since one more survives no more failures and stops more often; and so few
// that a majority of them works.
func (in Input) want() int {
	able, alive, working := 0, 0, 0
	for _, c := range in.Candidates {
		if !c.stays() {
			continue
		}
		if able++; c.Failed {
			continue
		}
		if alive++; c.Voter {
			working++
		}
	}
	want := in.Wanted
	if want == 0 {
		want = 3
		if len(in.Candidates) > fiveVotersAbove {
			want = 5
		}
	}
	want = max(1, min(want, able-1+able%2, 2*alive-1))
	if !in.Shrink { // a node that is back in a moment is better than a voter fewer
		want = max(want, working)
	}
	return want
}

// pick adds to chosen the best candidates, one after the other, up to n.
func (in Input) pick(chosen []Candidate, n int) []Candidate {
	chosen = slices.Clone(chosen)
	rest := slices.DeleteFunc(slices.Clone(in.Candidates), func(c Candidate) bool {
		return slices.ContainsFunc(chosen, func(o Candidate) bool { return o.ID == c.ID }) || !c.stays()
	})
	for len(chosen) < n && len(rest) > 0 {
		shares := func(c Candidate) (site, network int) {
			for _, o := range chosen {
				if o.Site == c.Site {
					site++
				}
				if o.Network == c.Network {
					network++
				}
			}
			return site, network
		}
		best := slices.MinFunc(rest, func(a, b Candidate) int {
			aSite, aNetwork := shares(a)
			bSite, bNetwork := shares(b)
			spread := cmp.Or(cmp.Compare(aSite, bSite), cmp.Compare(aNetwork, bNetwork))
			votes := compareBool(b.Voter, a.Voter)
			if !in.Respread {
				spread, votes = votes, spread
			}
			return cmp.Or(
				cmp.Compare(a.rank(), b.rank()),
				compareBool(b.ID == in.Self, a.ID == in.Self),
				spread, votes, compareBool(b.Learner, a.Learner), a.Joined.Compare(b.Joined), a.ID.Compare(b.ID),
			)
		})
		chosen = append(chosen, best)
		rest = slices.DeleteFunc(rest, func(c Candidate) bool { return c.ID == best.ID })
	}
	return chosen
}

// step gives how many of the ready are promoted and how many of drop demoted:
// what brings the mesh nearest to the voters wanted, and leaves an odd number
// of them with a majority that works.
func step(voters, healthy, want, ready int, drop []Candidate) (promote, demote int) {
	type score struct{ distance, even, kept, moves int }
	at := func(p, d int) score {
		n := voters + p - d
		return score{max(n-want, want-n), (n + 1) % 2, len(drop) - d, p + d}
	}
	better := func(a, b score) int {
		return cmp.Or(cmp.Compare(a.even, b.even), cmp.Compare(a.distance, b.distance), cmp.Compare(a.kept, b.kept), cmp.Compare(a.moves, b.moves))
	}
	working := healthy
	for d := range len(drop) + 1 {
		if d > 0 && drop[d-1].Healthy {
			working--
		}
		for p := range ready + 1 {
			n := voters + p - d
			if n < min(voters, want) && voters%2 == 1 || n > max(voters, want) || n < 1 || 2*(working+p) <= n {
				continue
			}
			if better(at(p, d), at(promote, demote)) < 0 {
				promote, demote = p, d
			}
		}
	}
	return promote, demote
}

// compareBool orders false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}
