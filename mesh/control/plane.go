package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
	"guywire/store/audit"
	"guywire/store/cache"
)

// A Plane is the control plane of one member. Init, Join or Open makes it; Run
// serves until its context ends and closes it.
type Plane struct {
	config   Config
	id       mesh.NodeID
	logger   *slog.Logger
	files    files
	cache    *cache.Cache
	listener *transport.Listener
	control  *transport.Stream // its connections wait for Run
	dialer   *transport.Dialer
	client   *http.Client
	changes  *http.Client // for what waits for the log: few connections to a node, whose calls queue
	mux      *http.ServeMux
	server   *http.Server

	clock   clock
	leaving atomic.Bool // Leave is under way: being removed is what it wants

	life   context.Context // ends with Close
	cancel context.CancelCauseFunc
	tasks  sync.WaitGroup // all goroutines of the plane

	confirmed atomic.Int64                         // Unix time in seconds when a voter last knew of nothing newer; 0: never
	expired   atomic.Bool                          // see Expired
	banned    atomic.Pointer[map[mesh.NodeID]bool] // see Ban

	certificate atomic.Pointer[tls.Certificate]
	state       atomic.Pointer[store.State]
	updates     chan struct{} // one receipt for any number of changes
	dirty       chan struct{} // the same, for the cache

	mu      sync.Mutex    // guards changed and orders advance
	changed chan struct{} // closed at the next change of state

	joins     joins
	proposals gate
	relays    gate
	relayed   chan []byte // see Relayed
	trail     audit.Trail
	voter     voter
	following following
	streams   streams
	delivered deliveries
	gossip    gossipKeys
	stun      atomic.Pointer[[]netip.AddrPort] // see STUN
	outdated  atomic.Pointer[[]mesh.NodeID]    // see Status; nil: nobody was asked
	stale     atomic.Bool                      // others do not accept this node's certificate any more

	closeOnce sync.Once
	closeErr  error
}

// newPlane binds the control port; nothing is served before Run. The state and
// the certificate are set by the caller.
func newPlane(config Config, f files) (*Plane, error) {
	p := &Plane{
		config: config, id: config.id(), logger: config.Logger, files: f,
		mux:     http.NewServeMux(),
		updates: make(chan struct{}, 1), dirty: make(chan struct{}, 1), changed: make(chan struct{}),
		relayed: make(chan []byte, 4*maxParcels),
	}
	p.life, p.cancel = context.WithCancelCause(context.Background())
	p.state.Store(store.New())
	p.banned.Store(&map[mesh.NodeID]bool{})
	if p.clock.now = config.now; p.clock.now == nil {
		p.clock.now = time.Now
	}
	p.joins.init(p.clock.now())
	p.proposals.limiter = newLimiter(proposalsOfOne, proposalsOfAll, p.clock.now())
	p.relays.limiter = newLimiter(relaysOfOne, relaysOfAll, p.clock.now())
	p.voter.init(p.id)
	p.streams.init()
	p.following.init()
	trust := transport.Trust{
		Certificate: p.certificate.Load,
		Pins:        func() [][32]byte { return p.State().Pins() },
		Retired:     func() [][32]byte { return p.State().Retired() },
		Member: func(id mesh.NodeID) (mesh.IdentityKey, bool) {
			n, live := p.State().Nodes[id]
			return n.Identity, live
		},
		Operator: func(key mesh.IdentityKey) bool {
			_, known := operatorOf(p.State(), key)
			return known // what it may do, or not any more, is for each call to say
		},
	}
	listener, err := transport.Listen(transport.ListenConfig{
		Address: config.Listen, Also: config.Also, Trust: trust, Logger: config.Logger, Divert: config.Divert, Listener: config.Listener,
	})
	if err != nil {
		return nil, err
	}
	p.listener, p.control = listener, listener.Stream(transport.Control)
	p.dialer = &transport.Dialer{Trust: trust, Resolve: p.resolve, Network: config.Network}
	p.client, p.changes = p.newClient(idleConns, 0), p.newClient(changeConns, changeConns)
	p.server = p.newServer()
	for _, r := range p.routes() {
		p.Handle(r.pattern, r.role, r.handler)
	}
	return p, nil
}

// newClient makes a client that keeps some idle connections to a node, and
// opens so many at most; 0: no limit.
func (p *Plane) newClient(idle, most int) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialTLSContext:         p.dialHost,
			MaxIdleConnsPerHost:    idle,
			MaxConnsPerHost:        most,
			IdleConnTimeout:        idleTimeout / 2, // before the server's, so that it never closes first
			ResponseHeaderTimeout:  changeTimeout,
			MaxResponseHeaderBytes: maxHeaderBytes,
			DisableCompression:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// closeIdle closes the connections to other nodes that no call uses.
func (p *Plane) closeIdle() {
	p.client.CloseIdleConnections()
	p.changes.CloseIdleConnections()
}

// Open starts the control plane of a machine that is a member. It succeeds
// with nobody reachable: the state is the newest that the cache or, on a
// voter, the log holds. Errors: ErrNotEnrolled, ErrRemoved, or what is wrong
// with the files.
func Open(config Config) (*Plane, error) {
	f, err := openFiles(config.State)
	if err != nil {
		return nil, err
	}
	p, err := open(config, f)
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	return p, nil
}

func open(config Config, f files) (_ *Plane, err error) {
	var c certificate
	if err := f.read(certificateFile, &c); errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotEnrolled
	} else if err != nil {
		return nil, err
	}
	kept, err := cache.Open(config.State, config.Ring)
	if err != nil {
		return nil, err
	}
	p, err := newPlane(config, f)
	if err != nil {
		return nil, errors.Join(err, kept.Close())
	}
	p.cache = kept
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if err := p.present(c); err != nil {
		return nil, err
	}
	now := time.Now()
	state, stamp, err := kept.LoadState(now)
	if now.Before(stamp.Saved) {
		p.logger.Warn("the clock of this machine is behind the time when the state was saved; set it, or let NTP do so", "saved", stamp.Saved)
	}
	switch {
	case errors.Is(err, cache.ErrRemoved):
		return nil, fmt.Errorf("%w (%w)", ErrRemoved, err)
	case state != nil:
		p.advance(state)
		if !stamp.Confirmed.IsZero() {
			p.confirmed.Store(stamp.Confirmed.Unix())
		}
		if errors.Is(err, cache.ErrUnusable) {
			p.logger.Warn("the newest state in the cache is damaged, so this node starts from the one before; check its disk", mesh.LogError, err, mesh.LogIndex, state.Index)
		}
		if errors.Is(err, cache.ErrExpired) {
			p.expired.Store(true)
			p.logger.Warn("the state is too old to start from", mesh.LogError, err, "confirmed", stamp.Confirmed)
		}
	case errors.Is(err, store.ErrNewer):
		return nil, err
	case errors.Is(err, cache.ErrEmpty), errors.Is(err, cache.ErrUnusable):
		p.logger.Warn("no state in the cache; the log must have it", mesh.LogError, err)
	default:
		return nil, err
	}
	if err := p.openVoter(); err != nil {
		return nil, err
	}
	if p.State().Mesh.ID.IsZero() {
		return nil, errors.New("neither cache nor log hold the state of the mesh; restore the state directory from a backup, or leave and join again")
	}
	if _, removed := p.State().Removed[p.id]; removed {
		return nil, ErrRemoved
	}
	return p, nil
}

// present makes a certificate the one that this node shows.
func (p *Plane) present(c certificate) error {
	shown, err := transport.Certificate(c.Node, c.Authority, p.config.Ring.Signer())
	if err != nil {
		return err
	}
	p.certificate.Store(shown)
	return nil
}

// Run serves the control port and keeps the state until ctx ends, then closes
// the plane. It returns nil when ctx ended, ErrRemoved when the mesh removed
// this node, and ErrLeft after Leave.
func (p *Plane) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { p.cancel(nil) })
	defer stop()
	p.tasks.Go(func() {
		if err := p.server.Serve(apiListener{p.control}); !errors.Is(err, http.ErrServerClosed) && p.life.Err() == nil {
			p.cancel(fmt.Errorf("serve the control port: %w", err))
		}
	})
	for _, task := range []func(){p.save, p.follow, p.keepVoters, p.renew, p.beReached, p.keepClock, p.keepAudit} {
		p.tasks.Go(task)
	}
	<-p.life.Done()
	err := p.Close()
	if cause := context.Cause(p.life); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// Close stops everything and saves the cache. It is for a plane that is not
// run; Run does it at its end.
func (p *Plane) Close() error {
	p.closeOnce.Do(func() {
		p.cancel(nil)
		_ = p.server.Close() // closes the connections, too
		err := p.closeVoter()
		p.closeIdle()
		err = errors.Join(err, p.listener.Close())
		p.tasks.Wait()
		err = errors.Join(err, p.trail.Close())
		if p.cache != nil {
			err = errors.Join(err, p.cache.Close())
		}
		if errors.Is(context.Cause(p.life), ErrLeft) {
			err = errors.Join(err, p.files.clear())
		}
		p.closeErr = errors.Join(err, p.files.close())
	})
	return p.closeErr
}

// ID is this node.
func (p *Plane) ID() mesh.NodeID { return p.id }

// Addr is the bound control address.
func (p *Plane) Addr() netip.AddrPort { return p.listener.Addr() }

// Cache is the node's cache, open for as long as the plane is.
func (p *Plane) Cache() *cache.Cache { return p.cache }

// State is the newest state known here. It is immutable, never nil, and never
// goes back in the order of store.State.Newer.
func (p *Plane) State() *store.State { return p.state.Load() }

// Expired reports whether State comes from a cache that is older than the mesh
// allows, and no voter has confirmed it since: nothing may be brought up from
// it. Updates receives when that ends.
func (p *Plane) Expired() bool { return p.expired.Load() }

// confirm notes that a voter with a leader knows of nothing newer than State.
func (p *Plane) confirm() {
	p.confirmed.Store(time.Now().Unix())
	if p.expired.CompareAndSwap(true, false) {
		wake(p.updates)
	}
}

// Updates receives after State or Expired changed; several changes may be one
// receipt. There is one channel for one consumer.
func (p *Plane) Updates() <-chan struct{} { return p.updates }

// advance takes a newer state; an older one is ignored. Who lost a right by it
// loses at once what it has open.
func (p *Plane) advance(next *store.State) {
	p.mu.Lock()
	before := p.state.Load()
	if !next.Newer(before) {
		p.mu.Unlock()
		return
	}
	p.state.Store(next)
	close(p.changed)
	p.changed = make(chan struct{})
	p.mu.Unlock()

	for id := range next.Removed {
		if _, known := before.Removed[id]; !known {
			p.listener.Cut(id)
			p.dialer.Cut(id)
		}
	}
	for id, n := range before.Nodes {
		if n.Voter && !next.Nodes[id].Voter && id != p.id {
			p.listener.CutStream(transport.Raft, id)
			p.dialer.CutStream(transport.Raft, id)
		}
	}
	p.cutOperators(before, next)
	if _, removed := next.Removed[p.id]; removed {
		p.end(ErrRemoved)
	}
	wake(p.updates)
	wake(p.dirty)
}

// end stops the plane for good, with what Run returns.
func (p *Plane) end(cause error) {
	switch {
	case !errors.Is(cause, ErrRemoved) || p.life.Err() != nil:
	case p.leaving.Load():
		cause = ErrLeft
	default:
		p.logger.Error("this node was removed from the mesh", mesh.LogReason, cause)
	}
	p.cancel(cause)
}

// await waits until the state fulfils done, for catchUp at most.
func (p *Plane) await(ctx context.Context, done func(*store.State) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		if done(p.State()) {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		case <-p.life.Done():
			return false
		}
	}
}

// save keeps the cache at most saveEvery behind the state. While the mesh
// limits the age of caches, it also keeps that a voter confirmed the state.
func (p *Plane) save() {
	saved, confirmed := store.New(), p.confirmed.Load()
	write := func(every time.Duration) {
		state, now := p.State(), p.confirmed.Load()
		every = min(every, state.Mesh.CacheMaxAge/4)
		if !state.Newer(saved) && (every == 0 || time.Duration(now-confirmed)*time.Second < every) {
			return
		}
		if err := p.keep(state); err != nil {
			p.logger.Error("cache cannot be written; a restart without voters would start from an older state; check the disk", mesh.LogError, err)
			return
		}
		saved, confirmed = state, now
	}
	refresh := time.NewTicker(confirmEvery)
	defer refresh.Stop()
	for {
		select {
		case <-p.dirty:
		case <-refresh.C:
		case <-p.life.Done():
			if !errors.Is(context.Cause(p.life), ErrLeft) { // then the cache is forgotten
				write(time.Second)
			}
			return
		}
		write(confirmMax)
		if !p.sleep(saveEvery) {
			continue // the end: save once more
		}
	}
}

// keep writes the state into the cache.
func (p *Plane) keep(state *store.State) error {
	stamp := cache.Stamp{Saved: time.Now()}
	if at := p.confirmed.Load(); at != 0 {
		stamp.Confirmed = time.Unix(at, 0)
	}
	return p.cache.SaveState(state, stamp)
}

// sleep waits; false: the plane ends.
func (p *Plane) sleep(d time.Duration) bool { return pause(p.life, d) }

// pause waits; false: ctx ends.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// resolve gives the addresses of a node, underlay first.
func (p *Plane) resolve(id mesh.NodeID) []netip.AddrPort {
	n, ok := p.State().Nodes[id]
	if !ok {
		return nil
	}
	return append(append([]netip.AddrPort(nil), n.Control...), p.config.overlay(n)...)
}

// dialHost connects to the node whose id is the host of a URL.
func (p *Plane) dialHost(ctx context.Context, _, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	id, err := mesh.ParseNodeID(host)
	if err != nil {
		return nil, err
	}
	conn, err := p.dialer.Dial(ctx, id, transport.Control)
	if err != nil { // not a nil *tls.Conn in an interface
		return nil, err
	}
	return conn, nil
}

// name is what a person calls a node.
func (p *Plane) name(id mesh.NodeID) string { return nameIn(p.State(), id) }

func nameIn(s *store.State, id mesh.NodeID) string {
	if n, ok := s.Nodes[id]; ok {
		return n.Name
	}
	if t, ok := s.Removed[id]; ok {
		return t.Name
	}
	return id.String()
}

// wake leaves one receipt, if none is waiting.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
