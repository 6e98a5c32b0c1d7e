package discovery

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"

	"guywire/mesh"
)

// Signed is a node's Facts with its signature, as it travels and is kept.
// Callers do not change its slices.
type Signed struct {
	Body      []byte `json:"body"`
	Signature []byte `json:"signature"`
}

// MaxSigned bounds the encoding of one Signed.
const MaxSigned = 2 + MaxFacts + ed25519.SignatureSize

// IsZero reports whether s says nothing.
func (s Signed) IsZero() bool { return len(s.Body) == 0 }

// Equal reports whether s and t are the same bytes.
func (s Signed) Equal(t Signed) bool {
	return bytes.Equal(s.Body, t.Body) && bytes.Equal(s.Signature, t.Signature)
}

// Open verifies the signature and gives the facts. It fails with ErrSignature,
// with ErrForeign when the key is not that of the node that the facts are
// about, or with ErrMalformed.
func (s Signed) Open(key mesh.IdentityKey) (Facts, error) {
	if !key.Verify(append([]byte(factsDomain), s.Body...), s.Signature) {
		return Facts{}, fmt.Errorf("facts: %w", ErrSignature)
	}
	f, err := DecodeFacts(s.Body)
	if err != nil {
		return Facts{}, err
	}
	if f.Node != key.NodeID() {
		return Facts{}, fmt.Errorf("facts about %s signed by %s: %w", f.Node, key.NodeID(), ErrForeign)
	}
	return f, nil
}

// Claimed gives the node that s claims to be about and its serial, without
// verifying anything: good for finding the key, or for skipping what is
// already known.
func (s Signed) Claimed() (node mesh.NodeID, serial uint64, err error) {
	r := &reader{b: s.Body}
	r.byte()
	r.take(8)
	node, serial = mesh.NodeID(r.take(8)), r.uint64()
	if r.err != nil {
		return mesh.NodeID{}, 0, fmt.Errorf("facts: %w", r.err)
	}
	return node, serial, nil
}

// AppendSigned appends the encoding of s: a two-byte length, body, signature.
// Encodings can follow each other.
func AppendSigned(b []byte, s Signed) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.Body)))
	b = append(b, s.Body...)
	return append(b, s.Signature...)
}

// CutSigned takes one Signed off the front of b and gives the rest. The
// result shares memory with b. Only its shape is checked.
func CutSigned(b []byte) (s Signed, rest []byte, err error) {
	if len(b) < 2 {
		return Signed{}, nil, fmt.Errorf("signed facts: %w: %d bytes", ErrMalformed, len(b))
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if n == 0 || n > MaxFacts || len(b) < n+ed25519.SignatureSize {
		return Signed{}, nil, fmt.Errorf("signed facts: %w: body of %d bytes in %d", ErrMalformed, n, len(b))
	}
	end := n + ed25519.SignatureSize
	return Signed{Body: b[:n:n], Signature: b[n:end:end]}, b[end:], nil
}
