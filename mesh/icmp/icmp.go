// Package icmp asks other kernels whether they are there: echo requests
// (RFC 792, RFC 4443 section 4) to the far end of a tunnel and to overlay
// addresses. The far end's agent is not needed for the answer, which is the
// point: it tells a dead path from a dead agent.
package icmp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	maxPacket = 1500
	// maxWaiting bounds the pings under way.
	maxWaiting = 1024
)

// ErrBusy says that too many pings are under way.
var ErrBusy = errors.New("too many pings at a time")

// An Answer is an echo reply that came over a link.
type Answer struct {
	Interface int
	From      netip.Addr
	At        time.Time
}

// A Conn sends echo requests and sorts the replies. It needs CAP_NET_RAW.
type Conn struct {
	v4     *icmp.PacketConn
	v6     *icmp.PacketConn
	id     uint16
	answer func(Answer)

	mu      sync.Mutex // guards the rest
	seq     uint16
	waiting map[uint16]chan<- time.Time
	closed  bool
	done    sync.WaitGroup
}

// Open opens the sockets. answer is called, one call at a time, for replies to
// Ask; it must not block.
func Open(answer func(Answer)) (*Conn, error) {
	v4, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket: %w", err)
	}
	v6, err := icmp.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open ICMPv6 socket: %w", err), v4.Close())
	}
	c := &Conn{v4: v4, v6: v6, id: uint16(rand.Uint32()), answer: answer, waiting: map[uint16]chan<- time.Time{}}
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeEchoReply)
	err = errors.Join(v6.IPv6PacketConn().SetICMPFilter(&filter), v6.IPv6PacketConn().SetControlMessage(ipv6.FlagInterface, true))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up ICMPv6 socket: %w", err), c.Close())
	}
	c.done.Go(c.read4)
	c.done.Go(c.read6)
	return c, nil
}

// Close ends the readers and every ping under way.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	err := errors.Join(c.v4.Close(), c.v6.Close())
	c.done.Wait()
	return err
}

// Ask sends one request to a link-local address on an interface. The reply
// comes through the answer function; its sequence number is 0, which Ping
// does not use.
func (c *Conn) Ask(ifindex int, to netip.Addr) error {
	b, err := c.request(ipv6.ICMPTypeEchoRequest, 0, 8)
	if err != nil {
		return err
	}
	_, err = c.v6.IPv6PacketConn().WriteTo(b, &ipv6.ControlMessage{IfIndex: ifindex}, &net.IPAddr{IP: to.AsSlice()})
	return err
}

// Ping sends one request with size bytes of payload to an address by the
// ordinary routes and waits for the reply until ctx ends. It gives the round
// trip time.
func (c *Conn) Ping(ctx context.Context, to netip.Addr, size int) (time.Duration, error) {
	replied := make(chan time.Time, 1)
	seq, err := c.register(replied)
	if err != nil {
		return 0, err
	}
	defer c.forget(seq)
	conn, kind := c.v4, icmp.Type(ipv4.ICMPTypeEcho)
	if to.Is6() {
		conn, kind = c.v6, ipv6.ICMPTypeEchoRequest
	}
	b, err := c.request(kind, seq, size)
	if err != nil {
		return 0, err
	}
	sent := time.Now()
	if _, err := conn.WriteTo(b, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		if inner, ok := errors.AsType[*os.SyscallError](err); ok {
			err = inner.Err
		}
		return 0, fmt.Errorf("send to %s: %w", to, err)
	}
	select {
	case at := <-replied:
		return at.Sub(sent), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (c *Conn) register(replied chan<- time.Time) (uint16, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	if len(c.waiting) >= maxWaiting {
		return 0, ErrBusy
	}
	for {
		c.seq++
		if _, taken := c.waiting[c.seq]; !taken && c.seq != 0 {
			c.waiting[c.seq] = replied
			return c.seq, nil
		}
	}
}

func (c *Conn) forget(seq uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, seq)
}

func (c *Conn) request(kind icmp.Type, seq uint16, size int) ([]byte, error) {
	m := icmp.Message{Type: kind, Body: &icmp.Echo{ID: int(c.id), Seq: int(seq), Data: make([]byte, size)}}
	return m.Marshal(nil) // the kernel sums ICMPv6
}

func (c *Conn) read4() {
	b := make([]byte, maxPacket)
	for {
		n, _, err := c.v4.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			if seq, ok := c.reply(b[:n], byte(ipv4.ICMPTypeEchoReply)); ok {
				c.deliver(seq)
			}
		}
	}
}

func (c *Conn) read6() {
	b := make([]byte, maxPacket)
	for {
		n, cm, src, err := c.v6.IPv6PacketConn().ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		seq, ok := c.reply(b[:n], byte(ipv6.ICMPTypeEchoReply))
		switch {
		case !ok:
		case seq != 0:
			c.deliver(seq)
		case cm != nil:
			if from, ok := src.(*net.IPAddr); ok {
				addr, _ := netip.AddrFromSlice(from.IP)
				c.answer(Answer{cm.IfIndex, addr, time.Now()})
			}
		}
	}
}

// reply reads the sequence number of an echo reply to us.
func (c *Conn) reply(b []byte, kind byte) (seq uint16, ok bool) {
	if len(b) < 8 || b[0] != kind || b[1] != 0 || binary.BigEndian.Uint16(b[4:]) != c.id {
		return 0, false
	}
	return binary.BigEndian.Uint16(b[6:]), true
}

func (c *Conn) deliver(seq uint16) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if replied, ok := c.waiting[seq]; ok {
		delete(c.waiting, seq)
		replied <- now // has room for the one answer
	}
}
