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
	// Trusted: this node is a voter or an operator, so the other members believe
	// it and follow by themselves. Otherwise each of them must join anew.
	Trusted bool `json:"trusted"`
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
	plan := RecoverPlan{Trusted: vouches(state, p.id), Source: p.id, Index: state.Index, Head: state.Audit.Head, Generation: state.Mesh.Generation}
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
		var err error
		if state, err = p.stateOf(ctx, plan.Source); err != nil {
			return nil, err
		}
	}
	if state.Index != plan.Index || state.Mesh.Generation+1 != plan.Generation || state.Audit.Head != plan.Head {
		return nil, ErrPlanChanged
	}
	return state, nil
}

// stateOf gets the state of another member.
func (p *Plane) stateOf(ctx context.Context, id mesh.NodeID) (*store.State, error) {
	var b []byte
	if err := p.Do(ctx, id, http.MethodGet, "/v1/state", nil, &b); err != nil {
		return nil, err
	}
	state, err := store.Restore(b)
	if err != nil {
		return nil, fmt.Errorf("state of %s: %w", p.name(id), err)
	}
	return state, nil
}

// vouches reports whether a member's word counts about a generation that a
// state does not know: its voters' and its operators' does.
func vouches(s *store.State, id mesh.NodeID) bool {
	n, live := s.Nodes[id]
	return live && (n.Voter || slices.Contains(n.Roles, store.NodeOperator))
}

// findRecovered looks for a mesh that was recovered without this node, when no
// voter that it knows of serves it: the recovery may have made another node the
// only voter.
//
// Nothing in a recovered state proves itself to who missed the recovery: whoever
// has a copy of the old state can make one, and be the only voter in it. So a
// later generation is believed only when a node tells of it whose word counts
// in both states, as a voter or an operator, and from that node itself: the
// connection is made with the identity key that the old state names. What any
// other member says of later generations is for people to judge.
func (p *Plane) findRecovered() {
	state := p.State()
	var ask []mesh.NodeID
	for id := range state.Nodes {
		if id != p.id {
			ask = append(ask, id)
		}
	}
	random.Shuffle(len(ask), func(i, j int) { ask[i], ask[j] = ask[j], ask[i] })
	slices.SortStableFunc(ask, func(a, b mesh.NodeID) int {
		return cmp.Compare(rank(vouches(state, a)), rank(vouches(state, b)))
	})
	ask = ask[:min(len(ask), recoverCalls)]
	ctx, cancel := context.WithTimeout(p.life, recoverTimeout)
	defer cancel()
	later := make([]uint64, len(ask)) // generations
	var all sync.WaitGroup
	for i, id := range ask {
		all.Go(func() {
			var answer headAnswer
			if p.Do(ctx, id, http.MethodGet, "/v1/head", nil, &answer) == nil && answer.Generation > state.Mesh.Generation {
				later[i] = answer.Generation
			}
		})
	}
	all.Wait()
	for i, id := range ask {
		if later[i] == 0 {
			continue
		}
		if !vouches(state, id) {
			p.doubt(id, later[i])
			continue
		}
		found, err := p.stateOf(p.life, id)
		switch {
		case err != nil:
			p.logger.Warn("a recovered state could not be had", mesh.LogNode, p.name(id), mesh.LogError, err)
		case found.Mesh.ID != state.Mesh.ID || found.Mesh.Generation <= state.Mesh.Generation || !vouches(found, id):
			p.doubt(id, later[i])
		default:
			p.logger.Warn("the mesh was recovered without this node, which takes the recovered state", "generation", found.Mesh.Generation, "by", p.name(id))
			p.following.took()
			p.advance(found)
			return
		}
	}
}

// doubt notes that a member told of a later generation, and that its word does
// not count.
func (p *Plane) doubt(by mesh.NodeID, generation uint64) {
	p.following.mu.Lock()
	known := p.following.doubted >= generation
	p.following.doubted = max(p.following.doubted, generation)
	p.following.mu.Unlock()
	if !known {
		p.logger.Error("a member says that the mesh was recovered, but no voter or operator that this node knows of says so; if it is true, empty the state directory of this node and join with a new token", mesh.LogNode, p.name(by), "generation", generation)
	}
}
