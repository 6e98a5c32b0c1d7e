package stun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v3"
)

// Rate limits of a server.
const (
	sourceBurst  = 40 // requests at once from one source
	sourceRate   = 20 // requests per second from one source, in the long run
	globalBurst  = 2000
	globalRate   = 2000
	sourcesLimit = 4096 // sources remembered per generation
	sourcesAge   = time.Minute
)

// minReply keeps answers to another port away from what may be a service of some
// host that shares the sender's address.
const minReply = 1024

// A Server answers binding requests of members.
type Server struct {
	keys  func() [][]byte
	conns []conn

	mu     sync.Mutex // guards the limits; held for a few instructions
	global bucket
	limits sources
}

// Listen makes a server on each of the addresses; an unspecified one answers
// from the address that was asked. keys are what members may authenticate with
// at the moment; it is called for each request, also at once, and must not block.
func Listen(addrs []netip.AddrPort, keys func() [][]byte) (*Server, error) {
	s := &Server{keys: keys}
	for _, a := range addrs {
		c, err := listen(a, 0)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("STUN server on %s: %w", a, err)
		}
		s.conns = append(s.conns, c)
	}
	return s, nil
}

// Addrs gives the bound addresses.
func (s *Server) Addrs() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, c := range s.conns {
		addrs = append(addrs, c.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	return addrs
}

// Run answers until ctx ends, closes the sockets and returns nil.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	var wg sync.WaitGroup
	for _, c := range s.conns {
		wg.Go(func() { s.serve(c) })
	}
	wg.Wait()
	return nil
}

func (s *Server) close() {
	for _, c := range s.conns {
		_ = c.Close()
	}
}

func (s *Server) serve(c conn) {
	buf := make([]byte, maxMessage+1)
	for {
		n, from, via, err := c.read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		if answer, to := s.answer(time.Now(), buf[:n], from); answer != nil {
			_ = c.write(answer, to, via, 0) // lost answers are asked for again
		}
	}
}

// answer gives the reply to one packet and where it goes to, or nil. Wherever that
// is, it has the address of the packet, whose allowance it takes from.
func (s *Server) answer(now time.Time, b []byte, from netip.AddrPort) (answer []byte, to netip.AddrPort) {
	if len(b) > maxMessage || !stun.IsMessage(b) || !s.allow(now, from.Addr()) {
		return nil, to
	}
	for _, key := range s.keys() {
		m, err := decode(b, func(m message) []byte {
			if m.class != stun.ClassRequest || m.check {
				return nil
			}
			return key
		})
		if err != nil {
			continue
		}
		if m.reply != 0 && m.reply < minReply || !s.allowMember(now) {
			return nil, to
		}
		answer := message{class: stun.ClassSuccessResponse, tx: m.tx, mapped: from}.encode(key)
		if len(answer) > len(b) {
			return nil, to
		}
		if m.reply != 0 {
			from = netip.AddrPortFrom(from.Addr(), m.reply)
		}
		return answer, from
	}
	return nil, to
}

func (s *Server) allow(now time.Time, from netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limits.allow(now, from)
}

// allowMember counts only verified requests, so that a flood of forged ones
// does not shut members out.
func (s *Server) allowMember(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.global.take(now, globalRate, globalBurst)
}

// A bucket holds tokens that flow in at a rate; zero is full.
type bucket struct {
	spent float64 // tokens missing
	at    time.Time
}

func (b *bucket) take(now time.Time, rate, burst float64) bool {
	b.spent = max(0, b.spent-now.Sub(b.at).Seconds()*rate)
	b.at = now
	if b.spent+1 > burst {
		return false
	}
	b.spent++
	return true
}

// sources limits each source by itself; an IPv6 /64 is one. It remembers two
// generations, so a flood of forged sources costs bounded memory and makes us
// at most more generous.
type sources struct {
	young, old map[netip.Addr]*bucket
	since      time.Time
}

func (s *sources) allow(now time.Time, from netip.Addr) bool {
	if from.Is6() {
		from = netip.PrefixFrom(from, 64).Masked().Addr()
	}
	if s.young == nil || len(s.young) >= sourcesLimit || now.Sub(s.since) > sourcesAge {
		s.old, s.young, s.since = s.young, make(map[netip.Addr]*bucket), now
	}
	b := s.young[from]
	if b == nil {
		if b = s.old[from]; b == nil {
			b = &bucket{at: now}
		}
		s.young[from] = b
	}
	return b.take(now, sourceRate, sourceBurst)
}
