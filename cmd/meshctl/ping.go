package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) pingCommand() *cobra.Command {
	var q api.PingQuery
	var interval, timeout time.Duration
	c := a.jsonFlag(&cobra.Command{
		Use:   "ping NODE",
		Short: "probe a node through the mesh, and show the path of each probe",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if q.Count < 0 || q.Count > api.MaxPings {
				return &usageError{fmt.Errorf("--count is %d but must be 0 to %d", q.Count, api.MaxPings)}
			}
			for flag, d := range map[string]time.Duration{"interval": interval, "timeout": timeout} {
				if err := within(flag, d, api.MinPingMs*time.Millisecond, api.MaxPingMs*time.Millisecond); err != nil {
					return err
				}
			}
			q.Node, q.IntervalMs, q.TimeoutMs = args[0], api.Millis(interval), api.Millis(timeout)
			client, err := a.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			var s pinged
			err = client.Ping(c.Context(), q, func(r api.PingReply) error { return a.pingReply(&s, r) })
			if err != nil && (c.Context().Err() == nil || errors.Is(err, api.ErrBroken)) {
				return err
			}
			if !a.json {
				a.say("%s\n", s.String())
			}
			if s.answered == 0 {
				return exitError(api.ExitUnreachable)
			}
			return nil
		},
	})
	f := c.Flags()
	f.IntVarP(&q.Count, "count", "c", 5, "how many probes; 0: until interrupted")
	f.DurationVarP(&interval, "interval", "i", time.Second, "between probes")
	f.DurationVarP(&timeout, "timeout", "W", time.Second, "how long to wait for each answer")
	return c
}

// pinged sums up replies.
type pinged struct {
	sent, answered, moved int
	least, most, sum      float64
	path                  string
}

func (a *app) pingReply(s *pinged, r api.PingReply) error {
	moved := s.sent > 0 && r.Path != s.path
	s.path = r.Path
	s.sent++
	if moved {
		s.moved++
	}
	if r.Answered && r.RTTMs != nil {
		if s.answered == 0 || *r.RTTMs < s.least {
			s.least = *r.RTTMs
		}
		s.most = max(s.most, *r.RTTMs)
		s.sum += *r.RTTMs
		s.answered++
	}
	if a.json {
		return a.record(r)
	}
	outcome := fmt.Sprintf("%8s ms", ms(r.RTTMs))
	if !r.Answered {
		outcome = r.Reason
	}
	note := ""
	if moved {
		note = "   path changed"
	}
	a.say("%3d  %s (%s)  %s  %s%s\n", r.Index, r.Node, r.Addr.String(), outcome, r.Path, note)
	return nil
}

// String gives the summary on one line.
func (s *pinged) String() string {
	if s.sent == 0 {
		return "nothing sent"
	}
	line := fmt.Sprintf("%d sent, %d answered, %.0f %% lost", s.sent, s.answered, 100*float64(s.sent-s.answered)/float64(s.sent))
	if s.answered > 0 {
		mean := s.sum / float64(s.answered)
		line += fmt.Sprintf("; RTT min %s, mean %s, max %s ms", ms(&s.least), ms(&mean), ms(&s.most))
	}
	switch s.moved {
	case 0:
		return line
	case 1:
		return line + "; the path changed once"
	default:
		return fmt.Sprintf("%s; the path changed %d times", line, s.moved)
	}
}
