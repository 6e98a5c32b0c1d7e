package store

import (
	"maps"
	"slices"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
)

// Limits of what a command may hold.
const (
	MaxTokenUses     = 10_000
	MaxTokenLifetime = 366 * 24 * time.Hour
	MaxTokens        = 10_000
	MaxTags          = 16
	MaxControl       = 8
	MaxPrefixes      = invite.MaxPrefixes // of one node
	MaxRequest       = invite.MaxText     // bytes
	MaxRoots         = 4
	MaxRootBytes     = 8 << 10

	tokenMemory = 7 * 24 * time.Hour // how long an expired token is still told apart from an unknown one
)

// New is the state before the first command.
func New() *State {
	return &State{
		Version: Version,
		Nodes:   map[mesh.NodeID]Node{},
		Tokens:  map[string]Token{},
		Removed: map[mesh.NodeID]Tombstone{},
	}
}

// Apply gives the state after the command at index of the log, and what the
// command did. It never changes s, never panics and never fails: a command
// that breaks a rule is refused and changes nothing but the index. An index
// that s has seen already is refused with s itself, so a replay is harmless.
// A nil s is New(). What the Result holds is part of the new state: read only.
//
// By is believed: whoever proposes (the leader's API) has authenticated it.
// What that identity may do is decided here, against the state at this index,
// so no revocation can be overtaken by a request that was let in before it.
func Apply(s *State, index uint64, c Command) (*State, Result) {
	if s == nil {
		s = New()
	}
	if index <= s.Index {
		return s, Result{Index: index, Refused: refuse(CodeInvalid, "entry %d of the log is already applied; the state is at %d", index, s.Index)}
	}
	next := *s
	next.Index = index
	node, refused := next.apply(c)
	if refused != nil {
		next = *s // whatever was half done
		next.Index = index
		return &next, Result{Index: index, Refused: refused}
	}
	return &next, Result{Index: index, Node: node}
}

// apply changes s, which is a shallow copy: maps and slices in it belong to
// older states too and are replaced, never written to.
func (s *State) apply(c Command) (*Node, *Refusal) {
	c.Now = c.Now.UTC().Round(0)
	if c.Version < c.since() || c.Version > Version {
		return nil, refuse(CodeInvalid, "the command has version %d and this is version %d; run one version of Guywire on all voters", c.Version, Version)
	}
	if !validTime(c.Now) {
		return nil, refuse(CodeInvalid, "the leader's clock is unusable; set it and try again")
	}
	kinds := 0
	for _, set := range []bool{
		c.Init != nil, c.AddToken != nil, c.RevokeToken != nil, c.Join != nil,
		c.SetControl != nil, c.SetVoter != nil, c.Grant != nil, c.RemoveNode != nil,
		c.SetTopology != nil, c.SetPairs != nil, c.SetNode != nil, c.SetDrain != nil,
	} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return nil, refuse(CodeInvalid, "a command must ask for one thing and this one asks for %d", kinds)
	}
	if c.Init != nil {
		return s.init(*c.Init, c.Now)
	}
	if s.Mesh.ID.IsZero() {
		return nil, refuse(CodeNotFound, "there is no mesh here yet; make one: meshctl init")
	}
	switch {
	case c.Join != nil:
		return s.join(*c.Join, c.Now)
	case c.RemoveNode != nil:
		return s.removeNode(*c.RemoveNode, c.By, c.Now)
	case c.SetControl != nil:
		return s.setControl(*c.SetControl, c.By)
	case c.SetVoter != nil:
		return s.setVoter(*c.SetVoter, c.By)
	}
	if refused := s.operator(c.By); refused != nil {
		return nil, refused
	}
	switch {
	case c.AddToken != nil:
		return nil, s.addToken(c.AddToken.Token, c.Now)
	case c.RevokeToken != nil:
		return nil, s.revokeToken(c.RevokeToken.ID)
	case c.SetTopology != nil:
		return nil, s.setTopology(*c.SetTopology)
	case c.SetPairs != nil:
		return nil, s.setPairs(*c.SetPairs)
	case c.SetNode != nil:
		return s.setNode(*c.SetNode)
	case c.SetDrain != nil:
		return s.setDrain(*c.SetDrain, c.By, c.Now)
	default:
		return s.grant(*c.Grant)
	}
}

// member refuses an authority that is not a live member.
func (s *State) member(by Authority) *Refusal {
	if _, live := s.Nodes[by.Node]; !live {
		return refuse(CodeForbidden, "only a member of the mesh may do this; join first: meshctl join TOKEN")
	}
	return nil
}

// operator refuses an authority that is not an operator on a live member.
func (s *State) operator(by Authority) *Refusal {
	if refused := s.member(by); refused != nil {
		return refused
	}
	if !by.Operator {
		return refuse(CodeForbidden, "only an operator may do this; run meshctl as root on a member")
	}
	return nil
}

// live gives the node that a command is about.
func (s *State) live(id mesh.NodeID) (Node, *Refusal) {
	n, ok := s.Nodes[id]
	if !ok {
		return Node{}, refuse(CodeNotFound, "no node %s is in the mesh; see meshctl nodes", id)
	}
	return n, nil
}

func (s *State) put(n Node) *Node {
	s.Nodes = maps.Clone(s.Nodes)
	if s.Nodes == nil {
		s.Nodes = map[mesh.NodeID]Node{}
	}
	s.Nodes[n.ID] = n
	return &n
}

func (s *State) putToken(t Token) {
	s.Tokens = maps.Clone(s.Tokens)
	if s.Tokens == nil {
		s.Tokens = map[string]Token{}
	}
	s.Tokens[t.ID] = t
}

func (s *State) setControl(c SetControl, by Authority) (*Node, *Refusal) {
	if refused := s.member(by); refused != nil {
		return nil, refused
	}
	n, refused := s.live(c.Node)
	if refused != nil {
		return nil, refused
	}
	if refused := checkControl(c.Control); refused != nil {
		return nil, refused
	}
	n.Control = clone(c.Control)
	return s.put(n), nil
}

// setVoter trusts any member: the voter that proposes speaks for the Raft
// configuration, and may be a leader whose own promotion is not recorded yet.
func (s *State) setVoter(c SetVoter, by Authority) (*Node, *Refusal) {
	if refused := s.member(by); refused != nil {
		return nil, refused
	}
	n, refused := s.live(c.Node)
	if refused != nil {
		return nil, refused
	}
	n.Voter = c.Voter
	return s.put(n), nil
}

func (s *State) grant(c Grant) (*Node, *Refusal) {
	n, refused := s.live(c.Node)
	if refused != nil {
		return nil, refused
	}
	if n.Prefixes, refused = s.claim(n.ID, c.Prefixes); refused != nil {
		return nil, refused
	}
	return s.put(n), nil
}

// removeNode leaves a tombstone for ever. A repeated request is answered
// like the first one, and what left may still be revoked.
func (s *State) removeNode(c RemoveNode, by Authority, now time.Time) (*Node, *Refusal) {
	self := by.Node == c.Node && !c.Revoke
	if !self {
		if refused := s.operator(by); refused != nil {
			return nil, refused
		}
	}
	if t, gone := s.Removed[c.Node]; gone {
		if c.Revoke && !t.Revoked {
			t.Revoked = true
			s.bury(c.Node, t)
		}
		return &Node{ID: c.Node, Name: t.Name, Identity: t.Identity, Keys: t.Keys, Addr4: t.Addr4, Addr6: t.Addr6}, nil
	}
	n, refused := s.live(c.Node)
	if refused != nil {
		return nil, refused
	}
	if n.Voter && len(s.Nodes) > 1 && !slices.ContainsFunc(slices.Collect(maps.Values(s.Nodes)), func(o Node) bool { return o.Voter && o.ID != n.ID }) {
		return nil, refuse(CodeLastVoter, "%s is the only voter and the mesh would lose its log; let another node that is reachable from outside become a voter first (meshctl raft status)", n.Name)
	}
	s.Nodes = maps.Clone(s.Nodes)
	delete(s.Nodes, n.ID)
	s.forget(n.ID)
	s.bury(n.ID, Tombstone{Name: n.Name, Identity: n.Identity, Keys: n.Keys, Addr4: n.Addr4, Addr6: n.Addr6, Revoked: c.Revoke, At: now})
	return &n, nil
}

func (s *State) bury(id mesh.NodeID, t Tombstone) {
	s.Removed = maps.Clone(s.Removed)
	if s.Removed == nil {
		s.Removed = map[mesh.NodeID]Tombstone{}
	}
	s.Removed[id] = t
}
