package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
)

// uplinkRate is of each uplink of the site that sends: so little that two of them are far from what the lab's wires carry on
// two processors, with WireGuard in userspace beside them. manyStreams are the TCP streams over them.
const (
	uplinkRate  = lab.Rate(30e6)
	manyStreams = 32
	// calm is how long the costs of an uplink that was full, or unplugged, may take to fall.
	calm = 3 * time.Minute
)

// uneven names a route between the two sites that does not have two tunnels with equal shares.
func uneven(ctx context.Context, w *world.World) (string, error) {
	for i, s := range w.Sites {
		var routes api.Routes
		if err := w.Ctl(ctx, s, &routes, "routes"); err != nil {
			return "", err
		}
		to := w.Sites[1-i].Name
		for _, r := range routes.Routes {
			if slices.Equal(r.Origins, []string{to}) && (len(r.NextHops) != 2 || r.NextHops[0].Weight != r.NextHops[1].Weight) {
				return fmt.Sprintf("%s has %d next hops to %s of %s", s.Name, len(r.NextHops), r.Prefix, to), nil
			}
		}
	}
	return "", nil
}

// uplinks sends many flows from a site with two equal uplinks, and from the same site with one of them unplugged, in turns.
func (b *bench) uplinks(ctx context.Context) (err error) {
	b.heading("%d TCP streams from a site with two uplinks of %s, and with one of them unplugged, %d rounds of %s each.", manyStreams, uplinkRate, b.rounds, b.transfer)
	n, err := lab.Load(twoUplinks)
	if err != nil {
		return err
	}
	for _, u := range n.Nodes[pairOrder[0]].Uplinks {
		u.Rate = uplinkRate
	}
	w, err := b.mesh(ctx, "uplinks", n, pairOrder...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(w)) }()
	x := w.Sites[0]
	spare := x.Name + ":" + x.WAN[1]
	var two, one []float64
	for round := range b.rounds {
		if err := w.Until(ctx, "both uplinks carry traffic", calm, func(ctx context.Context) (string, error) { return uneven(ctx, w) }); err != nil {
			return err
		}
		b.screen.Progress("two uplinks, round %d of %d", round+1, b.rounds)
		mbps, err := w.Transfer(ctx, manyStreams, b.transfer)
		if err != nil {
			return err
		}
		two = append(two, mbps)
		if err := w.Lab.Carrier(ctx, spare, false); err != nil {
			return err
		}
		b.screen.Progress("one uplink, round %d of %d", round+1, b.rounds)
		if mbps, err = w.Transfer(ctx, manyStreams, b.transfer); err != nil {
			return err
		}
		one = append(one, mbps)
		if err := w.Lab.Carrier(ctx, spare, true); err != nil {
			return err
		}
		if err := w.UntilHealthy(ctx, "the second uplink is back", w.Sites); err != nil {
			return err
		}
	}
	r := ratios(two, one)
	b.tell(
		figure{What: "two uplinks", Value: quantile(two, 0.5), Unit: "Mbit/s", Samples: two},
		figure{What: "one uplink", Value: quantile(one, 0.5), Unit: "Mbit/s", Samples: one},
		figure{What: "two / one", Value: quantile(r, 0.5), Samples: r}.least(1.85),
	)
	b.screen.Note("%s", fmt.Sprintf("Medians, the ratio's of each round's; payload of TCP, so one uplink cannot reach %s.", uplinkRate))
	return nil
}
