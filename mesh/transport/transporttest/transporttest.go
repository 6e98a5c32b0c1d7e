// Package transporttest is TCP in memory for package transport, made for
// testing/synctest: it blocks on condition variables and channels only, and its
// addresses are of the types that package net has. A connection holds as much
// as a socket buffer, so that TLS and Raft, which write before they read, work.
package transporttest

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	window  = 256 << 10 // bytes that one direction of a connection holds
	backlog = 4096      // connections that wait for one Accept
)

// A Network connects hosts. The zero value is ready.
type Network struct {
	mu        sync.Mutex // guards all of the network, its listeners and its connections
	listeners map[netip.AddrPort]*listener
	conns     map[*conn]struct{}
	cut       func(from, to netip.Addr) bool
	port      uint16 // last one given to a dialer
}

// Cut decides from now on between which hosts nothing gets from one to the
// other; nil heals everything. As in TCP, what is written meanwhile, and the
// end of a connection, arrives once it is healed; a connection opens only while
// both directions are.
func (n *Network) Cut(f func(from, to netip.Addr) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = f
	for c := range n.conns {
		c.wake.Broadcast()
	}
}

func (n *Network) lost(from, to netip.AddrPort) bool {
	return n.cut != nil && n.cut(from.Addr(), to.Addr())
}

// Listen takes an address, which must be free: one host and one port.
func (n *Network) Listen(addr netip.AddrPort) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, opError("listen", addr, syscall.EADDRINUSE)
	}
	if n.listeners == nil {
		n.listeners = map[netip.AddrPort]*listener{}
	}
	l := &listener{net: n, addr: addr, wake: sync.NewCond(&n.mu)}
	n.listeners[addr] = l
	return l, nil
}

// Dialer gives what a host connects to others with. Where nothing gets through
// it waits for the end of its context.
func (n *Network) Dialer(from netip.Addr) func(ctx context.Context, address string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, err
		}
		c, err := n.connect(from, to)
		if c == nil && err == nil {
			<-ctx.Done()
		}
		if ctx.Err() != nil {
			if c != nil {
				c.Close()
			}
			return nil, opError("dial", to, ctx.Err())
		}
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}

// connect gives nothing when nothing gets through.
func (n *Network) connect(from netip.Addr, to netip.AddrPort) (*conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.port = max(n.port+1, 32768)
	local := netip.AddrPortFrom(from, n.port)
	if n.lost(local, to) || n.lost(to, local) {
		return nil, nil
	}
	l := n.listeners[to]
	if l == nil || len(l.waiting) >= backlog {
		return nil, opError("dial", to, syscall.ECONNREFUSED)
	}
	near := &conn{net: n, local: local, remote: to, wake: sync.NewCond(&n.mu)}
	far := &conn{net: n, local: to, remote: local, wake: sync.NewCond(&n.mu), other: near}
	near.other = far
	if n.conns == nil {
		n.conns = map[*conn]struct{}{}
	}
	n.conns[near], n.conns[far] = struct{}{}, struct{}{}
	l.waiting = append(l.waiting, far)
	l.wake.Broadcast()
	return near, nil
}

type listener struct {
	net     *Network
	addr    netip.AddrPort
	wake    *sync.Cond
	waiting []*conn
	closed  bool
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	for len(l.waiting) == 0 && !l.closed {
		l.wake.Wait()
	}
	if l.closed {
		return nil, opError("accept", l.addr, net.ErrClosed)
	}
	c := l.waiting[0]
	l.waiting = l.waiting[1:]
	return c, nil
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if l.closed {
		return opError("close", l.addr, net.ErrClosed)
	}
	l.closed = true
	delete(l.net.listeners, l.addr)
	for _, c := range l.waiting {
		c.closeLocked()
	}
	l.wake.Broadcast()
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// A conn is one end of a connection.
type conn struct {
	net           *Network
	local, remote netip.AddrPort
	other         *conn
	wake          *sync.Cond // something changed for Read or Write
	in            []byte     // sent by other, not yet read
	closed        bool
	read, write   deadline
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for {
		arrives := !c.net.lost(c.remote, c.local)
		switch {
		case c.closed:
			return 0, opError("read", c.remote, net.ErrClosed)
		case c.read.passed():
			return 0, opError("read", c.remote, os.ErrDeadlineExceeded)
		case len(b) == 0:
			return 0, nil
		case arrives && len(c.in) > 0:
			n := copy(b, c.in)
			c.in = c.in[n:]
			c.other.wake.Broadcast()
			return n, nil
		case arrives && c.other.closed:
			return 0, io.EOF
		}
		c.wake.Wait()
	}
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (written int, err error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for {
		switch {
		case c.closed:
			return written, opError("write", c.remote, net.ErrClosed)
		case c.write.passed():
			return written, opError("write", c.remote, os.ErrDeadlineExceeded)
		case c.other.closed && !c.net.lost(c.remote, c.local):
			return written, opError("write", c.remote, syscall.EPIPE)
		}
		n := min(len(b)-written, window-len(c.other.in))
		c.other.in = append(c.other.in, b[written:written+n]...)
		written += n
		c.other.wake.Broadcast()
		if written == len(b) {
			return written, nil
		}
		c.wake.Wait()
	}
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return opError("close", c.remote, net.ErrClosed)
	}
	c.closeLocked()
	return nil
}

func (c *conn) closeLocked() {
	c.closed = true
	delete(c.net.conns, c)
	for _, d := range []*deadline{&c.read, &c.write} {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
	c.wake.Broadcast()
	c.other.wake.Broadcast()
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error { return c.setDeadlines(t, &c.read, &c.write) }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error { return c.setDeadlines(t, &c.read) }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, &c.write) }

func (c *conn) setDeadlines(t time.Time, deadlines ...*deadline) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return opError("set deadline", c.remote, net.ErrClosed)
	}
	for _, d := range deadlines {
		d.at = t
		if d.timer != nil {
			d.timer.Stop()
			d.timer = nil
		}
		if !t.IsZero() {
			d.timer = time.AfterFunc(time.Until(t), func() {
				c.net.mu.Lock()
				defer c.net.mu.Unlock()
				c.wake.Broadcast()
			})
		}
	}
	c.wake.Broadcast()
	return nil
}

func opError(op string, addr netip.AddrPort, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Addr: net.TCPAddrFromAddrPort(addr), Err: err}
}
