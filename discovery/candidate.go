package discovery

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// A CandidateKind says how an address was learned.
type CandidateKind uint8

const (
	// CandidateHost is an address of the host's own interface.
	CandidateHost CandidateKind = iota + 1
	// CandidateDeclared was given by the operator.
	CandidateDeclared
	// CandidateReflexive was seen by a STUN server.
	CandidateReflexive
	// CandidateMapped was opened by the gateway at our request.
	CandidateMapped
	// CandidatePeerReflexive was seen as the source of an authenticated check;
	// it is learned, never offered.
	CandidatePeerReflexive

	candidateEnd
)

var candidateNames = [candidateEnd]string{"", "host", "declared", "reflexive", "mapped", "peer-reflexive"}

// String gives the kind in the words of RFC 8445.
func (k CandidateKind) String() string {
	if k > 0 && k < candidateEnd {
		return candidateNames[k]
	}
	return fmt.Sprintf("CandidateKind(%d)", uint8(k))
}

// A Candidate is an endpoint that might work.
type Candidate struct {
	Kind CandidateKind
	Addr netip.AddrPort
}

// Usable reports why a must not be sent to: it is no address of one host on
// the internet or on a local network. Private addresses are usable, for two
// sites in one LAN.
func Usable(a netip.AddrPort) error {
	ip := a.Addr()
	switch {
	case !ip.IsValid():
		return fmt.Errorf("%w: no address", ErrMalformed)
	case a.Port() == 0:
		return fmt.Errorf("%w: %s has port 0", ErrMalformed, a)
	case ip.Zone() != "" || ip.Is4In6():
		return fmt.Errorf("%w: %s is not a plain address", ErrMalformed, a)
	case !ip.IsGlobalUnicast(), ip.Is4() && (ip.As4()[0] == 0 || ip.As4()[0] >= 240):
		// IsGlobalUnicast is true of private addresses, false of loopback,
		// link-local, multicast, unspecified and broadcast ones.
		return fmt.Errorf("%w: %s is not a unicast address", ErrMalformed, a)
	}
	return nil
}

// A PathClass orders ways to reach the other end by how short and steady they are
// likely to be; lower is better. Zero stands for no class.
type PathClass uint8

const (
	// ClassLAN: a private address that answers is in the same network.
	ClassLAN PathClass = iota + 1
	// ClassDirect: an address of the other host itself.
	ClassDirect
	// ClassTranslated: what a NAT shows.
	ClassTranslated
	// ClassCarrier: no UDP at all, but a stream that carries the packets.
	ClassCarrier

	classEnd
)

var classNames = [classEnd]string{"", "lan", "direct", "translated", "carrier"}

// String gives the class in one word, as documents of the API hold it; nothing for
// zero.
func (c PathClass) String() string {
	if c < classEnd {
		return classNames[c]
	}
	return fmt.Sprintf("PathClass(%d)", uint8(c))
}

// Class says how good an endpoint is that answers.
func (c Candidate) Class() PathClass {
	switch {
	case c.Kind == CandidateHost && !Global(c.Addr.Addr()):
		return ClassLAN
	case c.Kind == CandidateHost, c.Kind == CandidateDeclared:
		return ClassDirect
	default:
		return ClassTranslated
	}
}

var sharedSpace = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598, carrier-grade NAT

// Global reports whether an address means the same host everywhere: it is neither
// private (RFC 1918, RFC 4193) nor behind a carrier's NAT (RFC 6598).
func Global(a netip.Addr) bool { return !a.IsPrivate() && !sharedSpace.Contains(a) }

// Rank gives the candidates without duplicates, best first: same LAN, then
// direct host addresses, then what NATs show; IPv6 before IPv4 within a class.
// Of an address known in several ways the best kind stays. The argument is not
// changed.
func Rank(list []Candidate) []Candidate {
	ranked := slices.Clone(list)
	slices.SortFunc(ranked, func(a, b Candidate) int {
		return cmp.Or(
			cmp.Compare(a.Class(), b.Class()),
			-cmp.Compare(a.Addr.Addr().BitLen(), b.Addr.Addr().BitLen()),
			cmp.Compare(a.Kind, b.Kind),
			a.Addr.Compare(b.Addr),
		)
	})
	seen := make(map[netip.AddrPort]bool, len(ranked))
	return slices.DeleteFunc(ranked, func(c Candidate) bool {
		dup := seen[c.Addr]
		seen[c.Addr] = true
		return dup
	})
}

// Choose ranks the candidates and keeps at most limit of them, taking from
// every class in turn, so that a host with many addresses still offers what
// its NAT shows.
func Choose(list []Candidate, limit int) []Candidate {
	ranked := Rank(list)
	var classes [classEnd][]Candidate
	for _, c := range ranked {
		classes[c.Class()] = append(classes[c.Class()], c)
	}
	var chosen []Candidate
	for i := 0; len(chosen) < min(limit, len(ranked)); i++ {
		for _, class := range classes {
			if i < len(class) && len(chosen) < limit {
				chosen = append(chosen, class[i])
			}
		}
	}
	return Rank(chosen)
}
