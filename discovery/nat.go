package discovery

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// A NAT says what an uplink's way to the internet does to the source of UDP
// packets, in the words of RFC 4787. Only the mapping is told apart, because
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

	natEnd
)

var natNames = [natEnd]string{"unknown", "none", "easy", "easy, port changed", "symmetric", "UDP blocked"}

// String gives the kind in the operator's words.
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

// Classify tells the kind of NAT that one socket is behind from the answers of
// several servers. local are the host's addresses on the uplink and port the
// socket's; asked are all servers that were asked, answered or not.
//
// Address translation is a matter of IPv4, so IPv6 is judged only when no IPv4
// server was asked. Two servers with different addresses are needed to call a
// NAT easy: that is all it takes, the dual-address server of RFC 5780 is not
// needed for the mapping.
func Classify(local []netip.Addr, port uint16, asked []netip.AddrPort, answers []Reflexion) NAT {
	four := slices.ContainsFunc(asked, func(s netip.AddrPort) bool { return s.Addr().Is4() })
	servers := 0
	for _, s := range asked {
		if s.Addr().Is4() == four {
			servers++
		}
	}
	var seen []Reflexion
	for _, a := range answers {
		if a.Mapped.Addr().Is4() == four && a.Server.Addr().Is4() == four {
			seen = append(seen, a)
		}
	}
	if len(seen) == 0 {
		if servers >= 2 {
			return NATBlocked
		}
		return NATUnknown
	}
	first := seen[0]
	other := false // another server than the first one's answered too
	for _, a := range seen[1:] {
		if a.Mapped != first.Mapped {
			return NATSymmetric
		}
		other = other || a.Server.Addr() != first.Server.Addr()
	}
	switch {
	case first.Mapped.Port() == port && slices.Contains(local, first.Mapped.Addr()):
		return NATNone
	case !other:
		return NATUnknown
	case first.Mapped.Port() == port:
		return NATEasy
	default:
		return NATEasyPortChanged
	}
}

// CanConnect tells whether two uplinks can be expected to find a direct path,
// and why not. It errs on the side of trying: unknown kinds may work.
func CanConnect(a, b NAT) (ok bool, reason string) {
	hard := func(n NAT) bool { return n == NATSymmetric }
	switch {
	case a == NATBlocked || b == NATBlocked:
		return false, "UDP is blocked at one end"
	case hard(a) && hard(b):
		return false, "both ends are behind symmetric NATs"
	case hard(a) && b == NATEasyPortChanged, hard(b) && a == NATEasyPortChanged, hard(a) && b == NATEasy, hard(b) && a == NATEasy:
		return true, "one end is behind a symmetric NAT: works only if the other end's NAT does not filter by port"
	}
	return true, ""
}
