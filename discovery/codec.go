package discovery

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// The encoding of statements: fixed-width big-endian integers, texts and lists
// with one length byte, addresses with their family before them. Every value
// has exactly one encoding, so a signature covers the meaning and not merely
// some spelling of it.

type writer struct {
	b   []byte
	err error
}

func (w *writer) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
	}
}

func (w *writer) byte(v byte)     { w.b = append(w.b, v) }
func (w *writer) bytes(v []byte)  { w.b = append(w.b, v...) }
func (w *writer) uint16(v uint16) { w.b = binary.BigEndian.AppendUint16(w.b, v) }
func (w *writer) uint32(v uint32) { w.b = binary.BigEndian.AppendUint32(w.b, v) }
func (w *writer) uint64(v uint64) { w.b = binary.BigEndian.AppendUint64(w.b, v) }

func (w *writer) bool(v bool) {
	if v {
		w.byte(1)
	} else {
		w.byte(0)
	}
}

func (w *writer) count(what string, n, limit int) {
	if n > limit {
		w.fail("%d %s, at most %d", n, what, limit)
		n = 0
	}
	w.byte(byte(n))
}

func (w *writer) text(what, s string, limit int) {
	w.count("bytes of "+what, len(s), limit)
	w.bytes([]byte(s))
}

func (w *writer) addr(a netip.Addr) {
	switch {
	case a.Is4():
		w.byte(4)
	case a.Is6() && !a.Is4In6() && a.Zone() == "":
		w.byte(6)
	default:
		w.fail("address %s is neither plain IPv4 nor plain IPv6", a)
		return
	}
	w.bytes(a.AsSlice())
}

func (w *writer) addrPort(a netip.AddrPort) {
	w.addr(a.Addr())
	w.uint16(a.Port())
}

func (w *writer) addrPorts(what string, list []netip.AddrPort, limit int) {
	w.count(what, len(list), limit)
	for _, a := range list {
		w.addrPort(a)
	}
}

// reader takes fields off the front of b. After a failure it gives zero
// values, so callers check err once at the end; list lengths are checked
// against their limit before anything is allocated.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
	}
	r.b = nil
}

func (r *reader) take(n int) []byte {
	if r.err == nil && len(r.b) < n {
		r.fail("%d bytes missing", n-len(r.b))
	}
	if r.err != nil {
		return make([]byte, n) // n is a constant or below 256
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte     { return r.take(1)[0] }
func (r *reader) uint16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) uint64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

func (r *reader) bool() bool {
	v := r.byte()
	if v > 1 {
		r.fail("truth value %d", v)
	}
	return v == 1
}

func (r *reader) count(what string, limit int) int {
	n := int(r.byte())
	if n > limit {
		r.fail("%d %s, at most %d", n, what, limit)
		return 0
	}
	return n
}

func (r *reader) text(what string, limit int) string {
	n := r.count("bytes of "+what, limit)
	return string(r.take(n))
}

func (r *reader) addr() netip.Addr {
	switch family := r.byte(); family {
	case 4:
		return netip.AddrFrom4([4]byte(r.take(4)))
	case 6:
		a := netip.AddrFrom16([16]byte(r.take(16)))
		if a.Is4In6() {
			r.fail("IPv4 address %s written as IPv6", a)
		}
		return a
	default:
		r.fail("address family %d", family)
		return netip.Addr{}
	}
}

func (r *reader) addrPort() netip.AddrPort {
	a := r.addr()
	return netip.AddrPortFrom(a, r.uint16())
}

func (r *reader) addrPorts(what string, limit int) []netip.AddrPort {
	var list []netip.AddrPort
	for range r.count(what, limit) {
		list = append(list, r.addrPort())
	}
	return list
}

// end reports the first failure, or bytes left over.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes too many", len(r.b))
	}
	return r.err
}
