package routing

import (
	"crypto/ed25519"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/routing/wire"
)

// A liar is a member whose agent says what it likes with its own key.
type liar struct {
	*network
	ids  []mesh.NodeID
	self mesh.NodeID
}

// newLiar is a ring of seven with chords in which node 3 lies. Without it the
// others are still joined.
func newLiar() *liar {
	w, ids := newNetwork(5, 7)
	w.graph(ids, 8)
	for i := range ids {
		w.join(ids[i], ids[(i+2)%len(ids)], 20_000, 20_000)
	}
	w.run(5 * time.Second)
	return &liar{w, ids, ids[3]}
}

// announce floods an announcement from the liar's neighbours on.
func (l *liar) announce(lsa wire.LSA) {
	lsa.Mesh, lsa.Origin = mesh.MeshID{1}, l.self
	if lsa.Fragment == 0 && lsa.Fragments == 0 {
		lsa.Fragments = 1
	}
	s := wire.Sign(lsa, func(b []byte) []byte { return ed25519.Sign(l.keys[l.self], b) })
	for _, id := range l.neighbours() {
		l.routers[id].Learn(l.now, []wire.SignedLSA{s})
	}
}

func (l *liar) neighbours() (out []mesh.NodeID) {
	for _, id := range l.ids {
		if _, ok := l.links[[2]mesh.NodeID{l.self, id}]; ok {
			out = append(out, id)
		}
	}
	return out
}

// truth is what the liar would say if it did not lie.
func (l *liar) truth() wire.LSA {
	held, _ := l.routers[l.ids[0]].db.get(fragment{l.self, 0})
	return held.lsa
}

// walk follows the best leg of each honest node towards each other honest one:
// a way ends there or at the liar, and never comes back to where it was.
func (l *liar) walk(t *testing.T) (through map[[2]mesh.NodeID]bool) {
	t.Helper()
	through = map[[2]mesh.NodeID]bool{}
	for _, from := range l.ids {
		for _, to := range l.ids {
			if from == to || from == l.self || to == l.self {
				continue
			}
			seen := []mesh.NodeID{from}
			for at := from; at != to; {
				if at == l.self {
					through[[2]mesh.NodeID{from, to}] = true
					break
				}
				next, ok := l.best(at, to)
				if !ok || slices.Contains(seen, next) {
					t.Fatalf("%s → %s: %v and then %s (%t)", from, to, seen, next, ok)
				}
				seen = append(seen, next)
				at = next
			}
		}
	}
	return through
}

func (l *liar) best(at, to mesh.NodeID) (mesh.NodeID, bool) {
	for _, d := range l.routers[at].Table().Destinations {
		if !slices.Contains(d.Origins, to) || len(d.Origins) > 1 {
			continue
		}
		best, cost := mesh.NodeID{}, mesh.Infinite
		for _, s := range d.Successors {
			if c := l.links[[2]mesh.NodeID{at, s.Peer}].Add(s.Rest); c < cost {
				best, cost = s.Peer, c
			}
		}
		return best, cost < mesh.Infinite
	}
	return mesh.NodeID{}, false
}

// A member that lies can hurt only the paths through itself: no lie draws a
// path to the liar that did not lead through it, and none makes a loop.
func TestALyingNodeHurtsOnlyPathsThroughItself(t *testing.T) {
	prefix := func(s ...string) (out []netip.Prefix) {
		for _, p := range s {
			out = append(out, netip.MustParsePrefix(p))
		}
		slices.SortFunc(out, netip.Prefix.Compare)
		return out
	}
	for name, lie := range map[string]struct {
		tell    func(l *liar)
		counted string // by somebody, under this reason
	}{
		"sequence jump": {func(l *liar) {
			lsa := l.truth()
			lsa.Seq = math.MaxUint64
			l.announce(lsa)
		}, ""},
		"epoch jump": {func(l *liar) {
			lsa := l.truth()
			lsa.Epoch, lsa.Seq = math.MaxUint64, math.MaxUint64
			l.announce(lsa)
		}, ""},
		"another's prefix": {func(l *liar) {
			lsa := l.truth()
			lsa.Seq, lsa.Fragments = lsa.Seq+9, 2
			l.announce(wire.LSA{Fragment: 1, Epoch: lsa.Epoch, Seq: lsa.Seq + 1, Prefixes: prefix("10.1.0.0/24", "10.86.0.1/32")})
			l.announce(lsa)
		}, DropForeignPrefix},
		"a more specific prefix": {func(l *liar) {
			lsa := l.truth()
			lsa.Seq, lsa.Fragments = lsa.Seq+9, 2
			l.announce(wire.LSA{Fragment: 1, Epoch: lsa.Epoch, Seq: lsa.Seq + 1, Prefixes: prefix("10.1.0.0/25")})
			l.announce(lsa)
		}, DropForeignPrefix},
		"a default route": {func(l *liar) {
			lsa := l.truth()
			lsa.Seq, lsa.Fragments = lsa.Seq+9, 2
			l.announce(wire.LSA{Fragment: 1, Epoch: lsa.Epoch, Seq: lsa.Seq + 1, Prefixes: prefix("0.0.0.0/0", "::/0")})
			l.announce(lsa)
		}, DropForeignPrefix},
		"phantom links": {func(l *liar) {
			lsa := l.truth()
			lsa.Seq += 9
			lsa.Adjacencies = nil
			for _, id := range l.ids {
				if id != l.self && !slices.Contains(l.neighbours(), id) {
					lsa.Adjacencies = append(lsa.Adjacencies, wire.Adjacency{Peer: id, Cost: 1})
				}
			}
			l.announce(lsa)
		}, ""},
		"two announcements with one number": {func(l *liar) {
			one, two := l.truth(), l.truth()
			one.Seq += 9
			two.Seq += 9
			two.Adjacencies = two.Adjacencies[1:]
			l.announce(one)
			l.announce(two)
		}, DropConflict},
		"another's announcement": {func(l *liar) {
			held, _ := l.routers[l.ids[0]].db.get(fragment{l.ids[0], 0})
			lsa := held.lsa
			lsa.Seq += 9
			lsa.Adjacencies = nil
			s := wire.Sign(lsa, func(b []byte) []byte { return ed25519.Sign(l.keys[l.self], b) })
			for _, id := range l.neighbours() {
				l.routers[id].Learn(l.now, []wire.SignedLSA{s})
			}
		}, DropSignature},
		"distance zero to everything": {func(l *liar) {
			r := l.routers[l.self]
			for _, id := range l.neighbours() {
				n := r.neighbours[id]
				note := wire.Distances{}
				for i, to := range l.ids {
					note.Entries = append(note.Entries, wire.Entry{Index: uint32(5000 + i), Key: wire.Destination{Node: to}})
				}
				n.session.Send(wire.EncodeNote(note))
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLiar()
			before := l.walk(t)
			lie.tell(l)
			l.run(3 * time.Second)
			after := l.walk(t)
			for pair := range after {
				if !before[pair] {
					t.Errorf("%s → %s leads through the liar now", pair[0], pair[1])
				}
			}
			digests, counted := map[uint64]bool{}, uint64(0)
			for _, id := range l.ids {
				if id != l.self {
					digests[l.routers[id].Digest()] = true
					counted += l.routers[id].Dropped()[lie.counted]
				}
			}
			if len(digests) != 1 {
				t.Errorf("the honest hold %d different databases", len(digests))
			}
			if lie.counted != "" && counted == 0 {
				t.Errorf("nobody counted it as %q", lie.counted)
			}
		})
	}
}

// A neighbour that confirms nothing delays others by the patience, no more.
func TestASilentLiarIsNotWaitedForLong(t *testing.T) {
	w, ids := newNetwork(1, 4)
	w.join(ids[0], ids[1], 1000, 1000) // the way that will be cut
	w.join(ids[0], ids[2], 9000, 9000) // the other way
	w.join(ids[2], ids[1], 9000, 9000)
	w.join(ids[0], ids[3], 1000, 1000) // the liar
	w.run(3 * time.Second)
	w.mute = map[mesh.NodeID]bool{ids[3]: true}
	w.cut(ids[0], ids[1])
	reaches := func() bool {
		for _, d := range w.routers[ids[0]].Table().Destinations {
			if d.Origins[0] == ids[1] {
				return len(d.Successors) > 0
			}
		}
		return false
	}
	w.run(confirmPatience / 2)
	if reaches() {
		t.Fatal("the raise did not wait for the neighbour: the test shows nothing")
	}
	w.run(confirmPatience)
	if !reaches() {
		t.Error("still waits")
	}
	if w.routers[ids[0]].Admits(ids[3]) {
		t.Error("the transit of a neighbour that confirms nothing is still let in")
	}
}

// Junk costs a bounded number of signature checks, however much comes.
func TestJunkCostsBoundedWork(t *testing.T) {
	w, ids := newNetwork(1, 2)
	w.join(ids[0], ids[1], 1000, 1000)
	w.run(time.Second)
	r := w.routers[ids[0]]
	const sent = 20_000
	for i := range sent {
		s := wire.Sign(wire.LSA{Mesh: mesh.MeshID{1}, Origin: ids[1], Epoch: 9, Seq: uint64(i), Fragments: 1}, func([]byte) []byte { return make([]byte, 64) })
		r.Learn(w.now, []wire.SignedLSA{s})
	}
	checked, late := r.Dropped()[DropSignature], r.Dropped()[DropTooFast]
	if checked > verifyBurst || checked+late != sent {
		t.Errorf("of %d, %d were checked and %d put off", sent, checked, late)
	}
	if held := len(r.db.origins[ids[1]].late); held > wire.MaxFragments {
		t.Errorf("%d are kept", held)
	}
	// What is true gets through when the flood ends.
	w.routers[ids[1]].SetTransit(true, false)
	w.run(20 * time.Second)
	if !r.db.origins[ids[1]].noTransit {
		t.Error("the origin is not heard any more")
	}
}
