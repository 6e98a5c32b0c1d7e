package truth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"guywire/integration/lab"
	"guywire/mesh/api"
	"guywire/mesh/control"
	"guywire/mesh/keyring"
	"guywire/store"
	"guywire/store/disk"
)

// patience is how long anything may take on a busy machine. It is no measure:
// nothing is said to be good because it took less.
const patience = 60 * time.Second

const (
	socket      = "/run/guywire/meshd.sock"
	controlPort = 8686 // of meshd, as configured in labs
)

// A world is a lab whose sites are one mesh.
type world struct {
	testing.TB
	lab    *lab.Lab
	sites  []string
	shared string // a folder that all nodes see
	tokens tokens

	mu     sync.Mutex         // guards starts
	starts map[string][]int64 // of meshd on each site, by CLOCK_MONOTONIC
}

// tokens admit what a test needs: further sites, and clients that may change
// the mesh and never vote.
type tokens struct {
	Site, Client string
}

// network describes sites behind two routers, so that there are links of single
// sites to cut, and one between halves. The last two have a way around that one.
const network = `
nodes:
  west: {kind: router}
  east: {kind: router}
  one: {kind: site, uplinks: [{to: west}], lan: 10.1.0.0/24, meshd: {log_level: debug}}
  two: {kind: site, uplinks: [{to: west}], lan: 10.2.0.0/24, meshd: {log_level: debug}}
  three: {kind: site, uplinks: [{to: east}], lan: 10.3.0.0/24, meshd: {log_level: debug}}
  four: {kind: site, uplinks: [{to: east}], lan: 10.4.0.0/24, meshd: {log_level: debug}}
  five: {kind: site, uplinks: [{to: west}, {to: east}], lan: 10.5.0.0/24, meshd: {log_level: debug}}
  six: {kind: site, uplinks: [{to: west}, {to: east}], lan: 10.6.0.0/24, meshd: {log_level: debug}}
links:
  - {ends: [west, east]}
`

var labs atomic.Int32

// build makes a mesh of the first three sites; path has the programs.
func build(t testing.TB, opts lab.Options) *world {
	t.Helper()
	return buildOf(t, opts, "one", "two", "three")
}

// buildOf makes a mesh in which all of an odd number of sites vote. The first
// site's state is made outside of meshd, since its API makes no tokens with roles.
func buildOf(t testing.TB, opts lab.Options, sites ...string) *world {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("tunnels need a /dev/net/tun that we may open: %v", err)
	}
	_ = f.Close()
	parsed, err := lab.Parse(strings.NewReader(network))
	if err != nil {
		t.Fatal(err)
	}
	opts.Name = fmt.Sprintf("truth-%d-%d", os.Getpid(), labs.Add(1))
	l, err := lab.Up(t.Context(), parsed, opts)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ENOSPC) {
		t.Skipf("the machine lets us make no namespaces: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	shared, err := os.MkdirTemp("", "guywire-shared-")
	if err != nil {
		t.Fatal(errors.Join(err, l.Close()))
	}
	w := &world{TB: t, lab: l, sites: sites, shared: shared, starts: map[string][]int64{}}
	t.Cleanup(func() {
		if t.Failed() {
			kept := filepath.Join(os.TempDir(), "guywire-failed-"+l.Name())
			err := os.Mkdir(kept, 0o700) // there are keys in it
			t.Logf("all that the nodes left is kept in %s (%v)", kept, errors.Join(err, os.CopyFS(kept, os.DirFS(filepath.Join(l.Dir(), "nodes")))))
		}
		if err := errors.Join(l.Close(), os.RemoveAll(shared)); err != nil {
			t.Error(err)
		}
	})
	w.decode(&w.tokens, w.must("one", "", "found", "--state", w.state("one"), "--address", w.addr("one").String()))
	w.start("one")
	for _, site := range w.sites[1:] {
		w.enter(site)
	}
	if len(w.sites) > 3 {
		w.must("one", "", "change", "voters", fmt.Sprint(len(w.sites)))
	}
	w.settled()
	return w
}

// settled waits until the mesh is as it should be without faults: all sites vote
// for one leader, none is drained, and no change of the CA is under way.
func (w *world) settled() {
	w.Helper()
	w.until("a mesh at rest", func() string {
		leader := ""
		for _, site := range w.sites {
			var st api.Status
			var drains api.Drains
			var cas api.Authorities
			var raft api.RaftStatus
			err := w.ask(site, "status", &st)
			if err == nil {
				err = errors.Join(w.ask(site, "drains", &drains), w.ask(site, "ca", &cas), w.ask(site, "raft", &raft))
			}
			voters := 0
			for _, m := range raft.Members {
				if m.Voter {
					voters++
				}
			}
			switch {
			case err != nil:
				return err.Error()
			case st.Node.Role != "voter" || st.Node.Leader == "":
				return fmt.Sprintf("%s is a %s led by %q", site, st.Node.Role, st.Node.Leader)
			case leader != "" && leader != st.Node.Leader:
				return fmt.Sprintf("%s is led by %q, the one before by %q", site, st.Node.Leader, leader)
			case voters != len(w.sites):
				return fmt.Sprintf("%s says that %d vote", site, voters)
			case len(drains.Drains) > 0:
				return site + " says that something is drained"
			case slices.ContainsFunc(cas.Authorities, func(ca api.Authority) bool { return ca.State == "next" }):
				return site + " says that the CA changes"
			}
			leader = st.Node.Leader
		}
		return ""
	})
}

// enter makes a site a member.
func (w *world) enter(site string) {
	w.Helper()
	w.start(site)
	w.must(site, w.tokens.Site, "join", "--name", site)
}

func (w *world) dir(node string) string   { return filepath.Join(w.lab.Dir(), "nodes", node) }
func (w *world) state(node string) string { return filepath.Join(w.dir(node), "state") }

// addr is a site's address on its uplink.
func (w *world) addr(site string) netip.Addr {
	w.Helper()
	st, err := w.lab.Status(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	n, _ := st.Node(site)
	for _, i := range n.Interfaces {
		if i.Name == "lan" {
			continue
		}
		for _, p := range i.Addresses {
			if p.Addr().Is4() {
				return p.Addr()
			}
		}
	}
	w.Fatalf("%s has no uplink", site)
	return netip.Addr{}
}

func (w *world) start(site string) {
	w.Helper()
	w.mu.Lock()
	w.starts[site] = append(w.starts[site], monotonic())
	w.mu.Unlock()
	if _, err := w.lab.Start(w.Context(), site, "", nil); err != nil {
		w.Fatal(err)
	}
}

// started reports whether meshd on a site was started in a time.
func (w *world) started(site string, from, to int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.starts[site], func(at int64) bool { return from < at && at < to })
}

// inside runs the test binary on a node.
func (w *world) inside(ctx context.Context, node, stdin string, args ...string) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	var out, said bytes.Buffer
	code, err := w.lab.Exec(ctx, node, append([]string{exe, insideVerb}, args...), strings.NewReader(stdin), &out, &said)
	if err == nil && code != 0 {
		err = fmt.Errorf("%s on %s ended with code %d: %s", args[0], node, code, strings.TrimSpace(said.String()))
	}
	return out.String(), err
}

// must runs a verb that has to succeed.
func (w *world) must(node, stdin string, args ...string) string {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	out, err := w.inside(ctx, node, stdin, args...)
	if err != nil {
		w.Fatal(err)
	}
	return out
}

func (w *world) decode(into any, out string) {
	w.Helper()
	if err := json.Unmarshal([]byte(out), into); err != nil {
		w.Fatalf("%v in %s", err, out)
	}
}

// ask asks the meshd of a site.
func (w *world) ask(site, what string, into any) error {
	ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
	defer cancel()
	out, err := w.inside(ctx, site, "", "ask", what)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

// until waits for a condition: check gives "" when it holds, else what keeps
// it from holding.
func (w *world) until(what string, check func() string) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	if last := lab.Poll(ctx, 200*time.Millisecond, check); last != "" {
		w.Fatalf("%s does not happen; last: %s", what, last)
	}
}

// openState opens the state directory of a node to be, and makes its identity.
func openState(path string) (*disk.Dir, *keyring.Ring, error) {
	state, err := disk.Open(path)
	if err != nil {
		return nil, nil, err
	}
	ring, err := keyring.Open(state)
	if errors.Is(err, keyring.ErrNoIdentity) {
		ring, err = keyring.Create(state)
	}
	if err != nil {
		return nil, nil, errors.Join(err, state.Close())
	}
	return state, ring, nil
}

func foundCommand() *cobra.Command {
	var path, address string
	cmd := &cobra.Command{Use: "found", RunE: func(cmd *cobra.Command, _ []string) (err error) {
		state, ring, err := openState(path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, ring.Close(), state.Close()) }()
		addr, err := netip.ParseAddr(address)
		if err != nil {
			return err
		}
		p, err := control.Init(cmd.Context(), control.Config{
			State: state, Ring: ring, Listen: fmt.Sprintf(":%d", controlPort), Logger: slog.New(slog.DiscardHandler),
			Advertise: func() []netip.AddrPort { return []netip.AddrPort{netip.AddrPortFrom(addr, controlPort)} },
		}, control.InitRequest{
			Mesh: "truth", Name: "one", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")},
			Pool4: netip.MustParsePrefix("10.86.0.0/16"), Pool6: netip.MustParsePrefix("fd12:3456:789a::/48"),
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Close()) }()
		var made tokens
		for text, roles := range map[*string][]store.NodeRole{
			&made.Site:   {store.NodeOperator},
			&made.Client: {store.NodeNoVote, store.NodeOperator},
		} {
			if *text, _, err = p.CreateToken(cmd.Context(), control.TokenRequest{Uses: 100, AnyPrefix: true, Roles: roles}); err != nil {
				return err
			}
		}
		return json.NewEncoder(cmd.OutOrStdout()).Encode(made)
	}}
	cmd.Flags().StringVar(&path, "state", "", "state directory")
	cmd.Flags().StringVar(&address, "address", "", "where the site is reached")
	return cmd
}

func joinCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{Use: "join", RunE: func(cmd *cobra.Command, _ []string) error {
		var token bytes.Buffer
		if _, err := token.ReadFrom(cmd.InOrStdin()); err != nil {
			return err
		}
		c := api.Dial(socket)
		defer c.Close()
		return c.Join(cmd.Context(), api.JoinRequest{Token: token.String(), Name: name}, func(api.JoinStep) error { return nil })
	}}
	cmd.Flags().StringVar(&name, "name", "", "of the node")
	return cmd
}

func askCommand() *cobra.Command {
	return &cobra.Command{Use: "ask", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		answer, err := asked(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return json.NewEncoder(cmd.OutOrStdout()).Encode(answer)
	}}
}

// asked asks the meshd of this node.
func asked(ctx context.Context, what string) (any, error) {
	c := api.Dial(socket)
	defer c.Close()
	switch what {
	case "status":
		return c.Status(ctx)
	case "nodes":
		return c.Nodes(ctx, api.NodesQuery{})
	case "tokens":
		return c.Tokens(ctx)
	case "links":
		return c.Links(ctx)
	case "routes":
		return c.Routes(ctx)
	case "topology":
		return c.Topology(ctx)
	case "drains":
		return c.Drains(ctx)
	case "ca":
		return c.Authorities(ctx)
	case "raft":
		return c.Raft(ctx)
	case "version":
		return c.Version(ctx)
	case "events":
		var all []api.Event
		err := c.Events(ctx, api.EventsQuery{}, func(e api.Event) error {
			all = append(all, e)
			return nil
		})
		return all, err
	}
	return nil, fmt.Errorf("nobody knows how to ask for %q", what)
}

// changeCommand changes the mesh by the meshd of this node.
func changeCommand() *cobra.Command {
	return &cobra.Command{Use: "change", Args: cobra.RangeArgs(1, 2), RunE: func(cmd *cobra.Command, args []string) (err error) {
		c := api.Dial(socket)
		defer c.Close()
		switch about := args[len(args)-1]; args[0] {
		case "drain":
			_, err = c.Drain(cmd.Context(), api.DrainRequest{Target: about})
		case "undrain":
			_, err = c.Undrain(cmd.Context(), about)
		case "rotate":
			_, err = c.RotateCA(cmd.Context())
		case "voters":
			var n int
			if n, err = strconv.Atoi(about); err == nil {
				_, err = c.SetSettings(cmd.Context(), api.SettingsRequest{Voters: &n})
			}
		default:
			err = fmt.Errorf("nobody knows how to %s", args[0])
		}
		return err
	}}
}

// walkCommand lists all below a folder, with modes.
func walkCommand() *cobra.Command {
	return &cobra.Command{Use: "walk", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return filepath.WalkDir(args[0], func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), info.Mode(), path)
			}
			return err
		})
	}}
}
