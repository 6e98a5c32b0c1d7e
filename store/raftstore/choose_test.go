package raftstore

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
)

// follow applies Choose until nothing changes, as if every node did what it is
// told, and checks each step on the way.
func follow(t *testing.T, in Input) Input {
	t.Helper()
	find := func(id mesh.NodeID) *Candidate {
		for i := range in.Candidates {
			if in.Candidates[i].ID == id {
				return &in.Candidates[i]
			}
		}
		t.Fatalf("Choose names %s, which is no member", id)
		return nil
	}
	for range 40 {
		c := Choose(in)
		if c.IsZero() {
			return in
		}
		before, working := count(in)
		for _, id := range c.Learn {
			n := find(id)
			if n.Voter || n.Learner || n.Barred || n.Drained || !n.Reachable {
				t.Fatalf("%+v is to learn", n)
			}
			n.Learner, n.Healthy, n.Stable = true, true, true
		}
		for _, id := range c.Promote {
			n := find(id)
			if !n.Learner || !n.Stable || n.Barred || n.Failed || n.Drained {
				t.Fatalf("%+v gets a vote", n)
			}
			n.Learner, n.Voter = false, true
		}
		for _, id := range c.Demote {
			n := find(id)
			if !n.Voter || id == in.Self {
				t.Fatalf("%+v loses its vote", n)
			}
			n.Voter, n.Learner = false, true
		}
		for _, id := range c.Forget {
			find(id).Learner = false
		}
		after, left := count(in)
		if self := find(in.Self); before%2 == 1 && after%2 == 0 && self.fit() {
			t.Fatalf("from %d voters to %d: %+v", before, after, c)
		}
		if 2*working > before && 2*left <= after {
			t.Fatalf("of %d voters %d work: %+v", after, left, c)
		}
		if !c.Leader.IsZero() {
			if n := find(c.Leader); !n.Voter || !n.Healthy {
				t.Fatalf("%+v is to lead", n)
			}
			in.Self = c.Leader
		}
	}
	t.Fatalf("it does not come to rest: %+v", Choose(in))
	return in
}

func count(in Input) (voters, working int) {
	for _, c := range in.Candidates {
		if c.Voter {
			voters++
			if c.Healthy || c.ID == in.Self {
				working++
			}
		}
	}
	return voters, working
}

// sites is the largest number of voters at one place, and the number of places.
func sites(list []Candidate) (most, n int) {
	at := map[string]int{}
	for _, c := range list {
		at[c.Site]++
		most = max(most, at[c.Site])
	}
	return most, len(at)
}

func TestChooseComesToRest(t *testing.T) {
	t.Parallel()
	for _, seed := range []uint64{
		14276435882500101825, // two voters failed, one barred, one out of reach
		rand.Uint64(),
	} {
		comesToRest(t, seed)
	}
}

func comesToRest(t *testing.T, seed uint64) {
	t.Helper()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 5))
	for range 3000 {
		in := Input{Wanted: []int{0, 1, 3, 5}[random.IntN(4)], Shrink: random.IntN(3) > 0, Respread: random.IntN(2) == 0}
		for i := range 1 + random.IntN(30) {
			c := Candidate{
				ID: mesh.NodeID{byte(i + 1)}, Site: string(rune('a' + random.IntN(4))), Joined: time.Unix(int64(random.IntN(5)), 0),
				Network:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(random.IntN(3))}), 24),
				Reachable: random.IntN(4) > 0, Barred: random.IntN(6) == 0, Failed: random.IntN(6) == 0, Drained: random.IntN(8) == 0,
			}
			c.Voter = i < 5 && random.IntN(2) == 0
			c.Learner = !c.Voter && random.IntN(5) == 0
			c.Healthy = !c.Failed && random.IntN(5) > 0
			c.Stable = c.Healthy && random.IntN(5) > 0
			if i == 0 {
				c.Voter, c.Learner, c.Healthy, c.Failed, c.Reachable = true, false, true, false, true
				in.Self = c.ID
			}
			in.Candidates = append(in.Candidates, c)
		}
		if n, working := count(in); 2*working <= n {
			continue // nobody leads then
		}
		for i := range in.Candidates { // what is slow becomes ready in the end
			if c := &in.Candidates[i]; !c.Failed {
				c.Healthy, c.Stable = true, true
			}
		}
		out := follow(t, in)
		var voters, able []Candidate
		for _, c := range out.Candidates {
			if c.Voter {
				voters = append(voters, c)
			}
			if c.fit() {
				able = append(able, c)
			}
		}
		want := out.want()
		if len(able) == 0 {
			continue // the leader alone is left, whatever was said about it
		}
		if len(voters) != want && (out.Shrink || len(voters) < want) || len(voters)%2 == 0 && out.Shrink {
			t.Fatalf("%d voters, want %d: %+v", len(voters), want, out)
		}
		dead := 0
		for _, c := range voters {
			if c.Barred && out.Shrink {
				t.Fatalf("%+v is a voter", c)
			}
			if !c.fit() {
				dead++
			}
		}
		if out.Shrink && dead > max(0, want-len(able)) {
			t.Fatalf("%d of the voters are dead or out of reach and %d could be voters: %+v", dead, len(able), out)
		}
		if _, possible := sites(able); out.Respread && dead == 0 {
			if most, n := sites(voters); n != min(possible, want) || possible >= 3 && want >= 3 && balanced(able, want/2) >= want && most > want/2 {
				t.Fatalf("%d voters on %d of %d sites, %d on one: %+v", want, n, possible, most, out)
			}
		}
	}
}

// balanced is how many of the nodes can be chosen with at most limit of a site.
func balanced(list []Candidate, limit int) (n int) {
	at := map[string]int{}
	for _, c := range list {
		if at[c.Site]++; at[c.Site] <= limit {
			n++
		}
	}
	return n
}

func TestWantedVoters(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ nodes, reachable, voters, want int }{
		{1, 1, 1, 1},
		{2, 2, 1, 1},
		{3, 2, 1, 1},
		{3, 3, 1, 3},
		{20, 20, 3, 3},
		{21, 4, 3, 3},
		{21, 5, 3, 5},
		{500, 400, 5, 5},
		{4, 0, 3, 3}, // voters count as reachable: nothing is torn down for a bad measurement
	} {
		in := Input{Shrink: true}
		for i := range tc.nodes {
			in.Candidates = append(in.Candidates, Candidate{ID: mesh.NodeID{byte(i), byte(i >> 8)}, Reachable: i < tc.reachable, Voter: i < tc.voters})
		}
		if got := in.want(); got != tc.want {
			t.Errorf("%+v: %d voters wanted", tc, got)
		}
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	node := func(i int, site string, change func(*Candidate)) Candidate {
		c := Candidate{ID: mesh.NodeID{byte(i)}, Site: site, Joined: time.Unix(int64(i), 0), Reachable: true, Healthy: true, Stable: true}
		if change != nil {
			change(&c)
		}
		return c
	}
	voter := func(c *Candidate) { c.Voter = true }
	dead := func(c *Candidate) { c.Voter, c.Healthy, c.Stable, c.Failed = true, false, false, true }
	learner := func(c *Candidate) { c.Learner = true }
	drained := func(c *Candidate) { c.Voter, c.Drained = true, true }
	barred := func(c *Candidate) { c.Voter, c.Barred = true, true }
	id := func(i ...byte) (ids []mesh.NodeID) {
		for _, b := range i {
			ids = append(ids, mesh.NodeID{b})
		}
		return ids
	}
	for name, c := range map[string]struct {
		in   Input
		want Changes
	}{
		"alone": {Input{Candidates: []Candidate{node(1, "a", voter)}}, Changes{}},
		"two":   {Input{Candidates: []Candidate{node(1, "a", voter), node(2, "b", nil)}}, Changes{}},
		"three": {Input{Candidates: []Candidate{node(1, "a", voter), node(2, "b", nil), node(3, "c", nil)}}, Changes{Learn: id(2, 3)}},
		"one of two is ready": {
			Input{Candidates: []Candidate{node(1, "a", voter), node(2, "b", learner), node(3, "c", func(c *Candidate) { c.Learner, c.Stable = true, false })}},
			Changes{},
		},
		"both are ready":                    {Input{Candidates: []Candidate{node(1, "a", voter), node(2, "b", learner), node(3, "c", learner)}}, Changes{Promote: id(2, 3)}},
		"a dead voter without a substitute": {Input{Candidates: []Candidate{node(1, "a", voter), node(2, "b", voter), node(3, "c", dead)}}, Changes{}},
		"a dead voter and a node":           {Input{Candidates: []Candidate{node(1, "a", voter), node(2, "b", voter), node(3, "c", dead), node(4, "c", nil)}}, Changes{Learn: id(4)}},
		"a dead voter and a substitute": {
			Input{Candidates: []Candidate{node(1, "a", voter), node(2, "b", voter), node(3, "c", dead), node(4, "c", learner)}},
			Changes{Promote: id(4), Demote: id(3)},
		},
		"a drained leader": {
			Input{Candidates: []Candidate{node(1, "a", drained), node(2, "b", voter), node(3, "c", voter), node(4, "c", learner)}},
			Changes{Leader: mesh.NodeID{2}},
		},
		"one voter too many": {Input{Candidates: []Candidate{node(1, "a", voter), node(2, "b", voter)}}, Changes{}},
		"one voter too many for some time": {
			Input{Shrink: true, Candidates: []Candidate{node(1, "a", voter), node(2, "b", voter)}}, Changes{Demote: id(2)},
		},
		"a drained voter without a substitute": {
			Input{Candidates: []Candidate{node(1, "a", voter), node(2, "b", drained), node(3, "c", voter)}}, Changes{},
		},
		"a drained voter and a substitute": {
			Input{Candidates: []Candidate{node(1, "a", voter), node(2, "b", drained), node(3, "c", voter), node(4, "c", learner)}},
			Changes{Promote: id(4), Demote: id(2)},
		},
		"all drained": {
			Input{Candidates: []Candidate{node(1, "a", drained), node(2, "b", drained), node(3, "c", drained)}}, Changes{},
		},
		"more barred than left": {
			Input{Shrink: true, Candidates: []Candidate{node(1, "a", voter), node(2, "b", dead), node(3, "c", dead), node(4, "d", barred), node(5, "e", barred)}},
			Changes{Demote: id(3, 2, 5, 4)},
		},
		"a better site, lately changed": {
			Input{Candidates: []Candidate{node(1, "a", voter), node(2, "a", voter), node(3, "b", voter), node(4, "c", nil)}}, Changes{},
		},
		"a better site, settled": {
			Input{Respread: true, Candidates: []Candidate{node(1, "a", voter), node(2, "a", voter), node(3, "b", voter), node(4, "c", nil)}}, Changes{Learn: id(4)},
		},
	} {
		c.in.Self = mesh.NodeID{1}
		got := Choose(c.in)
		if !slices.Equal(got.Learn, c.want.Learn) || !slices.Equal(got.Promote, c.want.Promote) || !slices.Equal(got.Demote, c.want.Demote) ||
			!slices.Equal(got.Forget, c.want.Forget) || got.Leader != c.want.Leader {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}
