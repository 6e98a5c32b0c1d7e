package discovery

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"

	"guywire/mesh"
)

// Signed is a statement with its signature, as it travels and is kept: a node's
// Facts, or an operator's Ban. Callers do not change its slices.
type Signed struct {
	Body      []byte `json:"body"`
	Signature []byte `json:"signature"`
}

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

// A Subject is what a statement is about. Of each, the newest statement counts.
type Subject struct {
	Node mesh.NodeID
	Ban  bool // an operator's Ban of the node; else its own Facts
}

// Compare orders subjects by node, facts first.
func (s Subject) Compare(t Subject) int {
	order := s.Node.Compare(t.Node)
	switch {
	case order == 0 && t.Ban && !s.Ban:
		return -1
	case order == 0 && s.Ban && !t.Ban:
		return 1
	default:
		return order
	}
}

// String gives the subject as a key for logs and queues.
func (s Subject) String() string {
	if s.Ban {
		return "ban of " + s.Node.String()
	}
	return s.Node.String()
}

// Claimed gives what s claims to be about and its serial, without verifying
// anything: good for finding the key, or for skipping what is already known.
func (s Signed) Claimed() (about Subject, serial uint64, err error) {
	r := &reader{b: s.Body}
	about.Ban = r.byte() == banVersion
	r.take(8)
	about.Node, serial = mesh.NodeID(r.take(8)), r.uint64()
	if r.err != nil {
		return Subject{}, 0, fmt.Errorf("statement: %w", r.err)
	}
	return about, serial, nil
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
		return Signed{}, nil, fmt.Errorf("signed statement: %w: %d bytes", ErrMalformed, len(b))
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if n == 0 || n > MaxFacts || len(b) < n+ed25519.SignatureSize {
		return Signed{}, nil, fmt.Errorf("signed statement: %w: body of %d bytes in %d", ErrMalformed, n, len(b))
	}
	end := n + ed25519.SignatureSize
	return Signed{Body: b[:n:n], Signature: b[n:end:end]}, b[end:], nil
}
