package transport

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
)

// Trust says who we are and whom we believe. The functions are called for
// every handshake, from many goroutines, so a renewed certificate, a new CA or
// a removal counts at once.
type Trust struct {
	Certificate func() *tls.Certificate // ours; nil while there is none
	Pins        func() [][32]byte       // of the accepted CAs
	// Retired are the pins of CAs that were accepted: who shows a certificate
	// of one is let in as stale, to renew it or to hear that it is no member
	// any more. nil: there are none.
	Retired func() [][32]byte
	// Member gives the identity key of a live member. Whoever proves it is that
	// member, whatever its certificate: that a mesh finds itself again must not
	// depend on anyone having been there to renew. nil: no member is known, as
	// to a joiner, and the CA alone decides.
	Member func(mesh.NodeID) (mesh.IdentityKey, bool)
	// Operator reports whether the key is that of somebody without a node who
	// may use the protocol API, with a certificate of SelfSigned. nil: nobody.
	Operator func(mesh.IdentityKey) bool
}

// A Peer is who the other end of a connection proved to be.
type Peer struct {
	ID  mesh.NodeID
	Key mesh.IdentityKey
	// Stale: it has no certificate of an accepted CA that is valid now. The key
	// is proven all the same, and good for asking for a new certificate and for
	// what is no more than a hint.
	Stale bool
}

// Peer reads the peer of a connection of this package, as it is trusted at the
// time now; false: the client showed no certificate.
func (t Trust) Peer(state *tls.ConnectionState, now time.Time) (Peer, bool) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return Peer{}, false
	}
	key, err := keyOf(state.PeerCertificates)
	if err != nil {
		return Peer{}, false
	}
	err = verify(state.PeerCertificates, t.Pins(), x509.ExtKeyUsageAny, now, false)
	return Peer{ID: key.NodeID(), Key: key, Stale: err != nil}, true
}

// checkClient refuses the chain of a client that is nobody we could talk to.
func (t Trust) checkClient(chain []*x509.Certificate, alpn string, now time.Time) error {
	key, err := keyOf(chain)
	if err != nil {
		return err
	}
	if t.isMember(key) || alpn == API && t.Operator != nil && t.Operator(key) {
		return nil
	}
	pins := t.Pins()
	if t.Retired != nil {
		pins = slices.Concat(pins, t.Retired())
	}
	return verify(chain, pins, x509.ExtKeyUsageClientAuth, now, true)
}

// checkServer refuses the chain of a server that is not the node id; a zero id
// is any node that the accepted CAs vouch for.
func (t Trust) checkServer(chain []*x509.Certificate, id mesh.NodeID, now time.Time) error {
	key, err := keyOf(chain)
	if err != nil {
		return err
	}
	member := t.isMember(key)
	if id.IsZero() || !member {
		if err := verify(chain, t.Pins(), x509.ExtKeyUsageServerAuth, now, false); err != nil {
			return err
		}
	}
	switch {
	case id.IsZero():
		return nil
	case key.NodeID() != id:
		return fmt.Errorf("%w: %s", ErrWrongNode, key.NodeID())
	case t.Member != nil && !member:
		return fmt.Errorf("%s is no member of the mesh: %w", id, ErrUntrusted)
	}
	return nil
}

func (t Trust) isMember(key mesh.IdentityKey) bool {
	if t.Member == nil {
		return false
	}
	known, ok := t.Member(key.NodeID())
	return ok && known == key
}

// keyOf is the identity key of a chain's leaf. A key of low order is refused:
// everybody can prove it.
func keyOf(chain []*x509.Certificate) (mesh.IdentityKey, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return mesh.IdentityKey{}, fmt.Errorf("chain of %d certificates: %w", len(chain), ErrUntrusted)
	}
	public, ok := chain[0].PublicKey.(ed25519.PublicKey)
	if !ok || len(public) != ed25519.PublicKeySize || chain[0].IsCA {
		return mesh.IdentityKey{}, fmt.Errorf("not a node certificate: %w", ErrUntrusted)
	}
	key := mesh.IdentityKey(public)
	if err := invite.CheckIdentityKey(key); err != nil {
		return mesh.IdentityKey{}, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return key, nil
}

// verify checks a chain, leaf first, against the pins and the clock. An
// expired leaf is accepted when expired is set. The times in a CA's certificate
// do not count: a CA is accepted as long as its pin is, and one that was made by
// a wrong clock must not shut everybody out.
func verify(chain []*x509.Certificate, pins [][32]byte, usage x509.ExtKeyUsage, now time.Time, expired bool) error {
	if _, err := keyOf(chain); err != nil {
		return err
	}
	leaf, roots := chain[0], x509.NewCertPool()
	found := false
	for _, cert := range chain[1:] {
		if cert.IsCA && slices.Contains(pins, pinOf(cert)) {
			ca := *cert
			ca.NotBefore, ca.NotAfter = leaf.NotBefore, leaf.NotAfter
			roots.AddCert(&ca)
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
