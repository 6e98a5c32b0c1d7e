package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) eventsCommand() *cobra.Command {
	var since string
	var follow bool
	c := a.jsonFlag(&cobra.Command{
		Use:   "events",
		Short: "what happened and why, to the millisecond",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			q := api.EventsQuery{Follow: follow}
			var from time.Time
			if n, err := strconv.ParseUint(since, 10, 64); err == nil {
				q.Since = n
			} else if d, err := time.ParseDuration(since); err == nil && d >= 0 {
				from = a.now().Add(-d)
			} else {
				return &usageError{fmt.Errorf("--since is %q but must be an index such as 42, or a time such as 10m", since)}
			}
			err := a.events(c.Context(), q, func(e api.Event) error {
				if e.Time.Before(from) {
					return nil
				}
				return a.event(e)
			})
			if follow && c.Context().Err() != nil {
				return nil // Ctrl-C is how following ends
			}
			return err
		},
	})
	c.Flags().StringVar(&since, "since", "0", "only events after this index, or younger than this time")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens, also across restarts of meshd")
	return c
}

// retryAfter is how long a follower waits for a daemon that went away.
const retryAfter = time.Second

// events streams; a follower resumes at the last index when the daemon restarts.
func (a *app) events(ctx context.Context, q api.EventsQuery, each func(api.Event) error) error {
	client, err := a.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	connected, told := false, false
	for {
		err := client.Events(ctx, q, func(e api.Event) error {
			connected, told = true, false
			q.Since = e.Index
			return each(e)
		})
		gone := errors.Is(err, api.ErrBroken) || connected && api.ExitCode(err) == api.ExitNotRunning
		if !q.Follow || !gone {
			return err
		}
		connected = true
		if !told {
			told = true
			sayTo(a.err, "meshctl: meshd went away; waiting for it\n")
		}
		select {
		case <-time.After(retryAfter):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *app) event(e api.Event) error {
	if a.json {
		return a.record(e)
	}
	line := fmt.Sprintf("%d  %s  %-10s  %s", e.Index, a.clock(e.Time), e.Kind, e.Sentence)
	if e.Cause != "" {
		line += ": " + e.Cause
	}
	if e.From != "" || e.To != "" {
		line += fmt.Sprintf(" [%s → %s]", orUnknown(e.From), orUnknown(e.To))
	}
	a.say("%s\n", line)
	return nil
}
