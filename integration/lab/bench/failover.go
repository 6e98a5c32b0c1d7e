package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/world"
)

// comeback is how long traffic may take to take a healed link again.
const comeback = time.Minute

// The targets of silent cuts, in milliseconds.
const (
	cutMedian = 60
	cutP99    = 150
)

// failover joins the demo network and cuts one link of it again and again.
func (b *bench) failover(ctx context.Context) (err error) {
	b.heading("%d silent cuts of a tunnel that carries a flow of %d packets/s, in the demo network, after its sites have joined.", b.cuts, world.FlowPPS)
	n, err := lab.Load(demoNetwork)
	if err != nil {
		return err
	}
	w, err := b.mesh(ctx, demoNetwork, n, demoOrder...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(w)) }()
	for _, j := range b.report.Joins[1:] {
		b.screen.Note("%s joined in %.2f s (%s).", j.Site, j.Seconds, j.NAT)
	}
	x, y, err := w.DirectPair(ctx)
	if err != nil {
		return err
	}
	var ms []float64
	for i := range b.cuts {
		b.screen.Progress("cut %d of %d", i+1, b.cuts)
		felt, err := cutAndHeal(ctx, w, x, y, 0)
		if err != nil {
			return fmt.Errorf("cut %d: %w", i+1, err)
		}
		ms = append(ms, felt.GapMs)
		if err := w.UntilHealthy(ctx, "the link is back", w.Sites); err != nil {
			return err
		}
		if err := w.UntilDirect(ctx, x, y, comeback); err != nil {
			return err
		}
	}
	median, p99 := gaps("silent cut", ms)
	b.tell(median.most(cutMedian), p99.most(cutP99))
	return nil
}

// cutAndHeal cuts the tunnel between two sites under traffic and heals it. A flow that has not come back until then is an
// error.
func cutAndHeal(ctx context.Context, w *world.World, x, y *world.Site, patience time.Duration) (world.Felt, error) {
	felt, heal, err := w.CutTunnel(ctx, x, y, patience)
	if err != nil {
		return felt, err
	}
	switch {
	case felt.Astray != "":
		err = stayedAway(felt)
	case felt.Sent == 0:
		err = errors.New("nothing was sent")
	}
	return felt, errors.Join(err, heal(ctx))
}

// stayedAway describes a flow that did not come back.
func stayedAway(f world.Felt) error {
	why := []string{f.Astray}
	for _, d := range f.Directions {
		why = append(why, fmt.Sprintf("%s → %s: %d of %d lost, silent for %.0f ms", d.From, d.To, d.Felt.Lost, d.Felt.Sent, d.GapMs))
	}
	return fmt.Errorf("the flow did not come back (%s)", strings.Join(why, "; "))
}
