package control

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"time"

	"guywire/store"
	"guywire/store/raftstore"
)

// Read gives a state that has all that was acknowledged to anybody before the
// call, wherever it was asked (a linearizable read; Ongaro 2014, section 6.4).
// It asks the leader and waits for this node to catch up; State costs nothing
// and is never older than it was, but perhaps older than the newest write.
// Without a majority of the voters it fails with ErrNoVoter.
func (p *Plane) Read(ctx context.Context) (*store.State, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	state, _, err := p.read(ctx)
	return state, err
}

// A readPoint is where a read is linearizable, with the clock of the leader
// that said so.
type readPoint struct {
	Generation uint64    `json:"generation,omitempty"`
	Index      uint64    `json:"index"`
	Time       time.Time `json:"time"`
}

// reached reports whether a state has all that was acknowledged before. The
// index alone does not tell: in a generation that is over it may be higher.
func (r readPoint) reached(s *store.State) bool {
	return cmp.Or(cmp.Compare(s.Mesh.Generation, r.Generation), cmp.Compare(s.Index, r.Index)) >= 0
}

func (p *Plane) read(ctx context.Context) (*store.State, readPoint, error) {
	point, err := p.readPoint(ctx)
	if err != nil {
		return nil, readPoint{}, err
	}
	if !p.await(ctx, point.reached) {
		return nil, readPoint{}, newError(http.StatusServiceUnavailable, CodeInternal, "%s is behind: it is at index %d and the mesh at %d or above; try again", p.name(p.id), p.State().Index, point.Index)
	}
	return p.State(), point, nil
}

func (p *Plane) readPoint(ctx context.Context) (point readPoint, err error) {
	if p.voter.store() == nil {
		err := p.atVoter(ctx, http.MethodGet, "/v1/read", nil, &point)
		return point, err
	}
	err = p.retry(ctx, func() (again bool, err error) {
		log := p.voter.store()
		if log == nil {
			return false, p.notVoter()
		}
		point, err = p.pointOf(ctx, log)
		if refused, ok := errors.AsType[*raftstore.NotLeaderError](err); ok {
			return p.atLeader(ctx, log, refused.Leader, http.MethodGet, "/v1/read", nil, &point)
		}
		return errors.Is(err, raftstore.ErrClosed), err
	})
	return point, err
}

// pointOf is readPoint on the leader.
func (p *Plane) pointOf(ctx context.Context, log *raftstore.Store) (point readPoint, err error) {
	if err := p.dates(ctx, log); err != nil {
		return point, err
	}
	point.Index, err = log.ReadIndex(ctx)
	point.Generation, point.Time = log.State().Mesh.Generation, p.clock.now()
	return point, err
}

// serveRead answers a member with the leader's word. To a voter it answers only
// as the leader, so that nothing goes in circles.
func (p *Plane) serveRead(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout-time.Second)
	defer cancel()
	log := p.voter.store()
	if log == nil {
		Fail(w, p.notVoter())
		return
	}
	var point readPoint
	var err error
	if p.State().Nodes[Caller(r.Context())].Voter {
		point, err = p.pointOf(ctx, log)
	} else {
		point, err = p.readPoint(ctx)
	}
	if err != nil {
		Fail(w, notLeading(err))
		return
	}
	Reply(w, point)
}

// refusal is what the command would be refused with at a state, as far as can
// be told before it is in the log.
func refusal(state *store.State, command store.Command, now time.Time) *store.Refusal {
	command.Version, command.Now = store.Version, now
	return store.Check(state, command)
}
