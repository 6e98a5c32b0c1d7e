package wire

import (
	"encoding/binary"
	"errors"
	"net/netip"
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

func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

func (r *reader) prefix() netip.Prefix {
	family, bits := r.u8(), int(r.u8())
	var addr netip.Addr
	switch family {
	case 4:
		addr = netip.AddrFrom4([4]byte(r.take(4)))
	case 6:
		addr = netip.AddrFrom16([16]byte(r.take(16)))
		if addr.Is4In6() {
			r.bad = true
		}
	default:
		r.bad = true
		return netip.Prefix{}
	}
	p, err := addr.Prefix(bits)
	if err != nil || p.Addr() != addr {
		r.bad = true // too long, or bits set beyond the mask
	}
	return p
}

// done reports whether the message was well formed and is used up.
func (r *reader) done() bool { return !r.bad && len(r.b) == 0 }

func appendPrefix(b []byte, p netip.Prefix) []byte {
	family := byte(6)
	if p.Addr().Is4() {
		family = 4
	}
	b = append(b, family, byte(p.Bits()))
	return append(b, p.Addr().AsSlice()...)
}
