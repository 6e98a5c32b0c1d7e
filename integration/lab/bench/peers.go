package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"guywire/integration/lab"
	"guywire/integration/lab/peers"
	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
)

// The contender that the target names, and the target: at most half of its gap.
const (
	rival      = "frr-ospf-bfd"
	rivalRatio = 0.5
)

// guywire comes first, and always: the others are compared with it and get tunnels like its own.
const guywire = "guywire"

func systems() (names []string) {
	for _, c := range peers.All() {
		names = append(names, c.Name)
	}
	return names
}

// slowShare is the part of the cuts that is made of a contender that takes the better part of a minute for each.
const slowShare = 5

// peers cuts the same link of the same network under the same flow, with one routing system after the other.
func (b *bench) peers(ctx context.Context) error {
	b.heading("%d silent cuts for each routing system, on a network of five sites with a WireGuard tunnel between each two: one tunnel after the other "+
		"is cut in a router, both ways, under a flow of %d packets/s each way that takes it. Three other sites could take over without a loop.", b.cuts, world.FlowPPS)
	t := &screen.Table{Heads: []string{"SYSTEM", ">CUTS", ">MEDIAN ms", ">P99 ms", ">WORST ms", ">LOST each", "SETTINGS"}}
	gapsOf := map[string][]float64{}
	var tunnels peers.Tunnels
	var skipped []string
	for _, c := range peers.All() {
		if c.Name != guywire && len(b.systems) > 0 && !slices.Contains(b.systems, c.Name) {
			continue
		}
		if why := c.Missing(); why != "" {
			skipped = append(skipped, fmt.Sprintf("%s was left out: %s.", c.Name, why))
			continue
		}
		ms, lost, err := b.contend(ctx, c, &tunnels)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && tunnels.Kind == "" {
			return err // the mesh itself, which comes first
		}
		if err != nil {
			skipped = append(skipped, fmt.Sprintf("%s was left out after %d cuts: %v.", c.Name, len(ms), err))
		}
		if len(ms) == 0 {
			continue
		}
		gapsOf[c.Name] = ms
		t.Add(c.Name, fmt.Sprint(len(ms)), number(quantile(ms, 0.5)), number(quantile(ms, 0.99)), number(quantile(ms, 1)),
			number(float64(lost)/float64(len(ms))), c.Settings)
	}
	t.Print(b.screen)
	b.screen.Say("")
	for _, s := range skipped {
		b.screen.Note("%s", s)
	}
	ours := gapsOf[guywire]
	if len(ours) == 0 {
		return errors.New("there is nothing of our own to compare")
	}
	median, p99 := gaps(guywire, ours)
	figures := []figure{median.most(cutMedian), p99.most(cutP99)}
	for _, c := range peers.All()[1:] {
		theirs := gapsOf[c.Name]
		if len(theirs) == 0 {
			continue
		}
		for _, q := range []struct {
			name string
			q    float64
		}{{"median", 0.5}, {"p99", 0.99}} {
			f := figure{What: fmt.Sprintf("%s / %s, %s", guywire, c.Name, q.name), Value: quantile(ours, q.q) / quantile(theirs, q.q), Samples: theirs}
			if c.Name == rival {
				f = f.most(rivalRatio)
			}
			figures = append(figures, f)
		}
	}
	b.tell(figures...)
	return nil
}

// contend measures one routing system in a lab of its own. The first one, the mesh, says of what kind the tunnels are.
func (b *bench) contend(ctx context.Context, c peers.Contender, tunnels *peers.Tunnels) (ms []float64, lost uint64, err error) {
	n, err := lab.Load(fiveSites)
	if err != nil {
		return nil, 0, err
	}
	w, err := b.open(ctx, c.Name, n, fiveOrder...)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, b.close(w)) }()
	b.screen.Progress("%s starts", c.Name)
	if err := c.Start(ctx, w, *tunnels); err != nil {
		return nil, 0, err
	}
	if tunnels.Kind == "" {
		var st api.Status
		if err := w.Ctl(ctx, w.Sites[0], &st, "status"); err != nil {
			return nil, 0, err
		}
		*tunnels = peers.Tunnels{Kind: st.Dataplane, MTU: w.Links[w.Sites[0].Name][0].MTU}
	}
	// One tunnel after the other: one that fails all the time may rightly be left alone for a while.
	var pairs [][2]*world.Site
	for i, x := range w.Sites {
		for _, y := range w.Sites[:i] {
			pairs = append(pairs, [2]*world.Site{x, y})
		}
	}
	cuts := b.cuts
	if c.Slow {
		cuts = max(cuts/slowShare, 1)
	}
	for i := range cuts {
		x, y := pairs[i%len(pairs)][0], pairs[i%len(pairs)][1]
		b.screen.Progress("%s, cut %d of %d", c.Name, i+1, cuts)
		if err := c.Ready(ctx, w, x, y); err != nil {
			return ms, lost, err
		}
		felt, err := cutAndHeal(ctx, w, x, y, peers.Patience)
		if err != nil {
			return ms, lost, fmt.Errorf("cut %d: %w", i+1, err)
		}
		if felt.Before == felt.After && felt.BackBefore == felt.BackAfter {
			return ms, lost, fmt.Errorf("cut %d: the flow did not move, so it was not hit", i+1)
		}
		ms, lost = append(ms, felt.GapMs), lost+felt.Lost
	}
	return ms, lost, c.Stop(ctx, w)
}
