package mesh

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
)

// A NodeID names a node for as long as its identity key lives. It is the
// first 8 bytes of the SHA-256 of the identity key, so it cannot be chosen
// and two clones of one key are one node.
type NodeID [8]byte

// String gives the 16 hex digits of the id.
func (id NodeID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id names no node.
func (id NodeID) IsZero() bool { return id == NodeID{} }

// Compare orders ids byte by byte, for use with slices.SortFunc.
func (id NodeID) Compare(other NodeID) int {
	for i := range id {
		if id[i] != other[i] {
			return int(id[i]) - int(other[i])
		}
	}
	return 0
}

// LinkLocal is the IPv6 link-local address that the node has on every one of
// its links: fe80:: with the id as interface identifier.
func (id NodeID) LinkLocal() netip.Addr {
	a := [16]byte{0: 0xfe, 1: 0x80}
	copy(a[8:], id[:])
	return netip.AddrFrom16(a)
}

// MarshalText implements encoding.TextMarshaler with the hex form.
func (id NodeID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; only the canonical lower-case hex form is accepted.
func (id *NodeID) UnmarshalText(b []byte) error {
	parsed, err := ParseNodeID(string(b))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// ParseNodeID reads the form that String writes, and no other.
func ParseNodeID(s string) (NodeID, error) {
	var id NodeID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) || hex.EncodeToString(b) != s {
		return NodeID{}, fmt.Errorf("node id %q is not 16 lower-case hex digits", s)
	}
	copy(id[:], b)
	return id, nil
}

// A MeshID names one mesh. It is random, made by init, and part of every
// signed statement, so nothing signed for one mesh is valid in another.
type MeshID [8]byte

// String gives the 16 hex digits of the id.
func (id MeshID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id names no mesh.
func (id MeshID) IsZero() bool { return id == MeshID{} }

// MarshalText implements encoding.TextMarshaler with the hex form.
func (id MeshID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; only the canonical form is accepted.
func (id *MeshID) UnmarshalText(b []byte) error {
	n, err := ParseNodeID(string(b))
	if err != nil {
		return fmt.Errorf("mesh id %q is not 16 lower-case hex digits", b)
	}
	*id = MeshID(n)
	return nil
}

// An IdentityKey is a node's Ed25519 public key (RFC 8032). It signs what the
// node says about itself and never changes.
type IdentityKey [ed25519.PublicKeySize]byte

// NodeID gives the id that the key stands for.
func (k IdentityKey) NodeID() NodeID {
	sum := sha256.Sum256(k[:])
	return NodeID(sum[:8])
}

// Verify reports whether sig is the key's signature of message.
func (k IdentityKey) Verify(message, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize && ed25519.Verify(k[:], message, sig)
}

// IsZero reports whether the key is unset.
func (k IdentityKey) IsZero() bool { return k == IdentityKey{} }

// String gives the key in standard base64.
func (k IdentityKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText implements encoding.TextMarshaler with standard base64.
func (k IdentityKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; only canonical base64 of 32 bytes is accepted.
func (k *IdentityKey) UnmarshalText(b []byte) error { return unmarshalKey((*[32]byte)(k), b) }

// A WireGuardKey is a Curve25519 public key as WireGuard uses it.
type WireGuardKey [32]byte

// IsZero reports whether the key is unset.
func (k WireGuardKey) IsZero() bool { return k == WireGuardKey{} }

// String gives the key in standard base64, as wg prints it.
func (k WireGuardKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText implements encoding.TextMarshaler with standard base64.
func (k WireGuardKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; only canonical base64 of 32 bytes is accepted.
func (k *WireGuardKey) UnmarshalText(b []byte) error { return unmarshalKey((*[32]byte)(k), b) }

func unmarshalKey(k *[32]byte, b []byte) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(b))
	if err != nil || len(raw) != len(k) || base64.StdEncoding.EncodeToString(raw) != string(b) {
		return fmt.Errorf("key %q is not 32 bytes in standard base64", b)
	}
	copy(k[:], raw)
	return nil
}

// An Epoch is the generation of a node's WireGuard key, from 1 upwards.
type Epoch uint32

// CheckName reports why s cannot name a node, an uplink, a tag or a token
// role: 1 to 32 of a-z, 0-9 and '-', beginning and ending with a letter or
// digit. The strict alphabet is what lets names stand in policy, file names
// and terminals without quoting.
func CheckName(s string) error {
	if len(s) == 0 || len(s) > 32 {
		// It is not repeated: a token that came into the wrong place is as long.
		return fmt.Errorf("a name must have 1 to 32 characters, not %d", len(s))
	}
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case c == '-' && i > 0 && i < len(s)-1:
		default:
			return fmt.Errorf("name %q may hold only a-z, 0-9 and inner hyphens", s)
		}
	}
	return nil
}
