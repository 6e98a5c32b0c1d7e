package demo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/mesh"
	"guywire/mesh/api"
)

// BenchOptions say what is measured.
type BenchOptions struct {
	Out      io.Writer     // required
	JSON     string        // file for the report; empty: none
	Only     []string      // benchmarks; empty: all
	Rounds   int           // of throughput; each is a transfer through the mesh and one beside it
	Transfer time.Duration // length of a transfer; 0: 3 s
	Cuts     int           // of failover
	Verbose  bool
}

const defaultTransfer = 3 * time.Second

// targetRatio is the throughput of a path through the mesh over that of the same tunnel made by hand.
const targetRatio = 0.97

// A benchmark is one part of the bench.
type benchmark struct {
	name string
	run  func(context.Context, *screen, BenchOptions, *BenchReport) error
}

// The failover benchmark has the join times too: its network must be joined anyway.
var benchmarks = []benchmark{{"throughput", benchThroughput}, {"failover", benchFailover}}

func benchNames() (names []string) {
	for _, b := range benchmarks {
		names = append(names, b.name)
	}
	return names
}

// A BenchReport is the outcome of the bench.
type BenchReport struct {
	Schema     int          `json:"schema"` // 1
	Started    time.Time    `json:"started"`
	Throughput []Throughput `json:"throughput"`
	Joins      []Join       `json:"joins"`
	CutGapsMs  []float64    `json:"cut_gaps_ms"` // of each silent cut; 0: no silence above 6 ms
}

// A Throughput compares a path through the mesh with one through the same devices made by hand.
type Throughput struct {
	Streams   int       `json:"streams"`
	Dataplane string    `json:"dataplane"` // of both: kernel or userspace
	MTU       int       `json:"mtu"`       // of both
	MeshMbps  []float64 `json:"mesh_mbit_per_s"`
	HandMbps  []float64 `json:"hand_mbit_per_s"`
	Ratio     float64   `json:"ratio"` // median of the rounds' ratios
}

// Bench measures. Values that miss their target are printed as such and are no error. It returns soon after ctx ends.
func Bench(ctx context.Context, opts BenchOptions) error {
	opts.Transfer = cmp.Or(opts.Transfer, defaultTransfer)
	for _, name := range opts.Only {
		if !slices.Contains(benchNames(), name) {
			return fmt.Errorf("there is no benchmark %q; those are %s", name, strings.Join(benchNames(), ", "))
		}
	}
	if opts.Rounds < 1 || opts.Cuts < 1 {
		return errors.New("rounds and cuts must be at least 1")
	}
	if err := built(); err != nil {
		return err
	}
	scr := newScreen(opts.Out, opts.Verbose)
	report := &BenchReport{Schema: 1, Started: time.Now(), Throughput: []Throughput{}, Joins: []Join{}, CutGapsMs: []float64{}}
	for _, b := range benchmarks {
		if len(opts.Only) > 0 && !slices.Contains(opts.Only, b.name) {
			continue
		}
		if err := b.run(ctx, scr, opts, report); err != nil {
			scr.clear()
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%s: %w", b.name, err)
		}
	}
	return writeJSON(opts.JSON, report)
}

// twoSites is the network of the throughput benchmark.
const twoSites = "two-sites"

// benchThroughput sends TCP between the hosts of two sites: in one lab through the mesh, in another through two devices that
// are configured by hand. The labs take turns.
func benchThroughput(ctx context.Context, scr *screen, opts BenchOptions, report *BenchReport) (err error) {
	scr.heading(1, "Throughput", fmt.Sprintf("TCP from host to host of two sites, %d rounds of %s each way of doing it: through one link of the mesh, and through "+
		"the same kind of device configured by hand.", opts.Rounds, opts.Transfer))
	n, err := lab.Load(twoSites)
	if err != nil {
		return err
	}
	order := []string{"fra", "lon"}
	inMesh, err := open(ctx, scr, n, lab.Options{Name: fmt.Sprintf("bench-mesh-%d", os.Getpid()), Agents: true}, order)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, inMesh.lab.Close()) }()
	byHand, err := open(ctx, scr, n, lab.Options{Name: fmt.Sprintf("bench-hand-%d", os.Getpid())}, order)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, byHand.lab.Close()) }()

	kind, mtu, err := inMesh.oneLink(ctx)
	if err != nil {
		return err
	}
	if err := byHand.connect(ctx, kind, mtu); err != nil {
		return err
	}
	t := &table{heads: []string{"STREAMS", ">MESH Mbit/s", ">BY HAND Mbit/s", ">RATIO", ">TARGET", ""}}
	for _, streams := range []int{1, 4} {
		r := Throughput{Streams: streams, Dataplane: kind, MTU: mtu}
		for round := range opts.Rounds {
			turns := []*world{inMesh, byHand}
			if round%2 == 1 { // so that neither always comes second
				slices.Reverse(turns)
			}
			for _, w := range turns {
				scr.progress("%d streams, round %d of %d", streams, round+1, opts.Rounds)
				mbps, err := w.transfer(ctx, streams, opts.Transfer)
				if err != nil {
					return err
				}
				if w == inMesh {
					r.MeshMbps = append(r.MeshMbps, mbps)
				} else {
					r.HandMbps = append(r.HandMbps, mbps)
				}
			}
		}
		r.Ratio = medianRatio(r.MeshMbps, r.HandMbps)
		report.Throughput = append(report.Throughput, r)
		judged := verdictOK
		if r.Ratio < targetRatio {
			judged = "missed"
		}
		t.add(fmt.Sprint(streams),
			fmt.Sprintf("%.0f", quantile(r.MeshMbps, 0.5)), fmt.Sprintf("%.0f", quantile(r.HandMbps, 0.5)), fmt.Sprintf("%.3f", r.Ratio), fmt.Sprintf("%.2f", targetRatio), judged)
	}
	t.print(scr)
	scr.note("Medians, the ratio's of each round's; WireGuard in %s, MTU %d, in both labs.", kind, mtu)
	return nil
}

// oneLink joins the two sites and waits until they talk. It returns the kind and the MTU of the link between them.
func (w *world) oneLink(ctx context.Context) (kind string, mtu int, err error) {
	if err := w.answering(ctx); err != nil {
		return "", 0, err
	}
	a, b := w.sites[0], w.sites[1]
	if err := w.found(ctx, a); err != nil {
		return "", 0, err
	}
	if _, err := w.join(ctx, b, a); err != nil {
		return "", 0, err
	}
	if err := w.talk(ctx); err != nil {
		return "", 0, err
	}
	err = w.until(ctx, "the link's MTU", talkLimit, func(ctx context.Context) (string, error) {
		var st api.Status
		if err := w.ctl(ctx, a, &st, "status"); err != nil {
			return oneLine(err), nil
		}
		if silent := w.look(ctx); len(silent) > 0 {
			return "no links from " + strings.Join(silent, ", "), nil
		}
		for _, l := range w.links[a.name] {
			if l.State == api.LinkUp && l.MTU > 0 {
				kind, mtu = st.Dataplane, l.MTU
				return "", nil
			}
		}
		return "no link is up with a known MTU", nil
	})
	return kind, mtu, err
}

// talk waits until the hosts of the two sites reach each other.
func (w *world) talk(ctx context.Context) error {
	if err := w.startEchoes(ctx); err != nil {
		return err
	}
	return w.until(ctx, "the hosts talk", talkLimit, func(ctx context.Context) (string, error) {
		m, err := w.matrix(ctx, 1)
		if err != nil || m.Pairs.Good == m.Pairs.Total {
			return "", err
		}
		return fmt.Sprintf("%d of %d pairs", m.Pairs.Good, m.Pairs.Total), nil
	})
}

// handMade is the device of the tunnel made by hand; the data plane wants the mesh's prefix.
const handMade = mesh.InterfacePrefix + "hand"

// connect joins the two sites by a tunnel made by hand.
func (w *world) connect(ctx context.Context, kind string, mtu int) error {
	const port = 51820
	var keys [2]wgtypes.Key
	var addrs [2]netip.Addr
	for i, s := range w.sites {
		var err error
		if keys[i], err = wgtypes.GeneratePrivateKey(); err != nil {
			return err
		}
		n, _ := w.status.Node(s.name)
		var found bool
		if addrs[i], found = n.Addr(s.wan[0], false); !found {
			return fmt.Errorf("%s has no IPv4 address on %s", s.name, s.wan[0])
		}
	}
	for i, s := range w.sites {
		other := w.sites[1-i]
		t := tunnel{
			Device: handMade, Kernel: kind == "kernel", MTU: mtu, Port: port, Private: keys[i], Peer: keys[1-i].PublicKey(),
			Endpoint: netip.AddrPortFrom(addrs[1-i], port),
		}
		for _, p := range other.lan {
			if p.Addr().Is4() {
				t.Routes = append(t.Routes, p)
			}
		}
		if !t.Kernel {
			if _, err := w.lab.Start(ctx, s.name, "dataplane", []string{"meshd", "dataplane"}); err != nil {
				return err
			}
		}
		config, err := json.Marshal(t)
		if err != nil {
			return err
		}
		if _, err := w.run(ctx, s.name, string(config), w.exe, insideVerb, "tunnel"); err != nil {
			return err
		}
	}
	if err := w.startEchoes(ctx); err != nil {
		return err
	}
	a, b := w.sites[0], w.sites[1]
	return w.until(ctx, "the hosts talk through the tunnel made by hand", talkLimit, func(ctx context.Context) (string, error) {
		out, err := w.run(ctx, a.host, "", w.exe, "flow", "ping", "--target", b.name+"="+netip.AddrPortFrom(b.host4, echoPort).String(), "--count", "1")
		if err != nil {
			return "", err
		}
		var r flow.PingReport
		if err := json.Unmarshal(out, &r); err != nil {
			return "", err
		}
		if len(r.Cells) == 0 || !r.Cells[0].Reached {
			return "no answer", nil
		}
		return "", nil
	})
}

// transfer sends TCP from the first site's host to the second's and returns Mbit/s.
func (w *world) transfer(ctx context.Context, streams int, length time.Duration) (float64, error) {
	a, b := w.sites[0], w.sites[1]
	to := netip.AddrPortFrom(b.host4, flowPort)
	recv := w.launch(ctx, b.host, "", w.exe, "flow", "tcp-recv", "--listen", to.String(), "--streams", fmt.Sprint(streams))
	defer recv.kill()
	if _, err := recv.started(ctx); err != nil {
		return 0, err
	}
	send := w.launch(ctx, a.host, "", w.exe, "flow", "tcp-send", "--to", to.String(), "--streams", fmt.Sprint(streams), "--duration", length.String())
	defer send.kill()
	if err := send.finish(ctx, length+stopLimit, nil); err != nil {
		return 0, err
	}
	var r flow.TCPRecvReport
	if err := recv.finish(ctx, stopLimit, &r); err != nil {
		return 0, err
	}
	if r.Streams != streams || r.Mbps <= 0 {
		return 0, fmt.Errorf("%s got %d of %d streams, %.1f Mbit/s", b.host, r.Streams, streams, r.Mbps)
	}
	return r.Mbps, nil
}

// benchFailover joins the demo network and cuts one link of it again and again.
func benchFailover(ctx context.Context, scr *screen, opts BenchOptions, report *BenchReport) (err error) {
	d, err := begin(ctx, scr, Options{Out: opts.Out, Verbose: opts.Verbose})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.lab.Close()) }()
	if err := d.joinAll(ctx); err != nil {
		return err
	}
	report.Joins = d.report.Joins
	if err := d.show(ctx); err != nil {
		return err
	}
	scr.heading(3, "Failover", fmt.Sprintf("%d silent cuts of a tunnel that carries a flow of %d packets/s.", opts.Cuts, flowPPS))
	a, b, err := d.direct(ctx)
	if err != nil {
		return err
	}
	var lost uint64
	for i := range opts.Cuts {
		scr.progress("cut %d of %d", i+1, opts.Cuts)
		row, heal, err := d.cutTunnel(ctx, a, b)
		if err != nil {
			return err
		}
		if row.Verdict == verdictFail {
			return fmt.Errorf("cut %d: %s: %w", i+1, row.Why, ErrClaim)
		}
		report.CutGapsMs = append(report.CutGapsMs, row.GapMs)
		lost += row.Lost
		if err := heal(ctx); err != nil {
			return err
		}
		if err := d.untilHealthy(ctx, "the link is back", d.sites); err != nil {
			return err
		}
		if err := d.untilDirect(ctx, a, b); err != nil {
			return err
		}
	}
	t := &table{heads: []string{"CUTS", ">MEDIAN ms", ">P99 ms", ">WORST ms", ">LOST each"}}
	g := report.CutGapsMs
	t.add(fmt.Sprint(len(g)), fmt.Sprintf("%.0f", quantile(g, 0.5)), fmt.Sprintf("%.0f", quantile(g, 0.99)),
		fmt.Sprintf("%.0f", slices.Max(g)), fmt.Sprintf("%.1f", float64(lost)/float64(len(g))))
	t.print(scr)
	return nil
}

// untilDirect waits until the traffic of two sites takes the tunnel between them again.
func (d *demo) untilDirect(ctx context.Context, a, b *site) error {
	return d.until(ctx, "traffic takes the link again", healLimit, func(ctx context.Context) (string, error) {
		var there, back api.Routes
		if err := errors.Join(d.ctl(ctx, a, &there, "routes"), d.ctl(ctx, b, &back, "routes")); err != nil {
			return oneLine(err), nil
		}
		_, ok1 := directRoute(a, b, there.Routes)
		_, ok2 := directRoute(b, a, back.Routes)
		if !ok1 || !ok2 {
			return "it still goes another way", nil
		}
		return "", nil
	})
}

// medianRatio returns the median of the ratios of equal rounds: what else the machine does changes slowly, and hits both
// sides of a round alike.
func medianRatio(over, under []float64) float64 {
	ratios := make([]float64, len(over))
	for i := range over {
		ratios[i] = over[i] / under[i] // transfer returns no zero
	}
	return quantile(ratios, 0.5)
}

// quantile returns the smallest value that at least the share q of all values do not pass; 0 of none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(int(math.Ceil(q*float64(len(sorted))))-1, 0)]
}
