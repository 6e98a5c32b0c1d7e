package wire

import (
	"encoding/binary"

	"guywire/mesh"
)

// Version is the first byte of every message. Another version is refused.
const Version = 1

// MaxMessage bounds an encoded message, bytes. Larger than a tunnel's MTU it
// travels as IPv6 fragments inside the tunnel.
const MaxMessage = 32 << 10

const (
	typeProbe   = 1
	typeFlood   = 2
	typeAck     = 3
	typeGoodbye = 4

	headerLen = 1 + 1 + 8
)

// A Message is one datagram between neighbours. Incarnation is the sender's:
// it grows with every start of the sender's agent.
type Message struct {
	Incarnation uint64
	Body        Body
}

// A Body is one of Probe, Flood, Ack and Goodbye.
type Body interface{ kind() byte }

// A Probe measures one link in both directions and carries each end's
// verdict. Times are on the sender's clock in nanoseconds and mean nothing to
// the receiver, which only echoes them.
type Probe struct {
	Seq       uint32
	Sent      int64
	Interval  uint32 // µs until the sender's next probe
	Flags     ProbeFlags
	EchoSeq   uint32 // newest probe received from the other end; 0: none yet
	EchoSent  int64  // its Sent
	EchoDelay uint32 // µs that it waited here for this probe
	Loss      uint16 // share of the other end's probes lost, in 1/65535
	Digest    uint64 // of the sender's link-state database
}

// ProbeFlags are a sender's verdicts on a link.
type ProbeFlags uint8

// Verdicts.
const (
	// Hears: the sender receives the other end's probes on this link.
	Hears ProbeFlags = 1 << iota
	// Accepts: the sender's kernel admits transit from the other end.
	Accepts
	// HoldsDown: the sender holds this link down; stop using it at once.
	HoldsDown
	knownFlags = Hears | Accepts | HoldsDown
)

// A Flood carries signed link-state announcements, as SignedLSA encodes them.
type Flood struct{ LSAs []SignedLSA }

// An Ack confirms announcements.
type Ack struct{ Keys []LSAKey }

// Goodbye says that the sender stops forwarding: a clean leave.
type Goodbye struct{}

// An LSAKey names one instance of one node's announcement.
type LSAKey struct {
	Origin mesh.NodeID
	Epoch  uint64
	Seq    uint64
}

// Newer reports whether k supersedes o of the same origin.
func (k LSAKey) Newer(o LSAKey) bool {
	return k.Epoch > o.Epoch || k.Epoch == o.Epoch && k.Seq > o.Seq
}

func (Probe) kind() byte   { return typeProbe }
func (Flood) kind() byte   { return typeFlood }
func (Ack) kind() byte     { return typeAck }
func (Goodbye) kind() byte { return typeGoodbye }

const probeLen = 4 + 8 + 4 + 1 + 4 + 8 + 4 + 2 + 8

// Encode gives the message's only encoding.
func Encode(m Message) []byte {
	b := make([]byte, 0, headerLen+probeLen)
	b = append(b, Version, m.Body.kind())
	b = binary.BigEndian.AppendUint64(b, m.Incarnation)
	switch body := m.Body.(type) {
	case Probe:
		b = binary.BigEndian.AppendUint32(b, body.Seq)
		b = binary.BigEndian.AppendUint64(b, uint64(body.Sent))
		b = binary.BigEndian.AppendUint32(b, body.Interval)
		b = append(b, byte(body.Flags))
		b = binary.BigEndian.AppendUint32(b, body.EchoSeq)
		b = binary.BigEndian.AppendUint64(b, uint64(body.EchoSent))
		b = binary.BigEndian.AppendUint32(b, body.EchoDelay)
		b = binary.BigEndian.AppendUint16(b, body.Loss)
		b = binary.BigEndian.AppendUint64(b, body.Digest)
	case Flood:
		b = binary.BigEndian.AppendUint16(b, uint16(len(body.LSAs)))
		for _, l := range body.LSAs {
			b = binary.BigEndian.AppendUint16(b, uint16(len(l.Body)))
			b = append(b, l.Body...)
			b = append(b, l.Signature[:]...)
		}
	case Ack:
		b = binary.BigEndian.AppendUint16(b, uint16(len(body.Keys)))
		for _, k := range body.Keys {
			b = append(b, k.Origin[:]...)
			b = binary.BigEndian.AppendUint64(b, k.Epoch)
			b = binary.BigEndian.AppendUint64(b, k.Seq)
		}
	}
	return b
}

// Decode reads a message. Announcements inside are bounded but not parsed:
// that happens after a cheap look at their key.
func Decode(b []byte) (Message, error) {
	if len(b) < headerLen || len(b) > MaxMessage || b[0] != Version {
		return Message{}, ErrMalformed
	}
	r := &reader{b: b[2:]}
	m := Message{Incarnation: r.u64()}
	switch b[1] {
	case typeProbe:
		p := Probe{Seq: r.u32(), Sent: int64(r.u64()), Interval: r.u32(), Flags: ProbeFlags(r.u8())}
		p.EchoSeq, p.EchoSent, p.EchoDelay = r.u32(), int64(r.u64()), r.u32()
		p.Loss, p.Digest = r.u16(), r.u64()
		if p.Flags&^knownFlags != 0 {
			return Message{}, ErrMalformed
		}
		m.Body = p
	case typeFlood:
		n := int(r.u16())
		var f Flood
		for range n {
			body := r.take(int(r.u16()))
			sig := r.take(len(SignedLSA{}.Signature))
			if r.bad {
				return Message{}, ErrMalformed
			}
			l := SignedLSA{Body: append([]byte(nil), body...)}
			copy(l.Signature[:], sig)
			f.LSAs = append(f.LSAs, l)
		}
		m.Body = f
	case typeAck:
		n := int(r.u16())
		var a Ack
		for range n {
			k := LSAKey{Origin: mesh.NodeID(r.take(8)), Epoch: r.u64(), Seq: r.u64()}
			if r.bad {
				return Message{}, ErrMalformed
			}
			a.Keys = append(a.Keys, k)
		}
		m.Body = a
	case typeGoodbye:
		m.Body = Goodbye{}
	default:
		return Message{}, ErrMalformed
	}
	if !r.done() {
		return Message{}, ErrMalformed
	}
	return m, nil
}
