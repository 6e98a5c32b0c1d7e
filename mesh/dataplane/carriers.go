package dataplane

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"guywire/mesh/carrier"
)

// A Carrier says which datagrams go over which TLS connection. The far end is
// another data plane; what both ends must have agreed before is each other's
// pin and the token.
type Carrier struct {
	ID [16]byte
	// Addr is where the far end accepts carriers; the zero value: this end
	// accepts, by HandOver.
	Addr netip.AddrPort
	// Mark is the firewall mark (SO_MARK) of the dialled connection: that of
	// the uplink. 0: none.
	Mark uint32
	// PeerPin is what Client.Pin says at the far end.
	PeerPin [32]byte
	Token   [carrier.TokenSize]byte
	// Port is where WireGuard listens for this tunnel (UDP, on this machine).
	Port uint16
}

// A CarrierStatus is what a carrier does now.
type CarrierStatus struct {
	ID    [16]byte
	Addr  netip.AddrPort // dialled; invalid: this end accepts
	Local netip.AddrPort // WireGuard's endpoint for the far end, on 127.0.0.1
	Port  uint16         // where WireGuard listens
	// Connected says that the far end has proved itself and agreed, Since when
	// that became true or false.
	Connected bool
	Since     time.Time
	// Bytes of frames that went out and came in, and datagrams of WireGuard
	// that did not go out, all since the carrier was opened.
	Sent, Received, Dropped uint64
	// Error is why the last connection or attempt ended; empty: none did.
	Error string
}

// carriers are the carriers of a process. They know no node and no mesh: the
// pin of the far end's key is all the trust there is, and WireGuard inside does
// the rest.
type carriers struct {
	log    *slog.Logger
	cert   tls.Certificate
	pin    [32]byte
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup // greetings

	mu      sync.Mutex
	relays  map[[16]byte]*relay
	pending []*pending // handed over, in the handshake or before their token; oldest first
	closed  bool
}

// A pending connection has not said which carrier it is for.
type pending struct {
	conn   *net.TCPConn
	source netip.Addr
}

// newCarriers makes the key that this process is known by as long as it lives.
func newCarriers(log *slog.Logger) (*carriers, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the carriers' key: %w", err)
	}
	// Nobody reads more of it than the key. It is valid at all times, so that
	// no clock needs to be right.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		return nil, fmt.Errorf("make the carriers' certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the carriers' certificate: %w", err)
	}
	c := &carriers{
		log: log, cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf},
		pin: pinOf(leaf), relays: map[[16]byte]*relay{},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

func pinOf(cert *x509.Certificate) [32]byte { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

// open starts a carrier, or finds the one of that ID.
func (c *carriers) open(spec Carrier) (netip.AddrPort, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return netip.AddrPort{}, errors.New("open a carrier: the data plane is stopping")
	}
	if r := c.relays[spec.ID]; r != nil {
		if r.spec != portless(spec) {
			return netip.AddrPort{}, fmt.Errorf("carrier %x leads elsewhere; close it first: %w", spec.ID, ErrExists)
		}
		r.setPort(spec.Port)
		return r.local, nil
	}
	if len(c.relays) >= maxCarriers {
		return netip.AddrPort{}, fmt.Errorf("open a carrier: the data plane has %d, the most it holds", maxCarriers)
	}
	for _, r := range c.relays {
		if r.accepts() && !spec.Addr.IsValid() && r.spec.Token == spec.Token {
			return netip.AddrPort{}, fmt.Errorf("another carrier has this token: %w", ErrExists)
		}
	}
	r, err := openRelay(spec, c.log)
	if err != nil {
		return netip.AddrPort{}, err
	}
	c.relays[spec.ID] = r
	r.tasks.Go(r.fromWireGuard)
	if !r.accepts() {
		r.tasks.Go(func() { r.dial(c.clientTLS(spec.PeerPin)) })
	}
	c.log.Info("carrier opened", "carrier", r.name, "to", spec.Addr)
	return r.local, nil
}

// close ends a carrier; its port is free when close returns.
func (c *carriers) close(id [16]byte) error {
	c.mu.Lock()
	r := c.relays[id]
	delete(c.relays, id)
	c.mu.Unlock()
	if r == nil {
		return fmt.Errorf("%x: %w", id, ErrNoCarrier)
	}
	r.close()
	c.log.Info("carrier closed", "carrier", r.name)
	return nil
}

// list gives all carriers, sorted by ID.
func (c *carriers) list() []CarrierStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []CarrierStatus
	for _, r := range c.relays {
		out = append(out, r.status())
	}
	slices.SortFunc(out, func(a, b CarrierStatus) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return out
}

// count is the number of carriers.
func (c *carriers) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.relays)
}

// closeAll ends all carriers and whoever wants to become one, for good.
func (c *carriers) closeAll() {
	c.mu.Lock()
	c.closed = true
	relays := c.relays
	c.relays = map[[16]byte]*relay{}
	for _, p := range c.pending {
		p.conn.Close()
	}
	c.mu.Unlock()
	c.cancel()
	c.tasks.Wait()
	for _, r := range relays {
		r.close()
	}
}

// accept takes a connection of which nothing has been read, and owns it from
// now on. Who has one hears at once whether anything waits for it; the rest
// goes on behind its back.
func (c *carriers) accept(conn *net.TCPConn) error {
	p := &pending{conn: conn, source: sourceOf(conn.RemoteAddr())}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || !c.wantsLocked(func(*relay) bool { return true }) {
		conn.Close()
		return fmt.Errorf("take a connection from %s: %w", p.source, ErrNoCarrier)
	}
	if len(c.pending) >= maxPending {
		sources := make([]netip.Addr, len(c.pending))
		for i, p := range c.pending {
			sources[i] = p.source
		}
		v := carrier.Victim(sources)
		c.pending[v].conn.Close()
		c.pending = slices.Delete(c.pending, v, v+1)
	}
	c.pending = append(c.pending, p)
	c.tasks.Go(func() { c.greet(p) })
	return nil
}

// greet finds out which carrier a connection is for.
func (c *carriers) greet(p *pending) {
	r, conn, split, err := c.identify(p)
	c.mu.Lock()
	c.pending = slices.DeleteFunc(c.pending, func(o *pending) bool { return o == p })
	c.mu.Unlock()
	if err == nil && !r.take(conn, split) {
		err = ErrNoCarrier // closed meanwhile
	}
	if err != nil {
		p.conn.Close()
		c.log.Debug("connection is no carrier", "from", p.source, "error", err)
	}
}

// identify proves the far end to be one that a carrier waits for, hears the
// token and agrees. Until then nothing else is read or sent.
func (c *carriers) identify(p *pending) (*relay, *tls.Conn, *carrier.Splitter, error) {
	if err := prepare(p.conn); err != nil {
		return nil, nil, nil, err
	}
	if err := p.conn.SetDeadline(time.Now().Add(greetTime)); err != nil {
		return nil, nil, nil, err
	}
	conn := tls.Server(p.conn, c.serverTLS())
	if err := conn.HandshakeContext(c.ctx); err != nil {
		return nil, nil, nil, err
	}
	split := new(carrier.Splitter)
	token, err := readToken(conn, split)
	if err != nil {
		return nil, nil, nil, err
	}
	pin := pinOf(conn.ConnectionState().PeerCertificates[0])
	c.mu.Lock()
	var r *relay
	c.wantsLocked(func(o *relay) bool {
		if o.spec.PeerPin == pin && subtle.ConstantTimeCompare(o.spec.Token[:], token) == 1 {
			r = o
		}
		return r != nil
	})
	c.mu.Unlock()
	if r == nil {
		return nil, nil, nil, ErrNoCarrier
	}
	if _, err := conn.Write(carrier.AppendFrame(nil, token)); err != nil {
		return nil, nil, nil, err
	}
	return r, conn, split, p.conn.SetDeadline(time.Time{})
}

// wantsLocked reports whether a carrier that accepts is such.
func (c *carriers) wantsLocked(such func(*relay) bool) bool {
	for _, r := range c.relays {
		if r.accepts() && such(r) {
			return true
		}
	}
	return false
}

// serverTLS lets in whoever has the key of an accepting carrier's far end.
func (c *carriers) serverTLS() *tls.Config {
	config := c.tls(func(pin [32]byte) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.wantsLocked(func(r *relay) bool { return r.spec.PeerPin == pin })
	})
	config.ClientAuth = tls.RequireAnyClientCert
	config.SessionTicketsDisabled = true
	return config
}

// clientTLS believes one key.
func (c *carriers) clientTLS(peer [32]byte) *tls.Config {
	config := c.tls(func(pin [32]byte) bool { return pin == peer })
	config.InsecureSkipVerify = true // names and authorities mean nothing here; the pin does
	return config
}

func (c *carriers) tls(believed func(pin [32]byte) bool) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{carrier.ALPN},
		Certificates: []tls.Certificate{c.cert},
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 || !believed(pinOf(state.PeerCertificates[0])) {
				return errors.New("the other end has not the key that was agreed; its data plane may have started anew")
			}
			if state.NegotiatedProtocol != carrier.ALPN {
				return errors.New("the other end does not speak " + carrier.ALPN)
			}
			return nil
		},
	}
}

// readToken reads the first frame.
func readToken(conn net.Conn, split *carrier.Splitter) ([]byte, error) {
	for {
		n, err := conn.Read(split.Room())
		split.Filled(n)
		token, bad := split.Next()
		switch {
		case bad != nil:
			return nil, bad
		case token != nil && len(token) != carrier.TokenSize:
			return nil, fmt.Errorf("the far end begins with %d bytes, not with a token", len(token))
		case token != nil:
			return slices.Clone(token), nil
		case err != nil:
			return nil, err
		}
	}
}

// sourceOf is what counts as one source: an IPv4 address or an IPv6 /64.
func sourceOf(addr net.Addr) netip.Addr {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	a := tcp.AddrPort().Addr().Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	prefix, err := a.Prefix(64)
	if err != nil {
		return a
	}
	return prefix.Addr()
}
