package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/integration/lab/world"
)

// carrierGap is the target, in milliseconds.
const carrierGap = 15

// detour is how much longer the second uplink of a site is, so that both directions take the first while they can.
const detour = 3 * time.Millisecond

// unequal gives the site with two uplinks a better and a worse one.
func unequal(n *lab.Network) { n.Nodes[pairOrder[0]].Uplinks[1].Delay += detour }

// carrier unplugs the uplink in use of a site with two. The site sees it at once; the other end has to be told.
func (b *bench) carrier(ctx context.Context) (err error) {
	b.heading("The uplink in use of a site with two loses its carrier, %d times, under a flow of %d packets/s each way. What the site sends depends on "+
		"what it sees itself; what it gets, on its word to the other end over the other uplink.", b.cuts, world.FlowPPS)
	n, err := lab.Load(twoUplinks)
	if err != nil {
		return err
	}
	unequal(n)
	w, err := b.mesh(ctx, "carrier", n, pairOrder...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(w)) }()
	x, y := w.Sites[0], w.Sites[1]
	var own, others []float64
	for i := range b.cuts {
		b.screen.Progress("carrier %d of %d", i+1, b.cuts)
		link, err := untilUplink(ctx, w, x, y, x.WAN...) // the better one, unless it has failed too often lately
		if err != nil {
			return err
		}
		felt, err := w.Hit(ctx, world.Strike{A: x, B: y, Act: func(ctx context.Context, _ [2]world.Trace) (string, time.Duration, error) {
			at := flow.Monotonic()
			return link + " unplugged", at, w.Lab.Carrier(ctx, link, false)
		}})
		if err != nil {
			return err
		}
		if felt.Astray != "" {
			return fmt.Errorf("event %d: %w", i+1, stayedAway(felt))
		}
		own, others = append(own, felt.Directions[0].GapMs), append(others, felt.Directions[1].GapMs)
		if err := w.Lab.Carrier(ctx, link, true); err != nil {
			return err
		}
		if err := w.UntilHealthy(ctx, "the uplink is back", w.Sites); err != nil {
			return err
		}
	}
	m1, p1 := gaps("own carrier lost", own)
	m2, p2 := gaps("told by the other end", others)
	b.tell(m1.most(carrierGap), p1.most(carrierGap), m2.most(carrierGap), p2.most(carrierGap))
	b.screen.Note("0 is no silence above %d ms. Of each gap %s is the detour over the other uplink, and %s the packets that were on the cable.",
		world.NoGap.Milliseconds(), detour, n.Nodes[x.Name].Uplinks[0].Delay)
	return nil
}

// untilUplink waits until both directions of the traffic between two sites cross the same of some uplinks of the first,
// and says which: NODE:INTERFACE.
func untilUplink(ctx context.Context, w *world.World, x, y *world.Site, interfaces ...string) (link string, err error) {
	err = w.Until(ctx, "traffic takes one uplink of "+x.Name, comeback, func(ctx context.Context) (string, error) {
		out, err := w.Leg(ctx, x, y)
		if err != nil {
			return world.OneLine(err), nil
		}
		back, err := w.Leg(ctx, y, x)
		if err != nil {
			return world.OneLine(err), nil
		}
		there, here := x.UplinkInterface(out.Local), x.UplinkInterface(back.Remote)
		if there != here || !slices.Contains(interfaces, there) {
			return "it takes " + there + " and comes by " + here, nil
		}
		link = x.Name + ":" + there
		return "", nil
	})
	return link, err
}
