package core

import (
	"net/netip"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/routing/topology/coordinate"
	"guywire/routing/wire"
	"guywire/store"
)

// An Event is one thing that happened outside.
type Event interface{ isEvent() }

type (
	// Tick says only that time has passed.
	Tick struct{}
	// StateChanged brings a newer committed (or cached) state, or the same with
	// others banned.
	StateChanged struct {
		State *store.State
		// Banned are members that State is without ahead of the log, each with the
		// name of the operator whose word that is.
		Banned map[mesh.NodeID]string
	}
	// HostChanged brings the machine's uplinks and attached prefixes.
	HostChanged struct{ Host Host }
	// FactsChanged brings verified facts about another node.
	FactsChanged struct{ Facts discovery.Facts }
	// Received is a datagram from the far end of a tunnel.
	Received struct {
		Device  string
		Message wire.Message
		At      time.Time // when the kernel had it
	}
	// Echoed says that the far end's kernel answered an echo request.
	Echoed struct {
		Device string
		At     time.Time
	}
	// AttemptDone ends a link attempt, ours or the far end's.
	AttemptDone struct {
		Link     mesh.LinkID
		ID       uint64 // the same at both ends; becomes the link's generation
		Port     uint16 // proven local port
		Endpoint netip.AddrPort
		Class    discovery.PathClass // of the path to it
		Carrier  discovery.AttemptID // of ClassCarrier: what the stream is called
		Peer     store.Key           // the far end's WireGuard key
		First    bool                // this end begins the handshake
		Err      string              // why not, for people; empty: success
		Spread   bool                // it was a search by chance ports, for which nobody was too busy
		Hopeless bool                // with Err: so it will be while both ends stay as they are
		Yielded  bool                // with Err: the far end's own attempt goes on instead
		Effort   Effort
	}
	// Surveyed brings what an uplink looks like from outside. Resumed: the machine
	// slept meanwhile, so nothing that was known may hold.
	Surveyed struct {
		Uplink  discovery.Uplink
		Resumed bool
	}
	// KernelDone says that a revision of Desired is in the kernel as far as
	// neighbours may count on it: the filter wholly, and nothing forwards
	// beyond what is wanted.
	KernelDone struct{ Revision uint64 }
	// TunnelFailed is hard evidence against a link: a send error or a vanished device.
	TunnelFailed struct{ Device, Reason string }
	// Measured brings what the tunnels know of their far ends, every few seconds.
	Measured struct{ Tunnels map[string]Traffic }
	// Learned brings announcements that did not come from a neighbour.
	Learned struct{ Announcements []wire.SignedLSA }
	// Counted brings the devices' counters, every Ready.CountEvery.
	Counted struct{ Devices map[string]Count }
	// Stopping asks the node to say goodbye: it is about to tear down.
	Stopping struct{}
)

// Traffic is what the kernel counted on one tunnel.
type Traffic struct {
	Received, Sent uint64 // bytes
	Endpoint       netip.AddrPort
	Handshake      time.Time
}

// A Count is the bytes that came out of a tunnel and went into it.
type Count struct{ Received, Sent uint64 }

// A Host is what the machine looks like.
type Host struct {
	Uplinks  []mesh.Uplink // sorted by name; vanished ones stay, with Up false
	Attached []Attached    // sorted by prefix
	AcceptRA []string      // uplink interfaces that take router advertisements
}

// Attached is a prefix that the machine reaches without a gateway.
type Attached struct {
	Device string
	Prefix netip.Prefix
}

func (Tick) isEvent()         {}
func (StateChanged) isEvent() {}
func (HostChanged) isEvent()  {}
func (FactsChanged) isEvent() {}
func (Received) isEvent()     {}
func (Echoed) isEvent()       {}
func (AttemptDone) isEvent()  {}
func (Surveyed) isEvent()     {}
func (KernelDone) isEvent()   {}
func (TunnelFailed) isEvent() {}
func (Measured) isEvent()     {}
func (Counted) isEvent()      {}
func (Learned) isEvent()      {}
func (Stopping) isEvent()     {}

// A Ready is what the outside must do next.
type Ready struct {
	Send    []Datagram // best effort, in order
	Echo    []Target   // ask the far end's kernel whether it is there
	Attempt []Attempt  // start these; each ends with AttemptDone
	// Cancel are attempts that cannot succeed any more.
	Cancel   []mesh.LinkID
	Dirty    bool      // Desired changed since it was last asked
	Save     bool      // Records changed: keep them on disk
	Deadline time.Time // Step(now, Tick{}) no later than this; zero: never
	Facts    []Fact
	Sights   []Sight // what neighbours said on where we are
	// CountEvery is the time between two readings of the devices' counters.
	CountEvery time.Duration
	// Distances are to be published among our facts; nil: as before.
	Distances *coordinate.Report
}

// A Datagram goes through a tunnel to the far end's ProbePort.
type Datagram struct {
	Target
	Payload []byte
}

// A Target is the far end of a tunnel.
type Target struct {
	Device string
	To     netip.Addr
}

// An Attempt is a link to try.
type Attempt struct {
	Link mesh.LinkID
	// PathRTT is about the round trip of messages to the peer; zero: not known.
	PathRTT time.Duration
	// Carrier: a stream, since no UDP passes.
	Carrier bool
	// Spread: a search by chance ports, after the usual attempt.
	Spread bool
	// Below: only a better path than of this class will do; zero: any will.
	Below discovery.PathClass
}

// A Sight is a neighbour's word on where the packets of one of our tunnels come from.
type Sight struct {
	Link     mesh.LinkID
	Port     uint16         // of ours, from which they leave
	Witness  netip.AddrPort // where the neighbour is
	Endpoint netip.AddrPort
}

// A Fact is something that happened, for the event log, people and tests.
type Fact struct {
	At       time.Time
	Kind     FactKind
	Node     mesh.NodeID
	Link     mesh.LinkID
	Sentence string
	Cause    string
	From, To string
}

// FactKind sorts facts.
type FactKind string

// Kinds of facts.
const (
	LinkUp        FactKind = "link-up"
	LinkSuspect   FactKind = "link-suspect"
	LinkHeadless  FactKind = "link-headless"
	LinkDown      FactKind = "link-down"
	LinkMade      FactKind = "link-made"
	LinkFailed    FactKind = "link-attempt-failed"
	LinkRemoved   FactKind = "link-removed"
	RouteMoved    FactKind = "route-moved"
	RouteLost     FactKind = "route-lost"
	RouteFound    FactKind = "route-found"
	NodeJoined    FactKind = "node-joined"
	NodeRemoved   FactKind = "node-removed"
	NodeBanned    FactKind = "node-banned"
	BanEnded      FactKind = "ban-ended"
	UplinkUp      FactKind = "uplink-up"
	UplinkDown    FactKind = "uplink-down"
	Starved       FactKind = "agent-starved"
	KernelChanged FactKind = "kernel-repaired"
)
