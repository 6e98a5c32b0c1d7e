package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
)

// A Dialer connects to other nodes' control ports and keeps count of what it
// opened, so that it can be cut. Its fields are set before its first use.
type Dialer struct {
	Trust Trust
	// Resolve gives the addresses where a node may be reached, the likeliest
	// first: its underlay control addresses, then its overlay ones. Only Dial
	// needs it.
	Resolve func(mesh.NodeID) []netip.AddrPort
	// Network opens a connection to host:port; nil: TCP.
	Network func(ctx context.Context, address string) (net.Conn, error)

	out outgoing
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
			conn, err := d.dial(ctx, addr.String(), id, alpn)
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
func (d *Dialer) DialAddr(ctx context.Context, address, alpn string) (*tls.Conn, error) {
	return d.dial(ctx, address, mesh.NodeID{}, alpn)
}

// DialNode connects to one address and insists on the node behind it.
func (d *Dialer) DialNode(ctx context.Context, address netip.AddrPort, id mesh.NodeID, alpn string) (*tls.Conn, error) {
	return d.dial(ctx, address.String(), id, alpn)
}

// Cut closes every connection to a node, and ends the attempts under way: its
// authority has ended. Connections of DialAddr are to nobody in particular.
func (d *Dialer) Cut(id mesh.NodeID) {
	d.out.cut(func(l *line) bool { return l.id == id })
}

// CutStream is Cut for one protocol.
func (d *Dialer) CutStream(alpn string, id mesh.NodeID) {
	d.out.cut(func(l *line) bool { return l.id == id && l.alpn == alpn })
}

// dial connects to one address; a zero id is any node of the mesh.
func (d *Dialer) dial(ctx context.Context, address string, id mesh.NodeID, alpn string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	network := d.Network
	if network == nil {
		network = dialTCP
	}
	l := d.out.begin(id, alpn, cancel)
	raw, err := network(ctx, address)
	if err != nil {
		d.out.end(l)
		return nil, err
	}
	l.Conn = raw
	t := tls.Client(l, &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpn},
		// Names mean nothing here; VerifyConnection below checks chain, pin and identity.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert := d.Trust.Certificate(); cert != nil {
				return cert, nil
			}
			return &tls.Certificate{}, nil // go as nobody
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			return d.Trust.checkServer(state.PeerCertificates, id, time.Now())
		},
	})
	if err := t.HandshakeContext(ctx); err != nil {
		l.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	if got := t.ConnectionState().NegotiatedProtocol; got != alpn {
		l.Close()
		return nil, fmt.Errorf("TLS handshake: the server does not speak %s", alpn)
	}
	if !d.out.establish(l) {
		l.Close()
		return nil, ErrCut
	}
	return t, nil
}

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	dialer := net.Dialer{KeepAliveConfig: keepAlive()}
	return dialer.DialContext(ctx, "tcp", address)
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
