package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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
	self mesh.NodeID
	// change is held while this node becomes or ceases to be a voter, or takes
	// the key of a CA: one at a time. rotation is held while it makes one.
	change, rotation sync.Mutex
	kick             chan struct{} // look at what there is to do at once
	given            map[mesh.NodeID]given

	mu      sync.Mutex // guards the fields below, for short
	log     *raftstore.Store
	cas     []*transport.Authority // whose keys it holds
	problem string                 // why a voter has no log open
	doubled time.Time              // when another machine was last seen that runs as this node
}

// given says which CAs the leader of a term gave to a voter, as it ran then: one
// that started again may have found its key damaged.
type given struct {
	pins [2][32]byte // of voter.issuers
	term uint64
	boot store.Boot
}

func (v *voter) init(self mesh.NodeID) {
	v.self, v.kick, v.given = self, make(chan struct{}, 1), map[mesh.NodeID]given{}
}

// store is the log; nil: this node is no voter, or its log has failed.
func (v *voter) store() *raftstore.Store {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.log
}

// authority is the CA with which this node issues certificates; nil: it is no
// voter, it has not got the key, or its log is not open: who cannot hear who
// was removed must not vouch for anybody.
func (v *voter) authority() *transport.Authority {
	log := v.store()
	if log == nil {
		return nil
	}
	state := log.State()
	pin, known := current(state)
	if !known || !state.Nodes[v.self].Voter {
		return nil
	}
	return v.key(pin)
}

// key is the CA with the pin; nil: its key is not here.
func (v *voter) key(pin [32]byte) *transport.Authority {
	for _, ca := range v.keys() {
		if ca.Pin() == pin {
			return ca
		}
	}
	return nil
}

func (v *voter) keys() []*transport.Authority {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.cas)
}

// issuers are the CAs that it holds and that issue certificates, or will: the
// current one first.
func (v *voter) issuers(state *store.State) (list []*transport.Authority) {
	pin, _ := current(state)
	next, _ := inState(state, store.CANext)
	for _, pin := range [][32]byte{pin, next.Pin} {
		if ca := v.key(pin); ca != nil {
			list = append(list, ca)
		}
	}
	return list
}

func (v *voter) double(now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.doubled = now
}

func (v *voter) set(log *raftstore.Store, problem string) (before *raftstore.Store) {
	v.mu.Lock()
	defer v.mu.Unlock()
	before, v.log, v.problem = v.log, log, problem
	return before
}

// drop forgets a log that failed; false: it is not the one in use any more.
func (v *voter) drop(log *raftstore.Store, problem string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.log != log {
		return false
	}
	v.log, v.problem = nil, problem
	return true
}

func (v *voter) setAuthority(ca *transport.Authority) {
	v.setAuthorities([]*transport.Authority{ca})
}

func (v *voter) setAuthorities(list []*transport.Authority) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cas = list
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
	if err := p.loadAuthorities(); err != nil {
		return err
	}
	err := p.resumeLog()
	switch {
	case err == nil:
	case errors.Is(err, raftstore.ErrInUse), errors.Is(err, ErrCloned):
		return err
	default:
		p.voter.set(nil, err.Error())
		p.logger.Error("this voter cannot use its log and only follows; restore its state directory, or let it leave and join again", mesh.LogError, err)
	}
	return nil
}

// resumeLog starts the log that is on the disk, or destroys one that must not vote.
func (p *Plane) resumeLog() error {
	err := p.startLog()
	if !errors.Is(err, raftstore.ErrStaleCopy) {
		return err
	}
	p.logger.Error("this voter's log was set back to an old copy, which must not vote; it is given a new one by the other voters", mesh.LogError, err)
	if err := p.dismissed(); err != nil {
		return err
	}
	p.voter.set(nil, err.Error())
	return nil
}

// startLog opens the log and begins to take its state over.
func (p *Plane) startLog() error {
	var log *raftstore.Store
	opened := make(chan struct{}) // it may fail before it is here
	defer close(opened)
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
		Admit: p.admitsVoter,
		Failed: func(err error) {
			<-opened
			p.logFailed(log, err)
		},
		Fence: p.fence,
		Care:  p.care(),
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
func (p *Plane) logFailed(log *raftstore.Store, err error) {
	p.voter.change.Lock()
	used := p.voter.drop(log, err.Error())
	p.voter.change.Unlock()
	if !used || p.life.Err() != nil { // who took it out of use closes it
		return
	}
	p.logger.Error("the replicated log failed and this voter gave up its vote; check the disk of the state directory", mesh.LogError, err)
	p.tasks.Go(func() {
		if err := log.Close(); err != nil {
			p.logger.Warn("the failed log does not close", mesh.LogError, err)
		}
		for pause := reopenMin; p.sleep(pause); pause = min(2*pause, reopenMax) {
			p.voter.change.Lock()
			err := errors.New("this node is a voter again")
			if p.voter.store() == nil && raftstore.Exists(p.files.raft()) {
				err = p.resumeLog()
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
	p.voter.setAuthorities(nil)
	return errors.Join(err, raftstore.Destroy(p.files.raft()), p.files.dir.Remove(authorityFile))
}

// checkOwnVote finds out that the leader took this node's vote or log away.
func (p *Plane) checkOwnVote() {
	p.voter.change.Lock()
	defer p.voter.change.Unlock()
	log := p.voter.store()
	if log == nil {
		p.resignWithoutLog()
		return
	}
	newest, own, st := p.State(), log.State(), log.Status()
	if newest.Nodes[p.id].Voter || len(st.Voters) == 0 {
		return // a voter, or about to become one
	}
	if slices.Contains(st.Learners, p.id) && !(st.Quiet > forgottenAfter && !p.Status().Source.IsZero()) {
		return // it may become a voter
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

// resignWithoutLog gives up a vote that this node cannot use, because it had
// to destroy its log: only then can it get another one.
func (p *Plane) resignWithoutLog() {
	st := p.Status()
	if raftstore.Exists(p.files.raft()) || !p.State().Nodes[p.id].Voter || st.Source.IsZero() || st.Leader.IsZero() || p.leaving.Load() {
		return
	}
	if err := p.Do(p.life, st.Leader, http.MethodPost, "/v1/resign", struct{}{}, nil); err != nil {
		p.logger.Info("this node has no log and could not give up its vote yet", mesh.LogError, err)
	}
}

// servePromote makes this node ready to become a voter: it opens an empty log,
// into which the leader will write.
func (p *Plane) servePromote(w http.ResponseWriter, r *http.Request) {
	var request promotion
	if err := Decode(r, &request); err != nil {
		Fail(w, err)
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
	Term uint64 `json:"term"` // of the leader
}

func (p *Plane) promoted(request promotion) error {
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
		// Otherwise a vote that ended, without this node having noticed: the
		// leader of this term knows its voters.
	} else if p.State().Nodes[p.id].Voter && raftstore.Exists(p.files.raft()) {
		return newError(http.StatusConflict, CodeInternal, "%s is a voter whose log has failed; check its disk", p.name(p.id))
	}
	if err := p.dismissed(); err != nil { // what a former vote left must not vote again
		return err
	}
	if err := p.startLog(); err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	return nil
}

// serveRaft shows this node's view of the log.
func (p *Plane) serveRaft(w http.ResponseWriter, _ *http.Request) {
	log := p.voter.store()
	if log == nil {
		Fail(w, p.notVoter())
		return
	}
	Reply(w, log.Status())
}
