package invite

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
)

// Limits of a token.
const (
	// RandomSize is how many random bytes New wants: the id and the 128-bit secret.
	RandomSize = idSize + secretSize
	// MaxServers and MaxPins bound what a token can name.
	MaxServers = 3
	MaxPins    = 2

	idSize     = 5 // 8 characters: unique among the tokens of one mesh, no secret
	secretSize = 16
)

// A Token is an invitation to one mesh. It is a value; the slices are not
// shared with the caller of New.
type Token struct {
	Mesh    mesh.MeshID
	ID      string           // names the token in the log, in listings and in errors; no secret
	Pins    [][32]byte       // SHA-256 of the SubjectPublicKeyInfo of the mesh's CA, 1 or 2, ascending
	Servers []netip.AddrPort // control addresses to ask, 1 to 3, best first
	Expires time.Time        // UTC, whole seconds

	secret [secretSize]byte
}

// New makes a token. The random bytes must be fresh and unpredictable: they
// are the secret. Expires is cut to whole seconds.
func New(random [RandomSize]byte, id mesh.MeshID, pins [][32]byte, servers []netip.AddrPort, expires time.Time) (Token, error) {
	t := Token{
		Mesh:    id,
		ID:      encoding.EncodeToString(random[:idSize]),
		Pins:    slices.Clone(pins),
		Servers: slices.Clone(servers),
		Expires: expires.UTC().Truncate(time.Second),
		secret:  [secretSize]byte(random[idSize:]),
	}
	slices.SortFunc(t.Pins, comparePins)
	if err := t.check(); err != nil {
		return Token{}, fmt.Errorf("make join token: %w", err)
	}
	return t, nil
}

// check holds for every token that New makes and that Parse accepts.
func (t Token) check() error {
	switch {
	case t.Mesh.IsZero():
		return errors.New("it names no mesh")
	case t.secret == [secretSize]byte{}:
		return errors.New("its secret is empty")
	case len(t.Pins) < 1 || len(t.Pins) > MaxPins:
		return fmt.Errorf("it must pin 1 to %d CA keys, not %d", MaxPins, len(t.Pins))
	case len(t.Pins) == 2 && comparePins(t.Pins[0], t.Pins[1]) >= 0:
		return errors.New("its two CA keys are the same")
	case len(t.Servers) < 1 || len(t.Servers) > MaxServers:
		return fmt.Errorf("it must name 1 to %d servers, not %d", MaxServers, len(t.Servers))
	case t.Expires.Unix() <= 0 || t.Expires.Unix() > maxExpiry:
		return fmt.Errorf("its expiry %s is out of range", t.Expires.Format(time.RFC3339))
	}
	for i, s := range t.Servers {
		a := s.Addr()
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || s.Port() == 0 {
			return fmt.Errorf("%s cannot be the address of a server", s)
		}
		if slices.Contains(t.Servers[:i], s) {
			return fmt.Errorf("it names the server %s twice", s)
		}
	}
	return nil
}

func comparePins(a, b [32]byte) int { return slices.Compare(a[:], b[:]) }

// Pinned reports whether a CA with this SHA-256 of its SubjectPublicKeyInfo
// is one that the token names. A joiner sends nothing before this holds.
func (t Token) Pinned(spki [32]byte) bool { return slices.Contains(t.Pins, spki) }

// Public is the public half of the token's key: what the log stores.
func (t Token) Public() mesh.IdentityKey {
	return mesh.IdentityKey(t.key().Public().(ed25519.PublicKey))
}

// Sign proves possession of the token over an encoded transcript.
func (t Token) Sign(transcript []byte) []byte {
	return ed25519.Sign(t.key(), message(domainToken, transcript))
}

// key derives the Ed25519 key: HKDF (RFC 5869) with SHA-256 over the secret,
// bound to mesh and token id, so one secret in two tokens is two keys.
func (t Token) key() ed25519.PrivateKey {
	seed, err := hkdf.Key(sha256.New, t.secret[:], nil, domainKey+string(t.Mesh[:])+t.ID, ed25519.SeedSize)
	if err != nil {
		panic(err) // 32 bytes of HKDF-SHA256 cannot fail outside FIPS-only mode, where nothing of WireGuard works
	}
	return ed25519.NewKeyFromSeed(seed)
}

// String names the token without its secret.
func (t Token) String() string { return "join token " + t.ID + " (secret withheld)" }

// GoString implements fmt.GoStringer without the secret.
func (t Token) GoString() string { return t.String() }

// Format implements fmt.Formatter for every verb without the secret.
func (t Token) Format(s fmt.State, _ rune) { fmt.Fprint(s, t.String()) }

// MarshalText gives encoding/json and the handlers of log/slog the form
// without the secret. There is no way back from it.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }
