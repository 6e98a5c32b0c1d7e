package topology

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/mesh"
)

// A node is a hand that does at once what Rewire says: links come up after
// delay, or never for those in broken.
type hand struct {
	rewire  Rewire
	now     time.Time
	have    map[mesh.NodeID]*Present
	created map[mesh.NodeID]time.Time
	broken  map[mesh.NodeID]bool
	delay   time.Duration
	log     []string
}

func newHand(neighbours ...int) *hand {
	h := &hand{now: time.Unix(1000, 0), have: map[mesh.NodeID]*Present{}, created: map[mesh.NodeID]time.Time{}, broken: map[mesh.NodeID]bool{}, delay: time.Second}
	for _, i := range neighbours {
		h.have[id(i)] = &Present{ID: id(i), Since: h.now.Add(-time.Hour)}
	}
	return h
}

func names(ids []mesh.NodeID) string {
	var out []string
	for _, id := range ids {
		out = append(out, fmt.Sprint(number(id)))
	}
	return strings.Join(out, " ")
}

func numbers(list ...int) (out []mesh.NodeID) {
	for _, i := range list {
		out = append(out, id(i))
	}
	return out
}

func (h *hand) present() (out []Present) {
	for _, p := range h.have {
		out = append(out, *p)
	}
	return out
}

// run lets time pass in steps of a second and writes down what changes.
func (h *hand) run(d time.Duration, want ...int) {
	last := ""
	for end := h.now.Add(d); h.now.Before(end); h.now = h.now.Add(time.Second) {
		for id, at := range h.created {
			if p := h.have[id]; p != nil && p.Since.IsZero() && !h.broken[id] && h.now.Sub(at) >= h.delay {
				p.Since = h.now
			}
		}
		create, drain, remove, _ := h.rewire.Step(h.now, numbers(want...), h.present())
		for _, id := range create {
			h.have[id], h.created[id] = &Present{ID: id}, h.now
		}
		for _, id := range remove {
			delete(h.have, id)
		}
		line := fmt.Sprintf("create [%s] drain [%s] remove [%s]", names(create), names(drain), names(remove))
		if line != last && line != "create [] drain [] remove []" {
			h.log = append(h.log, fmt.Sprintf("%3.0f %s", h.now.Sub(time.Unix(1000, 0)).Seconds(), line))
		}
		last = line
	}
}

func (h *hand) expect(t *testing.T, lines ...string) {
	t.Helper()
	if !slices.Equal(h.log, lines) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(h.log, "\n"), strings.Join(lines, "\n"))
	}
	h.log = nil
}

func TestMakeBeforeBreak(t *testing.T) {
	h := newHand(1, 2, 3)
	h.have[id(3)].Busy = true
	h.run(4*time.Minute, 1, 4, 5)
	h.expect(t,
		"  0 create [4 5] drain [] remove []",
		" 60 create [] drain [2] remove []", // the idle one first
		" 62 create [] drain [] remove [2]",
		" 63 create [] drain [3] remove []",
		" 93 create [] drain [] remove [3]", // its traffic did not go
	)
}

func TestTheFirstLinksAreMadeAtOnce(t *testing.T) {
	h := newHand()
	h.run(time.Minute, 1, 2)
	h.expect(t, "  0 create [1 2] drain [] remove []")
}

func TestOldOnesWaitForNewOnes(t *testing.T) {
	h := newHand(1, 2)
	h.delay = 80 * time.Second
	h.run(4*time.Minute, 3, 4)
	h.expect(t,
		"  0 create [3 4] drain [] remove []",
		" 90 create [] drain [1] remove []",
		" 92 create [] drain [] remove [1]",
		" 93 create [] drain [2] remove []",
		" 95 create [] drain [] remove [2]",
	)
}

// One old neighbour stays in the place of a wanted one that never comes up.
func TestNobodyLeavesForNobody(t *testing.T) {
	h := newHand(1, 2, 3)
	h.broken[id(5)] = true
	h.run(10*time.Minute, 4, 5)
	h.expect(t,
		"  0 create [4 5] drain [] remove []",
		"120 create [] drain [2] remove []",
		"122 create [] drain [] remove [2]",
		"123 create [] drain [3] remove []",
		"125 create [] drain [] remove [3]",
	)
	h.broken[id(5)] = false // it comes up after all
	h.run(time.Minute, 4, 5)
	h.expect(t, "610 create [] drain [1] remove []", "612 create [] drain [] remove [1]")
}

func TestNeededByTheOtherEnd(t *testing.T) {
	h := newHand(1, 2)
	h.have[id(2)].Needed = true
	h.run(5*time.Minute, 1)
	h.expect(t)
	h.have[id(2)].Needed = false
	h.run(5*time.Minute, 1)
	h.expect(t, "300 create [] drain [2] remove []", "302 create [] drain [] remove [2]")
}

func TestADeadOldNeighbourNeedsNoDrain(t *testing.T) {
	h := newHand(1, 2)
	h.have[id(2)].Since, h.have[id(2)].Needed = time.Time{}, true
	h.run(2*time.Minute, 1)
	h.expect(t, " 60 create [] drain [] remove [2]")
}

func TestDrainIsCalledOff(t *testing.T) {
	h := newHand(1, 2)
	h.have[id(2)].Busy = true
	h.run(70*time.Second, 1)
	h.expect(t, " 60 create [] drain [2] remove []")
	h.have[id(1)].Since = time.Time{} // now the old one is all there is
	h.run(5*time.Minute, 1)
	h.expect(t)
	h.have[id(1)].Since = h.now
	h.run(20*time.Second, 1)
	h.expect(t, "380 create [] drain [2] remove []")
	h.run(5*time.Minute, 1, 2) // and wanted again
	h.expect(t)
}

// What is wanted changes every 40 seconds: the links of both stay, none moves.
func TestFlappingWantMovesNothing(t *testing.T) {
	h := newHand(1, 2)
	for range 30 {
		h.run(40*time.Second, 1, 2)
		h.run(40*time.Second, 1, 3)
	}
	h.expect(t, " 40 create [3] drain [] remove []")
}

// The deadline is enough: called at its deadlines only, Rewire does the same.
func TestDeadlines(t *testing.T) {
	h := newHand(1, 2, 3, 4)
	want := numbers(5, 6)
	h.rewire.Step(h.now, want, h.present())
	h.now = h.now.Add(70 * time.Second)
	for _, id := range want {
		h.have[id] = &Present{ID: id, Since: h.now}
	}
	steps := 0
	for ; steps < 100; steps++ {
		_, _, remove, deadline := h.rewire.Step(h.now, want, h.present())
		for _, id := range remove {
			delete(h.have, id)
		}
		if len(remove) > 0 {
			continue // that is news
		}
		if deadline.IsZero() {
			break
		}
		if !deadline.After(h.now) {
			t.Fatalf("deadline %v is not after %v", deadline, h.now)
		}
		h.now = deadline
	}
	if took := h.now.Sub(time.Unix(1000, 0)); len(h.have) != 2 || steps > 20 || took > 90*time.Second {
		t.Errorf("%d neighbours left after %d steps, %v", len(h.have), steps, took)
	}
}

// A whole mesh goes from one topology to another, with links that take up to
// 20 s or never come up and announcements that are 3 s old: it stays in one
// piece, no node is ever left with fewer neighbours than it had or wants, and it
// comes to rest.
func TestAWholeMeshRewires(t *testing.T) {
	for seed := range uint64(2) {
		rng := rand.New(rand.NewPCG(seed, 10))
		w := newWorld(seed, 40)
		before, after := Build(w.nodes, Policy{}), Build(w.nodes, Policy{Salt: mesh.MeshID{9}})
		index := w.index()
		n := len(w.nodes)
		now := time.Unix(5000, 0)
		up := map[[2]int]time.Time{} // links, by the lower number first; zero: not up yet
		ready := map[[2]int]time.Time{}
		key := func(i, j int) [2]int { return [2]int{min(i, j), max(i, j)} }
		for _, e := range before.Edges() {
			up[key(index[e.A], index[e.B])] = now.Add(-time.Hour)
		}
		neighbours := func() [][]mesh.NodeID {
			out := make([][]mesh.NodeID, n)
			for k, since := range up {
				if !since.IsZero() {
					out[k[0]], out[k[1]] = append(out[k[0]], w.nodes[k[1]].ID), append(out[k[1]], w.nodes[k[0]].ID)
				}
			}
			return out
		}
		least := make([]int, n)
		for i, node := range w.nodes {
			least[i] = min(len(before.Neighbours(node.ID)), len(after.Neighbours(node.ID)))
		}
		rewire := make([]Rewire, n)
		announced := [][][]mesh.NodeID{neighbours(), neighbours(), neighbours()}
		removals, quiet := 0, 0
		for ; quiet < 200 && removals < 1000; now = now.Add(time.Second) {
			quiet++
			for i, node := range w.nodes {
				var have []Present
				for k, since := range up {
					if k[0] != i && k[1] != i {
						continue
					}
					peer := k[0] + k[1] - i
					p := Present{ID: w.nodes[peer].ID, Since: since}
					p.Needed = slices.Contains(after.Spared(p.ID, announced[0][peer]), node.ID)
					have = append(have, p)
				}
				create, _, remove, _ := rewire[i].Step(now, after.Neighbours(node.ID), have)
				for _, id := range create {
					k := key(i, index[id])
					if _, ok := up[k]; !ok {
						up[k], quiet = time.Time{}, 0
						ready[k] = now.Add(time.Duration(rng.IntN(20)) * time.Second)
						if rng.IntN(8) == 0 {
							ready[k] = now.Add(1e6 * time.Second)
						}
					}
				}
				for _, id := range remove {
					delete(up, key(i, index[id]))
					removals, quiet = removals+1, 0
				}
			}
			for k, at := range ready {
				if since, ok := up[k]; ok && since.IsZero() && !now.Before(at) {
					up[k] = now
				}
			}
			state := neighbours()
			announced = append(announced[1:], state)
			u, parts := newUnion(n), n
			for i, list := range state {
				if len(list) < least[i] {
					t.Fatalf("seed %d: node %d has %d neighbours, had %d, wants %d", seed, i, len(list),
						len(before.Neighbours(w.nodes[i].ID)), len(after.Neighbours(w.nodes[i].ID)))
				}
				for _, id := range list {
					if u.join(i, index[id]) {
						parts--
					}
				}
			}
			if parts != 1 {
				t.Fatalf("seed %d: %d parts", seed, parts)
			}
		}
		if removals == 0 || quiet < 200 {
			t.Errorf("seed %d: %d removals, and no rest", seed, removals)
		}
	}
}
