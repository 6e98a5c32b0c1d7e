package mesh

// The numbers by which Guywire's own objects are known in the kernel and on
// the wire. What carries none of them is never touched.
const (
	// RouteTable holds the routes of the mesh.
	RouteTable = 86
	// RouteProtocol marks our routes, next hops and rules (rtnetlink RTPROT).
	RouteProtocol = 86
	// UplinkTableBase + slot is the table with one uplink's default route.
	UplinkTableBase = 8600
	// MarkBase + slot is the firewall mark of one uplink; MarkMask selects those bits.
	MarkBase = 0x8600
	MarkMask = 0xffff
	// RuleUplinkBase + slot is the priority of "mark → uplink table".
	RuleUplinkBase = 8600
	// RuleMesh is the priority of "everything → RouteTable".
	RuleMesh = 8690
	// MaxUplinks bounds Uplink.Slot.
	MaxUplinks = 31
	// InterfacePrefix begins the name of every tunnel device.
	InterfacePrefix = "gw-"
	// FilterTable is the name of our nft table, family inet.
	FilterTable = "guywire"
	// NextHopBase is the lowest next-hop object id of ours; NextHopEnd is above the highest.
	NextHopBase = 0x8600_0000
	NextHopEnd  = 0x8700_0000

	// ControlPort (TCP) carries Raft and the control API on the underlay and
	// the overlay; StunPort and StunPortSecond (UDP) answer STUN on public nodes:
	// where there is one such node, two ports of it tell the kinds of NAT apart.
	ControlPort    = 8686
	StunPort       = 8686
	StunPortSecond = 8689
	// ProbePort (UDP) carries probes and routing inside each tunnel.
	ProbePort = 8687
	// GossipPort (TCP and UDP) carries gossip on overlay addresses.
	GossipPort = 8688
	// TunnelPortFirst to TunnelPortLast (UDP) is where links listen unless configured.
	TunnelPortFirst = 51800
	TunnelPortLast  = 52799
)

// Keys of structured log records, the same in every package, so that logs of
// several nodes can be searched together.
const (
	LogNode     = "node"     // name or id of another node
	LogLink     = "link"     // LinkID
	LogUplink   = "uplink"   // name of a local uplink
	LogEndpoint = "endpoint" // underlay address:port
	LogRevision = "revision" // of the desired kernel state
	LogIndex    = "index"    // of the Raft log
	LogReason   = "reason"   // why, for people
	LogError    = "error"
)
