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
	now    func() time.Time
	offset atomic.Int64 // of this clock from the voters', nanoseconds
}

// ClockOffset is how far this voter's clock was ahead of the median of the
// voters' when they were last asked; zero on other nodes.
func (p *Plane) ClockOffset() time.Duration { return time.Duration(p.clock.offset.Load()) }

// keepClock has each voter compare its clock with the others'. A leader whose
// clock is wrong hands over.
func (p *Plane) keepClock() {
	for p.sleep(jitter(clockEvery)) {
		log := p.voter.store()
		if log == nil {
			p.clock.offset.Store(0)
			continue
		}
		if p.compareClocks(p.life, log) > maxClockOffset && log.Status().Leads() {
			p.handOverClock(p.life, log)
		}
	}
}

// append writes a command into the log, on the leader, unless its clock is
// wrong: then another one is to lead. It is not enough that the newest entry
// is from later than now. Whoever wrote that may have been wrong, and its time
// must not stop the mesh until it has come: the voters' clocks decide.
func (p *Plane) append(ctx context.Context, log *raftstore.Store, command store.Command) (store.Result, error) {
	if newest(log.State()).Sub(p.clock.now()) > maxClockOffset && log.Status().Leads() && p.compareClocks(ctx, log) > maxClockOffset {
		p.handOverClock(ctx, log)
		return store.Result{}, &raftstore.NotLeaderError{}
	}
	return log.Propose(ctx, command)
}

func (p *Plane) handOverClock(ctx context.Context, log *raftstore.Store) {
	p.logger.Error("the clock of this machine is wrong, and another voter is to lead; set the clock", "offset", p.ClockOffset())
	if err := log.Transfer(ctx, mesh.NodeID{}); err != nil {
		p.logger.Warn("leadership was not handed over", mesh.LogError, err)
	}
}

// compareClocks asks the other voters for their clocks and gives how far this
// one is from the median, either way.
func (p *Plane) compareClocks(ctx context.Context, log *raftstore.Store) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, clockTimeout)
	defer cancel()
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
	all := []time.Duration{0} // this clock's own
	for offset := range offsets {
		all = append(all, offset)
	}
	offset := median(all)
	p.clock.offset.Store(int64(offset))
	return offset.Abs()
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
