package api

import (
	"net/netip"
	"time"

	"guywire/mesh"
)

// RaftStatus says who keeps the log of the mesh.
type RaftStatus struct {
	Schema     Schema     `json:"schema"`
	Role       string     `json:"role" enum:"voter,follower"` // of this node
	Leader     string     `json:"leader"`                     // name; empty: none is known
	Generation uint64     `json:"generation"`                 // how often the mesh was recovered
	Version    int        `json:"version"`                    // of the rules that the log keeps
	Index      uint64     `json:"index"`                      // of what this node knows
	Lag        uint64     `json:"lag"`                        // entries that this node knows to be missing here
	Confirmed  *time.Time `json:"confirmed"`                  // when a voter last knew of nothing newer; null: never, or this node leads
	Term       *uint64    `json:"term"`                       // null: no voter that could be asked told
	Commit     *uint64    `json:"commit"`                     // as above
	Problem    string     `json:"problem"`                    // why this voter's log is not open; empty: it is, or this is no voter
	// Complete: the leader told, so that nothing in Members is unknown.
	Complete bool             `json:"complete"`
	Members  List[RaftMember] `json:"members"` // voters, then learners, by name
}

// A RaftMember is a node that has the log.
type RaftMember struct {
	ID        mesh.NodeID    `json:"id"`
	Name      string         `json:"name"`
	Site      string         `json:"site"`
	Addr      netip.AddrPort `json:"addr"`  // of its control port; "" when none is known
	Voter     bool           `json:"voter"` // else it is a learner, which may become one
	Leader    bool           `json:"leader"`
	Connected *bool          `json:"connected"` // it answers the leader
	Healthy   *bool          `json:"healthy"`   // and has the log nearly to its end
	Since     *time.Time     `json:"since"`     // of healthy, or of the silence
	Last      *uint64        `json:"last"`      // index of its last entry
	Lag       *uint64        `json:"lag"`       // entries behind the leader
}

// A RecoverRequest asks what a recovery would do, or recovers.
type RecoverRequest struct {
	Plan string `json:"plan"` // id of the plan to carry out; empty: only make one
}

// A RecoverPlan says what a recovery does that begins on this node.
type RecoverPlan struct {
	Schema     Schema            `json:"schema"`
	Plan       string            `json:"plan"`        // id
	Done       bool              `json:"done"`        // it was carried out
	Generation uint64            `json:"generation"`  // that begins
	Source     string            `json:"source"`      // node whose state the mesh begins with
	Index      uint64            `json:"index"`       // of that state
	Trusted    bool              `json:"trusted"`     // the others follow by themselves; false: each must join anew
	Reached    List[string]      `json:"reached"`     // nodes that were asked
	Silent     List[string]      `json:"silent"`      // nodes that did not answer
	LostVoters List[string]      `json:"lost_voters"` // those of them that are voters: what only they have is lost
	Appear     List[Uncommitted] `json:"appear"`      // become part of the mesh
}

// An Uncommitted is a write in this node's log of which nobody knows whether it
// was acknowledged.
type Uncommitted struct {
	Index  uint64    `json:"index"`
	Time   time.Time `json:"time"`
	Author string    `json:"author"`
	Action string    `json:"action"`
	About  string    `json:"about"`
}

// An AuditQuery asks for the audit trail from a record on; 0: from the oldest
// that is kept.
type AuditQuery struct {
	From uint64 `json:"from"`
}

// An AuditRecord says what one entry of the log did, on whose authority. Head
// is the SHA-256 of the record, and the Prev of the next one.
type AuditRecord struct {
	Schema     Schema    `json:"schema"`
	N          uint64    `json:"n"` // from 1
	Index      uint64    `json:"index"`
	Generation uint64    `json:"generation"`
	Time       time.Time `json:"time"`   // by the leader's clock
	Author     string    `json:"author"` // name, or id of one that is not known any more; empty: nobody proved to be anyone
	AuthorKey  string    `json:"author_key"`
	Action     string    `json:"action"`
	About      string    `json:"about"` // name or id
	Outcome    string    `json:"outcome"`
	Command    string    `json:"command"` // SHA-256 of the entry
	Prev       string    `json:"prev"`
	Head       string    `json:"head"`
}

// A NodeQuery names a node by name or id.
type NodeQuery struct {
	Node string `json:"node"`
}

// A NodesQuery asks for all members.
type NodesQuery struct {
	// Consistent waits until this node knows all that was acknowledged to
	// anybody; it needs a majority of the voters.
	Consistent bool `json:"consistent"`
}

// A GrantRequest replaces the networks of a node.
type GrantRequest struct {
	Node     string             `json:"node"`
	Prefixes List[netip.Prefix] `json:"prefixes"`
	Shared   List[netip.Prefix] `json:"shared"` // those of Prefixes that other nodes may have, too, as shared
}

// A ReserveRequest keeps an address for a node to come.
type ReserveRequest struct {
	Name string     `json:"name"`
	Addr netip.Addr `json:"addr"` // of either pool; that of the other ends alike
}

// A NameQuery names what is not a node.
type NameQuery struct {
	Name string `json:"name"`
}

// Reservations lists the addresses kept for nodes to come, by name.
type Reservations struct {
	Schema       Schema            `json:"schema"`
	Reservations List[Reservation] `json:"reservations"`
}

// A Reservation is what the node that joins with the name gets.
type Reservation struct {
	Name  string           `json:"name"`
	Addrs List[netip.Addr] `json:"addrs"`
}

// Rights of operators.
const (
	RightRead   = "read"
	RightChange = "change"
)

// Operators lists who may change the mesh, or look at it, by name.
type Operators struct {
	Schema    Schema         `json:"schema"`
	Operators List[Operator] `json:"operators"`
	// What an operator's own file needs to know and find the mesh.
	Mesh    mesh.MeshID          `json:"mesh"`
	Pins    List[string]         `json:"pins"`    // hex SHA-256 of the SubjectPublicKeyInfo of each accepted CA
	Servers List[netip.AddrPort] `json:"servers"` // control addresses, of nodes with the operator role first
}

// An Operator is a node with that role, or somebody without a node.
type Operator struct {
	Name    string           `json:"name"`
	Node    bool             `json:"node"` // root of the node of that name
	Key     mesh.IdentityKey `json:"key"`
	Right   string           `json:"right" enum:"read,change"`
	Created time.Time        `json:"created"`
	Expires *time.Time       `json:"expires"` // null: never
}

// An OperatorRequest makes somebody without a node an operator.
type OperatorRequest struct {
	Name  string           `json:"name"`
	Key   mesh.IdentityKey `json:"key"` // the public half
	Right string           `json:"right" enum:"read,change"`
	TTLMs float64          `json:"ttl_ms"` // 0: for ever
}

// Bounds of an operator's time.
const MaxOperatorTTL = 10 * 365 * 24 * time.Hour

// Authorities lists the CAs of the mesh, oldest first.
type Authorities struct {
	Schema      Schema          `json:"schema"`
	Authorities List[Authority] `json:"authorities"`
	Due         bool            `json:"due"` // somebody who knew a key of a CA was removed: a new CA is on its way
}

// An Authority is one CA.
type Authority struct {
	Pin   string `json:"pin"` // hex SHA-256 of its SubjectPublicKeyInfo
	State string `json:"state" enum:"next,current,previous,retired"`
	// From is when the next one becomes current; null: as soon as the voters
	// have its key, or it is none that is next.
	From *time.Time `json:"from"`
}

// Settings are those of the mesh that operators change.
type Settings struct {
	Schema        Schema  `json:"schema"`
	Voters        int     `json:"voters"`           // wanted; 0: the mesh chooses
	CacheMaxAgeMs float64 `json:"cache_max_age_ms"` // how long a node may start from its cache without a voter; 0: for ever
}

// A SettingsRequest changes settings; what is null stays as it is.
type SettingsRequest struct {
	Voters        *int     `json:"voters"`           // 0, 1, 3 or 5
	CacheMaxAgeMs *float64 `json:"cache_max_age_ms"` // whole seconds
}
