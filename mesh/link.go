package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// An Uplink is one local way to the internet: an interface with a default
// route. Everything that leaves by it carries its firewall mark, which
// selects a routing table that holds this uplink's default route and nothing
// else, so a tunnel can never leave by the wrong one.
type Uplink struct {
	Name      string       // unique on the node; the interface's name unless configured
	Slot      uint8        // 1 to MaxUplinks; selects mark and table
	Interface string       // kernel device
	Up        bool         // administratively up and with carrier
	Addrs     []netip.Addr // global unicast addresses on the interface, sorted
	Gateway4  netip.Addr   // invalid: no IPv4 default route, or a device route
	Gateway6  netip.Addr
	Default4  bool // an IPv4 default route leads out here
	Default6  bool
	MTU       int  // of the interface, bytes
	Metered   bool // carries traffic last
	Bias      Cost // operator's addition to the cost of every link on it
	// ProbeBudget bounds what the probes of all links on it send, bit/s.
	ProbeBudget int
}

// Mark is the firewall mark of what leaves by the uplink.
func (u Uplink) Mark() uint32 { return MarkBase + uint32(u.Slot) }

// Table is the routing table that holds only this uplink's default route.
func (u Uplink) Table() int { return UplinkTableBase + int(u.Slot) }

// Equal reports whether u and v say the same.
func (u Uplink) Equal(v Uplink) bool {
	a, b := u.Addrs, v.Addrs
	u.Addrs, v.Addrs = nil, nil
	return slices.Equal(a, b) && uplinkKey(u) == uplinkKey(v)
}

type uplinkComparable struct {
	name, iface        string
	slot               uint8
	up, d4, d6, meters bool
	gw4, gw6           netip.Addr
	mtu, budget        int
	bias               Cost
}

func uplinkKey(u Uplink) uplinkComparable {
	return uplinkComparable{u.Name, u.Interface, u.Slot, u.Up, u.Default4, u.Default6, u.Metered, u.Gateway4, u.Gateway6, u.MTU, u.ProbeBudget, u.Bias}
}

// A LinkID names a link: one WireGuard tunnel to a neighbour from one local
// uplink to one of its uplinks. The set of links to one neighbour is the
// adjacency.
type LinkID struct {
	Peer   NodeID `json:"peer"`
	Local  string `json:"local"`  // name of our uplink
	Remote string `json:"remote"` // name of theirs
	// Lane is 0 or 1: two tunnels stand between the same uplinks while one takes
	// over from the other.
	Lane uint8 `json:"lane,omitempty"`
}

// Compare orders links by neighbour, then local, then remote uplink, then lane.
func (l LinkID) Compare(m LinkID) int {
	return cmp.Or(l.Peer.Compare(m.Peer), strings.Compare(l.Local, m.Local), strings.Compare(l.Remote, m.Remote), cmp.Compare(l.Lane, m.Lane))
}

// Beside is the other lane between the same uplinks.
func (l LinkID) Beside() LinkID {
	l.Lane = 1 - l.Lane
	return l
}

// Back is the link as the far end, whose neighbour is self, calls it.
func (l LinkID) Back(self NodeID) LinkID {
	return LinkID{Peer: self, Local: l.Remote, Remote: l.Local, Lane: l.Lane}
}

// String gives peer/local>remote, for logs.
func (l LinkID) String() string {
	s := l.Peer.String() + "/" + l.Local + ">" + l.Remote
	if l.Lane > 0 {
		s += "'"
	}
	return s
}

// A Cost is a path metric: one-way delay and penalties in microseconds.
// Integer, so that every node computes the same sums.
type Cost uint32

// Infinite is the cost of no path. Sums saturate there.
const Infinite Cost = 1<<31 - 1

// Add is c + d, saturating at Infinite.
func (c Cost) Add(d Cost) Cost {
	if c >= Infinite || d >= Infinite || c+d >= Infinite {
		return Infinite
	}
	return c + d
}

// Duration gives the cost as the delay that it stands for.
func (c Cost) Duration() time.Duration { return time.Duration(c) * time.Microsecond }
