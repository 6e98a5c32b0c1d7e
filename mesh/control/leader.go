package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

// keepVoters is the leader's care for the number of voters, and each voter's
// for its own vote.
func (p *Plane) keepVoters() {
	tick := time.NewTicker(voterEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-p.voter.kick:
		case <-p.life.Done():
			return
		}
		p.checkOwnVote()
		p.tend()
	}
}

// tend takes one step towards the voters that the mesh should have.
func (p *Plane) tend() {
	p.voter.change.Lock()
	defer p.voter.change.Unlock()
	log := p.voter.store()
	if log == nil {
		return
	}
	st := log.Status()
	if !st.Leads() || p.life.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(p.life, promoteTimeout)
	defer cancel()
	next := decide(log.State(), st.Voters, st.Learners, p.id, p.barred)
	if next.dismiss.IsZero() {
		p.voter.tooMany = time.Time{}
	} else if p.voter.tooMany.IsZero() {
		p.voter.tooMany = time.Now()
	}
	// A node that will be reachable in a moment is better than one voter fewer.
	if next.isZero() || !next.dismiss.IsZero() && time.Since(p.voter.tooMany) < dismissAfter {
		return
	}
	if err := p.take(ctx, log, next); err != nil && p.life.Err() == nil && !errors.Is(err, raftstore.ErrNotLeader) {
		p.logger.Warn("voters could not be changed", mesh.LogError, err)
		return
	}
	wake(p.voter.kick) // there may be a next step
}

func (p *Plane) barred(id mesh.NodeID) bool { return time.Now().Before(p.voter.barred[id]) }

func (p *Plane) bar(id mesh.NodeID) { p.voter.barred[id] = time.Now().Add(penalty) }

func (p *Plane) take(ctx context.Context, log *raftstore.Store, s step) error {
	switch {
	case !s.remove.IsZero():
		return log.RemoveServer(ctx, s.remove)
	case !s.record.IsZero():
		return p.record(ctx, log, s.record, s.vote)
	case len(s.promote) > 0:
		return p.promote(ctx, log, s.promote, true)
	default:
		return p.dismiss(ctx, log, s.dismiss)
	}
}

// record writes into the state who is a voter. The state names a voter before
// the log does and until after it did, so whoever reads either can tell.
func (p *Plane) record(ctx context.Context, log *raftstore.Store, id mesh.NodeID, vote bool) error {
	command, err := p.sign(store.Command{SetVoter: &store.SetVoter{Node: id, Voter: vote}})
	if err != nil {
		return fmt.Errorf("record voter %s: %w", p.name(id), err)
	}
	result, err := log.Propose(ctx, command)
	if err != nil {
		return fmt.Errorf("record voter %s: %w", p.name(id), err)
	}
	if result.Refused != nil {
		return fmt.Errorf("record voter %s: %w", p.name(id), result.Refused)
	}
	return nil
}

// promote makes nodes voters: each first gets the log without a vote, and when
// all that can have caught up, their votes, one right after the other. With odd
// set the number of voters ends odd, at the price of a ready node.
func (p *Plane) promote(ctx context.Context, log *raftstore.Store, ids []mesh.NodeID, odd bool) error {
	var ready []mesh.NodeID
	var errs []error
	giveUp := func(id mesh.NodeID, err error) {
		p.bar(id)
		errs = append(errs, fmt.Errorf("make %s a voter: %w", p.name(id), err), log.RemoveServer(ctx, id))
	}
	for _, id := range ids {
		if err := p.teach(ctx, log, id); err != nil {
			giveUp(id, err)
			continue
		}
		ready = append(ready, id)
	}
	if have := len(log.Status().Voters); odd && len(ready) > 0 && (have+len(ready))%2 == 0 {
		last := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		giveUp(last, errors.New("another node was not ready, and an even number of voters is worse than one fewer"))
	}
	for _, id := range ready {
		if err := p.record(ctx, log, id, true); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := log.AddVoter(ctx, id); err != nil {
			return errors.Join(append(errs, err)...)
		}
		p.logger.Info("voter added", mesh.LogNode, p.name(id))
	}
	return errors.Join(errs...)
}

// teach gives a node the log and waits until it has applied what is there now.
func (p *Plane) teach(ctx context.Context, log *raftstore.Store, id mesh.NodeID) error {
	authority := p.voter.authority()
	if authority == nil {
		return errors.New("this voter has no CA key")
	}
	ctx, cancel := context.WithTimeout(ctx, promoteTimeout/2)
	defer cancel()
	if err := p.Do(ctx, id, http.MethodPost, "/v1/promote", promotion{keyOf(authority), log.Status().Term}, nil); err != nil {
		return err
	}
	target := log.Status().Commit
	if err := log.AddLearner(ctx, id); err != nil {
		return err
	}
	for {
		var st raftstore.Status
		err := p.Do(ctx, id, http.MethodGet, "/v1/raft", nil, &st)
		if err == nil && st.Applied >= target {
			return nil
		}
		timer := time.NewTimer(jitter(retryMin))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(errors.New("it does not catch up with the log"), err)
		}
	}
}

// dismiss takes a node's vote, provided that every other voter answers: then
// those that remain are a majority of themselves.
func (p *Plane) dismiss(ctx context.Context, log *raftstore.Store, id mesh.NodeID) error {
	for _, other := range log.Status().Voters {
		if other == p.id || other == id {
			continue
		}
		if err := p.Do(ctx, other, http.MethodGet, "/v1/raft", nil, nil); err != nil {
			return fmt.Errorf("dismiss voter %s: %w", p.name(id), err)
		}
	}
	if err := log.RemoveServer(ctx, id); err != nil {
		return err
	}
	p.logger.Info("voter dismissed", mesh.LogNode, p.name(id))
	return p.record(ctx, log, id, false)
}

// serveResign takes the caller's vote, because it is about to leave.
func (p *Plane) serveResign(w http.ResponseWriter, r *http.Request) {
	caller := Caller(r.Context())
	p.voter.change.Lock()
	defer p.voter.change.Unlock()
	log := p.voter.store()
	if log == nil || !log.Status().Leads() || caller == p.id {
		e := newError(http.StatusConflict, CodeNotLeader, "%s does not lead", p.name(p.id))
		if log != nil {
			e.Leader = log.Status().Leader
		}
		Fail(w, e)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout-time.Second)
	defer cancel()
	p.bar(caller)
	if err := p.dismiss(ctx, log, caller); err != nil {
		Fail(w, err)
		return
	}
	Reply(w, struct{}{})
}
