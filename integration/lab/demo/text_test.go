package demo

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"guywire/integration/lab/flow"
	"guywire/mesh/api"
)

func TestRowTable(t *testing.T) {
	rows := []Row{
		{Event: "fra – lon silent", GapMs: 84.6, Lost: 42, Sent: 4000, Before: "fra → lon", After: "fra → sto:isp1,isp2 → lon", LimitMs: 300, Verdict: verdictOK},
		{Event: "transit fra dead", Open: true, Lost: 1000, Before: "mad → fra → syd", After: "none", LimitMs: 300, Verdict: verdictFail},
		{Event: "agent of lon restarted", Before: "mad → lon → syd", After: "mad → lon → syd", NoLoss: true, Verdict: verdictOK},
	}
	want := strings.TrimLeft(`
EVENT                    GAP ms  LOST  PATH BEFORE  AFTER                  PROMISE
fra – lon silent             85    42  fra→lon      fra→sto:isp1,isp2→lon  300 ms   ok
transit fra dead        endless  1000  mad→fra→syd  none                   300 ms   FAIL
agent of lon restarted      < 6     0  mad→lon→syd  the same               0 lost   ok
`, "\n")
	if got := strings.Join(rowTable(rows).lines(width), "\n") + "\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestTableFits(t *testing.T) {
	table := &table{heads: []string{"A", ">B"}}
	table.add(strings.Repeat("ä", 200), strings.Repeat("9", 90))
	table.add("short", "1")
	for _, l := range table.lines(width) {
		if utf8.RuneCountInString(l) > width {
			t.Errorf("%d columns: %s", utf8.RuneCountInString(l), l)
		}
	}
}

func TestScreen(t *testing.T) {
	var out bytes.Buffer
	s := newScreen(&out, false)
	s.heading(3, "Title", strings.Repeat("many words ", 20))
	s.progress("not on a file")
	s.debug("nor this")
	s.note("%d done", 3)
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if got := out.String(); strings.Contains(got, "not") || strings.Contains(got, "nor") || !strings.HasSuffix(got, "   3 done\n") {
		t.Errorf("got %q", got)
	}
	out.Reset()
	s.terminal = true
	s.progress("waiting")
	s.say("done")
	if got := out.String(); got != "\r\x1b[K   … waiting\r\x1b[Kdone\n" {
		t.Errorf("a terminal gets %q", got)
	}
}

func TestMatrix(t *testing.T) {
	cell := func(name string, reached bool) flow.PingCell {
		return flow.PingCell{Target: flow.Target{Name: name}, Reached: reached, UDP: &flow.Probe{Min: 1500 * time.Microsecond}}
	}
	m := matrixOf([]string{"fra", "lon"}, []flow.PingReport{
		{Cells: []flow.PingCell{cell("fra", true), cell("fra/6", true), cell("lon", true), cell("lon/6", false)}},
		{Cells: []flow.PingCell{cell("fra", false), cell("fra/6", true), cell("lon", true), cell("lon/6", true)}},
	})
	if m.Pairs != (api.Count{Good: 3, Total: 4}) || m.Pair6 != (api.Count{Good: 3, Total: 4}) {
		t.Errorf("IPv4 %v, IPv6 %v", m.Pairs, m.Pair6)
	}
	want := "FROM HOST OF  fra  lon\nfra           1.5  1.5\nlon             –  1.5"
	if got := strings.Join(matrixTable(m).lines(width), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := m.missing(); got != "IPv4 3 of 4, without lon→fra; IPv6 3 of 4" {
		t.Error(got)
	}
	if got := matrixOf([]string{"fra"}, []flow.PingReport{{Cells: []flow.PingCell{cell("fra", true), cell("fra/6", true)}}}).missing(); got != "" {
		t.Errorf("nothing is missing, but: %s", got)
	}
	// A row that did not run at all is missing too.
	if got := matrixOf([]string{"fra"}, make([]flow.PingReport, 1)).missing(); got == "" {
		t.Error("an empty row passes")
	}
}

func TestLinkTable(t *testing.T) {
	rtt := func(l api.Link, ms float64) api.Link { l.RTTMs = &ms; return l }
	got := strings.Join(linkTable(map[string][]api.Link{
		"fra": {rtt(link("", "lon", "isp1", "wan"), 5), rtt(link("", "sto", "isp1", "isp2"), 20)},
		"lon": {rtt(link("", "fra", "wan", "isp1"), 5.1), {Peer: "ams", Local: "wan", Remote: "isp1", State: api.LinkIdle}},
		"sto": {rtt(link("", "fra", "isp2", "isp1"), 20)},
	}).lines(width), "\n")
	want := `LINK       UPLINKS      STATE  RTT ms
fra – lon  isp1 – wan   up        5.0
fra – sto  isp1 – isp2  up       20.0
lon – ams  wan – isp1   idle        –`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTranscriptOf(t *testing.T) {
	good := `{"schema":1,"index":1,"elapsed_ms":1.5,"kind":"token","sentence":"token k7m2"}
{"schema":1,"index":2,"elapsed_ms":812,"kind":"ready","sentence":"","result":{"schema":1,"node":{"name":"lon","addrs":["10.86.0.2","fd00::2"]}}}
`
	steps, err := transcriptOf([]byte(good))
	if err != nil || len(steps) != 2 {
		t.Fatalf("%v, %v", steps, err)
	}
	if a, found := ipv4Of(steps[1].Result.Node.Addrs); !found || a.String() != "10.86.0.2" {
		t.Errorf("address %v", a)
	}
	first, _, _ := strings.Cut(good, "\n")
	for _, bad := range []string{"", first, first + "\n{", `{"schema":9}`} {
		if steps, err := transcriptOf([]byte(bad)); err == nil {
			t.Errorf("%q: %v", bad, steps)
		}
	}
	if steps, _ := transcriptOf([]byte(first)); !strings.Contains(lastStep(steps), "token k7m2") {
		t.Errorf("how far it came: %q", lastStep(steps))
	}
}

func FuzzTranscriptOf(f *testing.F) {
	f.Add([]byte(`{"schema":1,"kind":"ready","result":{}}`))
	f.Add([]byte(`{"kind":"token"}{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if steps, err := transcriptOf(b); err == nil && steps[len(steps)-1].Result == nil {
			t.Error("no error and no result")
		}
	})
}

func TestAPISentence(t *testing.T) {
	for said, want := range map[string]string{
		`{"error":{"code":"token-used","message":"The token is used up","next":"make another"}}`: "The token is used up; next: make another",
		`{"error":{"code":"internal","message":"No"}}`:                                           "No",
		"plain words": "plain words",
	} {
		if got := apiSentence(said); got != want {
			t.Errorf("%s: %s", said, got)
		}
	}
}

func TestStderrTranscript(t *testing.T) {
	tr := newTranscript()
	for _, piece := range []string{"a warning\nlis", "tening 12", "345", "\nlistening 9\nmore"} {
		select {
		case <-tr.ready:
			t.Fatalf("ready before %q", piece)
		default:
		}
		_, _ = tr.Write([]byte(piece))
	}
	select {
	case <-tr.ready:
	default:
		t.Fatal("not ready")
	}
	if tr.behind() != "12345" || tr.text() != "a warning; listening 12345; listening 9; more" {
		t.Errorf("%q, %q", tr.behind(), tr.text())
	}
}

func TestKeepLogs(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "logs")
	for name, text := range map[string]string{
		"nodes/fra/meshd.log": "one\ntwo\nthree\n", "nodes/fra/state/identity.key": "secret", "supervisor.log": "s", "launch.json": "{}",
	} {
		path := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // a second time replaces the first
		if err := keepLogs(from, to); err != nil {
			t.Fatal(err)
		}
	}
	var kept []string
	if err := filepath.WalkDir(to, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			kept = append(kept, strings.TrimPrefix(path, to+"/"))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if strings.Join(kept, " ") != "nodes/fra/meshd.log supervisor.log" {
		t.Errorf("kept %v", kept)
	}
	if got := tail(filepath.Join(to, "nodes/fra/meshd.log"), 2); strings.Join(got, "|") != "two|three" {
		t.Errorf("the end is %v", got)
	}
}

func TestAccount(t *testing.T) {
	const ms = time.Millisecond
	ends := [2]*site{{host: "a-host"}, {host: "b-host"}}
	there := flow.Result{Interval: 2 * ms, Sent: 2000, EndMono: 4000 * ms, Latency: flow.Latency{P99: 10 * ms}}
	back := there
	// One way a silence before the event and one because of it, which the sender made longer; the other way a short one.
	there.Gaps = []flow.Gap{
		{StartMono: 500 * ms, Length: 400 * ms, Lost: 200},
		{StartMono: 1002 * ms, Length: 100 * ms, SenderLate: 20 * ms, Lost: 40},
	}
	there.Losses = []flow.LossRun{{FirstSeq: 250, Count: 200}, {FirstSeq: 496, Count: 40}}
	back.Gaps = []flow.Gap{{StartMono: 1005 * ms, Length: 30 * ms, Lost: 10}}
	back.Losses = []flow.LossRun{{FirstSeq: 500, Count: 10}}
	var r Row
	r.account(ends, [2]flow.Result{there, back}, 1000*ms, 3000*ms)
	if r.GapMs != 80 || r.Lost != 50 || r.Sent != 2*1005 || r.Open || len(r.Windows) != 2 {
		t.Errorf("got %+v", r)
	}
	// A flow that stays away is one that did not come back, also if something longer was before.
	back.Gaps = append(back.Gaps, flow.Gap{StartMono: 2990 * ms, Length: 20 * ms, Open: true})
	r = Row{}
	r.account(ends, [2]flow.Result{there, back}, 1000*ms, 3000*ms)
	if !r.Open {
		t.Errorf("got %+v", r)
	}
}

func TestReportIsJSON(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new", "demo.json")
	if err := writeJSON(file, Report{Schema: 1, Rows: []Row{{Event: "e", NoLoss: true}}}); err != nil {
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
