package store

import (
	"net/netip"
	"time"

	"guywire/mesh"
)

// A Command is one entry of the log. Exactly one pointer is set. Now is the
// leader's clock when it proposed.
//
// In a mesh of version 3 whoever asks signs: see SignCommand. Only a join is
// not signed this way, for it holds its own proofs. Before, By said on whose
// authority, and the voter that proposed was believed.
type Command struct {
	Version int       `json:"version"`
	Now     time.Time `json:"now"`
	By      Authority `json:"by"` // versions 1 and 2

	Author    mesh.IdentityKey `json:"author,omitzero"`     // who asks: a node, or an operator without one
	Request   Nonce            `json:"request,omitzero"`    // idempotency key: a retry gets the first answer
	After     uint64           `json:"after,omitempty"`     // index of the newest state that the author saw
	Signature []byte           `json:"signature,omitempty"` // by Author, of all but Now

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

	SetRoles       *SetRoles       `json:"set_roles,omitempty"`
	SetOperator    *SetOperator    `json:"set_operator,omitempty"`
	RemoveOperator *RemoveOperator `json:"remove_operator,omitempty"`
	Reserve        *Reserve        `json:"reserve,omitempty"`
	Unreserve      *Unreserve      `json:"unreserve,omitempty"`
	AddKey         *AddKey         `json:"add_key,omitempty"`
	DropKey        *DropKey        `json:"drop_key,omitempty"`
	SetSettings    *SetSettings    `json:"set_settings,omitempty"`
	RotateCA       *RotateCA       `json:"rotate_ca,omitempty"`
	SetVersion     *SetVersion     `json:"set_version,omitempty"`
	RegisterBoot   *RegisterBoot   `json:"register_boot,omitempty"`
	Recover        *Recover        `json:"recover,omitempty"`
	RotateGossip   *RotateGossip   `json:"rotate_gossip,omitempty"`
}

// since is the first version that knows the command.
func (c Command) since() int {
	switch {
	case c.SetVersion != nil:
		return max(signedVersion, c.SetVersion.Version) // who does not know that version must stop
	case c.Init != nil && (c.Init.Copy != nil || !c.Init.Check.IsZero() || c.Init.Settings.beyond3()):
		return max(GossipVersion, c.Init.Settings.Version)
	case c.RotateGossip != nil, c.Join != nil && len(c.Join.Copies) > 0:
		return GossipVersion
	case !c.Author.IsZero() || !c.Request.IsZero() || c.After != 0 || c.Signature != nil,
		c.SetRoles != nil, c.SetOperator != nil, c.RemoveOperator != nil, c.Reserve != nil, c.Unreserve != nil,
		c.AddKey != nil, c.DropKey != nil, c.SetSettings != nil, c.RotateCA != nil, c.RegisterBoot != nil, c.Recover != nil,
		c.AddToken != nil && c.AddToken.Token.beyond2(),
		c.Grant != nil && c.Grant.Shared != nil,
		c.SetNode != nil && c.SetNode.Site != nil:
		return signedVersion
	case c.Init != nil && (c.Init.Site != "" || c.Init.Settings.beyond2()):
		return max(signedVersion, c.Init.Settings.Version)
	case c.SetTopology != nil, c.SetPairs != nil, c.SetNode != nil, c.SetDrain != nil,
		c.Init != nil && !c.Init.Settings.Topology.IsZero():
		return 2
	}
	return 1
}

// actions are the names of what the command asks for: one, if it is well formed.
func (c Command) actions() (names []string) {
	for _, kind := range []struct {
		name string
		set  bool
	}{
		{"init", c.Init != nil},
		{"add_token", c.AddToken != nil},
		{"revoke_token", c.RevokeToken != nil},
		{"join", c.Join != nil},
		{"set_control", c.SetControl != nil},
		{"set_voter", c.SetVoter != nil},
		{"grant", c.Grant != nil},
		{"remove_node", c.RemoveNode != nil},
		{"set_topology", c.SetTopology != nil},
		{"set_pairs", c.SetPairs != nil},
		{"set_node", c.SetNode != nil},
		{"set_drain", c.SetDrain != nil},
		{"set_roles", c.SetRoles != nil},
		{"set_operator", c.SetOperator != nil},
		{"remove_operator", c.RemoveOperator != nil},
		{"reserve", c.Reserve != nil},
		{"unreserve", c.Unreserve != nil},
		{"add_key", c.AddKey != nil},
		{"drop_key", c.DropKey != nil},
		{"set_settings", c.SetSettings != nil},
		{"rotate_ca", c.RotateCA != nil},
		{"set_version", c.SetVersion != nil},
		{"register_boot", c.RegisterBoot != nil},
		{"recover", c.Recover != nil},
		{"rotate_gossip", c.RotateGossip != nil},
	} {
		if kind.set {
			names = append(names, kind.name)
		}
	}
	return names
}

func (c Command) action() string {
	if names := c.actions(); len(names) == 1 {
		return names[0]
	}
	return "invalid"
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
		Site     string           `json:"site,omitempty"`
		// Check and Copy are of the first gossip key, from version 4 on; there is
		// no Secret then.
		Check Digest `json:"check,omitzero"`
		Copy  *Copy  `json:"copy,omitempty"`
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
		// Copies of the gossip keys, by the voter that admits the node.
		Copies []Copy `json:"copies,omitempty"`
	}
	// SetControl records where a node's control listener was reached (the node, or a voter).
	SetControl struct {
		Node    mesh.NodeID      `json:"node"`
		Control []netip.AddrPort `json:"control"`
	}
	// SetVoter records a change of the Raft configuration (voters only).
	SetVoter struct {
		Node  mesh.NodeID `json:"node"`
		Voter bool        `json:"voter"`
	}
	// Grant replaces the prefixes of a node (operator). A prefix that is in
	// Shared, too, may be granted to several nodes, to each of them as shared.
	Grant struct {
		Node     mesh.NodeID    `json:"node"`
		Prefixes []netip.Prefix `json:"prefixes"`
		Shared   []netip.Prefix `json:"shared,omitempty"`
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
	// SetNode changes what an operator may decide about one node; nil stays as it
	// is. Where it is, the node may say itself.
	SetNode struct {
		Node      mesh.NodeID `json:"node"`
		Transit   *bool       `json:"transit,omitempty"`
		MaxDegree *int        `json:"max_degree,omitempty"`
		Tags      *[]string   `json:"tags,omitempty"`
		Site      *string     `json:"site,omitempty"`
	}
	// SetDrain takes a node, an uplink or a link out of use, or back into it
	// (operator, or the node itself). The names are those of Drain, a link by
	// either of its ends.
	SetDrain struct {
		Node   mesh.NodeID `json:"node"`
		Uplink string      `json:"uplink,omitempty"`
		Peer   mesh.NodeID `json:"peer,omitzero"`
		Remote string      `json:"remote,omitempty"`
		Drain  bool        `json:"drain"`
	}
	// SetRoles replaces the roles of a node (operator). The last operator of
	// the mesh keeps its role.
	SetRoles struct {
		Node  mesh.NodeID `json:"node"`
		Roles []NodeRole  `json:"roles"`
	}
	// SetOperator makes somebody without a node an operator, or changes what
	// the one of that name may do (operator).
	SetOperator struct {
		Name     string   `json:"name"`
		Operator Operator `json:"operator"` // Created is set by Apply
	}
	// RemoveOperator ends what SetOperator gave (operator).
	RemoveOperator struct {
		Name string `json:"name"`
	}
	// Reserve keeps an address for the node that will join with the name
	// (operator). Addr is from either pool; that of the other ends alike. An
	// earlier reservation for the name is replaced.
	Reserve struct {
		Name string     `json:"name"`
		Addr netip.Addr `json:"addr"`
	}
	// Unreserve gives reserved addresses back (operator).
	Unreserve struct {
		Name string `json:"name"`
	}
	// AddKey gives a node a further WireGuard key (the node itself). Its epoch
	// is above all that the node ever had, and nobody has the key: what was
	// dropped is remembered by its epoch alone.
	AddKey struct {
		Node mesh.NodeID `json:"node"`
		Key  Key         `json:"key"`
	}
	// DropKey takes a WireGuard key away; one remains (the node itself).
	DropKey struct {
		Node  mesh.NodeID `json:"node"`
		Epoch mesh.Epoch  `json:"epoch"`
	}
	// SetSettings changes settings of the mesh; nil stays as it is (operator).
	SetSettings struct {
		CacheMaxAge *time.Duration `json:"cache_max_age,omitempty"` // see Settings
		Voters      *int           `json:"voters,omitempty"`        // see Settings
	}
	// RotateCA takes one step of a change of the mesh's CA (voter).
	RotateCA struct {
		Step CAStep `json:"step"`
		Pin  Digest `json:"pin"`
		Root []byte `json:"root,omitempty"` // with CAAdd, and only then
		// Aged, with CAAdd: the current CA is only old. Tokens that pin it are
		// waited for: see CA.From.
		Aged bool `json:"aged,omitempty"`
	}
	// RotateGossip takes one step of a change of the gossip key (voter).
	RotateGossip struct {
		Step  GossipStep `json:"step"`
		Epoch mesh.Epoch `json:"epoch,omitempty"`
		Check Digest     `json:"check,omitzero"` // with GossipAdd, and only then
		// Copies, with GossipAdd and GossipSeal, for members.
		Copies map[mesh.NodeID][]Copy `json:"copies,omitempty"`
	}
	// SetVersion raises Settings.Version by one (voter, once every voter and
	// every follower knows the new version).
	SetVersion struct {
		Version int `json:"version"`
	}
	// RegisterBoot records that a voter runs, with which copy of its log (the
	// voter itself). What is older than the one recorded, or as old and another
	// one, is refused with CodeStaleBoot.
	RegisterBoot struct {
		Node mesh.NodeID `json:"node"`
		Boot Boot        `json:"boot"`
	}
	// Recover begins the mesh again from one node's state (that node). It is
	// for the function Recovered; Apply refuses it.
	Recover struct {
		Node       mesh.NodeID `json:"node"`
		Generation uint64      `json:"generation"` // the one that begins
	}
)

// A Result is what a command did. Refused is nil when it was applied. A
// request that is repeated gets the result of the first time: its index, its
// refusal by code, and the node as it is now.
type Result struct {
	Index   uint64       `json:"index"`
	Node    *Node        `json:"node,omitempty"` // joined, initialised, changed or removed
	Refused *Refusal     `json:"refused,omitempty"`
	Record  *AuditRecord `json:"record,omitempty"` // what the audit trail says of this entry; nil before version 3
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
	// CodeVersion is a command that the mesh's version does not know yet.
	CodeVersion = "version"
	// CodeUnsigned is a command without a valid signature of its author.
	CodeUnsigned = "unsigned"
	// CodeStale is a command signed so long ago that it cannot be told from a
	// replay; sign it again with a newer After and the same Request.
	CodeStale = "stale"
	// CodeLastOperator is a change that would leave nobody who may change anything.
	CodeLastOperator = "last-operator"
	// CodeStaleBoot is a voter whose log is an old copy, or a second one.
	CodeStaleBoot = "stale-boot"
	// CodeAddressTaken is a reservation of an address that is in use.
	CodeAddressTaken = "address-taken"
)
