package invite

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"guywire/mesh"
)

// Limits of a transcript.
const (
	// MaxPrefixes bounds the prefixes that one join may claim.
	MaxPrefixes = 1024
	// MaxText bounds the token id, the name and the request, in bytes.
	MaxText = 64
	// MaxTranscript bounds an encoded transcript, in bytes.
	MaxTranscript = 3 + 8 + 3*32 + 4 + 3*(1+MaxText) + 2 + MaxPrefixes*18

	transcriptMagic = "gj\x01" // last byte: version
)

// A Transcript is everything a joiner says, in one record that its three
// proofs cover together, so that no part can be exchanged and none can be
// used again: in another mesh, with another token, over another connection.
type Transcript struct {
	Mesh     mesh.MeshID
	Token    string   // id
	Exporter [32]byte // TLS exporter value (RFC 8446 section 7.5) of the connection
	Identity mesh.IdentityKey
	Epoch    mesh.Epoch
	Key      mesh.WireGuardKey // of Epoch
	Name     string            // wanted
	Prefixes []netip.Prefix    // claimed; each masked
	Request  string            // idempotency key
}

// Encode gives the canonical form: one transcript, one encoding.
func (t Transcript) Encode() ([]byte, error) {
	b := append([]byte(transcriptMagic), t.Mesh[:]...)
	b = append(b, t.Exporter[:]...)
	b = append(b, t.Identity[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(t.Epoch))
	b = append(b, t.Key[:]...)
	for _, s := range []string{t.Token, t.Name, t.Request} {
		if len(s) > MaxText {
			return nil, fmt.Errorf("%w: a text of %d bytes is longer than %d", ErrTranscript, len(s), MaxText)
		}
		b = append(append(b, byte(len(s))), s...)
	}
	if len(t.Prefixes) > MaxPrefixes {
		return nil, fmt.Errorf("%w: %d prefixes are more than %d", ErrTranscript, len(t.Prefixes), MaxPrefixes)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.Prefixes)))
	for _, p := range t.Prefixes {
		if !p.IsValid() || p != p.Masked() {
			return nil, fmt.Errorf("%w: prefix %s is not written as %s", ErrTranscript, p, p.Masked())
		}
		addr := p.Addr().AsSlice()
		b = append(b, byte(len(addr)), byte(p.Bits()))
		b = append(b, addr...)
	}
	return b, nil
}

// DecodeTranscript reads what Encode wrote, and nothing else.
func DecodeTranscript(b []byte) (Transcript, error) {
	var t Transcript
	r := reader{rest: b}
	if len(b) > MaxTranscript || string(r.take(len(transcriptMagic))) != transcriptMagic {
		return Transcript{}, fmt.Errorf("%w: it is not one of this version", ErrTranscript)
	}
	copy(t.Mesh[:], r.take(len(t.Mesh)))
	copy(t.Exporter[:], r.take(len(t.Exporter)))
	copy(t.Identity[:], r.take(len(t.Identity)))
	t.Epoch = mesh.Epoch(r.uint(4))
	copy(t.Key[:], r.take(len(t.Key)))
	for _, s := range []*string{&t.Token, &t.Name, &t.Request} {
		n := r.uint(1)
		if n > MaxText {
			return Transcript{}, fmt.Errorf("%w: a text of %d bytes is longer than %d", ErrTranscript, n, MaxText)
		}
		*s = string(r.take(n))
	}
	n := r.uint(2)
	if n > MaxPrefixes {
		return Transcript{}, fmt.Errorf("%w: %d prefixes are more than %d", ErrTranscript, n, MaxPrefixes)
	}
	for range n {
		size, bits := r.uint(1), r.uint(1)
		addr, ok := netip.AddrFromSlice(r.take(size))
		p := netip.PrefixFrom(addr, bits)
		if !ok || !p.IsValid() || p != p.Masked() {
			return Transcript{}, fmt.Errorf("%w: a prefix in it is not canonical", ErrTranscript)
		}
		t.Prefixes = append(t.Prefixes, p)
	}
	if r.short || len(r.rest) > 0 {
		return Transcript{}, fmt.Errorf("%w: its length is wrong", ErrTranscript)
	}
	return t, nil
}

// A reader takes fields from the front; after the first that is missing it
// gives nothing and short is set.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || n > len(r.rest) {
		r.short = true
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

// uint reads n bytes, most significant first.
func (r *reader) uint(n int) int {
	v := 0
	for _, c := range r.take(n) {
		v = v<<8 | int(c)
	}
	return v
}
