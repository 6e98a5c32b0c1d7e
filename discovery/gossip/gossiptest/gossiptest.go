// Package gossiptest is a network in memory for package gossip, made for
// testing/synctest: it blocks only on channels and timers, and a node that is
// gone, or cut off, blocks nobody for ever.
package gossiptest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// maxWaiting bounds the packets and the connections that wait for one node;
// further packets are lost.
const maxWaiting = 1024

// A Network connects transports. The zero value is ready.
type Network struct {
	mu    sync.Mutex
	nodes map[netip.AddrPort]*Transport
	cut   func(from, to netip.AddrPort) bool
}

// Cut decides from now on which packets are lost and which dials time out; nil
// heals everything. Conversations that are open go on.
func (n *Network) Cut(f func(from, to netip.AddrPort) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = f
}

// Transport attaches a node at addr, which must be free.
func (n *Network) Transport(addr netip.AddrPort) (*Transport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[addr] != nil {
		return nil, fmt.Errorf("address %s is in use", addr)
	}
	t := &Transport{
		net: n, addr: addr, conns: make(map[net.Conn]bool), closed: make(chan struct{}),
		packets: make(chan *memberlist.Packet, maxWaiting), streams: make(chan net.Conn, maxWaiting),
	}
	if n.nodes == nil {
		n.nodes = make(map[netip.AddrPort]*Transport)
	}
	n.nodes[addr] = t
	return t, nil
}

// find gives the node at an address: present tells whether there is one,
// reachable whether the network lets from talk to it.
func (n *Network) find(from netip.AddrPort, to string) (t *Transport, reachable bool) {
	addr, err := netip.ParseAddrPort(to)
	if err != nil {
		return nil, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nodes[addr], n.cut == nil || !n.cut(from, addr)
}

// A Transport is one node's attachment.
type Transport struct {
	net     *Network
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	closed  chan struct{}

	mu    sync.Mutex
	conns map[net.Conn]bool // nil after Shutdown
}

var _ memberlist.NodeAwareTransport = (*Transport)(nil)

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.Addr().AsSlice(), int(t.addr.Port()), nil
}

// WriteTo implements memberlist.Transport.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	now := time.Now()
	to, reachable := t.net.find(t.addr, addr)
	if to == nil || !reachable {
		return now, nil
	}
	packet := &memberlist.Packet{Buf: append([]byte(nil), b...), From: net.UDPAddrFromAddrPort(t.addr), Timestamp: now}
	select {
	case to.packets <- packet:
	default:
	}
	return now, nil
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *Transport) WriteToAddress(b []byte, addr memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, addr.Addr)
}

// PacketCh implements memberlist.Transport.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout implements memberlist.Transport. A node that is gone refuses, one
// that is cut off lets the caller wait.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to, reachable := t.net.find(t.addr, addr)
	if !reachable {
		select {
		case <-time.After(timeout):
			return nil, fmt.Errorf("dial %s: timeout", addr)
		case <-t.closed:
			return nil, net.ErrClosed
		}
	}
	if to == nil {
		return nil, fmt.Errorf("dial %s: refused", addr)
	}
	a, b := net.Pipe()
	near, far := t.own(a), to.own(b)
	if near == nil || far == nil {
		return nil, errors.Join(net.ErrClosed, a.Close(), b.Close())
	}
	select {
	case to.streams <- far:
		return near, nil
	default:
		return nil, errors.Join(fmt.Errorf("dial %s: refused, too many wait", addr), near.Close(), far.Close())
	}
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *Transport) DialAddressTimeout(addr memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(addr.Addr, timeout)
}

// Shutdown implements memberlist.Transport: the node is gone, its
// conversations break.
func (t *Transport) Shutdown() error {
	t.net.mu.Lock()
	if t.net.nodes[t.addr] == t {
		delete(t.net.nodes, t.addr)
	}
	t.net.mu.Unlock()

	t.mu.Lock()
	conns := t.conns
	t.conns = nil
	t.mu.Unlock()
	if conns == nil {
		return nil
	}
	close(t.closed)
	var errs []error
	for c := range conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// own makes conn part of t, to be closed with it; nil when t is gone.
func (t *Transport) own(conn net.Conn) net.Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns == nil {
		return nil
	}
	t.conns[conn] = true
	return &ownedConn{conn, t}
}

type ownedConn struct {
	net.Conn
	t *Transport
}

func (c *ownedConn) Close() error {
	c.t.mu.Lock()
	delete(c.t.conns, c.Conn)
	c.t.mu.Unlock()
	return c.Conn.Close()
}
