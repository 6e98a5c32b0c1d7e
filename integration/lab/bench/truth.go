package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/disk"
	"guywire/integration/lab/flow"
	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
	"guywire/store/raftstore"
)

// threeSites is the network of the benchmarks of the log, voterOrder its sites: all of them vote.
const threeSites = "three-sites"

var voterOrder = []string{"fra", "lon", "ams"}

// The targets for writes to be acknowledged again, in seconds.
const (
	leaderBack = 5
	diskBack   = 10
)

const (
	// voterLimit is how long a voter may take to be one again after it broke.
	voterLimit = 2 * time.Minute
	manyWrites = 32 // clients at a time
	writeSpan  = 10 * time.Second
	syncSpan   = 2 * time.Second
	// joiners is how many machines join from each host, and how many of them at a time: no more than a server lets in from one
	// address without a pause.
	joiners, joinersAtOnce = 16, 4
	// While voters break, each node begins a write so often, if fewer than writesAtOnce hang.
	writeEvery, writesAtOnce = 50 * time.Millisecond, 100
	// stallShare is the part of the events that is made of disks, of which each takes half a minute.
	stallShare = 4
)

// voters makes a mesh of three voters, of which each may change it.
func (b *bench) voters(ctx context.Context, name string, rtt time.Duration) (*world.World, error) {
	n, err := lab.Load(threeSites)
	if err != nil {
		return nil, err
	}
	for _, node := range n.Nodes {
		for _, u := range node.Uplinks {
			u.Delay = rtt / 4 // two uplinks, there and back
		}
	}
	w, err := b.mesh(ctx, name, n, voterOrder...)
	if err != nil {
		return nil, err
	}
	for _, s := range w.Sites[1:] {
		if err = w.Ctl(ctx, w.Sites[0], new(api.Done), "node", "set", s.Name, "--role", api.RoleOperator); err != nil {
			return nil, errors.Join(err, b.close(w))
		}
	}
	if _, err := untilVoting(ctx, w); err != nil {
		return nil, errors.Join(err, b.close(w))
	}
	return w, nil
}

// untilVoting waits until all sites vote and have the log to its end, and says which leads.
func untilVoting(ctx context.Context, w *world.World) (leader *world.Site, err error) {
	err = w.Until(ctx, "all vote", voterLimit, func(ctx context.Context) (string, error) {
		var st api.RaftStatus
		if err := w.Ctl(ctx, w.Sites[0], &st, "raft", "status"); err != nil {
			return world.OneLine(err), nil
		}
		well := 0
		for _, m := range st.Members {
			if m.Voter && m.Healthy != nil && *m.Healthy {
				well++
			}
		}
		leader = w.ByName[st.Leader]
		if well < len(w.Sites) || leader == nil {
			return fmt.Sprintf("%d of %d voters are well; leader: %q", well, len(w.Sites), st.Leader), nil
		}
		return "", nil
	})
	return leader, err
}

// other is a site that is not this one.
func other(w *world.World, s *world.Site) *world.Site {
	return w.Sites[slices.IndexFunc(w.Sites, func(o *world.Site) bool { return o != s })]
}

// writes measures writes and joins with voters that are near each other, and far.
func (b *bench) writes(ctx context.Context) error {
	b.heading("Writes by the API of a voter, %s for each figure, and %d machines that redeem a token from five hosts, with three voters whose "+
		"logs are on one disk.", writeSpan, 5*joiners)
	for _, rtt := range []time.Duration{time.Millisecond, 50 * time.Millisecond} {
		if err := b.writesAt(ctx, rtt); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) writesAt(ctx context.Context, rtt time.Duration) (err error) {
	w, err := b.voters(ctx, fmt.Sprintf("writes-%d", rtt.Milliseconds()), rtt)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(w)) }()
	leader, err := untilVoting(ctx, w)
	if err != nil {
		return err
	}
	b.screen.Progress("the disk alone")
	syncs, err := appends(ctx, w.Lab.Dir(), syncSpan)
	if err != nil {
		return err
	}
	t := &screen.Table{Heads: []string{"RTT", "WHO", ">A SECOND", ">MEDIAN ms", ">P99 ms"}}
	row := func(who string, rate float64, ms []float64) {
		t.Add(rtt.String(), who, number(rate), number(quantile(ms, 0.5)), number(quantile(ms, 0.99)))
	}
	between := fmt.Sprintf(", RTT %s", rtt)
	figures := []figure{{What: "appends with fsync" + between, Value: 1000 / quantile(syncs, 0.5), Unit: "/s"}}
	row("the disk alone: append and fsync, one by one", 1000/quantile(syncs, 0.5), syncs)
	many, manyMs, err := b.write(ctx, w, leader, manyWrites)
	if err != nil {
		return err
	}
	row(fmt.Sprintf("%d clients at the leader", manyWrites), many, manyMs)
	figures = append(figures,
		figure{What: fmt.Sprintf("writes of %d clients", manyWrites) + between, Value: many, Unit: "/s"},
		figure{What: "their p99" + between, Value: quantile(manyMs, 0.99), Unit: "ms", Samples: manyMs},
		figure{What: "writes / appends with fsync" + between, Value: many * quantile(syncs, 0.5) / 1000},
	)
	for _, at := range []struct {
		site  *world.Site
		where string
	}{{leader, "the leader"}, {other(w, leader), "another voter"}} {
		rate, ms, err := b.write(ctx, w, at.site, 1)
		if err != nil {
			return err
		}
		row("one client at "+at.where, rate, ms)
		figures = append(figures, figure{
			What: fmt.Sprintf("one client at %s%s: median / RTT", at.where, between), Value: quantile(ms, 0.5) / milliseconds(rtt), Samples: ms,
		})
	}
	rate, ms, err := b.redeem(ctx, w)
	if err != nil {
		return err
	}
	row("joins, 20 at a time", rate, ms)
	figures = append(figures,
		figure{What: "joins" + between, Value: rate, Unit: "/s"},
		figure{What: "their p99" + between, Value: quantile(ms, 0.99), Unit: "ms", Samples: ms},
	)
	t.Print(b.screen)
	b.screen.Say("")
	b.tell(figures...)
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// appends writes a page to the end of a file and syncs it, again and again, and returns how long each took, in milliseconds:
// the least that a log on this disk can do.
func appends(ctx context.Context, dir string, span time.Duration) (ms []float64, err error) {
	f, err := os.Create(filepath.Join(dir, "appends"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	page := make([]byte, 4096)
	for end := flow.Monotonic() + span; flow.Monotonic() < end && ctx.Err() == nil; {
		began := flow.Monotonic()
		if _, err := f.Write(page); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		ms = append(ms, milliseconds(flow.Monotonic()-began))
	}
	return ms, ctx.Err()
}

// write lets clients on a site write as fast as they can.
func (b *bench) write(ctx context.Context, w *world.World, s *world.Site, clients int) (rate float64, ms []float64, err error) {
	b.screen.Progress("writes of %d at %s", clients, s.Name)
	out, err := w.Run(ctx, s.Name, "", w.Exe, world.InsideVerb, writeVerb, "--workers", fmt.Sprint(clients), "--for", writeSpan.String())
	if err != nil {
		return 0, nil, err
	}
	return ratesOf(out)
}

// redeem lets machines join from all hosts of the network that are no site's.
func (b *bench) redeem(ctx context.Context, w *world.World) (rate float64, ms []float64, err error) {
	var hosts []string
	for _, n := range w.Status.Nodes {
		if n.Kind == lab.Host && w.ByName[strings.TrimSuffix(n.Name, "-host")] == nil {
			hosts = append(hosts, n.Name)
		}
	}
	b.screen.Progress("%d machines join", joiners*len(hosts))
	var token api.CreatedToken
	if err := w.Ctl(ctx, w.Sites[0], &token, "token", "create", "--uses", fmt.Sprint(joiners*len(hosts)), "--role", api.RoleNoVote); err != nil {
		return 0, nil, err
	}
	outs, errs := make([][]byte, len(hosts)), make([]error, len(hosts))
	var all sync.WaitGroup
	for i, h := range hosts {
		all.Go(func() {
			outs[i], errs[i] = w.Run(ctx, h, token.Text+"\n", w.Exe, world.InsideVerb, redeemVerb,
				"--name", h, "--count", fmt.Sprint(joiners), "--workers", fmt.Sprint(joinersAtOnce))
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, nil, err
	}
	return ratesOf(outs...)
}

// ratesOf reads reports of clients that ran side by side: what they did a second, and how long each took in milliseconds.
func ratesOf(reports ...[]byte) (rate float64, ms []float64, err error) {
	var all []attempt
	for _, r := range reports {
		var made []attempt
		if err := json.Unmarshal(r, &made); err != nil {
			return 0, nil, fmt.Errorf("read the report of a client: %w", err)
		}
		all = append(all, made...)
	}
	if len(all) == 0 {
		return 0, nil, errors.New("the clients did nothing")
	}
	first, last := all[0].Call, all[0].Return
	for _, a := range all {
		if a.Error != "" {
			return 0, nil, errors.New(a.Error)
		}
		first, last = min(first, a.Call), max(last, a.Return)
		ms = append(ms, milliseconds(a.Return-a.Call))
	}
	return float64(len(all)) / (last - first).Seconds(), ms, nil
}

// leader kills the agent of the voter that leads, again and again.
func (b *bench) leader(ctx context.Context) error {
	b.heading("The agent of the voter that leads is killed (SIGKILL), %d times; the two others are asked for a write every %s.", b.cuts, writeEvery)
	seconds, err := b.breakLeaders(ctx, "leader", b.cuts, fault{
		harm: func(ctx context.Context, w *world.World, s *world.Site) error {
			return w.Lab.Kill(ctx, s.Name, "", syscall.SIGKILL)
		},
		mend: func(ctx context.Context, w *world.World, s *world.Site) error {
			_, err := w.Lab.Start(ctx, s.Name, "", nil)
			return err
		},
	})
	if err != nil {
		return err
	}
	median, worst := backs("leader killed", seconds)
	b.tell(median, worst.most(leaderBack), figure{What: "median / silence before voters campaign", Value: median.Value / raftstore.WAN.Heartbeat.Seconds()})
	return nil
}

// disk stalls the disk of the voter that leads.
func (b *bench) disk(ctx context.Context) error {
	stalls := max(b.cuts/stallShare, 1)
	b.heading("The disk of the voter that leads stalls, %d times: fsync does not return until another voter writes. The two others are asked for a "+
		"write every %s.", stalls, writeEvery)
	seconds, err := b.breakLeaders(ctx, "disk", stalls, fault{
		harm: func(ctx context.Context, w *world.World, s *world.Site) error {
			return w.Lab.Disk(ctx, s.Name, disk.Stall, 0)
		},
		mend: func(ctx context.Context, w *world.World, s *world.Site) error { return w.Lab.HealNode(ctx, s.Name) },
	})
	if err != nil {
		return err
	}
	median, worst := backs("disk of the leader stalls", seconds)
	b.tell(median, worst.most(diskBack), figure{What: "median / silence before voters campaign", Value: median.Value / raftstore.WAN.Heartbeat.Seconds()})
	return nil
}

// A fault breaks a voter, and mends it.
type fault struct {
	harm, mend func(context.Context, *world.World, *world.Site) error
}

// breakLeaders breaks leaders under writes and returns how long it took each time until both of the others had a write
// acknowledged, in seconds.
func (b *bench) breakLeaders(ctx context.Context, name string, times int, f fault) (seconds []float64, err error) {
	w, err := b.voters(ctx, name, time.Millisecond)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close(w)) }()
	var writers []*world.Program
	for i, s := range w.Sites {
		p := w.Launch(ctx, s.Name, w.Exe, world.InsideVerb, writeVerb,
			"--block", fmt.Sprint(i), "--workers", fmt.Sprint(writesAtOnce), "--every", writeEvery.String())
		defer p.Kill()
		if _, err := p.Started(ctx); err != nil {
			return nil, err
		}
		writers = append(writers, p)
	}
	var breaks []interruption
	for i := range times {
		b.screen.Progress("event %d of %d", i+1, times)
		leader, err := untilVoting(ctx, w)
		if err != nil {
			return nil, err
		}
		// At any moment of the heartbeats.
		if err := world.Pause(ctx, time.Second+rand.N(2*time.Second)); err != nil {
			return nil, err
		}
		broken := interruption{site: slices.Index(w.Sites, leader), began: flow.Monotonic()}
		if err := f.harm(ctx, w, leader); err != nil {
			return nil, err
		}
		broken.broken = flow.Monotonic()
		if err := untilLed(ctx, w, other(w, leader), leader); err != nil {
			return nil, fmt.Errorf("event %d: %w", i+1, err)
		}
		broken.ended = flow.Monotonic()
		if err := f.mend(ctx, w, leader); err != nil {
			return nil, err
		}
		breaks = append(breaks, broken)
	}
	if _, err := untilVoting(ctx, w); err != nil {
		return nil, err
	}
	made, err := world.StopAll[[]attempt](ctx, writers)
	if err != nil {
		return nil, err
	}
	for i, broken := range breaks {
		back, err := broken.back(made)
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", i+1, err)
		}
		seconds = append(seconds, back.Seconds())
	}
	return seconds, nil
}

// settled is how long another leader leads before the last one is mended, so that its writes are not helped.
const settled = 2 * time.Second

// untilLed waits until a site knows another leader than before, and its writes have come through.
func untilLed(ctx context.Context, w *world.World, s, before *world.Site) error {
	err := w.Until(ctx, "another voter leads", voterLimit, func(ctx context.Context) (string, error) {
		var st api.RaftStatus
		if err := w.Ctl(ctx, s, &st, "raft", "status"); err != nil {
			return world.OneLine(err), nil
		}
		if st.Leader == "" || st.Leader == before.Name {
			return fmt.Sprintf("leader: %q", st.Leader), nil
		}
		return "", nil
	})
	if err != nil {
		return err
	}
	return world.Pause(ctx, settled)
}

// An interruption is one time that a leader broke. Times are flow.Monotonic.
type interruption struct {
	site          int           // that led
	began, broken time.Duration // it broke between
	ended         time.Duration // when it was mended
}

// back is how long after the leader broke both of the others had a write acknowledged which they had asked for since then:
// those asked for before may have been made before.
func (b interruption) back(made [][]attempt) (time.Duration, error) {
	var latest time.Duration
	for site, list := range made {
		if site == b.site {
			continue
		}
		first := time.Duration(0)
		for _, a := range list {
			if a.Error == "" && a.Call >= b.broken && (first == 0 || a.Return < first) {
				first = a.Return
			}
		}
		if first == 0 || first > b.ended {
			return 0, errors.New("no write was acknowledged before the leader was mended")
		}
		latest = max(latest, first)
	}
	return latest - b.began, nil
}

// backs makes the figures of one kind of interruption.
func backs(what string, seconds []float64) (median, worst figure) {
	return figure{What: fmt.Sprintf("%s: median of %d until writes are back", what, len(seconds)), Value: quantile(seconds, 0.5), Unit: "s", Samples: seconds},
		figure{What: what + ": the longest", Value: quantile(seconds, 1), Unit: "s", Samples: seconds}
}
