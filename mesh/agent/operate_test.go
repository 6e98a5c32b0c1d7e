package agent

import (
	"strings"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/control"
	"guywire/store"
	"guywire/store/raftstore"
)

func lookedAt() *store.State {
	s := store.New()
	s.Nodes = map[mesh.NodeID]store.Node{
		{1}: {ID: mesh.NodeID{1}, Name: "one", Voter: true, Site: "north", Identity: mesh.IdentityKey{1}},
		{2}: {ID: mesh.NodeID{2}, Name: "two", Voter: true},
		{3}: {ID: mesh.NodeID{3}, Name: "three"},
	}
	s.Removed = map[mesh.NodeID]store.Tombstone{{4}: {Name: "gone"}, {5}: {Name: "twice"}, {6}: {Name: "twice"}}
	return s
}

// Each thing that is wrong with what a node knows of the mesh has a sentence.
func TestTruthFindings(t *testing.T) {
	now := time.Now()
	if f := truthFindings(lookedAt(), control.Status{Expires: now.Add(time.Hour), Raft: &raftstore.Status{}}, clockTolerance, now); len(f) > 0 {
		t.Errorf("all is well, and yet: %+v", f)
	}
	due := lookedAt()
	due.Mesh.CADue = true
	for _, tt := range []struct {
		st     control.Status
		state  *store.State
		offset time.Duration
		level  api.Level
		want   string
	}{
		{control.Status{Expired: true}, nil, 0, api.Down, "older than the mesh allows"},
		{control.Status{Doubled: now.Add(-time.Minute)}, nil, 0, api.Down, "identity of this node, seen last 1m0s ago"},
		{control.Status{Disputed: []mesh.NodeID{{1}, {2}}}, nil, 0, api.Degraded, "another history than this node: one, two"},
		{control.Status{Behind: []mesh.NodeID{{2}}}, nil, 0, api.Degraded, "lack what this node has: two"},
		{control.Status{Outdated: []mesh.NodeID{{2}}}, nil, 0, api.OK, "next version when these do: two"},
		{control.Status{Doubted: 3}, nil, 0, api.Degraded, "generation 3"},
		{control.Status{}, nil, 31 * time.Second, api.Degraded, "31s ahead of"},
		{control.Status{}, nil, -time.Hour, api.Degraded, "1h0m0s behind those"},
		{control.Status{Expires: now.Add(-time.Hour)}, nil, 0, api.Degraded, "ended 1h0m0s ago"},
		{control.Status{}, due, 0, api.OK, "changing to a new CA"},
		{control.Status{Raft: &raftstore.Status{Failed: true}}, nil, 0, api.Down, "disk"},
		{control.Status{Raft: &raftstore.Status{Doubled: []mesh.NodeID{{2}}}}, nil, 0, api.Degraded, "copy of a voter called: two"},
		{control.Status{Raft: &raftstore.Status{Silent: []raftstore.Silence{{Node: mesh.NodeID{2}, Since: now.Add(-5 * time.Second)}}}}, nil, 0, api.Degraded, "two keeps the log and does not answer since 5s"},
	} {
		s := tt.state
		if s == nil {
			s = lookedAt()
		}
		f := truthFindings(s, tt.st, tt.offset, now)
		if len(f) != 1 || f[0].Level != tt.level || !strings.Contains(f[0].Sentence, tt.want) {
			t.Errorf("%+v: %+v, want %s %q", tt.st, f, tt.level, tt.want)
		}
	}
}

// The leader's word completes the table; without it what is unknown is said to be.
// TestListTokens: what is used up or has expired is not shown, and what was made
// before the CA was replaced is marked.
func TestListTokens(t *testing.T) {
	now := time.Now()
	s := lookedAt()
	s.Mesh.Authorities = []store.CA{{State: store.CAPrevious}, {State: store.CACurrent, Index: 7}, {State: store.CANext, Index: 9}}
	out := listTokens(s, []store.Token{
		{ID: "used", CAIndex: 7, Expires: now.Add(time.Hour)},
		{ID: "over", CAIndex: 7, Expires: now, Uses: 1},
		{ID: "old", Expires: now.Add(time.Hour), Uses: 1},
		{ID: "good", CAIndex: 7, Expires: now.Add(time.Hour), Uses: 1},
		{ID: "both", CAIndex: 9, Expires: now.Add(time.Hour), Uses: 1},
	}, now)
	var got []string
	for _, k := range out.Tokens {
		got = append(got, k.ID+":"+k.Unusable)
	}
	if want := "old:made before the CA was replaced good: both:"; strings.Join(got, " ") != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestDescribeRaft(t *testing.T) {
	now := time.Now()
	st := control.Status{Role: "follower", Leader: mesh.NodeID{2}, Voters: []mesh.NodeID{{1}, {2}}, Index: 5}
	alone := describeRaft(lookedAt(), st, nil)
	if alone.Complete || alone.Term != nil || len(alone.Members) != 2 || alone.Members[0].Connected != nil || alone.Leader != "two" {
		t.Errorf("without the leader: %+v", alone)
	}
	told := describeRaft(lookedAt(), st, &raftstore.Status{
		Role: "leader", Leader: mesh.NodeID{2}, Term: 4, Last: 9, Commit: 9, Voters: []mesh.NodeID{{1}, {2}}, Learners: []mesh.NodeID{{3}},
		Health: []raftstore.Health{{Node: mesh.NodeID{1}, Healthy: true, Since: now, Last: 7}},
		Silent: []raftstore.Silence{{Node: mesh.NodeID{1}, Since: now.Add(-time.Second)}},
	})
	one, two, three := told.Members[0], told.Members[1], told.Members[2]
	switch {
	case !told.Complete || *told.Term != 4 || *told.Commit != 9:
		t.Errorf("the mesh: %+v", told)
	case one.Name != "one" || !one.Voter || one.Leader || *one.Connected || *one.Healthy || *one.Last != 7 || *one.Lag != 2 || one.Site != "north" || !one.Since.Equal(now.Add(-time.Second)):
		t.Errorf("a voter that is silent: %+v", one)
	case !two.Leader || !*two.Healthy || *two.Lag != 0:
		t.Errorf("the leader: %+v", two)
	case three.Voter || three.Name != "three" || three.Healthy != nil || three.Lag != nil:
		t.Errorf("a learner that was not asked yet: %+v", three)
	}
}

// A node that is gone may be revoked by its name, if that is only one node's.
func TestResolveAny(t *testing.T) {
	for what, want := range map[string]mesh.NodeID{
		"one": {1}, "gone": {4}, mesh.NodeID{5}.String(): {5}, "twice": {}, "nowhere": {},
	} {
		id, err := resolveAny(lookedAt(), what)
		if id != want || (err == nil) == want.IsZero() {
			t.Errorf("%s is %s, %v", what, id, err)
		}
	}
}
