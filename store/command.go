package store

import (
	"net/netip"
	"time"

	"guywire/mesh"
)

// A Command is one entry of the log. Exactly one pointer is set. Now is the
// leader's clock when it proposed; By says on whose authority.
type Command struct {
	Version int       `json:"version"`
	Now     time.Time `json:"now"`
	By      Authority `json:"by"`

	Init        *Init        `json:"init,omitempty"`
	AddToken    *AddToken    `json:"add_token,omitempty"`
	RevokeToken *RevokeToken `json:"revoke_token,omitempty"`
	Join        *Join        `json:"join,omitempty"`
	SetControl  *SetControl  `json:"set_control,omitempty"`
	SetVoter    *SetVoter    `json:"set_voter,omitempty"`
	Grant       *Grant       `json:"grant,omitempty"`
	RemoveNode  *RemoveNode  `json:"remove_node,omitempty"`
	SetTopology *SetTopology `json:"set_topology,omitempty"`
	SetPairs    *SetPairs    `json:"set_pairs,omitempty"`
	SetNode     *SetNode     `json:"set_node,omitempty"`
	SetDrain    *SetDrain    `json:"set_drain,omitempty"`
}

// since is the first version that knows the command.
func (c Command) since() int {
	if c.SetTopology != nil || c.SetPairs != nil || c.SetNode != nil || c.SetDrain != nil ||
		c.Init != nil && !c.Init.Settings.Topology.IsZero() {
		return 2
	}
	return 1
}

// An Authority is who asked: an operator (local root on a member), or a node
// by its identity. The zero Authority is a joiner, who has only a token.
type Authority struct {
	Operator bool        `json:"operator,omitempty"`
	Node     mesh.NodeID `json:"node,omitzero"` // the node that asked, or on whose socket the operator sat
}

type (
	// Init makes the mesh with its first node; valid on an empty state only.
	Init struct {
		Settings Settings         `json:"settings"`
		Name     string           `json:"name"`
		Identity mesh.IdentityKey `json:"identity"`
		Key      Key              `json:"key"`
		Prefixes []netip.Prefix   `json:"prefixes"`
		Control  []netip.AddrPort `json:"control"`
	}
	// AddToken creates a token (operator).
	AddToken struct {
		Token Token `json:"token"`
	}
	// RevokeToken makes a token unusable (operator).
	RevokeToken struct {
		ID string `json:"id"`
	}
	// Join admits a node. Signature is the token key's signature of
	// discovery/invite's transcript; Apply checks it, the token's uses and
	// expiry, the name and the prefixes, and writes everything in one step.
	Join struct {
		Token      string           `json:"token"`
		Transcript []byte           `json:"transcript"` // as signed
		Signature  []byte           `json:"signature"`  // by Token.Key
		Proof      []byte           `json:"proof"`      // of the same by Identity
		Name       string           `json:"name"`
		Identity   mesh.IdentityKey `json:"identity"`
		Key        Key              `json:"key"`
		Prefixes   []netip.Prefix   `json:"prefixes"`
		Request    string           `json:"request"` // idempotency key: a retry gets the first answer
	}
	// SetControl records where a node's control listener was reached (any member that checked).
	SetControl struct {
		Node    mesh.NodeID      `json:"node"`
		Control []netip.AddrPort `json:"control"`
	}
	// SetVoter records a change of the Raft configuration (voters only).
	SetVoter struct {
		Node  mesh.NodeID `json:"node"`
		Voter bool        `json:"voter"`
	}
	// Grant replaces the prefixes of a node (operator).
	Grant struct {
		Node     mesh.NodeID    `json:"node"`
		Prefixes []netip.Prefix `json:"prefixes"`
	}
	// RemoveNode makes a node a tombstone: it left (itself or operator) or was revoked (operator).
	RemoveNode struct {
		Node   mesh.NodeID `json:"node"`
		Revoke bool        `json:"revoke"`
	}
	// SetTopology replaces how neighbours are chosen; single pairs keep their rules (operator).
	SetTopology struct {
		Mode  TopologyMode `json:"mode,omitempty"`
		Hub   string       `json:"hub,omitempty"`
		Dense bool         `json:"dense,omitempty"`
	}
	// SetPairs takes rules of single pairs away, then gives some (operator).
	SetPairs struct {
		Unpin  []Pair `json:"unpin,omitempty"`
		Allow  []Pair `json:"allow,omitempty"` // forbidden no more
		Pin    []Pair `json:"pin,omitempty"`
		Forbid []Pair `json:"forbid,omitempty"`
	}
	// SetNode changes what an operator may decide about one node; nil stays as it is.
	SetNode struct {
		Node      mesh.NodeID `json:"node"`
		Transit   *bool       `json:"transit,omitempty"`
		MaxDegree *int        `json:"max_degree,omitempty"`
		Tags      *[]string   `json:"tags,omitempty"`
	}
	// SetDrain takes a node, an uplink or a link out of use, or back into it
	// (operator). The names are those of Drain, a link by either of its ends.
	SetDrain struct {
		Node   mesh.NodeID `json:"node"`
		Uplink string      `json:"uplink,omitempty"`
		Peer   mesh.NodeID `json:"peer,omitzero"`
		Remote string      `json:"remote,omitempty"`
		Drain  bool        `json:"drain"`
	}
)

// A Result is what a command did. Refused is nil when it was applied.
type Result struct {
	Index   uint64   `json:"index"`
	Node    *Node    `json:"node,omitempty"` // joined, initialised, changed or removed
	Refused *Refusal `json:"refused,omitempty"`
}

// A Refusal is a command that Apply rejected: a stable code for programs and
// a sentence for people, with the next step.
type Refusal struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Error implements error with the sentence.
func (r *Refusal) Error() string { return r.Message }

// Codes of refusals.
const (
	CodeTokenUnknown  = "token-unknown"
	CodeTokenUsed     = "token-used"
	CodeTokenExpired  = "token-expired"
	CodeTokenProof    = "token-proof"
	CodeNameTaken     = "name-taken"
	CodeNameInvalid   = "name-invalid"
	CodeIdentityTaken = "identity-taken"
	CodeRevoked       = "revoked"
	CodePoolEmpty     = "pool-empty"
	CodePrefixTaken   = "prefix-overlap"
	CodePrefixRefused = "prefix-refused"
	CodeForbidden     = "forbidden"
	CodeNotFound      = "not-found"
	CodeInvalid       = "invalid"
	CodeInitialised   = "already-initialised"
	CodePoolRefused   = "pool-refused"
	CodeLastVoter     = "last-voter"
	// CodeTopologyRefused is a rule that contradicts another, or the mesh.
	CodeTopologyRefused = "topology-refused"
)
