package portmap

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"guywire/discovery"
)

const (
	// lifetime is what is asked for (RFC 6886, section 3.3, recommends two hours). A
	// mapping is renewed when half of what was granted is over.
	lifetime = 2 * time.Hour
	// leastLifetime keeps a gateway from making us ask all the time, mostLifetime is
	// the longest that is believed.
	leastLifetime = 2 * time.Minute
	mostLifetime  = 24 * time.Hour
	// retryAfter is when a renewal that failed is tried again.
	retryAfter = 5 * time.Minute
)

// schedule is when a request is sent, and at its end given up: the first of RFC
// 6886's intervals. The gateway is one hop away, and nothing waits for it for long.
var schedule = [...]time.Duration{0, 250 * time.Millisecond, 750 * time.Millisecond, 1750 * time.Millisecond}

var (
	// ErrNoGateway: it speaks neither protocol, or has not been found to.
	ErrNoGateway = errors.New("the gateway answers neither PCP nor NAT-PMP; port mapping may have to be switched on there")
	errNoAnswer  = errors.New("no answer")
)

// Config says whom to ask, and for whom.
type Config struct {
	Gateway netip.Addr // IPv4
	Local   netip.Addr // of this host on the gateway's network
	Mark    uint32     // of the uplink, on every packet; zero: none
	// Secret makes the nonces of this host: with the same one it can renew and release
	// after a restart what it mapped before.
	Secret [32]byte
}

// A Client keeps the mappings that one gateway has made. Its methods may be called
// from any goroutine.
type Client struct {
	cfg  Config
	port uint16 // of the gateway: tests have another one

	mu       sync.Mutex // guards the rest; never held while waiting
	version  int        // versionPCP or versionPMP; -1: neither is known to be spoken
	epoch    epoch
	mappings map[uint16]mapping
}

type mapping struct {
	external netip.AddrPort
	until    time.Time
	renew    time.Time
}

// New makes a client, which knows nothing of its gateway until Probe.
func New(cfg Config) *Client {
	return &Client{cfg: cfg, port: gatewayPort, version: -1, mappings: map[uint16]mapping{}}
}

// Probe finds out what the gateway speaks, in four seconds at most: ErrNoGateway when
// it is silent.
func (c *Client) Probe(ctx context.Context) error {
	version := -1
	err := c.exchange(ctx, pcpRequest{client: c.cfg.Local}.encode(), func(b []byte) bool {
		if r, err := decodePCP(b); err == nil && r.announce {
			version = versionPCP
			c.noteEpoch(r.epoch)
		} else if r, err := decodePMP(b); err == nil && r.result != 0 {
			version = versionPMP // it does not know our version (RFC 6887, appendix A)
		}
		return version >= 0
	})
	if err != nil && ctx.Err() == nil {
		err = c.exchange(ctx, pmpRequest{}.encode(), func(b []byte) bool {
			r, err := decodePMP(b)
			if err == nil && r.op == opAddress {
				version = versionPMP
				c.noteEpoch(r.epoch)
			}
			return version >= 0
		})
	}
	c.mu.Lock()
	c.version = version
	c.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return fmt.Errorf("port mapping at %s: %w", c.cfg.Gateway, ErrNoGateway)
	}
}

// Protocol gives the name of what the gateway speaks; empty: not known, or nothing.
func (c *Client) Protocol() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.version {
	case versionPCP:
		return "PCP"
	case versionPMP:
		return "NAT-PMP"
	}
	return ""
}

// Map has the gateway let in what arrives for the UDP port, or go on with it, and
// gives where it arrives. It fails with ErrNoGateway before Probe has found one.
func (c *Client) Map(ctx context.Context, port uint16) (netip.AddrPort, error) {
	c.mu.Lock()
	wanted := c.mappings[port].external
	c.mu.Unlock()
	external, granted, err := c.ask(ctx, port, wanted, uint32(lifetime/time.Second))
	if err == nil && (external.Port() == 0 || discovery.Usable(external) != nil) {
		err = fmt.Errorf("it names the outside endpoint %s", external)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if err != nil {
		if m, ok := c.mappings[port]; ok {
			m.renew = now.Add(retryAfter)
			c.mappings[port] = m
		}
		return netip.AddrPort{}, fmt.Errorf("map port %d at %s: %w", port, c.cfg.Gateway, err)
	}
	life := min(max(time.Duration(granted)*time.Second, leastLifetime), mostLifetime)
	c.mappings[port] = mapping{external, now.Add(life), now.Add(life / 2)}
	return external, nil
}

// Release has the gateway forget a port. It is forgotten here whatever the gateway
// answers.
func (c *Client) Release(ctx context.Context, port uint16) error {
	c.mu.Lock()
	delete(c.mappings, port)
	c.mu.Unlock()
	if _, _, err := c.ask(ctx, port, netip.AddrPort{}, 0); err != nil {
		return fmt.Errorf("release port %d at %s: %w", port, c.cfg.Gateway, err)
	}
	return nil
}

// Mapped gives the ports that are let in, and where packets for them arrive.
func (c *Client) Mapped() map[uint16]netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[uint16]netip.AddrPort{}
	for port, m := range c.mappings {
		if time.Now().Before(m.until) {
			out[port] = m.external
		}
	}
	return out
}

// Renew asks again for the mappings of which half the time is over, or for all: after
// the gateway may have forgotten them. It reports the first failure.
func (c *Client) Renew(ctx context.Context, all bool) error {
	c.mu.Lock()
	var due []uint16
	for _, port := range slices.Sorted(maps.Keys(c.mappings)) {
		if all || !time.Now().Before(c.mappings[port].renew) {
			due = append(due, port)
		}
	}
	c.mu.Unlock()
	var first error
	for _, port := range due {
		if _, err := c.Map(ctx, port); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// ask sends one request to map or release, by what the gateway speaks.
func (c *Client) ask(ctx context.Context, port uint16, wanted netip.AddrPort, seconds uint32) (external netip.AddrPort, granted uint32, err error) {
	c.mu.Lock()
	version := c.version
	c.mu.Unlock()
	switch version {
	case versionPCP:
		return c.askPCP(ctx, port, wanted, seconds)
	case versionPMP:
		return c.askPMP(ctx, port, wanted, seconds)
	}
	return external, 0, ErrNoGateway
}

func (c *Client) askPCP(ctx context.Context, port uint16, wanted netip.AddrPort, seconds uint32) (netip.AddrPort, uint32, error) {
	q := pcpRequest{client: c.cfg.Local, port: port, nonce: c.nonce(port), external: wanted, lifetime: seconds}
	if seconds > 0 && wanted.Port() == 0 {
		q.external = netip.AddrPortFrom(netip.Addr{}, port)
	}
	var answer pcpResponse
	err := c.exchange(ctx, q.encode(), func(b []byte) bool {
		r, err := decodePCP(b)
		if err != nil || r.announce || r.nonce != q.nonce || r.port != port {
			return false // RFC 6887, section 11.4
		}
		answer = r
		return true
	})
	if err != nil {
		return netip.AddrPort{}, 0, err
	}
	c.noteEpoch(answer.epoch)
	if answer.result != 0 {
		return netip.AddrPort{}, 0, refusal(pcpResults, answer.result)
	}
	return answer.external, answer.lifetime, nil
}

func (c *Client) askPMP(ctx context.Context, port uint16, wanted netip.AddrPort, seconds uint32) (netip.AddrPort, uint32, error) {
	q := pmpRequest{port: port, lifetime: seconds}
	if seconds > 0 {
		if q.external = wanted.Port(); q.external == 0 {
			q.external = port
		}
	}
	var made, address pmpResponse
	take := func(to *pmpResponse, op byte) func([]byte) bool {
		return func(b []byte) bool {
			r, err := decodePMP(b)
			if err != nil || r.op != op || r.result == 0 && op == opMap && r.port != port {
				return false
			}
			*to = r
			return true
		}
	}
	err := c.exchange(ctx, q.encode(), take(&made, opMap))
	if err == nil && made.result == 0 && seconds > 0 {
		err = c.exchange(ctx, pmpRequest{}.encode(), take(&address, opAddress))
	}
	if err != nil {
		return netip.AddrPort{}, 0, err
	}
	c.noteEpoch(made.epoch)
	for _, r := range []pmpResponse{made, address} {
		if r.result != 0 {
			return netip.AddrPort{}, 0, refusal(pmpResults, r.result)
		}
	}
	return netip.AddrPortFrom(address.address, made.external), made.lifetime, nil
}

// nonce is another one for each port and gateway, and the same in each life of this
// host.
func (c *Client) nonce(port uint16) nonce {
	h := hmac.New(sha256.New, c.cfg.Secret[:])
	h.Write(c.cfg.Gateway.AsSlice())
	h.Write(binary.BigEndian.AppendUint16(nil, port))
	return nonce(h.Sum(nil)[:12])
}

// noteEpoch has everything renewed at once when the gateway has lost its state.
func (c *Client) noteEpoch(seconds uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.epoch.lost(time.Now(), seconds) {
		return
	}
	for port, m := range c.mappings {
		m.renew = time.Time{}
		c.mappings[port] = m
	}
}

// An epoch is the gateway's clock, which begins anew when it loses its mappings.
type epoch struct {
	seconds uint32
	at      time.Time // when it was heard; zero: never
}

// lost takes a reading, and reports whether the clock was set back or runs so
// differently from ours that it must have been (RFC 6887, section 8.5).
func (e *epoch) lost(now time.Time, seconds uint32) bool {
	before := *e
	*e = epoch{seconds, now}
	if before.at.IsZero() {
		return false
	}
	ours, theirs := int64(now.Sub(before.at)/time.Second), int64(seconds)-int64(before.seconds)
	return theirs < -1 || ours+2 < theirs-theirs/16 || theirs+2 < ours-ours/16
}

// exchange sends a request until accept takes an answer.
func (c *Client) exchange(ctx context.Context, request []byte, accept func([]byte) bool) error {
	d := net.Dialer{
		LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.cfg.Local, 0)),
		Control: func(_, _ string, raw syscall.RawConn) (err error) {
			if c.cfg.Mark == 0 {
				return nil
			}
			ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(c.cfg.Mark)) })
			return errors.Join(err, ctlErr)
		},
	}
	// Connected: the kernel drops what others send.
	conn, err := d.DialContext(ctx, "udp4", netip.AddrPortFrom(c.cfg.Gateway, c.port).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	begun := time.Now()
	buf := make([]byte, maxPCP+1)
	for i := range len(schedule) - 1 {
		if _, err := conn.Write(request); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		_ = conn.SetReadDeadline(begun.Add(schedule[i+1]))
		for ctx.Err() == nil {
			n, err := conn.Read(buf)
			if errors.Is(err, syscall.ECONNREFUSED) {
				return err // nobody listens there
			}
			if err != nil {
				break
			}
			if accept(buf[:n]) {
				return nil
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return errNoAnswer
}
