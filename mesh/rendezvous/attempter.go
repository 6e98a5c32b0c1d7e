package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"guywire/discovery"
	"guywire/mesh"
)

// Limits.
const (
	maxStarted  = 32 // own attempts at once
	maxAnswered = 32 // attempts of others at once
	peerBurst   = 16 // offers of one peer answered at once
	peerEvery   = 2 * time.Second
	maxPeers    = 4096 // peers whose rate is remembered
	maxAccepted = 4096 // offers remembered, so that nobody can repeat them
)

// A Socket is a UDP port that WireGuard will bind later; package stun has it.
type Socket interface {
	Port() uint16
	// Ask sends a query to a STUN server, and reports whether it can be reached at all.
	Ask(q discovery.Query) bool
	// Send sends a packet of a check, Expect says how the other end's are known.
	Send(p discovery.CheckPacket, k discovery.Keys)
	Expect(k discovery.Keys)
	// Arrivals gives what arrives and is verified.
	Arrivals() <-chan discovery.Arrival
	// Sent counts what has left so far: packets, and bytes in them without headers.
	Sent() (packets, bytes int)
	// Close frees the port, and may be called twice.
	Close() error
}

// Config connects an Attempter to the node. All functions may be called from
// several goroutines at once; only Exchange may block for long.
type Config struct {
	Mesh mesh.MeshID
	Self mesh.NodeID
	// Uplink gives the local uplink of that name as it is now.
	Uplink func(name string) (mesh.Uplink, bool)
	// Open takes a free port for what leaves with mark.
	Open func(mark uint32) (Socket, error)
	// Declared gives addresses at which the ports of an uplink are reached by their
	// own numbers, as the operator says; nil: at none.
	Declared func(name string) []netip.Addr
	// PortsKept gives outside addresses at which others are known to see the ports of
	// an uplink by their own numbers; nil: none. They are tried where no server tells.
	PortsKept func(name string) []netip.Addr
	// Map has the gateway of an uplink let in what arrives for a port, and gives where;
	// false: it does not. It may take a moment. nil: no gateway is asked.
	Map func(ctx context.Context, uplink string, port uint16) (netip.AddrPort, bool)
	// Servers gives all STUN servers that may be asked; not the node itself.
	Servers func() []netip.AddrPort
	// Carriers makes carriers, and ControlOf gives the addresses at which a node is
	// known to be reached by TCP; both nil: no link is carried.
	Carriers  Carriers
	ControlOf func(peer mesh.NodeID) []netip.AddrPort
	// Surveyed gives what the last Survey of an uplink found.
	Surveyed func(name string) discovery.Uplink
	// SeenAt asks other members at which outside addresses they see an uplink of a
	// peer now, and gives those that may be believed. It may take some seconds. nil: this
	// node makes no attempts by chance ports.
	SeenAt func(ctx context.Context, peer mesh.NodeID, uplink string) ([]netip.Addr, error)
	// Exchange brings our offer to the peer and its answer back, until ctx ends.
	Exchange func(ctx context.Context, peer mesh.NodeID, offer discovery.Offer) (discovery.Offer, error)
	// Key gives the WireGuard key that a new link of ours uses.
	Key func() (mesh.Epoch, mesh.WireGuardKey)
	// Refuse holds prefixes that candidates must not be in: the overlay's own
	// pools, or a tunnel would run inside another.
	Refuse []netip.Prefix
	Logger *slog.Logger
}

// A Request asks for a link.
type Request struct {
	Peer         mesh.NodeID
	LocalUplink  mesh.Uplink
	RemoteUplink string
	Lane         uint8               // of the link
	Carrier      bool                // no UDP, but a stream
	Spread       bool                // a search by chance ports, see discovery.Spread
	Below        discovery.PathClass // only a better path will do; zero: any will
	// PathRTT is the round trip over which offers travel to the peer; zero:
	// not known. It lets both ends begin at the same moment.
	PathRTT time.Duration
}

// A Result is the end of an attempt. With Err nil, Port is free again and
// ready for WireGuard, with the peer at Endpoint.
type Result struct {
	Link      mesh.LinkID
	Attempt   discovery.AttemptID
	Initiated bool // by us
	Port      uint16
	Endpoint  netip.AddrPort      // of the peer, proven
	Class     discovery.PathClass // of Endpoint
	Carrier   discovery.AttemptID // of ClassCarrier: what the stream is called
	Local     netip.Addr          // our address on the path; invalid: not known
	Mapped    netip.AddrPort      // how the peer sees us; invalid: not known
	Epoch     mesh.Epoch          // of our key that the peer expects
	PeerEpoch mesh.Epoch
	PeerKey   mesh.WireGuardKey // to be compared with the log's before use
	RTT       time.Duration     // zero: not measured by this end
	Confirmed bool              // the peer is known to have the same result
	First     bool              // this end begins WireGuard's handshake
	Packets   int               // that this end has sent, to servers and the peer
	Bytes     int               // in these
	Took      time.Duration
	Spread    bool  // it was a search by chance ports
	Hopeless  bool  // with Err: another attempt can hardly do better while both ends stay as they are
	Err       error // why there is no link, for people; ErrYielded is no failure
}

// An Attempter runs link attempts. Its methods may be called from any goroutine.
type Attempter struct {
	cfg     Config
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	results chan Result
	running sync.WaitGroup

	ranking ranking
	budget  budget
	spreads chan *discovery.SpreadBudget // of whoever spreads now

	mu       sync.Mutex
	closed   bool
	attempts map[mesh.LinkID]*active
	started  int
	answered int
	peers    map[mesh.NodeID]time.Time // when the peer's allowance is full again
	accepted accepted
}

type active struct {
	link      mesh.LinkID
	id        discovery.AttemptID
	initiated bool
	begun     time.Time
	cancel    context.CancelCauseFunc
	replied   sync.Once
	ready     chan struct{} // closed when answer and err are set
	answer    discovery.Offer
	err       error
	gone      chan struct{} // closed when the socket is closed
}

// New makes an Attempter; Close ends it.
func New(cfg Config) *Attempter {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Attempter{
		cfg: cfg, results: make(chan Result, maxStarted+maxAnswered),
		attempts: make(map[mesh.LinkID]*active), peers: make(map[mesh.NodeID]time.Time), spreads: make(chan *discovery.SpreadBudget, 1),
	}
	a.spreads <- &discovery.SpreadBudget{}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// Results gives one Result for every Start that returned nil and every Answer
// that returned an offer. When nobody reads, attempts wait with their results
// and count as running, so no more begin than the limits allow. It is never
// closed.
func (a *Attempter) Results() <-chan Result { return a.results }

// Close cancels all attempts and waits until their sockets are closed. Results
// that nobody has read by then are lost.
func (a *Attempter) Close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.cancel()
	a.running.Wait()
}

// Start begins an attempt and returns at once: ErrRunning, ErrBusy or
// ErrClosed when it does not. The attempt ends early when ctx does.
func (a *Attempter) Start(ctx context.Context, req Request) error {
	if req.Peer == a.cfg.Self || req.Peer.IsZero() {
		return fmt.Errorf("link attempt: %s is no peer", req.Peer)
	}
	att := newAttempt(mesh.LinkID{Peer: req.Peer, Local: req.LocalUplink.Name, Remote: req.RemoteUplink, Lane: req.Lane}, newAttemptID(), true)
	ctx, err := a.begin(ctx, att)
	if err != nil {
		return err
	}
	go func() {
		defer a.running.Done()
		a.finish(ctx, att, a.run(ctx, att, req.LocalUplink, req, nil))
	}()
	return nil
}

// Cancel ends the attempt for a link, if one runs; its Result has the cause.
func (a *Attempter) Cancel(link mesh.LinkID, cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if att := a.attempts[link]; att != nil {
		att.cancel(cause)
	}
}

// Answer replies to a peer's offer with our own and goes on with the checks in
// the background. It blocks for as long as gathering takes, at most a few
// seconds. from is the authenticated sender. When both ends began at once the
// attempt of the lower node id goes on: the other one gets ErrYielded. An offer
// whose attempt is over is not answered again: ErrReplayed.
func (a *Attempter) Answer(ctx context.Context, from mesh.NodeID, offer discovery.Offer) (discovery.Offer, error) {
	if from != offer.From {
		return discovery.Offer{}, fmt.Errorf("offer of %s sent by %s: %w", offer.From, from, discovery.ErrForeign)
	}
	if err := offer.Validate(time.Now(), a.cfg.Mesh, a.cfg.Self); err != nil {
		return discovery.Offer{}, err
	}
	uplink, ok := a.cfg.Uplink(offer.ToUplink)
	if !ok || !uplink.Up {
		return discovery.Offer{}, fmt.Errorf("%w: %q of node %s", ErrUplink, offer.ToUplink, a.cfg.Self)
	}
	att := newAttempt(mesh.LinkID{Peer: from, Local: offer.ToUplink, Remote: offer.FromUplink, Lane: offer.Lane}, offer.Attempt, false)
	for {
		// The attempt outlives the request that brought the offer.
		attemptCtx, err := a.begin(a.ctx, att)
		var other *rival
		switch {
		case errors.As(err, &other):
			if err := a.settle(ctx, other.active, att); err != nil {
				return discovery.Offer{}, err
			}
			if !other.initiated && other.id == att.id {
				return other.answer, nil
			}
			continue // the other one is gone
		case err != nil:
			return discovery.Offer{}, err
		}
		go func() {
			defer a.running.Done()
			r := a.run(attemptCtx, att, uplink, Request{Spread: offer.Spread}, &offer)
			att.reply(discovery.Offer{}, r.Err)
			a.finish(attemptCtx, att, r)
		}()
		select {
		case <-att.ready:
			return att.answer, att.err
		case <-ctx.Done():
			att.cancel(ctx.Err())
			return discovery.Offer{}, fmt.Errorf("answer offer of %s: %w", from, ctx.Err())
		}
	}
}

// reply answers the peer's offer, once.
func (a *active) reply(answer discovery.Offer, err error) {
	a.replied.Do(func() {
		a.answer, a.err = answer, err
		close(a.ready)
	})
}

// settle decides between an attempt of ours and a peer's offer for the same
// link. A nil error means that other has the answer, if it is the same attempt
// (the peer asks again), or else that other is gone.
func (a *Attempter) settle(ctx context.Context, other, att *active) error {
	if !other.initiated && other.id == att.id {
		select {
		case <-other.ready:
			return other.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if other.initiated && a.cfg.Self.Compare(att.link.Peer) < 0 {
		return ErrYielded
	}
	other.cancel(ErrYielded)
	select {
	case <-other.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rival is the error of begin that names the attempt that is in the way.
type rival struct{ *active }

func (r *rival) Error() string { return ErrRunning.Error() }
func (r *rival) Unwrap() error { return ErrRunning }

func newAttempt(link mesh.LinkID, id discovery.AttemptID, initiated bool) *active {
	return &active{link: link, id: id, initiated: initiated, begun: time.Now(), ready: make(chan struct{}), gone: make(chan struct{})}
}

// begin registers an attempt within the limits and gives its context.
func (a *Attempter) begin(parent context.Context, att *active) (context.Context, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch other := a.attempts[att.link]; {
	case a.closed:
		return nil, ErrClosed
	case !att.initiated && a.accepted.has(att.id) && (other == nil || other.id != att.id):
		return nil, ErrReplayed
	case other != nil:
		return nil, &rival{other}
	case att.initiated && a.started >= maxStarted, !att.initiated && a.answered >= maxAnswered:
		return nil, ErrBusy
	case !att.initiated && !a.allow(att.link.Peer, att.begun):
		return nil, fmt.Errorf("%w: node %s asks too often", ErrBusy, att.link.Peer)
	}
	if att.initiated {
		a.started++
	} else {
		a.answered++
		a.accepted.add(att.id, att.begun)
	}
	a.attempts[att.link] = att
	a.running.Add(1)

	ctx, cancel := context.WithCancelCause(parent)
	att.cancel = cancel
	stop := context.AfterFunc(a.ctx, func() { cancel(ErrClosed) })
	context.AfterFunc(ctx, func() { stop() })
	return ctx, nil
}

// allow takes one offer from the peer's allowance: the moment at which it is
// full again moves on by peerEvery (generic cell rate algorithm).
func (a *Attempter) allow(peer mesh.NodeID, now time.Time) bool {
	if len(a.peers) >= maxPeers {
		clear(a.peers) // members only come here, so this is no attack but a very large mesh
	}
	full := a.peers[peer]
	if full.Before(now) {
		full = now
	}
	full = full.Add(peerEvery)
	if full.Sub(now) > peerBurst*peerEvery {
		return false
	}
	a.peers[peer] = full
	return true
}

// accepted remembers offers for as long as they are valid, in two generations: a
// flood of them costs bounded memory and makes it forget earlier.
type accepted struct {
	young, old map[discovery.AttemptID]bool
	since      time.Time
}

func (a *accepted) has(id discovery.AttemptID) bool { return a.young[id] || a.old[id] }

func (a *accepted) add(id discovery.AttemptID, now time.Time) {
	if a.young == nil || len(a.young) >= maxAccepted/2 || now.Sub(a.since) > discovery.MaxOfferUse {
		a.old, a.young, a.since = a.young, make(map[discovery.AttemptID]bool), now
	}
	a.young[id] = true
}

// finish reports the result. The socket is closed already.
func (a *Attempter) finish(ctx context.Context, att *active, r Result) {
	r.Link, r.Attempt, r.Initiated, r.Took = att.link, att.id, att.initiated, time.Since(att.begun)
	if r.Err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, ErrYielded) || errors.Is(cause, ErrClosed) {
			r.Err = cause
		}
		a.cfg.Logger.Debug("link attempt ended without a link", mesh.LogLink, att.link, mesh.LogReason, r.Err)
	}
	a.mu.Lock()
	delete(a.attempts, att.link) // from here on the link may be tried again
	a.mu.Unlock()
	close(att.gone)
	refused := false // an offer that was refused in Answer has no result
	select {
	case <-att.ready:
		refused = att.err != nil
	default:
	}
	if !refused {
		select {
		case a.results <- r:
		case <-a.ctx.Done():
		}
	}
	a.mu.Lock()
	if att.initiated {
		a.started--
	} else {
		a.answered--
	}
	a.mu.Unlock()
	att.cancel(nil)
}
