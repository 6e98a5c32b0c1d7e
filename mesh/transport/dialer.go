package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
)

// A Dialer connects to other nodes' control ports. It has no state of its own.
type Dialer struct {
	Trust Trust
	// Resolve gives the addresses where a node may be reached, the likeliest
	// first: its underlay control addresses, then its overlay ones.
	Resolve func(mesh.NodeID) []netip.AddrPort
}

// Dial connects to a node by a protocol. Its addresses are tried side by side,
// each 250 ms after the one before or as soon as that one failed (RFC 8305);
// the first that proves to be the node wins and the others are dropped. It
// blocks until then, at most 5 s after the last attempt began.
func (d *Dialer) Dial(ctx context.Context, id mesh.NodeID, alpn string) (*tls.Conn, error) {
	addrs := dedupe(d.Resolve(id))
	if len(addrs) == 0 {
		return nil, ErrNoAddress
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		conn *tls.Conn
		addr netip.AddrPort
		err  error
	}
	outcomes := make(chan outcome, len(addrs)) // room for all: losers never block
	start := func(addr netip.AddrPort) {
		go func() {
			conn, err := dial(ctx, d.Trust, addr.String(), id, alpn)
			outcomes <- outcome{conn, addr, err}
		}()
	}
	next := time.NewTimer(0)
	defer next.Stop()
	var failures []error
	started := 0
	for len(failures) < len(addrs) {
		select {
		case <-next.C:
			if started < len(addrs) {
				start(addrs[started])
				started++
				next.Reset(stagger)
			}
		case o := <-outcomes:
			if o.err == nil {
				go func(left int) { // the losers end by themselves: ctx is cancelled
					for range left {
						if late := <-outcomes; late.err == nil {
							late.conn.NetConn().Close()
						}
					}
				}(started - len(failures) - 1)
				return o.conn, nil
			}
			failures = append(failures, fmt.Errorf("%s: %w", o.addr, o.err))
			next.Reset(0)
		}
	}
	return nil, errors.Join(failures...)
}

// DialAddr connects to an address of which only the CA is known, as a joiner
// does. The address is host:port. Nothing but the handshake is sent before the
// pin of trust has been found in the other end's chain.
func DialAddr(ctx context.Context, trust Trust, address, alpn string) (*tls.Conn, error) {
	return dial(ctx, trust, address, mesh.NodeID{}, alpn)
}

// DialNode connects to one address and insists on the node behind it.
func DialNode(ctx context.Context, trust Trust, address netip.AddrPort, id mesh.NodeID, alpn string) (*tls.Conn, error) {
	return dial(ctx, trust, address.String(), id, alpn)
}

// dial connects to one address; a zero id is any node of the mesh.
func dial(ctx context.Context, trust Trust, address string, id mesh.NodeID, alpn string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer := net.Dialer{KeepAliveConfig: keepAlive()}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	t := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpn},
		// Names mean nothing here; VerifyConnection below checks chain, pin and identity.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert := trust.Certificate(); cert != nil {
				return cert, nil
			}
			return &tls.Certificate{}, nil // go as nobody
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			now := time.Now()
			if err := verify(state.PeerCertificates, trust.Pins(), x509.ExtKeyUsageServerAuth, now, false); err != nil {
				return err
			}
			peer, _ := PeerOf(&state, now)
			if !id.IsZero() && peer.ID != id {
				return fmt.Errorf("%w: %s", ErrWrongNode, peer.ID)
			}
			return nil
		},
	})
	if err := t.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	if got := t.ConnectionState().NegotiatedProtocol; got != alpn {
		raw.Close()
		return nil, fmt.Errorf("TLS handshake: the server does not speak %s", alpn)
	}
	return t, nil
}

func dedupe(addrs []netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, addr := range addrs {
		if addr.IsValid() && !slices.Contains(out, addr) && len(out) < maxAddresses {
			out = append(out, addr)
		}
	}
	return out
}
