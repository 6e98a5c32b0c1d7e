package routing

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/routing/wire"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// A net is routers joined by adjacencies over which messages may be lost.
type network struct {
	now     time.Time
	rng     *rand.Rand
	loss    float64
	keys    map[mesh.NodeID]ed25519.PrivateKey
	members map[mesh.NodeID]Member
	routers map[mesh.NodeID]*Router
	links   map[[2]mesh.NodeID]mesh.Cost
	mute    map[mesh.NodeID]bool          // whose datagrams are lost
	far     map[mesh.NodeID]time.Duration // what a datagram needs to and from there; otherwise nothing
	flying  []flight
	silent  map[[2]mesh.NodeID]bool // on which links all is lost
}

func newNetwork(seed uint64, n int) (*network, []mesh.NodeID) {
	w := &network{
		now: start, rng: rand.New(rand.NewPCG(seed, 1)), keys: map[mesh.NodeID]ed25519.PrivateKey{},
		members: map[mesh.NodeID]Member{}, routers: map[mesh.NodeID]*Router{}, links: map[[2]mesh.NodeID]mesh.Cost{},
	}
	var ids []mesh.NodeID
	for i := range n {
		key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, 32))
		identity := mesh.IdentityKey(key.Public().(ed25519.PublicKey))
		id := identity.NodeID()
		ids = append(ids, id)
		w.keys[id] = key
		w.members[id] = Member{
			Identity: identity,
			Addrs:    []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 86, 0, byte(i + 1)}), 32)},
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i + 1), 0, 0}), 24)},
		}
	}
	for _, id := range ids {
		w.start(id, 1)
	}
	return w, ids
}

// start runs a node; warm neighbours are those that an earlier run let in.
func (w *network) start(id mesh.NodeID, epoch uint64, warm ...mesh.NodeID) {
	r := New(Config{Self: id, Mesh: mesh.MeshID{1}, Epoch: epoch, Warm: warm, Sign: func(b []byte) []byte { return ed25519.Sign(w.keys[id], b) }})
	r.SetMembers(w.members)
	r.SetPrefixes(w.members[id].Prefixes)
	r.SetSpeaking(true)
	w.routers[id] = r
	for pair, cost := range w.links {
		if pair[0] == id {
			r.SetNeighbour(pair[1], cost, false, 10*time.Millisecond)
		}
	}
}

func (w *network) join(a, b mesh.NodeID, ab, ba mesh.Cost) {
	w.links[[2]mesh.NodeID{a, b}], w.links[[2]mesh.NodeID{b, a}] = ab, ba
	w.routers[a].SetNeighbour(b, ab, false, 10*time.Millisecond)
	w.routers[b].SetNeighbour(a, ba, false, 10*time.Millisecond)
}

func (w *network) cut(a, b mesh.NodeID) {
	delete(w.links, [2]mesh.NodeID{a, b})
	delete(w.links, [2]mesh.NodeID{b, a})
	w.routers[a].DropNeighbour(b)
	w.routers[b].DropNeighbour(a)
}

// run lets time pass in steps of ten milliseconds and says how many
// datagrams were sent.
func (w *network) run(d time.Duration) (sent int) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(10 * time.Millisecond) {
		for _, id := range slices.SortedFunc(maps.Keys(w.routers), mesh.NodeID.Compare) {
			r := w.routers[id]
			if !r.Settled() {
				r.Settle()
			}
			messages, deadline := r.Poll(w.now)
			if !deadline.IsZero() && !deadline.After(w.now) {
				panic("a deadline that is not in the future")
			}
			r.Committed(r.Step())
			for _, m := range messages {
				sent++
				w.flying = append(w.flying, flight{w.now.Add(max(w.far[id], w.far[m.To])), id, m})
			}
			if w.rng.IntN(4) == 0 {
				for pair := range w.links {
					if pair[0] == id && !w.mute[id] && !w.silent[pair] {
						w.routers[pair[1]].Hear(w.now, id, r.Header(pair[1]), r.Digest())
					}
				}
			}
		}
		w.deliver()
	}
	return sent
}

func (w *network) deliver() {
	var landed []flight
	w.flying = slices.DeleteFunc(w.flying, func(f flight) bool {
		if f.at.After(w.now) {
			return false
		}
		landed = append(landed, f)
		return true
	})
	for _, f := range landed {
		pair := [2]mesh.NodeID{f.from, f.m.To}
		if _, up := w.links[pair]; !up || w.rng.Float64() < w.loss || w.mute[f.from] || w.silent[pair] {
			continue
		}
		m, err := wire.Decode(wire.Encode(wire.Message{Incarnation: 1, Body: f.m.Body}))
		if err != nil {
			panic(err)
		}
		w.routers[f.m.To].Receive(w.now, f.from, m.Body.(wire.Segment))
	}
}

// A flight is a datagram on its way.
type flight struct {
	at   time.Time // of its arrival
	from mesh.NodeID
	m    Message
}

// graph joins the nodes in a ring with chords at random costs.
func (w *network) graph(ids []mesh.NodeID, chords int) {
	cost := func() mesh.Cost { return mesh.Cost(1000 + w.rng.IntN(50_000)) }
	for i := range ids {
		w.join(ids[i], ids[(i+1)%len(ids)], cost(), cost())
	}
	for range chords {
		if a, b := w.rng.IntN(len(ids)), w.rng.IntN(len(ids)); a != b {
			w.join(ids[a], ids[b], cost(), cost())
		}
	}
}

func (w *network) converged(t *testing.T) {
	t.Helper()
	digests := map[uint64]int{}
	for _, r := range w.routers {
		digests[r.Digest()]++
	}
	if len(digests) != 1 {
		t.Fatalf("%d different databases: %v", len(digests), digests)
	}
}

// acyclic follows every successor of every node for every destination.
func (w *network) acyclic(t *testing.T, ids []mesh.NodeID) {
	t.Helper()
	next := map[mesh.NodeID]map[mesh.NodeID][]mesh.NodeID{} // destination → node → successors
	for _, id := range ids {
		for _, d := range w.routers[id].Table().Destinations {
			to := d.Origins[0]
			if next[to] == nil {
				next[to] = map[mesh.NodeID][]mesh.NodeID{}
			}
			for _, s := range d.Successors {
				next[to][id] = append(next[to][id], s.Peer)
			}
			if len(d.Successors) == 0 {
				t.Errorf("%s has no way to %s", id, to)
			}
		}
	}
	for to, edges := range next {
		state := map[mesh.NodeID]int{}
		var visit func(mesh.NodeID)
		visit = func(at mesh.NodeID) {
			if state[at] == 1 {
				t.Fatalf("a loop towards %s through %s", to, at)
			}
			if state[at] == 2 || at == to {
				return
			}
			state[at] = 1
			for _, n := range edges[at] {
				visit(n)
			}
			state[at] = 2
		}
		for _, id := range ids {
			visit(id)
		}
	}
}

func TestFloodsThroughLossAndIsFreeOfLoops(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w, ids := newNetwork(seed, 12)
			w.loss = 0.3
			w.graph(ids, 8)
			w.run(15 * time.Second)
			w.converged(t)
			w.acyclic(t, ids)
			w.cut(ids[0], ids[1])
			w.run(15 * time.Second)
			w.converged(t)
			w.acyclic(t, ids)
		})
	}
}

func TestQuietWhenConverged(t *testing.T) {
	w, ids := newNetwork(1, 10)
	w.graph(ids, 5)
	w.run(5 * time.Second)
	if sent := w.run(time.Minute); sent > 0 {
		t.Errorf("%d datagrams in a minute without news", sent)
	}
}

func TestALinkCountsOnlyWhenBothEndsSayIt(t *testing.T) {
	w, ids := newNetwork(1, 3)
	w.join(ids[0], ids[1], 1000, 1000)
	w.join(ids[1], ids[2], 1000, 1000)
	w.routers[ids[2]].own.adj[ids[0]] = wire.Adjacency{Peer: ids[0], Cost: 1} // a phantom
	w.routers[ids[2]].own.stale = true
	w.run(2 * time.Second)
	for _, d := range w.routers[ids[0]].Table().Destinations {
		if d.Origins[0] == ids[2] && (len(d.Successors) != 1 || d.Successors[0].Peer != ids[1] || d.Distance != 2000) {
			t.Errorf("the phantom link is used: %+v", d)
		}
	}
}

func TestOnlyGrantedPrefixesCount(t *testing.T) {
	w, ids := newNetwork(1, 2)
	w.join(ids[0], ids[1], 1000, 1000)
	stolen := append(slices.Clone(w.members[ids[1]].Prefixes), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("10.2.0.0/25"))
	slices.SortFunc(stolen, netip.Prefix.Compare)
	w.routers[ids[1]].SetPrefixes(stolen)
	w.run(2 * time.Second)
	var got []netip.Prefix
	for _, d := range w.routers[ids[0]].Table().Destinations {
		got = append(got, d.Prefixes...)
	}
	want := append(slices.Clone(w.members[ids[1]].Prefixes), w.members[ids[1]].Addrs...)
	slices.SortFunc(want, netip.Prefix.Compare)
	if !slices.Equal(got, want) {
		t.Errorf("%v count, want %v", got, want)
	}
}

func TestForeignAndDamagedAnnouncementsChangeNothing(t *testing.T) {
	w, ids := newNetwork(1, 2)
	w.join(ids[0], ids[1], 1000, 1000)
	w.run(time.Second)
	r := w.routers[ids[0]]
	before, digest := r.Version(), r.Digest()
	now := w.now
	sign := func(as mesh.NodeID, l wire.LSA) wire.SignedLSA {
		return wire.Sign(l, func(b []byte) []byte { return ed25519.Sign(w.keys[as], b) })
	}
	good := wire.LSA{Mesh: mesh.MeshID{1}, Origin: ids[1], Epoch: 9, Seq: 1, Fragments: 1}
	stranger := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{99}, 32))
	strangerID := mesh.IdentityKey(stranger.Public().(ed25519.PublicKey)).NodeID()
	foreign := good
	foreign.Mesh = mesh.MeshID{2}
	damaged := sign(ids[1], good)
	damaged.Body = append(damaged.Body, 0)
	held, _ := r.db.get(fragment{ids[1], 0})
	replay := held.signed
	tests := map[string]wire.SignedLSA{
		DropSignature:     sign(ids[0], good),
		DropUnknownOrigin: wire.Sign(wire.LSA{Mesh: mesh.MeshID{1}, Origin: strangerID, Epoch: 1, Seq: 1, Fragments: 1}, func(b []byte) []byte { return ed25519.Sign(stranger, b) }),
		DropOtherMesh:     sign(ids[1], foreign),
		DropMalformed:     damaged,
		DropOld:           replay,
	}
	for reason, s := range tests {
		r.Learn(now, []wire.SignedLSA{s})
		if r.Version() != before || r.Digest() != digest {
			t.Errorf("%s: it changed the database", reason)
		}
		if reason != DropOld && r.Dropped()[reason] != 1 {
			t.Errorf("%s: counted %v", reason, r.Dropped())
		}
	}
}

func TestRestartedNodeSpeaksNewerThanItsOwnPast(t *testing.T) {
	w, ids := newNetwork(1, 4)
	w.graph(ids, 0)
	w.run(2 * time.Second)
	for _, epoch := range []uint64{2, 1} { // also with a clock that went back
		w.start(ids[0], epoch, ids[1], ids[3])
		w.run(5 * time.Second)
		w.converged(t)
		w.acyclic(t, ids)
	}
}

// A hub of a large mesh has more neighbours than one announcement holds, and a
// site may have as many prefixes as the log grants: neither stops the router.
func TestOwnAnnouncementKeepsItsLimits(t *testing.T) {
	w, ids := newNetwork(1, 2)
	r := w.routers[ids[0]]
	for i := range 2 * wire.MaxAdjacencies {
		peer := mesh.NodeID{9, byte(i >> 8), byte(i)}
		r.own.adj[peer] = wire.Adjacency{Peer: peer, Cost: mesh.Cost(1000 + i)}
	}
	w.join(ids[0], ids[1], 1, 1)
	var prefixes []netip.Prefix
	for i := range 2 * wire.MaxPrefixes {
		prefixes = append(prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	r.SetPrefixes(prefixes)
	w.run(2 * time.Second)
	held := w.routers[ids[1]].db.origins[ids[0]]
	if len(held.adj) != wire.MaxAdjacencies || len(held.prefixes) != wire.MaxPrefixes {
		t.Fatalf("the neighbour knows %d adjacencies and %d prefixes", len(held.adj), len(held.prefixes))
	}
	if _, ok := held.adj[ids[1]]; !ok {
		t.Error("the best adjacency was left out")
	}
}

func TestNoTransitNodeIsReachedButNotCrossed(t *testing.T) {
	w, ids := newNetwork(1, 4)
	w.join(ids[0], ids[1], 1000, 1000)
	w.join(ids[1], ids[2], 1000, 1000)
	w.join(ids[0], ids[3], 9000, 9000)
	w.join(ids[3], ids[2], 9000, 9000)
	w.routers[ids[1]].SetTransit(true, false)
	w.run(3 * time.Second)
	for _, d := range w.routers[ids[0]].Table().Destinations {
		switch d.Origins[0] {
		case ids[1]:
			if d.Distance != 1000 {
				t.Errorf("the node itself: %+v", d)
			}
		case ids[2]:
			if len(d.Successors) != 1 || d.Successors[0].Peer != ids[3] {
				t.Errorf("beyond it: %+v", d)
			}
		}
	}
}

func TestRemovedMemberIsForgotten(t *testing.T) {
	w, ids := newNetwork(1, 3)
	w.graph(ids, 0)
	w.run(2 * time.Second)
	members := maps.Clone(w.members)
	delete(members, ids[2])
	w.routers[ids[0]].SetMembers(members)
	w.run(100 * time.Millisecond)
	for _, d := range w.routers[ids[0]].Table().Destinations {
		if slices.Contains(d.Origins, ids[2]) && len(d.Successors) > 0 {
			t.Errorf("still routed: %+v", d)
		}
	}
}

func BenchmarkCompute(b *testing.B) {
	for _, n := range []int{20, 100} {
		b.Run(fmt.Sprintf("n=%d", n), func(b *testing.B) {
			w, ids := newNetwork(1, n)
			w.graph(ids, 3*n)
			w.run(3 * time.Second)
			for b.Loop() {
				w.routers[ids[0]].Table()
			}
		})
	}
}

// A node that loses its best path but has another successor must have one at
// every moment until all have moved: no neighbour may grow its distance meanwhile
// but for need.
func TestABackupLastsUntilTheRoutesHaveMoved(t *testing.T) {
	covered := 0
	for seed := range uint64(30) {
		w, ids := newNetwork(seed, 6)
		place := make([][2]float64, len(ids)) // in the plane, so that ways round are longer
		for i := range place {
			place[i] = [2]float64{w.rng.Float64() * 40_000, w.rng.Float64() * 40_000}
		}
		for i, a := range ids {
			for k, b := range ids[:i] {
				cost := mesh.Cost(2000 + math.Hypot(place[i][0]-place[k][0], place[i][1]-place[k][1]))
				w.join(a, b, cost, cost)
			}
		}
		w.run(8 * time.Second)
		at, to := w.routers[ids[0]], ids[1]
		successors := func() (others int) {
			for _, d := range at.Table().Destinations {
				if d.Key.Node != to {
					continue
				}
				for _, s := range d.Successors {
					if s.Peer != to {
						others++
					}
				}
			}
			return others
		}
		if successors() == 0 {
			continue // not every failure has a backup
		}
		covered++
		w.cut(ids[0], to)
		for since := time.Duration(0); since < 3*time.Second; since += 10 * time.Millisecond {
			if successors() == 0 {
				t.Errorf("seed %d: %v after the cut there is no successor", seed, since)
				break
			}
			w.run(10 * time.Millisecond)
		}
	}
	if covered < 10 {
		t.Errorf("only %d of 30 cuts had a backup", covered)
	}
}

// Two neighbours whose agents restarted while a third's is away wait for it:
// their kernels forward as before, and to refuse each other would help neither.
// When it is back, all settle.
func TestRestartedNeighboursRefuseNobodyInVain(t *testing.T) {
	w, ids := newNetwork(1, 3)
	slices.SortFunc(ids, mesh.NodeID.Compare)
	for i, a := range ids {
		w.join(a, ids[(i+1)%3], 1000, 1000)
	}
	w.run(3 * time.Second)
	gone := ids[2]
	w.mute = map[mesh.NodeID]bool{gone: true}
	w.start(ids[0], 2, ids[1], gone)
	w.start(ids[1], 2, ids[0], gone)
	w.run(20 * time.Second)
	for _, pair := range [][2]mesh.NodeID{{ids[0], ids[1]}, {ids[1], ids[0]}, {ids[0], gone}, {ids[1], gone}} {
		if r := w.routers[pair[0]]; r.Settled() || !r.Admits(pair[1]) {
			t.Errorf("while an agent is away: settled %t, lets %s in: %t", r.Settled(), pair[1], r.Admits(pair[1]))
		}
	}
	w.mute = nil
	w.start(gone, 2, ids[0], ids[1])
	w.run(5 * time.Second)
	w.acyclic(t, ids)
	for _, id := range ids {
		if !w.routers[id].Settled() {
			t.Errorf("%s never settles", id)
		}
	}
}

// A node whose kernel has no routes yet lets nobody in, and is no next hop.
func TestNobodyIsLetInBeforeThereAreRoutes(t *testing.T) {
	w, ids := newNetwork(1, 2)
	w.routers[ids[0]].SetHolding(true)
	w.join(ids[0], ids[1], 1000, 1000)
	w.run(3 * time.Second)
	if w.routers[ids[0]].Admits(ids[1]) || w.routers[ids[1]].Usable(ids[0]) {
		t.Error("a node without routes is used")
	}
	w.routers[ids[0]].SetHolding(false)
	w.run(3 * time.Second)
	if !w.routers[ids[0]].Admits(ids[1]) || !w.routers[ids[1]].Usable(ids[0]) {
		t.Error("a node with routes is not used")
	}
}

// Where all that are nearer are in doubt, neighbours agree on a way round within
// a few round trips, without any announcement; and it ends with the doubt.
func TestDoubtPreparesAWayRound(t *testing.T) {
	uncovered := 0
	for seed := range uint64(20) {
		w, ids := newNetwork(seed, 5)
		for i, a := range ids {
			for _, b := range ids[:i] {
				cost := mesh.Cost(10_000 + w.rng.IntN(500))
				w.join(a, b, cost, cost)
			}
		}
		w.run(8 * time.Second)
		at, to := w.routers[ids[0]], ids[1]
		others := func() (n int) {
			for _, d := range at.Table().Destinations {
				for _, s := range d.Successors {
					if d.Key.Node == to && s.Peer != to {
						n++
					}
				}
			}
			return n
		}
		before := others()
		if before == 0 {
			uncovered++
		}
		digest := at.Digest()
		at.SetDoubt(to, true)
		w.run(100 * time.Millisecond)
		if others() == 0 {
			t.Errorf("seed %d: no way round after 100 ms of doubt", seed)
		}
		if at.Digest() != digest {
			t.Errorf("seed %d: doubt was announced", seed)
		}
		w.acyclic(t, ids)
		at.SetDoubt(to, false)
		w.run(5 * time.Second)
		if others() != before {
			t.Errorf("seed %d: %d backups, %d before the doubt", seed, others(), before)
		}
		w.acyclic(t, ids)
	}
	if uncovered < 2 {
		t.Errorf("only %d of 20 destinations needed a way round", uncovered)
	}
}

func TestNewsIsWhoseAnnouncementCameLast(t *testing.T) {
	w, ids := newNetwork(3, 3)
	w.join(ids[0], ids[1], 1000, 1000)
	w.join(ids[1], ids[2], 1000, 1000)
	w.run(8 * time.Second)
	if _, ok := w.routers[ids[0]].News(); !ok {
		t.Error("no news after two nodes came")
	}
	if origin, ok := w.routers[ids[0]].News(); ok {
		t.Errorf("news of %s again", origin)
	}
	w.routers[ids[2]].SetNeighbour(ids[1], 2000, false, 10*time.Millisecond)
	w.run(2 * time.Second)
	if origin, ok := w.routers[ids[0]].News(); !ok || origin != ids[2] {
		t.Errorf("news of %s, %v; want of the node whose link changed", origin, ok)
	}
}

// A neighbour that has sent an announcement is not sent it, whoever else sent it
// before; one that is behind or says something else is.
func TestNothingGoesBackToWhoSentIt(t *testing.T) {
	w, ids := newNetwork(1, 4)
	for _, id := range ids[1:] {
		w.join(ids[0], id, 1000, 1000)
	}
	w.run(5 * time.Second)
	w.converged(t)
	r := w.routers[ids[0]]
	say := func(seq uint64, cost mesh.Cost) wire.SignedLSA {
		return wire.Sign(wire.LSA{
			Mesh: mesh.MeshID{1}, Origin: ids[3], Epoch: 2, Seq: seq, Fragments: 1,
			Adjacencies: []wire.Adjacency{{Peer: ids[0], Cost: cost}},
		}, func(b []byte) []byte { return ed25519.Sign(w.keys[ids[3]], b) })
	}
	name := fragment{ids[3], 0}
	for i, test := range []struct {
		first, second wire.SignedLSA
		back          bool
	}{
		{say(1, 10), say(1, 10), false},
		{say(3, 10), say(2, 10), true},
	} {
		r.take(test.first, ids[1])
		r.take(test.second, ids[2])
		if r.neighbours[ids[1]].flood[name] || r.neighbours[ids[2]].flood[name] != test.back {
			t.Errorf("case %d: back to the first %t, to the second %t", i, r.neighbours[ids[1]].flood[name], r.neighbours[ids[2]].flood[name])
		}
	}
}

// In a storm announcements are passed on together; the first goes at once.
func TestAStormIsPassedOnInGusts(t *testing.T) {
	w, ids := newNetwork(1, 3)
	w.join(ids[0], ids[1], 1000, 1000)
	w.join(ids[1], ids[2], 1000, 1000)
	w.run(10 * time.Second)
	w.converged(t)
	r, now, floods := w.routers[ids[1]], w.now, 0
	const storm = 400
	for seq := range uint64(storm) {
		now = now.Add(time.Millisecond)
		r.now = now
		r.take(wire.Sign(wire.LSA{Mesh: mesh.MeshID{1}, Origin: ids[0], Epoch: 2, Seq: seq + 1, Fragments: 1}, func(b []byte) []byte {
			return ed25519.Sign(w.keys[ids[0]], b)
		}), ids[0])
		before := len(r.neighbours[ids[2]].flood)
		r.Poll(now)
		if len(r.neighbours[ids[2]].flood) < before {
			floods++
		} else if seq == 0 {
			t.Error("the first one waits")
		}
	}
	if floods < 5 || floods > storm/10 {
		t.Errorf("%d times for %d announcements", floods, storm)
	}
}

// Losses are announced at once, whatever else was announced just before; but a
// link that comes and goes and goes again is not.
func TestLossesDoNotWait(t *testing.T) {
	w, ids := newNetwork(1, 5)
	for _, id := range ids[1:] {
		w.join(ids[0], id, 1000, 1000)
	}
	w.run(8 * time.Second)
	r := w.routers[ids[0]]
	for cost := range mesh.Cost(10) {
		r.SetNeighbour(ids[1], 2000+cost*500, false, 10*time.Millisecond)
		w.run(100 * time.Millisecond)
	}
	said := func() (n int) {
		for _, id := range ids[1:] {
			if _, up := r.db.towards(ids[0], id); up {
				n++
			}
		}
		return n
	}
	r.DropNeighbour(ids[4])
	r.Poll(w.now)
	if got := said(); got != 3 {
		t.Errorf("%d adjacencies are announced after the fourth was lost", got)
	}
	w.run(10 * time.Millisecond)
	before := r.own.seq
	for range 200 { // two seconds
		if _, up := w.links[[2]mesh.NodeID{ids[0], ids[3]}]; up {
			w.cut(ids[0], ids[3])
		} else {
			w.join(ids[0], ids[3], 1000, 1000)
		}
		w.run(10 * time.Millisecond)
	}
	if got := r.own.seq - before; got > 12 {
		t.Errorf("%d announcements in two seconds of a flapping link", got)
	}
}

// No node is ever without a way because a cost changes, whoever learns of it late.
func TestNoWayIsLostWhenCostsChange(t *testing.T) {
	held := 0
	for seed := range uint64(20) {
		w, ids := newNetwork(seed, 7)
		w.graph(ids, 3)
		w.far = map[mesh.NodeID]time.Duration{ids[4]: 20 * time.Millisecond, ids[5]: 30 * time.Millisecond}
		w.run(6 * time.Second)
		for step := range 600 {
			a, b := ids[w.rng.IntN(len(ids))], ids[w.rng.IntN(len(ids))]
			if _, joined := w.links[[2]mesh.NodeID{a, b}]; joined && step%60 == 0 {
				w.join(a, b, mesh.Cost(5_000+w.rng.IntN(30_000)), mesh.Cost(5_000+w.rng.IntN(30_000)))
			}
			w.run(10 * time.Millisecond)
			for _, id := range ids {
				for _, n := range w.routers[id].order {
					held += len(n.held)
				}
				for _, d := range w.routers[id].Table().Destinations {
					if len(d.Successors) == 0 {
						t.Errorf("seed %d: after %v %s has no way to %s", seed, w.now.Sub(start), id, d.Key)
					}
				}
			}
			if t.Failed() {
				return
			}
		}
		w.run(holdFor + 2*time.Second)
		for _, id := range ids {
			for _, n := range w.routers[id].order {
				if len(n.held) > 0 || len(n.acks) > 0 {
					t.Errorf("seed %d: %s holds %d raises and owes %d confirmations", seed, id, len(n.held), len(n.acks))
				}
			}
		}
	}
	if held == 0 {
		t.Error("no raise was held")
	}
}

// What changes elsewhere does not keep a node from having a second next hop: in a
// large mesh something always changes.
func TestABackupDoesNotWaitForTheRestOfTheMesh(t *testing.T) {
	w, ids := newNetwork(1, 20)
	a, b, c, far := ids[0], ids[1], ids[2], ids[3:]
	w.join(a, b, 1000, 1000)
	w.join(b, c, 5000, 5000)
	w.join(c, far[0], 3000, 3000)
	for i := range far[1:] {
		w.join(far[i], far[i+1], 2000, 2000)
	}
	last, still, stillest := w.now, uint64(0), time.Duration(0)
	for round := range 80 {
		if round == 20 {
			w.join(a, c, 5000, 5000)
		}
		i, cost := w.rng.IntN(len(far)-1), mesh.Cost(2000+w.rng.IntN(50_000))
		w.join(far[i], far[i+1], cost, cost)
		w.run(50 * time.Millisecond)
		if d := w.routers[a].Digest(); d != still {
			last, still = w.now, d
		}
		stillest = max(stillest, w.now.Sub(last))
	}
	if stillest >= slackAfter {
		t.Errorf("nothing changed for %v: this tests nothing", stillest)
	}
	for _, d := range w.routers[a].Table().Destinations {
		if d.Key.Node == b && len(d.Successors) < 2 {
			t.Errorf("the successors to b are %v, without c", d.Successors)
		}
	}
}
