package wire

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"guywire/mesh"
)

const (
	// MaxAdjacencies and MaxPrefixes bound one node's announcement: all its
	// fragments together. The log grants no more prefixes.
	MaxAdjacencies = 512
	MaxPrefixes    = 1024
	// AdjacenciesPerFragment and PrefixesPerFragment bound one fragment, so
	// that a change floods a datagram or two.
	AdjacenciesPerFragment = 40
	PrefixesPerFragment    = 64
	// MaxFragments bounds the fragments of one node.
	MaxFragments = 64
	// MaxLSA bounds a fragment with its signature, bytes.
	MaxLSA = 2 << 10

	maxBody = MaxLSA - len(SignedLSA{}.Signature)
)

// An LSA is one fragment of a node's link-state announcement: some of its
// adjacencies or some of the prefixes behind it, never both. Each fragment is
// signed and sequenced on its own, so one changed link floods one fragment
// (the idea of IS-IS, ISO/IEC 10589 7.3.7). It is meaningful only inside a
// SignedLSA.
type LSA struct {
	Mesh     mesh.MeshID
	Origin   mesh.NodeID
	Fragment uint16 // below MaxFragments
	// Epoch grows with every start of the origin, Seq with every change of
	// the fragment inside an epoch, so an old one is never taken for new.
	Epoch uint64
	Seq   uint64

	// Only fragment 0 says the following about the node as a whole.

	NoTransit bool   // reachable, but not to be routed through
	Overload  bool   // drained: to be routed through as the last resort
	Fragments uint16 // fragments in this epoch, 1 to MaxFragments; others do not count

	Adjacencies []Adjacency    // by peer, strictly increasing
	Prefixes    []netip.Prefix // strictly increasing
}

// An Adjacency is one neighbour with the cost towards it.
type Adjacency struct {
	Peer  mesh.NodeID
	Cost  mesh.Cost // 1 to mesh.Infinite-1
	Drain bool      // to be used as the last resort
}

// Key names this instance of the fragment.
func (l LSA) Key() LSAKey { return LSAKey{l.Origin, l.Fragment, l.Epoch, l.Seq} }

// An LSAKey names one instance of one fragment of a node's announcement.
type LSAKey struct {
	Origin   mesh.NodeID
	Fragment uint16
	Epoch    uint64
	Seq      uint64
}

// Newer reports whether k supersedes o of the same origin and fragment.
func (k LSAKey) Newer(o LSAKey) bool {
	return k.Epoch > o.Epoch || k.Epoch == o.Epoch && k.Seq > o.Seq
}

// A SignedLSA is the encoding of an LSA with its origin's Ed25519 signature.
type SignedLSA struct {
	Body      []byte
	Signature [64]byte
}

// domain separates these signatures from everything else an identity key signs.
const domain = "guywire lsa 2\x00"

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
	l, r := s.head()
	return l.Key(), !r.bad
}

func (s SignedLSA) head() (LSA, *reader) {
	r := &reader{b: s.Body}
	l := LSA{Mesh: r.id(), Origin: r.id(), Fragment: r.u16(), Epoch: r.u64(), Seq: r.u64()}
	r.bad = r.bad || l.Fragment >= MaxFragments
	return l, r
}

const (
	flagNoTransit = 1 << iota
	flagOverload
)

func appendLSA(b []byte, l LSA) []byte {
	b = append(b, l.Mesh[:]...)
	b = append(b, l.Origin[:]...)
	b = binary.BigEndian.AppendUint16(b, l.Fragment)
	b = binary.BigEndian.AppendUint64(b, l.Epoch)
	b = binary.BigEndian.AppendUint64(b, l.Seq)
	if l.Fragment == 0 {
		var flags byte
		if l.NoTransit {
			flags |= flagNoTransit
		}
		if l.Overload {
			flags |= flagOverload
		}
		b = append(b, flags)
		b = binary.BigEndian.AppendUint16(b, l.Fragments)
	}
	b = append(b, byte(len(l.Adjacencies)))
	for _, a := range l.Adjacencies {
		b = append(b, a.Peer[:]...)
		cost := uint32(a.Cost) << 1 // costs have 31 bits
		if a.Drain {
			cost |= 1
		}
		b = binary.BigEndian.AppendUint32(b, cost)
	}
	b = append(b, byte(len(l.Prefixes)))
	for _, p := range l.Prefixes {
		family := byte(6)
		if p.Addr().Is4() {
			family = 4
		}
		b = appendPrefix(append(b, family), p)
	}
	return b
}

// LSA decodes the body. It does not check the signature.
func (s SignedLSA) LSA() (LSA, error) {
	l, r := s.head()
	if l.Fragment == 0 {
		flags := r.u8()
		l.NoTransit, l.Overload = flags&flagNoTransit != 0, flags&flagOverload != 0
		l.Fragments = r.u16()
		r.bad = r.bad || flags&^(flagNoTransit|flagOverload) != 0 || l.Fragments == 0 || l.Fragments > MaxFragments
	}
	n := int(r.u8())
	r.bad = r.bad || n > AdjacenciesPerFragment
	for i := 0; i < n && !r.bad; i++ {
		a := Adjacency{Peer: r.id()}
		cost := r.u32()
		a.Cost, a.Drain = mesh.Cost(cost>>1), cost&1 != 0
		r.bad = r.bad || a.Cost == 0 || a.Cost >= mesh.Infinite || a.Peer == l.Origin ||
			i > 0 && l.Adjacencies[i-1].Peer.Compare(a.Peer) >= 0
		l.Adjacencies = append(l.Adjacencies, a)
	}
	n = int(r.u8())
	r.bad = r.bad || n > PrefixesPerFragment || n > 0 && len(l.Adjacencies) > 0
	for i := 0; i < n && !r.bad; i++ {
		var p netip.Prefix
		switch r.u8() {
		case 4:
			p = r.prefix4()
		case 6:
			p = r.prefix6()
		default:
			r.bad = true
		}
		r.bad = r.bad || i > 0 && l.Prefixes[i-1].Compare(p) >= 0
		l.Prefixes = append(l.Prefixes, p)
	}
	if !r.done() {
		return LSA{}, ErrMalformed
	}
	return l, nil
}
