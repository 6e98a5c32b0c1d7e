package world

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"guywire/integration/lab/flow"
	"guywire/mesh/api"
)

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
	if got := m.Missing(); got != "IPv4 3 of 4, without lon→fra; IPv6 3 of 4" {
		t.Error(got)
	}
	if got := matrixOf([]string{"fra"}, []flow.PingReport{{Cells: []flow.PingCell{cell("fra", true), cell("fra/6", true)}}}).Missing(); got != "" {
		t.Errorf("nothing is missing, but: %s", got)
	}
	// A row that did not run at all is missing too.
	if got := matrixOf([]string{"fra"}, make([]flow.PingReport, 1)).Missing(); got == "" {
		t.Error("an empty row passes")
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
	if a, found := IPv4Of(steps[1].Result.Node.Addrs); !found || a.String() != "10.86.0.2" {
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
		if err := KeepLogs(from, to); err != nil {
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
	if got, err := os.ReadFile(filepath.Join(to, "nodes/fra/meshd.log")); err != nil || string(got) != "one\ntwo\nthree\n" {
		t.Errorf("the end is %v", got)
	}
}

func TestAccount(t *testing.T) {
	const ms = time.Millisecond
	ends := [2]*Site{{Host: "a-host"}, {Host: "b-host"}}
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
	var r Felt
	r.account(ends, [2]flow.Result{there, back}, 1000*ms, 3000*ms)
	if r.GapMs != 80 || r.Lost != 50 || r.Sent != 2*1005 || r.Open || len(r.Directions) != 2 || r.Directions[1].GapMs != 30 {
		t.Errorf("got %+v", r)
	}
	// A flow that stays away is one that did not come back, also if something longer was before.
	back.Gaps = append(back.Gaps, flow.Gap{StartMono: 2990 * ms, Length: 20 * ms, Open: true})
	r = Felt{}
	r.account(ends, [2]flow.Result{there, back}, 1000*ms, 3000*ms)
	if !r.Open {
		t.Errorf("got %+v", r)
	}
}
