package world

import (
	"context"
	"encoding/json"
	"fmt"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// How the moment is found at which a flow leaves a device: by its packets of the last departureWindow, every departureEvery.
const (
	departureEvery  = 5 * time.Millisecond
	departureWindow = 40 * time.Millisecond
)

// Departures are the moments of flow.Monotonic, by device, at which a flow was last sent by it.
type Departures map[string]time.Duration

// A departing finds departures in readings of counters.
type departing struct {
	pps  float64 // of the flow
	past []counters
	last Departures
}

// add takes a reading; readings come in order. A device carries the flow while it sends half of it or more.
func (d *departing) add(c counters) {
	d.past = append(d.past, c)
	for len(d.past) > 1 && c.at-d.past[1].at >= departureWindow {
		d.past = d.past[1:]
	}
	first := d.past[0]
	if c.at-first.at < departureWindow/2 {
		return
	}
	for name, r := range c.since(first) {
		if r.TX >= d.pps/2 {
			// When it falls to the half, the last packet is half of the span ago.
			d.last[name] = (first.at + c.at) / 2
		}
	}
}

// departuresCommand notes until a signal when a flow was last sent by each device.
func departuresCommand() *cobra.Command {
	var pps float64
	c := &cobra.Command{Use: "departures", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		d := departing{pps: pps, last: Departures{}}
		every := time.NewTicker(departureEvery)
		defer every.Stop()
		_, _ = fmt.Fprintln(c.ErrOrStderr(), Ready)
		for {
			now, err := readCounters()
			if err != nil {
				return err
			}
			d.add(now)
			select {
			case <-every.C:
			case <-ctx.Done():
				return json.NewEncoder(c.OutOrStdout()).Encode(d.last)
			}
		}
	}}
	c.Flags().Float64Var(&pps, "pps", FlowPPS, "packets per second of the flow")
	return c
}

// A Watch notes how the traffic's ends send it.
type Watch struct{ programs [2]*Program }

// Watch begins to note by which devices the ends of the traffic send it. The caller ends it by Stop or Abandon.
func (t *Traffic) Watch(ctx context.Context) (*Watch, error) {
	w := &Watch{}
	for i, s := range t.ends {
		w.programs[i] = t.w.Launch(ctx, s.Name, t.w.Exe, InsideVerb, "departures", "--pps", fmt.Sprint(FlowPPS))
	}
	for _, p := range w.programs {
		if _, err := p.Started(ctx); err != nil {
			w.Abandon()
			return nil, err
		}
	}
	return w, nil
}

// Stop returns the departures from each end. A device that carries the flow now departs now.
func (w *Watch) Stop(ctx context.Context) (ends [2]Departures, err error) {
	defer w.Abandon()
	return ends, stopAll(ctx, w.programs[:], ends[:])
}

// Abandon ends it without a result.
func (w *Watch) Abandon() { killAll(w.programs[:]...) }
