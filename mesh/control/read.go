package control

import (
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
	Index uint64    `json:"index"`
	Time  time.Time `json:"time"`
}

func (p *Plane) read(ctx context.Context) (*store.State, readPoint, error) {
	point, err := p.readPoint(ctx)
	if err != nil {
		return nil, readPoint{}, err
	}
	if !p.await(ctx, func(s *store.State) bool { return s.Index >= point.Index }) {
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
		point.Index, err = log.ReadIndex(ctx)
		point.Time = p.clock.now()
		if refused, ok := errors.AsType[*raftstore.NotLeaderError](err); ok {
			return p.atLeader(ctx, refused.Leader, http.MethodGet, "/v1/read", nil, &point)
		}
		return errors.Is(err, raftstore.ErrClosed), err
	})
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
		point.Index, err = log.ReadIndex(ctx)
		point.Time = p.clock.now()
	} else {
		point, err = p.readPoint(ctx)
	}
	if err != nil {
		Fail(w, notLeading(err))
		return
	}
	Reply(w, point)
}

// A position is how far a node is, in which history.
type position struct {
	Generation uint64       `json:"generation"`
	Index      uint64       `json:"index"`
	Head       store.Digest `json:"head"` // of the audit trail
	Time       time.Time    `json:"time"` // the node's clock
}

// serveHead says where this node is. It is no secret among members, and
// whoever compares states must reach those whose certificates are stale, too.
func (p *Plane) serveHead(w http.ResponseWriter, _ *http.Request) {
	at := position{Time: p.clock.now()}
	var head [32]byte
	at.Generation, at.Index, head = p.State().Head()
	at.Head = head
	Reply(w, at)
}

// refusal is what the command would be refused with at a state, as far as can
// be told before it is in the log.
func refusal(state *store.State, command store.Command, now time.Time) *store.Refusal {
	command.Version, command.Now = store.Version, now
	return store.Check(state, command)
}
