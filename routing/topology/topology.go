// Package topology chooses which nodes deserve links to each other: the same
// answer on every node, from shared state alone.
//
// Build gives the wanted links of the whole mesh, Rewire the way there from the
// links that exist: make before break. Both are pure.
package topology

import (
	"time"

	"guywire/mesh"
	"guywire/routing/topology/coordinate"
)

// FullMesh is the number of nodes up to which Auto links everyone to everyone.
const FullMesh = 12

// A Node is a member as topology sees it. All of it is shared state: while two
// nodes hold different words about a third, they want different links.
type Node struct {
	ID        mesh.NodeID
	Reachable bool // others can open a connection to it
	Transit   bool // paths of others may lead through it
	// Cap bounds its links; 0 means the default. A node with a larger one is
	// chosen more often: a transit site. Connectivity comes before any cap.
	Cap  int
	Tags []string
	// Coordinate is what the node itself last published; zero when unknown.
	Coordinate coordinate.Published
	// RTT is what the node itself measured and published. Of the two ends'
	// words the smaller counts, and either comes before coordinates.
	RTT map[mesh.NodeID]time.Duration
}

// Mode is the shape of the mesh.
type Mode uint8

// Shapes.
const (
	Auto Mode = iota // full up to FullMesh nodes, partial beyond
	Full             // everyone to everyone
	Hub              // everyone to the hubs, and hubs to each other
)

// Policy is what the operator decided.
type Policy struct {
	Mode Mode
	// HubTag marks the hubs of mode Hub. As long as no node has it the mode is
	// as Auto, so that a mistyped tag does not take the mesh apart.
	HubTag string
	// Dense makes the partial mesh one of about 13 links a node, cap 18, in
	// place of 8 and 12: two next hops for 98 destinations in 100, not 93.
	Dense bool
	// Pins are pairs that have a link whatever the caps, Forbids pairs that
	// have none whatever else is asked. The order in a pair means nothing;
	// pairs with strangers are ignored.
	Pins, Forbids [][2]mesh.NodeID
	// Salt gives each mesh a ring of its own.
	Salt mesh.MeshID
}

// A Reason says to people why a link is wanted.
type Reason uint8

// Reasons. An edge with several has the first.
const (
	NotWanted Reason = iota
	ByPin            // the operator pinned the pair
	ByFull           // everyone is linked to everyone
	ByHub            // one end is a hub
	ByRing           // next to each other on the ring
	ByAnchor         // ties a node, or a part, to the reachable transit nodes
	ByNearest        // the nearest with room
	ByStratum        // drawn from those at this order of distance
	ByFill           // one end had too few links or too few next hops
)

// String gives the reason in a word.
func (r Reason) String() string {
	return [...]string{"not wanted", "pin", "full", "hub", "ring", "anchor", "nearest", "stratum", "fill"}[r]
}

// An Edge is a wanted link; A is before B.
type Edge struct {
	A, B   mesh.NodeID
	Reason Reason
}
