package store

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
)

// Window is for how many entries of the log a signed command is good, counted
// from its After, and for how many its request is remembered. So each is
// applied once at most, and after the window may be signed again.
const Window = 4096

// commandDomain keeps a signature of a command from being one of anything else.
const commandDomain = "guywire command v1\x00"

// A Nonce is 16 random bytes that name one request, or one run of a process.
type Nonce [16]byte

// IsZero reports whether the nonce is unset.
func (n Nonce) IsZero() bool { return n == Nonce{} }

// MarshalText implements encoding.TextMarshaler with lower-case hex.
func (n Nonce) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, n[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it reads what MarshalText
// writes, and nothing else.
func (n *Nonce) UnmarshalText(b []byte) error { return unhex(n[:], b) }

// A Digest is a SHA-256 sum.
type Digest [sha256.Size]byte

// IsZero reports whether the digest is unset.
func (d Digest) IsZero() bool { return d == Digest{} }

// String gives the digest in lower-case hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler with lower-case hex.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it reads what MarshalText
// writes, and nothing else.
func (d *Digest) UnmarshalText(b []byte) error { return unhex(d[:], b) }

func unhex(into, b []byte) error {
	raw, err := hex.DecodeString(string(b))
	if err != nil || len(raw) != len(into) || hex.EncodeToString(raw) != string(b) {
		return fmt.Errorf("%q is not %d bytes in lower-case hex", b, len(into))
	}
	copy(into, raw)
	return nil
}

// SignCommand signs a command for a mesh by its author: an Ed25519 signature
// (RFC 8032) over the domain, the mesh and the canonical encoding without Now,
// which is the leader's to say. The caller has set Author, Request, and After
// to the index of its state; sign is the author's. By is left out. It fails
// where EncodeCommand would. A join is not signed: it proves itself. To try
// again, sign the same Request again.
func SignCommand(c Command, id mesh.MeshID, sign func(message []byte) []byte) (Command, error) {
	c.By, c.Signature = Authority{}, nil
	switch {
	case c.Author.IsZero() || c.Request.IsZero():
		return Command{}, errors.New("sign command: it has no author, or no request id")
	case c.Join != nil:
		return Command{}, errors.New("sign command: a join is not signed")
	}
	message, err := c.message(id)
	if err != nil {
		return Command{}, fmt.Errorf("sign command: %w", err)
	}
	c.Signature = sign(message)
	return c, nil
}

// message is what the author of a command signs.
func (c Command) message(id mesh.MeshID) ([]byte, error) {
	c.Signature, c.Now, c.Version = nil, time.Time{}, c.since()
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return append(append([]byte(commandDomain), id[:]...), b...), nil
}

// signed reports whether the author signed the command for the mesh.
func (c Command) signed(id mesh.MeshID) bool {
	if c.By != (Authority{}) || c.Request.IsZero() || invite.CheckIdentityKey(c.Author) != nil {
		return false
	}
	message, err := c.message(id)
	return err == nil && c.Author.Verify(message, c.Signature)
}
