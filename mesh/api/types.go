package api

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
)

// A Level says how well things are.
type Level string

// Levels, best first.
const (
	OK       Level = "ok"
	Degraded Level = "degraded" // it works, with less reserve or speed than it should
	Down     Level = "down"     // something that should work does not
)

func (l Level) rank() int { return slices.Index([]Level{OK, Degraded, Down}, l) }

// A Finding is one sentence on the state of the node and what to do about it.
type Finding struct {
	Level    Level  `json:"level" enum:"ok,degraded,down"`
	Sentence string `json:"sentence"`
	Next     string `json:"next"` // a command or an action; empty: nothing to do
}

// Health is the sum of all findings.
type Health struct {
	Level    Level         `json:"level" enum:"ok,degraded,down"`
	Findings List[Finding] `json:"findings"` // worst first
}

// NewHealth sorts the findings, worst first, and takes the level of the worst.
func NewHealth(findings ...Finding) Health {
	sorted := slices.Clone(findings)
	slices.SortStableFunc(sorted, func(a, b Finding) int { return cmp.Compare(b.Level.rank(), a.Level.rank()) })
	h := Health{Level: OK, Findings: sorted}
	if len(sorted) > 0 {
		h.Level = sorted[0].Level
	}
	return h
}

// A Count is "n of m".
type Count struct {
	Good  int `json:"good"`
	Total int `json:"total"`
}

// Status is the answer to "is this node well?".
type Status struct {
	Schema   Schema    `json:"schema"`
	Time     time.Time `json:"time"`
	Version  string    `json:"version"` // of meshd
	Started  time.Time `json:"started"`
	Enrolled bool      `json:"enrolled"`
	// Ready: enrolled, and the first complete desired state is in the kernel.
	Ready     bool         `json:"ready"`
	Health    Health       `json:"health"`
	Mesh      *MeshInfo    `json:"mesh"` // null: not enrolled
	Node      *SelfInfo    `json:"node"` // null: not enrolled
	Nodes     Count        `json:"nodes"`
	Links     Count        `json:"links"`
	Uplinks   List[Uplink] `json:"uplinks"`
	Dataplane string       `json:"dataplane" enum:",kernel,userspace"` // empty: none yet
	Kernel    Revision     `json:"kernel"`
	LastEvent *Event       `json:"last_event"`
}

// MeshInfo names the mesh.
type MeshInfo struct {
	ID    mesh.MeshID  `json:"id"`
	Name  string       `json:"name"`
	Pool4 netip.Prefix `json:"pool4"`
	Pool6 netip.Prefix `json:"pool6"`
}

// SelfInfo is this node as the mesh knows it.
type SelfInfo struct {
	ID       mesh.NodeID        `json:"id"`
	Name     string             `json:"name"`
	Addrs    List[netip.Addr]   `json:"addrs"` // overlay
	Prefixes List[netip.Prefix] `json:"prefixes"`
	Tags     List[string]       `json:"tags"`
	Role     string             `json:"role" enum:"voter,follower"`
	Leader   string             `json:"leader"` // name of the Raft leader; empty: none known
}

// An Uplink is one local way to the internet.
type Uplink struct {
	Name      string               `json:"name"`
	Interface string               `json:"interface"`
	Addrs     List[netip.Addr]     `json:"addrs"`
	Up        bool                 `json:"up"`
	Metered   bool                 `json:"metered"`
	NAT       string               `json:"nat" enum:"unknown,none,easy,easy-port-changed,symmetric,blocked,absent"`  // of IPv4
	NAT6      string               `json:"nat6" enum:"unknown,none,easy,easy-port-changed,symmetric,blocked,absent"` // of IPv6
	Reflexive List[netip.AddrPort] `json:"reflexive"`                                                                // as others see it
	MTU       int                  `json:"mtu"`
	Drain     *Drain               `json:"drain"` // null: it is in use
}

// Outside says what is between an uplink and the others, as people say it.
func (u Uplink) Outside() string {
	four, six := NATInWords(u.NAT), NATInWords(u.NAT6)
	switch {
	case u.NAT == "absent" && u.NAT6 == "absent":
		return "no way out"
	case four == six, u.NAT6 == "absent", six == NATInWords(""):
		return four
	case u.NAT == "absent":
		return "IPv6 only, " + six
	}
	return "IPv4 " + four + ", IPv6 " + six
}

// NATInWords gives a kind of NAT as people say it.
func NATInWords(kind string) string {
	switch kind {
	case "absent":
		return "absent"
	case "none":
		return "public"
	case "easy-port-changed":
		return "easy NAT that changes ports"
	case "", "unknown":
		return "NAT unknown"
	case "blocked":
		return "UDP blocked"
	default:
		return kind + " NAT"
	}
}

// A Revision compares what the kernel should hold with what it holds.
type Revision struct {
	Wanted  uint64     `json:"wanted"`
	Applied uint64     `json:"applied"` // equal to Wanted: nothing is pending
	Since   *time.Time `json:"since"`   // pending since; null: nothing is
	Error   string     `json:"error"`   // of the last attempt; empty: none
}

// Nodes lists all members, this one included, by name.
type Nodes struct {
	Schema Schema     `json:"schema"`
	Nodes  List[Node] `json:"nodes"`
}

// How a node is reached.
const (
	ReachSelf    = "self"
	ReachDirect  = "direct"
	ReachTransit = "transit"
	ReachNone    = "none"
)

// A Node is one member.
type Node struct {
	ID         mesh.NodeID        `json:"id"`
	Name       string             `json:"name"`
	Addrs      List[netip.Addr]   `json:"addrs"`
	Prefixes   List[netip.Prefix] `json:"prefixes"`
	Shared     List[netip.Prefix] `json:"shared"` // those of prefixes that other nodes may have, too
	Tags       List[string]       `json:"tags"`
	Roles      List[string]       `json:"roles"` // see RoleOperator
	Site       string             `json:"site"`
	Voter      bool               `json:"voter"`
	Transit    bool               `json:"transit"`    // others may be reached through it
	MaxDegree  int                `json:"max_degree"` // bound of its neighbours; 0: the default
	Drain      *Drain             `json:"drain"`      // of the whole node; null: it is in use
	Banned     *Ban               `json:"banned"`     // null: it is not
	Reach      string             `json:"reach" enum:"self,direct,transit,none"`
	Via        string             `json:"via"`     // first neighbour on the best path, with transit
	CostMs     *float64           `json:"cost_ms"` // of the best path
	RTTMs      *float64           `json:"rtt_ms"`  // of the best direct link
	Links      Count              `json:"links"`   // ours to this node
	LastChange *time.Time         `json:"last_change"`
	Joined     time.Time          `json:"joined"`
}

// A Ban is an operator's word that a node is cut off, which the log does not have yet.
type Ban struct {
	By    string    `json:"by"`
	Since time.Time `json:"since"`
}

// A LinkState is where one link is in its life.
type LinkState string

// Link states.
const (
	LinkIdle     LinkState = "idle"     // not tried now; NextTry says when
	LinkProbing  LinkState = "probing"  // being connected
	LinkUp       LinkState = "up"       // measured and usable
	LinkDegraded LinkState = "degraded" // usable, and worse than it should be
	LinkSuspect  LinkState = "suspect"  // silent for a moment; carries nothing while another does
	LinkDown     LinkState = "down"
)

// Links lists all links of this node, by peer, local, remote uplink.
type Links struct {
	Schema Schema     `json:"schema"`
	Links  List[Link] `json:"links"`
}

// A Link is one WireGuard tunnel: a neighbour, a local uplink, a remote uplink.
type Link struct {
	Peer      string         `json:"peer"`
	PeerID    mesh.NodeID    `json:"peer_id"`
	Local     string         `json:"local"`                                      // our uplink
	Remote    string         `json:"remote"`                                     // theirs
	Path      string         `json:"path" enum:",lan,direct,translated,carrier"` // of its packets; carrier: a TLS stream. "" without a tunnel, or not known
	State     LinkState      `json:"state" enum:"idle,probing,up,degraded,suspect,down"`
	Since     time.Time      `json:"since"`    // of this state
	Reason    string         `json:"reason"`   // of this state, in words
	NextTry   *time.Time     `json:"next_try"` // null: none is due
	Device    string         `json:"device"`
	LocalPort uint16         `json:"local_port"`
	Endpoint  netip.AddrPort `json:"endpoint"` // of the peer; "" when none is proven
	RTTMs     *float64       `json:"rtt_ms"`
	JitterMs  *float64       `json:"jitter_ms"`
	LossOut   *float64       `json:"loss_out_percent"` // from us to the peer
	LossIn    *float64       `json:"loss_in_percent"`
	Share     float64        `json:"share_percent"` // of what goes to this peer's best destination
	MTU       int            `json:"mtu"`           // 0: not probed yet
	TxBytes   uint64         `json:"tx_bytes"`
	RxBytes   uint64         `json:"rx_bytes"`
	Attempts  Attempts       `json:"attempts"`
	Drain     *Drain         `json:"drain"` // of the link, or an uplink or node at its ends; null: it is in use
}

// Attempts are what it has taken to find a link's path, since this agent began.
type Attempts struct {
	Begun   int `json:"begun"`   // by this end
	Packets int `json:"packets"` // of UDP, that this end has sent in them and in the peer's
	Bytes   int `json:"bytes"`   // in these
}

// A Netcheck says what the networks of this node let through, and which direct links
// that leaves to be made.
type Netcheck struct {
	Schema  Schema               `json:"schema"`
	Node    string               `json:"node"`
	Control List[netip.AddrPort] `json:"control"` // where others reach this node's control port; empty: nowhere
	STUN    List[netip.AddrPort] `json:"stun"`    // where others may ask this node for their outside address
	Uplinks List[UplinkCheck]    `json:"uplinks"`
	Pairs   List[PairCheck]      `json:"pairs"`  // with wanted neighbours to whom there is no direct link
	Advice  List[Finding]        `json:"advice"` // worst first
}

// An UplinkCheck is what was measured of an uplink.
type UplinkCheck struct {
	Uplink  Uplink `json:"uplink"`
	UDP     string `json:"udp" enum:"passes,blocked,unknown"`
	Carried int    `json:"carried"` // links that go over TLS
	// Lifetime is for how long IPv4 packets are let in after the last one that left,
	// at least: "unknown" until it is measured, "short" for less than 25 s, "endless"
	// where they are let in unasked, else seconds such as "55s". Lifetime6 is of IPv6.
	Lifetime  string `json:"lifetime"`
	Lifetime6 string `json:"lifetime6"`
	// Forwarded are addresses at which its tunnels are reached because the operator says
	// so, or the gateway was asked to; Mapping is by which protocol: "PCP", "NAT-PMP", or
	// "" where it was not asked or does not.
	Forwarded List[netip.Addr]  `json:"forwarded"`
	Mapping   string            `json:"mapping"`
	Checked   *time.Time        `json:"checked"` // null: not yet
	Servers   List[ServerCheck] `json:"servers"` // that were asked last
}

// A ServerCheck is one STUN server that was asked by an uplink.
type ServerCheck struct {
	Server netip.AddrPort `json:"server"`
	Node   string         `json:"node"`
	RTTMs  *float64       `json:"rtt_ms"` // null: it did not answer
	Seen   netip.AddrPort `json:"seen"`   // how it saw the socket that asked; "" without an answer
}

// Whether two uplinks can have a direct link.
const (
	ExpectDirect  = "direct"
	ExpectPerhaps = "perhaps"
	ExpectNever   = "never"
)

// A PairCheck is an uplink here and one of a neighbour that have no direct link.
type PairCheck struct {
	Peer     string      `json:"peer"`
	PeerID   mesh.NodeID `json:"peer_id"`
	Local    string      `json:"local"`
	Remote   string      `json:"remote"`
	Expected string      `json:"expected" enum:"direct,perhaps,never"`
	Why      string      `json:"why"`      // not direct; empty: nothing is in the way
	Reason   string      `json:"reason"`   // why the last attempt failed; empty: none did
	NextTry  *time.Time  `json:"next_try"` // null: none is due
	Via      string      `json:"via"`      // neighbour by which the peer is reached; empty: it is not
}

// Routes lists all prefixes of the mesh, sorted.
type Routes struct {
	Schema Schema      `json:"schema"`
	Routes List[Route] `json:"routes"`
}

// A Route is one prefix and where this node sends it.
type Route struct {
	Prefix    netip.Prefix  `json:"prefix"`
	Origins   List[string]  `json:"origins"` // nodes; several for anycast
	CostMs    *float64      `json:"cost_ms"`
	NextHops  List[NextHop] `json:"next_hops"` // carry traffic; empty: local or none
	RunnerUp  *Alternative  `json:"runner_up"` // takes over first; null: there is none
	Installed bool          `json:"installed"` // in the kernel, as computed
	Why       string        `json:"why"`       // this choice, or why there is none
	// Feasibility is of the destination that the prefix belongs to; null:
	// this node is the destination, or knows none.
	Feasibility *Feasibility `json:"feasibility"`
}

// A NextHop is one leg of a route.
type NextHop struct {
	Peer   string  `json:"peer"`
	Device string  `json:"device"`
	Weight int     `json:"weight"`
	Share  float64 `json:"share_percent"`
}

// An Alternative is a next hop that does not carry traffic, and why not.
type Alternative struct {
	Peer   string   `json:"peer"`
	Device string   `json:"device"`
	CostMs *float64 `json:"cost_ms"`
	Why    string   `json:"why"`
}

// A PathQuery asks how a packet travels. From and To are names or ids of
// nodes, or addresses; an empty From is this node.
type PathQuery struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// A Path is the way of a packet, hop by hop.
type Path struct {
	Schema  Schema    `json:"schema"`
	From    string    `json:"from"`
	To      string    `json:"to"`
	Reached bool      `json:"reached"`
	Why     string    `json:"why"` // where and why it stops; empty when reached
	Hops    List[Hop] `json:"hops"`
}

// A Hop is one node on a path and its choice.
type Hop struct {
	Node         string            `json:"node"`
	Prefix       *netip.Prefix     `json:"prefix"` // that matched; null: none, or the last hop
	Peer         string            `json:"peer"`   // chosen; empty: it ends here
	Device       string            `json:"device"`
	Alternatives List[Alternative] `json:"alternatives"`
	Kernel       string            `json:"kernel"` // the route that the kernel answered with
	Agrees       *bool             `json:"agrees"` // kernel and computed table; null: not asked
	RTTMs        *float64          `json:"rtt_ms"` // of the chosen link
}

// A PingQuery asks for probes to a node, by name, id or overlay address.
type PingQuery struct {
	Node       string  `json:"node"`
	Count      int     `json:"count"`       // 0: until the client leaves
	IntervalMs float64 `json:"interval_ms"` // 0: 1000; at least MinPingMs
	TimeoutMs  float64 `json:"timeout_ms"`  // 0: 1000
	Since      uint64  `json:"since"`       // resume: the first reply has index Since+1
}

// Bounds of a ping.
const (
	MinPingMs = 20
	MaxPingMs = 60_000
	MaxPings  = 100_000
)

// A PingReply is the outcome of one probe.
type PingReply struct {
	Schema   Schema     `json:"schema"`
	Index    uint64     `json:"index"` // from 1, one more with each
	Node     string     `json:"node"`
	Addr     netip.Addr `json:"addr"`
	Answered bool       `json:"answered"`
	RTTMs    *float64   `json:"rtt_ms"`
	// Path is how the probe left: "direct, fibre → isp1" or "via site-2, …".
	Path   string `json:"path"`
	Reason string `json:"reason"` // why there is no answer
}

// An EventsQuery asks for what happened after index Since.
type EventsQuery struct {
	Since  uint64 `json:"since"`
	Follow bool   `json:"follow"`
}

// An Event is one thing that happened on this node.
type Event struct {
	Schema   Schema    `json:"schema"`
	Index    uint64    `json:"index"`
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"` // link-up, link-down, reroute, …
	Sentence string    `json:"sentence"`
	Cause    string    `json:"cause"` // with value and limit
	From     string    `json:"from"`  // what it was before
	To       string    `json:"to"`
}

// Done answers a change that has nothing else to say.
type Done struct {
	Schema   Schema `json:"schema"`
	Sentence string `json:"sentence"` // what was done
}
