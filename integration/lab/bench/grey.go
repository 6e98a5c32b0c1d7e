package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/integration/lab/world"
)

// greySeconds is the target; greyLimit is when a flow that has not moved counts as one that does not.
const (
	greySeconds = 2
	greyLimit   = 12 * time.Second
	greyRest    = 2 * time.Minute // for a healed uplink to be preferred again
)

// grey makes the uplink in use of a site with two bad, and measures when traffic has left it.
func (b *bench) grey(ctx context.Context) (err error) {
	b.heading("The uplink in use of a site with two becomes lossy or slow, both ways, under a flow of %d packets/s each way. The time is until the later "+
		"direction has left it, by the packet counters of the tunnels; %.0f s is: not until then.", world.FlowPPS, greyLimit.Seconds())
	n, err := lab.Load(twoUplinks)
	if err != nil {
		return err
	}
	unequal(n)
	w, err := b.mesh(ctx, "grey", n, pairOrder...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(w)) }()
	x, y := w.Sites[0], w.Sites[1]
	link := x.Name + ":" + x.WAN[0]
	delay := n.Nodes[x.Name].Uplinks[0].Delay
	var figures []figure
	for _, how := range []struct {
		what string
		bad  lab.Properties
	}{
		{"2 % loss", lab.Properties{Delay: delay, Loss: 0.02}},
		{"10 % loss", lab.Properties{Delay: delay, Loss: 0.1}},
		{"30 % loss", lab.Properties{Delay: delay, Loss: 0.3}},
		{"50 ms more", lab.Properties{Delay: delay + 50*time.Millisecond}},
		{"300 ms more", lab.Properties{Delay: delay + 300*time.Millisecond}},
	} {
		b.screen.Progress("%s", how.what)
		took, err := sicken(ctx, w, x, y, link, how.bad)
		if err != nil {
			return fmt.Errorf("%s: %w", how.what, err)
		}
		figures = append(figures, figure{What: how.what + ": traffic has left after", Value: took.Seconds(), Unit: "s"}.most(greySeconds))
		if err := w.Lab.Heal(ctx, link); err != nil {
			return err
		}
		if err := w.UntilHealthy(ctx, "the uplink is well", w.Sites); err != nil {
			return err
		}
		b.screen.Progress("%s: until traffic is back", how.what)
		healed := time.Now()
		if err := untilUplink(ctx, w, x, y, link, greyRest); err != nil {
			return err
		}
		b.screen.Note("%s: after the cure traffic came back within %.0f s.", how.what, math.Ceil(time.Since(healed).Seconds()))
	}
	b.screen.Say("")
	b.tell(figures...)
	return nil
}

// sicken gives a link other properties under traffic, and returns when both directions have left the tunnels that they took,
// or greyLimit.
func sicken(ctx context.Context, w *world.World, x, y *world.Site, link string, bad lab.Properties) (time.Duration, error) {
	t, err := w.StartTraffic(ctx, x, y)
	if err != nil {
		return 0, err
	}
	defer t.Abandon()
	ways, err := t.Settled(ctx)
	if err != nil {
		return 0, err
	}
	watch, err := t.Watch(ctx)
	if err != nil {
		return 0, err
	}
	defer watch.Abandon()
	if err := world.Pause(ctx, time.Second); err != nil {
		return 0, err
	}
	at := flow.Monotonic()
	if err := w.Lab.Impair(ctx, link, "", bad); err != nil {
		return 0, err
	}
	if err := world.Pause(ctx, greyLimit); err != nil {
		return 0, err
	}
	departures, err := watch.Stop(ctx)
	if err != nil {
		return 0, err
	}
	took := time.Duration(0)
	for i, way := range ways {
		left, seen := departures[i][way[0].Device]
		if !seen {
			return 0, fmt.Errorf("nothing was sent by %s of %s", way[0].Device, way[0].Node)
		}
		took = max(took, left-at)
	}
	return min(took, greyLimit), nil
}
