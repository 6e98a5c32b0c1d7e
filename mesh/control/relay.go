package control

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"guywire/mesh"
	"guywire/store"
)

// A relayRequest asks a voter to pass on to a member what it could not be told
// directly: there is no path to it yet. The voter need not be trusted with it.
type relayRequest struct {
	To    mesh.NodeID     `json:"to"`
	Offer json.RawMessage `json:"offer"`
	// Forwarded: another voter, which has no stream to the member, asks.
	Forwarded bool `json:"forwarded,omitempty"`
}

// Relay has a voter pass a JSON value on to a member, where Relayed gives it. nil
// means that it is on its way, not that it arrived: each member follows a voter, or
// is one. It takes a few seconds at most.
func (p *Plane) Relay(ctx context.Context, to mesh.NodeID, message []byte) error {
	request := relayRequest{To: to, Offer: message}
	if p.voter.store() != nil {
		return p.relay(ctx, request)
	}
	for _, id := range p.voters() {
		err := p.doSoon(ctx, id, request)
		if _, answered := errors.AsType[*Error](err); err == nil || answered && !hasCode(err, CodeNotVoter) {
			return err
		}
		p.logger.Debug("not relayed", mesh.LogNode, p.name(id), mesh.LogError, err)
	}
	return ErrNoVoter
}

// Relayed gives what other members had voters pass on to this one. Anybody could
// have written it. What is not read soon is lost.
func (p *Plane) Relayed() <-chan []byte { return p.relayed }

func (p *Plane) doSoon(ctx context.Context, voter mesh.NodeID, request relayRequest) error {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	return p.Do(ctx, voter, http.MethodPost, "/v1/link/relay", request, nil)
}

// serveRelay passes an offer on.
func (p *Plane) serveRelay(w http.ResponseWriter, r *http.Request) {
	var request relayRequest
	err := Decode(r, &request)
	caller := Caller(r.Context())
	switch {
	case err != nil:
	case len(request.Offer) == 0 || len(request.Offer) > maxRelayed:
		err = newError(http.StatusBadRequest, CodeMalformed, "%d bytes to pass on, not 1 to %d", len(request.Offer), maxRelayed)
	case p.voter.store() == nil:
		err = p.notVoter()
	case request.Forwarded && !p.State().Nodes[caller].Voter:
		err = newError(http.StatusForbidden, CodeNotVoter, "%s is not a voter", p.name(caller))
	case !request.Forwarded && !p.relays.allow(caller.String(), p.clock.now()):
		err = newError(http.StatusTooManyRequests, CodeBusy, "%s has too much to pass on; try again later", p.name(caller))
	default:
		err = p.relay(r.Context(), request)
	}
	if err != nil {
		Fail(w, err)
		return
	}
	Reply(w, struct{}{})
}

// relay passes on what is for a member: here, over the stream by which the member
// follows this voter, or by the voter that it follows.
func (p *Plane) relay(ctx context.Context, request relayRequest) error {
	to, known := p.State().Nodes[request.To]
	switch box := p.streams.mailbox(request.To); {
	case !known || p.isBanned(request.To):
		return newError(http.StatusNotFound, store.CodeNotFound, "%s is no member", request.To)
	case request.To == p.id:
		p.takeRelayed(request.Offer)
		return nil
	case box != nil && !box.put(time.Now(), request.Offer):
		return newError(http.StatusServiceUnavailable, CodeBusy, "too much waits for %s; try again later", to.Name)
	case box != nil:
		return nil
	case request.Forwarded:
		return p.unreached(to)
	}
	request.Forwarded = true
	voters := p.voters()
	if to.Voter {
		voters = []mesh.NodeID{request.To}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	passed := make(chan error, len(voters))
	for _, id := range voters {
		go func() { passed <- p.doSoon(ctx, id, request) }() // ends with ctx
	}
	for range voters {
		if <-passed == nil {
			return nil
		}
	}
	return p.unreached(to)
}

func (p *Plane) unreached(n store.Node) *Error {
	return newError(http.StatusNotFound, CodeUnreached, "%s follows no voter now", n.Name)
}

// takeRelayed takes what a voter passed on to this node.
func (p *Plane) takeRelayed(message []byte) {
	select {
	case p.relayed <- message:
	default:
		p.logger.Debug("a relayed offer is lost: too many at once")
	}
}

// A mailbox holds what waits for one stream: little, and not for long.
type mailbox struct {
	ready chan struct{} // one receipt for any number of parcels

	mu      sync.Mutex
	parcels []parcel
}

type parcel struct {
	message []byte
	until   time.Time
}

func newMailbox() *mailbox { return &mailbox{ready: make(chan struct{}, 1)} }

// put reports whether there is room for a message.
func (b *mailbox) put(now time.Time, message []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget(now)
	if len(b.parcels) >= maxParcels {
		return false
	}
	b.parcels = append(b.parcels, parcel{message, now.Add(parcelLife)})
	wake(b.ready)
	return true
}

// take empties the box, as frames of the stream.
func (b *mailbox) take(now time.Time) (frames [][]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget(now)
	for _, m := range b.parcels {
		frames = append(frames, appendFrame(nil, frameRelayed, m.message))
	}
	b.parcels = nil
	return frames
}

// forget drops what is too old; the oldest come first.
func (b *mailbox) forget(now time.Time) {
	for len(b.parcels) > 0 && !now.Before(b.parcels[0].until) {
		b.parcels = b.parcels[1:]
	}
}

// attach gives a new stream of a follower its mailbox; an older stream of it gets
// no more.
func (s *streams) attach(id mesh.NodeID) *mailbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := newMailbox()
	s.mail[id] = b
	return b
}

func (s *streams) detach(id mesh.NodeID, b *mailbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mail[id] == b {
		delete(s.mail, id)
	}
}

// mailbox is that of a follower of this voter; nil: it has none.
func (s *streams) mailbox(id mesh.NodeID) *mailbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mail[id]
}
