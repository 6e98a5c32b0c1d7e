package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

// ErrCloned: another machine runs as this node.
var ErrCloned = errors.New("another machine runs with the identity and the log of this node; stop one of them, and let it join as a node of its own with an empty state directory")

// A bootRequest says which copy of the log a voter is about to run.
type bootRequest struct {
	Node mesh.NodeID `json:"node"`
	Boot store.Boot  `json:"boot"`
}

// A bootAnswer says what a member knows of the copies of a voter's log.
type bootAnswer struct {
	Generation uint64     `json:"generation"`
	Registered store.Boot `json:"registered"`
	Running    store.Boot `json:"running,omitzero"` // of the copy that answered at the voter's address just now
	Last       uint64     `json:"last,omitempty"`   // index of the last entry that the leader knows the voter to have had
}

// fence decides whether this copy of the log may run, by what other voters
// know. Nobody answers: then it may, for a mesh that was down as a whole must
// come up by itself.
func (p *Plane) fence(boot store.Boot, own *store.State, last uint64) error {
	state := p.State()
	if own.Index > state.Index {
		state = own
	}
	if state.Mesh.Version == 0 {
		return nil // nothing is registered
	}
	ctx, cancel := context.WithTimeout(p.life, fenceTimeout)
	defer cancel()
	err := raftstore.CheckBoot(boot, state.Nodes[p.id].Boot)
	var mu sync.Mutex // guards err
	var all sync.WaitGroup
	for id, n := range state.Nodes {
		if !n.Voter || id == p.id {
			continue
		}
		all.Go(func() {
			var answer bootAnswer
			if p.Do(ctx, id, http.MethodPost, "/v1/boot", bootRequest{p.id, boot}, &answer) != nil || answer.Generation < state.Mesh.Generation {
				return
			}
			found := raftstore.CheckBoot(boot, answer.Registered)
			switch {
			case answer.Running != (store.Boot{}) && answer.Running != boot:
				found = ErrCloned
			case found == nil && answer.Last > last: // set back to a copy of its last run
				found = fmt.Errorf("%w: it ends at entry %d and had entry %d", raftstore.ErrStaleCopy, last, answer.Last)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil || errors.Is(found, ErrCloned) {
				err = found
			}
		})
	}
	all.Wait()
	return err
}

// serveBoot answers a voter that is about to run a copy of its log, after a
// look at whether one runs already.
func (p *Plane) serveBoot(w http.ResponseWriter, r *http.Request) {
	var request bootRequest
	if err := Decode(r, &request); err != nil {
		Fail(w, err)
		return
	}
	caller, state := Caller(r.Context()), p.State()
	if caller != request.Node {
		Fail(w, newError(http.StatusForbidden, store.CodeForbidden, "only the voter itself may ask this"))
		return
	}
	answer := bootAnswer{Generation: state.Mesh.Generation, Registered: state.Nodes[caller].Boot}
	if log := p.voter.store(); log != nil {
		for _, h := range log.Status().Health {
			if h.Node == caller {
				answer.Last = h.Last
			}
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), fenceTimeout/3)
	defer cancel()
	// It does not answer before its log is open; another copy does.
	_ = p.Do(ctx, caller, http.MethodPost, "/v1/running", request, &answer.Running)
	if answer.Running != (store.Boot{}) && answer.Running != request.Boot {
		p.logger.Error("two machines run with the identity of one node; stop one", mesh.LogNode, p.name(caller))
	}
	Reply(w, answer)
}

// serveRunning tells which copy of the log runs here, and learns of another.
func (p *Plane) serveRunning(w http.ResponseWriter, r *http.Request) {
	var request bootRequest
	if err := Decode(r, &request); err != nil {
		Fail(w, err)
		return
	}
	var boot store.Boot
	if log := p.voter.store(); log != nil && request.Node == p.id {
		if boot = log.Boot(); boot != request.Boot {
			p.voter.double(time.Now())
			p.logger.Error("another machine started with the identity and the log of this node and was refused; stop it", "by", p.name(Caller(r.Context())))
		}
	}
	Reply(w, boot)
}

// registerBoot writes into the state which copy of its log this voter runs.
func (p *Plane) registerBoot(ctx context.Context, log *raftstore.Store) error {
	state, boot := log.State(), log.Boot()
	self := state.Nodes[p.id]
	if state.Mesh.Version == 0 || !self.Voter || self.Boot == boot || !p.voter.hearsLeader() {
		return nil
	}
	command := store.Command{RegisterBoot: &store.RegisterBoot{Node: p.id, Boot: boot}}
	result, err := p.Propose(ctx, command)
	if err == nil && result.Refused != nil {
		err = result.Refused
	}
	if err != nil {
		return fmt.Errorf("register this copy of the log: %w", err)
	}
	return nil
}
