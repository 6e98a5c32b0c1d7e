package control

import (
	"errors"
	"slices"
	"testing"
	"time"

	"guywire/mesh/transport"
	"guywire/store"
	"guywire/store/raftstore"
)

// TestClockBehindTheLog: a leader whose clock was set back does not write; one
// that agrees with the others does, even when the log is from the future.
func TestClockBehindTheLog(t *testing.T) {
	t.Parallel()
	all := three(t)
	wrong := leaderOf(t, all)
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

// TestClockStepsAhead: a leader whose clock is set far ahead dates nothing with
// it, not even the first write after that: the mesh would forget its tokens.
func TestClockStepsAhead(t *testing.T) {
	t.Parallel()
	all := three(t)
	wrong := leaderOf(t, all)
	eventually(t, "the leader has compared clocks", func() bool { return wrong.clock.compared.Load() != nil })
	if _, _, err := wrong.CreateToken(t.Context(), TokenRequest{Uses: 1}); err != nil {
		t.Fatal(err)
	}
	before := len(wrong.State().Tokens)
	wrong.offset.Store(int64(10 * 365 * 24 * time.Hour))
	for _, m := range all {
		if _, _, err := m.CreateToken(t.Context(), TokenRequest{Uses: 1}); err != nil {
			t.Fatal(err)
		}
	}
	state, err := wrong.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := len(state.Tokens); got != before+len(all) {
		t.Errorf("%d tokens are left of %d", got, before+len(all))
	}
	for _, r := range state.Audit.Recent {
		if time.Until(r.Time) > maxClockOffset {
			t.Errorf("entry %d is from %s", r.Index, r.Time)
		}
	}
}

// TestVotesAreRecordedByARightClock: what the leader records of votes by itself
// has its clock, too. So it does not while that is wrong, and the next one does.
func TestVotesAreRecordedByARightClock(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	wrong, none := leaderOf(t, all), all[3]
	eventually(t, "the leader has compared clocks", func() bool { return wrong.clock.compared.Load() != nil })
	odd, err := wrong.sign(store.Command{SetVoter: &store.SetVoter{Node: none.ID(), Voter: true}}) // which the leader mends
	if err != nil {
		t.Fatal(err)
	}
	wrong.offset.Store(int64(10 * 365 * 24 * time.Hour))
	r, err := wrong.voter.store().Propose(t.Context(), odd)
	if err != nil || r.Refused != nil {
		t.Fatalf("%v %+v", err, r)
	}
	eventually(t, "it is mended", func() bool { s := none.State(); return s.Index > r.Index && !s.Nodes[none.ID()].Voter })
	for _, record := range none.State().Audit.Recent {
		if record.Index > r.Index && record.Action == "set_voter" && record.Author == wrong.config.Ring.Identity() {
			t.Errorf("a leader whose clock is wrong recorded it: %+v", record)
		}
	}
}

// TestNobodyElseDates: who does not lead is told so by the gate of the clock,
// and not let through to a log that it may lead by then.
func TestNobodyElseDates(t *testing.T) {
	t.Parallel()
	all := three(t)
	eventually(t, "the leader dates and nobody else does", func() bool {
		leader := leaderOf(t, all)
		return !slices.ContainsFunc(all, func(m *machine) bool {
			err := m.dates(t.Context(), m.voter.store())
			return m == leader && err != nil || m != leader && !errors.Is(err, raftstore.ErrNotLeader)
		})
	})
}

// TestCAOfAWrongClock: the only voter finds its CA to be old, since its clock is
// wrong, and makes another. The mesh lives with that one, and gets one with a
// right date.
func TestCAOfAWrongClock(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.joined("two")
	one.offset.Store(int64(30 * 365 * 24 * time.Hour))
	made := func() time.Time {
		ca, _ := inState(one.State(), store.CACurrent)
		at, err := transport.Made(ca.Root)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	eventually(t, "a CA from the future", func() bool { return time.Until(made()) > maxClockOffset })
	two.propose(store.Command{SetDrain: &store.SetDrain{Node: two.ID()}})
	one.offset.Store(0)
	eventually(t, "a CA of today", func() bool { return time.Until(made()) < maxClockOffset })
	two.propose(store.Command{SetDrain: &store.SetDrain{Node: two.ID()}})
}

// TestKnownWrongClockIsRemembered: who failed took away the majority that knew
// better, and whoever leads next must not take its own clock for right.
func TestKnownWrongClockIsRemembered(t *testing.T) {
	t.Parallel()
	const far, voters = time.Hour, 3
	var set time.Duration
	c := clock{now: func() time.Time { return time.Now().Add(set) }}
	learn := func(want time.Duration, voters int, others ...time.Duration) {
		t.Helper()
		c.learn(c.read(), others, voters)
		if got := time.Duration(c.offset.Load()); got != want {
			t.Errorf("after %v of %d voters the offset is %s, want %s", others, voters, got, want)
		}
	}
	learn(0, voters, far) // of two that differ nobody knows which is wrong
	learn(far, voters, far, far)
	learn(far, voters, far)
	learn(far, voters)
	learn(0, voters, time.Second) // another one says the same
	learn(far, voters, far, far)
	learn(time.Second, voters, time.Second, far) // three decide
	learn(far, voters, far, far)
	set = -far // it was put right
	learn(0, voters)
	if !c.stepped() {
		t.Error("a clock that was set counts as compared, though nobody answered")
	}
	learn(far, voters, far, far)
	learn(0, 1) // the others are voters no more
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
