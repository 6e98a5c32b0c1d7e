// Package nattest models NAT boxes for tests: what they do to a packet depends only
// on the packets that they have seen.
package nattest

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

// A Filter says which packets from outside reach a mapping (RFC 4787, section 5).
type Filter int

// What a Filter asks for: a packet has left for the sender's address and port, for
// its address, or nothing.
const (
	ByPort Filter = iota
	ByAddress
	None
)

// A Box stands between hosts and the internet.
type Box struct {
	Public netip.Addr
	// Symmetric: each destination sees another port (address- and port-dependent).
	Symmetric bool
	// Keep: the outside port is the inside one wherever it is free towards that
	// destination, as Linux does. Without, it is another one.
	Keep bool
	// Random chooses the outside ports that are not kept, from 1024 on; nil: they are
	// counted up.
	Random *rand.Rand
	// Answers: packets from outside that nobody waits for reach the box itself, which
	// remembers them: towards their sender, that port is taken from then on (bug B40).
	Answers  bool
	Filter   Filter
	Firewall bool // no translation, filter only
	// Life is how long an entry lives after the last packet from inside; zero: for
	// ever. While its packets lie within two seconds, as of a single question, it is
	// at most Young, unless that is zero. Now is the time, by the test's hand.
	Life, Young time.Duration
	Now         time.Time

	next  uint16
	out   map[pair]netip.AddrPort           // inside, destination (none when independent of it)
	in    map[netip.AddrPort]netip.AddrPort // outside → inside
	sent  map[pair]span                     // outside, destination
	taken map[pair]bool                     // outside, destination
}

type pair struct{ a, b netip.AddrPort }

// A span is when packets first and last left.
type span struct{ first, last time.Time }

const youth = 2 * time.Second

func (b *Box) lives(p pair) bool {
	s, ok := b.sent[p]
	life := b.Life
	if b.Young > 0 && s.last.Sub(s.first) <= youth {
		life = b.Young
	}
	return ok && (life == 0 || b.Now.Sub(s.last) <= life)
}

// expire forgets the mappings by which nothing leaves any more.
func (b *Box) expire() {
	if b.Life == 0 && b.Young == 0 {
		return
	}
	for p := range b.sent {
		if !b.lives(p) {
			delete(b.sent, p)
		}
	}
	used := map[netip.AddrPort]bool{}
	for p := range b.sent {
		used[p.a] = true
	}
	for p, outside := range b.out {
		if !used[outside] {
			delete(b.out, p)
			delete(b.in, outside)
		}
	}
}

// New makes a box with an outside address that keeps ports and filters by port.
func New(public netip.Addr) *Box {
	return &Box{
		Public: public, Keep: true, next: 40000,
		out: map[pair]netip.AddrPort{}, in: map[netip.AddrPort]netip.AddrPort{}, sent: map[pair]span{}, taken: map[pair]bool{},
	}
}

// Out gives the source with which a packet leaves.
func (b *Box) Out(src, dst netip.AddrPort) netip.AddrPort {
	b.expire()
	outside := src
	if !b.Firewall {
		outside = b.mapping(src, dst)
	}
	b.in[outside] = src
	s, ok := b.sent[pair{outside, dst}]
	if !ok {
		s.first = b.Now
	}
	s.last = b.Now
	b.sent[pair{outside, dst}] = s
	return outside
}

func (b *Box) mapping(src, dst netip.AddrPort) netip.AddrPort {
	if own, ok := b.out[pair{src, dst}]; ok {
		return own // once given, it stays
	}
	shared := pair{src, netip.AddrPort{}}
	outside, ok := b.out[shared]
	if !ok || b.Symmetric {
		port := src.Port()
		if !b.Keep || b.Symmetric {
			port = b.free()
		}
		outside = netip.AddrPortFrom(b.Public, port)
		if !b.Symmetric {
			b.out[shared] = outside
		}
	}
	if b.taken[pair{outside, dst}] {
		outside = netip.AddrPortFrom(b.Public, b.free())
	}
	b.out[pair{src, dst}] = outside
	return outside
}

// free chooses an outside port that nobody has.
func (b *Box) free() uint16 {
	for {
		b.next++
		port := b.next
		if b.Random != nil {
			port = uint16(1024 + b.Random.IntN(1<<16-1024))
		}
		if _, used := b.in[netip.AddrPortFrom(b.Public, port)]; !used || b.Random == nil {
			return port
		}
	}
}

// In gives the host that a packet from outside reaches.
func (b *Box) In(from, to netip.AddrPort) (inside netip.AddrPort, ok bool) {
	b.expire()
	inside, ok = b.in[to]
	if b.Firewall && b.Filter == None {
		inside, ok = to, true // nothing stands in the way
	}
	if ok && b.passes(from, to) {
		return inside, true
	}
	if b.Answers && to.Addr() == b.Public && !b.lives(pair{to, from}) {
		b.taken[pair{to, from}] = true
	}
	return netip.AddrPort{}, false
}

func (b *Box) passes(from, to netip.AddrPort) bool {
	switch b.Filter {
	case None:
		return true
	case ByAddress:
		for p := range b.sent {
			if p.a == to && p.b.Addr() == from.Addr() {
				return true
			}
		}
		return false
	}
	return b.lives(pair{to, from})
}

// Forget drops all mappings, as a reboot does; new ones have other ports.
func (b *Box) Forget() {
	clear(b.out)
	clear(b.in)
	clear(b.sent)
	clear(b.taken)
	b.next += 1000
	b.Keep = false
}
