package wire

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
)

// Version is the first byte of every datagram. Another version is refused.
const Version = 3

const (
	// MaxMessage bounds an encoded datagram, bytes.
	MaxMessage = 32 << 10
	// MaxSegmentData bounds the data of one segment, bytes, so that a full one
	// fits the smallest IPv6 MTU (1280) with all headers.
	MaxSegmentData = 1100
	// ProbeLen is the size of an encoded probe without padding, bytes.
	ProbeLen = datagramLen + probeLen + headerLen
	// MaxPad bounds Probe.Pad.
	MaxPad = MaxMessage - ProbeLen
	// MaxSilenceLinks bounds Silence.Links.
	MaxSilenceLinks = 64

	datagramLen = 1 + 1 + 8
	probeLen    = 4 + 8 + 4 + 4 + 1 + 4 + 8 + 4 + 2 + 8 + 2 + 2
	headerLen   = 4*8 + 1
)

const (
	typeProbe   = 1
	typeSegment = 2
	typeSilence = 3
	typeGoodbye = 4
	typeSight   = 5
)

// A Message is one datagram between neighbours. Incarnation is the sender's:
// it grows with every start of the sender's agent.
type Message struct {
	Incarnation uint64
	Body        Body
}

// A Body is one of Probe, Segment, Silence, Goodbye and Sight.
type Body interface{ kind() byte }

// A Probe measures one link in both directions and carries each end's
// verdict. Times are on the sender's clock in nanoseconds and mean nothing to
// the receiver, which only echoes them.
type Probe struct {
	Seq       uint32
	Sent      int64
	Interval  uint32 // µs until the sender's next probe
	Want      uint32 // µs between probes that the sender asks for (RFC 5880 4.1, Required Min RX Interval)
	Flags     ProbeFlags
	EchoSeq   uint32 // newest probe received from the other end; 0: none yet
	EchoSent  int64  // its Sent
	EchoDelay uint32 // µs that it waited here for this probe
	Loss      uint16 // share of the other end's probes lost, in 1/65535
	Digest    uint64 // of the sender's link-state database
	Session   Header
	Pad       uint16 // bytes of zero padding that follow, at most MaxPad: an MTU probe (RFC 8899)
	PadEcho   uint16 // largest Pad of the other end's probes received lately
}

// ProbeFlags are a sender's verdicts on a link.
type ProbeFlags uint8

// Verdicts.
const (
	// Hears: the sender receives the other end's probes on this link.
	Hears ProbeFlags = 1 << iota
	// HoldsDown: the sender holds this link down; stop using it at once.
	HoldsDown

	knownFlags = Hears | HoldsDown
)

// A Header is the state of the neighbour session as its sender sees it. It
// rides on every segment and every probe, so what a lost datagram said is
// said again.
type Header struct {
	From      uint64 // the sender's session number; grows with each session it begins
	To        uint64 // the receiver's, as the sender knows it; 0: unknown
	Received  uint64 // bytes of the receiver's stream that have arrived in order
	Committed uint64 // offset in that stream up to which all is acted upon and in the sender's kernel
	Cold      bool   // the sender holds the receiver down, or has forgotten it
	Open      bool   // the sender has heard the receiver speak to From
	Gap       bool   // something beyond Received has arrived: what is missing was lost, or overtaken
}

// A Segment is part of the sender's byte stream: Data begins at Offset. It is
// at most MaxSegmentData bytes and may be empty.
type Segment struct {
	Header
	Offset uint64
	Data   []byte
}

// Silence says: "I hear nothing from you on these links". It goes over the
// links that work, best effort. Encoding sorts and keeps MaxSilenceLinks.
type Silence struct{ Links []LinkName }

// A LinkName is a link between two known nodes, named by the sender of it.
type LinkName struct {
	Local  string // the sender's uplink
	Remote string // the receiver's
}

// Goodbye says that the sender stops forwarding: a clean leave.
type Goodbye struct{}

// Sight says where the receiver's packets on this link come from, as the sender sees
// it on the underlay. A node from before it was added drops it.
type Sight struct{ Endpoint netip.AddrPort }

func (Probe) kind() byte   { return typeProbe }
func (Segment) kind() byte { return typeSegment }
func (Silence) kind() byte { return typeSilence }
func (Goodbye) kind() byte { return typeGoodbye }
func (Sight) kind() byte   { return typeSight }

// Encode gives the message's only encoding.
func Encode(m Message) []byte {
	b := make([]byte, 0, 256)
	b = append(b, Version, m.Body.kind())
	b = binary.BigEndian.AppendUint64(b, m.Incarnation)
	switch body := m.Body.(type) {
	case Probe:
		b = binary.BigEndian.AppendUint32(b, body.Seq)
		b = binary.BigEndian.AppendUint64(b, uint64(body.Sent))
		b = binary.BigEndian.AppendUint32(b, body.Interval)
		b = binary.BigEndian.AppendUint32(b, body.Want)
		b = append(b, byte(body.Flags))
		b = binary.BigEndian.AppendUint32(b, body.EchoSeq)
		b = binary.BigEndian.AppendUint64(b, uint64(body.EchoSent))
		b = binary.BigEndian.AppendUint32(b, body.EchoDelay)
		b = binary.BigEndian.AppendUint16(b, body.Loss)
		b = binary.BigEndian.AppendUint64(b, body.Digest)
		b = appendHeader(b, body.Session)
		b = binary.BigEndian.AppendUint16(b, body.PadEcho)
		b = binary.BigEndian.AppendUint16(b, body.Pad)
		b = append(b, make([]byte, body.Pad)...)
	case Segment:
		b = appendHeader(b, body.Header)
		b = binary.BigEndian.AppendUint64(b, body.Offset)
		b = append(b, body.Data...)
	case Silence:
		links := slices.Compact(slices.SortedFunc(slices.Values(body.Links), LinkName.compare))
		links = links[:min(len(links), MaxSilenceLinks)]
		b = append(b, byte(len(links)))
		for _, l := range links {
			b = appendName(b, l.Local)
			b = appendName(b, l.Remote)
		}
	case Sight:
		b = append(b, body.Endpoint.Addr().AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, body.Endpoint.Port())
	}
	return b
}

// Decode reads a message.
func Decode(b []byte) (Message, error) {
	if len(b) < datagramLen || len(b) > MaxMessage || b[0] != Version {
		return Message{}, ErrMalformed
	}
	r := &reader{b: b[2:]}
	m := Message{Incarnation: r.u64()}
	switch b[1] {
	case typeProbe:
		m.Body = r.probe()
	case typeSegment:
		m.Body = r.segment()
	case typeSilence:
		m.Body = r.silence()
	case typeGoodbye:
		m.Body = Goodbye{}
	case typeSight:
		m.Body = r.sight()
	default:
		return Message{}, ErrMalformed
	}
	if !r.done() {
		return Message{}, ErrMalformed
	}
	return m, nil
}

func (r *reader) probe() Probe {
	p := Probe{
		Seq: r.u32(), Sent: int64(r.u64()), Interval: r.u32(), Want: r.u32(), Flags: ProbeFlags(r.u8()),
		EchoSeq: r.u32(), EchoSent: int64(r.u64()), EchoDelay: r.u32(),
		Loss: r.u16(), Digest: r.u64(), Session: r.header(), PadEcho: r.u16(), Pad: r.u16(),
	}
	padding := r.take(int(p.Pad))
	r.bad = r.bad || p.Flags&^knownFlags != 0 || slices.ContainsFunc(padding, func(c byte) bool { return c != 0 })
	return p
}

func (r *reader) segment() Segment {
	s := Segment{Header: r.header(), Offset: r.u64()}
	if len(r.b) > MaxSegmentData {
		r.bad = true
		return s
	}
	s.Data = append(s.Data, r.take(len(r.b))...)
	return s
}

func (r *reader) silence() (s Silence) {
	n := int(r.u8())
	r.bad = r.bad || n > MaxSilenceLinks
	for i := 0; i < n && !r.bad; i++ {
		l := LinkName{Local: r.name(), Remote: r.name()}
		r.bad = r.bad || i > 0 && s.Links[i-1].compare(l) >= 0
		s.Links = append(s.Links, l)
	}
	return s
}

// sight reads an endpoint, whose length tells the address family.
func (r *reader) sight() Sight {
	addr, ok := netip.AddrFromSlice(r.take(max(len(r.b)-2, 0)))
	s := Sight{netip.AddrPortFrom(addr, r.u16())}
	r.bad = r.bad || !ok || addr.Is4In6() || s.Endpoint.Port() == 0
	return s
}

const (
	flagCold = 1 << iota
	flagOpen
	flagGap
)

func (r *reader) header() Header {
	h := Header{From: r.u64(), To: r.u64(), Received: r.u64(), Committed: r.u64()}
	flags := r.u8()
	r.bad = r.bad || flags&^(flagCold|flagOpen|flagGap) != 0
	h.Cold, h.Open, h.Gap = flags&flagCold != 0, flags&flagOpen != 0, flags&flagGap != 0
	return h
}

func appendHeader(b []byte, h Header) []byte {
	b = binary.BigEndian.AppendUint64(b, h.From)
	b = binary.BigEndian.AppendUint64(b, h.To)
	b = binary.BigEndian.AppendUint64(b, h.Received)
	b = binary.BigEndian.AppendUint64(b, h.Committed)
	var flags byte
	if h.Cold {
		flags |= flagCold
	}
	if h.Open {
		flags |= flagOpen
	}
	if h.Gap {
		flags |= flagGap
	}
	return append(b, flags)
}

func appendName(b []byte, s string) []byte {
	return append(append(b, byte(len(s))), s...)
}

func (l LinkName) compare(m LinkName) int {
	return cmp.Or(strings.Compare(l.Local, m.Local), strings.Compare(l.Remote, m.Remote))
}
