package stun

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"

	"guywire/discovery"
)

// Limits and times.
const (
	maxWaiting = 64 // packets read and not yet looked at; more are lost
	maxTries   = 64 // random ports before giving up
	maxServers = 8  // asked at once
	enough     = 2  // answers that suffice to go on
	patience   = 250 * time.Millisecond
)

// gatherSchedule is when a server is asked: RFC 8489's doubling intervals from
// 100 ms, because mesh nodes are near enough and joining should be quick.
var gatherSchedule = [...]time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond, 1500 * time.Millisecond}

// gatherTime is when servers that have not answered are given up.
const gatherTime = 2300 * time.Millisecond

// OpenConfig says what socket to open.
type OpenConfig struct {
	Mark uint32 // of the uplink, on every packet; zero: none
	// First to Last is the range of ports to choose from. Equal: that port or none.
	First, Last uint16
	// Key is what STUN servers of the mesh ask for.
	Key []byte
}

// A Socket is a UDP port for one link attempt, on IPv4 and IPv6 (one of them,
// when the kernel lacks the other), as WireGuard will bind it afterwards.
// One goroutine at a time calls Gather and Check; Close may be called from
// another and ends both.
type Socket struct {
	four, six conn // a nil UDPConn: family not available
	port      uint16
	key       []byte
	in        chan packet
	closed    chan struct{}
	closing   sync.Once
	readers   sync.WaitGroup
}

type packet struct {
	data []byte
	from netip.AddrPort
	via  netip.Addr
	at   time.Time
}

// Open binds a free port of the range, chosen at random. It fails with
// ErrPortInUse or ErrPermission, among others.
func Open(cfg OpenConfig) (*Socket, error) {
	if cfg.First == 0 || cfg.Last < cfg.First {
		return nil, fmt.Errorf("open UDP port: %d to %d is no range", cfg.First, cfg.Last)
	}
	size := int(cfg.Last) - int(cfg.First) + 1
	start, step := mrand.IntN(size), 61
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
	s := &Socket{port: port, key: cfg.Key, in: make(chan packet, maxWaiting), closed: make(chan struct{})}
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
		close(s.closed)
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
		select {
		case s.in <- packet{slices.Clone(buf[:n]), from, via, time.Now()}:
		default:
		}
	}
}

// send reports whether the packet could be sent at all.
func (s *Socket) send(b []byte, to netip.AddrPort, via netip.Addr) bool {
	c := s.four
	if to.Addr().Is6() {
		c = s.six
	}
	if c.UDPConn == nil {
		return false
	}
	err := c.write(b, to, via)
	if err != nil && via.IsValid() {
		err = c.write(b, to, netip.Addr{}) // the address is gone since
	}
	return err == nil
}

// query is one server being asked.
type query struct {
	server netip.AddrPort
	sent   [len(gatherSchedule)]time.Time
	asked  int
	done   bool
}

// Gather asks the servers, all at once and repeatedly, how they see this
// socket. It returns when all have answered or cannot be reached, shortly
// after two answers, or after 2.3 seconds. At most eight servers are asked.
func (s *Socket) Gather(ctx context.Context, servers []netip.AddrPort) []discovery.Reflexion {
	var session [8]byte
	_, _ = rand.Read(session[:]) // never fails
	start := time.Now()
	end := start.Add(gatherTime)
	var queries []*query
	for _, server := range servers[:min(len(servers), maxServers)] {
		queries = append(queries, &query{server: server})
	}
	var answers []discovery.Reflexion
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next, open := end, 0
		for i, q := range queries {
			for !q.done && q.asked < len(gatherSchedule) && !time.Now().Before(start.Add(gatherSchedule[q.asked])) {
				m := message{class: stun.ClassRequest, tx: gatherTx(session, i, q.asked), padded: true}
				q.sent[q.asked] = time.Now()
				q.asked++
				q.done = !s.send(m.encode(s.key), q.server, netip.Addr{})
			}
			if q.done {
				continue
			}
			open++
			if q.asked < len(gatherSchedule) {
				if at := start.Add(gatherSchedule[q.asked]); at.Before(next) {
					next = at
				}
			}
		}
		if open == 0 || !time.Now().Before(end) {
			return answers
		}
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return answers
		case <-s.closed:
			return answers
		case <-timer.C:
		case p := <-s.in:
			if r, ok := s.reflexion(p, session, queries); ok {
				answers = append(answers, r)
				if soon := p.at.Add(patience); len(answers) >= enough && soon.Before(end) {
					end = soon
				}
			}
		}
	}
}

// gatherTx numbers the requests, so that an answer tells which server and
// which repetition it belongs to.
func gatherTx(session [8]byte, server, try int) discovery.Tx {
	return discovery.Tx(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(session[:len(session):len(session)], uint16(server)), uint16(try)))
}

func (s *Socket) reflexion(p packet, session [8]byte, queries []*query) (discovery.Reflexion, bool) {
	m, err := decode(p.data, func(m message) []byte {
		if m.class != stun.ClassSuccessResponse {
			return nil
		}
		return s.key
	})
	if err != nil || [8]byte(m.tx[:8]) != session || !m.mapped.IsValid() {
		return discovery.Reflexion{}, false
	}
	i, try := int(binary.BigEndian.Uint16(m.tx[8:])), int(binary.BigEndian.Uint16(m.tx[10:]))
	if i >= len(queries) || try >= queries[i].asked || queries[i].done || queries[i].server != p.from {
		return discovery.Reflexion{}, false
	}
	queries[i].done = true
	return discovery.Reflexion{Server: p.from, Mapped: m.mapped, RTT: p.at.Sub(queries[i].sent[try])}, true
}
