package dataplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"guywire/mesh/carrier"
)

// A relay is one carrier at work: datagrams between WireGuard, at a UDP socket
// on the loopback, and a TLS connection that comes and goes. The UDP socket has
// no mark, so that the route to WireGuard stays local, and no receive offload,
// so that a datagram read is a datagram sent.
type relay struct {
	name   string // in the log
	log    *slog.Logger
	udp    *net.UDPConn
	local  netip.AddrPort // of udp
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	wake   chan struct{} // of 1: the queue is not empty
	spec   Carrier       // as opened, with port 0

	mu       sync.Mutex
	port     uint16 // where WireGuard listens
	queue    carrier.Queue
	conn     *tls.Conn // the one in use; nil: none
	since    time.Time // that conn is nil, or not
	failure  string
	sent     uint64
	received uint64
	closed   bool
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func openRelay(spec Carrier, log *slog.Logger) (*relay, error) {
	udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		return nil, fmt.Errorf("open a carrier: %w; the loopback interface must be up", err)
	}
	r := &relay{
		name: fmt.Sprintf("%x", spec.ID[:4]), log: log, spec: portless(spec), port: spec.Port,
		udp: udp, local: udp.LocalAddr().(*net.UDPAddr).AddrPort(),
		wake: make(chan struct{}, 1), since: time.Now(),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

func (r *relay) accepts() bool { return !r.spec.Addr.IsValid() }

// portless is what stays the same while WireGuard moves to another port.
func portless(spec Carrier) Carrier {
	spec.Port = 0
	return spec
}

func (r *relay) setPort(port uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.port = port
}

func (r *relay) status() CarrierStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return CarrierStatus{
		ID: r.spec.ID, Addr: r.spec.Addr, Local: r.local, Port: r.port,
		Connected: r.conn != nil, Since: r.since,
		Sent: r.sent, Received: r.received, Dropped: r.queue.Dropped(), Error: r.failure,
	}
}

// close ends the carrier and waits for its goroutines.
func (r *relay) close() {
	r.cancel()
	r.mu.Lock()
	r.closed = true
	if r.conn != nil {
		r.conn.NetConn().Close()
	}
	r.mu.Unlock()
	r.udp.Close()
	r.tasks.Wait()
}

// fromWireGuard queues what WireGuard sends, connected or not: a tunnel's first
// handshake goes out as soon as there is a connection. Nothing here waits.
func (r *relay) fromWireGuard() {
	buf := make([]byte, carrier.MaxDatagram+1) // one more, to see what is too long
	for {
		n, from, err := r.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if r.ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				r.log.Error("carrier cannot hear WireGuard any more; close it and open it again", "carrier", r.name, "error", err)
			}
			return
		}
		r.mu.Lock()
		if from == netip.AddrPortFrom(loopback, r.port) { // others of this machine have no business here
			r.queue.Push(time.Now(), buf[:n])
		}
		r.mu.Unlock()
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// dial keeps a connection to the far end until the carrier is closed.
func (r *relay) dial(config *tls.Config) {
	jitter := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	for failures := 1; ; failures++ {
		began := time.Now()
		conn, split, err := r.connect(config)
		if err == nil {
			err = r.use(conn, split)
		}
		if r.ctx.Err() != nil {
			return
		}
		r.failed(err)
		if time.Since(began) >= carrier.MaxPause {
			failures = 1
		}
		pause := time.NewTimer(carrier.Pause(failures, jitter))
		select {
		case <-pause.C:
		case <-r.ctx.Done():
			pause.Stop()
			return
		}
	}
}

// connect makes a connection that the far end has agreed to.
func (r *relay) connect(config *tls.Config) (*tls.Conn, *carrier.Splitter, error) {
	ctx, cancel := context.WithTimeout(r.ctx, dialTime)
	defer cancel()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		if r.spec.Mark == 0 {
			return nil
		}
		return control(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(r.spec.Mark)) })
	}}
	raw, err := dialer.DialContext(ctx, "tcp", r.spec.Addr.String())
	if err != nil {
		return nil, nil, err
	}
	conn, split, err := r.agree(ctx, raw.(*net.TCPConn), config)
	if err != nil {
		raw.Close()
		return nil, nil, err
	}
	return conn, split, nil
}

func (r *relay) agree(ctx context.Context, raw *net.TCPConn, config *tls.Config) (*tls.Conn, *carrier.Splitter, error) {
	if err := prepare(raw); err != nil {
		return nil, nil, err
	}
	if err := raw.SetDeadline(time.Now().Add(greetTime)); err != nil {
		return nil, nil, err
	}
	defer context.AfterFunc(r.ctx, func() { raw.Close() })()
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, fmt.Errorf("TLS with %s: %w", r.spec.Addr, err)
	}
	if _, err := conn.Write(carrier.AppendFrame(nil, r.spec.Token[:])); err != nil {
		return nil, nil, err
	}
	split := new(carrier.Splitter)
	token, err := readToken(conn, split)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return nil, nil, fmt.Errorf("%s ended the connection: it has no such carrier", r.spec.Addr)
	case err != nil:
		return nil, nil, fmt.Errorf("%s does not agree to the carrier: %w", r.spec.Addr, err)
	case string(token) != string(r.spec.Token[:]):
		return nil, nil, fmt.Errorf("%s agrees to another carrier", r.spec.Addr)
	}
	return conn, split, raw.SetDeadline(time.Time{})
}

// take uses a connection that came in, in the background. False: the carrier is
// closed, and the connection still the caller's.
func (r *relay) take(conn *tls.Conn, split *carrier.Splitter) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.tasks.Go(func() { r.failed(r.use(conn, split)) })
	return true
}

// use carries datagrams over a connection until it ends, and says why it did.
// The newest connection is the one in use: a far end that dials again knows that
// the one before is dead.
func (r *relay) use(conn *tls.Conn, split *carrier.Splitter) error {
	raw := conn.NetConn() // conn.Close would wait for room to say goodbye
	defer raw.Close()
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return net.ErrClosed
	}
	if r.conn != nil {
		r.conn.NetConn().Close()
	}
	r.conn, r.since = conn, time.Now()
	r.mu.Unlock()
	r.log.Info("carrier connected", "carrier", r.name, "with", raw.RemoteAddr())

	ended, writing := make(chan struct{}), make(chan error, 1)
	go func() {
		err := r.write(conn, ended)
		raw.Close() // the reader hears of it so
		writing <- err
	}()
	err := r.read(conn, split)
	close(ended)
	raw.Close()
	if werr := <-writing; werr != nil && errors.Is(err, net.ErrClosed) {
		err = werr // it was the writer who ended it
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == conn {
		r.conn, r.since = nil, time.Now()
	}
	return err
}

// read gives WireGuard what comes over the connection.
func (r *relay) read(conn *tls.Conn, split *carrier.Splitter) error {
	for n := 0; ; {
		r.mu.Lock()
		r.received += uint64(n)
		to := netip.AddrPortFrom(loopback, r.port)
		r.mu.Unlock()
		for {
			datagram, err := split.Next()
			if err != nil {
				return err
			}
			if datagram == nil {
				break
			}
			_, _ = r.udp.WriteToUDPAddrPort(datagram, to) // what WireGuard does not take is lost, as on any path
		}
		var err error
		n, err = conn.Read(split.Room())
		split.Filled(n)
		if errors.Is(err, io.EOF) {
			return errors.New("the far end closed the connection")
		}
		if err != nil {
			return err
		}
	}
}

// write sends what is queued, as much in one record as there is, until ended.
func (r *relay) write(conn *tls.Conn, ended <-chan struct{}) error {
	batch := make([]byte, 0, carrier.BatchSize)
	for {
		r.mu.Lock()
		batch = r.queue.AppendTo(batch[:0], time.Now())
		r.mu.Unlock()
		if len(batch) == 0 {
			select {
			case <-r.wake:
			case <-ended:
				return nil
			}
			continue
		}
		if err := conn.SetWriteDeadline(time.Now().Add(tcpTimeout)); err != nil {
			return err
		}
		if _, err := conn.Write(batch); err != nil {
			return err
		}
		r.mu.Lock()
		r.sent += uint64(len(batch))
		r.mu.Unlock()
	}
}

// failed notes why a connection or an attempt ended, unless a newer connection
// has taken its place. What goes on failing in the same way is logged once.
func (r *relay) failed(err error) {
	text := err.Error()
	text = text[:min(len(text), maxFailure)]
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil || r.closed {
		return
	}
	if r.failure != text {
		r.log.Info("carrier has no connection", "carrier", r.name, "error", text)
	}
	r.failure = text
}

// prepare sets what a connection needs that carries datagrams: no waiting for
// more to send, little unsent data in the kernel where it cannot be dropped any
// more, and a quick end when the far end is gone (RFC 5482).
func prepare(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	err = control(raw, func(fd int) error {
		for option, value := range map[int]int{
			unix.TCP_NODELAY:       1,
			unix.TCP_USER_TIMEOUT:  int(tcpTimeout.Milliseconds()),
			unix.TCP_NOTSENT_LOWAT: tcpUnsent,
		} {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = conn.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: tcpTimeout, Interval: tcpTimeout / 4, Count: 3})
	}
	if err != nil {
		return fmt.Errorf("prepare a carrier's connection: %w", err)
	}
	return nil
}

// control runs f with a socket's descriptor.
func control(raw syscall.RawConn, f func(fd int) error) error {
	var err error
	if outer := raw.Control(func(fd uintptr) { err = f(int(fd)) }); outer != nil {
		return outer
	}
	return err
}
