package control

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"guywire/mesh"
)

// following is what this node knows about the stream that it follows.
type following struct {
	mu     sync.Mutex
	voter  mesh.NodeID // zero: none
	newest uint64      // the highest index that a voter reported
	leader mesh.NodeID // as the voter last said
}

func (f *following) source() mesh.NodeID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.voter
}

func (f *following) set(voter mesh.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.voter = voter
	if voter.IsZero() {
		f.leader = mesh.NodeID{}
	}
}

func (f *following) heard(beat pulse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.newest, f.leader = max(f.newest, beat.Index), beat.Leader
}

// follow keeps a stream from any voter, and takes another one when it ends.
// A voter that hears from a leader needs none: its log is the stream. One that
// hears from nobody may have been replaced while it was away, and finds out
// like everyone else.
func (p *Plane) follow() {
	pause := followMin
	for p.life.Err() == nil {
		if p.voter.hearsLeader() {
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
			if hasCode(err, CodeExpired) {
				p.stale.Store(true)
			}
			p.logger.Debug("follow stream ended", mesh.LogNode, p.name(id), mesh.LogError, err)
			if lasted = time.Since(began) > silence; lasted || p.voter.hearsLeader() {
				break
			}
		}
		if lasted {
			pause = followMin
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
	ctx, cancel := context.WithCancelCause(p.life)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(fmt.Errorf("%s is silent", p.name(id))) })
	defer quiet.Stop()
	url := fmt.Sprintf("https://%s/v1/follow?after=%d", id, p.State().Index)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	answer, err := p.client.Do(r)
	if err != nil {
		return fmt.Errorf("follow %s: %w", p.name(id), err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("follow %s: %w", p.name(id), readAnswer(answer, nil))
	}
	p.following.set(id)
	p.logger.Debug("follows", mesh.LogNode, p.name(id), mesh.LogIndex, p.State().Index)

	body := bufio.NewReader(answer.Body)
	state := p.State()
	useful := time.Now() // when the voter last had a leader and was not behind us
	for {
		kind, payload, err := readFrame(body)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return fmt.Errorf("follow %s: %w", p.name(id), err)
		}
		quiet.Reset(silence)
		after, beat, err := next(state, kind, payload)
		if err != nil {
			return fmt.Errorf("follow %s: %w", p.name(id), err)
		}
		state = after
		p.advance(state)
		if kind != frameHeartbeat {
			useful = time.Now()
			continue
		}
		p.following.heard(beat)
		if !beat.Leader.IsZero() && beat.Index >= p.State().Index {
			useful = time.Now()
		}
		if time.Since(useful) > patience {
			return fmt.Errorf("follow %s: it has no leader or is behind", p.name(id))
		}
		if p.voter.hearsLeader() {
			return nil
		}
	}
}
