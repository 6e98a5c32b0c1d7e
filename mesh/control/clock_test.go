package control

import (
	"testing"
	"time"
)

// TestClockBehindTheLog: a leader whose clock was set back does not write; one
// that agrees with the others does, even when the log is from the future.
func TestClockBehindTheLog(t *testing.T) {
	t.Parallel()
	all := three(t)
	leader := func() *machine {
		var found *machine
		eventually(t, "one leads", func() bool {
			for _, m := range all {
				if st := m.Status(); st.Raft != nil && st.Raft.Leads() {
					found = m
				}
			}
			return found != nil
		})
		return found
	}
	wrong := leader()
	wrong.offset.Store(int64(-time.Hour))
	all[1].propose(all[1].grant(1))
	eventually(t, "another one leads", func() bool { st := all[1].Status(); return !st.Leader.IsZero() && st.Leader != wrong.ID() })
	if off := wrong.ClockOffset(); off > -59*time.Minute || off < -61*time.Minute {
		t.Errorf("the offset is said to be %s", off)
	}
	for _, m := range all { // now the log was wrong, and time goes on
		m.offset.Store(int64(-time.Hour))
	}
	for n, m := range all {
		m.propose(m.grant(10 + n))
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	for want, all := range map[time.Duration][]time.Duration{
		0:  {0},
		1:  {9, 1}, // of two the nearer one: nobody is proven wrong by one other
		-1: {-9, -1},
		5:  {7, 5, 1},
		3:  {9, 0, 3, 8},
	} {
		if got := median(all); got != want {
			t.Errorf("%v: %d, want %d", all, got, want)
		}
	}
}
