package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

// Leave takes this node out of the mesh: a voter first gives its vote to
// another node, then the node becomes a tombstone, and what made this machine
// a member is removed when Run returns, with ErrLeft. The identity key cannot
// be used to join again. When the last node leaves, the mesh is gone.
//
// It needs a majority of the voters; without one nothing is changed.
func (p *Plane) Leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	p.leaving.Store(true)
	defer p.leaving.Store(false)
	err := p.leave(ctx)
	if errors.Is(context.Cause(p.life), ErrLeft) {
		return nil // the mesh was quicker to say so than the answer to come
	}
	if err != nil {
		return fmt.Errorf("leave the mesh: %w", err)
	}
	p.end(ErrLeft)
	return nil
}

func (p *Plane) leave(ctx context.Context) error {
	if len(p.State().Nodes) <= 1 {
		return nil
	}
	command := store.Command{RemoveNode: &store.RemoveNode{Node: p.id}}
	signed, err := p.sign(command)
	if err != nil {
		return err
	}
	// Who may not leave is told while it still has its vote.
	if refused := refusal(withoutVote(p.State(), p.id), signed, p.clock.now()); refused != nil {
		return refused
	}
	if err := p.giveUpVote(ctx); err != nil {
		return err
	}
	result, err := p.Propose(ctx, command)
	switch {
	case hasCode(err, CodeRemoved): // an earlier attempt was applied
		return nil
	case err != nil:
		return err
	case result.Refused != nil:
		return result.Refused
	}
	return nil
}

// withoutVote is the state as it will be when a node has given up its vote.
func withoutVote(s *store.State, id mesh.NodeID) *store.State {
	after := *s
	after.Nodes = maps.Clone(s.Nodes)
	self := after.Nodes[id]
	self.Voter = false
	after.Nodes[id] = self
	return &after
}

// giveUpVote ends this node's vote through the leader. A leader hands over
// first, and the only voter makes another one before that.
func (p *Plane) giveUpVote(ctx context.Context) error {
	return p.retry(ctx, func() (bool, error) {
		log := p.voter.store()
		if log == nil {
			return false, nil
		}
		st := log.Status()
		if !slices.Contains(st.Voters, p.id) {
			p.voter.change.Lock()
			defer p.voter.change.Unlock()
			return false, p.dismissed()
		}
		if st.Leads() {
			return p.handOver(ctx, log)
		}
		if st.Leader.IsZero() {
			return true, ErrNoVoter
		}
		if err := p.Do(ctx, st.Leader, http.MethodPost, "/v1/resign", struct{}{}, nil); err != nil {
			return true, err
		}
		p.voter.change.Lock()
		defer p.voter.change.Unlock()
		return false, p.dismissed()
	})
}

// errHandedOver: another voter is being made leader; look again.
var errHandedOver = errors.New("leadership is being handed over")

// handOver makes another voter the leader; again is set unless that cannot be.
func (p *Plane) handOver(ctx context.Context, log *raftstore.Store) (again bool, err error) {
	if err := log.Abdicate(ctx); err != nil {
		return !errors.Is(err, raftstore.ErrNoHeir), err
	}
	return true, errHandedOver
}
