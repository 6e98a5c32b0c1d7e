package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
)

// errLoop: packets went round in circles, or could have.
var errLoop = errors.New("forwarding has a loop")

// options say how long what is broken.
type options struct {
	out     io.Writer // required
	span    time.Duration
	seed    uint64
	json    string   // file for the report; empty: none
	logs    string   // where a failure leaves the logs; empty: nowhere
	path    []string // directories of meshd and meshctl, before that of this program
	list    bool     // print every fault
	verbose bool     // print every command
}

// network is the built-in network, and its sites in the order in which they join.
const network = "chaos"

var joinOrder = []string{"fra", "lon", "sto", "mad", "syd", "per"}

const (
	walkEvery = 250 * time.Millisecond // at most so often are the tables of all sites read
	// calm is how long the mesh may take to be whole again after the last repair: links that flapped are held down for up to
	// a minute.
	calm = 4 * time.Minute
)

// report is the outcome.
type report struct {
	Schema    int                `json:"schema"` // 1
	Seed      uint64             `json:"seed"`
	Seconds   float64            `json:"seconds"`
	Faults    map[string]int     `json:"faults"`    // by kind
	Walks     int                `json:"walks"`     // readings of all sites' tables
	NextHops  int                `json:"next_hops"` // seen in them
	Suspects  int                `json:"suspects"`
	Circles   []string           `json:"circles"` // cycles that were there
	Expired   map[string]expired `json:"expired"` // by site, during the run
	Sent      uint64             `json:"sent"`
	Delivered float64            `json:"delivered"` // share of what was sent, breaks included
	Comeback  float64            `json:"comeback_seconds"`
}

// loops says what is wrong; empty: nothing.
func (r report) loops() (out []string) {
	out = append(out, r.Circles...)
	for _, site := range joinOrder {
		if e := r.Expired[site]; e != (expired{}) {
			out = append(out, fmt.Sprintf("packets died of their hop limit on %s: %d ICMP and %d ICMPv6 messages about it, %d and %d packets",
				site, e.Told4, e.Told6, e.Headers, e.Header6))
		}
	}
	return out
}

// run makes the mesh, breaks it, and tells what it found. The error wraps errLoop if that is a loop.
func run(ctx context.Context, opts options) (r report, err error) {
	scr := screen.New(opts.out, opts.verbose)
	scr.Say("Chaos with seed %d for %s. The same breaks again: meshlab chaos --seed %d --for %s", opts.seed, opts.span, opts.seed, opts.span)
	n, err := lab.Load(network)
	if err != nil {
		return r, err
	}
	scr.Progress("building the network")
	w, err := world.Open(ctx, scr, n, lab.Options{Name: fmt.Sprintf("chaos-%d", os.Getpid()), Agents: true, Path: opts.path}, joinOrder)
	if err != nil {
		return r, err
	}
	defer func() {
		scr.Clear()
		if err != nil && ctx.Err() == nil && opts.logs != "" {
			err = errors.Join(err, world.KeepLogs(w.Lab.Dir(), opts.logs))
			scr.Say("The logs are in %s.", opts.logs)
		}
		err = errors.Join(err, w.Lab.Close())
	}()
	if _, err = w.JoinAll(ctx); err != nil {
		return r, err
	}
	if err = w.Settle(ctx); err != nil {
		return r, err
	}
	c := &chaos{World: w, opts: opts, report: report{Schema: 1, Seed: opts.seed, Faults: map[string]int{}, Circles: []string{}, Expired: map[string]expired{}}}
	err = c.happen(ctx)
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	if r = c.report; err == nil {
		r.tell(scr)
		if bad := r.loops(); len(bad) > 0 {
			err = fmt.Errorf("%w, in %d places; the first: %s; again by: meshlab chaos --seed %d --for %s", errLoop, len(bad), bad[0], opts.seed, opts.span)
		}
	}
	return r, errors.Join(err, world.WriteJSON(opts.json, r))
}

func (r report) tell(scr *screen.Screen) {
	var faults []string
	for _, name := range kindNames {
		if n := r.Faults[name]; n > 0 {
			faults = append(faults, fmt.Sprintf("%s %d", name, n))
		}
	}
	scr.Say("Broken and repaired: %s.", strings.Join(faults, ", "))
	scr.Say("%d packets from %d hosts, hop limit %d; %.1f %% arrived. All talk again %.1f s after the last repair.", r.Sent, len(joinOrder), hopLimit, 100*r.Delivered, r.Comeback)
	scr.Say("The kernels' tables were read %d times, with %d next hops each: %d cycles between views of different moments, %d that were there.",
		r.Walks, r.NextHops/max(r.Walks, 1), r.Suspects, len(r.Circles))
	if bad := r.loops(); len(bad) == 0 {
		scr.Say("No packet died of its hop limit.")
	} else {
		scr.Say("%s", strings.Join(bad, "\n"))
	}
}

// A chaos is one run in a mesh that is well.
type chaos struct {
	*world.World
	opts   options
	report report
	paths  map[string]world.Leg
}

// happen breaks and watches.
func (c *chaos) happen(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var to []netip.Addr
	for _, s := range c.Sites {
		to = append(append(to, s.Host4, s.Host6), s.Overlay...)
	}
	eyes := watch(ctx, c.World, to)
	before, err := eyes.all()
	if err != nil {
		return err
	}
	talk, err := c.startChatter(ctx)
	if err != nil {
		return err
	}

	began := flow.Monotonic()
	broken := make(chan error, 1)
	go func() { broken <- c.breakAll(ctx) }()
	walked := make(chan error, 1)
	stop := make(chan struct{})
	go func() { walked <- c.walk(eyes, began, stop) }()
	select {
	case err = <-broken:
	case err = <-walked:
		cancel()
		<-broken
		return err
	}
	repaired := time.Now()
	if err == nil {
		err = c.Until(ctx, "all pairs talk again", calm, func(ctx context.Context) (string, error) {
			m, err := c.Matrix(ctx, 1)
			return m.Missing(), err
		})
	}
	c.report.Comeback = time.Since(repaired).Seconds()
	close(stop)
	err = errors.Join(err, <-walked)
	if err != nil {
		return err
	}
	c.report.Seconds = (flow.Monotonic() - began).Seconds()
	heard, err := world.StopAll[heardOf](ctx, talk)
	if err != nil {
		return err
	}
	var received uint64
	for _, h := range heard {
		c.report.Sent, received = c.report.Sent+h.Sent, received+h.Received
	}
	c.report.Delivered = float64(received) / float64(max(c.report.Sent, 1))
	after, err := eyes.all()
	if err != nil {
		return err
	}
	for site, v := range after {
		c.report.Expired[site] = v.Expired.since(before[site].Expired)
	}
	return nil
}

// startChatter lets every host send to all others.
func (c *chaos) startChatter(ctx context.Context) (talk []*world.Program, err error) {
	for _, s := range c.Sites {
		argv := []string{c.Exe, world.InsideVerb, "chatter"}
		for _, to := range c.Sites {
			if to != s {
				argv = append(argv, "--to", to.Host4.String(), "--to", to.Host6.String())
			}
		}
		talk = append(talk, c.Launch(ctx, s.Host, argv...))
	}
	for _, p := range talk {
		if _, err := p.Started(ctx); err != nil {
			return nil, err
		}
	}
	return talk, nil
}

// walk searches the tables until stop. It prints a cycle when it finds it.
func (c *chaos) walk(eyes *watcher, began time.Duration, stop <-chan struct{}) error {
	every := time.NewTicker(walkEvery)
	defer every.Stop()
	for {
		at := flow.Monotonic() - began
		seen, err := eyes.search()
		if err != nil {
			return err
		}
		c.report.Walks++
		c.report.NextHops += seen.edges
		c.report.Suspects += seen.suspects
		for _, f := range seen.circles {
			text := fmt.Sprintf("%.2f s: %s", at.Seconds(), f)
			c.report.Circles = append(c.report.Circles, text)
			c.Screen.Say("   %s", text)
		}
		select {
		case <-every.C:
		case <-stop:
			return nil
		}
	}
}

// breakAll carries out the plan, and returns when all is repaired.
func (c *chaos) breakAll(ctx context.Context) error {
	faults := plan(c.opts.seed, c.opts.span, c.targets())
	began := time.Now()
	errs := make([]error, len(faults))
	var all sync.WaitGroup
	// Faults of one target follow each other in the plan, but on a busy machine the repair of one may take until the next.
	before := map[string]chan struct{}{}
	for i, f := range faults {
		c.report.Faults[kindNames[f.kind]]++
		last, repaired := before[f.target], make(chan struct{})
		before[f.target] = repaired
		all.Go(func() {
			defer close(repaired)
			if last != nil {
				<-last
			}
			if errs[i] = world.Pause(ctx, time.Until(began.Add(f.at))); errs[i] != nil {
				return
			}
			c.Screen.Progress("%s", f)
			if c.opts.list {
				c.Screen.Say("   %s", f)
			}
			if errs[i] = c.suffer(ctx, f); errs[i] != nil {
				errs[i] = fmt.Errorf("%s: %w", strings.TrimSpace(f.String()), errs[i])
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// targets finds what the network has to break.
func (c *chaos) targets() (t targets) {
	kind := map[string]lab.Kind{}
	for _, n := range c.Status.Nodes {
		kind[n.Name] = n.Kind
	}
	for _, l := range c.Status.Links {
		if l.Medium != "wire" {
			continue // between a site and its host, or its NAT
		}
		x := cable{name: l.Name}
		for i, end := range l.Ends {
			x.ends[i], _, _ = strings.Cut(end, ":")
		}
		t.cables = append(t.cables, x)
		if kind[x.ends[0]] != lab.Router {
			t.uplinks = append(t.uplinks, l.Name)
		}
	}
	c.paths = map[string]world.Leg{}
	for i, a := range c.Sites {
		t.sites = append(t.sites, a.Name)
		for _, b := range c.Sites[i+1:] {
			if !a.Public() || !b.Public() {
				continue
			}
			for _, x := range a.Uplinks {
				for _, y := range b.Uplinks {
					name := fmt.Sprintf("%s:%s – %s:%s", a.Name, x.Name, b.Name, y.Name)
					c.paths[name] = world.Leg{Node: a.Name, Local: x.Name, Peer: b.Name, Remote: y.Name}
					t.paths = append(t.paths, name)
				}
			}
		}
	}
	slices.Sort(t.paths)
	return t
}

// suffer breaks one thing, waits, and repairs it.
func (c *chaos) suffer(ctx context.Context, f fault) error {
	wait := func() error { return world.Pause(ctx, f.span) }
	switch f.kind {
	case killAgent:
		if err := c.Lab.Kill(ctx, f.target, "", 0); err != nil {
			return err
		}
		if err := wait(); err != nil {
			return err
		}
		_, err := c.Lab.Start(ctx, f.target, "", nil)
		return err
	case cutPath:
		heal, _, err := c.Silence(ctx, c.paths[f.target])
		if err != nil {
			return err
		}
		return errors.Join(wait(), heal(ctx))
	case unplug:
		if err := c.Lab.Carrier(ctx, f.target, false); err != nil {
			return err
		}
	case impair:
		bad := c.properties(f.target)
		bad.Delay += f.bad.Delay
		bad.Loss = f.bad.Loss
		if err := c.Lab.Impair(ctx, f.target, "", bad); err != nil {
			return err
		}
	default:
		if err := c.Lab.Cut(ctx, f.target, f.from); err != nil {
			return err
		}
	}
	if err := wait(); err != nil {
		return err
	}
	return c.Lab.Heal(ctx, f.target)
}

// properties returns those of a cable in good times, as far as they can be set again.
func (c *chaos) properties(link string) lab.Properties {
	for _, l := range c.Status.Links {
		if l.Name == link {
			p := l.Properties
			p.MTU = 0
			return p
		}
	}
	return lab.Properties{}
}
