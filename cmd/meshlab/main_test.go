package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"guywire/integration/lab"
)

func TestMain(m *testing.M) {
	// Or each process under the race detector takes a second to end.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	lab.Init()
	if len(os.Args) > 1 && os.Args[1] == "as-meshlab" {
		os.Exit(run(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// meshlab runs the program in this process.
func meshlab(t *testing.T, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// meshlabProcess runs it as a process, for exit codes and what it prints.
func meshlabProcess(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(t.Context(), exe, append([]string{"as-meshlab"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("input\n"), &out, &errOut
	_ = cmd.Run() // the code says it all
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

const tiny = `
name: tiny
nodes:
  r: {kind: router}
  a: {kind: host, uplinks: [{to: r}]}
  b: {kind: host, uplinks: [{to: r}]}
`

func TestTour(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tiny.yaml")
	if err := os.WriteFile(file, []byte(tiny), 0o600); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("cli-%d", os.Getpid())
	named := func(args ...string) []string { return append([]string{"--name", name}, args...) }
	code, out, errOut := meshlabProcess(t, named("up", file)...)
	if strings.Contains(errOut, "make namespaces") {
		t.Skipf("the kernel does not let us make namespaces: %s", errOut)
	}
	if code != 0 || !strings.Contains(out, "Lab "+name+" is up") {
		t.Fatalf("up: code %d, %q, %q", code, out, errOut)
	}
	defer lab.Down(name)
	for _, step := range []struct {
		args   []string
		code   int
		out    string // in the output
		errOut string // in the errors
	}{
		{[]string{"status"}, 0, "a:eth0  a:eth0 r:to-a  veth", ""},
		{[]string{"up", file}, 1, "", "already running"},
		{[]string{"exec", "a", "--", "sh", "-c", "cat; hostname; exit 7"}, 7, "input\na\n", ""},
		{[]string{"exec", "a", "sh", "-c", "exit 8"}, 8, "", ""},
		{[]string{"exec", "a", "--", "no-such-program"}, 125, "", "no-such-program"},
		{[]string{"exec", "ghost", "--", "true"}, 125, "", `unknown node "ghost"`},
		{[]string{"exec", "a"}, 2, "", "a node and a command"},
		{[]string{"cut", "a:eth0", "--from", "a"}, 0, "", ""},
		{[]string{"status"}, 0, "cut from a", ""},
		{[]string{"cut", "a:eth0", "--carrier"}, 0, "", ""},
		{[]string{"status"}, 0, "cut from a; no carrier", ""},
		{[]string{"cut", "a:eth0", "--carrier", "--from", "a"}, 2, "", "leave out"},
		{[]string{"cut", "ghost"}, 1, "", `unknown link "ghost"`},
		{[]string{"heal"}, 0, "", ""},
		{[]string{"impair", "a:eth0", "--delay", "5ms", "--loss", "2%"}, 1, "", "wire: true"},
		{[]string{"impair", "a:eth0", "--loss", "lots"}, 2, "", "not a share"},
		{[]string{"impair", "a:eth0", "--rate", "fast"}, 2, "", "not a rate"},
		{[]string{"partition", "a", "r,b"}, 0, "", ""},
		{[]string{"heal", "a:eth0"}, 0, "", ""},
		{[]string{"readdress", "a:eth0"}, 0, "[198.18.1.10/30 ", ""},
		{[]string{"readdress", "a:eth0", "ten"}, 2, "", "not an address"},
		{[]string{"reboot", "r", "--down", "1ms"}, 0, "", ""},
		{[]string{"reboot", "a"}, 1, "", "does not reboot"},
		{[]string{"nat", "r", "symmetric"}, 1, "", "name a nat"},
		{[]string{"nat", "ghost", "symmetric"}, 1, "", "unknown node"},
		{[]string{"start", "b", "--as", "idler", "--", "sleep", "600"}, 0, "Process ", ""},
		{[]string{"start", "b", "--as", "idler", "--", "sleep", "600"}, 1, "", "already running"},
		{[]string{"pause", "b", "idler"}, 0, "", ""},
		{[]string{"status"}, 0, "up; idler paused", ""},
		{[]string{"heal", "--node", "b"}, 0, "", ""},
		{[]string{"pause", "b", "idler", "--for", "1ms"}, 0, "", ""},
		{[]string{"pause", "a"}, 3, "", "not running"},
		{[]string{"suspend", "b"}, 0, "", ""},
		{[]string{"status"}, 0, "up; suspended", ""},
		{[]string{"heal", "--node", "b"}, 0, "", ""},
		{[]string{"suspend", "b", "--for", "1ms", "--jump", "1h"}, 1, "", "--faults"},
		{[]string{"stall", "a"}, 1, "", "--faults"},
		{[]string{"stall", "a", "--error", "EPERM"}, 2, "", "EIO or ENOSPC"},
		{[]string{"clock", "a", "1h"}, 1, "", "--faults"},
		{[]string{"clock", "a", "noon"}, 2, "", "no offset"},
		{[]string{"heal", "a:eth0", "--node", "a"}, 2, "", "exclude"},
		{[]string{"heal", "--node", "ghost"}, 1, "", "unknown node"},
		{[]string{"kill", "b", "idler", "--signal", "TERM"}, 0, "", ""},
		{[]string{"kill", "b", "idler", "--signal", "HUGS"}, 2, "", "no signal"},
		{[]string{"kill", "b", "idler", "--all"}, 2, "", "exclude"},
		{[]string{"kill", "b", "--all"}, 0, "", ""},
		{[]string{"kill", "a"}, 3, "", "not running"},
		{[]string{"start", "a"}, 1, "", "not a site"},
		{[]string{"no-such-verb"}, 2, "", ""},
		{[]string{"status", "--colour"}, 2, "", "--help"},
	} {
		code, out, errOut := meshlabProcess(t, named(step.args...)...)
		if code != step.code || !strings.Contains(out, step.out) || !strings.Contains(errOut, step.errOut) {
			t.Errorf("%v: code %d, %q, %q; want code %d, %q, %q", step.args, code, out, errOut, step.code, step.out, step.errOut)
		}
		if strings.Count(errOut, "\n") > 1 {
			t.Errorf("%v: the error has several lines: %q", step.args, errOut)
		}
	}
	_, out, _ = meshlabProcess(t, named("status", "--json")...)
	var st struct {
		Schema int
		lab.Status
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil || st.Schema != statusSchema || len(st.Nodes) != 3 || len(st.Links) != 2 {
		t.Errorf("status --json gives %+v, %v", st, err)
	}
	if code, _, errOut := meshlabProcess(t, named("down")...); code != 0 {
		t.Errorf("down: code %d, %q", code, errOut)
	}
	for _, verb := range []string{"down", "status"} {
		if code, _, errOut := meshlabProcess(t, named(verb)...); code != 3 || !strings.Contains(errOut, "not running") {
			t.Errorf("%s without a lab: code %d, %q", verb, code, errOut)
		}
	}
}

func TestOffsets(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"1h": time.Hour, "-90s": -90 * time.Second, "2026-05-01T13:00:00+02:00": -time.Hour, "1970-01-01T00:00:00Z": -now.Sub(time.Unix(0, 0)),
	} {
		if got, err := parseOffset(text, now); err != nil || got != want {
			t.Errorf("%s is %s, %v; want %s", text, got, err, want)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, name := range lab.BuiltIn() {
		if _, err := meshlab(t, "up", "--check", name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	file := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(file, []byte("nodes:\n  r:\n    kind: toaster\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := meshlab(t, "up", "--check", file); err == nil || !strings.Contains(err.Error(), "bad.yaml: line 3: ") {
		t.Errorf("a bad file: %v, want its line", err)
	}
}

func TestHelp(t *testing.T) {
	for _, c := range newRoot().Commands() {
		if c.Short == "" {
			t.Errorf("%s has no help", c.Name())
		}
	}
	out, err := meshlab(t, "--version")
	if err != nil || !strings.Contains(out, "go1.") {
		t.Errorf("--version gives %q, %v", out, err)
	}
}
