package control

import (
	"context"
	"errors"
	"net/http"
	"time"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

// keepVoters is each voter's care for its own vote, and the leader's for what
// the voters know.
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

// tend is what this voter does by itself: it says which copy of the log it
// runs, and takes the leader's next step towards the version, the CA and the
// gossip key that the mesh should have.
func (p *Plane) tend() {
	log := p.voter.store()
	if log == nil {
		return
	}
	ctx, cancel := context.WithTimeout(p.life, changeTimeout)
	defer cancel()
	err := p.registerBoot(ctx, log)
	if err == nil {
		err = p.dates(ctx, log) // the rest is the leader's; and the clock tells the age of a CA
	}
	if err == nil {
		err = p.tendVersion(ctx, log)
	}
	if err == nil {
		err = errors.Join(p.tendAuthority(ctx, log), p.tendGossip(ctx, log))
	}
	if err != nil && p.life.Err() == nil && !errors.Is(err, raftstore.ErrNotLeader) && !errors.Is(err, raftstore.ErrClosed) {
		p.logger.Warn("what the voters know could not be changed", mesh.LogError, err)
	}
}

// care is what the log needs to keep the voters as they should be while this
// voter leads.
func (p *Plane) care() *raftstore.Care {
	return &raftstore.Care{
		Members: func(state *store.State) ([]raftstore.Candidate, int) { return candidates(state), state.Mesh.Voters },
		Status: func(ctx context.Context, id mesh.NodeID) (st raftstore.Status, err error) {
			err = p.Do(ctx, id, http.MethodGet, "/v1/raft", nil, &st)
			return st, err
		},
		Teach: p.teach, Entrust: p.entrust,
		Propose: p.propagate,
	}
}

var errNoKey = errors.New("this voter has no CA key to give to others")

// teach has a node open an empty log. It gets no key: a learner may never
// become a voter, and only who has voted has the CA changed when it is revoked.
func (p *Plane) teach(ctx context.Context, id mesh.NodeID, term uint64) error {
	if len(p.voter.issuers(p.State())) == 0 {
		return errNoKey
	}
	return p.Do(ctx, id, http.MethodPost, "/v1/promote", promotion{term}, nil)
}

// entrust gives the CA to a learner that the state names as a voter. It has the
// key before it has its vote, since it may lead at once and alone.
func (p *Plane) entrust(ctx context.Context, id mesh.NodeID) error {
	list := p.voter.issuers(p.State())
	if len(list) == 0 {
		return errNoKey
	}
	return p.entrustWith(ctx, id, list)
}

// propagate writes what voters say by themselves into the log that this one
// leads. A refusal is the error.
func (p *Plane) propagate(ctx context.Context, log *raftstore.Store, command store.Command) error {
	command, err := p.sign(command)
	if err != nil {
		return err
	}
	result, err := p.append(ctx, log, command)
	if err == nil && result.Refused != nil {
		err = result.Refused
	}
	return err
}

// serveResign takes the caller's vote, because it is about to leave.
func (p *Plane) serveResign(w http.ResponseWriter, r *http.Request) {
	caller := Caller(r.Context())
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
	if err := log.Dismiss(ctx, caller); err != nil {
		Fail(w, err)
		return
	}
	p.logger.Info("voter resigned", mesh.LogNode, p.name(caller))
	Reply(w, struct{}{})
}
