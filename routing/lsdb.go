package routing

import (
	"encoding/binary"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"

	"guywire/mesh"
	"guywire/routing/wire"
)

// A Member is what the log says of a node, as far as routing must know it.
type Member struct {
	Identity mesh.IdentityKey
	Addrs    []netip.Prefix // the node's own overlay addresses, as host prefixes
	Prefixes []netip.Prefix // granted to it, sorted
}

// lsdb holds the newest valid announcement of every member.
type lsdb struct {
	mesh    mesh.MeshID
	members map[mesh.NodeID]Member
	lsas    map[mesh.NodeID]stored
}

type stored struct {
	signed wire.SignedLSA
	lsa    wire.LSA
}

// Why an announcement was not taken.
const (
	DropUnknownOrigin = "unknown origin"
	DropOld           = "not newer"
	DropMalformed     = "malformed"
	DropSignature     = "bad signature"
	DropOtherMesh     = "other mesh"
)

// offer takes s if it is newer than what is held, and says why not otherwise.
// The cheap checks come before the signature, so that repeats and strangers
// cost nothing.
func (db *lsdb) offer(s wire.SignedLSA) (key wire.LSAKey, dropped string) {
	key, ok := s.Key()
	if !ok {
		return key, DropMalformed
	}
	member, ok := db.members[key.Origin]
	if !ok {
		return key, DropUnknownOrigin
	}
	if held, ok := db.lsas[key.Origin]; ok && !key.Newer(held.lsa.Key()) {
		return key, DropOld
	}
	lsa, err := s.LSA()
	if err != nil {
		return key, DropMalformed
	}
	if lsa.Mesh != db.mesh {
		return key, DropOtherMesh
	}
	if !s.Verify(member.Identity) {
		return key, DropSignature
	}
	db.lsas[key.Origin] = stored{s, lsa}
	return key, ""
}

// digest is equal on two nodes exactly when (but for chance) their databases
// are. It is a sum, so order does not matter.
func (db *lsdb) digest() uint64 {
	var sum uint64
	for _, s := range db.lsas {
		h := fnv.New64a()
		h.Write(s.lsa.Origin[:])
		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], s.lsa.Epoch)
		binary.BigEndian.PutUint64(b[8:], s.lsa.Seq)
		h.Write(b[:])
		sum += h.Sum64()
	}
	return sum
}

func (db *lsdb) origins() []mesh.NodeID {
	return slices.SortedFunc(maps.Keys(db.lsas), mesh.NodeID.Compare)
}

// twoWay calls yield for each direction of each adjacency that both ends
// announce: one end's word alone makes no link.
func (db *lsdb) twoWay(yield func(from, to mesh.NodeID, cost mesh.Cost)) {
	for _, from := range db.origins() {
		for _, a := range db.lsas[from].lsa.Adjacencies {
			other, ok := db.lsas[a.Peer]
			if ok && slices.ContainsFunc(other.lsa.Adjacencies, func(b wire.Adjacency) bool { return b.Peer == from }) {
				yield(from, a.Peer, a.Cost)
			}
		}
	}
}

// prefixes are what counts of a member's announcement: its own addresses, and
// the announced prefixes that the log grants it.
func (db *lsdb) prefixes(origin mesh.NodeID) []netip.Prefix {
	member := db.members[origin]
	out := slices.Clone(member.Addrs)
	for _, p := range db.lsas[origin].lsa.Prefixes {
		if slices.Contains(member.Prefixes, p) {
			out = append(out, p)
		}
	}
	return out
}
