package store

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"guywire/discovery/invite"
	"guywire/mesh"
)

// check holds for every state that Apply makes. Restore asks it of what comes
// from a disk or a peer, and the tests ask it after every command.
func (s *State) check() error {
	if s.Mesh.ID.IsZero() {
		if len(s.Nodes)+len(s.Tokens)+len(s.Removed) > 0 {
			return errors.New("it has members and no mesh")
		}
		if s.beyond2() || s.beyond3() {
			return errors.New("it has a history and no mesh")
		}
		return nil
	}
	if err := s.checkVersion(); err != nil {
		return err
	}
	if refused := checkPools(s.Mesh.Pool4, s.Mesh.Pool6); refused != nil {
		return refused
	}
	if err := mesh.CheckName(s.Mesh.Name); err != nil {
		return err
	}
	u := uses{state: s, addrs: map[netip.Addr]bool{}, keys: map[mesh.WireGuardKey]bool{}, names: map[string]bool{}}
	for _, id := range s.ids() {
		n := s.Nodes[id]
		if err := u.node(id, n); err != nil {
			return fmt.Errorf("node %s: %w", id, err)
		}
		if _, both := s.Removed[id]; both {
			return fmt.Errorf("node %s is a member and removed", id)
		}
	}
	for id, t := range s.Removed {
		if err := u.identity(id, t.Identity, t.Keys, t.Addr4, t.Addr6); err != nil {
			return fmt.Errorf("removed node %s: %w", id, err)
		}
	}
	for name, r := range s.Reserved {
		for _, a := range []netip.Addr{r.Addr4, r.Addr6} {
			if u.addrs[a] {
				return fmt.Errorf("the address %s reserved for %q is given twice", a, name)
			}
			u.addrs[a] = true
		}
	}
	if err := s.checkTopology(); err != nil {
		return fmt.Errorf("topology: %w", err)
	}
	for id, t := range s.Tokens {
		if refused := cmp.Or(checkRoles(t.Roles), checkSite(t.Site)); refused != nil || !slices.IsSorted(t.Roles) || t.AnyPrefix && len(t.Prefixes) > 0 {
			return fmt.Errorf("token %q gives what cannot be given", id)
		}
		if id != t.ID || mesh.CheckName(id) != nil || t.Uses < 0 || t.Uses > MaxTokenUses || invite.CheckIdentityKey(t.Key) != nil {
			return fmt.Errorf("token %q is not one that can be made", id)
		}
	}
	return nil
}

// checkVersion is about what versions 3 and 4 brought.
func (s *State) checkVersion() error {
	if s.Mesh.Version == 0 {
		if s.beyond2() || s.beyond3() {
			return errors.New("it holds what its version does not know")
		}
		return nil
	}
	if s.Mesh.Version < signedVersion || s.Mesh.Version > Version || len(s.Mesh.CA)+len(s.Mesh.Roots) > 0 {
		return fmt.Errorf("version %d is not one of a mesh", s.Mesh.Version)
	}
	if refused := checkSettings(s.Mesh); refused != nil {
		return refused
	}
	if err := errors.Join(checkAuthorities(s.Mesh.Authorities), s.checkOperators(), s.checkReserved(), s.Answered.check(s.Index), s.checkGossip()); err != nil {
		return err
	}
	recent := s.Audit.Recent
	if len(recent) == 0 || len(recent) > RecentRecords {
		return fmt.Errorf("it has %d audit records", len(recent))
	}
	head, err := VerifyAudit(recent[0].Prev, recent)
	if last := recent[len(recent)-1]; err == nil && (head != s.Audit.Head || last.Index != s.Index || last.Generation != s.Mesh.Generation) {
		err = errors.New("the audit trail does not lead to it")
	}
	return err
}

// uses finds what is given twice.
type uses struct {
	state *State
	addrs map[netip.Addr]bool
	keys  map[mesh.WireGuardKey]bool
	names map[string]bool
}

func (u *uses) node(id mesh.NodeID, n Node) error {
	if id != n.ID {
		return fmt.Errorf("it is recorded as %s", n.ID)
	}
	if refused := checkNodeName(n.Name); refused != nil {
		return refused
	}
	if u.names[n.Name] {
		return fmt.Errorf("the name %s is given twice", n.Name)
	}
	u.names[n.Name] = true
	if _, refused := u.state.claim(id, n.Prefixes, n.Shared); refused != nil {
		return refused
	}
	if !slices.IsSortedFunc(n.Shared, prefix.Compare) || !slices.IsSorted(n.Roles) || n.LastEpoch != 0 && n.LastEpoch < n.lastEpoch() {
		return errors.New("its shared prefixes, roles or epochs are not in order")
	}
	if refused := cmp.Or(checkRoles(n.Roles), checkSite(n.Site)); refused != nil {
		return refused
	}
	if refused := checkControl(n.Control); refused != nil {
		return refused
	}
	if err := u.state.checkPolicy(n); err != nil {
		return err
	}
	return u.identity(id, n.Identity, n.Keys, n.Addr4, n.Addr6)
}

func (s *State) checkPolicy(n Node) error {
	if refused := cmp.Or(checkTags(n.Tags), checkDegree(n.MaxDegree)); refused != nil {
		return refused
	}
	if !slices.Equal(n.Tags, sortedSet(n.Tags)) {
		return errors.New("its tags are not in order")
	}
	if n.parts() > MaxDrains {
		return fmt.Errorf("it has %d drains", len(n.Drains))
	}
	for i, d := range n.Drains {
		if refused := s.checkDrain(n.ID, d); refused != nil {
			return refused
		}
		if end, _ := named(n.ID, d); end != n.ID || i > 0 && n.Drains[i-1].target(d) >= 0 || !validTime(d.Since) {
			return errors.New("its drains are not in order")
		}
	}
	return nil
}

func (s *State) checkTopology() error {
	t := s.Mesh.Topology
	if refused := checkMode(t); refused != nil {
		return refused
	}
	if len(t.Pinned)+len(t.Forbidden) > MaxPairs {
		return fmt.Errorf("it has rules for %d pairs", len(t.Pinned)+len(t.Forbidden))
	}
	for _, list := range [][]Pair{t.Pinned, t.Forbidden} {
		for i, p := range list {
			if p.A.Compare(p.B) >= 0 || i > 0 && list[i-1].Compare(p) >= 0 {
				return errors.New("its pairs are not in order")
			}
			for _, id := range []mesh.NodeID{p.A, p.B} {
				if _, refused := s.live(id); refused != nil {
					return refused
				}
			}
		}
	}
	if i := slices.IndexFunc(t.Pinned, func(p Pair) bool { return holds(t.Forbidden, p) }); i >= 0 {
		return fmt.Errorf("%s and %s are pinned and forbidden", t.Pinned[i].A, t.Pinned[i].B)
	}
	return nil
}

func (u *uses) identity(id mesh.NodeID, identity mesh.IdentityKey, keys []Key, addrs ...netip.Addr) error {
	if id != identity.NodeID() || invite.CheckIdentityKey(identity) != nil {
		return errors.New("its id is not its identity key's")
	}
	if len(keys) == 0 {
		return errors.New("it has no WireGuard key")
	}
	for i, k := range keys {
		if k.Epoch == 0 || i > 0 && k.Epoch <= keys[i-1].Epoch || u.keys[k.Public] || invite.CheckWireGuardKey(k.Public) != nil {
			return fmt.Errorf("its WireGuard key of epoch %d is not one that can be given", k.Epoch)
		}
		u.keys[k.Public] = true
	}
	for i, pool := range []prefix{u.state.Mesh.Pool4, u.state.Mesh.Pool6} {
		if !pool.Contains(addrs[i]) {
			return fmt.Errorf("its address %s is not in the pool %s", addrs[i], pool)
		}
		if u.addrs[addrs[i]] {
			return fmt.Errorf("its address %s is given twice", addrs[i])
		}
		u.addrs[addrs[i]] = true
	}
	return nil
}
