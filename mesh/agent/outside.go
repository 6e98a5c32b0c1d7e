package agent

import (
	"context"
	"net"
	"net/netip"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/core"
	"guywire/mesh/kernel"
	"guywire/mesh/keyring"
	"guywire/mesh/rendezvous"
	"guywire/store/disk"
)

// Outside is what the agent needs of the machine. Each function opens one
// adapter; what it returns is closed by the agent.
type Outside struct {
	// Check says why this process cannot run a mesh here (privileges,
	// devices), with the next step; nil: it can.
	Check func() error
	// Observe reads the machine's uplinks; Watch calls changed when it may
	// look different, until ctx ends.
	Observe func(ctx context.Context) (core.Host, error)
	Watch   func(ctx context.Context, changed func()) error
	// Kernel opens the backends of the reconciler.
	Kernel func(KernelConfig) (Kernel, error)
	// Probes opens the in-tunnel datagram socket.
	Probes func(source netip.Addr) (Probes, error)
	// Echoes opens the ICMP sockets; answer is called for replies on links.
	Echoes func(answer func(ifindex int, at time.Time)) (Echoes, error)
	// Gossip makes this node's gossip member.
	Gossip func(GossipConfig) (Gossip, error)
	// Stun opens a STUN server for members who know one of the keys, which may
	// change, and gives what runs it. Socket opens a UDP port for a link attempt.
	Stun   func(addrs []netip.AddrPort, keys func() [][]byte) (run func(context.Context) error, err error)
	Socket func(mark uint32, first, last uint16, key []byte) (rendezvous.Socket, error)
	// Lookup gives the addresses of a DNS name.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)
	// PortMapper asks a gateway, by a local address of ours and with the uplink's mark,
	// to let packets in. The secret tells it that we are the same over restarts.
	PortMapper func(gateway, local netip.Addr, mark uint32, secret [32]byte) PortMapper
	// HandOver gives the data plane a copy of a TCP connection of which nothing
	// has been read, and whose far end wants a carrier; nil: none can be taken.
	HandOver func(ctx context.Context, conn *net.TCPConn) error
	// Devices gives the numbers of all network devices by name.
	Devices func() (map[string]int, error)
}

// KernelConfig is what the kernel backends need to know of the node.
type KernelConfig struct {
	State *disk.Dir
	Ring  *keyring.Ring
	Pools []netip.Prefix // overlay pools: addresses inside are ours
}

// A Kernel is the machine's kernel and data plane, seen by the reconciler.
type Kernel struct {
	Backends [kernel.Parts]kernel.Backend
	// Kind is "kernel" or "userspace".
	Kind func() string
	// Carriers makes the streams that links go through where no UDP passes.
	Carriers Carriers
	// Counters reads the tunnel devices' bytes; it is cheap, and one goroutine's.
	Counters func() (map[string]core.Count, error)
	// Stats asks the tunnels for their far ends and totals.
	Stats func(ctx context.Context) (map[string]core.Traffic, error)
	// Lookup asks the kernel by which device it would send to an address.
	Lookup func(ctx context.Context, to netip.Addr) (Lookup, error)
	// Watch calls changed when our objects may have been changed by others.
	Watch func(ctx context.Context, changed func(...kernel.Part)) error
	// Close releases the adapters; the kernel's objects stay.
	Close func() error
	// Shutdown ends the data-plane process, after a teardown.
	Shutdown func(ctx context.Context) error
}

// A Lookup is the kernel's answer on a destination.
type Lookup struct {
	Prefix netip.Prefix // that matched; invalid: not known
	Device string       // empty: local delivery
	Text   string       // as a person would read it
	Local  bool
}

// Carriers are what the data plane carries in streams.
type Carriers interface {
	rendezvous.Carriers
	// List gives those that there are.
	List(ctx context.Context) ([]discovery.AttemptID, error)
}

// A PortMapper keeps the ports that one gateway lets in.
type PortMapper interface {
	// Probe finds out whether the gateway does so at all, Protocol gives by what;
	// empty: it does not.
	Probe(ctx context.Context) error
	Protocol() string
	// Map lets a UDP port in, Release no more; Renew goes on with what is due, or all.
	Map(ctx context.Context, port uint16) (netip.AddrPort, error)
	Release(ctx context.Context, port uint16) error
	Renew(ctx context.Context, all bool) error
	// Mapped gives the ports that are let in, and where.
	Mapped() map[uint16]netip.AddrPort
}

// Probes carries datagrams inside the tunnels.
type Probes interface {
	Send(ifindex int, to netip.Addr, payload []byte) error
	// Run calls handle for every datagram until ctx ends; payload is valid
	// during the call only.
	Run(ctx context.Context, handle func(ifindex int, payload []byte, at time.Time)) error
	// Hard says whether a send error is evidence against the link, and why.
	// nil is none.
	Hard(err error) (reason string, hard bool)
	Close() error
}

// Echoes asks kernels whether they are there.
type Echoes interface {
	Ask(ifindex int, to netip.Addr) error
	Ping(ctx context.Context, to netip.Addr, size int) (time.Duration, error)
	Close() error
}

// GossipConfig is what a gossip member is made from.
type GossipConfig struct {
	Self  mesh.NodeID
	Mesh  mesh.MeshID
	Bind  netip.Addr
	Seeds func() map[mesh.NodeID]netip.Addr // overlay addresses of all other members
	Admit func(node mesh.NodeID, addr netip.Addr) bool
	// Facts receives what other nodes said, and operators; it must not block.
	Facts func(discovery.Signed)
	// Announcements gives the routing announcements to pass on, Learned
	// receives those of others; neither may block.
	Announcements func() [][]byte
	Learned       func([][]byte)
	Keys          GossipKeys
}

// GossipKeys are what members encrypt gossip with.
type GossipKeys struct {
	Use    []byte   // 32 bytes; nil: what is said is not encrypted, if Clear, or there is no key
	Accept [][]byte // Use first
	Clear  bool     // what is not encrypted is accepted
}

// Gossip spreads facts inside the mesh.
type Gossip interface {
	Run(ctx context.Context) error
	// Publish spreads statements that were verified.
	Publish(statements ...discovery.Signed) error
	Forget(about discovery.Subject)
	// SetKeys changes the keys.
	SetKeys(keys GossipKeys) error
}
