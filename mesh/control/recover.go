package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

var (
	// ErrLeaderSeen: the mesh has a leader and must not be recovered.
	ErrLeaderSeen = errors.New("the mesh has a leader and needs no recovery; see meshctl raft status")
	// ErrPlanChanged: what Recover found is not what the plan says.
	ErrPlanChanged = errors.New("the mesh is not as it was when the recovery was planned; look at a new plan: meshctl raft recover")
)

// A RecoverPlan says what a recovery would do that begins on this node now.
type RecoverPlan struct {
	Generation uint64        `json:"generation"` // that begins
	Source     mesh.NodeID   `json:"source"`     // whose state the mesh begins with: the newest committed one that was found
	Index      uint64        `json:"index"`      // of that state
	Head       store.Digest  `json:"head"`       // of its audit trail
	Reached    []mesh.NodeID `json:"reached"`    // members that were asked, with this node; oldest first
	Silent     []mesh.NodeID `json:"silent"`     // members that did not answer; oldest first
	// LostVoters are the voters among Silent: what only they have is lost.
	LostVoters []mesh.NodeID `json:"lost_voters"`
	// Appear are writes in this node's log of which nobody knows whether they
	// were committed. They become part of the mesh, since some of them may have
	// been acknowledged; oldest first.
	Appear []raftstore.Uncommitted `json:"appear"`
}

// A view is what a member tells somebody who wants to recover the mesh.
type view struct {
	Generation uint64       `json:"generation"`
	Index      uint64       `json:"index"`
	Head       store.Digest `json:"head"`
	Leader     mesh.NodeID  `json:"leader,omitzero"` // heard of lately
}

func (p *Plane) view() view {
	state, st := p.State(), p.Status()
	v := view{Generation: state.Mesh.Generation, Index: state.Index, Head: state.Audit.Head}
	if !st.Source.IsZero() || p.voter.hearsLeader() {
		v.Leader = st.Leader
	}
	return v
}

func (p *Plane) serveView(w http.ResponseWriter, _ *http.Request) { Reply(w, p.view()) }

// serveState gives the whole state to a member, as store.Snapshot encodes it.
func (p *Plane) serveState(w http.ResponseWriter, _ *http.Request) {
	b, err := store.Snapshot(p.State())
	if err != nil {
		Fail(w, err)
		return
	}
	Reply(w, b)
}

// RecoverPlan asks all members what they know and tells what Recover would do.
// It changes nothing. Errors: ErrLeaderSeen.
func (p *Plane) RecoverPlan(ctx context.Context) (RecoverPlan, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	state := p.State()
	views := map[mesh.NodeID]view{p.id: p.view()}
	var mu sync.Mutex // guards views
	var all sync.WaitGroup
	limit := make(chan struct{}, recoverCalls)
	for id := range state.Nodes {
		if id == p.id {
			continue
		}
		all.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			one, stop := context.WithTimeout(ctx, recoverTimeout)
			defer stop()
			var v view
			if p.Do(one, id, http.MethodGet, "/v1/view", nil, &v) == nil {
				mu.Lock()
				views[id] = v
				mu.Unlock()
			}
		})
	}
	all.Wait()
	plan := RecoverPlan{Source: p.id, Index: state.Index, Head: state.Audit.Head, Generation: state.Mesh.Generation}
	for _, id := range oldest(state) {
		v, reached := views[id]
		switch {
		case !reached:
			plan.Silent = append(plan.Silent, id)
			if state.Nodes[id].Voter {
				plan.LostVoters = append(plan.LostVoters, id)
			}
			continue
		case !v.Leader.IsZero():
			return RecoverPlan{}, fmt.Errorf("%s hears from %s: %w", p.name(id), p.name(v.Leader), ErrLeaderSeen)
		case v.Generation > plan.Generation || v.Generation == plan.Generation && v.Index > plan.Index:
			plan.Source, plan.Index, plan.Head, plan.Generation = id, v.Index, v.Head, v.Generation
		}
		plan.Reached = append(plan.Reached, id)
	}
	if log := p.voter.store(); log != nil && plan.Generation == state.Mesh.Generation {
		tail, err := log.Uncommitted()
		if err != nil {
			return RecoverPlan{}, err
		}
		plan.Appear = slices.DeleteFunc(tail, func(u raftstore.Uncommitted) bool { return u.Index <= plan.Index })
	}
	plan.Generation++
	return plan, nil
}

// Recover begins the mesh anew on this node, as the plan says, which
// RecoverPlan gave: this node becomes the only voter and an operator, and makes
// others when it reaches them. It is for a mesh whose majority of voters is
// lost for good. Voters of the old mesh that come back find a higher generation
// and stop; a majority of them that meet without any node of the new one would
// go on with the old mesh, so revoke or wipe those that are gone. Errors:
// ErrLeaderSeen, ErrPlanChanged.
func (p *Plane) Recover(ctx context.Context, plan RecoverPlan) error {
	now, err := p.RecoverPlan(ctx)
	switch {
	case err != nil:
		return err
	case now.Generation != plan.Generation || now.Source != plan.Source || now.Index != plan.Index || now.Head != plan.Head || len(now.Appear) != len(plan.Appear):
		return ErrPlanChanged
	}
	state, err := p.fetchState(ctx, plan)
	if err != nil {
		return err
	}
	for _, u := range plan.Appear {
		state, _ = store.Apply(state, u.Index, u.Command)
	}
	command := store.Command{
		Version: store.Version, Now: time.Now(), Author: p.config.Ring.Identity(), After: state.Index,
		Recover: &store.Recover{Node: p.id, Generation: plan.Generation},
	}
	rand.Read(command.Request[:])
	command, err = store.SignCommand(command, state.Mesh.ID, p.config.Ring.Sign)
	if err != nil {
		return err
	}
	fresh, result := store.Recovered(state, command)
	if result.Refused != nil {
		return result.Refused
	}
	p.voter.change.Lock()
	defer p.voter.change.Unlock()
	wasVoter := p.voter.store() != nil
	if err := p.closeVoter(); err != nil {
		return err
	}
	if err := raftstore.Recover(p.files.raft(), p.id, fresh); err != nil {
		if wasVoter {
			err = errors.Join(err, p.startLog())
		}
		return err
	}
	if err := p.startLog(); err != nil {
		return err
	}
	p.logger.Warn("the mesh was recovered; this node is its only voter until others are ready", "generation", plan.Generation, mesh.LogIndex, fresh.Index)
	return nil
}

// fetchState gets the state that the plan begins with.
func (p *Plane) fetchState(ctx context.Context, plan RecoverPlan) (*store.State, error) {
	state := p.State()
	if plan.Source != p.id {
		var b []byte
		if err := p.Do(ctx, plan.Source, http.MethodGet, "/v1/state", nil, &b); err != nil {
			return nil, err
		}
		var err error
		if state, err = store.Restore(b); err != nil {
			return nil, fmt.Errorf("state of %s: %w", p.name(plan.Source), err)
		}
	}
	if state.Index != plan.Index || state.Mesh.Generation+1 != plan.Generation || state.Audit.Head != plan.Head {
		return nil, ErrPlanChanged
	}
	return state, nil
}
