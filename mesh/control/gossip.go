package control

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"guywire/mesh"
	"guywire/mesh/keyring"
	"guywire/store"
	"guywire/store/raftstore"
)

// Times of a change of the gossip key.
const (
	gossipAge = 30 * 24 * time.Hour // after which the current one is replaced
	// A key is used gossipStep after it was added at the earliest, when everybody
	// who is there knows it; nobody is waited for longer than gossipPatience.
	gossipStep     = time.Minute
	gossipPatience = 10 * time.Minute
	gossipOverlap  = 10 * time.Minute // for how long one that is used no more is accepted
)

// Shared is what members of the mesh share, as far as this node knows it.
type Shared struct {
	// Key is what gossip is encrypted with, 32 bytes. nil: it is not, if Clear, or
	// this node has no key.
	Key   []byte
	Keys  [][]byte // that gossip is accepted with, Key first
	Clear bool     // gossip is accepted that is not encrypted
	STUN  [][]byte // that STUN requests are authenticated with; the first is the one to use
}

// A secret is what a gossip key of the log stands for.
type secret []byte

func newSecret() secret {
	s := make(secret, store.GossipSize)
	rand.Read(s) // never fails since Go 1.24
	return s
}

// derive gives a key for one purpose (HKDF-Expand, RFC 5869): who learns it
// learns no other.
func (s secret) derive(purpose string) []byte {
	key, err := hkdf.Expand(sha256.New, s, "guywire "+purpose+" v1", store.GossipSize)
	if err != nil {
		panic(err) // only for keys of more than 8 KiB
	}
	return key
}

func (s secret) check() store.Digest { return store.Digest(s.derive("check")) }

// Format implements fmt.Formatter for every verb without the secret.
func (s secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, "secret") }

// seal makes a node's copy of a gossip key.
func seal(id mesh.MeshID, epoch mesh.Epoch, s secret, node mesh.NodeID, to store.Key) (store.Copy, error) {
	sealed, err := keyring.Seal(to.Public, store.GossipInfo(id, epoch, node), s)
	return store.Copy{Epoch: epoch, Key: to.Epoch, Sealed: sealed}, err
}

// gossipKeys are the copies that this node has opened.
type gossipKeys struct {
	mu     sync.Mutex
	opened map[string]secret // by what is sealed; nil: it cannot be opened

	newest atomic.Pointer[sharedAt]
}

type sharedAt struct {
	state  *store.State
	shared Shared
}

// Shared gives what State says that members share.
func (p *Plane) Shared() Shared {
	state := p.State()
	if known := p.gossip.newest.Load(); known != nil && known.state == state {
		return known.shared
	}
	shared := share(state, p.openCopies(state))
	p.gossip.newest.Store(&sharedAt{state, shared})
	return shared
}

// share tells the keys of a state by the secrets that a node has.
func share(state *store.State, secrets map[mesh.Epoch]secret) (out Shared) {
	order := []store.GossipState{store.GossipCurrent, store.GossipOld, store.GossipNext}
	out.Clear = state.Mesh.Secret != nil
	for _, want := range order {
		if want == store.GossipNext && out.Clear {
			out.STUN = append(out.STUN, state.Mesh.Secret)
		}
		for _, k := range slices.Backward(state.Mesh.Gossip) {
			s := secrets[k.Epoch]
			if k.State != want || s == nil {
				continue
			}
			key := s.derive("gossip")
			out.Keys, out.STUN = append(out.Keys, key), append(out.STUN, s.derive("stun"))
			// Who does not know the current one says it as others may still hear it.
			if out.Key == nil && (want == store.GossipCurrent || want == store.GossipOld && !out.Clear) {
				out.Key = key
			}
		}
	}
	return out
}

// openCopies gives the secrets of the gossip keys of a state that are sealed to
// this node.
func (p *Plane) openCopies(state *store.State) map[mesh.Epoch]secret {
	p.gossip.mu.Lock()
	defer p.gossip.mu.Unlock()
	before := p.gossip.opened
	p.gossip.opened = map[string]secret{}
	out := map[mesh.Epoch]secret{}
	for _, c := range state.Nodes[p.id].Copies {
		s, known := before[string(c.Sealed)]
		if !known {
			s = p.openCopy(state, c)
		}
		p.gossip.opened[string(c.Sealed)] = s
		if s != nil {
			out[c.Epoch] = s
		}
	}
	return out
}

// openCopy opens a copy, or says why it cannot.
func (p *Plane) openCopy(state *store.State, c store.Copy) secret {
	s, err := p.config.Ring.Unseal(c.Key, store.GossipInfo(state.Mesh.ID, c.Epoch, p.id), c.Sealed)
	i := slices.IndexFunc(state.Mesh.Gossip, func(k store.GossipKey) bool { return k.Epoch == c.Epoch })
	if err == nil {
		check := secret(s).check()
		if i < 0 || !hmac.Equal(check[:], state.Mesh.Gossip[i].Check[:]) {
			err = errors.New("it is not the key that the log means")
		}
	}
	if err != nil {
		p.logger.Warn("this node's copy of a gossip key is not usable", "epoch", c.Epoch, mesh.LogError, err)
		return nil
	}
	return s
}

// copiesFor seals the gossip keys for a node that is about to be admitted. What
// this voter cannot seal, the leader does.
func (p *Plane) copiesFor(state *store.State, id mesh.NodeID, key store.Key) (copies []store.Copy) {
	for epoch, s := range p.openCopies(state) {
		c, err := seal(state.Mesh.ID, epoch, s, id, key)
		if err != nil {
			p.logger.Warn("a gossip key could not be sealed", mesh.LogNode, id, mesh.LogError, err)
			continue
		}
		copies = append(copies, c)
	}
	return copies
}

// tendGossip is the leader's next step towards the gossip key that the mesh
// should have: everybody gets copies, for its newest WireGuard key; then the next
// key is used; then old ones are forgotten.
func (p *Plane) tendGossip(ctx context.Context, log *raftstore.Store) error {
	state := log.State()
	if state.Mesh.Version < store.GossipVersion {
		return nil
	}
	secrets, now := p.openCopies(state), p.clock.now()
	step := func(c store.RotateGossip) error {
		err := p.propagate(ctx, log, store.Command{RotateGossip: &c})
		if err == nil {
			if c.Step != store.GossipSeal {
				p.logger.Info("the gossip key changes", "step", c.Step, "epoch", c.Epoch)
			}
			wake(p.voter.kick) // there may be a next step
		}
		return err
	}
	if copies := p.lacking(state, secrets); len(copies) > 0 {
		return step(store.RotateGossip{Step: store.GossipSeal, Copies: copies})
	}
	if next, underWay := state.GossipKey(store.GossipNext); underWay {
		if secrets[next.Epoch] == nil { // nobody could give it to who comes
			return step(store.RotateGossip{Step: store.GossipRetire, Epoch: next.Epoch})
		}
		if p.known(ctx, log, state, next, now) {
			return step(store.RotateGossip{Step: store.GossipUse, Epoch: next.Epoch})
		}
		return nil
	}
	current, has := state.GossipKey(store.GossipCurrent)
	age := now.Sub(current.From)
	if !has || state.Mesh.GossipDue || secrets[current.Epoch] == nil || age > gossipAge || age < -maxClockOffset {
		if len(state.Mesh.Gossip) >= store.MaxGossipKeys {
			return step(store.RotateGossip{Step: store.GossipRetire, Epoch: state.Mesh.Gossip[0].Epoch})
		}
		return p.addGossip(state, step)
	}
	if age < gossipOverlap {
		return nil
	}
	if state.Mesh.Secret != nil {
		return step(store.RotateGossip{Step: store.GossipRetire})
	}
	if oldest := state.Mesh.Gossip[0]; oldest.State == store.GossipOld {
		return step(store.RotateGossip{Step: store.GossipRetire, Epoch: oldest.Epoch})
	}
	return nil
}

// addGossip makes the next key, with copies for as many as one command holds.
func (p *Plane) addGossip(state *store.State, step func(store.RotateGossip) error) error {
	add := store.RotateGossip{Step: store.GossipAdd, Epoch: state.Mesh.GossipEpoch + 1}
	fresh := newSecret()
	after := *state
	after.Mesh.Gossip = []store.GossipKey{{Epoch: add.Epoch}}
	add.Check, add.Copies = fresh.check(), p.lacking(&after, map[mesh.Epoch]secret{add.Epoch: fresh})
	return step(add)
}

// lacking seals copies for nodes that lack some of the secrets: for as many as
// one command holds.
func (p *Plane) lacking(state *store.State, secrets map[mesh.Epoch]secret) map[mesh.NodeID][]store.Copy {
	all := map[mesh.NodeID][]store.Copy{}
	for id, n := range state.Nodes {
		var copies []store.Copy
		for _, epoch := range state.Lacks(n) {
			s := secrets[epoch]
			if s == nil {
				continue
			}
			c, err := seal(state.Mesh.ID, epoch, s, id, n.Keys[len(n.Keys)-1])
			if err != nil {
				p.logger.Warn("a gossip key could not be sealed", mesh.LogNode, n.Name, mesh.LogError, err)
				continue
			}
			copies = append(copies, c)
		}
		if len(copies) > 0 {
			all[id] = copies
		}
		if len(all) >= store.SealedAtOnce {
			break
		}
	}
	return all
}

// known reports whether all who are there know the next key, or it has waited for
// them for long enough. Who is away learns it when it follows again.
func (p *Plane) known(ctx context.Context, log *raftstore.Store, state *store.State, next store.GossipKey, now time.Time) bool {
	waited := now.Sub(next.From)
	switch {
	case waited > gossipPatience, waited < -maxClockOffset: // by a clock that was wrong
		return true
	case waited < gossipStep:
		return false
	}
	at := position{Generation: state.Mesh.Generation, Index: next.Index}
	behind := p.delivered.behind(at)
	st := log.Status()
	var mu sync.Mutex // guards behind
	var all sync.WaitGroup
	for _, id := range slices.Concat(st.Voters, st.Learners) {
		if id == p.id {
			continue
		}
		all.Go(func() {
			var answer followersAnswer
			err := p.Do(ctx, id, http.MethodGet, "/v1/followers?"+at.query().Encode(), nil, &answer)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || answer.compare(at) < 0 {
				behind = append(behind, id)
			}
			behind = append(behind, answer.Behind...)
		})
	}
	all.Wait()
	if len(behind) > 0 {
		p.logger.Debug("the next gossip key is not known everywhere", "behind", len(behind), mesh.LogNode, p.name(behind[0]))
	}
	return len(behind) == 0
}

// A followersAnswer says where a voter is, and which of its followers were not
// given all up to a position.
type followersAnswer struct {
	position
	Behind []mesh.NodeID `json:"behind,omitempty"`
}

func (p *Plane) serveFollowers(w http.ResponseWriter, r *http.Request) {
	at, err := parsePosition(r.URL.Query())
	if err != nil {
		Fail(w, err)
		return
	}
	Reply(w, followersAnswer{positionOf(p.State()), p.delivered.behind(at)})
}

// deliveries are how far this voter's followers were given the log.
type deliveries struct {
	mu sync.Mutex
	at map[*http.Request]position // by the call that is their stream
}

func (d *deliveries) note(r *http.Request, at position) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at == nil {
		d.at = map[*http.Request]position{}
	}
	d.at[r] = at
}

func (d *deliveries) forget(r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.at, r)
}

// behind are the followers that were not given all up to a position.
func (d *deliveries) behind(at position) (ids []mesh.NodeID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for r, given := range d.at {
		if given.compare(at) < 0 {
			ids = append(ids, Caller(r.Context()))
		}
	}
	return ids
}
