package wire

import (
	"encoding/binary"
	"slices"

	"guywire/mesh"
)

const (
	// MaxNote bounds an encoded note, bytes.
	MaxNote = 32 << 10
	// MaxEntries bounds Distances.Entries.
	MaxEntries = 512
)

const (
	noteFlood     = 1
	noteDistances = 2
	noteComplete  = 3
	noteWelcome   = 4
	noteSettled   = 5
)

// A Note is one message inside the neighbour session: one of Flood,
// Distances, Complete, Welcome and Settled.
type Note interface{ note() byte }

// A Flood carries one announcement.
type Flood struct{ SignedLSA }

// Distances tells the sender's reported distances. The sender numbers its
// destinations anew in every session; Index grows strictly along Entries, of
// which there are at most MaxEntries.
type Distances struct{ Entries []Entry }

// An Entry is the distance to one destination.
type Entry struct {
	Index uint32
	// Key says what Index stands for from now on. It is zero when an earlier
	// entry of the session said so.
	Key      Destination
	Distance mesh.Cost // mesh.Infinite: not reachable
	// Patient says that the sender forwards as before until the distance is
	// confirmed: the receiver may first look for another way.
	Patient bool
}

// Complete ends the first full table of a session.
type Complete struct{}

// Welcome says that the sender's kernel admits transit from the receiver.
type Welcome struct{}

// Settled says that the sender's kernel forwards by what it has told.
type Settled struct{}

func (Flood) note() byte     { return noteFlood }
func (Distances) note() byte { return noteDistances }
func (Complete) note() byte  { return noteComplete }
func (Welcome) note() byte   { return noteWelcome }
func (Settled) note() byte   { return noteSettled }

// What an entry has is in the low bits of its step: a key, of which kind, and
// whether the sender is patient.
const (
	keyNode = iota + 1 // 0: no key
	keyPrefix4
	keyPrefix6

	keyMask    = 3
	patientBit = 4
	entryBits  = 3
)

// EncodeNote gives the note's only encoding.
func EncodeNote(n Note) []byte {
	b := []byte{n.note()}
	switch n := n.(type) {
	case Flood:
		b = slices.Grow(b, len(n.Signature)+len(n.Body))
		b = append(b, n.Signature[:]...)
		b = append(b, n.Body...)
	case Distances:
		next := uint32(0)
		for _, e := range n.Entries {
			step := uint64(e.Index-next) << entryBits
			if e.Patient {
				step |= patientBit
			}
			next = e.Index + 1
			switch {
			case !e.Key.Node.IsZero():
				b = binary.AppendUvarint(b, step|keyNode)
				b = append(b, e.Key.Node[:]...)
			case e.Key.Prefix.Addr().Is4():
				b = appendPrefix(binary.AppendUvarint(b, step|keyPrefix4), e.Key.Prefix)
			case e.Key.Prefix.IsValid():
				b = appendPrefix(binary.AppendUvarint(b, step|keyPrefix6), e.Key.Prefix)
			default:
				b = binary.AppendUvarint(b, step)
			}
			b = binary.AppendUvarint(b, distanceCode(e.Distance))
		}
	}
	return b
}

// distanceCode gives the commonest long distance, that of what is lost, the
// shortest code.
func distanceCode(d mesh.Cost) uint64 {
	if d >= mesh.Infinite {
		return 0
	}
	return uint64(d) + 1
}

// DecodeNote reads a note. An announcement inside is bounded but not parsed:
// that happens after a cheap look at its key.
func DecodeNote(b []byte) (Note, error) {
	if len(b) == 0 || len(b) > MaxNote {
		return nil, ErrMalformed
	}
	r := &reader{b: b[1:]}
	var n Note
	switch b[0] {
	case noteFlood:
		var f Flood
		copy(f.Signature[:], r.take(len(f.Signature)))
		if len(r.b) > maxBody {
			return nil, ErrMalformed
		}
		f.Body = append(f.Body, r.take(len(r.b))...)
		n = f
	case noteDistances:
		n = r.distances()
	case noteComplete:
		n = Complete{}
	case noteWelcome:
		n = Welcome{}
	case noteSettled:
		n = Settled{}
	default:
		return nil, ErrMalformed
	}
	if !r.done() {
		return nil, ErrMalformed
	}
	return n, nil
}

func (r *reader) distances() (d Distances) {
	next := uint64(0)
	for len(r.b) > 0 && !r.bad {
		step := r.uvarint()
		index := next + step>>entryBits
		if index > 1<<32-1 || len(d.Entries) == MaxEntries {
			r.bad = true
			break
		}
		e := Entry{Index: uint32(index), Patient: step&patientBit != 0}
		switch step & keyMask {
		case keyNode:
			e.Key.Node = r.id()
			r.bad = r.bad || e.Key.Node.IsZero()
		case keyPrefix4:
			e.Key.Prefix = r.prefix4()
		case keyPrefix6:
			e.Key.Prefix = r.prefix6()
		}
		switch code := r.uvarint(); {
		case code == 0:
			e.Distance = mesh.Infinite
		case code > uint64(mesh.Infinite):
			r.bad = true
		default:
			e.Distance = mesh.Cost(code - 1)
		}
		next = index + 1
		d.Entries = append(d.Entries, e)
	}
	return d
}
