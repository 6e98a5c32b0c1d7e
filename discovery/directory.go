package discovery

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"guywire/mesh"
)

// MaxAhead is how far in the future a statement's serial may lie: a clock that
// is wrong by more cannot pin its own facts for ever, and says so early.
const MaxAhead = 24 * time.Hour

// A Directory keeps the newest verified Facts of each node.
type Directory struct {
	mesh  mesh.MeshID
	limit int
	nodes map[mesh.NodeID]record
}

type record struct {
	facts  Facts
	signed Signed
}

// NewDirectory makes an empty directory for one mesh that holds at most limit
// nodes.
func NewDirectory(id mesh.MeshID, limit int) *Directory {
	return &Directory{mesh: id, limit: limit, nodes: make(map[mesh.NodeID]record)}
}

// Merge takes in a statement when it is newer than what is known of its node.
// key is the identity key that the log names for that node. It reports whether
// the directory changed; an old or repeated statement is no error. The
// directory keeps s; the caller does not change it afterwards.
func (d *Directory) Merge(now time.Time, s Signed, key mesh.IdentityKey) (changed bool, err error) {
	about, serial, err := s.Claimed()
	if err != nil {
		return false, err
	}
	node := about.Node
	old, known := d.nodes[node]
	if known && serial <= old.facts.Serial {
		return false, nil // before the signature: repetition is the common case in gossip
	}
	if !known && len(d.nodes) >= d.limit {
		return false, fmt.Errorf("facts about %s: %w", node, ErrFull)
	}
	f, err := s.Open(key)
	if err != nil {
		return false, err
	}
	if f.Mesh != d.mesh {
		return false, fmt.Errorf("facts about %s in mesh %s: %w", f.Node, f.Mesh, ErrForeign)
	}
	if ahead := now.Add(MaxAhead).UnixMicro(); ahead < 0 || f.Serial > uint64(ahead) {
		return false, fmt.Errorf("facts about %s: %w: dated more than %s ahead of the clock here; set the clock of one of the two", f.Node, ErrExpired, MaxAhead)
	}
	d.nodes[node] = record{facts: f, signed: s}
	return true, nil
}

// Get gives the facts about a node. The caller does not change their slices.
func (d *Directory) Get(node mesh.NodeID) (Facts, bool) {
	r, ok := d.nodes[node]
	return r.facts, ok
}

// All gives the facts about all nodes, sorted by node.
func (d *Directory) All() []Facts {
	all := make([]Facts, 0, len(d.nodes))
	for _, id := range slices.SortedFunc(maps.Keys(d.nodes), mesh.NodeID.Compare) {
		all = append(all, d.nodes[id].facts)
	}
	return all
}

// Signed gives all statements as they were signed, sorted by node: for the
// cache on disk and for gossip.
func (d *Directory) Signed() []Signed {
	all := make([]Signed, 0, len(d.nodes))
	for _, id := range slices.SortedFunc(maps.Keys(d.nodes), mesh.NodeID.Compare) {
		all = append(all, d.nodes[id].signed)
	}
	return all
}

// Remove forgets a node, because it is no member any more.
func (d *Directory) Remove(node mesh.NodeID) { delete(d.nodes, node) }
