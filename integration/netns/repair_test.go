package netns

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"guywire/mesh/api"
	"guywire/mesh/core"
)

// repairs gives the events of repairs on a node after an index.
func (w *world) repairs(node string, since uint64) []api.Event {
	w.Helper()
	return slices.DeleteFunc(w.events(node, since), func(e api.Event) bool { return e.Kind != string(core.KernelChanged) })
}

// TestRepair breaks the kernel behind the agent's back. It must become what it
// was, with an event, and foreign objects must not change, neither then nor
// when the node leaves.
func TestRepair(t *testing.T) {
	w := build(t, sites("a", "b"))
	w.mesh("a")
	bare := w.snapshot("b")
	w.inside("b", "plant")
	clean := w.snapshot("b")
	foreign := slices.DeleteFunc(slices.Clone(clean), func(line string) bool {
		// The settings of a foreign device follow those of the host.
		return slices.Contains(bare, line) || strings.HasPrefix(line, "sysctl ")
	})
	if len(foreign) < 12 {
		t.Fatalf("too little was planted: %v", foreign)
	}
	w.enter("b", "a")
	w.talk("a", "b")

	for _, what := range slices.Sorted(maps.Keys(harms)) {
		t.Run(what, func(t *testing.T) {
			w := w.of(t)
			before := w.snapshot("b")
			for _, line := range foreign {
				if !slices.Contains(before, line) {
					t.Fatalf("gone already: %s", line)
				}
			}
			last := uint64(0)
			for _, e := range w.events("b", 0) {
				last = e.Index
			}
			w.inside("b", "harm", what)
			if what == "flush the ruleset" { // the foreign tables too
				before = slices.DeleteFunc(before, func(line string) bool { return strings.HasPrefix(line, "nft ") && slices.Contains(foreign, line) })
				foreign = slices.DeleteFunc(foreign, func(line string) bool { return strings.HasPrefix(line, "nft ") })
				clean = slices.DeleteFunc(clean, func(line string) bool { return strings.HasPrefix(line, "nft ") })
			}
			w.restored("b", "the repair", before)
			w.until("an event tells of it", func() string {
				if len(w.repairs("b", last)) == 0 {
					return "there is none"
				}
				return ""
			})
			w.talk("a", "b")
		})
	}
	w.must("b", "", "meshctl", "leave", "--yes")
	w.nothingLeft("b", clean)
}

// TestConnectedWins has a site connected to a network inside a prefix of
// another one: what is connected is reached directly, the rest by the mesh.
func TestConnectedWins(t *testing.T) {
	w := build(t, sites("a {lan: 10.1.0.0/16}", "b {lan: 10.1.5.0/24, meshd: {prefixes: []}}"))
	w.mesh("a")
	if o := w.join("b", w.token("a")); o.code != 0 {
		t.Fatalf("%s: %s", o.what, o.said)
	}
	w.until("b talks to a's host by the mesh, and to its own", func() string {
		return w.pings("b", w.host("a", false), w.host("b", false))
	})
	throw := slices.ContainsFunc(w.snapshot("b"), func(line string) bool {
		return strings.HasPrefix(line, "route 10.1.5.0/24 family 2 table 86 protocol 86 type 9 ") // RTN_THROW
	})
	if !throw {
		t.Error("there is no throw route for what is connected")
	}
}
