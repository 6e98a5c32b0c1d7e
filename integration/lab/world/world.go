package world

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/screen"
	"guywire/mesh/api"
)

// A World is a running lab and what we know of the mesh in it.
type World struct {
	Lab    *lab.Lab    // nil when the nodes are machines
	Nodes  Nodes       // what the sites run on: Lab, or machines
	Pace   int         // how many times slower than namespaces the nodes are, 0 is 1: all limits are so much longer
	Status *lab.Status // of the nodes at their start
	Exe    string      // this program, in the nodes
	Screen *screen.Screen
	Sites  []*Site // in the order in which they join
	ByName map[string]*Site
	Links  map[string][]api.Link // as each site told last; a site whose agent is dead keeps what it told

	baseline map[string][]linkKey // the links that are up in good times, by site
}

// Nodes are what a world runs on. The methods are those of [lab.Lab].
type Nodes interface {
	Exec(ctx context.Context, node string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error)
	ExecSignals(ctx context.Context, node string, argv []string, stdin io.Reader, stdout, stderr io.Writer, signals <-chan os.Signal) (int, error)
	Start(ctx context.Context, node, process string, argv []string) (int, error)
	Kill(ctx context.Context, node, process string, sig syscall.Signal) error
	KillAll(ctx context.Context, node string, sig syscall.Signal) error
	Cut(ctx context.Context, link, from string) error
	Heal(ctx context.Context, link string) error
	Carrier(ctx context.Context, link string, up bool) error
	Status(ctx context.Context) (*lab.Status, error)
	Logs(ctx context.Context) (dir string, err error)
	Close() error
}

// A Site of the world. Its host is NAME-host.
type Site struct {
	Name, Host   string
	LAN          []netip.Prefix
	Host4, Host6 netip.Addr
	WAN          []string // interfaces of the uplinks, in the lab

	// Known once it has joined:
	Overlay []netip.Addr
	Uplinks []api.Uplink
}

// Public reports whether all uplinks are reached from anywhere.
func (s *Site) Public() bool {
	return len(s.Uplinks) > 0 && !slices.ContainsFunc(s.Uplinks, func(u api.Uplink) bool { return natOf(u) != "none" })
}

// UplinkInterface returns the interface of an uplink; an uplink without a name of its own has its interface's.
func (s *Site) UplinkInterface(uplink string) string {
	for _, u := range s.Uplinks {
		if u.Name == uplink {
			return u.Interface
		}
	}
	return uplink
}

// NAT says what is between the site and the others, over all uplinks.
func (s *Site) NAT() string {
	var kinds []string
	for _, u := range s.Uplinks {
		kind := natOf(u)
		if kind == "none" {
			kind = "public"
		}
		if !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	return strings.Join(kinds, ", ")
}

// natOf is the kind of NAT of an uplink: that of IPv4, if there is such.
func natOf(u api.Uplink) string {
	if u.NAT == "absent" {
		return u.NAT6
	}
	return u.NAT
}

// Open builds the network. order names the sites in the order in which they join; it must name them all.
func Open(ctx context.Context, scr *screen.Screen, network *lab.Network, opts lab.Options, order []string) (*World, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l, err := lab.Up(ctx, network, opts)
	if err != nil {
		return nil, err
	}
	w, err := On(ctx, scr, l, exe, order)
	if err != nil {
		return nil, err
	}
	w.Lab = l
	return w, nil
}

// On makes a world of nodes that run, in which exe is this program. An error closes them.
func On(ctx context.Context, scr *screen.Screen, nodes Nodes, exe string, order []string) (*World, error) {
	w := &World{Nodes: nodes, Exe: exe, Screen: scr, ByName: map[string]*Site{}, Links: map[string][]api.Link{}, baseline: map[string][]linkKey{}}
	var err error
	if w.Status, err = nodes.Status(ctx); err == nil {
		w.Sites, err = sitesOf(w.Status, order)
	}
	if err != nil {
		return nil, errors.Join(err, nodes.Close())
	}
	for _, s := range w.Sites {
		w.ByName[s.Name] = s
	}
	return w, nil
}

// Built checks that the other programs lie beside this one.
func Built() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	for _, name := range []string{"meshd", "meshctl"} {
		path := filepath.Join(filepath.Dir(exe), name)
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			return fmt.Errorf("%s is missing; run `make build`", path)
		}
	}
	return nil
}

// sitesOf finds the sites of a lab and their hosts.
func sitesOf(status *lab.Status, order []string) ([]*Site, error) {
	var sites []*Site
	for _, name := range order {
		n, found := status.Node(name)
		if !found || n.Kind != lab.Site {
			return nil, fmt.Errorf("the network has no site %s", name)
		}
		s := &Site{Name: name, Host: name + "-host"}
		for _, i := range n.Interfaces {
			if i.Name != "lan" {
				s.WAN = append(s.WAN, i.Name)
				continue
			}
			for _, p := range i.Addresses {
				s.LAN = append(s.LAN, p.Masked())
			}
		}
		h, _ := status.Node(s.Host)
		var has4, has6 bool
		s.Host4, has4 = h.Addr("", false)
		s.Host6, has6 = h.Addr("", true)
		if !has4 || !has6 || len(s.LAN) == 0 {
			return nil, fmt.Errorf("site %s has no LAN of both families with a host in it", name)
		}
		sites = append(sites, s)
	}
	return sites, nil
}

// Run runs a command on a node and returns its standard output. A code other than 0 is an *exitError, with the output.
func (w *World) Run(ctx context.Context, node, stdin string, argv ...string) ([]byte, error) {
	var out, said bytes.Buffer
	began := time.Now()
	code, err := w.Nodes.Exec(ctx, node, argv, strings.NewReader(stdin), &out, &said)
	name := strings.TrimSpace(filepath.Base(argv[0]) + " " + strings.Join(argv[1:], " "))
	w.Screen.Debug("%s: %s: %d in %s", node, name, code, time.Since(began).Round(time.Millisecond))
	if err != nil {
		return nil, err
	}
	if code != 0 {
		err = &exitError{node, strings.Join(append([]string{filepath.Base(argv[0])}, argv[1:min(len(argv), 3)]...), " "), code, sentence(said.String())}
	}
	return out.Bytes(), err
}

// ctlLimit is how long one call of meshctl may take; joins have their own limit.
const ctlLimit = 15 * time.Second

// Ctl runs `meshctl ARGS… --json` on a site and decodes the document. A path that is not reached is a document too.
func (w *World) Ctl(ctx context.Context, s *Site, doc any, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, w.paced(ctlLimit))
	defer cancel()
	out, err := w.Run(ctx, s.Name, "", append(append([]string{"meshctl"}, args...), "--json")...)
	if e, isExit := errors.AsType[*exitError](err); isExit {
		if (e.code == api.ExitUnreachable || e.code == api.ExitDegraded) && len(bytes.TrimSpace(out)) > 0 {
			err = nil
		} else {
			e.said = apiSentence(e.said)
		}
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, doc); err != nil {
		return fmt.Errorf("read the answer of meshctl %s on %s: %w", args[0], s.Name, err)
	}
	return nil
}

// apiSentence takes the sentence out of an error document; other text stays.
func apiSentence(said string) string {
	var doc struct {
		Error *api.Error `json:"error"`
	}
	if json.Unmarshal([]byte(said), &doc) != nil || doc.Error == nil {
		return said
	}
	if doc.Error.Next == "" {
		return doc.Error.Message
	}
	return doc.Error.Message + "; next: " + doc.Error.Next
}

// Each runs f for all sites side by side and joins the errors.
func (w *World) Each(sites []*Site, f func(*Site) error) error {
	errs := make([]error, len(sites))
	var all sync.WaitGroup
	for i, s := range sites {
		all.Go(func() { errs[i] = f(s) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Look asks all sites for their links and keeps the answers. A site that does not answer keeps its last ones; the names of
// those are returned.
func (w *World) Look(ctx context.Context) (silent []string) {
	answers := make([]api.Links, len(w.Sites))
	failed := make([]bool, len(w.Sites))
	var all sync.WaitGroup
	for i, s := range w.Sites {
		all.Go(func() { failed[i] = w.Ctl(ctx, s, &answers[i], "links") != nil })
	}
	all.Wait()
	for i, s := range w.Sites {
		if failed[i] {
			silent = append(silent, s.Name)
			continue
		}
		w.Links[s.Name] = answers[i].Links
	}
	return silent
}

// Events asks a site for the events that it remembers, in order.
func (w *World) Events(ctx context.Context, s *Site) (events []api.Event, err error) {
	out, err := w.Run(ctx, s.Name, "", "meshctl", "events", "--json")
	if err != nil {
		return nil, err
	}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var e api.Event
		if err := d.Decode(&e); err != nil {
			return nil, fmt.Errorf("read the events of %s: %w", s.Name, err)
		}
		events = append(events, e)
	}
	return events, nil
}

// uplinkCounts gives the number of uplinks by site, for trace.text.
func (w *World) uplinkCounts() map[string]int {
	n := map[string]int{}
	for _, s := range w.Sites {
		n[s.Name] = len(s.WAN)
	}
	return n
}

// pollEvery is the pause between two looks at a condition. A look starts a program on every site; on a small machine it
// must leave time for what it looks at.
const pollEvery = 500 * time.Millisecond

// Until polls a condition. check returns "" when it holds, otherwise what keeps it from holding; that is shown, and told in
// the error when the limit is over. An error of check ends the wait.
func (w *World) Until(ctx context.Context, what string, limit time.Duration, check func(context.Context) (string, error)) error {
	limit = w.paced(limit)
	deadline := time.Now().Add(limit)
	began := time.Now()
	for {
		state, err := check(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if state == "" {
			w.Screen.Clear()
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %s; last: %s", what, limit, state)
		}
		w.Screen.Progress("%s, %.0f s: %s", what, time.Since(began).Seconds(), state)
		if err := Pause(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// paced makes a time longer where nodes are slower.
func (w *World) paced(d time.Duration) time.Duration { return d * time.Duration(max(w.Pace, 1)) }

// Pause waits.
func Pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
