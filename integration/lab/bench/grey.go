package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/integration/lab/world"
)

// greySeconds is the target; greyLimit is when a flow that has not moved counts as one that does not.
const (
	greySeconds = 2
	greyLimit   = 12 * time.Second
)

// grey makes the uplink in use of a site with two bad, and measures when traffic has left it. Each way to be bad gets a mesh of
// its own, because a mesh that was warned comes back slowly.
func (b *bench) grey(ctx context.Context) error {
	b.heading("The uplink in use of a site with two becomes lossy or slow, both ways, under a flow of %d packets/s each way. The time is until the later "+
		"direction has left it, by the packet counters of the tunnels; %.0f s is: not until then.", world.FlowPPS, greyLimit.Seconds())
	var figures []figure
	for _, how := range []struct {
		what string
		more lab.Properties
	}{
		{"2 % loss", lab.Properties{Loss: 0.02}},
		{"10 % loss", lab.Properties{Loss: 0.1}},
		{"30 % loss", lab.Properties{Loss: 0.3}},
		{"50 ms more", lab.Properties{Delay: 50 * time.Millisecond}},
		{"300 ms more", lab.Properties{Delay: 300 * time.Millisecond}},
	} {
		b.screen.Progress("%s", how.what)
		took, err := b.sicken(ctx, how.more)
		for range 2 { // a busy machine is not always quiet enough to begin
			if !errors.Is(err, errMoved) {
				break
			}
			took, err = b.sicken(ctx, how.more)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", how.what, err)
		}
		figures = append(figures, figure{What: how.what + ": traffic has left after", Value: took.Seconds(), Unit: "s"}.most(greySeconds))
	}
	b.tell(figures...)
	return nil
}

// errMoved: the traffic took another way already before the event.
var errMoved = errors.New("the traffic has moved by itself")

// sicken makes the better uplink of a site worse under traffic, and returns when both directions have left the tunnels that
// they took, or greyLimit.
func (b *bench) sicken(ctx context.Context, more lab.Properties) (took time.Duration, err error) {
	n, err := lab.Load(twoUplinks)
	if err != nil {
		return 0, err
	}
	unequal(n)
	w, err := b.mesh(ctx, "grey", n, pairOrder...)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.close(w)) }()
	x, y := w.Sites[0], w.Sites[1]
	link, err := untilUplink(ctx, w, x, y, x.WAN[0])
	if err != nil {
		return 0, err
	}
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
	bad := n.Nodes[x.Name].Uplinks[0].Properties
	bad.Delay += more.Delay
	bad.Loss = more.Loss
	at := flow.Monotonic()
	if err := w.Lab.Impair(ctx, link, "", bad); err != nil {
		return 0, err
	}
	if err := world.Pause(ctx, greyLimit); err != nil {
		return 0, err
	}
	stays, err := watch.Stop(ctx)
	if err != nil {
		return 0, err
	}
	for i, way := range ways {
		left, found := stays[i].Until(way[0].Device, at)
		if !found {
			return 0, fmt.Errorf("%w: nothing was sent by %s of %s then", errMoved, way[0].Device, way[0].Node)
		}
		took = max(took, left-at)
	}
	return min(took, greyLimit), nil
}
