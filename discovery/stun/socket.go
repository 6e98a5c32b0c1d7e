package stun

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"

	"guywire/discovery"
)

// Limits.
const (
	maxWaiting = 64 // packets verified and not yet looked at; more are lost
	maxTries   = 64 // random ports before giving up
)

// OpenConfig says what socket to open.
type OpenConfig struct {
	Mark uint32 // of the uplink, on every packet; zero: none
	// First to Last is the range of ports to choose from. Equal: that port or none.
	First, Last uint16
	// Key is what STUN servers of the mesh ask for.
	Key []byte
}

// A Socket is a UDP port for one link attempt, on IPv4 and IPv6 (one of them,
// when the kernel lacks the other), as WireGuard will bind it afterwards. Its
// methods may be called from any goroutine.
type Socket struct {
	four, six conn // a nil UDPConn: family not available
	port      uint16
	key       []byte
	in        chan discovery.Arrival
	packets   atomic.Int64 // sent
	bytes     atomic.Int64 // of these
	keys      atomic.Pointer[discovery.Keys]
	closing   sync.Once
	readers   sync.WaitGroup
}

// Open binds a free port of the range, chosen at random. It fails with
// ErrPortInUse or ErrPermission, among others.
func Open(cfg OpenConfig) (*Socket, error) {
	if cfg.First == 0 || cfg.Last < cfg.First {
		return nil, fmt.Errorf("open UDP port: %d to %d is no range", cfg.First, cfg.Last)
	}
	size := int(cfg.Last) - int(cfg.First) + 1
	start, step := rand.IntN(size), 61
	if size%step == 0 {
		step = 1
	}
	for i := range min(size, maxTries) {
		// The step, prime to the size, leads away from a block of ports in use
		// and comes back to none.
		s, err := open(cfg.First+uint16((start+i*step)%size), cfg)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("open UDP port: %w", err)
		}
	}
	return nil, fmt.Errorf("%w in %d-%d", ErrPortInUse, cfg.First, cfg.Last)
}

func open(port uint16, cfg OpenConfig) (*Socket, error) {
	s := &Socket{port: port, key: cfg.Key, in: make(chan discovery.Arrival, maxWaiting)}
	var err error
	s.four, err = listen(netip.AddrPortFrom(netip.IPv4Unspecified(), port), cfg.Mark)
	if err != nil && !familyMissing(err) {
		return nil, err
	}
	s.six, err = listen(netip.AddrPortFrom(netip.IPv6Unspecified(), port), cfg.Mark)
	if err != nil && (!familyMissing(err) || s.four.UDPConn == nil) {
		if s.four.UDPConn != nil {
			_ = s.four.Close()
		}
		return nil, err
	}
	for _, c := range []conn{s.four, s.six} {
		if c.UDPConn != nil {
			s.readers.Go(func() { s.receive(c) })
		}
	}
	return s, nil
}

func familyMissing(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// Port gives the bound port.
func (s *Socket) Port() uint16 { return s.port }

// Close frees the port. When it returns another socket can bind it.
func (s *Socket) Close() error {
	var errs []error
	s.closing.Do(func() {
		for _, c := range []conn{s.four, s.six} {
			if c.UDPConn != nil {
				errs = append(errs, c.Close())
			}
		}
	})
	s.readers.Wait()
	return errors.Join(errs...)
}

func (s *Socket) receive(c conn) {
	buf := make([]byte, maxMessage+1)
	for {
		n, from, via, err := c.read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n > maxMessage || !stun.IsMessage(buf[:n]) {
			continue // an ICMP error, or an early packet of WireGuard
		}
		if p, ok := s.verify(buf[:n]); ok {
			p.Peer, p.Via = from, via
			select {
			case s.in <- discovery.Arrival{At: time.Now(), Packet: p}:
			default:
			}
		}
	}
}

// Sent counts what has left so far: packets, and bytes of STUN in them.
func (s *Socket) Sent() (packets, bytes int) { return int(s.packets.Load()), int(s.bytes.Load()) }

// Arrivals gives what arrives and is verified: servers' answers, and the other
// end's packets once Expect has said how to know them. Whoever opened the socket
// reads it until the socket is closed; it is never closed itself.
func (s *Socket) Arrivals() <-chan discovery.Arrival { return s.in }

// Expect lets in packets of a check.
func (s *Socket) Expect(k discovery.Keys) { s.keys.Store(&k) }

// Ask sends a query, and reports whether it could be sent at all.
func (s *Socket) Ask(q discovery.Query) bool {
	m := message{class: stun.ClassRequest, tx: q.Tx, padded: true, reply: q.Reply}
	return s.send(m.encode(s.key), q.Server, netip.Addr{}, 0)
}

// Send sends a packet of a check. An address that cannot be sent to is one that
// does not answer.
func (s *Socket) Send(p discovery.CheckPacket, k discovery.Keys) {
	s.send(encodeCheck(p, k), p.Peer, p.Via, p.TTL)
}

// send reports whether the packet could be sent at all.
func (s *Socket) send(b []byte, to netip.AddrPort, via netip.Addr, ttl int) bool {
	c := s.four
	if to.Addr().Is6() {
		c = s.six
	}
	if c.UDPConn == nil {
		return false
	}
	err := c.write(b, to, via, ttl)
	if err != nil && via.IsValid() {
		err = c.write(b, to, netip.Addr{}, ttl) // the address is gone since
	}
	if err == nil {
		s.packets.Add(1)
		s.bytes.Add(int64(len(b)))
	}
	return err == nil
}
