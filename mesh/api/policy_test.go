package api_test

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"guywire/mesh"
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

// The same for what operators change.
func TestOperatorRequests(t *testing.T) {
	b := apitest.New()
	c := api.Dial(apitest.Serve(t, b))
	defer c.Close()
	ctx := t.Context()
	grant := func(r api.GrantRequest) error { _, err := c.Grant(ctx, r); return err }
	reserve := func(name, addr string) error {
		a, _ := netip.ParseAddr(addr)
		_, err := c.Reserve(ctx, api.ReserveRequest{Name: name, Addr: a})
		return err
	}
	operator := func(r api.OperatorRequest) error { _, err := c.SetOperator(ctx, r); return err }
	settings := func(r api.SettingsRequest) error { _, err := c.SetSettings(ctx, r); return err }
	token := func(r api.TokenRequest) error { _, err := c.CreateToken(ctx, r); return err }
	revoke := func(node string) error { _, err := c.Revoke(ctx, node); return err }
	recover := func(plan string) error { _, err := c.Recover(ctx, api.RecoverRequest{Plan: plan}); return err }
	ten, nine := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("9.0.0.0/8")
	key := mesh.IdentityKey{1}
	for want, refused := range map[string][]error{
		"is missing":        {grant(api.GrantRequest{}), revoke(""), reserve("", "10.86.0.9"), operator(api.OperatorRequest{Right: "read", Key: key}), operator(api.OperatorRequest{Name: "x", Right: "read"})},
		"is not one of":     {grant(api.GrantRequest{Node: "x", Prefixes: []netip.Prefix{ten}, Shared: []netip.Prefix{nine}})},
		"overlaps":          {grant(api.GrantRequest{Node: "x", Prefixes: []netip.Prefix{ten, ten}})},
		"may hold only":     {revoke("a b"), reserve("A", "10.86.0.9"), operator(api.OperatorRequest{Name: "a\nb", Right: "read", Key: key}), token(api.TokenRequest{Site: "A"}), node(ctx, c, api.NodeRequest{Node: "x", Site: new("A")})},
		"not an address":    {reserve("x", ""), reserve("x", "fe80::1%eth0")},
		"not read or":       {operator(api.OperatorRequest{Name: "x", Key: key}), operator(api.OperatorRequest{Name: "x", Key: key, Right: "all"})},
		"ttl_ms":            {operator(api.OperatorRequest{Name: "x", Key: key, Right: "read", TTLMs: -1}), operator(api.OperatorRequest{Name: "x", Key: key, Right: "read", TTLMs: 1e300})},
		"nothing to set":    {settings(api.SettingsRequest{})},
		"voters are not":    {settings(api.SettingsRequest{Voters: new(2)}), settings(api.SettingsRequest{Voters: new(-1)}), settings(api.SettingsRequest{Voters: new(math.MaxInt)})},
		"cache_max_age_ms":  {settings(api.SettingsRequest{CacheMaxAgeMs: new(-1.0)}), settings(api.SettingsRequest{CacheMaxAgeMs: new(1e300)})},
		"not both":          {token(api.TokenRequest{AnyPrefix: true, Prefixes: []netip.Prefix{ten}})},
		"is not operator":   {token(api.TokenRequest{Roles: []string{"king"}}), node(ctx, c, api.NodeRequest{Node: "x", Roles: &api.List[string]{"king"}})},
		"named twice":       {token(api.TokenRequest{Roles: []string{"operator", "operator"}})},
		"id of the plan is": {recover(strings.Repeat("a", 257))},
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
}

func node(ctx context.Context, c *api.Client, r api.NodeRequest) error {
	_, err := c.SetNode(ctx, r)
	return err
}

// A right that ends by the clock ends what is under way, with a reason.
func TestRightEndsByTheClock(t *testing.T) {
	b := apitest.New()
	b.Hold = make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	until := time.Now().Add(time.Second)
	go func() {
		served <- api.NewServer(b, slog.New(slog.DiscardHandler)).ServeRemote(ctx, l, func(net.Conn) api.Access {
			return api.Access{Who: "ann", Right: api.Read, Until: until}
		})
	}()
	c := api.DialWith(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	})
	defer c.Close()
	for _, since := range []uint64{0, 1 << 40} { // with and without a record before
		err := c.Events(t.Context(), api.EventsQuery{Follow: true, Since: since}, func(api.Event) error { return nil })
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeTimeout || time.Now().Before(until) {
			t.Errorf("a stream ended with %v", err)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// Which ages of a cache are good is for the log to say: one judge, one sentence.
func TestCacheAgesAreNotJudgedTwice(t *testing.T) {
	b := apitest.New()
	c := api.Dial(apitest.Serve(t, b))
	defer c.Close()
	for _, age := range []float64{0, 1, api.Millis(20 * 365 * 24 * time.Hour)} {
		if _, err := c.SetSettings(t.Context(), api.SettingsRequest{CacheMaxAgeMs: &age}); err != nil {
			t.Errorf("%g ms: %v", age, err)
		}
	}
	if calls := b.Calls(); len(calls) != 3 {
		t.Errorf("the backend was asked: %v", calls)
	}
}
