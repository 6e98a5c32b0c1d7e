package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
	"guywire/integration/vagrant"
)

// Options say how the demo runs.
type Options struct {
	Out     io.Writer // required
	JSON    string    // file for the report; empty: none
	LogDir  string    // where a failure leaves the logs; empty: nowhere
	Name    string    // of the lab; default: one of its own, or "demo" with Keep
	Keep    bool      // leave the lab running, except after an interrupt
	Only    []int     // of the steps from 3 on; empty: all
	Verbose bool      // print every command
	Vagrant bool      // run on the machines of Vagrant, which are left running
	Sites   []string  // of those only these; empty: all
	Pace    int       // as in world.World
}

// The built-in networks of the demo, and their sites in the order in which they join: the first three become the voters.
const (
	network  = "demo"
	machines = "vagrant"
)

var joinOrder = map[string][]string{
	network:  {"fra", "lon", "nyc", "sto", "mad", "syd"},
	machines: {"fra", "lon", "nyc", "sto", "mad"},
}

// maxVoters is how many voters there are, if so many sites are public.
const maxVoters = 3

// errTooFew: the step needs other sites than there are.
var errTooFew = errors.New("the sites are too few")

// A Report is the outcome of the demo.
type Report struct {
	Schema  int          `json:"schema"` // 1
	Started time.Time    `json:"started"`
	Seconds float64      `json:"seconds"`
	OK      bool         `json:"ok"`
	Error   string       `json:"error"` // why it ended early; empty: it did not
	Joins   []world.Join `json:"joins"`
	Matrix  world.Matrix `json:"matrix"`
	Rows    []Row        `json:"rows"`
}

// A demo is one run.
type demo struct {
	*world.World
	opts   Options
	report Report
}

// A step is one numbered part.
type step struct {
	number int
	run    func(*demo, context.Context) error
}

var steps = []step{
	{1, (*demo).joinAll},
	{2, (*demo).show},
	{3, (*demo).cutSilently},
	{4, (*demo).pullUplink},
	{5, (*demo).killTransit},
	{6, (*demo).killAgent},
	{7, (*demo).killVoters},
}

// Main runs the demo: it joins six sites, breaks things, and prints what the traffic felt. The error is ErrClaim if all went
// through and something was far worse than promised. It returns soon after ctx ends.
func Main(ctx context.Context, opts Options) (err error) {
	known := func(n int) bool {
		return n >= 3 && slices.ContainsFunc(steps, func(s step) bool { return s.number == n })
	}
	for _, n := range opts.Only {
		if !known(n) {
			return fmt.Errorf("there is no step %d to choose; choose of 3 to %d (1 and 2 always run)", n, steps[len(steps)-1].number)
		}
	}
	if err := world.Built(); err != nil {
		return err
	}
	began := time.Now()
	scr := screen.New(opts.Out, opts.Verbose)
	d, err := begin(ctx, scr, opts)
	if err != nil {
		return err
	}
	defer func() {
		if opts.Keep && !opts.Vagrant && ctx.Err() == nil {
			scr.Say("\nThe lab is left running: `meshlab --name %s exec fra -- meshctl status`; end it by `meshlab --name %s down`.", d.Lab.Name(), d.Lab.Name())
			return
		}
		err = errors.Join(err, d.Nodes.Close())
	}()

	for _, s := range steps {
		if s.number >= 3 && len(opts.Only) > 0 && !slices.Contains(opts.Only, s.number) {
			continue
		}
		if err = s.run(d, ctx); errors.Is(err, errTooFew) && len(opts.Sites) > 0 {
			scr.Note("Step %d is left out: %v.", s.number, err)
			err = nil
		}
		if err != nil {
			err = fmt.Errorf("step %d: %w", s.number, err)
			break
		}
	}
	if ctx.Err() != nil {
		scr.Clear()
		return context.Cause(ctx)
	}
	d.report.Seconds = time.Since(began).Seconds()
	broken := d.broken()
	d.report.OK = err == nil && len(broken) == 0
	if err != nil {
		d.report.Error = err.Error()
	}
	d.summary(began)
	if !d.report.OK {
		d.postMortem(ctx, broken, err)
	}
	if err == nil && len(broken) > 0 {
		err = fmt.Errorf("%d of %d rows: %w", len(broken), len(d.report.Rows), ErrClaim)
	}
	return errors.Join(err, world.WriteJSON(opts.JSON, d.report))
}

// begin builds the lab.
func begin(ctx context.Context, scr *screen.Screen, opts Options) (*demo, error) {
	if opts.Vagrant {
		return beginMachines(ctx, scr, opts)
	}
	n, err := lab.Load(network)
	if err != nil {
		return nil, err
	}
	name := opts.Name
	if name == "" {
		name = "demo"
		if !opts.Keep {
			name = fmt.Sprintf("demo-%d", os.Getpid())
		}
	}
	scr.Progress("building the network")
	w, err := world.Open(ctx, scr, n, lab.Options{Name: name, Agents: true, Detach: opts.Keep}, joinOrder[network])
	if err != nil {
		return nil, err
	}
	d := newDemo(w, opts)
	kinds := map[lab.Kind]int{}
	for _, n := range w.Status.Nodes {
		kinds[n.Kind]++
	}
	scr.Say("Guywire demo: %d sites with a LAN each, %d routers and %d NAT boxes, in namespaces of this machine.",
		kinds[lab.Site], kinds[lab.Router], kinds[lab.NAT])
	return d, nil
}

func newDemo(w *world.World, opts Options) *demo {
	return &demo{World: w, opts: opts, report: Report{Schema: 1, Started: time.Now(), Joins: []world.Join{}, Rows: []Row{}}}
}

// beginMachines takes the machines that run.
func beginMachines(ctx context.Context, scr *screen.Screen, opts Options) (*demo, error) {
	n, err := lab.Load(machines)
	if err != nil {
		return nil, err
	}
	sites := opts.Sites
	if len(sites) == 0 {
		sites = joinOrder[machines]
	}
	m, err := vagrant.Open(ctx, n, sites, scr.Progress)
	if err != nil {
		return nil, err
	}
	w, err := world.On(ctx, scr, m, vagrant.Exe, sites)
	if err != nil {
		return nil, err
	}
	w.Pace = opts.Pace
	scr.Say("Guywire demo: %d sites with a LAN each in machines of Vagrant, and a router in another.", len(sites))
	return newDemo(w, opts), nil
}

// broken returns the rows that failed.
func (d *demo) broken() []Row {
	return slices.DeleteFunc(slices.Clone(d.report.Rows), func(r Row) bool { return r.Verdict != verdictFail })
}

// summary prints the final table.
func (d *demo) summary(began time.Time) {
	if len(d.report.Rows) == 0 {
		return
	}
	d.Screen.Heading(8, "Summary", "")
	rowTable(d.report.Rows).Print(d.Screen)
	for _, r := range d.report.Rows {
		if r.Why != "" {
			d.Screen.Note("%s: %s", r.Event, r.Why)
		}
	}
	d.Screen.Note("A gap is the longest silence of a %d packets/s flow in either direction.", d.PPS())
	d.Screen.Say("   %.0f s in all.", time.Since(began).Seconds())
	if d.opts.JSON != "" {
		d.Screen.Say("   The report is in %s.", d.opts.JSON)
	}
}

// rowTable lays rows out as the final table.
func rowTable(rows []Row) *screen.Table {
	t := &screen.Table{Heads: []string{"EVENT", ">GAP ms", ">LOST", "PATH BEFORE", "AFTER", "PROMISE", ""}}
	for _, r := range rows {
		after := r.After
		if after == r.Before {
			after = "the same"
		}
		t.Add(r.Event, gapText(r), fmt.Sprint(r.Lost), narrow(r.Before), narrow(after), promise(r), r.Verdict)
	}
	return t
}

// narrow takes the blanks out of a way.
func narrow(way string) string { return strings.ReplaceAll(way, " → ", "→") }

func gapText(r Row) string {
	switch {
	case r.Open:
		return "endless"
	case r.GapMs <= 0:
		return fmt.Sprintf("< %.0f", r.NoGapMs)
	default:
		return fmt.Sprintf("%.0f", r.GapMs)
	}
}

func promise(r Row) string {
	var p []string
	if r.LimitMs > 0 {
		p = append(p, fmt.Sprintf("%.0f ms", r.LimitMs))
	}
	if r.NoLoss {
		p = append(p, "0 lost")
	}
	return strings.Join(p, ", ")
}
