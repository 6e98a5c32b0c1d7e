package raftstore

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"guywire/mesh"
	"guywire/store"
)

// quick keeps the tests short. It is slow enough for a busy machine: a missed
// deadline costs another election, never a wrong result.
var quick = Timing{Heartbeat: 300 * time.Millisecond, Election: 300 * time.Millisecond, Lease: 200 * time.Millisecond, Commit: 20 * time.Millisecond}

// A fleet is the network of one test: real TCP, each connection beginning with
// the id of its maker in place of a TLS handshake.
type fleet struct {
	t     *testing.T
	mu    sync.Mutex
	addrs map[mesh.NodeID]string
	base  string
	key   mesh.IdentityKey // of the first node, the only member
	sign  func([]byte) []byte
}

type voter struct {
	*Store
	config Config
	failed chan error
}

func newFleet(t *testing.T) *fleet {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(m []byte) []byte { return ed25519.Sign(private, m) }
	return &fleet{t: t, addrs: map[mesh.NodeID]string{}, base: t.TempDir(), key: mesh.IdentityKey(public), sign: sign}
}

type greeted struct {
	net.Conn
	id mesh.NodeID
}

type greetingListener struct{ net.Listener }

func (l greetingListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		g := greeted{Conn: c}
		if _, err := io.ReadFull(c, g.id[:]); err == nil {
			return g, nil
		}
		c.Close()
	}
}

func (f *fleet) dial(from mesh.NodeID) func(context.Context, mesh.NodeID) (net.Conn, error) {
	return func(ctx context.Context, to mesh.NodeID) (net.Conn, error) {
		f.mu.Lock()
		addr := f.addrs[to]
		f.mu.Unlock()
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		_, err = c.Write(from[:])
		return c, err
	}
}

func (f *fleet) config(id mesh.NodeID) (Config, chan error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.addrs[id] = l.Addr().String()
	f.mu.Unlock()
	failed := make(chan error, 1)
	return Config{
		Dir: filepath.Join(f.base, id.String()), ID: id, Timing: quick,
		Logger:   slog.New(slog.NewTextHandler(f.t.Output(), nil)),
		Listener: greetingListener{l},
		Peer:     func(c net.Conn) (mesh.NodeID, bool) { return c.(greeted).id, true },
		Dial:     f.dial(id),
		Admit:    func(peer mesh.NodeID, known bool) bool { return known || peer == f.first() },
		Failed:   func(err error) { failed <- err },
	}, failed
}

func (f *fleet) first() mesh.NodeID { return f.key.NodeID() }

func (f *fleet) open(id mesh.NodeID) *voter {
	f.t.Helper()
	config, failed := f.config(id)
	s, err := Open(config)
	if err != nil {
		f.t.Fatal(err)
	}
	v := &voter{s, config, failed}
	f.t.Cleanup(func() { s.Close() })
	return v
}

// founded is the first voter with the mesh made.
func (f *fleet) founded() *voter {
	f.t.Helper()
	v := f.open(f.first())
	if err := v.Bootstrap(); err != nil {
		f.t.Fatal(err)
	}
	wg, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	f.propose([]*voter{v}, store.Command{Init: &store.Init{
		Settings: store.Settings{
			ID: mesh.MeshID{1}, Name: "lab",
			Pool4: netip.MustParsePrefix("10.86.0.0/16"), Pool6: netip.MustParsePrefix("fd12:3456:789a::/48"),
			CA: [][32]byte{{1}}, Roots: [][]byte{{0x30}}, Secret: make([]byte, store.SecretSize),
		},
		Name: "first", Identity: f.key, Key: store.Key{Epoch: 1, Public: mesh.WireGuardKey(wg.PublicKey().Bytes())},
	}})
	return v
}

// write is command number n: it changes the state each time.
func (f *fleet) write(n int) store.Command {
	return store.Command{By: store.Authority{Node: f.first()}, SetControl: &store.SetControl{
		Node: f.first(), Control: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), uint16(n))},
	}}
}

// propose writes through whoever leads, as often as it takes.
func (f *fleet) propose(voters []*voter, c store.Command) store.Result {
	f.t.Helper()
	var result store.Result
	f.eventually("a leader takes the write", func() bool {
		for _, v := range voters {
			r, err := v.Propose(f.t.Context(), c)
			if err == nil {
				result = r
				return true
			}
		}
		return false
	})
	if result.Refused != nil {
		f.t.Fatalf("refused: %v", result.Refused)
	}
	return result
}

func (f *fleet) eventually(what string, done func() bool) {
	f.t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			f.t.Fatalf("still not so: %s", what)
		}
		<-tick.C
	}
}

func (f *fleet) three() []*voter {
	f.t.Helper()
	voters := []*voter{f.founded()}
	for i := byte(2); i <= 3; i++ {
		v := f.open(mesh.NodeID{i})
		if err := voters[0].AddLearner(f.t.Context(), v.config.ID); err != nil {
			f.t.Fatal(err)
		}
		f.eventually("the learner has caught up", func() bool { return v.State().Index == voters[0].State().Index })
		voters = append(voters, v)
	}
	for _, v := range voters[1:] {
		if err := voters[0].AddVoter(f.t.Context(), v.config.ID); err != nil {
			f.t.Fatal(err)
		}
	}
	f.eventually("all know three voters", func() bool {
		for _, v := range voters {
			if len(v.Status().Voters) != 3 {
				return false
			}
		}
		return true
	})
	return voters
}

func (f *fleet) leader(voters []*voter) int {
	f.t.Helper()
	found := -1
	f.eventually("one leads", func() bool {
		for i, v := range voters {
			if v.Status().Leads() {
				found = i
				return true
			}
		}
		return false
	})
	return found
}

func (f *fleet) agree(voters []*voter, index uint64) {
	f.t.Helper()
	f.eventually(fmt.Sprintf("all are at %d", index), func() bool {
		for _, v := range voters {
			if v.State().Index < index {
				return false
			}
		}
		return true
	})
	for _, v := range voters[1:] {
		if store.Hash(v.State()) != store.Hash(voters[0].State()) {
			f.t.Fatalf("states differ at %d and %d", v.State().Index, voters[0].State().Index)
		}
	}
}

func TestSingleVoterKeepsItsState(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	v := f.founded()
	r := f.propose([]*voter{v}, f.write(7))
	if v.State().Index != r.Index || v.State().Nodes[f.first()].Control[0].Port() != 7 {
		t.Fatalf("state after the write: %+v", v.State())
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if !Exists(v.config.Dir) {
		t.Error("the log is not seen")
	}
	v = f.open(f.first())
	f.eventually("the state is back", func() bool { return v.State().Index == r.Index })
	if err := v.Bootstrap(); err == nil {
		t.Error("a log was bootstrapped twice")
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Destroy(v.config.Dir); err != nil || Exists(v.config.Dir) {
		t.Errorf("destroy: %v", err)
	}
	if _, err := v.Propose(t.Context(), f.write(8)); !errors.Is(err, ErrClosed) {
		t.Errorf("propose after close: %v", err)
	}
}

func TestWritesSurviveTheLeader(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	voters := f.three()
	changed, stop := voters[0].Watch()
	defer stop()
	var last store.Result
	for n := range 10 {
		last = f.propose(voters, f.write(n+1))
	}
	<-changed
	f.agree(voters, last.Index)

	old := f.leader(voters)
	for i, v := range voters {
		if i == old {
			continue
		}
		_, err := v.Propose(t.Context(), f.write(1))
		notLeader, ok := errors.AsType[*NotLeaderError](err)
		if !ok || !errors.Is(err, ErrNotLeader) || notLeader.Leader != voters[old].config.ID {
			t.Errorf("follower answered %v, want the leader %s", err, voters[old].config.ID)
		}
	}
	rest := append(append([]*voter(nil), voters[:old]...), voters[old+1:]...)
	led, cancel := rest[0].WhileLed(t.Context(), voters[old].config.ID)
	defer cancel()
	if other, cancel := rest[0].WhileLed(t.Context(), rest[0].config.ID); true {
		<-other.Done() // nobody who leads
		cancel()
	}
	if led.Err() != nil {
		t.Error("a call to the leader was given up while it leads")
	}
	// A kill, not a farewell: nothing is handed over.
	if err := voters[old].stop().Error(); err != nil {
		t.Fatal(err)
	}
	<-led.Done()
	last = f.propose(rest, f.write(99))
	f.agree(rest, last.Index)
	if got := rest[0].State().Nodes[f.first()].Control[0].Port(); got != 99 {
		t.Errorf("control port %d, want the last write 99", got)
	}
	if err := voters[old].Close(); err != nil {
		t.Fatal(err)
	}
	last = f.propose(rest, f.write(100))
	voters[old] = f.open(voters[old].config.ID)
	f.agree(voters, last.Index)
}

func TestRestartWithoutQuorumHasCommittedState(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	voters := f.three()
	var results []store.Result
	for n := range 17 {
		results = append(results, f.propose(voters, f.write(n+1)))
	}
	f.agree(voters, results[16].Index)
	for _, v := range voters {
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range voters {
		alone := f.open(v.config.ID)
		if got := alone.State().Index; got < results[15].Index {
			t.Errorf("voter %s alone is at %d, had committed at least %d", v.config.ID, got, results[15].Index)
		}
		if alone.Status().Leads() {
			t.Errorf("voter %s leads alone", v.config.ID)
		}
		if err := alone.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOnlyVotersAreAdmitted(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	v := f.founded()
	c, err := f.dial(mesh.NodeID{9})(t.Context(), v.config.ID)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	var timeout net.Error
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("read: %v, want the connection closed", err)
	}
}

func TestLeadershipIsHandedOverOnClose(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	voters := f.three()
	old := f.leader(voters)
	if err := voters[old].Close(); err != nil {
		t.Fatal(err)
	}
	rest := append(append([]*voter(nil), voters[:old]...), voters[old+1:]...)
	f.propose(rest, f.write(3))
}

func TestRemovedVoterCannotReturn(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	voters := f.three()
	led := f.leader(voters)
	out := (led + 1) % 3
	if err := voters[led].RemoveServer(t.Context(), voters[out].config.ID); err != nil {
		t.Fatal(err)
	}
	term := voters[led].Status().Term
	f.eventually("the removed one missed its leader", func() bool { return voters[out].Status().Leader.IsZero() })
	rest := []*voter{voters[led], voters[(led+2)%3]}
	r := f.propose(rest, f.write(5))
	f.agree(rest, r.Index)
	if voters[out].State().Index >= r.Index {
		t.Error("a removed voter still gets the log")
	}
	if got := voters[led].Status(); !got.Leads() || got.Term != term {
		t.Errorf("the removed voter disturbed the others: %+v, term was %d", got, term)
	}
}

// A hangingDisk stops returning from writes when told to.
type hangingDisk struct {
	disk
	hang    atomic.Bool
	release chan struct{}
}

func (d *hangingDisk) StoreLogs(logs []*raft.Log) error {
	if d.hang.Load() {
		<-d.release
	}
	return d.disk.StoreLogs(logs)
}

func TestHangingDiskGivesLeadershipAway(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	config, failed := f.config(f.first())
	closed := make(chan struct{})
	logger := newLogger(config.Logger, closed)
	snaps, err := openSnapshots(mkdir(t, config.Dir), logger)
	if err != nil {
		t.Fatal(err)
	}
	bolt, err := openBolt(filepath.Join(config.Dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	hanging := &hangingDisk{disk: bolt, release: make(chan struct{})}
	s, err := open(config, snaps, hanging, 300*time.Millisecond, logger, closed)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	f.eventually("it leads", func() bool { return s.Status().Leads() })
	hanging.hang.Store(true)
	_, err = s.Propose(t.Context(), f.write(1))
	if err == nil {
		t.Error("a write that never reached the disk was acknowledged")
	}
	if err := <-failed; !errors.Is(err, ErrDisk) || !strings.Contains(err.Error(), "did not return") {
		t.Errorf("owner was told %v", err)
	}
	f.eventually("it does not lead", func() bool { return s.Status().Role == "shutdown" })
	if _, err := f.dial(mesh.NodeID{2})(t.Context(), f.first()); err == nil {
		t.Error("the failed voter still listens")
	}
	close(hanging.release)
	if err := s.Close(); err != nil {
		t.Errorf("close after the disk came back: %v", err)
	}
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestFailedTermIsNotReportedToRaft(t *testing.T) {
	t.Parallel()
	var told []error
	bolt, err := openBolt(filepath.Join(t.TempDir(), "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	bolt.Close() // every write fails from now on
	l := &logStore{disk: bolt, stall: time.Minute, onFail: func(err error) { told = append(told, err) }}
	if err := l.SetUint64([]byte("CurrentTerm"), 3); err != nil {
		t.Errorf("raft would panic on %v", err)
	}
	if err := l.Set([]byte("LastVoteCand"), []byte("x")); !errors.Is(err, ErrDisk) {
		t.Errorf("a vote after the failure: %v, want ErrDisk", err)
	}
	if err := l.StoreLog(&raft.Log{Index: 1}); !errors.Is(err, ErrDisk) {
		t.Errorf("an entry after the failure: %v, want ErrDisk", err)
	}
	if len(told) != 1 {
		t.Errorf("owner was told %d times: %v", len(told), told)
	}
}

func TestCommitIndexTravelsWithTheLog(t *testing.T) {
	t.Parallel()
	bolt, err := openBolt(filepath.Join(t.TempDir(), "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer bolt.Close()
	l := &logStore{disk: bolt, stall: time.Minute, onFail: func(err error) { t.Error(err) }}
	expect := func(want uint64) {
		t.Helper()
		if got, err := l.committed(); err != nil || got != want {
			t.Errorf("commit index %d, %v; want %d", got, err, want)
		}
	}
	expect(0)
	entries := []*raft.Log{{Index: 1}, {Index: 2}, {Index: 3}}
	if err := l.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
	expect(0)
	if entries[2].Extensions != nil {
		t.Error("raft's own entry was changed")
	}
	if err := l.StageCommitIndex(3); err != nil {
		t.Fatal(err)
	}
	expect(0) // staged is not stored
	if err := l.StoreLogs([]*raft.Log{{Index: 4}, {Index: 5}}); err != nil {
		t.Fatal(err)
	}
	expect(3)
	if err := l.StageCommitIndex(99); err != nil {
		t.Fatal(err)
	}
	if err := l.StoreLog(&raft.Log{Index: 6}); err != nil {
		t.Fatal(err)
	}
	expect(6) // never above the last entry
	if err := l.DeleteRange(6, 6); err != nil {
		t.Fatal(err)
	}
	expect(3)
}

func TestDamagedFilesAreRefused(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, dir string){
		"snapshot": func(t *testing.T, dir string) {
			paths, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
			if err != nil || len(paths) == 0 {
				t.Fatalf("no snapshot: %v", err)
			}
			flip(t, paths[len(paths)-1])
		},
		"log entry": func(t *testing.T, dir string) {
			bolt, err := openBolt(filepath.Join(dir, "raft.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer bolt.Close()
			last, err := bolt.LastIndex()
			if err != nil || last < 3 {
				t.Fatalf("last index %d: %v", last, err)
			}
			if err := bolt.DeleteRange(last-1, last-1); err != nil { // a hole
				t.Fatal(err)
			}
		},
		"log file": func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "raft.db"), []byte(strings.Repeat("not a database ", 1000)), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			v := f.founded()
			f.propose([]*voter{v}, f.write(1))
			if err := v.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
			f.propose([]*voter{v}, f.write(2))
			f.propose([]*voter{v}, f.write(3))
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			damage(t, v.config.Dir)
			config, _ := f.config(f.first())
			if s, err := Open(config); !errors.Is(err, ErrDamaged) {
				t.Errorf("open: %v, want ErrDamaged", err)
				if err == nil {
					s.Close()
				}
			}
		})
	}
}

func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshotRestoresAndOthersCannotRead(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	v := f.founded()
	r := f.propose([]*voter{v}, f.write(4))
	if err := v.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	seen := 0
	err := filepath.WalkDir(v.config.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		seen++
		return nil
	})
	if err != nil || seen < 6 { // the folder, the log, snapshots, one of them, its two files
		t.Fatalf("%d files seen: %v", seen, err)
	}
	config, _ := f.config(f.first())
	if _, err := Open(config); !errors.Is(err, ErrInUse) {
		t.Errorf("a second open: %v, want ErrInUse", err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	v = f.open(f.first())
	if v.State().Index != r.Index {
		t.Errorf("state at %d after restart, want %d from the snapshot", v.State().Index, r.Index)
	}
}

func TestSinceGivesEveryChangeOnce(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	v := f.founded()
	state := v.State()
	var last store.Result
	for n := range 20 {
		last = f.propose([]*voter{v}, f.write(n+1))
	}
	for state.Index < last.Index {
		changes, ok := v.Since(state.Index, 7)
		if !ok || len(changes) == 0 || len(changes) > 7 {
			t.Fatalf("since %d: %d changes, %v", state.Index, len(changes), ok)
		}
		for _, c := range changes {
			if c.Prev != state.Index {
				t.Fatalf("change %d follows %d, want %d", c.Index, c.Prev, state.Index)
			}
			command, err := store.DecodeCommand(c.Command)
			if err != nil {
				t.Fatal(err)
			}
			state, _ = store.Apply(state, c.Index, command)
		}
	}
	if store.Hash(state) != store.Hash(v.State()) {
		t.Error("the followed state differs")
	}
	if changes, ok := v.Since(last.Index, 7); !ok || len(changes) != 0 {
		t.Errorf("since the newest: %d changes, %v", len(changes), ok)
	}
	for _, unknown := range []uint64{last.Index + 1, 1 << 60} {
		if _, ok := v.Since(unknown, 7); ok {
			t.Errorf("index %d is known", unknown)
		}
	}
}

func TestChangesAreBounded(t *testing.T) {
	t.Parallel()
	var m fsm
	m.state.Store(&store.State{Index: 3 * maxChanges})
	for i := range uint64(3 * maxChanges) {
		m.keep(Change{Prev: i, Index: i + 1, Command: make([]byte, 16)})
	}
	if len(m.changes) != maxChanges || m.bytes != 16*maxChanges {
		t.Errorf("%d changes, %d bytes", len(m.changes), m.bytes)
	}
	if _, ok := m.since(1, 1); ok {
		t.Error("a forgotten index is known")
	}
	m.keep(Change{Prev: 3 * maxChanges, Index: 3*maxChanges + 1, Command: make([]byte, maxChangeBytes)})
	if len(m.changes) != 1 {
		t.Errorf("%d changes beside a large one", len(m.changes))
	}
}

func TestNewerCommandStopsTheVoter(t *testing.T) {
	t.Parallel()
	var told error
	m := fsm{notify: func() { t.Error("the state changed") }, fail: func(err error) { told = err }}
	m.state.Store(store.New())
	good, err := store.EncodeCommand(store.Command{Now: time.Unix(1e9, 0), RevokeToken: &store.RevokeToken{ID: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	m.Apply(&raft.Log{Index: 5, Data: []byte(`{"version":99}`)})
	if !errors.Is(told, store.ErrNewer) {
		t.Errorf("owner was told %v, want ErrNewer", told)
	}
	if answer, ok := m.Apply(&raft.Log{Index: 6, Data: good}).(error); !ok || !errors.Is(answer, store.ErrNewer) {
		t.Errorf("a later entry gave %v", answer)
	}
	if m.state.Load().Index != 0 {
		t.Error("a later entry was applied over the gap")
	}
}
