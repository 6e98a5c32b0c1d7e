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

// By which device a flow is sent is found from the packets of the last stayWindow, every stayEvery. A flow that comes back
// within stayGap has not left.
const (
	stayEvery  = 5 * time.Millisecond
	stayWindow = 40 * time.Millisecond
	stayGap    = 500 * time.Millisecond
)

// A Stay is a span of flow.Monotonic in which a flow was sent by one device.
type Stay struct {
	From time.Duration `json:"from_mono_ns"`
	To   time.Duration `json:"to_mono_ns"`
}

// Stays are those of one flow, by device, each list in order.
type Stays map[string][]Stay

// Until returns the end of the stay at a device that covers a moment, or had just ended then; false if there is none.
func (s Stays) Until(device string, at time.Duration) (time.Duration, bool) {
	for _, stay := range s[device] {
		if stay.From <= at && stay.To+stayGap > at {
			return stay.To, true
		}
	}
	return 0, false
}

// A staying finds stays in readings of counters.
type staying struct {
	pps   float64 // of the flow
	past  []counters
	stays Stays
}

// add takes a reading; readings come in order. A device carries the flow while it sends half of it or more.
func (s *staying) add(c counters) {
	s.past = append(s.past, c)
	for len(s.past) > 1 && c.at-s.past[1].at >= stayWindow {
		s.past = s.past[1:]
	}
	first := s.past[0]
	if c.at-first.at < stayWindow/2 {
		return
	}
	for name, r := range c.since(first) {
		if r.TX >= s.pps/2 {
			// When it falls to the half, the last packet is half of the span ago.
			at := (first.at + c.at) / 2
			list := s.stays[name]
			if n := len(list); n > 0 && at-list[n-1].To < stayGap {
				list[n-1].To = at
			} else {
				s.stays[name] = append(list, Stay{at, at})
			}
		}
	}
}

// staysCommand notes until a signal when a flow was sent by each device.
func staysCommand() *cobra.Command {
	var pps float64
	c := &cobra.Command{Use: "stays", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		s := staying{pps: pps, stays: Stays{}}
		every := time.NewTicker(stayEvery)
		defer every.Stop()
		_, _ = fmt.Fprintln(c.ErrOrStderr(), Ready)
		for {
			now, err := readCounters()
			if err != nil {
				return err
			}
			s.add(now)
			select {
			case <-every.C:
			case <-ctx.Done():
				return json.NewEncoder(c.OutOrStdout()).Encode(s.stays)
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
		w.programs[i] = t.w.Launch(ctx, s.Name, t.w.Exe, InsideVerb, "stays", "--pps", fmt.Sprint(t.w.PPS()))
	}
	for _, p := range w.programs {
		if _, err := p.Started(ctx); err != nil {
			w.Abandon()
			return nil, err
		}
	}
	return w, nil
}

// Stop returns the stays at the devices of each end.
func (w *Watch) Stop(ctx context.Context) (ends [2]Stays, err error) {
	defer w.Abandon()
	return ends, stopAll(ctx, w.programs[:], ends[:])
}

// Abandon ends it without a result.
func (w *Watch) Abandon() { killAll(w.programs[:]...) }
