package routing

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/routing/spf"
	"guywire/routing/wire"
)

// A Member is what the log says of a node, as far as routing must know it.
type Member struct {
	Identity mesh.IdentityKey
	Addrs    []netip.Prefix // the node's own overlay addresses, as host prefixes
	Prefixes []netip.Prefix // granted to it, sorted
}

const (
	// verifyRate and verifyBurst bound the announcements of one origin whose
	// signature is checked, per second and at once. What comes faster waits,
	// the newest of each fragment only.
	verifyRate  = 20
	verifyBurst = 3 * wire.MaxFragments
)

// lsdb holds the newest valid announcements of every member, and the graph of
// the adjacencies that both ends announce.
type lsdb struct {
	mesh    mesh.MeshID
	verify  func(wire.SignedLSA, mesh.IdentityKey) bool
	members map[mesh.NodeID]Member
	origins map[mesh.NodeID]*origin
	graph   *spf.Graph
	digest  uint64
	// replaced says that prefixes may have other origins than before, lost that
	// somebody may have lost paths, late that announcements wait because they came
	// too fast.
	replaced, lost, late bool
}

type origin struct {
	fragments map[uint16]stored
	adj       map[mesh.NodeID]wire.Adjacency
	prefixes  []netip.Prefix
	noTransit bool
	overload  bool

	tokens float64
	filled time.Time
	late   map[uint16]wire.SignedLSA
}

type stored struct {
	signed wire.SignedLSA
	lsa    wire.LSA
	sum    [32]byte
}

// Why an announcement was not taken.
const (
	DropUnknownOrigin = "unknown origin"
	DropOld           = "not newer"
	DropMalformed     = "malformed"
	DropSignature     = "bad signature"
	DropOtherMesh     = "other mesh"
	DropTooFast       = "too many of one origin"
	DropConflict      = "two with one sequence number"
	DropForeignPrefix = "prefix not granted"
)

func newLSDB(id mesh.MeshID, verify func(wire.SignedLSA, mesh.IdentityKey) bool) lsdb {
	if verify == nil {
		verify = wire.SignedLSA.Verify
	}
	return lsdb{mesh: id, verify: verify, members: map[mesh.NodeID]Member{}, origins: map[mesh.NodeID]*origin{}, graph: spf.NewGraph()}
}

// offer takes s if it is newer than what is held, and says why not otherwise.
// The cheap checks come before the signature, so that repeats and strangers
// cost nothing.
func (db *lsdb) offer(now time.Time, s wire.SignedLSA) (key wire.LSAKey, dropped string) {
	key, ok := s.Key()
	if !ok || len(s.Body) > wire.MaxLSA || key.Fragment >= wire.MaxFragments {
		return key, DropMalformed
	}
	member, ok := db.members[key.Origin]
	if !ok {
		return key, DropUnknownOrigin
	}
	o := db.origin(key.Origin)
	if o.beyond(key) {
		return key, DropOld
	}
	held, has := o.fragments[key.Fragment]
	if has && bytes.Equal(s.Body, held.signed.Body) {
		return key, DropOld
	}
	sum := sha256.Sum256(s.Body)
	conflict := false
	if has && !key.Newer(held.lsa.Key()) {
		conflict = key == held.lsa.Key()
		// An origin that says two things under one number is believed in the
		// same one everywhere.
		if !conflict || bytes.Compare(sum[:], held.sum[:]) < 0 {
			return key, DropOld
		}
	}
	if !o.spend(now) {
		if o.late == nil {
			o.late = map[uint16]wire.SignedLSA{}
		}
		if waiting, ok := o.late[key.Fragment]; ok {
			if k, _ := waiting.Key(); !key.Newer(k) {
				return key, DropTooFast
			}
		}
		o.late[key.Fragment], db.late = s, true
		return key, DropTooFast
	}
	lsa, err := s.LSA()
	if err != nil {
		return key, DropMalformed
	}
	if lsa.Mesh != db.mesh {
		return key, DropOtherMesh
	}
	if !db.verify(s, member.Identity) {
		return key, DropSignature
	}
	db.store(stored{s, lsa, sum})
	if conflict {
		return key, DropConflict
	}
	return key, ""
}

// spend takes one token of the origin's bucket.
func (o *origin) spend(now time.Time) bool {
	if o.filled.IsZero() {
		o.tokens = verifyBurst
	} else {
		o.tokens = min(o.tokens+now.Sub(o.filled).Seconds()*verifyRate, verifyBurst)
	}
	o.filled = now
	if o.tokens < 1 {
		return false
	}
	o.tokens--
	return true
}

// overdue takes up to one token's worth of announcements that came too fast.
func (db *lsdb) overdue(now time.Time) (out []wire.SignedLSA, waiting bool) {
	if !db.late {
		return nil, false
	}
	for _, id := range slices.SortedFunc(maps.Keys(db.origins), mesh.NodeID.Compare) {
		o := db.origins[id]
		if len(o.late) == 0 {
			continue
		}
		ready := int(o.tokens + now.Sub(o.filled).Seconds()*verifyRate)
		for _, f := range slices.Sorted(maps.Keys(o.late)) {
			if ready < 1 {
				waiting = true
				break
			}
			ready--
			out = append(out, o.late[f])
			delete(o.late, f)
		}
	}
	db.late = waiting
	return out, waiting
}

func (db *lsdb) origin(id mesh.NodeID) *origin {
	o := db.origins[id]
	if o == nil {
		o = &origin{fragments: map[uint16]stored{}, adj: map[mesh.NodeID]wire.Adjacency{}}
		db.origins[id] = o
	}
	return o
}

// store puts a valid announcement in the place of an older one.
func (db *lsdb) store(s stored) {
	o := db.origin(s.lsa.Origin)
	if old, ok := o.fragments[s.lsa.Fragment]; ok {
		db.digest -= old.digest()
	}
	db.digest += s.digest()
	o.fragments[s.lsa.Fragment] = s
	for f, old := range o.fragments {
		if o.beyond(old.lsa.Key()) {
			db.digest -= old.digest()
			delete(o.fragments, f)
		}
	}
	db.relink(s.lsa.Origin, o)
}

// beyond reports whether the first fragment says that there is no such
// fragment any more. All fragments of an origin share one sequence of numbers.
func (o *origin) beyond(key wire.LSAKey) bool {
	first, ok := o.fragments[0]
	return ok && key.Fragment >= first.lsa.Fragments && !key.Newer(first.lsa.Key())
}

// digest stands for one announcement; the database's is their sum, so that
// order does not matter.
func (s stored) digest() uint64 { return binary.BigEndian.Uint64(s.sum[:]) }

// relink brings the graph and the prefixes up to an origin's announcements.
func (db *lsdb) relink(id mesh.NodeID, o *origin) {
	adj := map[mesh.NodeID]wire.Adjacency{}
	var prefixes []netip.Prefix
	o.noTransit, o.overload = false, false
	if first, ok := o.fragments[0]; ok {
		o.noTransit, o.overload = first.lsa.NoTransit, first.lsa.Overload
		for f, s := range o.fragments {
			if f == 0 || f < first.lsa.Fragments {
				for _, a := range s.lsa.Adjacencies {
					adj[a.Peer] = a
				}
				prefixes = append(prefixes, s.lsa.Prefixes...)
			}
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	if !slices.Equal(prefixes, o.prefixes) {
		o.prefixes, db.replaced = prefixes, true
	}
	mode := spf.Full
	switch {
	case o.noTransit:
		mode = spf.Stub
	case o.overload:
		mode = spf.LastResort
	}
	db.lost = db.graph.SetTransit(id, mode) || db.lost
	old := o.adj
	o.adj = adj
	changed := make([]mesh.NodeID, 0, len(adj))
	for peer, before := range old {
		a, there := adj[peer]
		if a != before {
			changed = append(changed, peer)
		}
		if !there || a.Drain && !before.Drain || a.Cost/2 > before.Cost {
			db.lost = true
		}
	}
	for peer := range adj {
		if _, known := old[peer]; !known {
			changed = append(changed, peer)
		}
	}
	// In order: the graph numbers its nodes as they come.
	slices.SortFunc(changed, mesh.NodeID.Compare)
	for _, peer := range changed {
		db.edge(id, peer)
	}
}

// edge sets both directions between two nodes: one end's word alone makes no
// link, but drains both directions of it.
func (db *lsdb) edge(a, b mesh.NodeID) {
	x, y := db.origins[a], db.origins[b]
	if x != nil && y != nil {
		ab, there := x.adj[b]
		ba, back := y.adj[a]
		if there && back {
			drain := ab.Drain || ba.Drain
			db.graph.Set(a, b, cost(ab, drain))
			db.graph.Set(b, a, cost(ba, drain))
			return
		}
	}
	db.graph.Remove(a, b)
	db.graph.Remove(b, a)
}

// cost is what an adjacency counts for, drained by either end or not.
func cost(a wire.Adjacency, drain bool) mesh.Cost {
	if drain {
		return min(a.Cost.Add(DrainPenalty), mesh.Infinite-1)
	}
	return a.Cost
}

// setMembers replaces what the log says. Announcements of others go.
func (db *lsdb) setMembers(members map[mesh.NodeID]Member) {
	db.members, db.replaced = members, true
	for _, id := range slices.SortedFunc(maps.Keys(db.origins), mesh.NodeID.Compare) {
		if _, ok := members[id]; !ok {
			o := db.origins[id]
			for _, s := range o.fragments {
				db.digest -= s.digest()
			}
			o.fragments = map[uint16]stored{}
			db.relink(id, o)
			delete(db.origins, id)
		}
	}
}

// get gives the announcement with that name, if it is still the newest.
func (db *lsdb) get(name fragment) (stored, bool) {
	o := db.origins[name.origin]
	if o == nil {
		return stored{}, false
	}
	s, ok := o.fragments[name.number]
	return s, ok
}

// A fragment names one announcement whatever its sequence number.
type fragment struct {
	origin mesh.NodeID
	number uint16
}

// all lists what is held, an origin's first fragment last: it says how many
// there are.
func (db *lsdb) all() []fragment {
	var out []fragment
	for id, o := range db.origins {
		for f := range o.fragments {
			out = append(out, fragment{id, f})
		}
	}
	return out
}

func (f fragment) compare(g fragment) int {
	if c := f.origin.Compare(g.origin); c != 0 {
		return c
	}
	return int(g.number) - int(f.number)
}

// prefixOrigins gives the announcers of each prefix that counts: where the
// log grants it. Announcers are sorted.
func (db *lsdb) prefixOrigins() (origins map[netip.Prefix][]mesh.NodeID, foreign int) {
	origins = map[netip.Prefix][]mesh.NodeID{}
	for _, id := range slices.SortedFunc(maps.Keys(db.origins), mesh.NodeID.Compare) {
		granted := db.members[id].Prefixes
		for _, p := range db.origins[id].prefixes {
			if _, ok := slices.BinarySearchFunc(granted, p, netip.Prefix.Compare); ok {
				if l := origins[p]; len(l) == 0 || l[len(l)-1] != id {
					origins[p] = append(l, id)
				}
			} else {
				foreign++
			}
		}
	}
	return origins, foreign
}

func newStored(s wire.SignedLSA, lsa wire.LSA) stored { return stored{s, lsa, sha256.Sum256(s.Body)} }

// towards is what the adjacency from one node to another counts for, whether or
// not the other announces it, too.
func (db *lsdb) towards(from, to mesh.NodeID) (mesh.Cost, bool) {
	if o := db.origins[from]; o != nil {
		if a, ok := o.adj[to]; ok {
			back := db.origins[to]
			return cost(a, a.Drain || back != nil && back.adj[from].Drain), true
		}
	}
	return 0, false
}
