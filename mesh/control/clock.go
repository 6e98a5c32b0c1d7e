package control

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

// A clock is this machine's, with what the other voters say about it. The
// leader's clock is in every entry of the log, and decides there when a token
// has expired.
type clock struct {
	now      func() time.Time
	offset   atomic.Int64            // of this clock from the voters', nanoseconds
	compared atomic.Pointer[reading] // when a majority of the voters last told theirs; nil: never
}

// A reading is what the clock showed at a moment of the monotonic clock, which
// nobody sets.
type reading struct{ wall, moment time.Time }

func (c *clock) read() *reading { return &reading{c.now().Round(0), time.Now()} }

// stepped reports whether the clock was set since it was compared, or never
// was.
func (c *clock) stepped() bool {
	before := c.compared.Load()
	if before == nil {
		return true
	}
	return (c.now().Round(0).Sub(before.wall) - time.Since(before.moment)).Abs() > maxClockOffset
}

// ClockOffset is how far this voter's clock was ahead of the median of the
// voters' when they were last asked; zero on other nodes.
func (p *Plane) ClockOffset() time.Duration { return time.Duration(p.clock.offset.Load()) }

// keepClock has each voter compare its clock with the others'. A leader whose
// clock is wrong hands over.
func (p *Plane) keepClock() {
	for pause := voterEvery; p.sleep(jitter(pause)); {
		log := p.voter.store()
		if log == nil {
			p.clock.offset.Store(0)
			p.clock.compared.Store(nil)
			continue
		}
		if !p.compareClocks(p.life, log) {
			p.handOverClock(p.life, log)
		}
		if pause = voterEvery; p.clock.compared.Load() != nil {
			pause = clockEvery
		}
	}
}

// rightClock reports whether this voter's clock is not known to be wrong: the
// mesh's tokens and certificates live by it. It asks the others when the clock
// was set since they last told theirs, and when the newest entry is from later
// than now. The entry alone proves nothing: whoever wrote it may have been
// wrong, and its time must not stop the mesh until it has come.
func (p *Plane) rightClock(ctx context.Context, log *raftstore.Store) bool {
	if p.ClockOffset().Abs() <= maxClockOffset && !p.clock.stepped() && newest(log.State()).Sub(p.clock.now()) <= maxClockOffset {
		return true
	}
	return p.compareClocks(ctx, log)
}

// dates lets the leader, and nobody else, say what time it is: an error, a
// raftstore.NotLeaderError, tells that its clock is wrong and that it hands
// over, or that too few voters could be asked to know. Who does not lead may do
// so a moment later, with a clock that nobody looked at.
func (p *Plane) dates(ctx context.Context, log *raftstore.Store) error {
	if err := log.Leading(); err != nil {
		return err
	}
	if p.rightClock(ctx, log) && !p.clock.stepped() {
		return nil
	}
	p.handOverClock(ctx, log)
	return &raftstore.NotLeaderError{}
}

// append writes a command into the log, on the leader, unless its clock is
// wrong: then another one is to lead.
func (p *Plane) append(ctx context.Context, log *raftstore.Store, command store.Command) (store.Result, error) {
	command.Now = p.clock.now().UTC() // before it is looked at, not after
	if err := p.dates(ctx, log); err != nil {
		return store.Result{}, err
	}
	return log.Propose(ctx, command)
}

func (p *Plane) handOverClock(ctx context.Context, log *raftstore.Store) {
	if p.ClockOffset().Abs() <= maxClockOffset || !log.Status().Leads() {
		return
	}
	p.logger.Error("the clock of this machine is wrong, and another voter is to lead; set the clock", "offset", p.ClockOffset())
	if err := log.Transfer(ctx, mesh.NodeID{}); err != nil {
		p.logger.Warn("leadership was not handed over", mesh.LogError, err)
	}
}

// compareClocks asks the other voters for their clocks and reports whether this
// one is near the median.
func (p *Plane) compareClocks(ctx context.Context, log *raftstore.Store) bool {
	ctx, cancel := context.WithTimeout(ctx, clockTimeout)
	defer cancel()
	own := p.clock.read()
	voters := log.Status().Voters
	offsets := make(chan time.Duration, len(voters))
	var calls sync.WaitGroup
	for _, id := range voters {
		if id == p.id {
			continue
		}
		calls.Go(func() {
			began := p.clock.now()
			var at headAnswer
			if p.Do(ctx, id, http.MethodGet, "/v1/head", nil, &at) == nil {
				took := p.clock.now().Sub(began)
				offsets <- began.Add(took / 2).Sub(at.Time)
			}
		})
	}
	calls.Wait()
	close(offsets)
	var others []time.Duration
	for offset := range offsets {
		others = append(others, offset)
	}
	p.clock.learn(own, others, len(voters))
	return p.ClockOffset().Abs() <= maxClockOffset
}

// learn takes in how far this clock was ahead of those of the other voters that
// told theirs. A clock that is known to be wrong stays so until it is set, or
// another one agrees with it, or there are three to decide; or until there is no
// other voter left, for then nobody else could lead.
func (c *clock) learn(own *reading, others []time.Duration, voters int) {
	agrees := func(offset time.Duration) bool { return offset.Abs() <= maxClockOffset }
	all := append([]time.Duration{0}, others...) // this clock's own first
	if len(all) < 3 && voters > 1 && !agrees(time.Duration(c.offset.Load())) && !c.stepped() && !slices.ContainsFunc(others, agrees) {
		return
	}
	c.offset.Store(int64(median(all)))
	if 2*len(all) > voters {
		c.compared.Store(own)
	}
}

// median gives the middle one, of two in the middle the one nearer to zero.
func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	low, high := all[(len(all)-1)/2], all[len(all)/2]
	if low.Abs() < high.Abs() {
		return low
	}
	return high
}

// newest is the leader's clock in the newest entry that had one; zero before
// version 3.
func newest(s *store.State) time.Time {
	for _, r := range slices.Backward(s.Audit.Recent) {
		if !r.Time.IsZero() {
			return r.Time
		}
	}
	return time.Time{}
}
