package api

import (
	"net/netip"
	"time"

	"guywire/mesh"
)

// A Topology is which nodes should have links to each other, and why.
type Topology struct {
	Schema    Schema             `json:"schema"`
	Mode      string             `json:"mode" enum:"auto,full,hub"`
	Hub       string             `json:"hub"`   // tag of the hubs; empty unless the mode is hub
	Dense     bool               `json:"dense"` // auto: more neighbours for each
	Pinned    List[Pair]         `json:"pinned"`
	Forbidden List[Pair]         `json:"forbidden"`
	Nodes     List[TopologyNode] `json:"nodes"` // by name
}

// A Pair is two nodes; in requests names or ids, in any order.
type Pair struct {
	A string `json:"a"`
	B string `json:"b"`
}

// A TopologyNode is one member with the neighbours that it should have.
type TopologyNode struct {
	ID         mesh.NodeID     `json:"id"`
	Name       string          `json:"name"`
	Transit    bool            `json:"transit"`    // others may be reached through it
	MaxDegree  int             `json:"max_degree"` // 0: the default
	Tags       List[string]    `json:"tags"`
	Drain      *Drain          `json:"drain"`  // of the whole node; null: it is in use
	Degree     *int            `json:"degree"` // how many neighbours; null: this node has not computed it yet
	Neighbours List[Neighbour] `json:"neighbours"`
}

// A Neighbour is one wanted adjacency and the reason for it.
type Neighbour struct {
	Node   string `json:"node"`
	Reason string `json:"reason"` // pin, full, hub, ring, nearest, …
}

// Modes of the topology in documents.
const (
	TopologyAuto = "auto"
	TopologyFull = "full"
	TopologyHub  = "hub"
)

// A TopologyRequest replaces how neighbours are chosen; pairs keep their rules.
type TopologyRequest struct {
	Mode  string `json:"mode"`
	Hub   string `json:"hub"` // with mode hub, and only then
	Dense bool   `json:"dense"`
}

// A PairsRequest takes rules of single pairs away (unpin, allow), then gives
// some (pin, forbid), all or none of it.
type PairsRequest struct {
	Pin    List[Pair] `json:"pin"`
	Unpin  List[Pair] `json:"unpin"`
	Forbid List[Pair] `json:"forbid"`
	Allow  List[Pair] `json:"allow"`
}

// A NodeRequest changes what operators decide about a node, named by name or
// id. What is null stays as it is.
type NodeRequest struct {
	Node      string        `json:"node"`
	Transit   *bool         `json:"transit"`
	MaxDegree *int          `json:"max_degree"` // 0: the default
	Tags      *List[string] `json:"tags"`       // all of them
	Roles     *List[string] `json:"roles"`      // all of them, see RoleOperator
	Site      *string       `json:"site"`       // empty: unknown
}

// A Drain is something that an operator took out of use: a node (Uplink and
// Peer are empty), an uplink of it, or one link of that uplink.
type Drain struct {
	Target string    `json:"target"` // as drain and undrain take it on every node
	Node   string    `json:"node"`
	Uplink string    `json:"uplink"`
	Peer   string    `json:"peer"`
	Remote string    `json:"remote"` // uplink of Peer
	By     string    `json:"by"`     // the node on which the operator was
	Since  time.Time `json:"since"`
}

// A Draining is a drain and what this node itself sends over it at the moment;
// over a node: the networks of others that it reaches through it.
type Draining struct {
	Drain      Drain              `json:"drain"`
	Carries    List[netip.Prefix] `json:"carries"`
	NoOtherWay List[netip.Prefix] `json:"no_other_way"` // of these: nothing stands by for them elsewhere, they stay on it
}

// Drains lists what is drained, by target.
type Drains struct {
	Schema Schema         `json:"schema"`
	Drains List[Draining] `json:"drains"`
}

// A DrainRequest takes something out of use. Target is NODE, UPLINK (of this
// node), NODE/UPLINK, or a link by its two ends: UPLINK:NODE/UPLINK or
// NODE/UPLINK:NODE/UPLINK.
type DrainRequest struct {
	Target string `json:"target"`
	// WaitMs is how long to wait until this node sends nothing over it that
	// could go another way; at most MaxDrainMs.
	WaitMs float64 `json:"wait_ms"`
	DryRun bool    `json:"dry_run"` // change nothing, only say what goes over it
}

// MaxDrainMs bounds DrainRequest.WaitMs.
const MaxDrainMs = 60_000

// Drained answers a drain.
type Drained struct {
	Schema Schema `json:"schema"`
	// Done: this node sends nothing over it, or only what has no other way.
	Done     bool     `json:"done"`
	Draining Draining `json:"draining"`
}

// An UndrainQuery takes what was drained back into use.
type UndrainQuery struct {
	Target string `json:"target"`
}

// A Feasibility is where loop-free routing stands with a destination. A null
// distance is infinite.
type Feasibility struct {
	DistanceMs *float64 `json:"distance_ms"` // this node's own, by the shortest path that it knows
	ReportedMs *float64 `json:"reported_ms"` // what it told its neighbours
	FeasibleMs *float64 `json:"feasible_ms"` // a successor must report less
	// Active: it waits for its neighbours' word before it may raise its
	// distance. Traffic goes on over the successors it has.
	Active     bool            `json:"active"`
	Neighbours List[Successor] `json:"neighbours"` // by cost
}

// How a neighbour serves a destination.
const (
	UseCarries = "carries" // traffic goes to it
	UseArmed   = "armed"   // a loop-free next hop that takes over at once
	UseNone    = "none"
)

// A Successor is a neighbour as a next hop to a destination, or why not.
type Successor struct {
	Peer       string   `json:"peer"`
	ReportedMs *float64 `json:"reported_ms"` // the distance that it told us
	ThroughMs  *float64 `json:"through_ms"`  // cost of the path through it
	Successor  bool     `json:"successor"`   // it reports less than the feasible distance
	Use        string   `json:"use" enum:"carries,armed,none"`
}
