package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"guywire/discovery"
	"guywire/mesh"
)

// Limits and times.
const (
	maxEvents     = 256      // waiting for the owner; more are dropped
	maxStatements = 2 * 2048 // kept and passed on: of each node its facts, and a ban
	// maxAnnouncements of at most maxAnnouncement bytes are taken at once.
	maxAnnouncements = 16384
	maxAnnouncement  = 4 << 10
	// retransmits × (1 + log10(members + 1)) is how often each passes a statement
	// on: memberlist's measure, without the 1, leaves some out in a small mesh.
	retransmits   = 4
	packetSize    = 1200 // bytes of gossip in one packet: fits the smallest overlay MTU
	rejoinFirst   = 250 * time.Millisecond
	rejoinSoon    = 2 * time.Second
	rejoinEvery   = 30 * time.Second
	rejoinTargets = 3
	// After many members came at once, the full state is exchanged settleRounds
	// times, about settleEvery apart: each round squares the share of what is
	// missing, while memberlist's own exchanges are minutes apart in a large mesh.
	settleRounds = 3
	settleEvery  = 10 * time.Second
	settleShare  = 8 // many: more than one in so many
	bindFirst    = 250 * time.Millisecond
	bindLongest  = 5 * time.Second
	leaveTimeout = 2 * time.Second
)

// Config says how to take part. Name, Bind and Label are required.
type Config struct {
	Name  mesh.NodeID
	Bind  netip.Addr // own overlay address; it need not exist yet
	Port  uint16     // zero: mesh.GossipPort
	Label mesh.MeshID
	Keys  Keys // to begin with
	// Seeds gives all nodes that are members by the log or the cache, with
	// their overlay addresses; a zero port is Port. It is called for every
	// attempt to join, by our goroutine, and must not block.
	Seeds func() []Member
	// Admit reports whether the log knows this node at this address. It is
	// called inside memberlist's locks: it must not block and not call back.
	// Nil: everyone.
	Admit func(node mesh.NodeID, addr netip.Addr) bool
	// Announcements gives the routing announcements to pass on with the
	// exchange of full state, each at most 4 KiB: what flooding lost is
	// repaired so. It is called inside memberlist's locks. Nil: none.
	Announcements func() [][]byte
	// Transport replaces the network, for tests. It is called for every
	// attempt to bind.
	Transport func() (memberlist.NodeAwareTransport, error)
	Logger    *slog.Logger
}

// A Member is another node that gossip believes to be there.
type Member struct {
	Node mesh.NodeID
	Addr netip.AddrPort
}

// Gossip is one node's part in the gossip. Its methods may be called from any
// goroutine, before, during and after Run.
type Gossip struct {
	cfg     Config
	events  chan Event
	facts   facts
	present present

	keying  sync.Mutex // guards keys and ring
	keys    Keys
	ring    *memberlist.Keyring // of the memberlist there is; nil: there is none
	rekeyed chan struct{}       // the memberlist there is cannot go on with keys

	size   atomic.Int64 // of the mesh, as far as we know
	came   atomic.Int64 // members that came since rejoin looked
	list   atomic.Pointer[memberlist.Memberlist]
	ending sync.Mutex // keeps Leave and shutdown apart
}

// New prepares a part in the gossip; Run plays it.
func New(cfg Config) (*Gossip, error) {
	if cfg.Port == 0 {
		cfg.Port = mesh.GossipPort
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case cfg.Name.IsZero() || cfg.Label.IsZero():
		return nil, errors.New("gossip: node and mesh must be named")
	case !cfg.Bind.IsValid():
		return nil, errors.New("gossip: no overlay address to bind to")
	case cfg.Seeds == nil:
		return nil, errors.New("gossip: no source of seeds")
	}
	if err := cfg.Keys.check(); err != nil {
		return nil, err
	}
	g := &Gossip{cfg: cfg, keys: cfg.Keys, events: make(chan Event, maxEvents), rekeyed: make(chan struct{}, 1)}
	g.facts.held = map[discovery.Subject]held{}
	return g, nil
}

// String names the task in logs.
func (g *Gossip) String() string { return "gossip" }

// Events gives what arrives. It is never closed.
func (g *Gossip) Events() <-chan Event { return g.events }

// Members gives the nodes that gossip believes to be there, without ourselves,
// sorted; none before the first contact.
func (g *Gossip) Members() []Member {
	g.present.Lock()
	members := slices.Collect(maps.Values(g.present.members))
	g.present.Unlock()
	slices.SortFunc(members, func(a, b Member) int { return a.Node.Compare(b.Node) })
	return members
}

// Run takes part until ctx ends: it waits for the address and a key, joins, and
// keeps looking for members that it has lost. It returns nil when ctx ends.
func (g *Gossip) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		list, err := g.bind(ctx)
		if err != nil {
			return nil // only ctx ends the attempts
		}
		g.list.Store(list)

		var joins sync.WaitGroup
		g.rejoin(ctx, list, &joins)

		g.ending.Lock()
		g.list.Store(nil)
		err = list.Shutdown() // also ends dials in flight
		g.ending.Unlock()
		joins.Wait()
		g.present.forget()
		if err != nil {
			return fmt.Errorf("stop gossip: %w", err)
		}
	}
	return nil
}

// Leave says goodbye to the others, so that they do not take us for lost. It
// blocks until the word is out, for two seconds at most. To be called before
// the end of Run, when the node leaves the mesh; not for a restart.
func (g *Gossip) Leave() error {
	g.ending.Lock()
	defer g.ending.Unlock()
	list := g.list.Load()
	if list == nil {
		return nil
	}
	if err := list.Leave(leaveTimeout); err != nil {
		return fmt.Errorf("leave gossip: %w", err)
	}
	return nil
}

// bind makes the memberlist as soon as the overlay address exists.
func (g *Gossip) bind(ctx context.Context) (*memberlist.Memberlist, error) {
	for wait := bindFirst; ; wait = min(2*wait, bindLongest) {
		list, err := g.create()
		if err == nil {
			return list, nil
		}
		g.cfg.Logger.Debug("gossip cannot bind yet", mesh.LogEndpoint, netip.AddrPortFrom(g.cfg.Bind, g.cfg.Port), mesh.LogError, err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-g.rekeyed:
			wait = bindFirst
		case <-time.After(wait):
		}
	}
}

var errNoKeys = errors.New("no key to speak with yet")

func (g *Gossip) create() (*memberlist.Memberlist, error) {
	g.keying.Lock()
	defer g.keying.Unlock()
	select {
	case <-g.rekeyed: // that is what happens now
	default:
	}
	if g.ring = nil; g.keys.none() {
		return nil, errNoKeys
	}
	ring, err := memberlist.NewKeyring(g.keys.Accept, g.keys.first())
	if err != nil {
		return nil, err
	}
	logger := log.New(logWriter{g.cfg.Logger}, "", 0)
	transport, err := g.transport(logger)
	if err != nil {
		return nil, err
	}
	c := memberlist.DefaultLANConfig()
	c.Name = g.cfg.Name.String()
	c.Label = g.cfg.Label.String()
	c.Transport = transport
	c.BindAddr, c.BindPort = g.cfg.Bind.String(), int(g.cfg.Port)
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	c.Keyring, c.GossipVerifyOutgoing, c.GossipVerifyIncoming = ring, g.keys.Use != nil, !g.keys.Clear
	c.RequireNodeNames = true
	c.EnableCompression = false // decompression is where the memory bugs were
	c.UDPBufferSize = packetSize
	c.DNSConfigPath = ""
	// Between the LAN and WAN presets: the overlay's round trips are those of
	// the internet, and who is there is no emergency, links have their own probes.
	c.TCPTimeout = 10 * time.Second
	c.ProbeInterval = 3 * time.Second
	c.ProbeTimeout = time.Second
	c.SuspicionMult = 5
	c.GossipInterval = 300 * time.Millisecond
	c.GossipToTheDeadTime = time.Minute
	c.PushPullInterval = 30 * time.Second
	c.DeadNodeReclaimTime = time.Minute
	d := &delegate{g}
	c.Delegate, c.Events, c.Alive = d, d, d
	c.Logger = logger
	list, err := memberlist.Create(c)
	if err != nil {
		return nil, errors.Join(err, transport.Shutdown())
	}
	g.ring = ring
	return list, nil
}

func (g *Gossip) transport(logger *log.Logger) (memberlist.NodeAwareTransport, error) {
	if g.cfg.Transport != nil {
		return g.cfg.Transport()
	}
	return newTransport(g.cfg.Bind, g.cfg.Port, logger)
}

// rejoin contacts nodes that the log knows and gossip does not: at once and
// often until the first contact, then now and then, so that parts of the mesh
// that lost each other merge again. Where many came, it sees to it that all know
// the same soon. It ends when the memberlist must.
func (g *Gossip) rejoin(ctx context.Context, list *memberlist.Memberlist, joins *sync.WaitGroup) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	soon, settling := rejoinFirst, 0
	slots := make(chan struct{}, 2*rejoinTargets)
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.rekeyed:
			return
		case <-timer.C:
		}
		seeds := g.missing()
		if members := g.present.count(); members > 1 && settleShare*g.came.Swap(0) > members {
			settling = settleRounds
		}
		if settling > 0 {
			settling--
			seeds = append(seeds, g.anyone()...)
		}
		for _, seed := range seeds {
			select {
			case slots <- struct{}{}:
			default:
				continue // earlier attempts still wait for an answer
			}
			joins.Go(func() {
				defer func() { <-slots }()
				if _, err := list.Join([]string{seed.Node.String() + "/" + seed.Addr.String()}); err != nil {
					g.cfg.Logger.Debug("gossip seed does not answer", mesh.LogNode, seed.Node, mesh.LogEndpoint, seed.Addr, mesh.LogError, err)
				}
			})
		}
		if g.present.count() > 1 {
			every := rejoinEvery
			if settling > 0 {
				every = settleEvery
			}
			timer.Reset(every + rand.N(every/10))
			continue
		}
		timer.Reset(soon)
		soon = min(2*soon, rejoinSoon)
	}
}

// missing picks a few seeds that are not members at the moment.
func (g *Gossip) missing() []Member {
	known := map[mesh.NodeID]bool{g.cfg.Name: true}
	for _, m := range g.Members() {
		known[m.Node] = true
	}
	all := g.cfg.Seeds()
	g.size.Store(int64(len(all) + 1))
	seeds := slices.DeleteFunc(slices.Clone(all), func(m Member) bool { return known[m.Node] })
	rand.Shuffle(len(seeds), func(i, j int) { seeds[i], seeds[j] = seeds[j], seeds[i] })
	seeds = seeds[:min(len(seeds), rejoinTargets)]
	for i, m := range seeds {
		if m.Addr.Port() == 0 {
			seeds[i].Addr = netip.AddrPortFrom(m.Addr.Addr(), g.cfg.Port)
		}
	}
	return seeds
}

// anyone picks one of the members.
func (g *Gossip) anyone() []Member {
	all := g.Members()
	if len(all) == 0 {
		return nil
	}
	i := rand.IntN(len(all))
	return all[i : i+1]
}

// present are the members that gossip believes to be there, without ourselves, as it told
// them: memberlist changes its own list while others read it, and counts under its lock.
type present struct {
	sync.Mutex
	members map[mesh.NodeID]Member
}

func (p *present) put(m Member) {
	p.Lock()
	defer p.Unlock()
	if p.members == nil {
		p.members = map[mesh.NodeID]Member{}
	}
	p.members[m.Node] = m
}

func (p *present) remove(m Member) {
	p.Lock()
	defer p.Unlock()
	delete(p.members, m.Node)
}

// count is of all, with ourselves.
func (p *present) count() int64 {
	p.Lock()
	defer p.Unlock()
	return int64(len(p.members)) + 1
}

func (p *present) forget() {
	p.Lock()
	defer p.Unlock()
	clear(p.members)
}

func member(n *memberlist.Node) (Member, bool) {
	id, err := mesh.ParseNodeID(n.Name)
	addr, ok := netip.AddrFromSlice(n.Addr)
	return Member{Node: id, Addr: netip.AddrPortFrom(addr.Unmap(), n.Port)}, err == nil && ok
}

// logWriter carries memberlist's log lines to slog. Everything there is about
// single messages and peers, so it is for debugging.
type logWriter struct{ logger *slog.Logger }

func (w logWriter) Write(line []byte) (int, error) {
	w.logger.Debug("memberlist", mesh.LogReason, string(bytes.TrimSpace(line)))
	return len(line), nil
}
