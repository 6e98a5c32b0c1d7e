package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/control"
	"guywire/mesh/rendezvous"
)

// offerBody carries an offer together with what its sender is, so that the
// other end knows the uplinks it speaks of.
type offerBody struct {
	Offer []byte           `json:"offer"` // discovery.Offer, signed
	Facts discovery.Signed `json:"facts"`
}

// codeYielded tells the other end that this end's own attempt goes first.
const codeYielded = "yielded"

// A mail is how an offer travels: by a direct call, and over voters.
type mail struct {
	// call brings an offer to the peer and its answer back; connected is called
	// when there is a connection.
	call func(ctx context.Context, connected func()) (discovery.Offer, error)
	// relay sends it over voters; the answer comes into answers.
	relay   func(ctx context.Context) error
	answers <-chan discovery.Offer
}

// exchange gets the peer's answer by whichever way is there: directly, and beside
// that over voters as soon as there is doubt about the direct one (as RFC 8305 does
// with addresses). Where a network has just changed, there may be a direct way a
// moment later, and the stream by which voters send the answer may be dead: a call
// that fails is made again. The peer sees one offer, however often it comes.
func (m mail) exchange(ctx context.Context) (discovery.Offer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		answer discovery.Offer
		err    error
	}
	called, relayed, connected := make(chan result, 1), make(chan error, 1), make(chan struct{}, 1)
	call := func() {
		answer, err := m.call(ctx, func() {
			select {
			case connected <- struct{}{}:
			default:
			}
		})
		called <- result{answer, err}
	}
	go call()
	calling := true
	var again <-chan time.Time
	doubt := time.NewTimer(connectPatience)
	defer doubt.Stop()
	relaying := false
	relay := func() {
		if !relaying {
			relaying = true
			go func() { relayed <- m.relay(ctx) }()
		}
	}
	var notCalled, notRelayed error
	for calling || notRelayed == nil {
		select {
		case r := <-called:
			_, refused := errors.AsType[*control.Error](r.err)
			if r.err == nil || errors.Is(r.err, rendezvous.ErrYielded) || refused && !relaying {
				return r.answer, r.err
			}
			calling, notCalled = false, r.err
			relay()
			if !refused {
				again = time.After(callAgain)
			}
		case <-again:
			calling = true
			go call()
		case <-connected:
			doubt.Reset(answerPatience)
		case <-doubt.C:
			relay()
		case notRelayed = <-relayed:
			if notRelayed == nil {
				relayed = nil // and the answer will come, perhaps
			}
		case answer := <-m.answers:
			return answer, nil
		case <-ctx.Done():
			return discovery.Offer{}, errors.Join(context.Cause(ctx), notCalled)
		}
	}
	return discovery.Offer{}, fmt.Errorf("%w; by a voter: %w", notCalled, notRelayed)
}

// exchange brings an offer to the peer, over whatever path there is, and its
// answer back.
func (m *member) exchange(ctx context.Context, peer mesh.NodeID, offer discovery.Offer) (discovery.Offer, error) {
	body, err := m.envelope(offer)
	if err != nil {
		return discovery.Offer{}, err
	}
	answers := m.awaited.await(offer.Attempt, peer)
	defer m.awaited.forget(offer.Attempt)
	return mail{
		call: func(ctx context.Context, connected func()) (discovery.Offer, error) {
			ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected() }})
			var reply offerBody
			err := m.plane.Do(ctx, peer, http.MethodPost, "/v1/link/offer", body, &reply)
			if refused, ok := errors.AsType[*control.Error](err); ok && refused.Code == codeYielded {
				return discovery.Offer{}, rendezvous.ErrYielded
			}
			if err != nil {
				return discovery.Offer{}, err
			}
			m.heard(reply.Facts)
			return discovery.OpenOffer(reply.Offer, m.identityOf)
		},
		relay:   func(ctx context.Context) error { return m.relay(ctx, peer, body) },
		answers: answers,
	}.exchange(ctx)
}

// envelope is an offer of this node as it travels.
func (m *member) envelope(offer discovery.Offer) (offerBody, error) {
	b, err := offer.Sign(m.agent.ring.Sign)
	if err != nil {
		return offerBody{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return offerBody{Offer: b, Facts: m.own}, nil
}

func (m *member) relay(ctx context.Context, peer mesh.NodeID, body offerBody) error {
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode offer: %w", err)
	}
	return m.plane.Relay(ctx, peer, b)
}

// identityOf gives the key by which the log knows a member.
func (m *member) identityOf(id mesh.NodeID) (mesh.IdentityKey, bool) {
	n, ok := m.standing.Load().state.Nodes[id]
	return n.Identity, ok
}

// serveOffer answers another node's offer.
func (m *member) serveOffer(w http.ResponseWriter, r *http.Request) {
	var body offerBody
	if err := control.Decode(r, &body); err != nil {
		control.Fail(w, err)
		return
	}
	m.heard(body.Facts)
	offer, err := discovery.OpenOffer(body.Offer, m.identityOf)
	if err == nil {
		offer, err = m.attempts.Answer(r.Context(), control.Caller(r.Context()), offer)
	}
	if errors.Is(err, rendezvous.ErrYielded) {
		err = &control.Error{Status: http.StatusConflict, Code: codeYielded, Message: err.Error()}
	}
	if errors.Is(err, rendezvous.ErrBusy) {
		err = &control.Error{Status: http.StatusTooManyRequests, Code: control.CodeBusy, Message: err.Error()}
	}
	if err != nil {
		control.Fail(w, err)
		return
	}
	reply, err := m.envelope(offer)
	if err != nil {
		control.Fail(w, err)
		return
	}
	control.Reply(w, reply)
}

// readRelayed reads what a voter passed on: it may be anybody's, but the offer in it
// is its sender's.
func readRelayed(message []byte, identity func(mesh.NodeID) (mesh.IdentityKey, bool)) (offerBody, discovery.Offer, error) {
	var body offerBody
	if err := json.Unmarshal(message, &body); err != nil {
		return offerBody{}, discovery.Offer{}, fmt.Errorf("relayed offer: %w: %w", discovery.ErrMalformed, err)
	}
	offer, err := discovery.OpenOffer(body.Offer, identity)
	return body, offer, err
}

// takeRelayed takes the offers and answers that voters pass on.
func (m *member) takeRelayed(ctx context.Context) error {
	var answering sync.WaitGroup
	defer answering.Wait()
	busy := make(chan struct{}, maxRelayed)
	for {
		var message []byte
		select {
		case message = <-m.plane.Relayed():
		case <-ctx.Done():
			return nil
		}
		body, offer, err := readRelayed(message, m.identityOf)
		if err != nil {
			m.log.Debug("relayed offer refused", mesh.LogError, err)
			continue
		}
		m.heard(body.Facts)
		if m.awaited.arrived(offer) {
			continue
		}
		select {
		case busy <- struct{}{}:
			answering.Go(func() {
				defer func() { <-busy }()
				m.answerRelayed(ctx, offer)
			})
		default:
			m.log.Debug("relayed offer refused: too many at once", mesh.LogNode, nodeName(m.plane.State(), offer.From))
		}
	}
}

// answerRelayed answers the way that the offer came.
func (m *member) answerRelayed(ctx context.Context, offer discovery.Offer) {
	answer, err := m.attempts.Answer(ctx, offer.From, offer)
	var body offerBody
	if err == nil {
		body, err = m.envelope(answer)
	}
	if err == nil {
		err = m.relay(ctx, offer.From, body)
	}
	if err != nil {
		m.log.Debug("relayed offer not answered", mesh.LogNode, nodeName(m.plane.State(), offer.From), mesh.LogError, err)
	}
}

// awaited are the answers that this node's offers wait for. The zero value is ready.
type awaited struct {
	mu   sync.Mutex
	list map[discovery.AttemptID]awaitedAnswer
}

type awaitedAnswer struct {
	peer   mesh.NodeID
	answer chan discovery.Offer
}

func (a *awaited) await(id discovery.AttemptID, peer mesh.NodeID) <-chan discovery.Offer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.list == nil {
		a.list = map[discovery.AttemptID]awaitedAnswer{}
	}
	w := awaitedAnswer{peer, make(chan discovery.Offer, 1)}
	a.list[id] = w
	return w.answer
}

func (a *awaited) forget(id discovery.AttemptID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.list, id)
}

// arrived reports whether an offer is the answer to one of ours, and hands it over.
func (a *awaited) arrived(offer discovery.Offer) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	w, ok := a.list[offer.Attempt]
	if !ok || w.peer != offer.From {
		return false
	}
	select {
	case w.answer <- offer:
	default: // it came twice
	}
	return true
}
