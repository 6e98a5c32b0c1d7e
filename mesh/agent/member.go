package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/config"
	"guywire/mesh/control"
	"guywire/mesh/core"
	"guywire/mesh/kernel"
	"guywire/mesh/reconcile"
	"guywire/mesh/rendezvous"
	"guywire/routing/topology/coordinate"
	"guywire/store"
	"guywire/store/cache"
)

var errStopped = errors.New("meshd is stopping")

// A member is the running part of a node that belongs to a mesh.
type member struct {
	agent *Agent
	log   *slog.Logger
	plane *control.Plane
	self  mesh.NodeID
	done  <-chan struct{} // closed when the member ends

	revoking atomic.Int32 // calls that wait for the log to remove a node

	parting atomic.Bool // the neighbours are told at the end: the kernel is cleared next

	// The loop owns these.
	node       *core.Node
	dirty      bool
	deadline   time.Time
	countEvery time.Duration // between two readings of the devices' counters,
	countAt    time.Time     // and the next

	events  chan core.Event
	queries chan func(*core.Node)

	kernel     Kernel
	devices    *devices
	reconciler *reconcile.Reconciler
	probes     Probes
	echoes     Echoes
	gossip     Gossip
	attempts   *rendezvous.Attempter
	awaited    awaited

	hostChanged chan struct{}
	save        chan struct{}
	words       chan struct{} // an operator's word came; see weigh
	carriedOut  chan struct{} // the reconciler has worked on a revision
	records     atomic.Pointer[[]core.Record]
	host        atomic.Pointer[core.Host]
	flooded     atomic.Pointer[[][]byte] // announcements, for repair by gossip
	standing    atomic.Pointer[standing] // whom this node deals with
	applied     atomic.Uint64            // newest revision that is wholly in the kernel
	worked      atomic.Uint64            // newest revision that the reconciler worked on
	completeAt  atomic.Uint64            // first complete revision
	wanted      atomic.Uint64
	dropped     atomic.Uint64
	malformed   atomic.Uint64

	mu        sync.Mutex // guards the rest
	directory *discovery.Directory
	bans      *discovery.Bans
	surveys   map[string]survey                // by uplink
	lifetimes map[string]lifetime              // by uplink
	sights    map[string]map[mesh.LinkID]sight // by uplink
	gateways  map[string]*gateway              // by uplink
	doubted   map[string]time.Time             // when a link by that uplink was lost
	steering  map[uint32]uint64                // by mark: the first revision that sends it by its uplink
	witnessed map[mesh.NodeID]time.Time        // when another node asked last where a third one is
	own       discovery.Signed
	ownFacts  discovery.Facts
	newFacts  bool // since the directory was saved
	// servedSTUN is where this node's STUN server was reached in its last life.
	servedSTUN []netip.AddrPort
	// distances is what this node last said of how far others are.
	distances coordinate.Report

	saving sync.Mutex // held while what is known is written
}

// open builds a member on an open control plane. Nothing runs and nothing in
// the kernel is changed before run.
func (a *Agent) open(plane *control.Plane) (_ *member, err error) {
	state := plane.State()
	m := &member{
		agent: a, log: a.log, plane: plane, self: plane.ID(),
		events:      make(chan core.Event, eventQueue),
		queries:     make(chan func(*core.Node)),
		hostChanged: make(chan struct{}, 1),
		save:        make(chan struct{}, 1),
		words:       make(chan struct{}, 1),
		carriedOut:  make(chan struct{}, 1),
		directory:   discovery.NewDirectory(state.Mesh.ID, maxDirectory),
		bans:        discovery.NewBans(),
		surveys:     map[string]survey{},
		lifetimes:   map[string]lifetime{},
		gateways:    map[string]*gateway{},
		sights:      map[string]map[mesh.LinkID]sight{},
		doubted:     map[string]time.Time{},
		witnessed:   map[mesh.NodeID]time.Time{},
		devices:     newDevices(a.outside.Devices),
	}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	m.kernel, err = a.outside.Kernel(KernelConfig{State: a.dir, Ring: a.ring, Pools: []netip.Prefix{state.Mesh.Pool4, state.Mesh.Pool6}})
	if err != nil {
		return nil, err
	}
	if m.probes, err = a.outside.Probes(m.self.LinkLocal()); err != nil {
		return nil, err
	}
	if m.echoes, err = a.outside.Echoes(m.echoed); err != nil {
		return nil, err
	}
	m.loadFacts()
	m.weigh()
	records, err := m.loadRecords(a.ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	m.node = core.New(now, core.Config{
		Self: m.self, Mesh: state.Mesh.ID, Incarnation: uint64(now.UnixMicro()),
		Sign: a.ring.Sign, Rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		Records: records, MTU: a.config.MTU, Distances: m.distances,
		SpreadAfter: map[config.Spread]time.Duration{config.SpreadLazy: spreadLazy, config.SpreadEager: spreadEager}[a.config.NAT.Spread],
	})
	m.reconciler = m.newReconciler()
	m.attempts = m.newAttempter()
	if node, ok := state.Nodes[m.self]; ok {
		m.gossip, err = a.outside.Gossip(GossipConfig{
			Self: m.self, Mesh: state.Mesh.ID, Bind: node.Addr6, Seeds: m.seeds, Admit: m.admit, Facts: m.heard,
			Announcements: m.announcements, Learned: m.learned, Keys: m.gossipKeys(),
		})
		if err != nil {
			return nil, err
		}
	}
	m.handleNodes()
	return m, nil
}

// run runs everything until ctx ends or the mesh removes this node. The
// kernel keeps what it has.
func (m *member) run(ctx context.Context, stop context.CancelFunc) error {
	tasks, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, stop) // a task that fails ends the member, and frees who waits for its loop
	start := func(name string, f func(context.Context) error) {
		tasks.Go(func() error {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	// The mind is fed before it runs: what is known of the world comes first.
	var first []core.Event
	if !m.plane.Expired() {
		first = append(first, m.weigh().event())
	}
	if host, err := m.observe(ctx); err == nil {
		first = append(first, core.HostChanged{Host: host})
	}
	for _, f := range m.renew(&store.State{}, m.standing.Load().state) {
		first = append(first, core.FactsChanged{Facts: f})
	}
	for _, ev := range first {
		m.step(ev)
	}

	// The control plane ends last: it holds the cache that the records go to.
	planeCtx, endPlane := context.WithCancel(context.WithoutCancel(ctx))
	defer endPlane()
	start("control plane", func(context.Context) error { return m.plane.Run(planeCtx) })
	start("API", func(ctx context.Context) error { return m.agent.api.ServeRemote(ctx, m.plane.API(), m.access) })
	start("core", m.loop)
	start("probes", m.receive)
	start("reconciler", m.reconciler.Run)
	start("kernel watch", func(ctx context.Context) error { return m.kernel.Watch(ctx, m.reconciler.Kick) })
	start("host watch", m.watchHost)
	start("link attempts", m.followAttempts)
	start("relayed offers", m.takeRelayed)
	start("STUN", m.serveStun)
	start("surveys", m.survey)
	start("lifetimes", m.measureLifetimes)
	start("port mapping", m.mapPorts)
	if m.kernel.Carriers != nil {
		start("carriers", m.tendCarriers)
	}
	start("facts", m.spreadFacts)
	if m.gossip != nil {
		start("gossip", m.gossip.Run)
	}
	start("state", m.followState)
	start("bans", m.insist)
	start("site", m.saySite)
	start("tunnels", m.measure)
	start("announcements", m.keepAnnouncements)
	start("records", func(ctx context.Context) error {
		defer endPlane()
		return m.saveRecords(ctx)
	})
	err := tasks.Wait()
	if m.parting.Load() {
		m.closeGateways()
		for _, d := range m.node.Step(time.Now(), core.Stopping{}).Send {
			m.send(d.Target, d.Payload)
		}
	}
	m.close()
	return err
}

// close releases the adapters. It is for a member that did not run, too.
func (m *member) close() {
	if m.probes != nil {
		_ = m.probes.Close()
	}
	if m.echoes != nil {
		_ = m.echoes.Close()
	}
	if m.kernel.Close != nil {
		_ = m.kernel.Close()
	}
}

// followState feeds newer states of the log, and what operators say ahead of it.
func (m *member) followState(ctx context.Context) error {
	for before := m.standing.Load().state; ; {
		select {
		case <-m.plane.Updates():
		case <-m.words:
		case <-ctx.Done():
			return nil
		}
		now := m.weigh()
		if m.gossip != nil {
			if err := m.gossip.SetKeys(m.gossipKeys()); err != nil {
				m.log.Warn("gossip keys cannot be changed", mesh.LogError, err)
			}
		}
		if m.plane.Expired() {
			continue
		}
		facts := m.renew(before, now.state)
		before = now.state
		m.post(now.event())
		for _, f := range facts {
			m.post(core.FactsChanged{Facts: f})
		}
		m.publish() // our control addresses may have been found reachable
	}
}

// measure feeds what the tunnels say of themselves.
func (m *member) measure(ctx context.Context) error {
	tick := time.NewTicker(statsEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if t, err := m.kernel.Stats(ctx); err == nil {
				m.post(core.Measured{Tunnels: t})
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// loadRecords reads the links of the last run and looks which are alive.
func (m *member) loadRecords(ctx context.Context) ([]core.Record, error) {
	blob, err := m.plane.Cache().LoadBlob(cache.Links)
	if errors.Is(err, cache.ErrEmpty) || errors.Is(err, cache.ErrUnusable) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the links of the last run: %w", err)
	}
	var records []core.Record
	if err := json.Unmarshal(blob, &records); err != nil {
		m.log.Warn("the links of the last run cannot be read; they are searched anew", mesh.LogError, err)
		return nil, nil
	}
	alive := map[string]string{}
	have, err := m.kernel.Backends[kernel.PartTunnels].Observe(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for tunnels of an earlier run: %w", err)
	}
	for _, t := range have.Tunnels {
		alive[t.Name] = t.Alias
	}
	for i, r := range records {
		records[i].Alive = alive[r.Device] == r.Alias()
	}
	return records, nil
}

// saveRecords keeps the link records at most saveEvery behind.
func (m *member) saveRecords(ctx context.Context) error {
	write := func() {
		records := m.records.Load()
		if records == nil {
			return
		}
		blob, err := json.Marshal(*records)
		if err == nil {
			err = m.plane.Cache().SaveBlob(cache.Links, blob)
		}
		if err != nil && !errors.Is(err, fs.ErrClosed) { // a member that left has no cache any more
			m.log.Error("link records cannot be written; after a reboot links are searched anew", mesh.LogError, err)
		}
	}
	for {
		select {
		case <-m.save:
			write()
		case <-ctx.Done():
			write()
			return nil
		}
		select {
		case <-time.After(saveEvery):
		case <-ctx.Done():
			write()
			return nil
		}
	}
}
