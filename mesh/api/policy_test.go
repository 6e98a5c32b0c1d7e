package api_test

import (
	"errors"
	"strings"
	"testing"

	"guywire/mesh/api"
	"guywire/mesh/api/apitest"
)

// What makes no sense is refused with its reason before the backend hears of it.
func TestPolicyRequests(t *testing.T) {
	b := apitest.New()
	c := api.Dial(apitest.Serve(t, b))
	defer c.Close()
	topology := func(r api.TopologyRequest) error { _, err := c.SetTopology(t.Context(), r); return err }
	pairs := func(r api.PairsRequest) error { _, err := c.SetPairs(t.Context(), r); return err }
	node := func(r api.NodeRequest) error { _, err := c.SetNode(t.Context(), r); return err }
	drain := func(r api.DrainRequest) error { _, err := c.Drain(t.Context(), r); return err }
	undrain := func(target string) error { _, err := c.Undrain(t.Context(), target); return err }
	long := strings.Repeat("a", 33)
	for want, refused := range map[string][]error{
		"not auto, full or hub": {topology(api.TopologyRequest{}), topology(api.TopologyRequest{Mode: "star"})},
		"needs the tag": {
			topology(api.TopologyRequest{Mode: "hub"}), topology(api.TopologyRequest{Mode: "full", Hub: "x"}),
			topology(api.TopologyRequest{Mode: "auto", Hub: "x"}),
		},
		"can be dense":       {topology(api.TopologyRequest{Mode: "full", Dense: true}), topology(api.TopologyRequest{Mode: "hub", Hub: "x", Dense: true})},
		"may hold only":      {topology(api.TopologyRequest{Mode: "hub", Hub: "A"}), node(api.NodeRequest{Node: "x y"}), node(api.NodeRequest{Node: "x", Tags: &api.List[string]{"A"}}), drain(api.DrainRequest{Target: "a b"}), undrain("a\nb")},
		"two different":      {pairs(api.PairsRequest{Pin: []api.Pair{{A: "a", B: "a"}}}), pairs(api.PairsRequest{Allow: []api.Pair{{A: "a", B: "a"}}})},
		"0 pairs are not":    {pairs(api.PairsRequest{})},
		"1025 pairs are not": {pairs(api.PairsRequest{Forbid: many(1025)})},
		"1 to 32":            {pairs(api.PairsRequest{Unpin: []api.Pair{{A: "a"}}}), pairs(api.PairsRequest{Forbid: []api.Pair{{A: long, B: "b"}}}), node(api.NodeRequest{Node: long}), drain(api.DrainRequest{Target: "a/"}), undrain("/a"), undrain("a:"), undrain(long)},
		"is missing":         {node(api.NodeRequest{}), drain(api.DrainRequest{}), undrain("")},
		"tags are more":      {node(api.NodeRequest{Node: "x", Tags: new(make(api.List[string], 1025))})},
		"is not NODE":        {drain(api.DrainRequest{Target: "a/b/c"}), drain(api.DrainRequest{Target: "a:b:c"})},
		"wait_ms":            {drain(api.DrainRequest{Target: "a", WaitMs: -1}), drain(api.DrainRequest{Target: "a", WaitMs: api.MaxDrainMs + 1})},
	} {
		for i, err := range refused {
			e, ok := errors.AsType[*api.Error](err)
			if !ok || e.Code != api.CodeInvalid || !strings.Contains(e.Message, want) {
				t.Errorf("request %d: got %v, want %q", i, err, want)
			}
		}
	}
	if calls := b.Calls(); len(calls) > 0 {
		t.Errorf("the backend was asked: %v", calls)
	}
	for _, target := range []string{"a", "a/b", "a:b/c", "a/b:c/d", "a:b", "0123456789abcdef/wan"} {
		if err := errors.Join(drain(api.DrainRequest{Target: target, WaitMs: api.MaxDrainMs}), undrain(target)); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
}

func many(n int) []api.Pair {
	list := make([]api.Pair, n)
	for i := range list {
		list[i] = api.Pair{A: "a", B: "b"}
	}
	return list
}
