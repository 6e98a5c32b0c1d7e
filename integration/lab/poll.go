package lab

import (
	"context"
	"time"
)

// Poll looks every so often until a condition holds or ctx ends. check returns "" when it holds, otherwise what keeps it from
// holding; Poll returns what it said last.
func Poll(ctx context.Context, every time.Duration, check func() string) string {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		state := check()
		if state == "" {
			return ""
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return state
		}
	}
}
