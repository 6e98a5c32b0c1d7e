package bench

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
)

// throughput sends TCP and pings between the hosts of two sites: in one lab through the mesh, in another through two devices
// that are configured by hand. The labs take turns.
func (b *bench) throughput(ctx context.Context) (err error) {
	b.heading("TCP from host to host of two sites, %d rounds of %s each way of doing it, and pings: through one link of the mesh, and "+
		"through the same kind of device configured by hand.", b.rounds, b.transfer)
	n, err := lab.Load(twoSites)
	if err != nil {
		return err
	}
	inMesh, err := b.mesh(ctx, "mesh", n, pairOrder...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(inMesh)) }()
	byHand, err := b.open(ctx, "hand", n, pairOrder...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(byHand)) }()

	kind, mtu, err := oneLink(ctx, inMesh)
	if err != nil {
		return err
	}
	if err := byHand.ConnectByHand(ctx, kind, mtu, true, byHand.AllPairs()...); err != nil {
		return err
	}
	if err := byHand.UntilTalk(ctx, true); err != nil {
		return err
	}
	t := &screen.Table{Heads: []string{"", ">MESH", ">BY HAND", ""}}
	var figures []figure
	for _, bulk := range []struct {
		what    string
		streams int
	}{{"one stream", 1}, {"four streams", 4}} {
		mesh, hand, err := b.inTurns(bulk.what, inMesh, byHand, func(w *world.World) (float64, error) {
			return w.Transfer(ctx, bulk.streams, b.transfer)
		})
		if err != nil {
			return err
		}
		t.Add(bulk.what, number(quantile(mesh, 0.5)), number(quantile(hand, 0.5)), "Mbit/s")
		r := ratios(mesh, hand)
		figures = append(figures, figure{
			What: "mesh / by hand, " + bulk.what, Value: quantile(r, 0.5), Samples: r,
		}.least(0.97))
	}
	mesh, hand, err := b.inTurns("round trips", inMesh, byHand, func(w *world.World) (float64, error) {
		return w.RoundTrip(ctx, pings)
	})
	if err != nil {
		return err
	}
	t.Add("round trip", number(quantile(mesh, 0.5)), number(quantile(hand, 0.5)), "ms")
	r := ratios(mesh, hand)
	figures = append(figures, figure{What: "mesh / by hand, round trip", Value: quantile(r, 0.5), Samples: r})
	t.Print(b.screen)
	b.screen.Say("")
	b.tell(figures...)
	b.screen.Note("Medians, the ratio's of each round's; WireGuard in %s, MTU %d, in both labs.", kind, mtu)
	return nil
}

// inTurns measures two worlds, in as many rounds as asked for.
func (b *bench) inTurns(what string, inMesh, byHand *world.World, measure func(*world.World) (float64, error)) (mesh, hand []float64, err error) {
	for round := range b.rounds {
		turns := []*world.World{inMesh, byHand}
		if round%2 == 1 { // so that neither always comes second
			slices.Reverse(turns)
		}
		for _, w := range turns {
			b.screen.Progress("%s, round %d of %d", what, round+1, b.rounds)
			v, err := measure(w)
			if err != nil {
				return nil, nil, err
			}
			if w == inMesh {
				mesh = append(mesh, v)
			} else {
				hand = append(hand, v)
			}
		}
	}
	return mesh, hand, nil
}

// pings are sent for one round trip.
const pings = 200

// mtuLimit is how long the MTU of a link may take to be known.
const mtuLimit = time.Minute

// oneLink waits until the link between two sites is measured, and returns its kind and MTU.
func oneLink(ctx context.Context, w *world.World) (kind string, mtu int, err error) {
	a := w.Sites[0]
	err = w.Until(ctx, "the link's MTU", mtuLimit, func(ctx context.Context) (string, error) {
		var st api.Status
		if err := w.Ctl(ctx, a, &st, "status"); err != nil {
			return world.OneLine(err), nil
		}
		if silent := w.Look(ctx); len(silent) > 0 {
			return "no links from " + strings.Join(silent, ", "), nil
		}
		for _, l := range w.Links[a.Name] {
			if (l.State == api.LinkUp || l.State == api.LinkDegraded) && l.MTU > 0 {
				kind, mtu = st.Dataplane, l.MTU
				return "", nil
			}
		}
		return "no link is up with a known MTU", nil
	})
	return kind, mtu, err
}
