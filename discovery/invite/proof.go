package invite

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"

	"guywire/mesh"
)

// Every signature and every derived key is over one of these and the data, so
// that a proof of one kind is never one of another, nor a signature that the
// same key makes elsewhere in the mesh. The trailing zero byte ends the text.
const (
	domainKey       = "guywire join token key v1\x00"
	domainToken     = "guywire join token v1\x00"
	domainIdentity  = "guywire join identity v1\x00"
	domainWireGuard = "guywire join wireguard v1\x00"
)

func message(domain string, transcript []byte) []byte {
	return append([]byte(domain), transcript...)
}

// VerifyToken reports whether proof is the token's signature of the encoded
// transcript; key is the token's public half, from the log.
func VerifyToken(key mesh.IdentityKey, transcript, proof []byte) bool {
	return CheckIdentityKey(key) == nil && key.Verify(message(domainToken, transcript), proof)
}

// ProveIdentity signs the encoded transcript with the joiner's identity key;
// sign is plain Ed25519 over the message that it is given.
func ProveIdentity(sign func(message []byte) []byte, transcript []byte) []byte {
	return sign(message(domainIdentity, transcript))
}

// VerifyIdentity reports whether proof is the identity's signature of the
// encoded transcript.
func VerifyIdentity(key mesh.IdentityKey, transcript, proof []byte) bool {
	return CheckIdentityKey(key) == nil && key.Verify(message(domainIdentity, transcript), proof)
}

// A Challenge lets a server see that a joiner holds the private half of its
// WireGuard key, with which nothing can be signed. It serves one join.
type Challenge struct {
	private *ecdh.PrivateKey
}

// NewChallenge makes a challenge from fresh random bytes.
func NewChallenge(random [32]byte) Challenge {
	k, err := ecdh.X25519().NewPrivateKey(random[:])
	if err != nil {
		panic(err) // every 32 bytes are an X25519 key (RFC 7748 section 5)
	}
	return Challenge{k}
}

// Public is what the server sends.
func (c Challenge) Public() [32]byte { return [32]byte(c.private.PublicKey().Bytes()) }

// Verify checks the answer to the challenge by the holder of key over the
// encoded transcript. The error wraps ErrKey or ErrProof.
func (c Challenge) Verify(key mesh.WireGuardKey, transcript, answer []byte) error {
	if err := CheckWireGuardKey(key); err != nil {
		return err
	}
	public, err := ecdh.X25519().NewPublicKey(key[:])
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	want, err := answerOf(c.private, public, c.Public(), key, transcript)
	if err != nil {
		return err
	}
	if !hmac.Equal(want, answer) {
		return fmt.Errorf("WireGuard key %s: %w", key, ErrProof)
	}
	return nil
}

// Format implements fmt.Formatter for every verb without the private key.
func (c Challenge) Format(s fmt.State, _ rune) { fmt.Fprint(s, "challenge (secret withheld)") }

// AnswerChallenge is the joiner's side: private is the WireGuard private key.
// A challenge of low order, which would make the answer one that anyone can
// compute, is refused with ErrKey.
func AnswerChallenge(private, challenge [32]byte, transcript []byte) ([]byte, error) {
	k, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return nil, fmt.Errorf("answer challenge: %w", err)
	}
	e, err := ecdh.X25519().NewPublicKey(challenge[:])
	if err != nil {
		return nil, fmt.Errorf("answer challenge: %w: %w", ErrKey, err)
	}
	return answerOf(k, e, challenge, mesh.WireGuardKey(k.PublicKey().Bytes()), transcript)
}

// answerOf is HMAC-SHA256 over the transcript, keyed by HKDF-SHA256 of the
// shared secret with both public keys, as RFC 7748 section 6.1 advises.
func answerOf(private *ecdh.PrivateKey, public *ecdh.PublicKey, challenge [32]byte, key mesh.WireGuardKey, transcript []byte) ([]byte, error) {
	shared, err := private.ECDH(public)
	if err != nil { // the all-zero result of a low-order point
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	k, err := hkdf.Key(sha256.New, shared, nil, domainWireGuard+string(challenge[:])+string(key[:]), sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("derive proof key: %w", err)
	}
	mac := hmac.New(sha256.New, k)
	mac.Write(transcript)
	return mac.Sum(nil), nil
}
