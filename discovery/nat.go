package discovery

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// A NAT says what an uplink's way to the internet does to the source of UDP
// packets of one address family, in the words of RFC 4787. Only the mapping is told apart, because
// it decides which pairs can connect; the filter is met by sending first.
type NAT uint8

const (
	// NATUnknown: too few answers to tell.
	NATUnknown NAT = iota
	// NATNone: packets arrive with the address and port they left with. A
	// stateful firewall may still stand in between.
	NATNone
	// NATEasy maps a local port to one outside port whatever the destination
	// (endpoint-independent), and keeps its number.
	NATEasy
	// NATEasyPortChanged is endpoint-independent with another port number.
	NATEasyPortChanged
	// NATSymmetric maps each destination to another outside port
	// (address- or address-and-port-dependent).
	NATSymmetric
	// NATBlocked: no server answered; UDP does not pass.
	NATBlocked
	// NATAbsent: there is no way out by this address family.
	NATAbsent

	natEnd
)

var natNames = [natEnd]string{"unknown", "none", "easy", "easy-port-changed", "symmetric", "blocked", "absent"}

// String gives the kind in one word, as documents of the API hold it.
func (n NAT) String() string {
	if n < natEnd {
		return natNames[n]
	}
	return fmt.Sprintf("NAT(%d)", uint8(n))
}

// MarshalText implements encoding.TextMarshaler.
func (n NAT) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler for what String writes.
func (n *NAT) UnmarshalText(b []byte) error {
	i := slices.Index(natNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("%w: NAT kind %q", ErrMalformed, b)
	}
	*n = NAT(i)
	return nil
}

// A Reflexion is one STUN server's answer: how it saw a socket of ours.
type Reflexion struct {
	Server netip.AddrPort
	Mapped netip.AddrPort
	RTT    time.Duration
}

// Classify tells what kind of NAT one socket is behind from the answers of
// servers of one address family. local are the host's addresses on the uplink and
// port the socket's; asked are all servers that were asked, answered or not.
//
// Two answers that agree are enough to call a NAT easy, whatever a third says: no
// other kind gives two destinations the same port, and one server may lie. That
// is all the mapping takes, the dual-address server of RFC 5780 is not needed. Of
// a mesh with one public node, two ports of that node will do: what they cannot
// tell is the rare mapping by address alone (RFC 4787 4.1).
func Classify(local []netip.Addr, port uint16, asked []netip.AddrPort, answers []Reflexion) NAT {
	if len(answers) == 0 {
		if len(asked) >= 2 {
			return NATBlocked
		}
		return NATUnknown
	}
	mine := func(r Reflexion) bool { return r.Mapped.Port() == port && slices.Contains(local, r.Mapped.Addr()) }
	for i, a := range answers {
		for _, b := range answers[:i] {
			switch {
			case a.Mapped != b.Mapped || a.Server == b.Server:
			case mine(a):
				return NATNone
			case a.Mapped.Port() == port:
				return NATEasy
			default:
				return NATEasyPortChanged
			}
		}
	}
	switch {
	case slices.ContainsFunc(answers, mine):
		return NATNone
	case len(answers) == 1:
		return NATUnknown
	}
	return NATSymmetric
}

// Agreed gives the endpoints that may be believed to be ours: those with an
// address that two servers saw, or all where only one answered. A single server
// could aim our peers' checks at somebody.
func Agreed(answers []Reflexion) []netip.AddrPort {
	var list []netip.AddrPort
	for _, a := range answers {
		seconded := !slices.ContainsFunc(answers, func(b Reflexion) bool { return b.Server.Addr() != a.Server.Addr() && sameFamily(a.Server, b.Server) }) ||
			slices.ContainsFunc(answers, func(b Reflexion) bool {
				return b.Server.Addr() != a.Server.Addr() && b.Mapped.Addr() == a.Mapped.Addr()
			})
		if seconded && Usable(a.Mapped) == nil && !slices.Contains(list, a.Mapped) {
			list = append(list, a.Mapped)
		}
	}
	return list
}

func sameFamily(a, b netip.AddrPort) bool { return a.Addr().Is4() == b.Addr().Is4() }

// An Expectation says whether two uplinks can have a direct path.
type Expectation uint8

const (
	// Never: what is known of the two rules it out.
	Never Expectation = iota
	// Perhaps: it depends on a filter that cannot be seen from outside.
	Perhaps
	// Direct: it should work.
	Direct
)

// Expect tells whether two uplinks can be expected to find a direct path, and why
// not. It errs on the side of trying: unknown kinds may work, and two ends behind
// one outside address may be neighbours.
func Expect(a, b Uplink) (e Expectation, why string) {
	better := func(f Expectation, reason string) {
		if f >= e {
			e, why = f, reason
		}
	}
	better(Never, "one end has IPv4 only, the other IPv6 only")
	for _, nats := range [][2]NAT{
		{a.forwarded(a.NAT, netip.Addr.Is4), b.forwarded(b.NAT, netip.Addr.Is4)},
		{a.forwarded(a.NAT6, netip.Addr.Is6), b.forwarded(b.NAT6, netip.Addr.Is6)},
	} {
		if nats[0] != NATAbsent && nats[1] != NATAbsent {
			better(expect(nats[0], nats[1]))
		}
	}
	if e < Perhaps && shareOutside(a, b) {
		return Perhaps, "both ends are behind one outside address: it works if they are in one network, or their NAT lets them meet"
	}
	if e == Direct {
		why = ""
	}
	return e, why
}

// forwarded is the kind of NAT of a family as those see it who begin: none, where
// packets are let in unasked.
func (u Uplink) forwarded(n NAT, family func(netip.Addr) bool) NAT {
	if n != NATBlocked && n != NATAbsent && slices.ContainsFunc(u.Forwarded, family) {
		return NATNone
	}
	return n
}

func expect(a, b NAT) (Expectation, string) {
	hard := func(n NAT) bool { return n == NATSymmetric }
	easy := func(n NAT) bool { return n == NATEasy || n == NATEasyPortChanged }
	switch {
	case a == NATBlocked || b == NATBlocked:
		return Never, "UDP does not pass at one end"
	case hard(a) && hard(b):
		return Never, "both ends are behind symmetric NATs"
	case hard(a) && easy(b), easy(a) && hard(b):
		return Perhaps, "one end is behind a symmetric NAT: it works only if the other end's NAT does not filter by port"
	case hard(a) || hard(b):
		return Direct, "one end is behind a symmetric NAT: it works only if the other end's firewall does not filter by port"
	}
	return Direct, ""
}

func shareOutside(a, b Uplink) bool {
	return slices.ContainsFunc(a.Reflexive, func(x netip.AddrPort) bool {
		return slices.ContainsFunc(b.Reflexive, func(y netip.AddrPort) bool { return x.Addr() == y.Addr() })
	})
}
