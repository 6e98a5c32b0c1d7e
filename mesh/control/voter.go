package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
	"guywire/store/raftstore"
)

// voter is this node's part in the log while it is a voter.
type voter struct {
	// change is held while this node becomes or ceases to be a voter, or as
	// leader changes who is: one at a time.
	change sync.Mutex
	// barred says until when a node is not made a voter; tooMany since when
	// there were more voters than wanted (zero: there are not). Guarded by change.
	barred  map[mesh.NodeID]time.Time
	tooMany time.Time
	kick    chan struct{} // the leader looks at its voters at once

	mu      sync.Mutex // guards the fields below, for short
	log     *raftstore.Store
	ca      *transport.Authority
	problem string // why a voter has no log open
}

func (v *voter) init() {
	v.barred = map[mesh.NodeID]time.Time{}
	v.kick = make(chan struct{}, 1)
}

// store is the log; nil: this node is no voter, or its log has failed.
func (v *voter) store() *raftstore.Store {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.log
}

// authority is the CA; nil: this node is no voter.
func (v *voter) authority() *transport.Authority {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ca
}

func (v *voter) set(log *raftstore.Store, problem string) (before *raftstore.Store) {
	v.mu.Lock()
	defer v.mu.Unlock()
	before, v.log, v.problem = v.log, log, problem
	return before
}

func (v *voter) setAuthority(ca *transport.Authority) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ca = ca
}

// hearsLeader reports whether the log leads, or heard from who does lately.
func (v *voter) hearsLeader() bool {
	log := v.store()
	if log == nil {
		return false
	}
	st := log.Status()
	return st.Leads() || !st.Leader.IsZero() && time.Since(st.Contact) < leaderless
}

// openVoter opens the log when this machine has one. A log that cannot be used
// does not keep the node down: it follows the other voters, and says so.
func (p *Plane) openVoter() error {
	if !raftstore.Exists(p.files.raft()) {
		return nil
	}
	var key authorityKey
	switch err := p.files.read(authorityFile, &key); {
	case err == nil:
		ca, err := key.authority()
		if err != nil {
			return err
		}
		p.voter.setAuthority(ca)
	case errors.Is(err, fs.ErrNotExist):
		p.logger.Warn("this voter has no CA key and cannot admit nodes")
	default:
		return err
	}
	err := p.startLog()
	if errors.Is(err, raftstore.ErrInUse) {
		return err
	}
	if err != nil {
		p.voter.set(nil, err.Error())
		p.logger.Error("this voter cannot use its log and only follows; restore its state directory, or let it leave and join again", mesh.LogError, err)
	}
	return nil
}

// startLog opens the log and begins to take its state over.
func (p *Plane) startLog() error {
	log, err := raftstore.Open(raftstore.Config{
		Dir: p.files.raft(), ID: p.id, Timing: p.config.Timing, Logger: p.logger,
		Listener: p.listener.Stream(transport.Raft),
		Peer: func(c net.Conn) (mesh.NodeID, bool) {
			t, ok := c.(*tls.Conn)
			if !ok {
				return mesh.NodeID{}, false
			}
			state := t.ConnectionState()
			peer, known := p.dialer.Trust.Peer(&state, time.Now())
			return peer.ID, known && !peer.Stale
		},
		Dial: func(ctx context.Context, id mesh.NodeID) (net.Conn, error) {
			return p.dialer.Dial(ctx, id, transport.Raft)
		},
		Admit:  p.admitsVoter,
		Failed: p.logFailed,
	})
	if err != nil {
		return err
	}
	p.voter.set(log, "")
	p.advance(log.State())
	changed, stop := log.Watch()
	p.tasks.Go(func() {
		defer stop()
		for p.voter.store() == log {
			select {
			case <-changed:
				p.advance(log.State())
				wake(p.voter.kick)
			case <-p.life.Done():
				return
			}
		}
	})
	return nil
}

// admitsVoter decides who may speak Raft with this voter. The newest state
// counts beside the Raft configuration, which may be older: see raftstore.Config.
func (p *Plane) admitsVoter(id mesh.NodeID, configured bool) bool {
	state := p.State()
	node, member := state.Nodes[id]
	return member && (configured || node.Voter)
}

// logFailed gives the vote up and tries to get it back: a disk that was full
// or hung may heal.
func (p *Plane) logFailed(err error) {
	p.logger.Error("the replicated log failed and this voter gave up its vote; check the disk of the state directory", mesh.LogError, err)
	p.voter.change.Lock()
	log := p.voter.set(nil, err.Error())
	p.voter.change.Unlock()
	if log == nil || p.life.Err() != nil {
		return
	}
	p.tasks.Go(func() {
		if err := log.Close(); err != nil {
			p.logger.Warn("the failed log does not close", mesh.LogError, err)
		}
		for pause := reopenMin; p.sleep(pause); pause = min(2*pause, reopenMax) {
			p.voter.change.Lock()
			err := errors.New("this node is a voter again")
			if p.voter.store() == nil && raftstore.Exists(p.files.raft()) {
				err = p.startLog()
			}
			p.voter.change.Unlock()
			if p.voter.store() != nil || !raftstore.Exists(p.files.raft()) {
				return
			}
			p.logger.Error("the replicated log still cannot be opened; check the disk of the state directory", mesh.LogError, err)
		}
	})
}

// closeVoter stops the log; leadership is handed over.
func (p *Plane) closeVoter() error {
	if log := p.voter.set(nil, ""); log != nil {
		return log.Close()
	}
	return nil
}

// dismissed ends this node's part in the log for good: without a vote it must
// hold neither the log, which could vote again, nor the CA key.
func (p *Plane) dismissed() error {
	err := p.closeVoter()
	p.voter.setAuthority(nil)
	return errors.Join(err, raftstore.Destroy(p.files.raft()), p.files.dir.Remove(authorityFile))
}

// checkOwnVote finds out that the leader took this node's vote away.
func (p *Plane) checkOwnVote() {
	p.voter.change.Lock()
	defer p.voter.change.Unlock()
	log := p.voter.store()
	if log == nil {
		return
	}
	newest, own, st := p.State(), log.State(), log.Status()
	if newest.Nodes[p.id].Voter || len(st.Voters) == 0 || slices.Contains(st.Learners, p.id) {
		return // a voter, or about to become one
	}
	if slices.Contains(st.Voters, p.id) && !(own.Nodes[p.id].Voter && newest.Newer(own)) {
		// The log names it and nothing newer says otherwise. The state names a
		// voter before the log does and forgets it after the log did, so a
		// newer state in which it is none is proof.
		return
	}
	p.logger.Info("this node is no voter any more")
	if err := p.dismissed(); err != nil {
		p.logger.Error("the log of a former voter cannot be removed; remove it by hand", "path", p.files.raft(), mesh.LogError, err)
	}
}

// servePromote makes this node ready to become a voter: it takes the CA and
// opens an empty log, into which the leader will write.
func (p *Plane) servePromote(w http.ResponseWriter, r *http.Request) {
	var request promotion
	if err := Decode(r, &request); err != nil {
		Fail(w, newError(http.StatusBadRequest, CodeMalformed, "the request is malformed")) // no detail: it holds a key
		return
	}
	if err := p.promoted(request); err != nil {
		Fail(w, err)
		return
	}
	p.logger.Info("becomes a voter", "by", p.name(Caller(r.Context())))
	Reply(w, struct{}{})
}

// A promotion is what a leader tells a node that it is about to give a vote.
// Only the leader of a term sends it, and only to a node without a vote in its
// Raft configuration.
type promotion struct {
	Authority authorityKey `json:"authority"`
	Term      uint64       `json:"term"` // of the leader
}

func (p *Plane) promoted(request promotion) error {
	ca, err := request.Authority.authority()
	if err != nil || !slices.Contains(p.State().Pins(), ca.Pin()) {
		return newError(http.StatusForbidden, store.CodeForbidden, "this is not the CA of the mesh")
	}
	p.voter.change.Lock()
	defer p.voter.change.Unlock()
	if p.life.Err() != nil {
		return context.Cause(p.life)
	}
	if log := p.voter.store(); log != nil {
		st := log.Status()
		if st.Term > request.Term {
			return newError(http.StatusConflict, CodeNotLeader, "there is a newer leader")
		}
		if !slices.Contains(st.Voters, p.id) {
			return nil // asked again
		}
		// A vote that ended, without this node having noticed: the leader of
		// this term knows its voters.
		if err := p.dismissed(); err != nil {
			return err
		}
	} else if p.State().Nodes[p.id].Voter && raftstore.Exists(p.files.raft()) {
		return newError(http.StatusConflict, CodeInternal, "%s is a voter whose log has failed; check its disk", p.name(p.id))
	}
	// What a former vote left must not vote again.
	if err := raftstore.Destroy(p.files.raft()); err != nil {
		return err
	}
	if err := p.files.write(authorityFile, request.Authority); err != nil {
		return err
	}
	if err := p.startLog(); err != nil {
		return errors.Join(fmt.Errorf("open the log: %w", err), p.files.dir.Remove(authorityFile))
	}
	p.voter.setAuthority(ca)
	return nil
}

// serveRaft shows this node's view of the log.
func (p *Plane) serveRaft(w http.ResponseWriter, _ *http.Request) {
	log := p.voter.store()
	if log == nil {
		Fail(w, newError(http.StatusConflict, CodeNotVoter, "%s is not a voter", p.name(p.id)))
		return
	}
	Reply(w, log.Status())
}
