package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/mesh/api"
)

// patience is how long anything may take on a busy machine. It is no measure:
// nothing is said to be good because it took less.
const patience = 30 * time.Second

// A world is a lab with the programs under test.
type world struct {
	testing.TB
	lab *lab.Lab
}

var labs atomic.Int32

// sites describes a network of sites on one ISP. The LANs of the site in place
// i are 10.i.0.0/24 and fd86:0:0:i::/64. A site can be followed by settings
// that come before these: "b {lan: 10.9.0.0/24}".
func sites(names ...string) string {
	var text strings.Builder
	text.WriteString("nodes:\n  isp: {kind: router}\n")
	for i, name := range names {
		name, more, _ := strings.Cut(name, " ")
		more = strings.TrimSuffix(strings.TrimPrefix(more, "{"), "}")
		if !strings.Contains(more, "lan:") {
			more += fmt.Sprintf(", lan: 10.%d.0.0/24", i+1)
		}
		text.WriteString(fmt.Sprintf("  %s: {kind: site, uplinks: [{to: isp}], lan6: \"fd86:0:0:%d::/64\", %s}\n", name, i+1, strings.TrimPrefix(more, ", ")))
	}
	return text.String()
}

// build makes a lab in which every site runs meshd.
func build(t testing.TB, text string) *world {
	t.Helper()
	needTun(t)
	network, err := lab.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.Up(t.Context(), network, lab.Options{
		Name: fmt.Sprintf("netns-%d-%d", os.Getpid(), labs.Add(1)), Agents: true, Path: []string{bin},
	})
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ENOSPC) {
		t.Skipf("the machine lets us make no namespaces: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t, l}
	t.Cleanup(func() {
		if t.Failed() {
			for name, n := range network.Nodes {
				if n.Kind == lab.Site {
					lines := strings.Split(w.log(name, "meshd"), "\n")
					t.Logf("meshd of %s, at last:\n%s", name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
				}
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func needTun(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("tunnels need a /dev/net/tun that we may open: %v", err)
	}
	_ = f.Close()
}

// log gives what a process of the node has written.
func (w *world) log(node, process string) string {
	data, err := os.ReadFile(filepath.Join(w.dir(node), process+".log"))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func (w *world) dir(node string) string    { return filepath.Join(w.lab.Dir(), "nodes", node) }
func (w *world) state(node string) string  { return filepath.Join(w.dir(node), "state") }
func (w *world) config(node string) string { return filepath.Join(w.dir(node), "meshd.yaml") }

// An outcome is what a command did.
type outcome struct {
	what string
	code int
	out  string
	said string // on standard error
}

// do runs a command on a node.
func (w *world) do(node, stdin string, argv ...string) outcome {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 2*patience)
	defer cancel()
	var out, said bytes.Buffer
	code, err := w.lab.Exec(ctx, node, argv, strings.NewReader(stdin), &out, &said)
	if err != nil {
		w.Fatalf("%v on %s: %v", argv, node, err)
	}
	return outcome{strings.Join(argv, " ") + " on " + node, code, out.String(), said.String()}
}

// must runs a command that has to succeed, and gives its output.
func (w *world) must(node, stdin string, argv ...string) string {
	w.Helper()
	o := w.do(node, stdin, argv...)
	if o.code != 0 {
		w.Fatalf("%s: code %d: %s", o.what, o.code, o.said)
	}
	return o.out
}

func (w *world) ctl(node string, args ...string) outcome {
	w.Helper()
	return w.do(node, "", append([]string{"meshctl"}, args...)...)
}

// ask runs meshctl with --json and decodes the document.
func ask[D any](w *world, node string, args ...string) (doc D) {
	w.Helper()
	o := w.ctl(node, append(args, "--json")...)
	if o.code != api.ExitOK && o.code != api.ExitDegraded {
		w.Fatalf("%s: code %d: %s", o.what, o.code, o.said)
	}
	if err := json.Unmarshal([]byte(o.out), &doc); err != nil {
		w.Fatalf("%s: %v in %s", o.what, err, o.out)
	}
	return doc
}

// inside runs the test binary on a node.
func (w *world) inside(node string, args ...string) string {
	w.Helper()
	return w.must(node, "", insideArgv(w, args...)...)
}

func insideArgv(t testing.TB, args ...string) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{exe, insideVerb}, args...)
}

// snapshot gives all that Guywire could have touched on a node.
func (w *world) snapshot(node string) (lines []string) {
	w.Helper()
	if err := json.Unmarshal([]byte(w.inside(node, "snapshot")), &lines); err != nil {
		w.Fatal(err)
	}
	return lines
}

// files gives the files of a node's state directory. Only the lock is always
// there.
func (w *world) files(node string) (names []string) {
	w.Helper()
	err := filepath.WalkDir(w.state(node), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, w.state(node)+"/"))
		}
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	return names
}

// nothingLeft checks that the node is as it was, and that its state directory
// holds no membership.
func (w *world) nothingLeft(node string, before []string) {
	w.Helper()
	if diff := changes(before, w.snapshot(node)); diff != "" {
		w.Errorf("%s is not as it was:%s", node, diff)
	}
	if files := w.files(node); !slices.Equal(files, []string{"lock"}) {
		w.Errorf("the state directory of %s holds %v", node, files)
	}
}

// changes gives the lines that went and came.
func changes(before, after []string) string {
	var text strings.Builder
	for _, line := range before {
		if !slices.Contains(after, line) {
			text.WriteString("\n- " + line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			text.WriteString("\n+ " + line)
		}
	}
	return text.String()
}

// until waits for a condition: check gives "" when it holds, else what keeps
// it from holding.
func (w *world) until(what string, check func() string) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	if last := lab.Poll(ctx, 50*time.Millisecond, check); last != "" {
		w.Fatalf("%s does not happen; last: %s", what, last)
	}
}

// restored waits until the node is as it was.
func (w *world) restored(node, what string, before []string) {
	w.Helper()
	w.until(what, func() string { return changes(before, w.snapshot(node)) })
}

// start starts meshd on a node, or another program under the name of a process.
func (w *world) start(node, process string, argv ...string) {
	w.Helper()
	if _, err := w.lab.Start(w.Context(), node, process, argv); err != nil {
		w.Fatal(err)
	}
}

// stop ends meshd on a node, or another process, and waits for its end.
func (w *world) stop(node, process string, sig syscall.Signal) {
	w.Helper()
	if err := w.lab.Kill(w.Context(), node, process, sig); err != nil {
		w.Fatal(err)
	}
	if process == "" {
		process = "meshd"
	}
	w.until("the end of "+process+" on "+node, func() string {
		st, err := w.lab.Status(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		n, _ := st.Node(node)
		if slices.ContainsFunc(n.Processes, func(p lab.Process) bool { return p.Name == process && p.Running }) {
			return "it runs"
		}
		return ""
	})
}

// token makes a token on a node.
func (w *world) token(node string, flags ...string) string {
	w.Helper()
	return strings.TrimSpace(w.must(node, "", append([]string{"meshctl", "token", "create"}, flags...)...))
}

func (w *world) join(node, token string, flags ...string) outcome {
	w.Helper()
	return w.do(node, token+"\n", append([]string{"meshctl", "join", "-"}, flags...)...)
}

// mesh makes a mesh of the sites: the first one founds it, the others join.
func (w *world) mesh(sites ...string) {
	w.Helper()
	w.must(sites[0], "", "meshctl", "init", "--mesh", "mesh-"+sites[0])
	for _, s := range sites[1:] {
		w.enter(s, sites[0])
	}
}

// enter lets a site join with a token for its networks.
func (w *world) enter(site, through string) {
	w.Helper()
	flags := []string{"--name", site}
	for _, p := range w.lans(site) {
		flags = append(flags, "--prefix", p.String())
	}
	if o := w.join(site, w.token(through, flags...)); o.code != 0 {
		w.Fatalf("%s: code %d: %s%s", o.what, o.code, o.out, o.said)
	}
}

// lans gives the networks behind a site.
func (w *world) lans(site string) (out []netip.Prefix) {
	w.Helper()
	for _, i := range w.node(site).Interfaces {
		if i.Name == "lan" {
			for _, p := range i.Addresses {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}

func (w *world) node(name string) lab.NodeStatus {
	w.Helper()
	st, err := w.lab.Status(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	n, ok := st.Node(name)
	if !ok {
		w.Fatalf("there is no node %s", name)
	}
	return n
}

// host gives the address of the machine in a site's LAN.
func (w *world) host(site string, v6 bool) netip.Addr {
	w.Helper()
	a, ok := w.node(site+"-host").Addr("", v6)
	if !ok {
		w.Fatalf("%s-host has no address", site)
	}
	return a
}

// pings pings from one node to addresses and says which do not answer.
func (w *world) pings(from string, to ...netip.Addr) string {
	w.Helper()
	args := []string{"ping", "--count", "2", "--timeout", "500ms"}
	for _, a := range to {
		args = append(args, "--target", a.String()+"="+a.String())
	}
	var r flow.PingReport
	if err := json.Unmarshal([]byte(w.inside(from, args...)), &r); err != nil {
		w.Fatal(err)
	}
	var silent []string
	for _, c := range r.Cells {
		if !c.Reached {
			silent = append(silent, c.Name)
		}
	}
	if len(silent) > 0 {
		return fmt.Sprintf("%s gets no answer from %v", from, silent)
	}
	return ""
}

// talk waits until the LAN hosts of two sites talk to each other, by IPv4 and
// IPv6, both ways.
func (w *world) talk(a, b string) {
	w.Helper()
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		w.until(pair[0]+"-host talks to "+pair[1]+"-host", func() string {
			return w.pings(pair[0]+"-host", w.host(pair[1], false), w.host(pair[1], true))
		})
	}
}

// listening says "" when a socket of the node is bound to the port.
func (w *world) listening(node, protocol string, port uint16) string {
	w.Helper()
	table := w.must(node, "", "cat", "/proc/net/"+protocol, "/proc/net/"+protocol+"6")
	if strings.Contains(table, fmt.Sprintf(":%04X ", port)) {
		return ""
	}
	return fmt.Sprintf("nothing is bound to %s port %d on %s", protocol, port, node)
}

// events gives what happened on a node after an index.
func (w *world) events(node string, since uint64) (out []api.Event) {
	w.Helper()
	text := w.must(node, "", "meshctl", "events", "--json", "--since", fmt.Sprint(since))
	for d := json.NewDecoder(strings.NewReader(text)); d.More(); {
		var e api.Event
		if err := d.Decode(&e); err != nil {
			w.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// of gives the world to a subtest.
func (w *world) of(t *testing.T) *world { return &world{t, w.lab} }
