package carrier

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

const (
	minPause = time.Second
	// MaxPause is the longest pause between two attempts, but for jitter. A
	// connection that lived so long was a good one: the pauses begin anew.
	MaxPause = 30 * time.Second
)

// Pause is how long to wait after so many failures in a row, at least one: 1 s,
// doubled each time up to MaxPause, all ± 25 %, so that those whom one event
// cut off do not come back at one instant.
func Pause(failures int, r *rand.Rand) time.Duration {
	pause := minPause
	for range failures - 1 {
		if pause *= 2; pause >= MaxPause {
			pause = MaxPause
			break
		}
	}
	return pause*3/4 + time.Duration(r.Int64N(int64(pause/2)+1))
}

// Victim gives the index of the connection to close when there are too many:
// the oldest of the source that has most. sources are those of the connections,
// oldest first, and not empty. So whoever opens many loses its own.
func Victim(sources []netip.Addr) int {
	count, first := map[netip.Addr]int{}, map[netip.Addr]int{}
	for i, s := range sources {
		if count[s]++; count[s] == 1 {
			first[s] = i
		}
	}
	victim := 0
	for i, s := range sources {
		if first[s] == i && count[s] > count[sources[victim]] {
			victim = i
		}
	}
	return victim
}
