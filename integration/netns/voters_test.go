package netns

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"guywire/mesh/api"
)

// TestLeaderKilled: three sites vote; without their leader the other two find
// a new one and the mesh can be changed again.
func TestLeaderKilled(t *testing.T) {
	w := build(t, sites("a", "b", "c"))
	names := []string{"a", "b", "c"}
	w.mesh(names...)
	leader := ""
	w.until("three healthy voters and a leader", func() string {
		st := ask[api.RaftStatus](w, "a", "raft", "status")
		leader = st.Leader
		healthy := 0
		for _, m := range st.Members {
			if m.Voter && m.Healthy != nil && *m.Healthy {
				healthy++
			}
		}
		if healthy < len(names) || !slices.Contains(names, leader) {
			return fmt.Sprintf("%d healthy voters, %q leads", healthy, leader)
		}
		return ""
	})
	for _, s := range names {
		w.changeable(s)
	}
	if err := w.lab.Kill(t.Context(), leader, "", 0); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	others := slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s == leader })
	w.changeable(others[0])
	t.Logf("%v without a leader", time.Since(killed).Round(time.Millisecond))
	w.talk(others[0], others[1])
	w.talk(others[0], leader) // nobody needs an agent to be reached

	w.start(leader, "")
	w.changeable(leader)
}

// changeable waits until a node can change the mesh: what is its own, for only
// the first one is an operator.
func (w *world) changeable(node string) {
	w.Helper()
	w.until("a change by "+node, func() string {
		o := w.ctl(node, "undrain", node)
		if o.code == 0 {
			return ""
		}
		return o.said
	})
}
