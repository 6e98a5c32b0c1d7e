package sim

import (
	"bytes"
	"maps"
	"reflect"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/routing/topology"
	"guywire/routing/wire"
)

// graphs remembers the meshes that were built lately: nodes that know the same
// want the same, and need not all compute it.
type graphs []built

type built struct {
	nodes  []topology.Node
	policy topology.Policy
	graph  *topology.Graph
}

// remembered is how many meshes are.
const remembered = 64

func (g *graphs) build(nodes []topology.Node, p topology.Policy) *topology.Graph {
	for i, b := range slices.Backward(*g) {
		if slices.EqualFunc(b.nodes, nodes, sameNode) && reflect.DeepEqual(b.policy, p) {
			*g = append(slices.Delete(*g, i, i+1), b)
			return b.graph
		}
	}
	if len(*g) == remembered {
		*g = slices.Delete(*g, 0, 1)
	}
	graph := topology.Build(nodes, p)
	*g = append(*g, built{nodes, p, graph})
	return graph
}

func sameNode(a, b topology.Node) bool {
	return a.ID == b.ID && a.Reachable == b.Reachable && a.Transit == b.Transit && a.Cap == b.Cap &&
		a.Coordinate == b.Coordinate && slices.Equal(a.Tags, b.Tags) && sameRTT(a.RTT, b.RTT)
}

// sameRTT compares reports. They are never changed, and mostly the very same.
func sameRTT(a, b map[mesh.NodeID]time.Duration) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer() || maps.Equal(a, b)
}

// signatures remembers which announcements were found to be well signed: every
// node gets the same ones, and need not all check them.
type signatures map[[64]byte]signed

type signed struct {
	key  mesh.IdentityKey
	body []byte
}

// mostSignatures bounds the memory of a long run.
const mostSignatures = 1 << 16

func (s signatures) verify(lsa wire.SignedLSA, key mesh.IdentityKey) bool {
	if known, ok := s[lsa.Signature]; ok && known.key == key && bytes.Equal(known.body, lsa.Body) {
		return true
	}
	ok := lsa.Verify(key)
	if ok {
		if len(s) == mostSignatures {
			clear(s)
		}
		s[lsa.Signature] = signed{key, lsa.Body}
	}
	return ok
}
