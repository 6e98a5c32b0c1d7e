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
// that breaks a rule is refused and changes nothing but the index and, from
// version 3 on, the audit trail and the memory of requests. An index that s has
// seen already is refused with s itself, so a replay is harmless. A nil s is
// New(). What the Result holds is part of the new state: read only.
//
// Who may do what is decided here, against the state at this index, so no
// revocation can be overtaken by a request that was let in before it. From
// version 3 on the author's signature says who asks. Before, By is believed:
// whoever proposed has authenticated it.
func Apply(s *State, index uint64, c Command) (*State, Result) {
	if s == nil {
		s = New()
	}
	if index <= s.Index {
		return s, Result{Index: index, Refused: refuse(CodeInvalid, "entry %d of the log is already applied; the state is at %d", index, s.Index)}
	}
	c.Now = c.Now.UTC().Round(0)
	next := *s
	next.Index = index
	o := next.apply(c)
	if o.Refused != nil || o.repeated {
		next = *s // whatever was half done
		next.Index = index
	}
	if next.Mesh.Version >= signedVersion {
		next.Answered = next.Answered.at(index)
		if o.request != (answerKey{}) {
			next.remember(o.request, o.Result)
		}
		o.Record = next.record(c, o.author, o.outcome())
	}
	return &next, o.Result
}

// Check tells whether the command would be refused now, without doing
// anything: what a voter asks before it lets a command of a stranger into the
// log. c.Now is the caller's clock.
func Check(s *State, c Command) *Refusal {
	index := uint64(1)
	if s != nil {
		index += s.Index
	}
	_, r := Apply(s, index, c)
	return r.Refused
}

// Vet refuses what is not one command, or lacks the signature that the mesh
// wants: no later state would take it, whoever it is from. It costs less than
// Check and says nothing of all else. c.Version and c.Now are set.
func Vet(s *State, c Command) *Refusal {
	if refused := s.checkForm(c); refused != nil {
		return refused
	}
	if s.Mesh.Version >= signedVersion && c.Join == nil && !c.signed(s.Mesh.ID) {
		return refuseUnsigned()
	}
	return nil
}

// A decision is what came of a command, and what is to be kept of it.
type decision struct {
	Result
	author   mesh.IdentityKey // who proved to ask; zero: nobody
	request  answerKey        // zero: not to be remembered
	repeated bool             // Result is that of the first time
}

func (d decision) outcome() string {
	switch {
	case d.repeated:
		return OutcomeRepeated
	case d.Refused != nil:
		return OutcomeRefused + d.Refused.Code
	default:
		return OutcomeOK
	}
}

func (s *State) decided(node *Node, refused *Refusal) decision {
	if refused != nil {
		node = nil
	}
	return decision{Result: Result{Index: s.Index, Node: node, Refused: refused}}
}

// apply changes s, which is a shallow copy: maps and slices in it belong to
// older states too and are replaced, never written to.
func (s *State) apply(c Command) decision {
	if refused := s.checkForm(c); refused != nil {
		return s.decided(nil, refused)
	}
	switch {
	case c.Init != nil:
		d := s.decided(s.init(c))
		if d.Refused == nil {
			d.author = c.Author
		}
		return d
	case s.Mesh.ID.IsZero():
		return s.decided(nil, refuse(CodeNotFound, "there is no mesh here yet; make one: meshctl init"))
	case c.SetVersion == nil && c.since() > max(s.Mesh.Version, signedVersion-1):
		return s.decided(nil, refuse(CodeVersion, "the mesh is still at version %d and does not know this; it goes on by itself once every node runs a newer Guywire", s.NextVersion()-1))
	case c.Join != nil:
		return s.applyJoin(c)
	case s.Mesh.Version >= signedVersion || c.SetVersion != nil:
		return s.applySigned(c)
	}
	if refused := s.believe(c); refused != nil {
		return s.decided(nil, refused)
	}
	return s.decided(s.do(c, c.By.Node))
}

// checkForm refuses what is not one command of a known version.
func (s *State) checkForm(c Command) *Refusal {
	if c.Version < c.since() || c.Version > Version {
		return refuse(CodeInvalid, "the command has version %d and this is version %d; run one version of Guywire on all voters", c.Version, Version)
	}
	if !validTime(c.Now) {
		return refuse(CodeInvalid, "the leader's clock is unusable; set it and try again")
	}
	if kinds := len(c.actions()); kinds != 1 {
		return refuse(CodeInvalid, "a command must ask for one thing and this one asks for %d", kinds)
	}
	return nil
}

func (s *State) applyJoin(c Command) decision {
	if !c.Author.IsZero() || !c.Request.IsZero() || c.After != 0 || c.Signature != nil {
		return s.decided(nil, refuse(CodeInvalid, "a join proves itself and is not signed; run the same version of Guywire on both sides"))
	}
	d := s.decided(s.join(*c.Join, c.Now))
	if d.Refused == nil || d.Refused.Code != CodeTokenProof {
		d.author = c.Join.Identity
	}
	return d
}

// applySigned does what a signed command asks for, once.
func (s *State) applySigned(c Command) decision {
	if !c.signed(s.Mesh.ID) {
		return s.decided(nil, refuseUnsigned())
	}
	d := decision{author: c.Author}
	request := c.answerKey()
	if first, known := s.Answered.at(s.Index).find(request); known {
		d.Result, d.repeated = s.result(first), true
		return d
	}
	if c.After >= s.Index || s.Index-c.After > Window {
		d.Result = s.decided(nil, refuse(CodeStale, "the request was signed at index %d and this is %d; ask again", c.After, s.Index)).Result
		return d
	}
	operated := s.operated()
	node, refused := (*Node)(nil), s.permit(c)
	if refused == nil {
		node, refused = s.do(c, c.Author.NodeID())
	}
	if refused == nil && operated && len(s.Nodes) > 0 && !s.operated() {
		refused = refuse(CodeLastOperator, "nobody could change the mesh any more; make another node an operator first: meshctl node set NODE --role operator")
	}
	d.Result, d.request = s.decided(node, refused).Result, request
	return d
}

func refuseUnsigned() *Refusal {
	return refuse(CodeUnsigned, "the request is not signed by who asks; run the same version of Guywire on all nodes")
}

// believe is the authorisation of versions 1 and 2.
func (s *State) believe(c Command) *Refusal {
	leaves := c.RemoveNode != nil && c.By.Node == c.RemoveNode.Node && !c.RemoveNode.Revoke
	_, member := s.Nodes[c.By.Node]
	switch {
	case leaves:
		return nil
	case !member:
		return refuse(CodeForbidden, "only a member of the mesh may do this; join first: meshctl join TOKEN")
	case !c.By.Operator && c.SetControl == nil && c.SetVoter == nil:
		return refuse(CodeForbidden, "only an operator may do this; run meshctl as root on a member")
	}
	return nil
}

// do does what a command asks for in the name of by, who may.
func (s *State) do(c Command, by mesh.NodeID) (*Node, *Refusal) {
	switch {
	case c.AddToken != nil:
		return nil, s.addToken(c.AddToken.Token, c.Now)
	case c.RevokeToken != nil:
		return nil, s.revokeToken(c.RevokeToken.ID)
	case c.SetControl != nil:
		return s.setControl(*c.SetControl)
	case c.SetVoter != nil:
		return s.setVoter(*c.SetVoter)
	case c.Grant != nil:
		return s.grant(*c.Grant)
	case c.RemoveNode != nil:
		return s.removeNode(*c.RemoveNode, by, c.Now)
	case c.SetTopology != nil:
		return nil, s.setTopology(*c.SetTopology)
	case c.SetPairs != nil:
		return nil, s.setPairs(*c.SetPairs)
	case c.SetNode != nil:
		return s.setNode(*c.SetNode)
	case c.SetDrain != nil:
		return s.setDrain(c, by)
	case c.SetRoles != nil:
		return s.setRoles(*c.SetRoles)
	case c.SetOperator != nil:
		return nil, s.setOperator(*c.SetOperator, c.Now)
	case c.RemoveOperator != nil:
		return nil, s.removeOperator(*c.RemoveOperator)
	case c.Reserve != nil:
		return nil, s.reserve(*c.Reserve)
	case c.Unreserve != nil:
		return nil, s.unreserve(*c.Unreserve)
	case c.AddKey != nil:
		return s.addKey(*c.AddKey)
	case c.DropKey != nil:
		return s.dropKey(*c.DropKey)
	case c.SetSettings != nil:
		return nil, s.setSettings(*c.SetSettings)
	case c.RotateCA != nil:
		return nil, s.rotateCA(*c.RotateCA, c.Now)
	case c.RotateGossip != nil:
		return nil, s.rotateGossip(*c.RotateGossip, c.Now)
	case c.SetVersion != nil:
		return nil, s.setVersion(*c.SetVersion)
	case c.RegisterBoot != nil:
		return s.registerBoot(*c.RegisterBoot)
	default: // Init, Join and Recover are not done here
		return nil, refuse(CodeInvalid, "this cannot be asked for")
	}
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

func (s *State) setControl(c SetControl) (*Node, *Refusal) {
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

// setVoter records what the leader does with the Raft configuration. Whoever
// has no vote has no log either: the next one begins to count anew.
func (s *State) setVoter(c SetVoter) (*Node, *Refusal) {
	n, refused := s.live(c.Node)
	if refused != nil {
		return nil, refused
	}
	if c.Voter && slices.Contains(n.Roles, NodeNoVote) {
		return nil, refuse(CodeForbidden, "%s has the role %s and is not made a voter", n.Name, NodeNoVote)
	}
	n.Voter = c.Voter
	if !c.Voter {
		n.Boot = Boot{}
	}
	if s.Mesh.Version >= signedVersion {
		n.EverVoted = n.EverVoted || c.Voter
	}
	return s.put(n), nil
}

func (s *State) grant(c Grant) (*Node, *Refusal) {
	n, refused := s.live(c.Node)
	if refused != nil {
		return nil, refused
	}
	if n.Prefixes, refused = s.claim(n.ID, c.Prefixes, c.Shared); refused != nil {
		return nil, refused
	}
	n.Shared = sortedPrefixes(c.Shared)
	return s.put(n), nil
}

// removeNode leaves a tombstone for ever. A repeated request is answered
// like the first one, and what left may still be revoked.
func (s *State) removeNode(c RemoveNode, by mesh.NodeID, now time.Time) (*Node, *Refusal) {
	if t, gone := s.Removed[c.Node]; gone {
		if c.Revoke && !t.Revoked {
			t.Revoked = true
			s.bury(c.Node, t)
			if t.EverVoted {
				s.distrustCAs()
			}
			s.distrustGossip()
		}
		return t.node(c.Node), nil
	}
	n, refused := s.live(c.Node)
	if refused != nil {
		return nil, refused
	}
	if n.Voter && len(s.Nodes) > 1 && !slices.ContainsFunc(slices.Collect(maps.Values(s.Nodes)), func(o Node) bool { return o.Voter && o.ID != n.ID }) {
		return nil, refuse(CodeLastVoter, "%s is the only voter and the mesh would lose its log; let another node that is reachable from outside become a voter first (meshctl raft status)", n.Name)
	}
	s.remove(n, c.Revoke, now)
	// Who leaves by itself is trusted to destroy its copies of the keys.
	if by != n.ID {
		if n.EverVoted {
			s.distrustCAs()
		}
		s.distrustGossip()
	}
	return &n, nil
}

// remove puts a tombstone in the place of a node.
func (s *State) remove(n Node, revoked bool, now time.Time) {
	s.Nodes = maps.Clone(s.Nodes)
	delete(s.Nodes, n.ID)
	s.forget(n.ID)
	s.bury(n.ID, Tombstone{Name: n.Name, Identity: n.Identity, Keys: n.Keys, Addr4: n.Addr4, Addr6: n.Addr6, Revoked: revoked, At: now, EverVoted: n.EverVoted})
}

// Without gives the state as it would be without some members, for who must
// treat them as revoked before the log can say so. It is no state of the log
// itself: it has the index and the head of s.
func (s *State) Without(members ...mesh.NodeID) *State {
	next := *s
	for _, id := range members {
		if n, member := next.Nodes[id]; member {
			next.remove(n, true, time.Time{})
		}
	}
	return &next
}

// node is what can still be said about a node that is gone.
func (t Tombstone) node(id mesh.NodeID) *Node {
	return &Node{ID: id, Name: t.Name, Identity: t.Identity, Keys: t.Keys, Addr4: t.Addr4, Addr6: t.Addr6}
}

func (s *State) bury(id mesh.NodeID, t Tombstone) {
	s.Removed = maps.Clone(s.Removed)
	if s.Removed == nil {
		s.Removed = map[mesh.NodeID]Tombstone{}
	}
	s.Removed[id] = t
}
