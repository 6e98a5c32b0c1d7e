package wire

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"guywire/mesh"
)

// ErrMalformed is what every decoder returns for bytes that no encoder of
// this version writes.
var ErrMalformed = errors.New("malformed message")

// A reader takes fields off the front of a message. After the first short
// read every further read gives zero values and bad stays set.
type reader struct {
	b   []byte
	bad bool
}

// take gives the next n bytes of the input itself, or nil.
func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// id reads the 8 bytes of a node's or a mesh's id.
func (r *reader) id() (id [8]byte) {
	copy(id[:], r.take(len(id)))
	return id
}

// uvarint refuses longer forms than the shortest.
func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if r.bad || n <= 0 || n > 1 && r.b[n-1] == 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

// name reads a length and a name that mesh.CheckName allows.
func (r *reader) name() string {
	s := string(r.take(int(r.u8())))
	if !r.bad && mesh.CheckName(s) != nil {
		r.bad = true
	}
	return s
}

// prefix4 and prefix6 read a length in bits and only the bytes that it covers.
func (r *reader) prefix4() netip.Prefix {
	var a [4]byte
	bits := r.masked(a[:])
	return r.check(netip.PrefixFrom(netip.AddrFrom4(a), bits))
}

func (r *reader) prefix6() netip.Prefix {
	var a [16]byte
	bits := r.masked(a[:])
	return r.check(netip.PrefixFrom(netip.AddrFrom16(a), bits))
}

func (r *reader) masked(addr []byte) (bits int) {
	bits = int(r.u8())
	if bits > 8*len(addr) {
		r.bad = true
		return 0
	}
	copy(addr, r.take((bits+7)/8))
	return bits
}

// check refuses prefixes that have a second form: bits set beyond the mask,
// IPv4 dressed as IPv6.
func (r *reader) check(p netip.Prefix) netip.Prefix {
	if p != p.Masked() || p.Addr().Is4In6() {
		r.bad = true
	}
	return p
}

// done reports whether the message was well formed and is used up.
func (r *reader) done() bool { return !r.bad && len(r.b) == 0 }

func appendPrefix(b []byte, p netip.Prefix) []byte {
	b = append(b, byte(p.Bits()))
	return append(b, p.Addr().AsSlice()[:(p.Bits()+7)/8]...)
}
