package agent

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"guywire/mesh/core"
)

// Counters are read by a wake-up for something else, if it is nearly time, and
// otherwise in time.
func TestCountersAreReadAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads, failure := 0, error(nil)
		m := &member{kernel: Kernel{Counters: func() (map[string]core.Count, error) {
			reads++
			return map[string]core.Count{"gw-a": {Received: 1}}, failure
		}}}
		m.countEvery, m.countAt = 20*time.Millisecond, time.Now().Add(20*time.Millisecond)
		for _, step := range []struct {
			sleep time.Duration
			reads int
		}{
			{14 * time.Millisecond, 0},
			{time.Millisecond, 1}, // 15 of 20
			{14 * time.Millisecond, 1},
			{6 * time.Millisecond, 2},
			{time.Second, 3},
			{0, 3},
		} {
			time.Sleep(step.sleep) // of the bubble's clock
			before := reads
			got := m.count()
			if reads != step.reads || len(got) != reads-before {
				t.Fatalf("after %v more: %d readings, want %d; events %v", step.sleep, reads, step.reads, got)
			}
			if time.Until(m.countAt) <= 0 {
				t.Fatalf("the next is to be at once")
			}
		}
		time.Sleep(time.Second)
		if failure = errors.New("no"); len(m.count()) != 0 || reads != 4 {
			t.Error("a failure is an event")
		}
	})
}
