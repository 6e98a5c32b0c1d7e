package transport

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"guywire/mesh"
)

const (
	// Lifetime is how long a node certificate is valid from its issue: how long
	// one that was removed could pass for a member with somebody who has no
	// newer state. Members believe each other's keys beyond it: see Trust.Member.
	Lifetime = 7 * 24 * time.Hour
	// Backdating is how long before its issue a certificate begins to be
	// valid, for nodes whose clock is behind.
	Backdating = time.Hour
	// Skew is how far a clock may be off beyond a certificate's validity.
	Skew = 5 * time.Minute

	authorityLifetime   = 50 * 365 * 24 * time.Hour
	authorityBackdating = 24 * time.Hour // valid earlier than any certificate it signs

	// sealDomain keeps a seal from being a certificate: those begin with an
	// ASN.1 tag. The trailing zero byte ends the text.
	sealDomain = "guywire seal v1\x00"
)

// An Authority is the mesh's certificate authority: a self-signed Ed25519 CA
// made by init and held by the voters. It is immutable.
type Authority struct {
	certificate *x509.Certificate
	key         ed25519.PrivateKey
}

// NewAuthority makes the CA of a mesh.
func NewAuthority(id mesh.MeshID, now time.Time) (*Authority, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "guywire mesh " + id.String()},
		NotBefore:             now.Add(-authorityBackdating),
		NotAfter:              now.Add(authorityLifetime),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, &x509.Certificate{Subject: pkix.Name{CommonName: "guywire mesh " + id.String()}}, public, key)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	return ParseAuthority(der, key)
}

// Made is when a CA was made, from its certificate (DER).
func Made(der []byte) (time.Time, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return time.Time{}, fmt.Errorf("parse CA certificate: %w", err)
	}
	return cert.NotBefore.Add(authorityBackdating), nil
}

// ParseAuthority rebuilds a CA from its certificate (DER) and private key, and
// refuses a pair that does not belong together.
func ParseAuthority(der []byte, key ed25519.PrivateKey) (*Authority, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse CA certificate: %w", err)
	}
	if len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("CA key has %d bytes, want %d", len(key), ed25519.PrivateKeySize)
	}
	public, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || !public.Equal(key.Public()) || !cert.IsCA {
		return nil, errors.New("CA key and CA certificate do not belong together")
	}
	return &Authority{certificate: cert, key: key}, nil
}

// Certificate is the CA's certificate in DER. The caller must not change it.
func (a *Authority) Certificate() []byte { return a.certificate.Raw }

// Key is the CA's private key, for storing and for handing to a new voter. It
// must never be logged.
func (a *Authority) Key() ed25519.PrivateKey { return a.key }

// Pin is what others recognise the CA by.
func (a *Authority) Pin() [32]byte { return pinOf(a.certificate) }

// Seal signs a message for those who know the CA only by its pin: Ed25519
// (RFC 8032) over a domain and the message.
func (a *Authority) Seal(message []byte) []byte {
	return ed25519.Sign(a.key, sealed(message))
}

// VerifySeal reports whether seal is that of a CA with one of the pins over the
// message; ca is its certificate (DER). Errors wrap ErrUntrusted.
func VerifySeal(pins [][32]byte, ca, message, seal []byte) error {
	cert, err := x509.ParseCertificate(ca)
	if err != nil {
		return fmt.Errorf("parse CA certificate: %w: %w", ErrUntrusted, err)
	}
	public, ok := cert.PublicKey.(ed25519.PublicKey)
	switch {
	case !ok || !cert.IsCA || !slices.Contains(pins, pinOf(cert)):
		return fmt.Errorf("unknown CA: %w", ErrUntrusted)
	case len(seal) != ed25519.SignatureSize || !ed25519.Verify(public, sealed(message), seal):
		return fmt.Errorf("the seal is not of the CA of the mesh over this message: %w", ErrUntrusted)
	}
	return nil
}

func sealed(message []byte) []byte { return slices.Concat([]byte(sealDomain), message) }

// Issue makes the certificate (DER) of the node that owns key. The caller has
// checked that the key is a member's.
func (a *Authority) Issue(key mesh.IdentityKey, now time.Time) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, leafOf(key, now), a.certificate, ed25519.PublicKey(key[:]), a.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate of %s: %w", key.NodeID(), err)
	}
	return der, nil
}

// SelfSigned makes what an operator without a node shows in a handshake: a
// certificate that says nothing but its key. See Trust.Operator.
func SelfSigned(identity crypto.Signer, now time.Time) (*tls.Certificate, error) {
	public, ok := identity.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("an operator's key is an Ed25519 key; make another: meshctl operator create")
	}
	template := leafOf(mesh.IdentityKey(public), now)
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, identity)
	if err != nil {
		return nil, fmt.Errorf("make operator certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: identity}, nil
}

func leafOf(key mesh.IdentityKey, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: key.NodeID().String()},
		NotBefore:             now.Add(-Backdating),
		NotAfter:              now.Add(Lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
}

// Pin gives the SHA-256 of the SubjectPublicKeyInfo of a certificate (DER).
func Pin(der []byte) ([32]byte, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return [32]byte{}, fmt.Errorf("parse certificate: %w", err)
	}
	return pinOf(cert), nil
}

func pinOf(cert *x509.Certificate) [32]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// Certificate joins a node's certificate, the CA certificate that signed it
// (both DER) and the identity key into what a handshake shows. The CA is sent
// along because a joiner knows only its pin.
func Certificate(leaf, ca []byte, identity crypto.Signer) (*tls.Certificate, error) {
	parsed, err := x509.ParseCertificate(leaf)
	if err != nil {
		return nil, fmt.Errorf("parse node certificate: %w", err)
	}
	public, ok := identity.Public().(ed25519.PublicKey)
	if !ok || !public.Equal(parsed.PublicKey) {
		return nil, errors.New("node certificate is not for this node's identity key")
	}
	return &tls.Certificate{Certificate: [][]byte{leaf, ca}, PrivateKey: identity, Leaf: parsed}, nil
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails since Go 1.24
	b[0] &= 0x7f    // positive, at most 20 octets (RFC 5280 section 4.1.2.2)
	b[15] |= 1      // not zero
	return new(big.Int).SetBytes(b[:])
}
