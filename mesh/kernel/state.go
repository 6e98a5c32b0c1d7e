package kernel

import (
	"fmt"
	"net/netip"

	"guywire/mesh"
)

// A State is everything of ours in the kernel. Slices are in the order of
// Sort and hold no duplicates, so equal states are deeply equal.
type State struct {
	// Revision numbers desired states; observed states have 0.
	Revision uint64
	// Complete says that a desired state is all that is wanted. Before the
	// first such state (store view loaded, routes computed) nothing that an
	// earlier run left is deleted, and its filter is only widened.
	Complete bool
	// FilterComplete says that Filter is all that is wanted, although the rest
	// may not be: it comes into force as it is, holds and sources alike, and
	// its new holds ahead of everything that is added. A Complete state needs
	// no FilterComplete.
	FilterComplete bool
	// Revoked are peers whose tunnels go before anything is added, without
	// regard to the routes that still use them. Desired states only.
	Revoked  []mesh.WireGuardKey
	Tunnels  []Tunnel
	Addrs    []netip.Prefix // overlay addresses, on the loopback device
	NextHops []NextHop
	// Routes are shared by successive desired states between which they do
	// not change: then none of them is looked at, however many there are.
	Routes  []Route
	Rules   []Rule
	Filter  Filter
	Sysctls []Sysctl
}

// A Tunnel is one WireGuard device: one link, one peer.
type Tunnel struct {
	Name string // device, at most 15 bytes, begins with mesh.InterfacePrefix
	// Alias is the device's alias: the ownership mark, the link, the key
	// epoch and the generation of the endpoint, as core.FormatAlias writes it.
	// A changed alias says that ListenPort and Endpoint are to be set anew.
	Alias      string
	Epoch      mesh.Epoch        // which of our private keys
	PublicKey  mesh.WireGuardKey // of that private key
	ListenPort uint16
	Mark       uint32
	MTU        int
	LinkLocal  netip.Addr // our fe80:: address on it, /64; observed as invalid while the device is down, so that a down device differs from any wanted one
	// Overlay4 is our IPv4 overlay address, which every tunnel has as well, as
	// a /32: on a device without any IPv4 address the kernel's loose reverse
	// path filter is as strict as the strict one (__fib_validate_source), and
	// paths of a mesh are asymmetric. Invalid: none.
	Overlay4 netip.Addr
	Peer     mesh.WireGuardKey
	// Endpoint is where the peer was proven to be. WireGuard follows the peer
	// when it roams, so an observed endpoint that differs is no reason to
	// change anything: it is compared only through Alias.
	Endpoint  netip.AddrPort
	Keepalive uint16 // seconds, 0: none
}

// A NextHop is a kernel next-hop object: a tunnel device (no gateway, IPv6
// family, serves both families), or a group of such. An id should keep its
// meaning, one device, or legs out of one set: else routes may have to be
// interrupted, see the package comment. A device may have several next hops.
type NextHop struct {
	ID      uint32
	Device  string   // set for a single next hop
	Members []Member // set for a group, sorted by id
}

// A Member is one leg of a group.
type Member struct {
	ID     uint32
	Weight uint8 // 1 to 255, relative share of flows
}

// RouteKind says what a route does with a packet.
type RouteKind uint8

// Route kinds.
const (
	Forward     RouteKind = iota // send to NextHop, or to Device/Gateway
	Throw                        // leave our table, let the next rule decide: a locally connected prefix always wins
	Unreachable                  // refuse: a marked packet must not fall through to another uplink
)

// A Route is one route of ours, known by Table, Prefix and Metric.
type Route struct {
	Table   int
	Prefix  netip.Prefix
	Metric  uint32
	Kind    RouteKind
	NextHop uint32     // next-hop object; 0: Device and Gateway say where
	Device  string     // uplink tables only
	Gateway netip.Addr // uplink tables only; invalid: on link
	Source  netip.Addr // preferred source of local traffic; invalid: kernel chooses
	MTU     int        // 0: the device's
}

// A Rule is a policy routing rule, in both families.
type Rule struct {
	Priority int
	Mark     uint32 // 0: any packet; else matched with mesh.MarkMask
	Table    int
}

// A Filter is the content of our nft table. The zero Filter is no table.
// Each list of prefixes is in the form that Aggregate gives.
type Filter struct {
	// Own are the addresses and prefixes of this node: never a valid source
	// on a tunnel. An anycast prefix of several nodes does not belong here.
	Own []netip.Prefix
	// Mesh are the pools and granted prefixes of the whole mesh. What is in
	// Mesh and not in Own is spoofed when it enters by anything but a tunnel.
	// A prefix connected here without being Own must be left out.
	Mesh []netip.Prefix
	// Links holds the rules of each tunnel. A packet from a gw- device that
	// is not listed is dropped.
	Links []FilterLink
	// Foreign is set in observed states only: the table is not known to be
	// what this process wrote (an earlier run did, or others edited it), so
	// it has to be set anew even if its content looks right.
	Foreign bool
}

// A FilterLink is what may arrive over one tunnel.
type FilterLink struct {
	Device  string
	Sources []netip.Prefix // what else arrives is dropped and counted
	Held    bool           // the neighbour is held down: transit from it is dropped (routing.md 5.4 rule 7)
}

// A Sysctl is one setting under /proc/sys, by slash path such as
// "net/ipv4/ip_forward". The value before our first change is kept by the
// backend and restored by teardown.
type Sysctl struct {
	Path  string
	Value string
}

// String gives the route on one line, for logs and tests.
func (r Route) String() string {
	s := fmt.Sprintf("%s table %d", r.Prefix, r.Table)
	switch {
	case r.Kind == Throw:
		s += " throw"
	case r.Kind == Unreachable:
		s += " unreachable"
	case r.NextHop != 0:
		s += fmt.Sprintf(" nhid %#x", r.NextHop)
	default:
		s += " dev " + r.Device
		if r.Gateway.IsValid() {
			s += " via " + r.Gateway.String()
		}
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	if r.Source.IsValid() {
		s += " src " + r.Source.String()
	}
	if r.MTU != 0 {
		s += fmt.Sprintf(" mtu %d", r.MTU)
	}
	return s
}

// String gives the next hop on one line, for logs and tests.
func (n NextHop) String() string {
	s := fmt.Sprintf("%#x", n.ID)
	if n.Device != "" {
		return s + " dev " + n.Device
	}
	for _, m := range n.Members {
		s += fmt.Sprintf(" %#x*%d", m.ID, m.Weight)
	}
	return s
}
