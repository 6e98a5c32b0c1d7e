package raftstore

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"guywire/mesh"
	"guywire/store"
)

// delay is how long a packet takes from one voter to another: 50 ms there and back.
const delay = 25 * time.Millisecond

// A bubble is a mesh of voters with clock, disks and network of a test.
type bubble struct {
	t       *testing.T
	id      mesh.MeshID
	private ed25519.PrivateKey
	network network
	all     []*member
	port    int // of the last write

	mu       sync.Mutex             // guards the oracle
	acked    map[uint64]store.Nonce // by index: the write was acknowledged
	entries  map[uint64][32]byte    // by index: what some voter applied there
	requests map[store.Nonce]uint64 // by request: where it was applied
	leaders  map[uint64]mesh.NodeID // by term
	expelled map[mesh.NodeID]bool   // no member of the mesh any more
}

// A member is one voter: what it keeps over a crash, and what runs.
type member struct {
	*Store
	b      *bubble
	id     mesh.NodeID
	disk   *faultyDisk
	snaps  *memorySnapshots
	failed chan error
	stop   context.CancelFunc // of its observer
	seen   sync.WaitGroup
}

// inBubble runs a test with n voters that have found each other.
func inBubble(t *testing.T, n int, test func(*bubble)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		b := &bubble{
			t: t, id: mesh.MeshID{7}, private: private, network: network{listeners: map[mesh.NodeID]*memoryListener{}, cuts: map[[2]mesh.NodeID]bool{}, healed: make(chan struct{})},
			acked: map[uint64]store.Nonce{}, entries: map[uint64][32]byte{}, requests: map[store.Nonce]uint64{}, leaders: map[uint64]mesh.NodeID{}, expelled: map[mesh.NodeID]bool{},
		}
		defer func() {
			b.network.heal()
			for _, m := range b.all {
				m.crash()
			}
		}()
		b.found(mesh.IdentityKey(public), n)
		test(b)
	})
}

func (b *bubble) found(key mesh.IdentityKey, n int) {
	b.t.Helper()
	wg, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	first := b.add(key.NodeID())
	if err := first.Bootstrap(); err != nil {
		b.t.Fatal(err)
	}
	b.must(store.Command{Init: &store.Init{
		Settings: store.Settings{
			ID: b.id, Name: "lab", Pool4: netip.MustParsePrefix("10.86.0.0/16"), Pool6: netip.MustParsePrefix("fd12:3456:789a::/48"),
			CA: [][32]byte{{1}}, Roots: [][]byte{{0x30}}, Secret: make([]byte, store.SecretSize), Version: 3,
		},
		Name: "first", Identity: key, Key: store.Key{Epoch: 1, Public: mesh.WireGuardKey(wg.PublicKey().Bytes())},
	}})
	for i := 2; i <= n; i++ {
		b.admit(b.add(mesh.NodeID{byte(i)}))
	}
}

// add makes a voter with an empty disk.
func (b *bubble) add(id mesh.NodeID) *member {
	m := &member{b: b, id: id}
	m.format()
	b.all = append(b.all, m)
	m.open()
	return m
}

// format takes all that was on its disk.
func (m *member) format() {
	m.disk = &faultyDisk{memory: memory{raft.NewInmemStore()}, heal: make(chan struct{})}
	m.snaps = &memorySnapshots{}
}

// open starts the voter with what is on its disk.
func (m *member) open() {
	m.b.t.Helper()
	closed := make(chan struct{})
	m.failed = make(chan error, 1)
	logger := slog.New(slog.DiscardHandler)
	s, err := open(Config{
		ID: m.id, Timing: WAN, Logger: logger,
		Listener: m.b.network.listen(m.id),
		Peer:     func(c net.Conn) (mesh.NodeID, bool) { return c.(*memoryConn).peer, true },
		Dial: func(ctx context.Context, to mesh.NodeID) (net.Conn, error) {
			return m.b.network.dial(ctx, m.id, to)
		},
		Admit: func(peer mesh.NodeID, known bool) bool {
			m.b.mu.Lock()
			defer m.b.mu.Unlock()
			return known || !m.b.expelled[peer]
		},
		Failed: func(err error) { m.failed <- err },
	}, m.snaps, m.disk, stallAfter, newLogger(logger, closed), closed)
	if err != nil {
		m.b.t.Fatalf("open %s: %v", m.id, err)
	}
	m.Store = s
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	changed, unwatch := s.Watch()
	m.seen.Go(func() {
		defer unwatch()
		cursor := s.State().Index
		for {
			cursor = m.b.observe(s, cursor)
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
}

// crash ends the voter without a word; what it wrote stays.
func (m *member) crash() {
	m.b.t.Helper()
	if m.Store == nil {
		return
	}
	m.stop()
	m.seen.Wait()
	m.failOnce.Do(func() { close(m.Store.failed) })
	m.transport.Close()
	m.transport.CloseStreams()
	m.disk.mend()
	if err := m.Store.stop().Error(); err != nil {
		m.b.t.Error(err)
	}
	m.Store = nil
}

// observe holds what a voter applied against what others did: no two of them
// ever apply different entries at one index (I13), and none twice (I4).
func (b *bubble) observe(s *Store, cursor uint64) uint64 {
	before := s.Status()
	role, after := s.Status().Leads(), s.Status()
	b.mu.Lock()
	defer b.mu.Unlock()
	if role && before.Leads() && after.Leads() && before.Term == after.Term {
		if other, known := b.leaders[before.Term]; known && other != s.config.ID {
			b.t.Errorf("term %d has two leaders: %s and %s", before.Term, other, s.config.ID)
		}
		b.leaders[before.Term] = s.config.ID
	}
	for {
		changes, known := s.Since(cursor, 100)
		if !known {
			return s.State().Index // a snapshot was installed
		}
		if len(changes) == 0 {
			return cursor
		}
		for _, c := range changes {
			cursor = c.Index
			digest := sha256.Sum256(c.Command)
			if was, known := b.entries[c.Index]; known && was != digest {
				b.t.Errorf("entry %d is one thing on %s and another elsewhere", c.Index, s.config.ID)
			}
			b.entries[c.Index] = digest
			command, err := store.DecodeCommand(c.Command)
			if err != nil {
				b.t.Error(err)
			}
			if at, known := b.requests[command.Request]; !known || c.Index < at {
				b.requests[command.Request] = c.Index
			}
		}
	}
}

func (b *bubble) running() []*member {
	return slices.DeleteFunc(slices.Clone(b.all), func(m *member) bool { return m.Store == nil })
}

func (b *bubble) leader() *member {
	b.t.Helper()
	var found *member
	b.within("somebody leads", 30*time.Second, func() bool {
		for _, m := range b.running() {
			if m.Status().Leads() {
				found = m
			}
		}
		return found != nil
	})
	return found
}

func (b *bubble) followers() []*member {
	led := b.leader()
	return slices.DeleteFunc(b.running(), func(m *member) bool { return m == led })
}

// within waits for something in the time of the bubble, and says how long it took.
func (b *bubble) within(what string, limit time.Duration, done func() bool) time.Duration {
	b.t.Helper()
	start := time.Now()
	for !done() {
		if time.Since(start) > limit {
			b.t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

func (b *bubble) sign(c store.Command) store.Command {
	b.t.Helper()
	c.Author = mesh.IdentityKey(b.private.Public().(ed25519.PublicKey))
	if _, err := rand.Read(c.Request[:]); err != nil {
		b.t.Fatal(err)
	}
	for _, m := range b.running() {
		c.After = max(c.After, m.State().Index)
	}
	signed, err := store.SignCommand(c, b.id, func(m []byte) []byte { return ed25519.Sign(b.private, m) })
	if err != nil {
		b.t.Fatal(err)
	}
	return signed
}

// write is a command that changes the state each time.
func (b *bubble) write() store.Command {
	b.port++
	return store.Command{SetControl: &store.SetControl{
		Node: b.all[0].id, Control: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), uint16(1+b.port%60000))},
	}}
}

// try proposes through every voter that runs until one takes it.
func (b *bubble) try(ctx context.Context, c store.Command) bool {
	for _, m := range b.running() {
		r, err := m.Propose(ctx, c)
		if err == nil && r.Refused == nil {
			b.mu.Lock()
			b.acked[r.Index] = c.Request
			b.mu.Unlock()
			return true
		}
	}
	return false
}

// must proposes until it is taken, and gives how long that took.
func (b *bubble) must(c store.Command) time.Duration {
	b.t.Helper()
	c = b.sign(c)
	return b.within("a write is acknowledged", time.Minute, func() bool { return b.try(b.t.Context(), c) })
}

// admit makes a running voter with an empty disk one of the others.
func (b *bubble) admit(m *member) {
	b.t.Helper()
	b.within("it becomes a voter", time.Minute, func() bool {
		led := b.leader()
		return led.AddLearner(b.t.Context(), m.id) == nil
	})
	b.within("it catches up", time.Minute, func() bool { return m.State().Index >= b.leader().State().Index })
	b.within("it gets its vote", time.Minute, func() bool { return b.leader().AddVoter(b.t.Context(), m.id) == nil })
	b.within("all know", time.Minute, func() bool {
		return !slices.ContainsFunc(b.running(), func(o *member) bool { return !slices.Contains(o.Status().Voters, m.id) })
	})
}

// settle heals everything and checks that nothing acknowledged was lost (I4).
func (b *bubble) settle() {
	b.t.Helper()
	b.network.heal()
	for _, m := range b.all {
		if m.Store == nil {
			m.open()
		}
	}
	b.must(b.write())
	newest := b.newest()
	b.within("all voters have it", time.Minute, func() bool {
		return !slices.ContainsFunc(b.all, func(m *member) bool { return m.State().Index < newest })
	})
	time.Sleep(time.Second) // every commit index has been told
	synctest.Wait()
	for _, m := range b.all[1:] {
		if store.Hash(m.State()) != store.Hash(b.all[0].State()) {
			b.t.Errorf("states differ: %d of %s and %d", m.State().Index, m.id, b.all[0].State().Index)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for index, request := range b.acked {
		if at, known := b.requests[request]; !known || at > index {
			b.t.Errorf("the write acknowledged at %d is lost (found at %d)", index, at)
		}
	}
}

// expel takes the vote of a voter that is no member of the mesh any more.
func (b *bubble) expel(m *member) {
	b.t.Helper()
	b.mu.Lock()
	b.expelled[m.id] = true
	b.mu.Unlock()
	if err := b.leader().RemoveServer(b.t.Context(), m.id); err != nil {
		b.t.Fatal(err)
	}
}

// newest is the index of the newest write that was acknowledged.
func (b *bubble) newest() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Max(slices.Collect(maps.Keys(b.acked)))
}

// A network carries connections between voters, but not over cuts: there what
// was sent waits, as TCP would make it.
type network struct {
	mu        sync.Mutex
	listeners map[mesh.NodeID]*memoryListener
	cuts      map[[2]mesh.NodeID]bool // from, to
	healed    chan struct{}           // closed when a cut ends
}

func (n *network) cut(from, to mesh.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[[2]mesh.NodeID{from, to}] = true
}

// isolate cuts a voter off in both directions.
func (n *network) isolate(b *bubble, m *member) {
	for _, o := range b.all {
		if o != m {
			n.cut(m.id, o.id)
			n.cut(o.id, m.id)
		}
	}
}

func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cuts)
	close(n.healed)
	n.healed = make(chan struct{})
}

func (n *network) passes(from, to mesh.NodeID) (bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cuts[[2]mesh.NodeID{from, to}], n.healed
}

func (n *network) listen(id mesh.NodeID) net.Listener {
	l := &memoryListener{id: id, calls: make(chan net.Conn, 16), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[id] = l
	return l
}

func (n *network) dial(ctx context.Context, from, to mesh.NodeID) (net.Conn, error) {
	for _, way := range [][2]mesh.NodeID{{from, to}, {to, from}} {
		for {
			passes, healed := n.passes(way[0], way[1])
			if passes {
				break
			}
			select {
			case <-healed:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		time.Sleep(delay)
	}
	n.mu.Lock()
	l := n.listeners[to]
	n.mu.Unlock()
	there, back := newHalf(n, from, to), newHalf(n, to, from)
	near, far := &memoryConn{peer: to, in: back, out: there}, &memoryConn{peer: from, in: there, out: back}
	select {
	case <-l.closed:
		return nil, errors.New("connection refused")
	case l.calls <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type memoryListener struct {
	id     mesh.NodeID
	calls  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.calls:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memoryListener) Addr() net.Addr { return address(l.id.String()) }

type memoryConn struct {
	peer    mesh.NodeID
	in, out *half
}

func (c *memoryConn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *memoryConn) Write(b []byte) (int, error) { return c.out.write(b) }

func (c *memoryConn) Close() error {
	c.in.close(true)
	c.out.close(false)
	return nil
}

func (c *memoryConn) LocalAddr() net.Addr  { return address(c.out.from.String()) }
func (c *memoryConn) RemoteAddr() net.Addr { return address(c.peer.String()) }

func (c *memoryConn) SetDeadline(t time.Time) error      { return c.SetReadDeadline(t) }
func (c *memoryConn) SetReadDeadline(t time.Time) error  { return c.in.expire(t) }
func (c *memoryConn) SetWriteDeadline(_ time.Time) error { return nil } // nothing blocks

// A half is one direction of a connection, with room for all that is sent.
type half struct {
	network  *network
	from, to mesh.NodeID

	mu       sync.Mutex
	segments []segment
	ended    bool      // by the sender, after the segments
	closed   bool      // by the reader
	deadline time.Time // of the reader
	changed  chan struct{}
}

type segment struct {
	due time.Time
	b   []byte
}

func newHalf(n *network, from, to mesh.NodeID) *half {
	return &half{network: n, from: from, to: to, changed: make(chan struct{})}
}

func (h *half) update(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) write(b []byte) (n int, err error) {
	h.update(func() {
		if h.ended || h.closed {
			err = io.ErrClosedPipe
			return
		}
		n = len(b)
		h.segments = append(h.segments, segment{time.Now().Add(delay), bytes.Clone(b)})
	})
	return n, err
}

func (h *half) close(reader bool) {
	h.update(func() {
		if reader {
			h.closed = true
		} else {
			h.ended = true
		}
	})
}

func (h *half) expire(t time.Time) error {
	h.update(func() { h.deadline = t })
	return nil
}

func (h *half) read(b []byte) (int, error) {
	for {
		passes, healed := h.network.passes(h.from, h.to)
		n, wait, changed, err := h.take(b, passes)
		if n > 0 || err != nil {
			return n, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-healed:
		}
		timer.Stop()
	}
}

// take gives what is there now; nothing: look again after wait.
func (h *half) take(b []byte, passes bool) (n int, wait time.Duration, changed <-chan struct{}, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	wait = time.Hour
	switch {
	case h.closed:
		return 0, 0, nil, net.ErrClosed
	case !h.deadline.IsZero() && !now.Before(h.deadline):
		return 0, 0, nil, os.ErrDeadlineExceeded
	case !h.deadline.IsZero():
		wait = h.deadline.Sub(now)
	}
	if passes && len(h.segments) > 0 {
		first := &h.segments[0]
		if !now.Before(first.due) {
			n = copy(b, first.b)
			if first.b = first.b[n:]; len(first.b) == 0 {
				h.segments = h.segments[1:]
			}
			return n, 0, nil, nil
		}
		wait = min(wait, first.due.Sub(now))
	}
	if passes && len(h.segments) == 0 && h.ended {
		return 0, 0, nil, io.EOF
	}
	return 0, wait, h.changed, nil
}

// A faultyDisk hangs or fails when told to.
type faultyDisk struct {
	memory
	hang, broken atomic.Bool
	spoil        atomic.Uint64 // this entry is read with another bit
	mu           sync.Mutex
	heal         chan struct{}
}

func (d *faultyDisk) StoreLogs(logs []*raft.Log) error {
	if d.hang.Load() {
		d.mu.Lock()
		heal := d.heal
		d.mu.Unlock()
		<-heal
	}
	if d.broken.Load() {
		return errors.New("input/output error")
	}
	return d.memory.StoreLogs(logs)
}

func (d *faultyDisk) GetLog(index uint64, log *raft.Log) error {
	err := d.memory.GetLog(index, log)
	if err == nil && d.spoil.Load() == index {
		spoiled(log)
	}
	return err
}

func (d *faultyDisk) StoreLog(log *raft.Log) error { return d.StoreLogs([]*raft.Log{log}) }

// mend lets what hangs go on.
func (d *faultyDisk) mend() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hang.Store(false)
	d.broken.Store(false)
	close(d.heal)
	d.heal = make(chan struct{})
}

// memorySnapshots keep the newest snapshot; one that was not finished is none.
type memorySnapshots struct {
	mu     sync.Mutex
	newest *memorySnapshot
}

type memorySnapshot struct {
	bytes.Buffer
	store *memorySnapshots
	meta  raft.SnapshotMeta
}

func (s *memorySnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	return &memorySnapshot{store: s, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d", term, index), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}, nil
}

func (s *memorySnapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newest == nil {
		return nil, nil
	}
	meta := s.newest.meta
	return []*raft.SnapshotMeta{&meta}, nil
}

func (s *memorySnapshots) Open(string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	meta := s.newest.meta
	return &meta, io.NopCloser(bytes.NewReader(s.newest.Bytes())), nil
}

func (m *memorySnapshot) ID() string    { return m.meta.ID }
func (m *memorySnapshot) Cancel() error { return nil }

func (m *memorySnapshot) Close() error {
	m.meta.Size = int64(m.Len())
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	m.store.newest = m
	return nil
}
