package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"guywire/mesh/api"
	"guywire/mesh/api/apitest"
)

var netipTypes = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

// Each document arrives as the backend gave it.
func TestDocuments(t *testing.T) {
	b := apitest.New()
	c := api.Dial(apitest.Serve(t, b))
	defer c.Close()
	ctx := t.Context()
	same := func(what string, want, got any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if d := cmp.Diff(want, got, netipTypes, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s: -want +got\n%s", what, d)
		}
	}
	status, err := c.Status(ctx)
	same("status", b.StatusDoc, status, err)
	nodes, err := c.Nodes(ctx, api.NodesQuery{})
	same("nodes", b.NodesDoc, nodes, err)
	links, err := c.Links(ctx)
	same("links", b.LinksDoc, links, err)
	routes, err := c.Routes(ctx)
	same("routes", b.RoutesDoc, routes, err)
	path, err := c.Path(ctx, api.PathQuery{From: "berlin-1", To: "oslo"})
	same("path", b.PathDoc, path, err)
	tokens, err := c.Tokens(ctx)
	same("tokens", b.TokensDoc, tokens, err)
	version, err := c.Version(ctx)
	same("version", api.BuildVersion(), version, err)

	pool := netip.MustParsePrefix("10.99.0.0/16")
	init, err := c.Init(ctx, api.InitRequest{Mesh: "acme", Pool4: &pool})
	want := b.EnrolledAs
	want.Neighbour, want.NeighbourMs = "", nil
	same("init", want, init, err)
	created, err := c.CreateToken(ctx, api.TokenRequest{Name: "oslo-1", TTLMs: 60_000})
	same("token", "oslo-1 gw1-not-a-real-token", created.Token.Name+" "+created.Text, err)
	done, err := c.RevokeToken(ctx, "k7m2")
	same("revoke", "token k7m2 is revoked", done.Sentence, err)
	topology, err := c.Topology(ctx)
	same("topology", b.Shape, topology, err)
	_, err = c.SetTopology(ctx, api.TopologyRequest{Mode: "hub", Hub: "core"})
	same("set topology", nil, nil, err)
	pairs := api.PairsRequest{Pin: []api.Pair{{A: "oslo", B: "paris-1"}}, Allow: []api.Pair{{A: "kyiv-1", B: "0000000000000001"}}}
	_, err = c.SetPairs(ctx, pairs)
	same("set pairs", nil, nil, err)
	_, err = c.SetNode(ctx, api.NodeRequest{Node: "oslo", MaxDegree: new(0), Tags: new(api.List[string]{})})
	same("set node", nil, nil, err)
	drains, err := c.Drains(ctx)
	same("drains", b.DrainsDoc, drains, err)
	drained, err := c.Drain(ctx, api.DrainRequest{Target: "lte:paris-1/wan", WaitMs: 500})
	same("drain", b.DrainedDoc, drained, err)
	done, err = c.Undrain(ctx, "berlin-1/lte:paris-1/wan")
	same("undrain", true, done.Sentence != "", err)
	done, err = c.Leave(ctx)
	same("leave", true, done.Sentence != "", err)
	done, err = c.Teardown(ctx)
	same("teardown", true, done.Sentence != "", err)

	same("requests", []any{
		api.PathQuery{From: "berlin-1", To: "oslo"},
		api.InitRequest{Mesh: "acme", Pool4: &pool},
		api.TokenRequest{Name: "oslo-1", TTLMs: 60_000},
		"k7m2",
		api.TopologyRequest{Mode: "hub", Hub: "core"},
		pairs,
		api.NodeRequest{Node: "oslo", MaxDegree: new(0), Tags: new(api.List[string]{})},
		api.DrainRequest{Target: "lte:paris-1/wan", WaitMs: 500},
		"berlin-1/lte:paris-1/wan",
		"leave", "teardown",
	}, b.Calls(), nil)
}

func TestStreams(t *testing.T) {
	b := apitest.New()
	c := api.Dial(apitest.Serve(t, b))
	defer c.Close()

	var events []api.Event
	if err := c.Events(t.Context(), api.EventsQuery{Since: 40}, collect(&events)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(b.EventsDoc[1:], events); d != "" {
		t.Errorf("events: %s", d)
	}
	var replies []api.PingReply
	if err := c.Ping(t.Context(), api.PingQuery{Node: "paris-1", Count: 2, Since: 1}, collect(&replies)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(b.Replies[1:3], replies, netipTypes); d != "" {
		t.Errorf("ping: %s", d)
	}
	enough := errors.New("enough")
	if err := c.Ping(t.Context(), api.PingQuery{Node: "paris-1"}, func(api.PingReply) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("ping: %v", err)
	}
}

func collect[T any](to *[]T) func(T) error {
	return func(v T) error {
		*to = append(*to, v)
		return nil
	}
}

// A client that leaves ends its stream in the backend; the join it began goes on.
func TestJoinOutlivesItsClient(t *testing.T) {
	b := apitest.New()
	b.Hold = make(chan struct{})
	c := api.Dial(apitest.Serve(t, b))
	defer c.Close()

	leave := errors.New("leave")
	var first api.JoinStep
	err := c.Join(t.Context(), api.JoinRequest{Token: "t"}, func(s api.JoinStep) error {
		first = s
		return leave
	})
	if !errors.Is(err, leave) || first.Index != 1 {
		t.Fatalf("got %v after step %d", err, first.Index)
	}
	err = c.Join(t.Context(), api.JoinRequest{Token: "t"}, func(api.JoinStep) error { return nil })
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeJoinRunning {
		t.Fatalf("a second join: %v", err)
	}
	close(b.Hold)
	var rest []api.JoinStep
	if err := c.WatchJoin(t.Context(), 1, collect(&rest)); err != nil {
		t.Fatal(err)
	}
	if n := len(rest); n != len(b.Steps) || rest[0].Index != 2 || rest[n-1].Kind != "ready" || rest[n-1].Result.Node.Name != "berlin-1" {
		t.Errorf("resumed with %+v", rest)
	}
}

// A daemon that stops in the middle of a stream breaks it off, and the next
// one takes the rest from the index.
func TestStreamBreaksAndResumes(t *testing.T) {
	b := apitest.New()
	b.Hold = make(chan struct{})
	socket := filepath.Join(t.TempDir(), "s")
	stop := apitest.ServeAt(t, b, socket)
	c := api.Dial(socket)
	defer c.Close()
	var last uint64
	err := c.Events(t.Context(), api.EventsQuery{Follow: true}, func(e api.Event) error {
		if last = e.Index; last == 41 {
			go stop()
		}
		return nil
	})
	if !errors.Is(err, api.ErrBroken) || last < 41 {
		t.Fatalf("got %v after %d", err, last)
	}
	stop()
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	apitest.ServeAt(t, apitest.New(), socket)
	var rest []api.Event
	if err := c.Events(t.Context(), api.EventsQuery{Since: 41}, collect(&rest)); err != nil || len(rest) != 1 || rest[0].Index != 42 {
		t.Errorf("resumed with %+v, %v", rest, err)
	}
}

// When the connection of a join breaks and the daemon lives, the client goes
// on where it was.
func TestJoinResumesByItself(t *testing.T) {
	b := apitest.New()
	b.Hold = make(chan struct{})
	real := apitest.Serve(t, b)
	front := filepath.Join(t.TempDir(), "front")
	l, err := net.Listen("unix", front)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cut := make(chan net.Conn, 1)
	go func() {
		for i := 0; ; i++ {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", real)
			if err != nil {
				in.Close()
				continue
			}
			if i == 0 {
				cut <- in
			}
			go func() { _, _ = io.Copy(out, in); out.Close() }()
			go func() { _, _ = io.Copy(in, out); in.Close() }()
		}
	}()
	c := api.Dial(front)
	defer c.Close()
	var steps []api.JoinStep
	err = c.Join(t.Context(), api.JoinRequest{Token: "t"}, func(s api.JoinStep) error {
		if steps = append(steps, s); len(steps) == 3 {
			(<-cut).Close()
			close(b.Hold)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range steps {
		if s.Index != uint64(i+1) {
			t.Errorf("step %d has index %d", i, s.Index)
		}
	}
	if len(steps) != len(b.Steps)+1 || steps[len(steps)-1].Result == nil {
		t.Errorf("%d steps", len(steps))
	}
}

func TestErrorsArriveWhole(t *testing.T) {
	b := apitest.New()
	b.Err = fmt.Errorf("join: %w", api.Errorf(api.CodeTokenUsed, "ask for another one", "This token was used at 12:00"))
	c := api.Dial(apitest.Serve(t, b))
	defer c.Close()
	_, statusErr := c.Status(t.Context())
	for what, err := range map[string]error{
		"status": statusErr,
		"events": c.Events(t.Context(), api.EventsQuery{}, func(api.Event) error { return nil }),
		"join":   c.Join(t.Context(), api.JoinRequest{Token: "t"}, func(api.JoinStep) error { return nil }),
	} {
		e, ok := errors.AsType[*api.Error](err)
		if !ok || *e != (api.Error{Code: api.CodeTokenUsed, Message: "This token was used at 12:00", Next: "ask for another one"}) {
			t.Errorf("%s: %v", what, err)
		}
		if api.ExitCode(err) != api.ExitRefused {
			t.Errorf("%s: exit code %d", what, api.ExitCode(err))
		}
	}
}

// An error after the first record comes as the last record.
func TestErrorInTheMiddleOfAStream(t *testing.T) {
	b := apitest.New()
	b.JoinErr = api.Errorf(api.CodeUnreachable, "check the firewall", "No neighbour answered")
	c := api.Dial(apitest.Serve(t, b))
	defer c.Close()
	n := 0
	err := c.Join(t.Context(), api.JoinRequest{Token: "t"}, func(api.JoinStep) error { n++; return nil })
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeUnreachable || n != len(b.Steps) {
		t.Errorf("got %v after %d steps", err, n)
	}
}

// What cannot be JSON is an error, not half a document.
func TestUnencodable(t *testing.T) {
	b := apitest.New()
	b.NodesDoc.Nodes[0].RTTMs = new(math.NaN())
	c := api.Dial(apitest.Serve(t, b))
	defer c.Close()
	_, err := c.Nodes(t.Context(), api.NodesQuery{})
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeInternal {
		t.Errorf("got %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	b := apitest.New()
	h := raw(apitest.Serve(t, b))
	many := `{"prefixes":["10.0.0.0/9"` + strings.Repeat(`,"10.0.0.0/9"`, 1100) + `]}`
	tests := []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v1/nothing", "", 404, "There is no call"},
		{"POST", "/v1/status", "", 404, "There is no call"},
		{"GET", "/v1/path", "", 400, "\\\"to\\\" is missing"},
		{"GET", "/v1/path?to=a&to=b", "", 400, "appears twice"},
		{"GET", "/v1/path?to=a&via=b", "", 400, "no parameter"},
		{"GET", "/v1/path?to=" + strings.Repeat("a", 300), "", 400, "longer than"},
		{"GET", "/v1/status?x=1", "", 400, "no parameter"},
		{"GET", "/v1/events?since=-1", "", 400, "not a uint64"},
		{"GET", "/v1/events?follow=x", "", 400, "not a bool"},
		{"GET", "/v1/ping?node=a&count=-1", "", 400, "count -1"},
		{"GET", "/v1/ping?node=a&interval_ms=1", "", 400, "interval_ms 1"},
		{"GET", "/v1/ping?node=a&interval_ms=NaN", "", 400, "interval_ms NaN"},
		{"GET", "/v1/ping?node=a&timeout_ms=1e12", "", 400, "timeout_ms"},
		{"POST", "/v1/init", "{", 400, "unexpected EOF"},
		{"POST", "/v1/init", "{}{}", 400, "follows"},
		{"POST", "/v1/init", `{"nmae":"x"}`, 400, "unknown field"},
		{"POST", "/v1/init", `{"mesh":"A B"}`, 400, "may hold only"},
		{"POST", "/v1/init", `{"pool4":"fd00::/48"}`, 400, "other family"},
		{"POST", "/v1/init", `{"pool4":"10.0.0.0/30"}`, 400, "too small"},
		{"POST", "/v1/init", `{"pool4":"10.0.0.1/8"}`, 400, "did you mean"},
		{"POST", "/v1/init", `{"pool4":""}`, 400, "empty"},
		{"POST", "/v1/init", `{"pool4":"10.0.0.0/8","prefixes":["10.1.0.0/16"]}`, 400, "choose another pool"},
		{"POST", "/v1/init", many, 400, "more than"},
		{"POST", "/v1/init", strings.Repeat(" ", 70_000) + "{}", 400, "larger than"},
		{"POST", "/v1/join", "", 400, "token is missing"},
		{"POST", "/v1/join", `{"token":"t","prefixes":["0.0.0.0/0"]}`, 400, "default route"},
		{"POST", "/v1/tokens", `{"uses":-1}`, 400, "uses -1"},
		{"POST", "/v1/tokens", `{"uses":2,"name":"a"}`, 400, "once only"},
		{"POST", "/v1/tokens", `{"ttl_ms":-5}`, 400, "ttl_ms"},
		{"POST", "/v1/tokens", `{"ttl_ms":1e300}`, 400, "ttl_ms"},
		{"POST", "/v1/tokens", `{"tags":["a","B"]}`, 400, "may hold only"},
		{"DELETE", "/v1/tokens/zzz", "", 404, "no token zzz"},
		{"GET", "/v1/join", "", 404, "No join was tried"},
	}
	for _, tt := range tests {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://meshd"+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := h.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		var e api.Error
		if err != nil || json.Unmarshal(body, &e) != nil || e.Message == "" || resp.StatusCode != tt.status || !strings.Contains(string(body), tt.want) {
			t.Errorf("%s %.60s %.40s: %d %s, want %d with %q", tt.method, tt.path, tt.body, resp.StatusCode, body, tt.status, tt.want)
		}
	}
	if calls := b.Calls(); len(calls) != 1 { // the unknown token only
		t.Errorf("the backend was asked: %v", calls)
	}
}

// raw is an HTTP client without the manners of api.Client.
func raw(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
}

// Requests above the bound are refused and not queued, and a place is free
// again when one ends.
func TestTooManyRequests(t *testing.T) {
	b := apitest.New()
	b.Hold = make(chan struct{})
	c := api.Dial(apitest.Serve(t, b))
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const bound = 128
	started, ended := make(chan struct{}, bound), make(chan error, bound)
	for range bound {
		go func() {
			first := true
			ended <- c.Events(ctx, api.EventsQuery{Follow: true}, func(api.Event) error {
				if first {
					started <- struct{}{}
				}
				first = false
				return nil
			})
		}()
	}
	for range bound {
		<-started
	}
	_, err := c.Status(t.Context())
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeBusy {
		t.Fatalf("got %v", err)
	}
	cancel()
	for range bound {
		<-ended
	}
	for {
		if _, err = c.Status(t.Context()); err == nil {
			break
		}
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeBusy {
			t.Fatal(err)
		}
	}
}

func TestHealthLevel(t *testing.T) {
	h := api.NewHealth(api.Finding{Level: api.OK, Sentence: "a"}, api.Finding{Level: api.Down, Sentence: "b"}, api.Finding{Level: api.Degraded, Sentence: "c"})
	if h.Level != api.Down || h.Findings[0].Sentence != "b" || h.Findings[2].Sentence != "a" || api.NewHealth().Level != api.OK {
		t.Errorf("got %+v", h)
	}
}

func TestSchemaAndLists(t *testing.T) {
	b, err := json.Marshal(api.Nodes{})
	if err != nil || string(b) != `{"schema":1,"nodes":[]}` {
		t.Errorf("got %s, %v", b, err)
	}
	var n api.Nodes
	if err := json.Unmarshal([]byte(`{"schema":2}`), &n); err == nil || !strings.Contains(err.Error(), "one version") {
		t.Errorf("got %v", err)
	}
	if got := api.Millis(1234567 * time.Nanosecond); got != 1.235 {
		t.Errorf("got %v", got)
	}
}

var quiet = slog.New(slog.DiscardHandler)
