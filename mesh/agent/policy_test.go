package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/routing/topology"
	"guywire/store"
)

var (
	berlin, paris, rome = mesh.NodeID{1}, mesh.NodeID{2}, mesh.NodeID{3}
	drainTime           = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

func policyState() *store.State {
	return &store.State{
		Nodes: map[mesh.NodeID]store.Node{
			berlin: {ID: berlin, Name: "berlin", Tags: []string{"hub"}, Drains: []store.Drain{
				{Uplink: "lte", By: paris, Since: drainTime},
				{Uplink: "old", By: berlin, Since: drainTime},
				{Uplink: "wan", Peer: rome, Remote: "isp1", By: mesh.NodeID{9}, Since: drainTime},
			}},
			paris: {ID: paris, Name: "paris", NoTransit: true, MaxDegree: 4},
			rome:  {ID: rome, Name: "rome", Drains: []store.Drain{{By: rome, Since: drainTime}}},
		},
		Removed: map[mesh.NodeID]store.Tombstone{{9}: {Name: "gone"}},
	}
}

func TestParseTarget(t *testing.T) {
	known := map[mesh.NodeID][]string{berlin: {"wan", "lte", "rome"}, paris: {"wan"}}
	uplinks := func(id mesh.NodeID) []string { return known[id] }
	for text, want := range map[string]store.SetDrain{
		"paris":                    {Node: paris},
		paris.String():             {Node: paris},
		"lte":                      {Node: berlin, Uplink: "lte"},
		"berlin/lte":               {Node: berlin, Uplink: "lte"},
		"paris/wan":                {Node: paris, Uplink: "wan"},
		"rome/anything":            {Node: rome, Uplink: "anything"}, // its uplinks are not known here
		"wan:paris/wan":            {Node: berlin, Uplink: "wan", Peer: paris, Remote: "wan"},
		"paris/wan:rome/isp1":      {Node: paris, Uplink: "wan", Peer: rome, Remote: "isp1"},
		"berlin/rome":              {Node: berlin, Uplink: "rome"},
		"rome:" + "paris" + "/wan": {Node: berlin, Uplink: "rome", Peer: paris, Remote: "wan"},
	} {
		got, err := parseTarget(policyState(), berlin, text, uplinks, true)
		if err != nil || got != want {
			t.Errorf("%s: %+v %v, want %+v", text, got, err, want)
		}
	}
	for text, code := range map[string]api.Code{
		"oslo": api.CodeNotFound, "oslo/wan": api.CodeNotFound, "paris/lte": api.CodeNotFound, "berlin/old": api.CodeNotFound,
		"lte:oslo/wan": api.CodeNotFound, "lte:paris/dsl": api.CodeNotFound, "dsl:paris/wan": api.CodeNotFound,
		"lte:wan": api.CodeInvalid, "rome": api.CodeInvalid, "lte:paris": api.CodeInvalid,
	} {
		_, err := parseTarget(policyState(), berlin, text, uplinks, true)
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != code || e.Next == "" {
			t.Errorf("%s: %v, want %s with a next step", text, err, code)
		}
	}
	// What is drained can be taken back although the uplink has another name now.
	for _, text := range []string{"old", "berlin/old", "paris/dsl"} {
		if got, err := parseTarget(policyState(), berlin, text, uplinks, false); err != nil || got.Uplink == "" {
			t.Errorf("%s: %+v %v", text, got, err)
		}
	}
	if _, err := parseTarget(policyState(), berlin, "older", uplinks, false); err == nil {
		t.Error("nothing is named older")
	}
}

// A target of the listing means the same drain wherever it is typed.
func TestTargetsAreRead(t *testing.T) {
	s := policyState()
	none := func(mesh.NodeID) []string { return nil }
	for id, n := range s.Nodes {
		for _, d := range n.Drains {
			text := describeDrain(s, id, d).Target
			for at := range s.Nodes {
				got, err := parseTarget(s, at, text, none, false)
				if want := (store.SetDrain{Node: id, Uplink: d.Uplink, Peer: d.Peer, Remote: d.Remote}); err != nil || got != want {
					t.Errorf("%s on %s: %+v %v, want %+v", text, at, got, err, want)
				}
				if found := drainedBy(n, got); found == nil || *found != d {
					t.Errorf("%s finds %+v", text, found)
				}
			}
		}
	}
	turned := store.SetDrain{Node: rome, Uplink: "isp1", Peer: berlin, Remote: "wan"}
	if d := drainedBy(s.Nodes[berlin], turned); d == nil || d.Peer != rome {
		t.Errorf("a link named from its other end: %+v", d)
	}
	if drainedBy(s.Nodes[berlin], store.SetDrain{Node: paris, Uplink: "lte"}) != nil {
		t.Error("another node's uplink of the same name is drained")
	}
}

func TestDrainHooks(t *testing.T) {
	s := policyState()
	target := func(d *api.Drain) string {
		if d == nil {
			return ""
		}
		return d.Target + " by " + d.By
	}
	for _, c := range []struct {
		at   mesh.NodeID
		link mesh.LinkID
		want string
	}{
		{berlin, mesh.LinkID{Peer: paris, Local: "wan", Remote: "wan"}, ""},
		{berlin, mesh.LinkID{Peer: paris, Local: "lte", Remote: "wan"}, "berlin/lte by paris"},
		{paris, mesh.LinkID{Peer: berlin, Local: "wan", Remote: "lte"}, "berlin/lte by paris"},
		{berlin, mesh.LinkID{Peer: rome, Local: "wan", Remote: "isp1"}, "berlin/wan:rome/isp1 by gone"},
		{rome, mesh.LinkID{Peer: berlin, Local: "isp1", Remote: "wan"}, "berlin/wan:rome/isp1 by gone"},
		{berlin, mesh.LinkID{Peer: rome, Local: "wan", Remote: "isp2"}, "rome by rome"},
		{rome, mesh.LinkID{Peer: paris, Local: "isp2", Remote: "wan"}, "rome by rome"},
	} {
		if got := target(drainOfLink(s, c.at, c.link)); got != c.want {
			t.Errorf("%s at %s: %q, want %q", c.link, c.at, got, c.want)
		}
	}
	for _, c := range []struct {
		id           mesh.NodeID
		uplink, want string
	}{{berlin, "lte", "berlin/lte by paris"}, {berlin, "wan", ""}, {paris, "lte", ""}, {rome, "isp1", "rome by rome"}} {
		if got := target(drainOfUplink(s, c.id, c.uplink)); got != c.want {
			t.Errorf("uplink %s of %s: %q, want %q", c.uplink, c.id, got, c.want)
		}
	}
	if got := drainFindings(s, berlin); len(got) != 3 || got[0].Level != api.OK || got[0].Next != "meshctl undrain berlin/lte" {
		t.Errorf("%+v", got)
	}
	if got := drainFindings(s, paris); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestDraining(t *testing.T) {
	links := []api.Link{
		{Peer: "paris", Local: "wan", Remote: "wan", Device: "gw-a"},
		{Peer: "paris", Local: "lte", Remote: "wan", Device: "gw-b"},
		{Peer: "rome", Local: "lte", Remote: "isp1", Device: "gw-c"},
	}
	hop := func(peer, device string) api.NextHop { return api.NextHop{Peer: peer, Device: device} }
	prefix := func(n byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n}), 16) }
	routes := []api.Route{
		{Prefix: prefix(1), Origins: []string{"paris"}, NextHops: []api.NextHop{hop("paris", "gw-a"), hop("paris", "gw-b")}},
		{Prefix: prefix(2), Origins: []string{"paris"}, NextHops: []api.NextHop{hop("paris", "gw-b")}, RunnerUp: &api.Alternative{Peer: "paris", Device: "gw-a"}},
		{Prefix: prefix(3), Origins: []string{"rome"}, NextHops: []api.NextHop{hop("rome", "gw-c")}, RunnerUp: &api.Alternative{Peer: "paris", Device: "gw-b"}},
		{Prefix: prefix(4), Origins: []string{"oslo"}, NextHops: []api.NextHop{hop("rome", "gw-c")}},
		{Prefix: prefix(5), Origins: []string{"berlin"}},
		{Prefix: prefix(6), Origins: []string{"oslo"}, NextHops: []api.NextHop{hop("rome", "gw-c")}, RunnerUp: &api.Alternative{Peer: "paris", Device: "gw-a"}},
	}
	numbers := func(list []netip.Prefix) (out []int) {
		for _, p := range list {
			out = append(out, int(p.Addr().As4()[1]))
		}
		return out
	}
	for what, c := range map[string]struct {
		drain          api.Drain
		carries, alone []int
	}{
		"our uplink":             {api.Drain{Node: "berlin", Uplink: "lte"}, []int{1, 2, 3, 4, 6}, []int{3, 4}},
		"another of ours":        {api.Drain{Node: "berlin", Uplink: "wan"}, []int{1}, nil},
		"their uplink":           {api.Drain{Node: "rome", Uplink: "isp1"}, []int{3, 4, 6}, []int{4}},
		"an uplink far away":     {api.Drain{Node: "oslo", Uplink: "wan"}, nil, nil},
		"a link":                 {api.Drain{Node: "berlin", Uplink: "lte", Peer: "paris", Remote: "wan"}, []int{1, 2}, nil},
		"a link from there":      {api.Drain{Node: "paris", Uplink: "wan", Peer: "berlin", Remote: "lte"}, []int{1, 2}, nil},
		"a link of others":       {api.Drain{Node: "paris", Uplink: "wan", Peer: "rome", Remote: "isp1"}, nil, nil},
		"a node, but for itself": {api.Drain{Node: "rome"}, []int{4, 6}, []int{4}},
		"this node":              {api.Drain{Node: "berlin"}, nil, nil},
	} {
		d := draining(c.drain, "berlin", links, routes)
		if !slices.Equal(numbers(d.Carries), c.carries) || !slices.Equal(numbers(d.NoOtherWay), c.alone) {
			t.Errorf("%s carries %v, of which %v have no other way; want %v and %v", what, numbers(d.Carries), numbers(d.NoOtherWay), c.carries, c.alone)
		}
	}
}

func TestWatchDrain(t *testing.T) {
	some := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")}
	for what, c := range map[string]struct {
		wait    time.Duration
		moves   time.Duration // all but the first stay goes elsewhere
		stay    int
		done    bool
		atMost  time.Duration
		atLeast time.Duration
	}{
		"moves":            {10 * time.Second, time.Second, 0, true, 3 * time.Second, time.Second + drainSettle},
		"some stay":        {10 * time.Second, time.Second, 1, true, 5 * time.Second, time.Second + drainStay},
		"all stay":         {10 * time.Second, 0, 2, true, 4 * time.Second, drainStay},
		"is slow":          {2 * time.Second, time.Minute, 0, false, 3 * time.Second, 2 * time.Second},
		"look once":        {0, time.Minute, 0, false, 0, 0},
		"look once, empty": {0, 0, 0, true, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			d, done, err := watchDrain(t.Context(), c.wait, func() (api.Draining, error) {
				d := api.Draining{Carries: some, NoOtherWay: some[:c.stay]}
				if time.Since(began) >= c.moves {
					d.Carries = some[:c.stay]
				}
				return d, nil
			})
			if took := time.Since(began); err != nil || done != c.done || took > c.atMost || took < c.atLeast || c.done && len(d.Carries) != c.stay {
				t.Errorf("%s: done %v with %v after %s, %v", what, done, d.Carries, took, err)
			}
		})
	}
	broken := errors.New("broken")
	if _, _, err := watchDrain(t.Context(), time.Minute, func() (api.Draining, error) { return api.Draining{}, broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := watchDrain(ctx, time.Minute, func() (api.Draining, error) { return api.Draining{Carries: some}, nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestDescribeTopology(t *testing.T) {
	s := policyState()
	s.Mesh.Topology = store.Topology{
		Mode: store.TopologyHub, Hub: "hub",
		Pinned: []store.Pair{{A: paris, B: rome}}, Forbidden: []store.Pair{{A: berlin, B: rome}},
	}
	doc := describeTopology(s)
	want := api.Topology{
		Mode: "hub", Hub: "hub",
		Pinned: []api.Pair{{A: "paris", B: "rome"}}, Forbidden: []api.Pair{{A: "berlin", B: "rome"}},
		Nodes: []api.TopologyNode{
			{ID: berlin, Name: "berlin", Transit: true, Tags: []string{"hub"}},
			{ID: paris, Name: "paris", MaxDegree: 4},
			{ID: rome, Name: "rome", Transit: true, Drain: &api.Drain{Target: "rome", Node: "rome", By: "rome", Since: drainTime}},
		},
	}
	if d := cmp.Diff(want, doc, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	addEdges(&doc, []topology.Edge{{A: berlin, B: paris}, {A: berlin, B: mesh.NodeID{7}}, {A: paris, B: rome}})
	for i, names := range [][]string{{"paris"}, {"berlin", "rome"}, {"paris"}} {
		var got []string
		for _, n := range doc.Nodes[i].Neighbours {
			got = append(got, n.Node)
		}
		if !slices.Equal(got, names) || *doc.Nodes[i].Degree != len(names) {
			t.Errorf("%s has %v", doc.Nodes[i].Name, got)
		}
	}
	for id, want := range map[mesh.NodeID]string{
		berlin: "berlin: others are reached through it, tags hub",
		paris:  "paris: nothing of others goes through it, at most 4 neighbours, no tags",
	} {
		if got := describeNode(s.Nodes[id]); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
