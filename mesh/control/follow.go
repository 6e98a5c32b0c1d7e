package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

// following is what this node knows about the stream that it follows, and
// about how the voters stand to its history.
type following struct {
	mu     sync.Mutex
	voter  mesh.NodeID // zero: none
	newest position    // the newest that a voter reported
	leader mesh.NodeID // as the voter last said
	// disputed are the voters that have another history than this node, behind
	// those that were found to lack what it has since it last followed one.
	disputed, behind map[mesh.NodeID]bool
	anew             bool // this node gave its history up and waits for a snapshot
	// doubted is the latest generation that a member told of whose word does not
	// count; 0: none.
	doubted uint64
}

func (f *following) init() {
	f.disputed, f.behind = map[mesh.NodeID]bool{}, map[mesh.NodeID]bool{}
}

func (f *following) source() mesh.NodeID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.voter
}

func (f *following) saidLeader() mesh.NodeID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leader
}

// set notes the voter that is followed; zero: none is.
func (f *following) set(voter mesh.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.voter = voter
	if voter.IsZero() {
		f.leader = mesh.NodeID{}
		return
	}
	clear(f.behind)
	delete(f.disputed, voter)
}

func (f *following) heard(beat pulse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.leader = beat.Leader; beat.compare(f.newest) > 0 {
		f.newest = beat.position
	}
}

// took notes that a snapshot replaces the state.
func (f *following) took() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.anew, f.doubted = false, 0
	clear(f.disputed)
}

func (f *following) wantsAnew() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.anew
}

// follow keeps a stream from any voter, and takes another one when it ends.
// A voter that hears from a leader needs none: its log is the stream. One that
// hears from nobody may have been replaced while it was away, and finds out
// like everyone else.
func (p *Plane) follow() {
	pause := followMin
	for p.life.Err() == nil {
		if p.voter.hearsLeader() {
			p.confirm()
			if !p.sleep(voterEvery) {
				return
			}
			continue
		}
		lasted := false
		for _, id := range p.voters() {
			began := time.Now()
			err := p.followVoter(id)
			p.following.set(mesh.NodeID{})
			if p.life.Err() != nil {
				return
			}
			if hasCode(err, CodeRemoved) {
				p.end(fmt.Errorf("%w (%w)", ErrRemoved, err))
				return
			}
			p.outOfDate(err)
			p.logger.Debug("follow stream ended", mesh.LogNode, p.name(id), mesh.LogError, err)
			if lasted = time.Since(began) > silence; lasted || p.voter.hearsLeader() {
				break
			}
		}
		switch {
		case lasted:
			pause = followMin
		case pause > followMin && !p.voter.hearsLeader(): // not for the first time
			p.findRecovered()
		}
		if !p.sleep(jitter(pause)) {
			return
		}
		pause = min(2*pause, followMax)
	}
}

// followVoter applies the stream of one voter until it ends, falls silent, or
// another voter may know more.
func (p *Plane) followVoter(id mesh.NodeID) error {
	state := p.State()
	err := p.takeStream(id, state)
	switch {
	case errors.Is(err, errDiverged), hasCode(err, CodeDiverged):
		p.dispute(id)
	case hasCode(err, CodeBehind):
		p.following.mu.Lock()
		p.following.behind[id] = true
		// Without a head nobody can tell what becomes of it there, once that
		// voter is further on.
		p.following.anew = p.following.anew || positionOf(state).Head.IsZero()
		p.following.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("follow %s: %w", p.name(id), err)
	}
	return nil
}

// takeStream is followVoter from a state on.
func (p *Plane) takeStream(id mesh.NodeID, state *store.State) error {
	ctx, leave := context.WithCancelCause(p.life)
	defer leave(nil)
	quiet := time.AfterFunc(silence, func() { leave(errors.New("it is silent")) })
	defer quiet.Stop()
	query := positionOf(state).query()
	query.Set("version", strconv.Itoa(store.Version))
	query.Set("relay", "1")
	if p.following.wantsAnew() {
		query.Set("anew", "1")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+id.String()+"/v1/follow?"+query.Encode(), nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	answer, err := p.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return readAnswer(answer, nil)
	}
	p.following.set(id)
	p.logger.Debug("follows", mesh.LogNode, p.name(id), mesh.LogIndex, state.Index)
	p.tasks.Go(func() { p.checkSource(ctx, leave, id) })

	body := bufio.NewReader(answer.Body)
	useful := time.Now() // when the voter last had a leader and was not behind us
	for {
		kind, payload, err := readFrame(body)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return err
		}
		quiet.Reset(silence)
		after, beat, err := next(state, kind, payload)
		if err != nil {
			return err
		}
		state = after
		p.advance(state)
		switch kind {
		case frameSnapshot:
			p.following.took()
			useful = time.Now()
		case frameRelayed:
			p.takeRelayed(payload)
		case frameHeartbeat:
			p.following.heard(beat)
			if !beat.Leader.IsZero() && beat.compare(positionOf(p.State())) >= 0 {
				useful = time.Now()
				p.confirm()
			}
		default:
			useful = time.Now()
		}
		if !state.Nodes[id].Voter {
			return errors.New("it is no voter any more")
		}
		if time.Since(useful) > patience {
			return errors.New("it has no leader or is behind")
		}
		if p.voter.hearsLeader() {
			return nil
		}
	}
}

// checkSource asks another voter every so often where it stands, until ctx
// ends: the source is left when it lags behind, or when its history is not
// that of the others.
func (p *Plane) checkSource(ctx context.Context, leave context.CancelCauseFunc, source mesh.NodeID) {
	var behind lag
	for pause(ctx, jitter(checkEvery)) {
		other := p.second(source)
		if other.IsZero() {
			continue
		}
		own := positionOf(p.State())
		var answer headAnswer
		if err := p.Do(ctx, other, http.MethodGet, "/v1/head?"+own.query().Encode(), nil, &answer); err != nil {
			p.logger.Debug("the source of the state could not be checked", mesh.LogNode, p.name(other), mesh.LogError, err)
			continue
		}
		if answer.Verdict == raftstore.Diverged {
			if p.dispute(other) {
				leave(errors.New("most voters have another history"))
			}
			continue
		}
		if since := behind.after(own, answer.position, time.Now()); since > patience {
			leave(fmt.Errorf("%s has been further on for %s", p.name(other), since.Round(time.Second)))
		}
	}
}

// A lag measures how long one position is behind another that moves.
type lag struct {
	mark  position // of the other, when own had reached the mark before
	since time.Time
}

// after gives for how long own has not reached what the other had.
func (l *lag) after(own, other position, now time.Time) time.Duration {
	if own.compare(l.mark) < 0 {
		return now.Sub(l.since)
	}
	l.mark, l.since = other, now
	return 0
}

// second is the voter that a follower of source asks besides: the next one in
// the order of their ids, so that each is asked by as many; zero: there is none.
func (p *Plane) second(source mesh.NodeID) mesh.NodeID {
	ids := p.voters()
	slices.SortFunc(ids, mesh.NodeID.Compare)
	i, found := slices.BinarySearchFunc(ids, source, mesh.NodeID.Compare)
	if found {
		ids = slices.Delete(ids, i, i+1)
	}
	if len(ids) == 0 {
		return mesh.NodeID{}
	}
	return ids[i%len(ids)]
}

// dispute notes that a voter has another history than this node. When a
// majority of the voters do, it is this node that is wrong: then it gives its
// history up and takes theirs as soon as it is further on, for a state never
// goes back. It reports whether that is so.
func (p *Plane) dispute(id mesh.NodeID) bool {
	state := p.State()
	voters, against := 0, 0
	p.following.mu.Lock()
	known, gaveUp := p.following.disputed[id], p.following.anew
	p.following.disputed[id] = true
	for other, n := range state.Nodes {
		if n.Voter {
			voters++
			if p.following.disputed[other] {
				against++
			}
		}
	}
	lost := 2*against > voters
	p.following.anew = gaveUp || lost
	p.following.mu.Unlock()
	if !known {
		p.logger.Warn("a voter has another history than this node", mesh.LogNode, p.name(id), mesh.LogIndex, state.Index)
	}
	if lost && !gaveUp {
		kept, err := p.cache.SetAside()
		p.logger.Error("most voters have another history than this node, which takes theirs; what it had is kept for a look at it", "path", kept, mesh.LogError, err)
	}
	return lost
}
