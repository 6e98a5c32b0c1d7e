// Package store is the mesh's truth: who is a member, with which keys,
// addresses, granted prefixes and tokens, and what the operators decided about
// topology, transit and maintenance. Every voter applies the same
// commands in the same order; followers apply the same stream.
//
// It is pure and deterministic: Apply reads no clock and no randomness,
// authorises inside, and gives the same state and results on every node and in
// every run. A *State handed out is immutable; Apply returns a new one that
// shares what did not change.
package store

import (
	"net/netip"
	"time"

	"guywire/mesh"
)

// Version of the encodings of states and commands; what is newer is refused.
// Each is written in the lowest version that can say it, so that while a mesh
// is upgraded node by node, those that are still to come read on until an
// operator asks for what they do not know. Version 2 brought the policy:
// topology, transit, caps and drains. Version 3 brought signed commands, roles
// and the audit trail; a mesh has it when Settings.Version says so. Version 4
// brought gossip keys.
const Version = 4

// signedVersion is the first version of a mesh in which commands are signed.
const signedVersion = 3

// GossipVersion is the first version of a mesh that has gossip keys, and no
// secret in the clear.
const GossipVersion = 4

// A State is the whole truth at one index of the log.
type State struct {
	Version int                       `json:"version"` // of the encoding; Snapshot sets it
	Index   uint64                    `json:"index"`   // of the last command applied
	Mesh    Settings                  `json:"mesh"`
	Nodes   map[mesh.NodeID]Node      `json:"nodes"`
	Tokens  map[string]Token          `json:"tokens"` // by token id
	Removed map[mesh.NodeID]Tombstone `json:"removed"`

	Operators map[string]Operator    `json:"operators,omitempty"` // without a node; by name
	Reserved  map[string]Reservation `json:"reserved,omitempty"`  // by the name of the node to come
	Audit     Audit                  `json:"audit,omitzero"`
	// Answered are the requests that were decided lately, oldest first.
	Answered Answers `json:"answered,omitempty"`
}

// Settings are made by init and changed by operators, or by voters for them.
type Settings struct {
	ID    mesh.MeshID  `json:"id"`
	Name  string       `json:"name"`
	Pool4 netip.Prefix `json:"pool4"` // addresses of nodes are taken from here
	Pool6 netip.Prefix `json:"pool6"`
	// CA holds the SHA-256 of the SubjectPublicKeyInfo of each accepted CA
	// certificate, newest last; Roots the certificates themselves (DER). From
	// version 3 on Authorities has both; State.Pins reads either.
	CA    [][32]byte `json:"ca"`
	Roots [][]byte   `json:"roots"`
	// Secret is shared by the members and authenticates what is no more than
	// a courtesy among them: STUN requests. It protects nothing else. From
	// version 4 on the gossip keys do; where there still is a Secret, it is
	// good for STUN, and gossip is accepted in the clear.
	Secret []byte `json:"secret"`
	// Topology is the policy on who gets links to whom.
	Topology Topology `json:"topology,omitzero"`

	// Version is that of the rules which Apply keeps: 0 as long as versions 1
	// and 2 may be among the voters. Init chooses it, SetVersion raises it.
	Version int `json:"version,omitempty"`
	// Generation counts how often the mesh was recovered by Recovered. States
	// are ordered by generation, then by index.
	Generation uint64 `json:"generation,omitempty"`
	// Authorities are the CAs of the mesh, oldest first; one is current.
	Authorities []CA `json:"authorities,omitempty"`
	// CADue: somebody who knew the key of a CA was removed, so the mesh must
	// change to another one at once.
	CADue bool `json:"ca_due,omitempty"`
	// CacheMaxAge bounds how long a node that reaches no voter may start from
	// its cache; whole seconds from MinCacheAge to MaxCacheAge, 0: for ever.
	CacheMaxAge time.Duration `json:"cache_max_age,omitempty"`
	// Voters is how many voters are wanted: 1, 3 or 5; 0: the mesh chooses.
	Voters int `json:"voters,omitempty"`

	// Gossip are the gossip keys of the mesh, oldest first.
	Gossip []GossipKey `json:"gossip,omitempty"`
	// GossipEpoch is that of the newest gossip key that there ever was.
	GossipEpoch mesh.Epoch `json:"gossip_epoch,omitempty"`
	// GossipDue: somebody who knew the gossip keys was removed, so the mesh must
	// change to another one at once.
	GossipDue bool `json:"gossip_due,omitempty"`
}

// SecretSize is the length of Settings.Secret.
const SecretSize = 32

// A Node is one member.
type Node struct {
	ID       mesh.NodeID      `json:"id"`
	Name     string           `json:"name"`
	Identity mesh.IdentityKey `json:"identity"`
	Keys     []Key            `json:"keys"` // WireGuard keys, oldest epoch first
	Addr4    netip.Addr       `json:"addr4"`
	Addr6    netip.Addr       `json:"addr6"`
	Prefixes []netip.Prefix   `json:"prefixes"` // granted, sorted
	Tags     []string         `json:"tags,omitempty"`
	Joined   time.Time        `json:"joined"` // leader's clock
	// Control is where the node's control listener was reached by another
	// node, or declared by the operator; empty: not reachable from outside.
	Control []netip.AddrPort `json:"control,omitempty"`
	Voter   bool             `json:"voter,omitempty"`
	// Request is the idempotency key of the join that made the node.
	Request string `json:"request"`
	// NoTransit keeps the node reachable, but nothing is routed through it.
	NoTransit bool `json:"no_transit,omitempty"`
	// MaxDegree bounds the neighbours that the topology chooses for the node,
	// MinDegreeCap to MaxDegreeCap; 0: the default.
	MaxDegree int     `json:"max_degree,omitempty"`
	Drains    []Drain `json:"drains,omitempty"` // sorted by what is drained

	// Site names the place of the node; voters are spread over sites.
	Site   string         `json:"site,omitempty"`
	Roles  []NodeRole     `json:"roles,omitempty"`  // sorted
	Shared []netip.Prefix `json:"shared,omitempty"` // those of Prefixes that others may have, too; sorted
	// Boot is the copy of the log that the voter runs; zero: not yet known.
	Boot Boot `json:"boot,omitzero"`
	// EverVoted: the node knows, or knew, the key of a CA.
	EverVoted bool `json:"ever_voted,omitempty"`
	// LastEpoch is the highest epoch of any key that the node ever had, once
	// it has changed keys; 0: that of its key.
	LastEpoch mesh.Epoch `json:"last_epoch,omitempty"`
	// Copies are the gossip keys, sealed for this node; by epoch, oldest first.
	Copies []Copy `json:"copies,omitempty"`
}

// A Key is one generation of a node's WireGuard key.
type Key struct {
	Epoch  mesh.Epoch        `json:"epoch"`
	Public mesh.WireGuardKey `json:"public"`
}

// A Token admits nodes. The secret is never here: Key is the public half of
// the Ed25519 key derived from it, so reading the log admits nobody.
type Token struct {
	ID       string           `json:"id"`
	Key      mesh.IdentityKey `json:"key"`
	Expires  time.Time        `json:"expires"`
	Uses     int              `json:"uses"`               // left
	Name     string           `json:"name,omitempty"`     // required node name; empty: any
	Prefixes []netip.Prefix   `json:"prefixes,omitempty"` // the joiner may claim prefixes inside these; empty: none, before version 3 any free one
	Tags     []string         `json:"tags,omitempty"`     // given to the node
	Created  time.Time        `json:"created"`

	AnyPrefix bool       `json:"any_prefix,omitempty"` // the joiner may claim any free prefix; Prefixes is empty
	Roles     []NodeRole `json:"roles,omitempty"`      // given to the node
	Site      string     `json:"site,omitempty"`       // given to the node

	CAIndex uint64 `json:"ca_index,omitempty"` // CA.Index of the newest CA that there was when it was made
}

// A Tombstone remembers a node that left or was revoked, for ever: its
// addresses stay taken, its key stays refused.
type Tombstone struct {
	Name     string           `json:"name"`
	Identity mesh.IdentityKey `json:"identity"`
	Keys     []Key            `json:"keys"` // WireGuard keys that it had when it went
	Addr4    netip.Addr       `json:"addr4"`
	Addr6    netip.Addr       `json:"addr6"`
	Revoked  bool             `json:"revoked"`
	At       time.Time        `json:"at"`

	EverVoted bool `json:"ever_voted,omitempty"` // it knows the key of a CA
}

// A Boot identifies one run of one copy of a voter's log.
type Boot struct {
	N        uint64 `json:"n"`        // how often that log was opened; kept beside it, so that a copy has an old one
	Instance Nonce  `json:"instance"` // random, made when the process began
}
