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
// to the leader through any voter. It is this node that asks and signs, and it
// may do what the log allows it: all that operators may, if it has that role.
// In a mesh before version 3 By.Operator says that the operator of this machine
// asks.
//
// It is tried again until ctx ends, 20 s at most, and a change whose answer was
// lost is not made twice. When it returns, State has the change, unless this
// node is cut off from the voter that made it.
func (p *Plane) Propose(ctx context.Context, command store.Command) (store.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	for {
		signed, err := p.sign(command)
		if err != nil {
			return store.Result{}, err
		}
		result, err := p.propose(ctx, signed)
		if err != nil {
			return store.Result{}, err
		}
		seen := p.await(ctx, func(s *store.State) bool { return s.Index >= result.Index })
		if !seen || result.Refused == nil || !outdated(signed, result.Refused) {
			return result, nil
		}
		command.Request = signed.Request // so that it is still applied once
	}
}

// outdated reports whether a command was refused because the state that it was
// signed at is too old: the log went on too far, or to a version that wants
// signatures.
func outdated(c store.Command, refused *store.Refusal) bool {
	return refused.Code == store.CodeStale || refused.Code == store.CodeUnsigned && c.Author.IsZero()
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

// Check tells whether the log would refuse what an operator decides, by all that
// is known here, and does nothing. The error is a *store.Refusal.
func (p *Plane) Check(command store.Command) error {
	command.By.Operator = true
	signed, err := p.sign(command)
	if err != nil {
		return err
	}
	if refused := refusal(p.State(), signed, p.clock.now()); refused != nil {
		return refused
	}
	return nil
}

// Operate is Propose for what operators decide, with a refusal as the error.
func (p *Plane) Operate(ctx context.Context, command store.Command) (store.Result, error) {
	command.By.Operator = true
	result, err := p.Propose(ctx, command)
	if err == nil && result.Refused != nil {
		err = result.Refused
	}
	return result, err
}

// Revoke removes a node from the mesh for ever, on a node with the operator
// role: nobody lets it in again, with whatever certificate.
func (p *Plane) Revoke(ctx context.Context, id mesh.NodeID) error {
	_, err := p.Operate(ctx, store.Command{RemoveNode: &store.RemoveNode{Node: id, Revoke: true}})
	return err
}

// propose goes through this node's own log if it has a vote: of a learner the
// leader takes nothing. A voter whose log fails asks the others like any
// member, with the same command: nobody knows what became of it.
func (p *Plane) propose(ctx context.Context, command store.Command) (store.Result, error) {
	var result store.Result
	err := p.retry(ctx, func() (again bool, err error) {
		if log := p.voter.store(); log != nil && slices.Contains(log.Status().Voters, p.id) {
			again, err = p.submitTo(ctx, log, command, &result)
			if !broken(err) || len(p.voters()) == 0 {
				return again, err
			}
		}
		again, err = p.atVoters(ctx, http.MethodPost, "/v1/propose", command, &result)
		return again || hasCode(err, CodeBusy), err
	})
	return result, err
}

// submit is propose on a voter: here if it leads, at the leader otherwise. The
// request that a command holds makes it safe to repeat.
func (p *Plane) submit(ctx context.Context, command store.Command) (store.Result, error) {
	var result store.Result
	err := p.retry(ctx, func() (again bool, err error) {
		log := p.voter.store()
		if log == nil {
			return false, p.notVoter()
		}
		return p.submitTo(ctx, log, command, &result)
	})
	return result, err
}

func (p *Plane) submitTo(ctx context.Context, log *raftstore.Store, command store.Command, result *store.Result) (again bool, err error) {
	*result, err = p.append(ctx, log, command)
	if refused, ok := errors.AsType[*raftstore.NotLeaderError](err); ok {
		return p.atLeader(ctx, log, refused.Leader, http.MethodPost, "/v1/forward", command, result)
	}
	return errors.Is(err, raftstore.ErrUnknownOutcome) || broken(err), err
}

// broken reports whether a change failed with this node's log. Another voter may
// take it, or have it already.
func broken(err error) bool {
	return errors.Is(err, raftstore.ErrClosed) || errors.Is(err, raftstore.ErrDisk)
}

// atLeader calls the leader that this voter knows, for as long as it does; again:
// there may be another one soon.
func (p *Plane) atLeader(ctx context.Context, log *raftstore.Store, leader mesh.NodeID, method, path string, in, out any) (again bool, err error) {
	if leader.IsZero() || leader == p.id {
		return true, ErrNoVoter
	}
	ctx, cancel := log.WhileLed(ctx, leader)
	defer cancel()
	err = p.call(ctx, p.changes, leader, method, path, in, out)
	_, answered := errors.AsType[*Error](err)
	return !answered || electing(err) || p.outOfDate(err), err
}

// outOfDate reports whether a voter refused this node's certificate, which
// happens when the CA has just changed, and sees to a new one.
func (p *Plane) outOfDate(err error) bool {
	if !hasCode(err, CodeExpired) {
		return false
	}
	p.stale.Store(true)
	return true
}

// electing reports whether an answer says no more than that this node does not
// lead, or cannot now: the next one may.
func electing(err error) bool {
	return hasCode(err, CodeNotVoter) || hasCode(err, CodeNotLeader) || hasCode(err, CodeInternal)
}

// atVoter calls the voters in turn until one answers with a result or a
// refusal of its own.
func (p *Plane) atVoter(ctx context.Context, method, path string, in, out any) error {
	return p.retry(ctx, func() (bool, error) { return p.atVoters(ctx, method, path, in, out) })
}

// atVoters is one round of atVoter; again: none of them could answer now.
func (p *Plane) atVoters(ctx context.Context, method, path string, in, out any) (again bool, err error) {
	voters := p.voters()
	if len(voters) == 0 {
		return false, ErrNoVoter
	}
	for _, id := range voters {
		err = p.call(ctx, p.changes, id, method, path, in, out)
		_, answered := errors.AsType[*Error](err)
		if err == nil || answered && !electing(err) && !hasCode(err, CodeUnknownNode) {
			return p.outOfDate(err), err
		}
	}
	return true, err
}

func (p *Plane) notVoter() *Error {
	return newError(http.StatusConflict, CodeNotVoter, "%s is not a voter", p.name(p.id))
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
			if errors.Is(err, ErrNoVoter) || hasCode(err, CodeExpired) {
				return err
			}
			return fmt.Errorf("%w (%w)", ErrNoVoter, err)
		case <-p.life.Done():
			timer.Stop()
			return context.Cause(p.life)
		}
	}
}

// voters are those that the state names, without this node: the leader or the
// one followed first, those that are banned last, the others in random order.
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
		return cmp.Or(cmp.Compare(rank(!p.isBanned(a)), rank(!p.isBanned(b))), cmp.Compare(rank(a == first), rank(b == first)))
	})
	return ids
}

func rank(first bool) int {
	if first {
		return 0
	}
	return 1
}

// servePropose takes a command of a member. Before version 3 of the mesh who
// asks is the connection's business, and the body only says whether it was the
// operator of that machine; from then on the command is signed, and may come
// from anybody. What the log would refuse whoever it is from does not get there:
// it would take the place of what is remembered.
func (p *Plane) servePropose(w http.ResponseWriter, r *http.Request) {
	if !p.proposals.allow(Caller(r.Context()).String(), p.clock.now()) {
		Fail(w, newError(http.StatusTooManyRequests, CodeBusy, "too many changes at a time; wait a moment and try again"))
		return
	}
	var command store.Command
	if err := Decode(r, &command); err != nil {
		Fail(w, err)
		return
	}
	if p.State().Mesh.Version == 0 {
		if command.Init != nil || command.SetVoter != nil {
			Fail(w, newError(http.StatusForbidden, store.CodeForbidden, "this change is made by voters only"))
			return
		}
		command.By.Node = Caller(r.Context())
	}
	if command.Join != nil { // it is looked at first, see admit
		Fail(w, newError(http.StatusForbidden, store.CodeForbidden, "a join is not proposed; join with meshctl join TOKEN"))
		return
	}
	state := p.State()
	formed := command
	formed.Version, formed.Now = store.Version, p.clock.now()
	if refused := store.Vet(state, formed); refused != nil {
		Reply(w, store.Result{Index: state.Index, Refused: refused})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout-time.Second)
	defer cancel()
	result, err := p.submit(ctx, command)
	if hasCode(err, CodeRemoved) || hasCode(err, CodeExpired) { // the leader means this node, perhaps by this very command: another voter is to be asked
		err = p.notVoter()
	}
	if err != nil {
		Fail(w, err)
		return
	}
	Reply(w, result)
}

// serveForward takes a command from another voter. Only the leader answers, so
// that nothing goes in circles.
func (p *Plane) serveForward(w http.ResponseWriter, r *http.Request) {
	var command store.Command
	if err := Decode(r, &command); err != nil {
		Fail(w, err)
		return
	}
	log := p.voter.store()
	if log == nil {
		Fail(w, p.notVoter())
		return
	}
	result, err := p.append(r.Context(), log, command)
	if err != nil {
		Fail(w, notLeading(err))
		return
	}
	Reply(w, result)
}

// notLeading turns a log's refusal into an answer that names the leader.
func notLeading(err error) error {
	refused, ok := errors.AsType[*raftstore.NotLeaderError](err)
	if !ok {
		return err
	}
	e := newError(http.StatusConflict, CodeNotLeader, "%s", refused)
	e.Leader = refused.Leader
	return e
}

// jitter is a random time around d, from a half to one and a half of it.
func jitter(d time.Duration) time.Duration {
	return d/2 + random.N(d)
}
