package control

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"guywire/mesh"
	"guywire/mesh/keyring"
	"guywire/store"
	"guywire/store/disk"
	"guywire/store/raftstore"
)

// Config is what the control plane of a node needs. The owner of State and
// Ring closes them after the Plane.
type Config struct {
	State *disk.Dir // the node's state directory, open and locked
	Ring  *keyring.Ring
	// Listen is host:port of the control port, ":8686" unless configured.
	Listen string
	// Also are further addresses of the control port, and Divert takes what is
	// for others on all of them, both as in package transport.
	Also   []string
	Divert map[string]func(ctx context.Context, conn *net.TCPConn)
	// Advertise gives addresses where the control port may be reachable from
	// outside, those that the operator declared first. Other nodes check them.
	// nil: only the address that others see is tried.
	Advertise func() []netip.AddrPort
	// Overlay gives a node's control addresses inside the mesh; nil: its own
	// two addresses with mesh.ControlPort.
	Overlay func(store.Node) []netip.AddrPort
	// AskSTUN asks STUN servers, with what members authenticate by, and gives those
	// that answered; nil: others' servers are not measured here.
	AskSTUN func(ctx context.Context, servers []netip.AddrPort, key []byte) ([]netip.AddrPort, error)
	// Timing of the voters; zero: raftstore.WAN.
	Timing raftstore.Timing
	Logger *slog.Logger
	// Listener replaces the port when it is not nil, and Network what connects
	// to host:port, as in package transport: a test's network.
	Listener net.Listener
	Network  func(ctx context.Context, address string) (net.Conn, error)

	now   func() time.Time      // tests; nil: time.Now
	route func(netip.Addr) bool // tests; nil: the kernel is asked
}

func (c Config) id() mesh.NodeID { return c.Ring.Identity().NodeID() }

func (c Config) advertise() []netip.AddrPort {
	if c.Advertise == nil {
		return nil
	}
	all := c.Advertise()
	return all[:min(len(all), maxCandidates)]
}

func (c Config) overlay(n store.Node) []netip.AddrPort {
	if c.Overlay != nil {
		return c.Overlay(n)
	}
	return []netip.AddrPort{
		netip.AddrPortFrom(n.Addr4, mesh.ControlPort),
		netip.AddrPortFrom(n.Addr6, mesh.ControlPort),
	}
}

// routed reports whether this machine has a way to an address at all.
func (c Config) routed(a netip.Addr) bool {
	switch {
	case c.route != nil:
		return c.route(a)
	case c.Network != nil:
		return true
	}
	conn, err := net.Dial("udp", netip.AddrPortFrom(a, mesh.ControlPort).String()) // sends nothing
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
