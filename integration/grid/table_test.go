package grid

import (
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"guywire/integration/lab"
	"guywire/mesh/api"
)

// TestExpected checks that the table has every pair once.
func TestExpected(t *testing.T) {
	cells, err := Expected()
	if err != nil {
		t.Fatal(err)
	}
	missing, share := 0, 0
	for a := range kinds {
		for b := range kinds {
			if a > b || a != b && (kinds[a].shared || kinds[b].shared) {
				continue
			}
			missing++
			for _, c := range cells {
				if c.has(a, b) {
					missing--
				}
			}
		}
	}
	for _, c := range cells {
		if c.Test {
			share++
		}
	}
	if len(cells) != 78+4 || missing != 0 || share != 9 {
		t.Errorf("%d cells, %d missing, %d for make test; want 82, 0, 9", len(cells), missing, share)
	}
	for text, says := range map[string]string{
		"easy easy":                             "two kinds",
		"easy easy direct often":                "perhaps test",
		"easy toaster direct":                   "no kind",
		"easy easy none":                        "no way",
		"lan easy direct":                       "itself only",
		"\neasy port direct\nport easy transit": "line 3: port~easy is there already",
	} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}

// TestNetworks checks that every cell is a proper network.
func TestNetworks(t *testing.T) {
	cells, err := Expected()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cells {
		n := c.network()
		if err := n.Validate(); err != nil {
			t.Errorf("%s: %v", c, err)
		}
		for _, site := range []string{left, right} {
			if n.Nodes[site].Kind != lab.Site {
				t.Errorf("%s has no %s", c, site)
			}
		}
		if boxes := len(n.Nodes) - 5; kinds[c.Left].shared && boxes != 1 && !kinds[c.Left].home {
			t.Errorf("%s has %d boxes, want one", c, boxes)
		}
	}
}

// TestMix checks that the mesh of many sites is a proper network of that many.
func TestMix(t *testing.T) {
	names, _, err := Kinds()
	must(t, err)
	sites, kindOf := mixedSites(names)
	n := network(sites)
	if err := n.Validate(); err != nil {
		t.Error(err)
	}
	if len(kindOf) != 30 || len(sites) != 30-len(helpers) {
		t.Errorf("%d sites and their helpers are %d, want 30", len(sites), len(kindOf))
	}
	for site, name := range kindOf {
		if n.Nodes[site] == nil || n.Nodes[site].Kind != lab.Site || kinds[name].says == "" {
			t.Errorf("%s is no site behind a %s", site, name)
		}
	}
}

// TestMixed judges the pairs of a mesh of three sites, of which a fourth has not joined.
func TestMixed(t *testing.T) {
	up := func(peer, local, remote string) api.Link {
		return api.Link{Peer: peer, Local: local, Remote: remote, State: api.LinkUp, Device: "gw", Endpoint: netip.MustParseAddrPort("198.18.1.2:1")}
	}
	never := func(peer string) api.Link {
		return api.Link{Peer: peer, State: api.LinkIdle, Reason: "nothing arrived"}
	}
	pairs := map[[2]string]verdict{}
	for p, ends := range byPair(map[string][]api.Link{
		"a": {up("b", "x", "y"), never("c"), never("d")},
		"b": {up("a", "y", "x"), never("c")},
		"c": {never("a")},
	}) {
		if v := judge(time.Unix(1000, 0), ends, verdict{}); !v.final { // says why not
			pairs[p] = judge(time.Unix(1000, 0).Add(grace), ends, v)
		} else {
			pairs[p] = v
		}
	}
	var r Mixed
	must(t, r.sort(pairs, map[string]string{"a": "public", "b": "easy", "c": "symmetric"}))
	if r.Decided() != 3 || r.Ways[Direct] != 1 || r.Ways[Transit] != 2 {
		t.Errorf("%d pairs, %v; want 3, one of them direct", r.Decided(), r.Ways)
	}
	if want := (map[Way]int{Direct: 2, Transit: 1}); !maps.Equal(r.Promise, want) {
		t.Errorf("promised: %v, want %v", r.Promise, want)
	}
	if len(r.Worse) != 1 || !strings.Contains(r.Worse[0], "public~symmetric (a, c): transit, want direct; nothing arrived") {
		t.Errorf("worse: %q", r.Worse)
	}
}

func TestChoose(t *testing.T) {
	for pattern, want := range map[string]int{"": 9, ".*": 82, "easy~port": 1, "easy~.*|lan~lan": 11, "eas": 0, "(": 0} {
		cells, err := Choose(pattern)
		if len(cells) != want || (err == nil) == (want == 0) {
			t.Errorf("%q: %d cells (%v), want %d", pattern, len(cells), err, want)
		}
	}
}

func TestJudge(t *testing.T) {
	start := time.Unix(1000, 0)
	link := func(local, remote, state, reason, endpoint string, since time.Duration) api.Link {
		l := api.Link{Local: local, Remote: remote, State: api.LinkState(state), Reason: reason, Since: start.Add(since)}
		if state == "up" {
			l.Device = "gw-x"
			must(t, l.Endpoint.UnmarshalText([]byte(endpoint)))
		}
		return l
	}
	failed := link("a", "b", "idle", "no direct link to right: nothing arrived", "", 0)
	up := link("a", "b", "up", "", "198.18.1.2:21800", 2*time.Second)
	back := link("b", "a", "up", "", "198.18.1.6:21801", 3*time.Second)
	for name, tt := range map[string]struct {
		ends  [2][]api.Link
		after time.Duration // since the first look, which saw the same
		way   Way
		final bool
		at    time.Duration
	}{
		"nothing":           {ends: [2][]api.Link{}, after: time.Hour, way: Transit},
		"one end":           {ends: [2][]api.Link{{up}, {link("b", "a", "probing", "", "", 0)}}, after: time.Hour, way: Transit},
		"both":              {ends: [2][]api.Link{{up}, {back}}, way: Direct, final: true, at: 3 * time.Second},
		"not of each other": {ends: [2][]api.Link{{up}, {link("c", "a", "up", "", "198.18.1.6:1", 0)}}, way: Transit},
		"carried":           {ends: [2][]api.Link{{up}, {link("b", "a", "up", "", "127.0.0.1:4000", 0)}}, way: Carrier, final: true, at: 2 * time.Second},
		"just failed":       {ends: [2][]api.Link{{failed}, nil}, after: grace - 1, way: Transit},
		"failed":            {ends: [2][]api.Link{nil, {failed}}, after: grace, way: Transit, final: true},
		"another is up":     {ends: [2][]api.Link{{failed, up}, {back}}, after: time.Hour, way: Direct, final: true, at: 3 * time.Second},
	} {
		v := judge(start.Add(tt.after), tt.ends, judge(start, tt.ends, verdict{}))
		if v.way != tt.way || v.final != tt.final || v.final && !v.at.Equal(start.Add(tt.at)) {
			t.Errorf("%s: %+v, want %s, final %v, at %s", name, v, tt.way, tt.final, tt.at)
		}
	}
	// An attempt that failed and then succeeds is direct from then on.
	v := judge(start, [2][]api.Link{{failed}, nil}, verdict{})
	if v = judge(start.Add(time.Second), [2][]api.Link{{up}, {back}}, v); v.way != Direct || !v.final || v.why != "" {
		t.Errorf("at the second attempt: %+v", v)
	}
}

func TestRender(t *testing.T) {
	result := func(left, right string, expect, way Way, ping, verdict float64) Result {
		return Result{Cell: Cell{Left: left, Right: right, Expect: expect}, Way: way, Ping: ping, Verdict: verdict, Why: "why"}
	}
	for _, tt := range []struct {
		r              Result
		passes, better bool
		text           string
	}{
		{result("easy", "easy", Direct, Direct, 1, 2), true, false, "direct 2.0"},
		{result("easy", "easy", Direct, Direct, 10.1, 2), false, false, "!direct 10.1"},
		{result("easy", "easy", Direct, Transit, 1, 7), false, false, "!transit 7.0"},
		{result("easy", "symmetric", Transit, Direct, 1, 2), true, true, "+direct 2.0"},
		{result("easy", "blocked", Transit, Carrier, 1, 2), true, true, "+carrier 2.0"},
		{result("easy", "blocked", Transit, None, 0, 0), false, false, "!none 0.0"},
		{result("easy", "easy", Direct, Direct, 1, 0), false, false, "!direct 1.0"},
	} {
		if tt.r.Passes() != tt.passes || tt.r.Better() != tt.better || tt.r.text() != tt.text {
			t.Errorf("%s: passes %v, better %v, %q; want %v, %v, %q", tt.r, tt.r.Passes(), tt.r.Better(), tt.r.text(), tt.passes, tt.better, tt.text)
		}
	}
	again := result("easy", "symmetric", Transit, Direct, 1, 2)
	again.First = "it was slow"
	var b strings.Builder
	must(t, Render(&b, []Result{
		result("easy", "easy", Direct, Direct, 1, 2), again,
		result("symmetric", "symmetric", Direct, Transit, 1, 7), result("lan", "lan", Direct, Direct, 1, 1),
	}))
	const want = `           easy        symmetric
easy       direct 2.0  +direct 2.0
symmetric              !transit 7.0
lan  direct 1.0  one LAN behind one home router

~ measured again, alone; at first it was slow
+ easy~symmetric: direct, want transit; ping 1.0 s, verdict 2.0 s; 0 of 0 pings answered, 0 packets forwarded; better than expected: update expected.txt; why
! symmetric~symmetric: transit, want direct; ping 1.0 s, verdict 7.0 s; 0 of 0 pings answered, 0 packets forwarded; why
`
	var got strings.Builder
	for line := range strings.Lines(b.String()) {
		got.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	if got.String() != want {
		t.Errorf("the table is\n%s\nwant\n%s", got.String(), want)
	}
}

func TestForwarded(t *testing.T) {
	const snmp = "Ip: Forwarding DefaultTTL ForwDatagrams InUnknownProtos\nIp: 1 64 4711 0\nIcmp: InMsgs\nIcmp: 3\n"
	if n, err := countedIn(snmp, "Ip", "ForwDatagrams"); err != nil || n != 4711 {
		t.Errorf("%d, %v", n, err)
	}
	for _, bad := range []string{"", "Ip: ForwDatagrams\n", "Ip: Forwarding\nIp: 1\n", "Ip: ForwDatagrams\nIp: many\n", "Ip: A ForwDatagrams\nIp: 1\n"} {
		if n, err := countedIn(bad, "Ip", "ForwDatagrams"); err == nil {
			t.Errorf("%q: %d", bad, n)
		}
	}
	for want, tr := range map[Way]trace{Direct: {6, 6, 5}, Transit: {6, 4, 4}, None: {6, 2, 0}} {
		if got := tr.way(); got != want {
			t.Errorf("%+v: %s, want %s", tr, got, want)
		}
	}
}
