package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"guywire/integration/lab"
	"guywire/mesh/api"
)

// A world is a running lab and what we know of the mesh in it.
type world struct {
	lab    *lab.Lab
	status *lab.Status // of the lab at its start
	exe    string      // this program
	screen *screen
	sites  []*site // in the order in which they join
	byName map[string]*site
	links  map[string][]api.Link // as each site told last; a site whose agent is dead keeps what it told
}

// A site of the world. Its host is NAME-host.
type site struct {
	name, host   string
	lan          []netip.Prefix
	host4, host6 netip.Addr
	wan          []string // interfaces of the uplinks, in the lab

	// Known once it has joined:
	overlay []netip.Addr
	uplinks []api.Uplink
}

func (s *site) public() bool {
	return len(s.uplinks) > 0 && !slices.ContainsFunc(s.uplinks, func(u api.Uplink) bool { return u.NAT != "none" })
}

// uplinkInterface returns the interface of an uplink; an uplink without a name of its own has its interface's.
func (s *site) uplinkInterface(uplink string) string {
	for _, u := range s.uplinks {
		if u.Name == uplink {
			return u.Interface
		}
	}
	return uplink
}

// nat says what is between the site and the others, over all uplinks.
func (s *site) nat() string {
	var kinds []string
	for _, u := range s.uplinks {
		kind := u.NAT
		if kind == "none" {
			kind = "public"
		}
		if !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	return strings.Join(kinds, ", ")
}

// open builds the network. order names the sites in the order in which they join; it must name them all.
func open(ctx context.Context, scr *screen, network *lab.Network, opts lab.Options, order []string) (*world, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l, err := lab.Up(ctx, network, opts)
	if err != nil {
		return nil, err
	}
	w := &world{lab: l, exe: exe, screen: scr, byName: map[string]*site{}, links: map[string][]api.Link{}}
	if w.status, err = l.Status(ctx); err == nil {
		w.sites, err = sitesOf(w.status, order)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	for _, s := range w.sites {
		w.byName[s.name] = s
	}
	return w, nil
}

// built checks that the other programs lie beside this one.
func built() error {
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
func sitesOf(status *lab.Status, order []string) ([]*site, error) {
	var sites []*site
	for _, name := range order {
		n, found := status.Node(name)
		if !found || n.Kind != lab.Site {
			return nil, fmt.Errorf("the network has no site %s", name)
		}
		s := &site{name: name, host: name + "-host"}
		for _, i := range n.Interfaces {
			if i.Name != "lan" {
				s.wan = append(s.wan, i.Name)
				continue
			}
			for _, p := range i.Addresses {
				s.lan = append(s.lan, p.Masked())
			}
		}
		h, _ := status.Node(s.host)
		var has4, has6 bool
		s.host4, has4 = h.Addr("", false)
		s.host6, has6 = h.Addr("", true)
		if !has4 || !has6 || len(s.lan) == 0 {
			return nil, fmt.Errorf("site %s has no LAN of both families with a host in it", name)
		}
		sites = append(sites, s)
	}
	return sites, nil
}

// run runs a command on a node and returns its standard output. A code other than 0 is an *exitError, with the output.
func (w *world) run(ctx context.Context, node, stdin string, argv ...string) ([]byte, error) {
	var out, said bytes.Buffer
	began := time.Now()
	code, err := w.lab.Exec(ctx, node, argv, strings.NewReader(stdin), &out, &said)
	name := strings.TrimSpace(filepath.Base(argv[0]) + " " + strings.Join(argv[1:], " "))
	w.screen.debug("%s: %s: %d in %s", node, name, code, time.Since(began).Round(time.Millisecond))
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

// ctl runs `meshctl ARGS… --json` on a site and decodes the document. A path that is not reached is a document too.
func (w *world) ctl(ctx context.Context, s *site, doc any, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, ctlLimit)
	defer cancel()
	out, err := w.run(ctx, s.name, "", append(append([]string{"meshctl"}, args...), "--json")...)
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
		return fmt.Errorf("read the answer of meshctl %s on %s: %w", args[0], s.name, err)
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

// each runs f for all sites side by side and joins the errors.
func (w *world) each(sites []*site, f func(*site) error) error {
	errs := make([]error, len(sites))
	var all sync.WaitGroup
	for i, s := range sites {
		all.Go(func() { errs[i] = f(s) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// look asks all sites for their links and keeps the answers. A site that does not answer keeps its last ones; the names of
// those are returned.
func (w *world) look(ctx context.Context) (silent []string) {
	answers := make([]api.Links, len(w.sites))
	failed := make([]bool, len(w.sites))
	var all sync.WaitGroup
	for i, s := range w.sites {
		all.Go(func() { failed[i] = w.ctl(ctx, s, &answers[i], "links") != nil })
	}
	all.Wait()
	for i, s := range w.sites {
		if failed[i] {
			silent = append(silent, s.name)
			continue
		}
		w.links[s.name] = answers[i].Links
	}
	return silent
}

// uplinkCounts gives the number of uplinks by site, for trace.text.
func (w *world) uplinkCounts() map[string]int {
	n := map[string]int{}
	for _, s := range w.sites {
		n[s.name] = len(s.wan)
	}
	return n
}

// pollEvery is the pause between two looks at a condition. A look starts a program on every site; on a small machine it
// must leave time for what it looks at.
const pollEvery = 500 * time.Millisecond

// until polls a condition. check returns "" when it holds, otherwise what keeps it from holding; that is shown, and told in
// the error when the limit is over. An error of check ends the wait.
func (w *world) until(ctx context.Context, what string, limit time.Duration, check func(context.Context) (string, error)) error {
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
			w.screen.clear()
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %s; last: %s", what, limit, state)
		}
		w.screen.progress("%s, %.0f s: %s", what, time.Since(began).Seconds(), state)
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
