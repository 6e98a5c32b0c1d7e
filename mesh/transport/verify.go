package transport

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"guywire/mesh"
)

// Trust says who we are and whom we believe. The functions are called for
// every handshake, from many goroutines, so a renewed certificate or a new CA
// counts at once.
type Trust struct {
	Certificate func() *tls.Certificate // ours; nil while there is none
	Pins        func() [][32]byte       // accepted CAs
}

// A Peer is who the other end of a connection proved to be.
type Peer struct {
	ID  mesh.NodeID
	Key mesh.IdentityKey
	// Expired: the certificate has run out. The key is proven all the same,
	// and good for asking for a new certificate only.
	Expired bool
}

// PeerOf reads the verified peer of a connection of this package; false: the
// client showed no certificate.
func PeerOf(state *tls.ConnectionState, now time.Time) (Peer, bool) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return Peer{}, false
	}
	leaf := state.PeerCertificates[0]
	public, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok || len(public) != ed25519.PublicKeySize {
		return Peer{}, false
	}
	key := mesh.IdentityKey(public)
	return Peer{ID: key.NodeID(), Key: key, Expired: now.After(leaf.NotAfter.Add(Skew))}, true
}

// verify checks a chain, leaf first, against the pins and the clock. An
// expired leaf is accepted when expired is set.
func verify(chain []*x509.Certificate, pins [][32]byte, usage x509.ExtKeyUsage, now time.Time, expired bool) error {
	if len(chain) == 0 || len(chain) > maxChain {
		return fmt.Errorf("chain of %d certificates: %w", len(chain), ErrUntrusted)
	}
	leaf, roots := chain[0], x509.NewCertPool()
	if _, ok := leaf.PublicKey.(ed25519.PublicKey); !ok || leaf.IsCA {
		return fmt.Errorf("not a node certificate: %w", ErrUntrusted)
	}
	found := false
	for _, cert := range chain[1:] {
		if cert.IsCA && slices.Contains(pins, pinOf(cert)) {
			roots.AddCert(cert)
			found = true
		}
	}
	if !found {
		return fmt.Errorf("unknown CA: %w", ErrUntrusted)
	}
	switch {
	case now.Add(Skew).Before(leaf.NotBefore):
		return fmt.Errorf("%w: valid from %s, the clock says %s; set the clock of this machine or of the one that issued it",
			ErrClock, stamp(leaf.NotBefore), stamp(now))
	case now.After(leaf.NotAfter.Add(Skew)) && !expired:
		return fmt.Errorf("%w: valid until %s, the clock says %s; set the clock, or let that node renew its certificate by connecting to a voter",
			ErrClock, stamp(leaf.NotAfter), stamp(now))
	}
	// The clock is judged above, with skew and with words; the library gets a
	// time inside the leaf's validity and judges the rest.
	at := now
	if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	}
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
