package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"guywire/integration/grid"
	"guywire/integration/lab"
	"guywire/integration/lab/peers"
	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
)

// options say what is measured.
type options struct {
	out      io.Writer
	json     string        // file for the report; empty: none
	only     []string      // parts; empty: all
	rounds   int           // of transfers
	transfer time.Duration // length of each
	cuts     int           // events of each kind
	minutes  float64       // of the watch for false alarms
	systems  []string      // of the peers benchmark; empty: all
	pairs    string        // of the nat benchmark; empty: the share of `make test`
	logs     string        // where the logs of all labs go; empty: nowhere
	verbose  bool
}

// A part is one benchmark.
type part struct {
	name, title string
	run         func(*bench, context.Context) error
	wide        bool // asks how much goes through
	faults      bool // breaks disks
}

var parts = []part{
	{"throughput", "Throughput", (*bench).throughput, true, false},
	{"failover", "Failover in the demo network", (*bench).failover, false, false},
	{"peers", "Failover beside other routing systems", (*bench).peers, false, false},
	{"carrier", "A lost carrier, and the other end's word", (*bench).carrier, false, false},
	{"grey", "Grey failures", (*bench).grey, false, false},
	{"falsealarms", "False alarms", (*bench).falseAlarms, false, false},
	{"uplinks", "Two uplinks", (*bench).uplinks, true, false},
	{"idle", "Idle traffic", (*bench).idle, false, false},
	{"writes", "Writes and joins", (*bench).writes, true, false},
	{"leader", "Death of the leader", (*bench).leader, false, false},
	{"disk", "A disk that stalls", (*bench).disk, false, true},
	{"nat", "Pairs of networks", (*bench).nat, false, false},
	{"join", "Joins through NAT", (*bench).join, false, false},
	{"recovery", "Networks that change", (*bench).recovery, false, false},
	{"thirty", "Thirty sites", (*bench).thirty, false, false},
	{"stun", "A STUN server", (*bench).stun, false, false},
}

func names() (out []string) {
	for _, p := range parts {
		out = append(out, p.name)
	}
	return out
}

// A figure is one measured value.
type figure struct {
	Part    string    `json:"part"`
	What    string    `json:"what"`
	Value   float64   `json:"value"`
	Unit    string    `json:"unit"`
	Target  *float64  `json:"target"`   // null: none
	AtLeast bool      `json:"at_least"` // the target is the least, otherwise the most
	Samples []float64 `json:"samples"`  // that the value is made of
}

func (f figure) met() bool {
	return f.Target == nil || f.AtLeast && f.Value >= *f.Target || !f.AtLeast && f.Value <= *f.Target
}

// most and least make targets.
func (f figure) most(target float64) figure {
	f.Target = &target
	return f
}

func (f figure) least(target float64) figure {
	f.Target, f.AtLeast = &target, true
	return f
}

// report is what --json writes.
type report struct {
	Schema  int           `json:"schema"` // 2
	Started time.Time     `json:"started"`
	Figures []figure      `json:"figures"`
	Joins   []world.Join  `json:"joins"` // of the demo network
	Pairs   []grid.Result `json:"pairs"` // of networks
	Mixed   *grid.Mixed   `json:"mixed"` // null: not measured
}

// A bench is one run.
type bench struct {
	options
	screen *screen.Screen
	part   part // that runs now
	number int  // its place
	report report
}

// run measures. It returns soon after ctx ends. A part that fails does not keep the others from running.
func run(ctx context.Context, opts options) error {
	for _, name := range opts.only {
		if !slices.Contains(names(), name) {
			return fmt.Errorf("there is no benchmark %q; those are %s", name, strings.Join(names(), ", "))
		}
	}
	for _, name := range opts.systems {
		if !slices.ContainsFunc(peers.All(), func(c peers.Contender) bool { return c.Name == name }) {
			return fmt.Errorf("there is no routing system %q to measure; those are %s", name, strings.Join(systems(), ", "))
		}
	}
	if opts.rounds < 1 || opts.cuts < 1 || opts.minutes <= 0 || opts.transfer <= 0 {
		return errors.New("rounds, cuts, minutes and the length of a transfer must be positive")
	}
	if err := world.Built(); err != nil {
		return err
	}
	b := &bench{
		options: opts, screen: screen.New(opts.out, opts.verbose),
		report: report{Schema: 2, Started: time.Now(), Figures: []figure{}, Joins: []world.Join{}, Pairs: []grid.Result{}},
	}
	var errs []error
	for i, p := range parts {
		if len(opts.only) > 0 && !slices.Contains(opts.only, p.name) {
			continue
		}
		b.part, b.number = p, i+1
		err := p.run(b, ctx)
		b.screen.Clear()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			b.screen.Note("This part failed: %v", err)
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
	}
	return errors.Join(append(errs, world.WriteJSON(opts.json, b.report))...)
}

// heading opens the part that runs.
func (b *bench) heading(format string, args ...any) {
	b.screen.Heading(b.number, b.part.title, fmt.Sprintf(format, args...))
}

// tell prints figures of the part that runs and adds them to the report.
func (b *bench) tell(figures ...figure) {
	t := &screen.Table{Heads: []string{"WHAT", ">FIGURE", "", ">TARGET", ""}}
	for _, f := range figures {
		f.Part = b.part.name
		b.report.Figures = append(b.report.Figures, f)
		target, judged := "–", ""
		if f.Target != nil {
			bound := "≤ "
			if f.AtLeast {
				bound = "≥ "
			}
			target, judged = bound+number(*f.Target), "ok"
			if !f.met() {
				judged = "missed"
			}
		}
		t.Add(f.What, number(f.Value), f.Unit, target, judged)
	}
	t.Print(b.screen)
}

// number writes a value with three digits or so.
func number(v float64) string {
	switch {
	case v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// gaps makes the figures of the gaps of one kind of event, in milliseconds.
func gaps(what string, ms []float64) (median, p99 figure) {
	of := fmt.Sprintf("%s: ", what)
	return figure{What: of + fmt.Sprintf("median gap of %d", len(ms)), Value: quantile(ms, 0.5), Unit: "ms", Samples: ms},
		figure{What: of + "p99", Value: quantile(ms, 0.99), Unit: "ms", Samples: ms}
}

// labOptions are those of a lab: where throughput is measured, programs use all processors.
func (b *bench) labOptions(name string) lab.Options {
	opts := lab.Options{Name: fmt.Sprintf("bench-%s-%d", name, os.Getpid()), Faults: b.part.faults}
	if b.part.wide {
		opts.Processors = runtime.NumCPU()
	}
	return opts
}

// open builds a network without agents.
func (b *bench) open(ctx context.Context, name string, network *lab.Network, order ...string) (*world.World, error) {
	b.screen.Progress("building the network")
	return world.Open(ctx, b.screen, network, b.labOptions(name), order)
}

// mesh builds a network, joins its sites, and waits until all is well.
func (b *bench) mesh(ctx context.Context, name string, network *lab.Network, order ...string) (*world.World, error) {
	b.screen.Progress("building the network")
	opts := b.labOptions(name)
	opts.Agents = true
	w, err := world.Open(ctx, b.screen, network, opts, order)
	if err != nil {
		return nil, err
	}
	joins, err := w.JoinAll(ctx)
	if err == nil {
		err = w.Settle(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, b.close(w))
	}
	if name == demoNetwork {
		b.report.Joins = joins
	}
	return w, nil
}

// close ends a world.
func (b *bench) close(w *world.World) error {
	var err error
	if b.logs != "" {
		err = world.KeepLogs(w.Lab.Dir(), filepath.Join(b.logs, w.Lab.Name()))
	}
	return errors.Join(err, w.Lab.Close())
}

// The built-in networks that are measured on, and the order in which their sites join.
const (
	demoNetwork = "demo"
	twoSites    = "two-sites"
	twoUplinks  = "two-uplinks"
	fiveSites   = "five-sites"
)

var (
	demoOrder = []string{"fra", "lon", "nyc", "sto", "mad", "syd"}
	pairOrder = []string{"fra", "lon"} // of the networks of two sites
	fiveOrder = []string{"fra", "lon", "ams", "par", "bru"}
)
