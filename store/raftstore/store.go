package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"guywire/mesh"
	"guywire/store"
)

// Config is what a Store needs. Every field but Timing, Fence and Care is required.
type Config struct {
	Dir    string // holds the log and its snapshots; made with mode 0700
	ID     mesh.NodeID
	Timing Timing // zero: WAN
	Logger *slog.Logger

	// Listener gives incoming connections of the Raft protocol; the Store
	// closes it. Peer says whose a connection proved to be, Dial makes one.
	Listener net.Listener
	Peer     func(net.Conn) (mesh.NodeID, bool)
	Dial     func(context.Context, mesh.NodeID) (net.Conn, error)
	// Admit decides about an incoming connection; voter says that the Raft
	// configuration on this disk names the node as one. A voter that was away
	// while all others were replaced knows them from elsewhere or never again.
	Admit func(id mesh.NodeID, voter bool) bool
	// Failed is called once, in a goroutine of its own, when the disk stalls
	// or fails. The Store serves no more and must be closed.
	Failed func(error)
	// Fence, if set, decides in Open whether this copy of the log may run: see
	// CheckBoot. It gets the run that begins, the state that is known to be
	// committed and the index of the last entry; raft runs only after it returned
	// nil, and Open returns its error.
	Fence func(boot store.Boot, state *store.State, last uint64) error
	// Care, if set, lets this voter care for who is a voter while it leads.
	Care *Care
}

// A Store is this voter's part of the replicated log.
type Store struct {
	config    Config
	fsm       *fsm
	log       *logStore
	boot      store.Boot
	raft      *raft.Raft
	stream    *stream
	transport *transport
	silent    silences
	pulse     pulse
	care      care

	reads   sync.Mutex // guards barrier
	barrier *barrier   // of the newest leadership in which somebody read; nil: it failed

	started  chan struct{} // closed at the end of start
	failOnce sync.Once
	failed   chan struct{} // closed by fail and by Close
	stop     func() raft.Future

	mu       sync.Mutex // guards watchers
	watchers map[chan struct{}]struct{}
}

// Exists reports whether dir holds a log, so that this node is or was a voter.
func Exists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "raft.db"))
	return err == nil
}

// Destroy removes the log in dir. A node whose vote has ended must do so
// before it can be a voter again: an old log would vote with old knowledge.
func Destroy(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove replicated log: %w", err)
	}
	return nil
}

// Open starts this voter with what is on disk, or empty: then Bootstrap makes
// it the first voter, or a leader adds it. It returns with the state that is
// known to be committed, without asking anyone.
func Open(config Config) (*Store, error) {
	if config.Timing == (Timing{}) {
		config.Timing = WAN
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of the replicated log: %w", err)
	}
	if err := os.Chmod(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("protect folder of the replicated log: %w", err)
	}
	closed := make(chan struct{})
	logger := newLogger(config.Logger, closed)
	snapshots, err := openSnapshots(config.Dir, logger)
	if err != nil {
		return nil, err
	}
	bolt, err := openBolt(filepath.Join(config.Dir, "raft.db"))
	if err != nil {
		return nil, err
	}
	s, err := open(config, snapshots, bolt, stallAfter, logger, closed)
	if err != nil {
		bolt.Close()
		return nil, err
	}
	return s, nil
}

// open starts raft over an open disk; closed will be closed when it ends.
func open(config Config, snapshots raft.SnapshotStore, disk disk, stall time.Duration, logger hclog.Logger, closed chan struct{}) (*Store, error) {
	s, err := load(config, snapshots, disk, stall, closed)
	if err != nil {
		return nil, err
	}
	if s.boot, err = s.log.countBoot(); err != nil {
		return nil, fmt.Errorf("count this run of the replicated log: %w", err)
	}
	if config.Fence != nil {
		_, last, err := s.log.bounds()
		if err == nil {
			err = config.Fence(s.boot, s.State(), max(last, s.State().Index))
		}
		if err != nil {
			return nil, err
		}
	}
	if err := s.start(snapshots, logger); err != nil {
		return nil, err
	}
	return s, nil
}

// load is a Store with the state that is on the disk, without raft.
func load(config Config, snapshots raft.SnapshotStore, disk disk, stall time.Duration, closed chan struct{}) (*Store, error) {
	s := &Store{config: config, started: make(chan struct{}), failed: closed, watchers: map[chan struct{}]struct{}{}}
	s.care = care{
		Care: config.Care, store: s, kick: make(chan struct{}, 1),
		teaching: map[mesh.NodeID]bool{}, barred: map[mesh.NodeID]time.Time{},
	}
	s.log = &logStore{disk: disk, stall: stall, onFail: func(error) {}} // until raft runs, who calls reports
	if err := s.log.check(); err != nil {
		return nil, err
	}
	s.fsm = &fsm{notify: s.notify, fail: func(error) {}}
	s.fsm.state.Store(store.New())
	if err := s.recover(snapshots); err != nil {
		return nil, err
	}
	return s, nil
}

// openBolt opens the log. The freelist is kept on disk: to rebuild it, bbolt
// walks all pages in a goroutine of its own, where nobody can catch its panic
// on a damaged one.
func openBolt(path string) (bolt *raftboltdb.BoltStore, err error) {
	err = guarded(func() (err error) {
		bolt, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{
			Timeout:      lockTimeout,
			FreelistType: bbolt.FreelistMapType,
		}})
		return err
	})
	switch {
	case err == nil:
		return bolt, nil
	case errors.Is(err, bbolterrors.ErrTimeout):
		return nil, ErrInUse
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("open replicated log: %w", err)
	case errors.Is(err, ErrDamaged):
		return nil, err
	default:
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
}

// recover builds the state that was committed when this voter stopped, but for
// what only the next batch would have told: the newest snapshot and the log up
// to the commit index written with it. raft applies the same entries again as
// soon as a leader confirms them; the state machine knows them by their index.
func (s *Store) recover(snapshots raft.SnapshotStore) error {
	metas, err := snapshots.List()
	if err != nil {
		return fmt.Errorf("%w: list snapshots: %w", ErrDamaged, err)
	}
	var newest raft.SnapshotMeta
	if len(metas) > 0 {
		newest = *metas[0]
		_, r, err := snapshots.Open(newest.ID)
		if err != nil {
			return fmt.Errorf("%w: snapshot %s: %w", ErrDamaged, newest.ID, err)
		}
		if err := s.fsm.Restore(r); err != nil {
			return fmt.Errorf("%w: snapshot %s: %w", ErrDamaged, newest.ID, err)
		}
	}
	if err := s.log.join(newest.Index, newest.Term); err != nil {
		return err
	}
	committed, err := s.log.committed()
	if err != nil {
		return fmt.Errorf("%w: read commit index: %w", ErrDamaged, err)
	}
	for next := newest.Index + 1; next <= committed; next++ {
		var entry raft.Log
		if err := s.log.read(next, &entry); err != nil {
			return fmt.Errorf("%w: entry %d: %w", ErrDamaged, next, err)
		}
		if entry.Type == raft.LogCommand {
			s.fsm.Apply(&entry)
		}
	}
	return s.fsm.stopped
}

func (s *Store) start(snapshots raft.SnapshotStore, logger hclog.Logger) error {
	s.fsm.fail, s.log.onFail = s.fail, s.fail
	defer close(s.started) // raft writes, and may fail, before it is here
	s.stream = &stream{config: s.config, failed: s.failed, state: s.State, boot: s.boot, doubled: map[mesh.NodeID]time.Time{}}
	s.transport = newTransport(s.stream, logger, s.failed)
	c := raft.DefaultConfig()
	c.LocalID = serverID(s.config.ID)
	c.Logger = logger
	c.HeartbeatTimeout = s.config.Timing.Heartbeat
	c.ElectionTimeout = s.config.Timing.Election
	c.LeaderLeaseTimeout = s.config.Timing.Lease
	c.CommitTimeout = s.config.Timing.Commit
	c.SnapshotInterval = snapshotInterval
	c.SnapshotThreshold = snapshotThreshold
	c.TrailingLogs = trailingLogs
	c.NoLegacyTelemetry = true
	c.RestoreCommittedLogs = true     // makes raft tell our log store commit indexes
	c.NoSnapshotRestoreOnStart = true // recover has done it
	r, err := raft.NewRaft(c, s.fsm, s.log, s.log, snapshots, s.transport)
	if err != nil {
		s.transport.Close()
		return fmt.Errorf("start raft: %w", err)
	}
	s.log.running.Store(true)
	s.raft = r
	s.stop = sync.OnceValue(r.Shutdown)
	r.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		s.silent.observe(o.Data)
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.PeerObservation, raft.RaftState:
			s.notify()
		}
		return false // nothing is queued: watchers look at Status
	}))
	s.stream.raft.Store(r)
	s.pulse.beat(time.Now(), s.config.Timing.Lease/2)
	go s.beats()
	if s.config.Care != nil {
		s.care.tasks.Add(1)
		go s.care.run()
	}
	s.leadAlone()
	return nil
}

// leadAlone spares a voter without others the wait for a leader's heartbeat
// that nobody sends: at init, and at every start of a mesh of one voter.
func (s *Store) leadAlone() {
	servers := s.raft.GetConfiguration().Configuration().Servers
	if len(servers) == 1 && servers[0].ID == serverID(s.config.ID) {
		s.transport.campaign()
	}
}

// fail ends this voter: no heartbeat may go out any more, so that the others
// elect a leader. It may be called on raft's own goroutines and does not wait.
func (s *Store) fail(err error) {
	s.failOnce.Do(func() {
		close(s.failed)
		go func() {
			if <-s.started; s.raft == nil {
				return // Open says why
			}
			s.transport.Close()
			s.transport.CloseStreams()
			s.stop()
			s.notify()
			s.config.Failed(err)
		}()
	})
}

// Bootstrap makes this voter the only one of a new mesh. The log must be empty.
func (s *Store) Bootstrap() error {
	err := s.raft.BootstrapCluster(soleVoter(s.config.ID)).Error()
	if err != nil {
		return fmt.Errorf("bootstrap replicated log: %w", err)
	}
	s.leadAlone()
	return nil
}

// State is the newest state applied here. It is immutable.
func (s *Store) State() *store.State { return s.fsm.state.Load() }

// Since gives up to limit changes that follow the state at index after, in
// order and without a gap. False: a follower at that index needs State first.
func (s *Store) Since(after uint64, limit int) ([]Change, bool) { return s.fsm.since(after, limit) }

// Compare tells how a state of the same generation at index, whose audit trail
// ends with head, stands to this voter's. Before version 3 of the mesh there is
// no trail, and every head is zero.
func (s *Store) Compare(index uint64, head store.Digest) Verdict { return s.fsm.verdict(index, head) }

// Watch gives a channel that receives whenever State or Status may have
// changed; several changes may be one receipt. Call stop when done.
func (s *Store) Watch() (changed <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	s.watchers[c] = struct{}{}
	s.mu.Unlock()
	return c, func() {
		s.mu.Lock()
		delete(s.watchers, c)
		s.mu.Unlock()
	}
}

// leader is who leads, as far as this voter knows; zero: nobody.
func (s *Store) leader() mesh.NodeID {
	_, id := s.raft.LeaderWithID()
	leader, _ := mesh.ParseNodeID(string(id)) // empty: none is known
	return leader
}

// WhileLed derives a context that ends when this voter does not know leader as
// the leader any more.
func (s *Store) WhileLed(ctx context.Context, leader mesh.NodeID) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	changed, stop := s.Watch()
	go func() {
		defer stop()
		for s.leader() == leader {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
		cancel()
	}()
	return ctx, cancel
}

func (s *Store) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.watchers {
		select {
		case c <- struct{}{}:
		default: // one receipt is waiting already
		}
	}
}

// Leading is nil while this voter leads, and otherwise what Propose would say: a
// NotLeaderError or ErrClosed.
func (s *Store) Leading() error {
	switch s.raft.State() {
	case raft.Leader:
		return nil
	case raft.Shutdown:
		return ErrClosed
	case raft.Follower, raft.Candidate:
	}
	return s.explain(raft.ErrNotLeader)
}

// Propose writes a command to the log and waits until it is applied. One
// without a time is stamped with this machine's clock. Only the leader can:
// others return a NotLeaderError. After ErrUnknownOutcome or the end of ctx the
// command may still be applied. A refusal is in the result, not an error.
func (s *Store) Propose(ctx context.Context, command store.Command) (store.Result, error) {
	command.Version = store.Version
	if command.Now.IsZero() {
		command.Now = time.Now().UTC()
	}
	b, err := store.EncodeCommand(command)
	if err != nil {
		return store.Result{}, fmt.Errorf("encode command: %w", err)
	}
	future := s.raft.Apply(b, enqueueTimeout)
	if err := s.wait(ctx, future); err != nil {
		return store.Result{}, s.explain(err)
	}
	switch answer := future.Response().(type) {
	case store.Result:
		return answer, nil
	case error:
		return store.Result{}, answer
	default:
		return store.Result{}, ErrUnknownOutcome
	}
}

// wait waits for a future, but no longer than ctx or this voter lives.
func (s *Store) wait(ctx context.Context, future raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- future.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	case <-s.failed:
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ErrClosed)
	}
}

func (s *Store) explain(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return &NotLeaderError{Leader: s.leader()}
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrAbortedByRestore):
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrClosed
	default:
		return err
	}
}
