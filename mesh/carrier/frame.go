package carrier

import (
	"encoding/binary"
	"fmt"
)

// ALPN is the protocol's name in TLS (RFC 7301). A listener that serves other
// protocols, too, tells carriers by it.
const ALPN = "guywire-carrier/1"

const (
	// MaxDatagram is the size of the largest datagram, bytes: a tunnel on a
	// carrier has an MTU of at most MaxDatagram - 80.
	MaxDatagram = 2048
	// TokenSize is the size of a carrier's token, bytes.
	TokenSize = 16
	// BatchSize is what fits one TLS record (RFC 8446 section 5.1), bytes.
	BatchSize = 16 << 10

	header = 2
	frame  = header + MaxDatagram
)

// AppendFrame appends a datagram's frame to dst. It panics unless the datagram
// has 1 to MaxDatagram bytes.
func AppendFrame(dst, datagram []byte) []byte {
	if !fits(datagram) {
		panic(fmt.Sprintf("carrier: a datagram of %d bytes", len(datagram)))
	}
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(datagram))), datagram...)
}

func fits(datagram []byte) bool { return len(datagram) >= 1 && len(datagram) <= MaxDatagram }

// A Splitter takes datagrams out of a stream. The zero value is at its
// beginning. It is used in turns: read into Room, tell Filled how much came,
// call Next until there is no more.
type Splitter struct {
	buf      [BatchSize + frame]byte
	from, to int // what was read and not given out
}

// Room is where the next bytes of the stream belong. It is not empty, and what
// Next has given is not valid any more.
func (s *Splitter) Room() []byte {
	s.to = copy(s.buf[:], s.buf[s.from:s.to])
	s.from = 0
	return s.buf[s.to:]
}

// Filled says that n bytes were read into Room.
func (s *Splitter) Filled(n int) { s.to += n }

// Next gives the next datagram, or nil when the rest of it is still to be read.
// An error means that the far end does not speak this protocol: end the
// connection.
func (s *Splitter) Next() ([]byte, error) {
	have := s.buf[s.from:s.to]
	if len(have) < header {
		return nil, nil
	}
	size := int(binary.BigEndian.Uint16(have))
	if size == 0 || size > MaxDatagram {
		return nil, fmt.Errorf("the far end sent a frame of %d bytes, allowed are 1 to %d", size, MaxDatagram)
	}
	if len(have) < header+size {
		return nil, nil
	}
	s.from += header + size
	return have[header : header+size], nil
}
