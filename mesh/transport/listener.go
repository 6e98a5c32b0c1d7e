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
	Trust   Trust
	Logger  *slog.Logger
	// Listener replaces the port when it is not nil; its addresses are
	// *net.TCPAddr. The transport closes it.
	Listener net.Listener
}

// A Listener is the control port of a node. It runs until Close.
type Listener struct {
	config ListenConfig
	tcp    net.Listener
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
	l.tasks.Go(l.accept)
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
func (l *Listener) Addr() netip.AddrPort {
	addr := l.tcp.Addr().(*net.TCPAddr).AddrPort()
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

// Close unbinds the port, closes every connection and waits for its goroutines.
func (l *Listener) Close() error {
	l.mu.Lock()
	l.closed = true
	open := l.open
	l.open = map[string]*Stream{}
	l.mu.Unlock()
	l.cancel()
	err := l.tcp.Close()
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

func (l *Listener) accept() {
	const shortest, longest = 5 * time.Millisecond, time.Second
	pause := shortest
	for {
		raw, err := l.tcp.Accept()
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
