package transport

import (
	"encoding/binary"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// peek reads which protocols the client of a TLS connection offers, and leaves
// every byte where it is. It waits for the whole ClientHello, for peekTime and
// maxHello bytes at most. Nil: it offers none, says something else, or nothing.
func peek(conn *net.TCPConn) []string {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	if err := conn.SetReadDeadline(time.Now().Add(peekTime)); err != nil {
		return nil
	}
	defer conn.SetReadDeadline(time.Time{})
	var buf [maxHello]byte
	var names []string
	// Every arrival wakes it; what has been seen before does not.
	_ = raw.Read(func(fd uintptr) (done bool) { // an error: nothing came in time
		n, _, err := unix.Recvfrom(int(fd), buf[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch err {
		case nil:
		case unix.EAGAIN, unix.EINTR:
			return false
		default:
			return true
		}
		var whole bool
		names, whole = offered(buf[:n])
		return whole || n == 0
	})
	return names
}

// offered gives the protocols (ALPN, RFC 7301) that the ClientHello at the
// beginning of a connection offers, in the order of preference; whole is false
// while more bytes could make a difference. A ClientHello that is not alone in
// the first record (RFC 8446 sections 4.1.2 and 5.1) or does not fit maxHello is
// taken for one without ALPN: no client of a protocol that we tell so writes it.
func offered(b []byte) (names []string, whole bool) {
	const recordHeader, handshake, clientHello = 5, 22, 1
	if len(b) > 0 && b[0] != handshake {
		return nil, true
	}
	if len(b) < recordHeader {
		return nil, false
	}
	size := int(binary.BigEndian.Uint16(b[3:]))
	if size > maxHello-recordHeader {
		return nil, true
	}
	if len(b) < recordHeader+size {
		return nil, false
	}
	message := field(b[recordHeader : recordHeader+size])
	kind, ok := message.take(1)
	if !ok || kind[0] != clientHello {
		return nil, true
	}
	hello, ok := message.vector(3)
	if !ok || len(message) > 0 {
		return nil, true
	}
	return hello.alpn(), true
}

// A field is the unread rest of a part of a message.
type field []byte

// take gives the next n bytes.
func (f *field) take(n int) (field, bool) {
	if len(*f) < n {
		return nil, false
	}
	head := (*f)[:n]
	*f = (*f)[n:]
	return head, true
}

// vector gives the next bytes, as many as the number of so many bytes in front
// of them says (RFC 8446 section 3.4).
func (f *field) vector(bytes int) (field, bool) {
	number, ok := f.take(bytes)
	if !ok {
		return nil, false
	}
	size := 0
	for _, b := range number {
		size = size<<8 | int(b)
	}
	return f.take(size)
}

// alpn gives the protocol names in the body of a ClientHello; nil: there are
// none, or it is malformed.
func (f field) alpn() (names []string) {
	const versionAndRandom, extensionALPN = 2 + 32, 16
	if _, ok := f.take(versionAndRandom); !ok {
		return nil
	}
	for _, bytes := range []int{1, 2, 1} { // session id, cipher suites, compression
		if _, ok := f.vector(bytes); !ok {
			return nil
		}
	}
	extensions, ok := f.vector(2)
	if !ok || len(f) > 0 {
		return nil
	}
	for len(extensions) > 0 {
		kind, ok1 := extensions.take(2)
		data, ok2 := extensions.vector(2)
		if !ok1 || !ok2 {
			return nil
		}
		if binary.BigEndian.Uint16(kind) != extensionALPN {
			continue
		}
		list, ok := data.vector(2)
		if !ok || len(data) > 0 {
			return nil
		}
		for len(list) > 0 {
			name, ok := list.vector(1)
			if !ok || len(name) == 0 {
				return nil
			}
			names = append(names, string(name))
		}
	}
	return names
}
