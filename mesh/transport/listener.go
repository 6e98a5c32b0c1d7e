package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"guywire/mesh"
)

// ALPN names of what runs on the control port.
const (
	Control = "guywire/1"      // HTTP API between nodes
	Raft    = "guywire-raft/1" // the replicated log
	API     = "guywire-api/1"  // HTTP API for people and programs
)

// ListenConfig is what a Listener needs.
type ListenConfig struct {
	Address string // host:port to bind; an empty host is every address, IPv4 and IPv6
	// Also are further addresses of the same kind and for the same service. One
	// that cannot be bound is done without, and the log says so.
	Also   []string
	Trust  Trust
	Logger *slog.Logger
	// Divert takes the TCP connections of clients that offer a protocol, by its
	// ALPN name, before anything is read of them: another process will do the
	// handshake. The function hands over a copy of the connection, which is
	// closed here when it returns, and does not outlast ctx: until then the
	// connection counts as one in its handshake.
	Divert map[string]func(ctx context.Context, conn *net.TCPConn)
	// Listener replaces the port when it is not nil; its addresses are
	// *net.TCPAddr. The transport closes it.
	Listener net.Listener
}

// A Listener is the control port of a node. It runs until Close.
type Listener struct {
	config ListenConfig
	tcp    net.Listener
	also   []net.Listener
	tls    *tls.Config
	gate   gate
	tasks  sync.WaitGroup
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex // guards open
	open   map[string]*Stream
	closed bool
}

// Listen binds the port and starts to serve handshakes. Connections of a
// protocol are refused until Stream is called for it.
func Listen(config ListenConfig) (*Listener, error) {
	tcp := config.Listener
	if tcp == nil {
		var err error
		if tcp, err = bind(config.Address); err != nil {
			return nil, err
		}
	}
	l := &Listener{config: config, tcp: tcp, open: map[string]*Stream{}}
	for _, address := range config.Also {
		more, err := bind(address)
		if err != nil {
			config.Logger.Info("the control port is not served at a further address; sites that reach nothing else cannot reach this node", mesh.LogEndpoint, address, mesh.LogError, err)
			continue
		}
		l.also = append(l.also, more)
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.gate.init()
	l.tls = &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{Control, Raft, API},
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true, // every connection proves its key afresh
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if cert := config.Trust.Certificate(); cert != nil {
				return cert, nil
			}
			return nil, ErrNoCertificate
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return nil // nobody; a joiner
			}
			return config.Trust.checkClient(state.PeerCertificates, state.NegotiatedProtocol, time.Now())
		},
	}
	l.tasks.Go(func() { l.accept(l.tcp) })
	for _, tcp := range l.also {
		l.tasks.Go(func() { l.accept(tcp) })
	}
	return l, nil
}

func bind(address string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive()}
	tcp, err := lc.Listen(context.Background(), "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen on %s: the port is in use; stop the program that holds it, or set another control port: %w", address, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return tcp, nil
}

// Addr is the bound address and port.
func (l *Listener) Addr() netip.AddrPort { return addrOf(l.tcp) }

// Also are the further addresses and ports that were bound.
func (l *Listener) Also() []netip.AddrPort {
	var out []netip.AddrPort
	for _, tcp := range l.also {
		out = append(out, addrOf(tcp))
	}
	return out
}

func addrOf(tcp net.Listener) netip.AddrPort {
	addr := tcp.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}

// Stream gives the connections of one protocol from now on, until the stream
// is closed. Opening a protocol again replaces the stream before.
func (l *Listener) Stream(alpn string) *Stream {
	s := &Stream{listener: l, alpn: alpn, conns: make(chan *tls.Conn, backlog), done: make(chan struct{})}
	l.mu.Lock()
	before := l.open[alpn]
	if l.closed {
		close(s.done)
	} else {
		l.open[alpn] = s
	}
	l.mu.Unlock()
	if before != nil {
		before.shut()
	}
	return s
}

// Cut closes every connection that a node made: its authority has ended.
func (l *Listener) Cut(id mesh.NodeID) {
	l.gate.closeIf(func(c *conn) bool { return c.id == id })
}

// CutStream closes the connections that a node made by one protocol.
func (l *Listener) CutStream(alpn string, id mesh.NodeID) {
	l.gate.closeIf(func(c *conn) bool { return c.id == id && c.alpn == alpn })
}

// Close unbinds the ports, closes every connection and waits for its goroutines.
func (l *Listener) Close() error {
	l.mu.Lock()
	l.closed = true
	open := l.open
	l.open = map[string]*Stream{}
	l.mu.Unlock()
	l.cancel()
	err := l.tcp.Close()
	for _, tcp := range l.also {
		tcp.Close()
	}
	for _, s := range open {
		s.shut()
	}
	l.gate.closeAll()
	l.tasks.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (l *Listener) accept(tcp net.Listener) {
	const shortest, longest = 5 * time.Millisecond, time.Second
	pause := shortest
	for {
		raw, err := tcp.Accept()
		if l.ctx.Err() != nil {
			if err == nil {
				raw.Close()
			}
			return
		}
		if err != nil { // out of descriptors, most likely: it heals
			l.config.Logger.Warn("control port cannot accept", mesh.LogError, err)
			select {
			case <-time.After(pause):
			case <-l.ctx.Done():
				return
			}
			pause = min(2*pause, longest)
			continue
		}
		pause = shortest
		c := &conn{Conn: raw, gate: &l.gate, source: sourceOf(raw.RemoteAddr())}
		if l.gate.begin(c) {
			l.tasks.Go(func() { l.handshake(c) })
		} else {
			raw.Close()
		}
	}
}

func (l *Listener) handshake(c *conn) {
	ctx, cancel := context.WithTimeout(l.ctx, HandshakeTimeout)
	defer cancel()
	if l.diverted(ctx, c) {
		c.Close()
		return
	}
	t := tls.Server(c, l.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		l.config.Logger.Debug("control handshake ended", mesh.LogEndpoint, c.RemoteAddr().String(), mesh.LogError, err)
		c.Close()
		return
	}
	state := t.ConnectionState()
	peer, _ := l.config.Trust.Peer(&state, time.Now()) // zero: nobody
	if !l.gate.establish(c, peer.ID, state.NegotiatedProtocol, l.config.Trust.isMember(peer.Key)) {
		l.config.Logger.Warn("too many control connections of one member", mesh.LogEndpoint, c.RemoteAddr().String())
		c.Close()
		return
	}
	l.mu.Lock()
	s := l.open[state.NegotiatedProtocol]
	l.mu.Unlock()
	if s == nil || !s.offer(t) {
		c.Close()
	}
}

// diverted reports whether the connection was one for somebody else.
func (l *Listener) diverted(ctx context.Context, c *conn) bool {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok || len(l.config.Divert) == 0 {
		return false
	}
	for _, name := range peek(tcp) {
		if divert := l.config.Divert[name]; divert != nil {
			divert(ctx, tcp)
			return true
		}
	}
	return false
}

// A Stream is a net.Listener for the connections of one protocol; what it
// accepts are *tls.Conn with the handshake done.
type Stream struct {
	listener *Listener
	alpn     string
	conns    chan *tls.Conn // full: the newest is refused
	mu       sync.Mutex     // guards closed against offer
	closed   bool
	done     chan struct{}
}

var _ net.Listener = (*Stream)(nil)

// Accept implements net.Listener.
func (s *Stream) Accept() (net.Conn, error) {
	select {
	case <-s.done:
		return nil, net.ErrClosed
	case c := <-s.conns:
		return c, nil
	}
}

// Close implements net.Listener: the protocol is refused from now on. The
// control port itself stays open.
func (s *Stream) Close() error {
	s.listener.mu.Lock()
	if s.listener.open[s.alpn] == s {
		delete(s.listener.open, s.alpn)
	}
	s.listener.mu.Unlock()
	s.shut()
	return nil
}

// Addr implements net.Listener.
func (s *Stream) Addr() net.Addr { return s.listener.tcp.Addr() }

func (s *Stream) offer(c *tls.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	select {
	case s.conns <- c:
		return true
	default:
		return false
	}
}

func (s *Stream) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	close(s.done)
	for {
		select {
		case c := <-s.conns:
			c.NetConn().Close()
		default:
			return
		}
	}
}

func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: keepInterval, Count: keepCount}
}
