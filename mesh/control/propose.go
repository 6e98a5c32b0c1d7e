package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	random "math/rand/v2"
	"net/http"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

// Propose asks the mesh for a change and waits until it is made or refused; a
// refusal is in the result. It may be called on any member: the command goes
// to the leader through any voter. It is this node that asks, and signs from
// version 3 of the mesh on. Before, By.Operator is for the caller to set, from
// whoever asked on this machine. It is tried again
// until ctx ends, 20 s at most, and a change whose answer was lost is not made
// twice. When it returns, State has the change, unless this node is cut off
// from the voter that made it.
func (p *Plane) Propose(ctx context.Context, command store.Command) (store.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	command, err := p.sign(command)
	if err != nil {
		return store.Result{}, err
	}
	result, err := p.propose(ctx, command)
	if err != nil {
		return store.Result{}, err
	}
	p.await(ctx, func(s *store.State) bool { return s.Index >= result.Index })
	return result, nil
}

// sign makes a command this node's: by its signature from version 3 of the
// mesh on, by its name before.
func (p *Plane) sign(command store.Command) (store.Command, error) {
	state := p.State()
	version, id := state.Mesh.Version, state.Mesh.ID
	if command.Init != nil {
		version, id = command.Init.Settings.Version, command.Init.Settings.ID
	}
	if version == 0 && command.SetVersion == nil {
		command.By.Node = p.id
		return command, nil
	}
	command.Author, command.After = p.config.Ring.Identity(), state.Index
	if command.Request.IsZero() { // an earlier attempt had one
		rand.Read(command.Request[:])
	}
	return store.SignCommand(command, id, p.config.Ring.Sign)
}

// Operate is Propose in the name of the operator on this machine, with a
// refusal as the error.
func (p *Plane) Operate(ctx context.Context, command store.Command) (store.Result, error) {
	command.By.Operator = true
	result, err := p.Propose(ctx, command)
	if err == nil && result.Refused != nil {
		err = result.Refused
	}
	return result, err
}

func (p *Plane) propose(ctx context.Context, command store.Command) (store.Result, error) {
	if p.voter.store() != nil {
		return p.submit(ctx, command)
	}
	var result store.Result
	maybe, err := p.atVoter(ctx, "/v1/propose", command, &result)
	if err != nil {
		return store.Result{}, err
	}
	return p.settle(ctx, command, result, maybe), nil
}

// submit is propose on a voter: here if it leads, at the leader otherwise.
func (p *Plane) submit(ctx context.Context, command store.Command) (store.Result, error) {
	maybe := false // an attempt may have been applied
	var result store.Result
	err := p.retry(ctx, func() (bool, error) {
		log := p.voter.store()
		if log == nil {
			return false, newError(http.StatusServiceUnavailable, CodeNotVoter, "%s is no voter any more", p.name(p.id))
		}
		r, err := log.Propose(ctx, command)
		if refused, ok := errors.AsType[*raftstore.NotLeaderError](err); ok {
			if refused.Leader.IsZero() || refused.Leader == p.id {
				return true, ErrNoVoter
			}
			err = p.Do(ctx, refused.Leader, http.MethodPost, "/v1/forward", command, &r)
			if err == nil {
				result = r
				return false, nil
			}
			if _, answered := errors.AsType[*Error](err); !answered {
				_, unsent := errors.AsType[*dialError](err)
				maybe = maybe || !unsent
				return true, err
			}
			maybe = maybe || hasCode(err, CodeInternal)
			return hasCode(err, CodeNotLeader) || hasCode(err, CodeNotVoter) || hasCode(err, CodeInternal), err
		}
		switch {
		case err == nil:
			result = r
			return false, nil
		case errors.Is(err, raftstore.ErrUnknownOutcome):
			maybe = true
			return true, err
		default:
			return errors.Is(err, raftstore.ErrClosed), err
		}
	})
	if err != nil {
		return store.Result{}, err
	}
	return p.settle(ctx, command, result, maybe), nil
}

// atVoter calls the voters in turn until one answers with a result or a
// refusal of its own; maybe: an earlier attempt may have reached the log.
func (p *Plane) atVoter(ctx context.Context, path string, in, out any) (maybe bool, err error) {
	err = p.retry(ctx, func() (bool, error) {
		voters := p.voters()
		if len(voters) == 0 {
			return false, ErrNoVoter
		}
		var last error
		for _, id := range voters {
			last = p.Do(ctx, id, http.MethodPost, path, in, out)
			if last == nil {
				return false, nil
			}
			if e, answered := errors.AsType[*Error](last); answered {
				if e.Code != CodeNotVoter && e.Code != CodeNotLeader && e.Code != CodeInternal && e.Code != CodeUnknownNode {
					return false, last
				}
				maybe = maybe || e.Code == CodeInternal
				continue
			}
			_, unsent := errors.AsType[*dialError](last)
			maybe = maybe || !unsent
		}
		return true, last
	})
	return maybe, err
}

// retry calls attempt until it says not to do so again, ctx ends or the plane
// does. The error tells the last reason.
func (p *Plane) retry(ctx context.Context, attempt func() (again bool, err error)) error {
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		again, err := attempt()
		if err == nil || !again {
			return err
		}
		timer := time.NewTimer(jitter(pause))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if errors.Is(err, ErrNoVoter) {
				return err
			}
			return fmt.Errorf("%w (%w)", ErrNoVoter, err)
		case <-p.life.Done():
			timer.Stop()
			return context.Cause(p.life)
		}
	}
}

// settle reads the refusal of a repeated command for what it is when an
// earlier attempt was applied. All others give the first answer again.
func (p *Plane) settle(ctx context.Context, command store.Command, result store.Result, maybe bool) store.Result {
	if !maybe || result.Refused == nil {
		return result
	}
	p.await(ctx, func(s *store.State) bool { return s.Index >= result.Index })
	switch {
	case command.AddToken != nil:
		// The token's key comes from a fresh secret, so an equal one is ours.
		if p.State().Tokens[command.AddToken.Token.ID].Key == command.AddToken.Token.Key {
			result.Refused = nil
		}
	case command.RevokeToken != nil && result.Refused.Code == store.CodeNotFound:
		result.Refused = nil
	}
	return result
}

// voters are those that the state names, the leader or the one followed first,
// the others in random order, without this node.
func (p *Plane) voters() []mesh.NodeID {
	state := p.State()
	var ids []mesh.NodeID
	for id, n := range state.Nodes {
		if n.Voter && id != p.id {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, mesh.NodeID.Compare)
	random.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	first := p.following.source()
	slices.SortStableFunc(ids, func(a, b mesh.NodeID) int {
		return cmp.Compare(rank(a == first), rank(b == first))
	})
	return ids
}

func rank(first bool) int {
	if first {
		return 0
	}
	return 1
}

// servePropose takes a command of a member, or of the operator on its machine.
// Who asks is the connection's business; the body only says whether it was the
// operator.
func (p *Plane) servePropose(w http.ResponseWriter, r *http.Request) {
	var command store.Command
	if err := Decode(r, &command); err != nil {
		Fail(w, err)
		return
	}
	if command.Init != nil || command.SetVoter != nil {
		Fail(w, newError(http.StatusForbidden, store.CodeForbidden, "this change is made by voters only"))
		return
	}
	if command.Author.IsZero() {
		command.By.Node = Caller(r.Context())
	}
	p.answerChange(w, r, command)
}

func (p *Plane) answerChange(w http.ResponseWriter, r *http.Request, command store.Command) {
	if p.voter.store() == nil {
		Fail(w, newError(http.StatusConflict, CodeNotVoter, "%s is not a voter", p.name(p.id)))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout-time.Second)
	defer cancel()
	result, err := p.submit(ctx, command)
	if err != nil {
		Fail(w, err)
		return
	}
	Reply(w, result)
}

// serveForward takes a command from another voter, which has authenticated
// whoever asked. Only the leader answers, so that nothing goes in circles.
func (p *Plane) serveForward(w http.ResponseWriter, r *http.Request) {
	var command store.Command
	if err := Decode(r, &command); err != nil {
		Fail(w, err)
		return
	}
	log := p.voter.store()
	if log == nil {
		Fail(w, newError(http.StatusConflict, CodeNotVoter, "%s is not a voter", p.name(p.id)))
		return
	}
	result, err := log.Propose(r.Context(), command)
	if refused, ok := errors.AsType[*raftstore.NotLeaderError](err); ok {
		e := newError(http.StatusConflict, CodeNotLeader, "%s", refused)
		e.Leader = refused.Leader
		Fail(w, e)
		return
	}
	if err != nil {
		Fail(w, err)
		return
	}
	Reply(w, result)
}

// jitter is a random time around d, from a half to one and a half of it.
func jitter(d time.Duration) time.Duration {
	return d/2 + random.N(d)
}
