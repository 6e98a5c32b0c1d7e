package flow

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Kind says what a packet is for.
type Kind uint8

// The kinds of packet.
const (
	Data Kind = iota + 1
	EchoRequest
	EchoReply
)

// HeaderSize is the size of the smallest packet, in bytes of UDP payload.
const HeaderSize = 40

const (
	magic   = 0x67776677
	version = 1
	maxSeq  = 1 << 48 // some centuries at any rate; keeps sums of sequence numbers far from overflow
)

// Packet is what a UDP payload of this package says. On the wire, big endian:
//
//	0 magic (4) · 4 version · 5 kind · 6 zero (2) · 8 flow (4) · 12 zero (4)
//	16 sequence (8) · 24 send time (8) · 32 interval (8) · 40 zero padding
type Packet struct {
	Kind     Kind
	Flow     uint32
	Seq      uint64
	Sent     time.Duration // on CLOCK_MONOTONIC
	Interval time.Duration // between packets of the flow; 0 if it has no rate
}

// Encode writes the packet to the start of b, which must have room for HeaderSize, and leaves the rest as it is.
func (p Packet) Encode(b []byte) {
	_ = b[HeaderSize-1]
	clear(b[:HeaderSize])
	binary.BigEndian.PutUint32(b, magic)
	b[4], b[5] = version, byte(p.Kind)
	binary.BigEndian.PutUint32(b[8:], p.Flow)
	binary.BigEndian.PutUint64(b[16:], p.Seq)
	binary.BigEndian.PutUint64(b[24:], uint64(p.Sent))
	binary.BigEndian.PutUint64(b[32:], uint64(p.Interval))
}

// ParsePacket decodes what Encode made, followed by any padding. The error is ErrMalformed.
func ParsePacket(b []byte) (Packet, error) {
	if len(b) < HeaderSize {
		return Packet{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	if binary.BigEndian.Uint32(b) != magic || b[4] != version {
		return Packet{}, fmt.Errorf("%w: magic or version", ErrMalformed)
	}
	if binary.BigEndian.Uint16(b[6:]) != 0 || binary.BigEndian.Uint32(b[12:]) != 0 {
		return Packet{}, fmt.Errorf("%w: reserved bytes are set", ErrMalformed)
	}
	p := Packet{
		Kind:     Kind(b[5]),
		Flow:     binary.BigEndian.Uint32(b[8:]),
		Seq:      binary.BigEndian.Uint64(b[16:]),
		Sent:     time.Duration(binary.BigEndian.Uint64(b[24:])),
		Interval: time.Duration(binary.BigEndian.Uint64(b[32:])),
	}
	switch {
	case p.Kind < Data || p.Kind > EchoReply:
		return Packet{}, fmt.Errorf("%w: kind %d", ErrMalformed, p.Kind)
	case p.Seq >= maxSeq:
		return Packet{}, fmt.Errorf("%w: sequence number %d", ErrMalformed, p.Seq)
	case p.Sent < 0 || p.Interval < 0 || p.Interval > maxInterval:
		return Packet{}, fmt.Errorf("%w: times", ErrMalformed)
	}
	return p, nil
}
