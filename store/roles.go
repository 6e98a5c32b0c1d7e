package store

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
)

// A NodeRole is what an operator may make of a node beyond a member.
type NodeRole string

// Roles of nodes.
const (
	NodeOperator NodeRole = "operator" // its root may change the mesh
	NodeNoVote   NodeRole = "no-vote"  // it never holds the log, nor the key of the CA
)

// A Right is what an operator without a node may do.
type Right string

// Rights.
const (
	RightRead   Right = "read"   // all that can be looked at
	RightChange Right = "change" // that, and change the mesh
)

// MaxOperators bounds the operators without a node.
const MaxOperators = 256

// An Operator is somebody who may look at the mesh or change it from a machine
// that is no member: an administrator's laptop, a program. The private half of
// Key never leaves that machine.
type Operator struct {
	Key     mesh.IdentityKey `json:"key"`
	Right   Right            `json:"right"`
	Expires time.Time        `json:"expires,omitzero"` // zero: never
	Created time.Time        `json:"created"`          // leader's clock
}

// A Role is all that the log says about the holder of an identity key.
type Role uint8

// Parts of a Role. Somebody who is nobody has none.
const (
	RoleNode     Role = 1 << iota // a live member
	RoleVoter                     // a member that is a voter
	RoleReader                    // may look at everything
	RoleOperator                  // may change everything that operators change
	RoleRevoked                   // left the mesh or was revoked; alone
)

// RoleNobody is the role of a key that the log does not know.
const RoleNobody Role = 0

// Has reports whether the role has all parts of want.
func (r Role) Has(want Role) bool { return r&want == want }

// RoleOf gives the role of whoever proves to hold the key, at the time now: an
// operator may expire. In a mesh before version 3 nobody is an operator by the
// log; the root of every member is one.
func (s *State) RoleOf(key mesh.IdentityKey, now time.Time) Role {
	id := key.NodeID()
	if n, live := s.Nodes[id]; live && n.Identity == key {
		role := RoleNode
		if n.Voter {
			role |= RoleVoter
		}
		if slices.Contains(n.Roles, NodeOperator) {
			role |= RoleReader | RoleOperator
		}
		return role
	}
	if t, gone := s.Removed[id]; gone && t.Identity == key {
		return RoleRevoked
	}
	for _, o := range s.Operators {
		if o.Key != key || !o.Expires.IsZero() && !now.Before(o.Expires) {
			continue
		}
		if o.Right == RightChange {
			return RoleReader | RoleOperator
		}
		return RoleReader
	}
	return RoleNobody
}

// permit refuses what the author of a signed command may not do. A member may
// change what is its own, an operator what is for people to decide, a voter
// what the log must know about itself.
func (s *State) permit(c Command) *Refusal {
	role := s.RoleOf(c.Author, c.Now)
	self := func(id mesh.NodeID) bool { return role.Has(RoleNode) && c.Author.NodeID() == id }
	operator, voter := role.Has(RoleOperator), role.Has(RoleVoter)
	switch {
	case role == RoleRevoked:
		return refuse(CodeForbidden, "this machine was removed from the mesh; join again with an empty state directory and a new token")
	case c.SetControl != nil:
		return allowIf(voter || self(c.SetControl.Node), "only a voter, or the node itself, may say where a node can be reached")
	case c.SetVoter != nil, c.SetVersion != nil, c.RotateCA != nil, c.RotateGossip != nil:
		return allowIf(voter, "only a voter may do this, and does it by itself")
	case c.RegisterBoot != nil:
		return allowIf(voter && self(c.RegisterBoot.Node), "only a voter itself may say which copy of its log it runs")
	case c.AddKey != nil:
		return allowIf(self(c.AddKey.Node), "only the node itself may change its keys; run meshctl on that node")
	case c.DropKey != nil:
		return allowIf(self(c.DropKey.Node), "only the node itself may change its keys; run meshctl on that node")
	case c.Recover != nil:
		return refuse(CodeForbidden, "a mesh that has its log is not recovered; see meshctl raft status")
	case c.RemoveNode != nil && !c.RemoveNode.Revoke && self(c.RemoveNode.Node), c.SetDrain != nil && self(c.SetDrain.Node),
		c.SetNode != nil && self(c.SetNode.Node) && *c.SetNode == (SetNode{Node: c.SetNode.Node, Site: c.SetNode.Site}):
		return nil
	case role == RoleNobody:
		return refuse(CodeForbidden, "only a member of the mesh or an operator may do this; join first: meshctl join TOKEN")
	default:
		return allowIf(operator, "only an operator may do this; run meshctl on a node with that role, or let one give it to this node: meshctl node set NODE --role operator")
	}
}

func allowIf(allowed bool, sentence string) *Refusal {
	if allowed {
		return nil
	}
	return refuse(CodeForbidden, "%s", sentence)
}

// operated reports whether somebody may change the mesh and will not lose that
// by the passing of time.
func (s *State) operated() bool {
	for _, n := range s.Nodes {
		if slices.Contains(n.Roles, NodeOperator) {
			return true
		}
	}
	for _, o := range s.Operators {
		if o.Right == RightChange && o.Expires.IsZero() {
			return true
		}
	}
	return false
}

func (s *State) setRoles(c SetRoles) (*Node, *Refusal) {
	n, refused := s.live(c.Node)
	if refused != nil {
		return nil, refused
	}
	if refused := checkRoles(c.Roles); refused != nil {
		return nil, refused
	}
	n.Roles = sortedSet(c.Roles)
	return s.put(n), nil
}

func checkRoles(roles []NodeRole) *Refusal {
	for i, r := range roles {
		if r != NodeOperator && r != NodeNoVote {
			return refuse(CodeInvalid, "there is no role %q; choose %s or %s", r, NodeOperator, NodeNoVote)
		}
		if slices.Contains(roles[:i], r) {
			return refuse(CodeInvalid, "the role %s is named twice; leave one out", r)
		}
	}
	return nil
}

func (s *State) setOperator(c SetOperator, now time.Time) *Refusal {
	o := c.Operator
	o.Created = now
	if !o.Expires.IsZero() {
		o.Expires = o.Expires.UTC().Round(0)
	}
	if old, known := s.Operators[c.Name]; known && old.Key == o.Key {
		o.Created = old.Created
	}
	if !o.Expires.IsZero() && !o.Expires.After(now) {
		return refuse(CodeInvalid, "an operator must expire later than now, not at %s; change --ttl", o.Expires.Format(time.RFC3339))
	}
	s.Operators = maps.Clone(s.Operators)
	if s.Operators == nil {
		s.Operators = map[string]Operator{}
	}
	s.Operators[c.Name] = o
	if len(s.Operators) > MaxOperators {
		return refuse(CodeInvalid, "there are %d operators; remove one first: meshctl operator list", MaxOperators)
	}
	return s.checkOperator(c.Name, o)
}

// checkOperator refuses an entry of Operators that cannot be.
func (s *State) checkOperator(name string, o Operator) *Refusal {
	if err := mesh.CheckName(name); err != nil {
		return refuse(CodeNameInvalid, "operator %s; choose another", err)
	}
	if o.Right != RightRead && o.Right != RightChange {
		return refuse(CodeInvalid, "there is no right %q; choose %s or %s", o.Right, RightRead, RightChange)
	}
	if invite.CheckIdentityKey(o.Key) != nil {
		return refuse(CodeInvalid, "the operator's key is unusable; make another: meshctl operator create")
	}
	if !o.Expires.IsZero() && !validTime(o.Expires) || !validTime(o.Created) {
		return refuse(CodeInvalid, "the operator's time of expiry is unusable; change --ttl")
	}
	id := o.Key.NodeID()
	if _, live := s.Nodes[id]; live {
		return refuse(CodeIdentityTaken, "this key is a node's; give that node the role instead: meshctl node set NODE --role operator")
	}
	if _, gone := s.Removed[id]; gone {
		return refuse(CodeIdentityTaken, "this key was a node's that is gone; make another: meshctl operator create")
	}
	for other, x := range s.Operators {
		if other != name && x.Key == o.Key {
			return refuse(CodeIdentityTaken, "this key is another operator's; make another: meshctl operator create")
		}
	}
	return nil
}

func (s *State) removeOperator(c RemoveOperator) *Refusal {
	if _, known := s.Operators[c.Name]; !known {
		return refuse(CodeNotFound, "there is no operator %q; see meshctl operator list", c.Name)
	}
	s.Operators = maps.Clone(s.Operators)
	delete(s.Operators, c.Name)
	if len(s.Operators) == 0 {
		s.Operators = nil
	}
	return nil
}

func (s *State) checkOperators() error {
	if len(s.Operators) > MaxOperators {
		return fmt.Errorf("it has %d operators", len(s.Operators))
	}
	for name, o := range s.Operators {
		if refused := s.checkOperator(name, o); refused != nil {
			return fmt.Errorf("operator %q: %w", name, refused)
		}
	}
	return nil
}
