package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"guywire/mesh"
)

// A GossipState says what a gossip key of the mesh is good for.
type GossipState string

// States of a gossip key, in the order in which it goes through them.
const (
	GossipNext    GossipState = "next"    // the members learn it; it is accepted
	GossipCurrent GossipState = "current" // what members encrypt with
	GossipOld     GossipState = "old"     // used no more, still accepted
)

// A GossipKey is one secret that all members share: what they say in gossip is
// encrypted with it, and STUN requests are authenticated, each by a key derived
// from it. The secret itself is in no state: each Node has its Copies.
type GossipKey struct {
	Epoch mesh.Epoch  `json:"epoch"` // from 1; never given twice
	State GossipState `json:"state"`
	Check Digest      `json:"check"` // of the secret, so that a wrong copy is found
	// Index is of the entry that last made something of the key, or gave
	// somebody a copy: who has applied it knows as much.
	Index uint64    `json:"index"`
	From  time.Time `json:"from"` // when it took its state; leader's clock
}

// A Copy is the secret of a gossip key for one node: HPKE (RFC 9180) to its
// WireGuard key, with GossipInfo. The log cannot tell whether it is what it
// says; who opens it compares GossipKey.Check.
type Copy struct {
	Epoch  mesh.Epoch `json:"epoch"`  // of the gossip key
	Key    mesh.Epoch `json:"key"`    // of the node's WireGuard key that opens it
	Sealed []byte     `json:"sealed"` // CopySize bytes
}

// Sizes of gossip keys.
const (
	MaxGossipKeys = 3
	GossipSize    = 32                   // bytes of a secret
	CopySize      = 32 + GossipSize + 16 // an X25519 key before it, a tag behind
	SealedAtOnce  = 400                  // nodes of which a command holds all copies
)

// A GossipStep is a step in the change from one gossip key to another.
type GossipStep string

// Steps. Each is refused where it would leave the order of the states.
const (
	GossipAdd    GossipStep = "add"    // a new key is next
	GossipSeal   GossipStep = "seal"   // nodes get copies of keys that there are
	GossipUse    GossipStep = "use"    // the next one becomes current, the current one old; every member has a copy
	GossipRetire GossipStep = "retire" // a next or old one is forgotten; epoch 0: Settings.Secret, and gossip in the clear
)

// GossipInfo binds a Copy to what it is for.
func GossipInfo(id mesh.MeshID, epoch mesh.Epoch, node mesh.NodeID) []byte {
	b := append([]byte("guywire gossip key v1\x00"), id[:]...)
	return append(binary.BigEndian.AppendUint32(b, uint32(epoch)), node[:]...)
}

// GossipKey gives the key of the mesh in a state; at most one is next or current.
func (s *State) GossipKey(want GossipState) (GossipKey, bool) {
	i := slices.IndexFunc(s.Mesh.Gossip, func(k GossipKey) bool { return k.State == want })
	if i < 0 {
		return GossipKey{}, false
	}
	return s.Mesh.Gossip[i], true
}

// Lacks lists the gossip keys of which a node has no copy that its newest
// WireGuard key opens.
func (s *State) Lacks(n Node) (epochs []mesh.Epoch) {
	if len(n.Keys) == 0 {
		return nil
	}
	newest := n.Keys[len(n.Keys)-1].Epoch
	for _, k := range s.Mesh.Gossip {
		if !slices.ContainsFunc(n.Copies, func(c Copy) bool { return c.Epoch == k.Epoch && c.Key == newest }) {
			epochs = append(epochs, k.Epoch)
		}
	}
	return epochs
}

// distrustGossip makes another gossip key due, because somebody who is no member
// any more may know all that there are.
func (s *State) distrustGossip() {
	if s.Mesh.Version < GossipVersion {
		return
	}
	s.Mesh.GossipDue = true
	if next, underWay := s.GossipKey(GossipNext); underWay {
		s.dropGossip(next.Epoch)
	}
}

// dropGossip forgets a key and all copies of it.
func (s *State) dropGossip(epoch mesh.Epoch) {
	s.Mesh.Gossip = without(s.Mesh.Gossip, func(k GossipKey) bool { return k.Epoch == epoch })
	s.Nodes = maps.Clone(s.Nodes)
	for id, n := range s.Nodes {
		n.Copies = without(n.Copies, func(c Copy) bool { return c.Epoch == epoch })
		s.Nodes[id] = n
	}
}

// without gives a new list of the elements that stay; nil: there are none.
func without[T any](list []T, drop func(T) bool) (kept []T) {
	for _, x := range list {
		if !drop(x) {
			kept = append(kept, x)
		}
	}
	return kept
}

// gossipAt is where Mesh.Gossip has the key of an epoch; -1: nowhere.
func (s *State) gossipAt(epoch mesh.Epoch) int {
	return slices.IndexFunc(s.Mesh.Gossip, func(k GossipKey) bool { return k.Epoch == epoch })
}

func (s *State) rotateGossip(c RotateGossip, now time.Time) *Refusal {
	if (c.Step == GossipAdd) != !c.Check.IsZero() || c.Step == GossipSeal && (c.Epoch != 0 || len(c.Copies) == 0) ||
		c.Step != GossipAdd && c.Step != GossipSeal && len(c.Copies) > 0 {
		return refuse(CodeInvalid, "a step that adds a gossip key says how to check it, and only that one and one that seals hold copies")
	}
	next, underWay := s.GossipKey(GossipNext)
	switch c.Step {
	case GossipAdd:
		switch {
		case underWay:
			return refuse(CodeInvalid, "a change of the gossip key is under way; it ends by itself")
		case c.Epoch != s.Mesh.GossipEpoch+1:
			return refuse(CodeInvalid, "after the gossip key of epoch %d comes %d, not %d", s.Mesh.GossipEpoch, s.Mesh.GossipEpoch+1, c.Epoch)
		case len(s.Mesh.Gossip) >= MaxGossipKeys:
			return refuse(CodeInvalid, "the mesh has %d gossip keys; retire one first", MaxGossipKeys)
		}
		s.addGossip(c.Epoch, c.Check, GossipNext, now)
		return s.giveCopies(c.Copies)
	case GossipSeal:
		return s.giveCopies(c.Copies)
	case GossipUse:
		if !underWay || c.Epoch != next.Epoch {
			return refuse(CodeInvalid, "only the gossip key that is next can become the current one")
		}
		for _, id := range s.ids() {
			if n := s.Nodes[id]; !slices.ContainsFunc(n.Copies, func(c Copy) bool { return c.Epoch == next.Epoch }) {
				return refuse(CodeInvalid, "%s has no copy of the next gossip key and would be cut off from gossip", n.Name)
			}
		}
		s.Mesh.Gossip = slices.Clone(s.Mesh.Gossip)
		for i, k := range s.Mesh.Gossip {
			switch k.State {
			case GossipCurrent:
				k.State = GossipOld
			case GossipNext:
				k.State = GossipCurrent
			default:
				continue
			}
			k.From, k.Index = now, s.Index
			s.Mesh.Gossip[i] = k
		}
		s.Mesh.GossipDue = false
	case GossipRetire:
		return s.retireGossip(c.Epoch)
	default:
		return refuse(CodeInvalid, "there is no step %q of a change of the gossip key; choose %s, %s, %s or %s", c.Step, GossipAdd, GossipSeal, GossipUse, GossipRetire)
	}
	return nil
}

func (s *State) addGossip(epoch mesh.Epoch, check Digest, state GossipState, now time.Time) {
	s.Mesh.GossipEpoch = epoch
	s.Mesh.Gossip = append(slices.Clone(s.Mesh.Gossip), GossipKey{Epoch: epoch, State: state, Check: check, Index: s.Index, From: now})
}

func (s *State) retireGossip(epoch mesh.Epoch) *Refusal {
	if epoch == 0 {
		if _, known := s.GossipKey(GossipCurrent); !known || s.Mesh.Secret == nil {
			return refuse(CodeInvalid, "the mesh has no secret of old, or nothing in its place yet")
		}
		s.Mesh.Secret = nil
		return nil
	}
	i := s.gossipAt(epoch)
	if i < 0 {
		return refuse(CodeNotFound, "the mesh has no gossip key of epoch %d", epoch)
	}
	if s.Mesh.Gossip[i].State == GossipCurrent {
		return refuse(CodeInvalid, "the current gossip key cannot be retired before another is current")
	}
	s.dropGossip(epoch)
	return nil
}

// giveCopies takes copies of keys that the mesh has, each in the place of an
// older one.
func (s *State) giveCopies(copies map[mesh.NodeID][]Copy) *Refusal {
	s.Nodes, s.Mesh.Gossip = maps.Clone(s.Nodes), slices.Clone(s.Mesh.Gossip)
	for _, id := range slices.SortedFunc(maps.Keys(copies), mesh.NodeID.Compare) {
		n, refused := s.live(id)
		if refused != nil {
			return refused
		}
		for _, c := range copies[id] {
			i := s.gossipAt(c.Epoch)
			if i < 0 {
				return refuse(CodeNotFound, "the mesh has no gossip key of epoch %d", c.Epoch)
			}
			s.Mesh.Gossip[i].Index = s.Index
		}
		if n.Copies, refused = s.takeCopies(n, copies[id]); refused != nil {
			return refused
		}
		s.Nodes[id] = n
	}
	return nil
}

// takeCopies gives the copies of a node with some more, sorted by epoch. Those of
// keys that the mesh has not, or not any more, are left out.
func (s *State) takeCopies(n Node, more []Copy) ([]Copy, *Refusal) {
	if len(more) > MaxGossipKeys {
		return nil, refuse(CodeInvalid, "there are no %d gossip keys to give to %s", len(more), n.Name)
	}
	all := n.Copies
	for _, c := range more {
		if len(c.Sealed) != CopySize || !slices.ContainsFunc(n.Keys, func(k Key) bool { return k.Epoch == c.Key }) {
			return nil, refuse(CodeInvalid, "a copy of a gossip key is not sealed to a key of %s", n.Name)
		}
		if s.gossipAt(c.Epoch) < 0 {
			continue
		}
		c.Sealed = slices.Clone(c.Sealed)
		all = append(without(all, func(o Copy) bool { return o.Epoch == c.Epoch }), c)
	}
	return slices.SortedFunc(slices.Values(all), func(a, b Copy) int { return cmp.Compare(a.Epoch, b.Epoch) }), nil
}

// checkGossip is about what version 4 brought.
func (s *State) checkGossip() error {
	if s.Mesh.Version < GossipVersion {
		if s.beyond3() {
			return errors.New("it holds what its version does not know")
		}
		return nil
	}
	count := map[GossipState]int{}
	for i, k := range s.Mesh.Gossip {
		count[k.State]++
		if k.Epoch == 0 || k.Epoch > s.Mesh.GossipEpoch || i > 0 && k.Epoch <= s.Mesh.Gossip[i-1].Epoch ||
			k.Check.IsZero() || k.Index > s.Index || !validTime(k.From) {
			return errors.New("a gossip key is not one that can be added")
		}
	}
	current, total := count[GossipCurrent], len(s.Mesh.Gossip)
	if total > MaxGossipKeys || count[GossipNext] > 1 || current > 1 || count[GossipNext]+current+count[GossipOld] != total || current == 0 && count[GossipOld] > 0 {
		return fmt.Errorf("its %d gossip keys are not in order", total)
	}
	if len(s.Mesh.Secret) != SecretSize && (len(s.Mesh.Secret) != 0 || current == 0) {
		return errors.New("it has neither a secret nor a gossip key")
	}
	for id, n := range s.Nodes {
		for i, c := range n.Copies {
			if _, refused := s.takeCopies(n, []Copy{c}); refused != nil || s.gossipAt(c.Epoch) < 0 || i > 0 && c.Epoch <= n.Copies[i-1].Epoch {
				return fmt.Errorf("a copy of a gossip key that node %s has is not one that can be given", id)
			}
		}
	}
	return nil
}
