package store

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
)

// NodeByName finds a live node by its name.
func (s *State) NodeByName(name string) (Node, bool) {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

// Owner finds the live node that addr belongs to: its own address, or the
// longest granted prefix that holds it; of those that share one, the node with
// the lowest id.
func (s *State) Owner(addr netip.Addr) (Node, bool) {
	var owner Node
	longest := -1
	for _, n := range s.Nodes {
		if addr == n.Addr4 || addr == n.Addr6 {
			return n, true
		}
		for _, p := range n.Prefixes {
			if p.Contains(addr) && (p.Bits() > longest || p.Bits() == longest && n.ID.Compare(owner.ID) < 0) {
				owner, longest = n, p.Bits()
			}
		}
	}
	return owner, longest >= 0
}

// ids are the live nodes in a fixed order, for everything whose order shows.
func (s *State) ids() []mesh.NodeID {
	return slices.SortedFunc(maps.Keys(s.Nodes), mesh.NodeID.Compare)
}

// clone copies a slice into its canonical form: nil when empty.
func clone[T any](in []T) []T {
	if len(in) == 0 {
		return nil
	}
	return slices.Clone(in)
}

func sortedSet[T cmp.Ordered](in []T) []T {
	out := clone(in)
	slices.Sort(out)
	return slices.Compact(out)
}

// printable reports whether text of the outside may stand in logs and JSON as
// it is: up to MaxRequest visible ASCII characters.
func printable(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(s) <= MaxRequest
}

// validTime reports whether t can be written, and added to, in the encoding.
func validTime(t time.Time) bool { return t.Year() >= 1970 && t.Year() <= 9000 }
