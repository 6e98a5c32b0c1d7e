package store

import (
	"slices"

	"guywire/mesh"
)

// MaxKeys is how many WireGuard keys a node may have at one time: the old, the
// new, and one that a change left behind.
const MaxKeys = 3

// lastEpoch is the highest epoch of any key that the node ever had.
func (n Node) lastEpoch() mesh.Epoch {
	if len(n.Keys) == 0 {
		return n.LastEpoch
	}
	return max(n.LastEpoch, n.Keys[len(n.Keys)-1].Epoch)
}

func (s *State) addKey(c AddKey) (*Node, *Refusal) {
	n, refused := s.live(c.Node)
	if refused != nil {
		return nil, refused
	}
	if refused := s.checkKey(c.Key); refused != nil {
		return nil, refused
	}
	if last := n.lastEpoch(); c.Key.Epoch <= last {
		return nil, refuse(CodeInvalid, "%s had a key of epoch %d already, and a new one must have a higher epoch than %d; run the rotation again", n.Name, last, c.Key.Epoch)
	}
	if len(n.Keys) >= MaxKeys {
		return nil, refuse(CodeInvalid, "%s has %d keys and may have no more; let it drop an old one first", n.Name, MaxKeys)
	}
	n.Keys = append(slices.Clone(n.Keys), c.Key)
	n.LastEpoch = c.Key.Epoch
	return s.put(n), nil
}

func (s *State) dropKey(c DropKey) (*Node, *Refusal) {
	n, refused := s.live(c.Node)
	if refused != nil {
		return nil, refused
	}
	i := slices.IndexFunc(n.Keys, func(k Key) bool { return k.Epoch == c.Epoch })
	if i < 0 {
		return nil, refuse(CodeNotFound, "%s has no key of epoch %d", n.Name, c.Epoch)
	}
	if len(n.Keys) == 1 {
		return nil, refuse(CodeInvalid, "this is the only key of %s; add another first", n.Name)
	}
	n.LastEpoch = n.lastEpoch()
	n.Keys = slices.Delete(slices.Clone(n.Keys), i, i+1)
	n.Copies = without(n.Copies, func(copy Copy) bool { return copy.Key == c.Epoch })
	return s.put(n), nil
}
