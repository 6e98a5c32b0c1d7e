package config

import (
	_ "embed"
	"net/netip"
	"slices"

	"guywire/mesh"
)

// A Config is the content of one file, with the defaults filled in.
type Config struct {
	Name            string // of the node; empty: the host name
	Site            string // where the node is; empty: what the mesh has
	State           string // directory of keys, log and cache; absolute
	Socket          string // of the API; absolute
	Dataplane       Dataplane
	DataplaneSocket string // of the userspace data-plane process; absolute
	Control         Control
	Ports           Ports
	// Uplinks are settings of single uplinks, in the order of the file. An
	// interface with a default route that is not listed is an uplink all the
	// same: Uplink gives the settings of both.
	Uplinks  []Uplink
	Prefixes []netip.Prefix // of this site, sorted, disjoint; empty: only the node itself
	Tags     []string       // sorted, unique
	MTU      int            // of tunnels, bytes; 0: what the uplink carries
	NAT      NAT
	LogLevel LogLevel
}

// A Dataplane says who makes the tunnels.
type Dataplane string

// The values of the dataplane setting.
const (
	Auto      Dataplane = "auto"      // the kernel where it can, else userspace
	Kernel    Dataplane = "kernel"    // the kernel, or refuse to start
	Userspace Dataplane = "userspace" // the separate process meshd dataplane
)

// A LogLevel is the least level that is logged.
type LogLevel string

// The values of the log_level setting.
const (
	Debug LogLevel = "debug"
	Info  LogLevel = "info"
	Warn  LogLevel = "warn"
	Error LogLevel = "error"
)

// Control is where Raft and the control API listen (TCP).
type Control struct {
	Listen netip.Addr // invalid: every address of both families
	Port   uint16
	// Also are further ports at the same addresses, sorted, for sites whose
	// network passes nothing else. One that is in use is done without.
	Also []uint16
	// Advertise is where other nodes reach the listener, for a node behind a
	// port forwarding; empty: the addresses that the node finds.
	Advertise []Endpoint
}

// NAT is what this node does about the gateways before it.
type NAT struct {
	// PortMapping: they are asked to let tunnels in, by PCP or NAT-PMP.
	PortMapping bool
	// Spread: when a path is looked for by chance ports, where one end's NAT is
	// symmetric and the other's is not.
	Spread Spread
}

// A Spread says when that is.
type Spread string

// The values of the nat.spread setting.
const (
	SpreadLazy  Spread = "lazy"  // when all else has failed for some minutes
	SpreadOff   Spread = "off"   // never, and not at others' request either
	SpreadEager Spread = "eager" // soon after all else has failed
)

// Ports is the range of UDP ports for tunnels, both ends included.
type Ports struct{ First, Last uint16 }

// An Uplink holds the settings of one uplink.
type Uplink struct {
	Name      string // the interface's name unless set
	Interface string
	Metered   bool
	Bias      mesh.Cost // added to the cost of every link on it
	Disabled  bool      // never used, although it has a default route
	// ProbeBudget bounds what this node sends of probes over the uplink, all
	// its links together, in bits per second of the uplink: tunnel headers
	// included. Never 0: when it is small, probes are slow.
	ProbeBudget int
	// Endpoint is where the tunnel ports of this uplink are reached from outside,
	// each by its own number: a 1:1 NAT, or a range that a gateway forwards. Zero:
	// not by the operator's doing.
	Endpoint Host
}

// Uplink gives the settings of an interface, listed in the file or not.
func (c Config) Uplink(iface string) Uplink {
	if i := slices.IndexFunc(c.Uplinks, func(u Uplink) bool { return u.Interface == iface }); i >= 0 {
		return c.Uplinks[i]
	}
	return Uplink{Name: iface, Interface: iface, ProbeBudget: DefaultProbeBudget}
}

// HTTPSPort is the port (TCP) that networks pass which pass little else.
const HTTPSPort = 443

// Bounds of what a file may say.
const (
	MaxBytes    = 64 << 10 // of the file
	MaxPrefixes = 1024
	MaxTags     = 32
	MinMTU      = 1280 // the IPv6 minimum, RFC 8200 section 5
	MaxMTU      = 65535
	MinPorts    = 16 // each link takes a port, each attempt a fresh one

	// Budgets of probes, in bits per second. A probe takes about 1,250 bits on
	// an uplink, so the smallest budget is one in a second or two. The default
	// lets 30 links be probed each 40 ms; a metered uplink's keeps below 6 GB
	// in a month.
	DefaultProbeBudget = 1_000_000
	MeteredProbeBudget = 16_000
	MinProbeBudget     = 1_000
	MaxProbeBudget     = 1_000_000_000

	maxPath     = 106
	maxAlso     = 4
	maxBiasSecs = 10
)

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		State:           "/var/lib/guywire",
		Socket:          "/run/guywire/meshd.sock",
		Dataplane:       Auto,
		DataplaneSocket: "/run/guywire/dataplane.sock",
		Control:         Control{Port: mesh.ControlPort, Also: []uint16{HTTPSPort}},
		Ports:           Ports{First: mesh.TunnelPortFirst, Last: mesh.TunnelPortLast},
		NAT:             NAT{Spread: SpreadLazy},
		LogLevel:        Info,
	}
}

//go:embed example.yaml
var example string

// Example is a minimal file with comments, for meshd --example.
func Example() string { return example }
