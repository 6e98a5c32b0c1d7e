package flow

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Target is a host to ping.
type Target struct {
	Name string     `json:"name"`
	Addr netip.Addr `json:"addr"`
	Port uint16     `json:"port"` // of its UDP echo server; 0 asks for ICMP only
}

// PingConfig describes one row of a ping matrix.
type PingConfig struct {
	From    string // name of this host, for the report
	Targets []Target
	Count   int           // pings per target and method; 0 means 3
	Timeout time.Duration // of each; 0 means 1 s
	NoICMP  bool
}

// PingReport is one row of a ping matrix: from this host to each target, in the order given.
type PingReport struct {
	From  string     `json:"from"`
	Cells []PingCell `json:"cells"`
}

// PingCell is how one target answered.
type PingCell struct {
	Target
	Reached bool   `json:"reached"` // every method that was tried and permitted got at least one answer
	UDP     *Probe `json:"udp,omitempty"`
	ICMP    *Probe `json:"icmp,omitempty"`
}

// Probe is how a target answered to one method. Times are of those pings that were answered.
type Probe struct {
	Sent     int           `json:"sent"`
	Received int           `json:"received"`
	Min      time.Duration `json:"rtt_min_ns"`
	Mean     time.Duration `json:"rtt_mean_ns"`
	Max      time.Duration `json:"rtt_max_ns"`
	// Error says why the last unanswered ping was so; empty if all were answered.
	Error string `json:"error"`
	// Forbidden says that this host may not use the method.
	Forbidden bool `json:"forbidden"`
}

// maxTargets limits a row; all targets are pinged at the same time.
const maxTargets = 1024

// errTimeout is the fate of a ping without answer.
var errTimeout = errors.New("no answer")

// Ping pings all targets side by side, each with one ping under way at a time, and returns when all are done or ctx
// ends. Unanswered pings are part of the report, not an error.
func Ping(ctx context.Context, cfg PingConfig) (PingReport, error) {
	if len(cfg.Targets) > maxTargets {
		return PingReport{}, fmt.Errorf("ping %d targets: give at most %d", len(cfg.Targets), maxTargets)
	}
	if cfg.Count <= 0 {
		cfg.Count = 3
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = time.Second
	}
	r := PingReport{From: cfg.From, Cells: make([]PingCell, len(cfg.Targets))}
	var run sync.WaitGroup
	for i, t := range cfg.Targets {
		cell := &r.Cells[i]
		cell.Target = t
		if t.Port != 0 {
			run.Go(func() { cell.UDP = probe(ctx, cfg, func() (pinger, error) { return newUDPPinger(t) }) })
		}
		if !cfg.NoICMP {
			run.Go(func() { cell.ICMP = probe(ctx, cfg, func() (pinger, error) { return newICMPPinger(t.Addr) }) })
		}
	}
	run.Wait()
	for i := range r.Cells {
		cell := &r.Cells[i]
		tried := 0
		cell.Reached = true
		for _, p := range []*Probe{cell.UDP, cell.ICMP} {
			if p != nil && !p.Forbidden {
				tried++
				cell.Reached = cell.Reached && p.Received > 0
			}
		}
		cell.Reached = cell.Reached && tried > 0
	}
	return r, nil
}

// pinger exchanges packets with one target.
type pinger interface {
	send(Packet) error
	// receive returns the next packet of ours that the target answered.
	receive() (Packet, error)
	SetDeadline(time.Time) error
	Close() error
}

// probe pings one target by one method.
func probe(ctx context.Context, cfg PingConfig, open func() (pinger, error)) *Probe {
	result := &Probe{}
	p, err := open()
	if err != nil {
		result.Error, result.Forbidden = reason(err), errors.Is(err, os.ErrPermission)
		return result
	}
	defer func() { _ = p.Close() }()
	var token [4]byte
	_, _ = rand.Read(token[:]) // never fails
	flow := binary.BigEndian.Uint32(token[:])
	var sum time.Duration
	for seq := range uint64(cfg.Count) {
		if ctx.Err() != nil {
			result.Error = "interrupted"
			break
		}
		result.Sent++
		rtt, err := exchange(ctx, p, Packet{Kind: EchoRequest, Flow: flow, Seq: seq}, cfg.Timeout)
		if err != nil {
			result.Error = reason(err)
			continue
		}
		if result.Received == 0 {
			result.Min = rtt
		}
		result.Received++
		result.Min, result.Max = min(result.Min, rtt), max(result.Max, rtt)
		sum += rtt
	}
	if result.Received > 0 {
		result.Mean = sum / time.Duration(result.Received)
	}
	return result
}

// exchange sends one ping and waits for its answer; answers to earlier ones are passed over.
func exchange(ctx context.Context, p pinger, ask Packet, timeout time.Duration) (time.Duration, error) {
	if err := p.SetDeadline(time.Now().Add(timeout)); err != nil {
		return 0, err
	}
	defer context.AfterFunc(ctx, func() { _ = p.SetDeadline(time.Now()) })()
	ask.Sent = Monotonic()
	if err := p.send(ask); err != nil {
		return 0, err
	}
	for {
		answer, err := p.receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, errTimeout
		case errors.Is(err, ErrMalformed):
		case err != nil:
			return 0, err
		case answer.Flow == ask.Flow && answer.Seq == ask.Seq && answer.Sent == ask.Sent:
			return Monotonic() - ask.Sent, nil
		}
	}
}

// udpPinger asks an echo server. Its socket is connected, so that ICMP errors come back as errors.
type udpPinger struct{ *net.UDPConn }

func newUDPPinger(t Target) (pinger, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(t.Addr, t.Port)))
	if err != nil {
		return nil, err
	}
	return udpPinger{conn}, nil
}

func (p udpPinger) send(ask Packet) error {
	var b [HeaderSize]byte
	ask.Encode(b[:])
	_, err := p.Write(b[:])
	return err
}

func (p udpPinger) receive() (Packet, error) {
	var b [HeaderSize + 1]byte
	n, err := p.Read(b[:])
	if err != nil {
		return Packet{}, err
	}
	answer, err := ParsePacket(b[:n])
	if err == nil && answer.Kind != EchoReply {
		err = ErrMalformed
	}
	return answer, err
}

// icmpPinger asks the kernel of the target.
type icmpPinger struct {
	*icmp.PacketConn
	to             net.Addr
	ask, answer    icmp.Type
	protocolNumber int
}

// newICMPPinger opens a ping socket if this user's group may, a raw one if the process has the capability, and
// otherwise fails with a permission error.
func newICMPPinger(to netip.Addr) (pinger, error) {
	to = to.Unmap()
	p := &icmpPinger{ask: ipv4.ICMPTypeEcho, answer: ipv4.ICMPTypeEchoReply, protocolNumber: 1}
	datagram, raw, local := "udp4", "ip4:icmp", "0.0.0.0"
	if to.Is6() {
		p.ask, p.answer, p.protocolNumber = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
		datagram, raw, local = "udp6", "ip6:ipv6-icmp", "::"
	}
	addr := net.IPAddr{IP: to.AsSlice(), Zone: to.Zone()}
	var err error
	if p.PacketConn, err = icmp.ListenPacket(datagram, local); err == nil {
		p.to = &net.UDPAddr{IP: addr.IP, Zone: addr.Zone}
		return p, nil
	}
	if p.PacketConn, err = icmp.ListenPacket(raw, local); err != nil {
		return nil, err
	}
	p.to = &addr
	return p, nil
}

func (p *icmpPinger) send(ask Packet) error {
	var b [HeaderSize]byte
	ask.Encode(b[:])
	m := icmp.Message{Type: p.ask, Body: &icmp.Echo{ID: int(ask.Flow & 0xffff), Seq: int(ask.Seq & 0xffff), Data: b[:]}}
	wire, err := m.Marshal(nil) // for IPv6 the kernel adds the checksum
	if err != nil {
		return err
	}
	_, err = p.WriteTo(wire, p.to)
	return err
}

func (p *icmpPinger) receive() (Packet, error) {
	var b [256]byte
	n, _, err := p.ReadFrom(b[:])
	if err != nil {
		return Packet{}, err
	}
	m, err := icmp.ParseMessage(p.protocolNumber, b[:n])
	if err != nil {
		return Packet{}, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	echo, ok := m.Body.(*icmp.Echo)
	if !ok || m.Type != p.answer {
		return Packet{}, ErrMalformed
	}
	return ParsePacket(echo.Data)
}
