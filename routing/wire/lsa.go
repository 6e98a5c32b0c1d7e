package wire

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"guywire/mesh"
)

// Limits of one announcement.
const (
	MaxAdjacencies = 512
	MaxPrefixes    = 1024 // as many as the log grants
)

// An LSA is a node's link-state announcement: its adjacencies and the
// prefixes behind it. It is meaningful only inside a SignedLSA.
type LSA struct {
	Mesh   mesh.MeshID
	Origin mesh.NodeID
	// Epoch grows with every start of the origin, Seq with every change
	// inside an epoch, so an old announcement is never taken for new.
	Epoch       uint64
	Seq         uint64
	NoTransit   bool // reachable, but not to be routed through
	Adjacencies []Adjacency
	Prefixes    []netip.Prefix
}

// An Adjacency is one neighbour with the cost towards it.
type Adjacency struct {
	Peer mesh.NodeID
	Cost mesh.Cost
}

// Key names this instance of the announcement.
func (l LSA) Key() LSAKey { return LSAKey{l.Origin, l.Epoch, l.Seq} }

// A SignedLSA is the encoding of an LSA with its origin's Ed25519 signature.
type SignedLSA struct {
	Body      []byte
	Signature [64]byte
}

// domain separates these signatures from everything else an identity key signs.
const domain = "guywire lsa 1\x00"

// Sign encodes l, sorting its lists, and signs it with sign (Ed25519, RFC 8032).
func Sign(l LSA, sign func([]byte) []byte) SignedLSA {
	l.Adjacencies = slices.SortedFunc(slices.Values(l.Adjacencies), func(a, b Adjacency) int { return a.Peer.Compare(b.Peer) })
	l.Prefixes = slices.SortedFunc(slices.Values(l.Prefixes), netip.Prefix.Compare)
	s := SignedLSA{Body: appendLSA(nil, l)}
	copy(s.Signature[:], sign(s.signed()))
	return s
}

// Verify reports whether key signed s.
func (s SignedLSA) Verify(key mesh.IdentityKey) bool {
	return key.Verify(s.signed(), s.Signature[:])
}

func (s SignedLSA) signed() []byte { return append([]byte(domain), s.Body...) }

// Key reads only the key off the front of the body: enough to drop a
// duplicate before any costly work.
func (s SignedLSA) Key() (LSAKey, bool) {
	r := &reader{b: s.Body}
	r.take(len(mesh.MeshID{}))
	k := LSAKey{Origin: mesh.NodeID(r.take(8)), Epoch: r.u64(), Seq: r.u64()}
	return k, !r.bad
}

func appendLSA(b []byte, l LSA) []byte {
	b = append(b, l.Mesh[:]...)
	b = append(b, l.Origin[:]...)
	b = binary.BigEndian.AppendUint64(b, l.Epoch)
	b = binary.BigEndian.AppendUint64(b, l.Seq)
	var flags byte
	if l.NoTransit {
		flags = 1
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint16(b, uint16(len(l.Adjacencies)))
	for _, a := range l.Adjacencies {
		b = append(b, a.Peer[:]...)
		b = binary.BigEndian.AppendUint32(b, uint32(a.Cost))
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(l.Prefixes)))
	for _, p := range l.Prefixes {
		b = appendPrefix(b, p)
	}
	return b
}

// LSA decodes the body. It does not check the signature.
func (s SignedLSA) LSA() (LSA, error) {
	r := &reader{b: s.Body}
	l := LSA{Mesh: mesh.MeshID(r.take(8)), Origin: mesh.NodeID(r.take(8)), Epoch: r.u64(), Seq: r.u64()}
	flags := r.u8()
	if flags > 1 {
		return LSA{}, ErrMalformed
	}
	l.NoTransit = flags == 1
	n := int(r.u16())
	if n > MaxAdjacencies {
		return LSA{}, ErrMalformed
	}
	for i := range n {
		a := Adjacency{Peer: mesh.NodeID(r.take(8)), Cost: mesh.Cost(r.u32())}
		if r.bad || a.Cost == 0 || a.Cost >= mesh.Infinite || a.Peer == l.Origin ||
			i > 0 && l.Adjacencies[i-1].Peer.Compare(a.Peer) >= 0 {
			return LSA{}, ErrMalformed
		}
		l.Adjacencies = append(l.Adjacencies, a)
	}
	n = int(r.u16())
	if n > MaxPrefixes {
		return LSA{}, ErrMalformed
	}
	for i := range n {
		p := r.prefix()
		if r.bad || i > 0 && l.Prefixes[i-1].Compare(p) >= 0 {
			return LSA{}, ErrMalformed
		}
		l.Prefixes = append(l.Prefixes, p)
	}
	if !r.done() {
		return LSA{}, ErrMalformed
	}
	return l, nil
}
