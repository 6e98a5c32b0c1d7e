package demo

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
)

func TestRowTable(t *testing.T) {
	rows := []Row{
		{Felt: world.Felt{Event: "fra – lon silent", GapMs: 84.6, Lost: 42, Sent: 4000, Before: "fra → lon", After: "fra → sto:isp1,isp2 → lon"}, LimitMs: 150, Verdict: verdictOK},
		{Felt: world.Felt{Event: "transit fra dead", Open: true, Lost: 1000, Before: "mad → fra → syd", After: "none"}, LimitMs: 150, Verdict: verdictFail},
		{Felt: world.Felt{Event: "agent of lon restarted", Before: "mad → lon → syd", After: "mad → lon → syd", NoGapMs: 6}, NoLoss: true, Verdict: verdictOK},
	}
	want := strings.TrimLeft(`
EVENT                    GAP ms  LOST  PATH BEFORE  AFTER                  PROMISE
fra – lon silent             85    42  fra→lon      fra→sto:isp1,isp2→lon  150 ms   ok
transit fra dead        endless  1000  mad→fra→syd  none                   150 ms   FAIL
agent of lon restarted      < 6     0  mad→lon→syd  the same               0 lost   ok
`, "\n")
	if got := strings.Join(rowTable(rows).Lines(screen.Width), "\n") + "\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func upLink(peer, local, remote string) api.Link {
	return api.Link{Peer: peer, Local: local, Remote: remote, State: api.LinkUp}
}

func TestLinkTable(t *testing.T) {
	rtt := func(l api.Link, ms float64) api.Link { l.RTTMs = &ms; return l }
	got := strings.Join(linkTable(map[string][]api.Link{
		"fra": {rtt(upLink("lon", "isp1", "wan"), 5), rtt(upLink("sto", "isp1", "isp2"), 20)},
		"lon": {rtt(upLink("fra", "wan", "isp1"), 5.1), {Peer: "ams", Local: "wan", Remote: "isp1", State: api.LinkIdle}},
		"sto": {rtt(upLink("fra", "isp2", "isp1"), 20)},
	}).Lines(screen.Width), "\n")
	want := `LINK       UPLINKS      STATE  RTT ms
fra – lon  isp1 – wan   up        5.0
fra – sto  isp1 – isp2  up       20.0
lon – ams  wan – isp1   idle        –`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestReportIsJSON(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new", "demo.json")
	if err := world.WriteJSON(file, Report{Schema: 1, Rows: []Row{{Felt: world.Felt{Event: "e"}, NoLoss: true}}}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil || len(r.Rows) != 1 || !r.Rows[0].NoLoss {
		t.Errorf("%v, %+v", err, r)
	}
}

func TestMatrixTable(t *testing.T) {
	m := world.Matrix{Hosts: []string{"fra", "lon"}, RTTMs: [][]*float64{{new(1.5), new(1.5)}, {nil, new(1.5)}}}
	want := "FROM HOST OF  fra  lon\nfra           1.5  1.5\nlon             –  1.5"
	if got := strings.Join(matrixTable(m).Lines(screen.Width), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestMisplaced(t *testing.T) {
	site := func(name, nat string) *world.Site {
		return &world.Site{Name: name, Uplinks: []api.Uplink{{Name: "isp1", NAT: nat}}}
	}
	fra, mad, syd := site("fra", "none"), site("mad", "easy"), site("syd", "symmetric")
	up := func(peers ...string) (links []api.Link) {
		for _, p := range peers {
			links = append(links, api.Link{Peer: p, State: api.LinkUp})
		}
		return links
	}
	for _, c := range []struct {
		name     string
		fra, mad []api.Link
		want     string
	}{
		{"as it should be", up("mad", "syd"), up("fra"), ""},
		{"no link to a public site", up("mad"), up("fra"), "fra (public) and syd (symmetric) have no direct link"},
		{"one that cannot be", up("mad", "syd"), up("fra", "syd"), "mad (easy) and syd (symmetric) have a direct link"},
		{"one that is down", []api.Link{{Peer: "mad", State: api.LinkDown}, {Peer: "syd", State: api.LinkUp}}, nil, "fra (public) and mad (easy) have no direct link"},
	} {
		got := misplaced([]*world.Site{fra, mad, syd}, map[string][]api.Link{"fra": c.fra, "mad": c.mad})
		if !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
