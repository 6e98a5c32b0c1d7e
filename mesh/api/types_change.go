package api

import (
	"net/netip"
	"time"
)

// An InitRequest makes a mesh on this host.
type InitRequest struct {
	Mesh     string             `json:"mesh"`  // name; empty: "mesh"
	Name     string             `json:"name"`  // of this node; empty: configured, else the host name
	Pool4    *netip.Prefix      `json:"pool4"` // overlay addresses; null: the default
	Pool6    *netip.Prefix      `json:"pool6"` // null: a random ULA /48
	Prefixes List[netip.Prefix] `json:"prefixes"`
	Site     string             `json:"site"` // where this node is; empty: unknown
}

// A JoinRequest brings this host into the mesh that made the token.
type JoinRequest struct {
	Token    string             `json:"token"` // secret
	Name     string             `json:"name"`  // empty: the token's, configured, else the host name
	Prefixes List[netip.Prefix] `json:"prefixes"`
}

// Enrolled is what a node is after init or join.
type Enrolled struct {
	Schema Schema   `json:"schema"`
	Mesh   MeshInfo `json:"mesh"`
	Node   SelfInfo `json:"node"`
	// NeighbourMs is the time from the request to the first link up, and
	// Neighbour whose; null and empty after init, or when none came up yet.
	Neighbour   string   `json:"neighbour"`
	NeighbourMs *float64 `json:"neighbour_ms"`
}

// A JoinStep is one line of the transcript of a join. The last one has Result.
type JoinStep struct {
	Schema    Schema  `json:"schema"`
	Index     uint64  `json:"index"` // set by the server
	ElapsedMs float64 `json:"elapsed_ms"`
	Kind      string  `json:"kind" enum:"token,server,admitted,uplink,link,ready"`
	Sentence  string  `json:"sentence"`

	Addrs  List[netip.Addr] `json:"addrs,omitempty"`  // kind admitted
	Uplink *Uplink          `json:"uplink,omitempty"` // kind uplink
	Peer   string           `json:"peer,omitempty"`   // kind link
	Result *Enrolled        `json:"result,omitempty"` // kind ready
}

// A SinceQuery resumes a stream after an index.
type SinceQuery struct {
	Since uint64 `json:"since"`
}

// A TokenRequest makes a token. What is inside binds the joiner.
type TokenRequest struct {
	Name      string             `json:"name"`       // the joiner must have it; empty: any
	Prefixes  List[netip.Prefix] `json:"prefixes"`   // the joiner may claim networks inside these; empty: none
	AnyPrefix bool               `json:"any_prefix"` // the joiner may claim any free network; Prefixes is empty
	Tags      List[string]       `json:"tags"`
	Roles     List[string]       `json:"roles"`  // that the joiner gets, see RoleOperator
	Site      string             `json:"site"`   // of the joiner
	Uses      int                `json:"uses"`   // 0: 1
	TTLMs     float64            `json:"ttl_ms"` // 0: DefaultTokenTTL
}

// Roles that operators give to nodes.
const (
	RoleOperator = "operator" // its root may change the mesh
	RoleNoVote   = "no-vote"  // it never holds the log
)

// Bounds of a token.
const (
	DefaultTokenTTL = 24 * time.Hour
	MaxTokenTTL     = 30 * 24 * time.Hour
	MaxTokenUses    = 1000
)

// A CreatedToken holds the only copy of a token's text.
type CreatedToken struct {
	Schema Schema `json:"schema"`
	Text   string `json:"token"` // secret: shown once
	Token  Token  `json:"about"`
}

// Tokens lists the tokens that are not used up and have not expired.
type Tokens struct {
	Schema Schema      `json:"schema"`
	Tokens List[Token] `json:"tokens"`
}

// A Token is what may be known of a token.
type Token struct {
	ID        string             `json:"id"`
	Name      string             `json:"name"`
	Prefixes  List[netip.Prefix] `json:"prefixes"`
	AnyPrefix bool               `json:"any_prefix"`
	Tags      List[string]       `json:"tags"`
	Roles     List[string]       `json:"roles"`
	Site      string             `json:"site"`
	Uses      int                `json:"uses"` // left
	Created   time.Time          `json:"created"`
	Expires   time.Time          `json:"expires"`
	Unusable  string             `json:"unusable"` // why it admits nobody before it expires; empty: it does
}

// A TokenQuery names a token.
type TokenQuery struct {
	ID string `json:"id"`
}

// VersionInfo is a program's build.
type VersionInfo struct {
	Schema   Schema `json:"schema"`
	Version  string `json:"version"`
	Revision string `json:"revision"` // of the source; empty: unknown
	Modified bool   `json:"modified"` // built from a tree with changes
	Go       string `json:"go"`
}
