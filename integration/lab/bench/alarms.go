package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/world"
)

// lossyUplinks is the loss of each uplink but those of the measured pair.
const lossyUplinks = 0.01

// falseAlarms watches a mesh in which nothing is broken, on a machine that is busy.
func (b *bench) falseAlarms(ctx context.Context) (err error) {
	span := time.Duration(b.minutes * float64(time.Minute))
	b.heading("%s with all %d processors busy, five sites, and 1 %% loss on three of their uplinks. A flow of %d packets/s each way takes a path "+
		"without loss. Nothing breaks.", span, runtime.NumCPU(), world.FlowPPS)
	n, err := lab.Load(fiveSites)
	if err != nil {
		return err
	}
	w, err := b.mesh(ctx, "alarms", n, fiveOrder...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(w)) }()
	x, y := w.Sites[0], w.Sites[1]
	for _, s := range w.Sites[2:] {
		uplink := n.Nodes[s.Name].Uplinks[0].Properties
		uplink.Loss = lossyUplinks
		if err := w.Lab.Impair(ctx, s.Name+":"+s.WAN[0], "", uplink); err != nil {
			return err
		}
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if err := w.Burn(ctx, x.Host, runtime.NumCPU()); err != nil {
		return err
	}
	t, err := w.StartTraffic(ctx, x, y)
	if err != nil {
		return err
	}
	defer t.Abandon()
	if _, err := t.Settled(ctx); err != nil {
		return err
	}
	since := time.Now()
	for left := span; left > 0; left -= time.Second {
		b.screen.Progress("%.0f s are left", left.Seconds())
		if err := world.Pause(ctx, min(left, time.Second)); err != nil {
			return err
		}
	}
	results, err := t.Stop(ctx)
	if err != nil {
		return err
	}
	events := map[string]int{}
	for _, s := range w.Sites {
		list, err := w.Events(ctx, s)
		if err != nil {
			return err
		}
		for _, e := range list {
			if e.Time.After(since) {
				events[e.Kind]++
			}
		}
	}
	var lost, sent, longest float64
	for _, r := range results {
		sent, lost = sent+float64(r.Sent), lost+float64(r.Lost-min(r.Lost, r.LostAtReceiver))
		for _, g := range r.Gaps {
			longest = max(longest, float64(g.Length-g.SenderLate)/float64(time.Millisecond))
		}
	}
	b.tell(
		figure{What: "links called down", Value: float64(events["link-down"])}.most(0),
		figure{What: fmt.Sprintf("packets lost, of %.0f on the path without loss", sent), Value: lost}.most(0),
		figure{What: "longest gap on it", Value: longest, Unit: "ms"},
		figure{What: "links suspected for a moment", Value: float64(events["link-suspect"])},
	)
	var kinds []string
	for kind, count := range events {
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, count))
	}
	slices.Sort(kinds)
	if len(kinds) > 0 {
		b.screen.Note("Events of all sites: %s.", strings.Join(kinds, ", "))
	}
	return nil
}
