package control

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
	"guywire/store/disk"
	"guywire/store/raftstore"
)

// authorityKeys are the CAs whose keys a voter holds: one, and while the mesh
// changes to another one, that.
type authorityKeys struct {
	authorityKey
	Next *authorityKey `json:"next,omitempty"`
}

func keysOf(list []*transport.Authority) (keys authorityKeys) {
	for i, ca := range list {
		key := keyOf(ca)
		if i == 0 {
			keys.authorityKey = key
		} else {
			keys.Next = &key
		}
	}
	return keys
}

func (k authorityKeys) authorities() ([]*transport.Authority, error) {
	first, err := k.authority()
	if err != nil || k.Next == nil {
		return []*transport.Authority{first}, err
	}
	next, err := k.Next.authority()
	return []*transport.Authority{first, next}, err
}

// current is the CA that issues certificates; false: there is none yet.
func current(state *store.State) (pin [32]byte, known bool) {
	if state.Mesh.Version == 0 {
		pins := state.Pins()
		if len(pins) == 0 {
			return pin, false
		}
		return pins[len(pins)-1], true
	}
	ca, known := inState(state, store.CACurrent)
	return ca.Pin, known
}

func inState(state *store.State, want store.CAState) (store.CA, bool) {
	i := slices.IndexFunc(state.Mesh.Authorities, func(ca store.CA) bool { return ca.State == want })
	if i < 0 {
		return store.CA{}, false
	}
	return state.Mesh.Authorities[i], true
}

// hold adds a CA to those whose keys this voter has, and forgets those that
// will issue no more. What a voter answers for is on its disk.
func (p *Plane) hold(ca *transport.Authority) error {
	p.voter.change.Lock()
	defer p.voter.change.Unlock()
	if p.voter.store() == nil {
		return p.notVoter()
	}
	list := slices.DeleteFunc(p.voter.issuers(p.State()), func(o *transport.Authority) bool { return o.Pin() == ca.Pin() })
	list = append(list, ca)
	list = list[max(0, len(list)-2):]
	if err := p.files.write(authorityFile, keysOf(list)); err != nil {
		return err
	}
	p.voter.setAuthorities(list)
	return nil
}

// RotateCA gives the mesh another CA. It may be called on any node that is an
// operator, and returns when certificates are issued by the new one. When ctx
// ends before, the change goes on; but a leader that fails before another voter
// has the new key takes the change with it, and then nobody begins again.
func (p *Plane) RotateCA(ctx context.Context) error {
	before, _ := current(p.State())
	for lost := true; ; {
		if lost {
			if err := p.requestRotation(ctx); err != nil {
				return err
			}
		}
		switch {
		case p.await(ctx, func(s *store.State) bool { pin, _ := current(s); return pin != before }):
			return nil
		case ctx.Err() != nil:
			return errors.Join(errors.New("the new CA is not yet with all voters; it takes over as soon as it is, unless the leader fails before: look again later"), ctx.Err())
		case p.life.Err() != nil:
			return context.Cause(p.life)
		}
		// By the mesh's word, not by what this node has seen of it so far.
		state, err := p.Read(ctx)
		lost = err == nil && !underWay(state, before)
	}
}

// underWay reports whether the mesh changes at once, or has changed, from a CA to
// another.
func underWay(state *store.State, before [32]byte) bool {
	pin, _ := current(state)
	next, known := inState(state, store.CANext)
	return known && next.From.IsZero() || pin != before
}

// requestRotation has the leader begin to change the CA.
func (p *Plane) requestRotation(ctx context.Context) error {
	err := p.retry(ctx, func() (bool, error) {
		if log := p.voter.store(); log != nil && log.Status().Leads() {
			return false, p.beginRotation(ctx, log, p.id)
		}
		leader := p.Status().Leader
		if leader.IsZero() || leader == p.id {
			return true, ErrNoVoter
		}
		err := p.Do(ctx, leader, http.MethodPost, "/v1/ca/rotate", struct{}{}, nil)
		_, answered := errors.AsType[*Error](err)
		return !answered || hasCode(err, CodeNotLeader), err
	})
	wake(p.voter.kick)
	return err
}

// beginRotation makes a CA and has it accepted at once, if that is not under way.
func (p *Plane) beginRotation(ctx context.Context, log *raftstore.Store, by mesh.NodeID) error {
	state := log.State()
	if state.Mesh.Version == 0 {
		return newError(http.StatusConflict, store.CodeVersion, "a mesh of this version keeps its CA; upgrade all nodes first")
	}
	if !state.RoleOf(state.Nodes[by].Identity, time.Now()).Has(store.RoleOperator) {
		return newError(http.StatusForbidden, store.CodeForbidden, "only an operator may change the CA")
	}
	return p.addAuthority(ctx, log, false)
}

// addAuthority makes the next CA, unless there is one. When the current one is
// no more than aged, the next waits for the tokens that pin that one; whoever
// wants another CA at once gets one whose key did not lie on disks meanwhile.
func (p *Plane) addAuthority(ctx context.Context, log *raftstore.Store, aged bool) error {
	p.voter.rotation.Lock()
	defer p.voter.rotation.Unlock()
	state := log.State()
	if next, underWay := inState(state, store.CANext); underWay {
		if aged || next.From.IsZero() {
			return nil
		}
		if err := p.propagate(ctx, log, store.Command{RotateCA: &store.RotateCA{Step: store.CARetire, Pin: next.Pin}}); err != nil {
			return err
		}
	}
	ca, err := transport.NewAuthority(state.Mesh.ID, p.clock.now())
	if err != nil {
		return err
	}
	if err := p.hold(ca); err != nil { // before anyone relies on it
		return err
	}
	p.logger.Info("the CA changes", "aged", aged)
	return p.propagate(ctx, log, store.Command{RotateCA: &store.RotateCA{Step: store.CAAdd, Pin: ca.Pin(), Root: ca.Certificate(), Aged: aged}})
}

// tendAuthority is the leader's next step towards the CA that the mesh should
// have, and gives the voters the keys that they lack.
func (p *Plane) tendAuthority(ctx context.Context, log *raftstore.Store) error {
	state := log.State()
	missing, err := p.handOut(ctx, log, p.voter.issuers(state))
	if state.Mesh.Version == 0 { // it keeps its CA
		return err
	}
	step := func(step store.CAStep, ca store.CA) error {
		err := p.propagate(ctx, log, store.Command{RotateCA: &store.RotateCA{Step: step, Pin: ca.Pin}})
		if err == nil {
			wake(p.voter.kick) // there may be a next step
		}
		return err
	}
	now, issuers := p.clock.now(), state.Issuers()
	was := issuers[0]
	// Without its key a leader can issue nothing, nor tell whether anybody has it.
	atOnce := state.Mesh.CADue || p.voter.key(was.Pin) == nil
	if len(issuers) > 1 {
		switch next, voters := issuers[1], len(log.Status().Voters); {
		case p.voter.key(next.Pin) == nil: // its maker is gone
			return step(store.CARetire, next)
		case next.Waits(now):
			if !atOnce {
				return err
			}
		case missing == 0, state.Mesh.CADue && 2*missing < voters:
			return step(store.CAPromote, next)
		default:
			return err
		}
	}
	made, wrong := transport.Made(was.Root)
	if wrong != nil {
		return wrong
	}
	if age := now.Sub(made); atOnce || age > authorityAge || age < -maxClockOffset {
		err := p.addAuthority(ctx, log, !atOnce)
		if err == nil {
			wake(p.voter.kick)
		}
		return err
	}
	for _, ca := range state.Mesh.Authorities {
		if ca.State == store.CAPrevious && (now.Sub(latest(made, was.From)) > 2*transport.Lifetime || betrayed(state, ca)) {
			return step(store.CARetire, ca)
		}
	}
	return err
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// awaitIssuer waits until the CA is not to be changed at once, and for a little
// while until this node shows a certificate of the current one.
func (p *Plane) awaitIssuer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	for began := time.Now(); ; {
		due := p.State().Mesh.CADue
		if !due && (p.signedByCurrent() || time.Since(began) > 2*renewCheck) {
			return nil
		}
		if !pause(ctx, retryMin) {
			if due {
				return errors.New("the mesh is changing to a new CA, because a node that knew the key of the old one was removed; try again in a moment")
			}
			return ctx.Err()
		}
	}
}

// betrayed reports whether somebody who is no member any more may know the key
// of a CA.
func betrayed(state *store.State, ca store.CA) bool {
	made, err := transport.Made(ca.Root)
	for _, t := range state.Removed {
		if t.EverVoted && (err != nil || !t.At.Before(made)) {
			return true
		}
	}
	return false
}

// handOut gives CAs to all voters, and tells how many do not have them all.
func (p *Plane) handOut(ctx context.Context, log *raftstore.Store, cas []*transport.Authority) (missing int, err error) {
	st := log.Status()
	var mu sync.Mutex // guards missing, err and given
	var all sync.WaitGroup
	for _, id := range st.Voters {
		now := given{term: st.Term, boot: log.State().Nodes[id].Boot}
		for i, ca := range cas {
			now.pins[i] = ca.Pin()
		}
		mu.Lock()
		has := p.voter.given[id] == now
		mu.Unlock()
		if id == p.id || has {
			continue
		}
		all.Go(func() {
			failed := p.entrustWith(ctx, id, cas)
			mu.Lock()
			defer mu.Unlock()
			if failed != nil {
				missing++
				err = errors.Join(err, failed)
				return
			}
			p.voter.given[id] = now
		})
	}
	all.Wait()
	return missing, err
}

// entrustWith gives the keys of CAs to a voter.
func (p *Plane) entrustWith(ctx context.Context, id mesh.NodeID, cas []*transport.Authority) error {
	for _, ca := range cas {
		if err := p.Do(ctx, id, http.MethodPost, "/v1/ca", keyOf(ca), nil); err != nil {
			return err
		}
	}
	return nil
}

// serveAuthority takes a CA of the mesh from the leader.
func (p *Plane) serveAuthority(w http.ResponseWriter, r *http.Request) {
	var key authorityKey
	if err := Decode(r, &key); err != nil {
		Fail(w, newError(http.StatusBadRequest, CodeMalformed, "the request is malformed")) // no detail: it holds a key
		return
	}
	ca, err := key.authority()
	if err == nil && !p.await(r.Context(), func(s *store.State) bool { return slices.Contains(s.Pins(), ca.Pin()) }) {
		err = errors.New("unknown")
	}
	if err != nil {
		Fail(w, newError(http.StatusForbidden, store.CodeForbidden, "this is not a CA of the mesh"))
		return
	}
	if held := p.voter.key(ca.Pin()); held == nil {
		if err := p.hold(ca); err != nil {
			Fail(w, err)
			return
		}
	}
	Reply(w, struct{}{})
}

// serveRotate begins a change of the CA for an operator on another node.
func (p *Plane) serveRotate(w http.ResponseWriter, r *http.Request) {
	log := p.voter.store()
	if log == nil || !log.Status().Leads() {
		Fail(w, newError(http.StatusConflict, CodeNotLeader, "%s does not lead", p.name(p.id)))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout-time.Second)
	defer cancel()
	if err := p.beginRotation(ctx, log, Caller(r.Context())); err != nil {
		Fail(w, err)
		return
	}
	wake(p.voter.kick)
	Reply(w, struct{}{})
}

// loadAuthorities reads the keys that this voter holds. Without them it is a
// voter still: the leader gives them to it again, or makes a new CA when it is
// the leader that lost them. Either replaces what is damaged.
func (p *Plane) loadAuthorities() error {
	var keys authorityKeys
	var list []*transport.Authority
	err := p.files.read(authorityFile, &keys)
	if err == nil {
		list, err = keys.authorities()
	}
	switch {
	case err == nil:
		p.voter.setAuthorities(list)
	case errors.Is(err, disk.ErrUnsafe):
		return err
	default:
		p.logger.Warn("this voter has no CA key and admits no nodes until the leader gives it one", mesh.LogError, err)
	}
	return nil
}
