package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/keyring"
	"guywire/mesh/transport"
	"guywire/store"
	"guywire/store/disk"
	"guywire/store/raftstore"
)

// quick keeps the tests short; a busy machine costs elections, not results.
var quick = raftstore.Timing{Heartbeat: 400 * time.Millisecond, Election: 400 * time.Millisecond, Lease: 300 * time.Millisecond, Commit: 20 * time.Millisecond}

// A machine is one node of a test: its state directory, its port, and its
// plane while it runs.
type machine struct {
	*Plane
	t      testing.TB
	path   string
	config Config
	stop   context.CancelFunc
	done   chan error
	offset atomic.Int64 // of its clock, nanoseconds
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{t: t, path: filepath.Join(t.TempDir(), "state")}
	m.config = Config{
		Listen: freePort(t), Timing: quick,
		Overlay: func(store.Node) []netip.AddrPort { return nil },
		Logger:  slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
		now:     func() time.Time { return time.Now().Add(time.Duration(m.offset.Load())) },
	}
	m.config.Advertise = func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort(m.config.Listen)} }
	m.load()
	t.Cleanup(func() {
		m.shut()
		m.unload()
	})
	return m
}

// freePort gives a loopback address of its own, so that no outgoing connection
// of another test can take its port in between.
func freePort(t testing.TB) string {
	t.Helper()
	n, pid := ports.Add(1), os.Getpid()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(1 + pid%250), byte(pid / 250), byte(n)}), uint16(20000+n)).String()
}

var ports atomic.Uint32

// load opens the state directory, making the identity at first.
func (m *machine) load() {
	m.t.Helper()
	state, err := disk.Open(m.path)
	if err != nil {
		m.t.Fatal(err)
	}
	ring, err := keyring.Open(state)
	if errors.Is(err, keyring.ErrNoIdentity) {
		ring, err = keyring.Create(state)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.config.State, m.config.Ring = state, ring
}

func (m *machine) unload() {
	if m.config.State == nil {
		return
	}
	if err := errors.Join(m.config.Ring.Close(), m.config.State.Close()); err != nil {
		m.t.Error(err)
	}
	m.config.State = nil
}

// run serves a plane that Init, Join or Open made.
func (m *machine) run(p *Plane, err error) *machine {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
	m.Plane = p
	ctx, cancel := context.WithCancel(context.Background())
	m.stop, m.done = cancel, make(chan error, 1)
	go func() { m.done <- p.Run(ctx) }()
	return m
}

// shut ends Run and gives its error.
func (m *machine) shut() error {
	if m.stop == nil {
		return nil
	}
	m.stop()
	return m.ended()
}

// ended waits until Run returns, which it does soon, and gives its error.
func (m *machine) ended() error {
	m.t.Helper()
	m.stop = nil
	select {
	case err := <-m.done:
		return err
	case <-time.After(patient):
		_ = pprof.Lookup("goroutine").WriteTo(m.t.Output(), 1)
		m.t.Fatal("the plane does not end; see its goroutines above")
		return nil
	}
}

func (m *machine) restart() {
	m.t.Helper()
	if err := m.shut(); err != nil {
		m.t.Fatal(err)
	}
	m.run(Open(m.config))
}

func founded(t testing.TB) *machine {
	t.Helper()
	m := newMachine(t)
	return m.run(Init(t.Context(), m.config, initRequest))
}

var initRequest = InitRequest{
	Mesh: "lab", Name: "one",
	Pool4: netip.MustParsePrefix("10.86.0.0/16"), Pool6: netip.MustParsePrefix("fd12:3456:789a::/48"),
}

func (m *machine) token(request TokenRequest) string {
	m.t.Helper()
	text, _, err := m.CreateToken(m.t.Context(), request)
	if err != nil {
		m.t.Fatal(err)
	}
	return text
}

// joined adds a node through m. It is an operator: most tests write from
// everywhere.
func (m *machine) joined(name string) *machine {
	m.t.Helper()
	return m.admitted(name, TokenRequest{Roles: []store.NodeRole{store.NodeOperator}})
}

func (m *machine) admitted(name string, request TokenRequest) *machine {
	m.t.Helper()
	n := newMachine(m.t)
	return n.run(Join(m.t.Context(), n.config, m.token(request), JoinRequest{Name: name}, nil))
}

// patient is for how long a test waits for what happens at once on an idle
// machine.
const patient = 50 * time.Second

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(patient)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("still not so: %s", what)
		}
		<-tick.C
	}
}

// three is a mesh of three voters and, after them, further nodes.
func three(t *testing.T, more ...string) []*machine {
	t.Helper()
	one := founded(t)
	all := []*machine{one, one.joined("two"), one.joined("three")}
	eventually(t, "three voters", func() bool { return voting(all) == 3 })
	for _, name := range more {
		all = append(all, one.joined(name))
	}
	return all
}

// voting is how many of the machines have an open log that names them voter.
func voting(all []*machine) int {
	n := 0
	for _, m := range all {
		st := m.Status()
		if st.Raft != nil && len(st.Raft.Voters) == 3 && !st.Raft.Leader.IsZero() && m.State().Nodes[m.ID()].Voter {
			n++
		}
	}
	return n
}

func (m *machine) propose(c store.Command) store.Result {
	m.t.Helper()
	c.By.Operator = m.State().Mesh.Version == 0
	r, err := m.Propose(m.t.Context(), c)
	if err != nil {
		m.t.Fatal(err)
	}
	if r.Refused != nil {
		m.t.Fatal(r.Refused)
	}
	return r
}

// grant is write number n: an operator's, distinguishable.
func (m *machine) grant(n int) store.Command {
	return store.Command{Grant: &store.Grant{
		Node: m.ID(), Prefixes: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.168.%d.0/24", n))},
	}}
}

func sameState(t testing.TB, all []*machine, index uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("all are at %d", index), func() bool {
		for _, m := range all {
			if m.State().Index < index {
				return false
			}
		}
		return true
	})
	eventually(t, "all states are equal", func() bool {
		for _, m := range all[1:] {
			if m.State().Index != all[0].State().Index || store.Hash(m.State()) != store.Hash(all[0].State()) {
				return false
			}
		}
		return true
	})
}

func TestInit(t *testing.T) {
	t.Parallel()
	m := founded(t)
	self := m.State().Nodes[m.ID()]
	if self.Name != "one" || !self.Voter || !self.Addr4.IsValid() || !self.Addr6.IsValid() || len(self.Control) != 1 {
		t.Errorf("first node: %+v", self)
	}
	st := m.Status()
	if st.Role != "voter" || st.Leader != m.ID() || len(st.Voters) != 1 || st.Lag != 0 {
		t.Errorf("status: %+v", st)
	}
	if err := m.shut(); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), m.config, initRequest); !errors.Is(err, ErrEnrolled) {
		t.Errorf("a second init: %v, want ErrEnrolled", err)
	}
	index := m.State().Index
	m.run(Open(m.config))
	if m.State().Index < index {
		t.Errorf("state at %d after restart, was at %d", m.State().Index, index)
	}
}

func TestFailedInitLeavesNothing(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	bad := initRequest
	bad.Pool4 = netip.MustParsePrefix("127.0.0.0/8")
	if _, err := Init(t.Context(), m.config, bad); err == nil || !strings.Contains(err.Error(), "127.0.0.0/8") {
		t.Fatalf("init with a bad pool: %v", err)
	}
	if _, err := Open(m.config); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("open after it: %v, want ErrNotEnrolled", err)
	}
	m.run(Init(t.Context(), m.config, initRequest))
}

func TestJoinMakesMembersAndVoters(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	r := all[3].propose(all[3].grant(7))
	sameState(t, all, r.Index)
	for i, name := range []string{"one", "two", "three", "four"} {
		self := all[i].State().Nodes[all[i].ID()]
		if self.Name != name || self.Voter != (i < 3) {
			t.Errorf("node %d: %+v", i, self)
		}
	}
	eventually(t, "the follower follows", func() bool {
		st := all[3].Status()
		return st.Role == "follower" && !st.Source.IsZero() && !st.Leader.IsZero() && st.Lag == 0
	})
	eventually(t, "one voter serves it, and nobody else", func() bool {
		var seen []mesh.NodeID
		for _, m := range all[:3] {
			seen = append(seen, m.Status().Followers...)
		}
		return len(seen) == 1 && seen[0] == all[3].ID()
	})
	if all[3].voter.authority() != nil {
		t.Error("a follower has the CA key")
	}
}

func TestRestartWithoutAnyone(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	r := all[0].propose(all[0].grant(9))
	sameState(t, all, r.Index)
	for _, m := range all {
		if err := m.shut(); err != nil {
			t.Fatal(err)
		}
	}
	for i, m := range all { // one at a time: each is alone
		p, err := Open(m.config)
		if err != nil {
			t.Fatalf("node %d: %v", i, err)
		}
		if got := p.State(); got.Index < r.Index || len(got.Nodes[all[0].ID()].Prefixes) != 1 {
			t.Errorf("node %d alone is at %d, want %d", i, got.Index, r.Index)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range all {
		m.run(Open(m.config))
	}
	r = all[3].propose(all[3].grant(10))
	sameState(t, all, r.Index)
}

func TestVoterWithoutQuorumCannotWrite(t *testing.T) {
	t.Parallel()
	all := three(t)
	for _, m := range all[1:] {
		if err := m.shut(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := all[0].Propose(ctx, all[0].grant(1)); !errors.Is(err, ErrNoVoter) {
		t.Errorf("propose: %v, want ErrNoVoter", err)
	}
}

func TestLeave(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	// The first one leaves: it may lead, and its vote goes to the follower.
	if err := all[0].Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := all[0].ended(); !errors.Is(err, ErrLeft) {
		t.Errorf("run returned %v, want ErrLeft", err)
	}
	if _, err := Open(all[0].config); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("open after leave: %v, want ErrNotEnrolled", err)
	}
	rest := all[1:]
	eventually(t, "the follower is a voter", func() bool { return voting(rest) == 3 })
	r := rest[0].propose(rest[0].grant(3))
	sameState(t, rest, r.Index)
	if _, gone := rest[0].State().Removed[all[0].ID()]; !gone {
		t.Error("no tombstone")
	}
	// The identity is not taken back.
	_, err := Join(t.Context(), all[0].config, rest[0].token(TokenRequest{}), JoinRequest{Name: "back"}, nil)
	if err == nil || !strings.Contains(err.Error(), "left the mesh") {
		t.Errorf("join with a used identity: %v", err)
	}
}

func TestTwoNodesAndTheOnlyVoterLeaves(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.joined("two")
	eventually(t, "the second is reachable", func() bool { return len(one.State().Nodes[two.ID()].Control) > 0 })
	if err := one.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := one.ended(); !errors.Is(err, ErrLeft) {
		t.Errorf("run returned %v, want ErrLeft", err)
	}
	r := two.propose(two.grant(1))
	if two.State().Index < r.Index || len(two.State().Nodes) != 1 {
		t.Errorf("state: %+v", two.State())
	}
	if err := two.Leave(t.Context()); err != nil { // the last one: the mesh ends
		t.Fatal(err)
	}
	if err := two.ended(); !errors.Is(err, ErrLeft) {
		t.Errorf("run returned %v", err)
	}
}

func TestRevokedNodeIsCutOff(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	bad := all[3]
	eventually(t, "it follows", func() bool { return !bad.Status().Source.IsZero() })
	all[1].propose(store.Command{RemoveNode: &store.RemoveNode{Node: bad.ID(), Revoke: true}})
	if err := bad.ended(); !errors.Is(err, ErrRemoved) {
		t.Errorf("run returned %v, want ErrRemoved", err)
	}
	// It comes again with its old certificate.
	p, err := Open(bad.config)
	if errors.Is(err, ErrRemoved) {
		return // it had learned of the tombstone
	}
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, m := range all[:3] {
		eventually(t, "the state has the tombstone", func() bool { _, gone := m.State().Removed[bad.ID()]; return gone })
		if err := p.Do(t.Context(), m.ID(), "GET", "/v1/raft", nil, nil); !hasCode(err, CodeRemoved) {
			t.Errorf("call after revocation: %v", err)
		}
	}
}

func TestRevokedVoterIsReplaced(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	all[3].propose(store.Command{RemoveNode: &store.RemoveNode{Node: all[1].ID(), Revoke: true}})
	rest := []*machine{all[0], all[2], all[3]}
	eventually(t, "the follower is a voter", func() bool { return voting(rest) == 3 })
	r := rest[2].propose(rest[2].grant(3))
	sameState(t, rest, r.Index)
}

// TestWaitingChangesShareConnections: many who wait for one voter take few
// connections of it, and calls that do not change anything are not behind them.
func TestWaitingChangesShareConnections(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.joined("two")
	var open, most atomic.Int64
	release, waiting := make(chan struct{}), make(chan struct{}, 100)
	one.Handle("POST /v1/wait", Member, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		most.Store(max(most.Load(), open.Add(1)))
		waiting <- struct{}{}
		<-release
		open.Add(-1)
		Reply(w, struct{}{})
	}))
	var calls sync.WaitGroup
	for range 3 * changeConns {
		calls.Go(func() {
			if _, err := two.atVoters(t.Context(), http.MethodPost, "/v1/wait", nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	for range changeConns {
		<-waiting
	}
	if err := two.Do(t.Context(), one.ID(), http.MethodGet, "/v1/raft", nil, nil); err != nil {
		t.Errorf("another call: %v", err)
	}
	close(release)
	calls.Wait()
	if n := most.Load(); n != changeConns {
		t.Errorf("%d calls at once, want %d", n, changeConns)
	}
}

func TestProposalsOfAllNodesAreAppliedOnce(t *testing.T) {
	t.Parallel()
	all := three(t, "four", "five")
	var tasks sync.WaitGroup
	for i, m := range all {
		tasks.Go(func() {
			for n := range 5 {
				if r, err := m.Propose(t.Context(), m.grant(10*i+n)); err != nil || r.Refused != nil {
					t.Errorf("write %d of %d: %v %v", n, i, err, r.Refused)
				}
			}
		})
	}
	tasks.Wait()
	sameState(t, all, all[0].State().Index)
	for i, m := range all {
		if got := all[0].State().Nodes[m.ID()].Prefixes; len(got) != 1 || got[0] != m.grant(10*i + 4).Grant.Prefixes[0] {
			t.Errorf("node %d has %v", i, got)
		}
	}
}

func TestReachIsMeasured(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := newMachine(t)
	two.config.Listen = "127.0.0.1:0" // the address that others see is not among those it advertises
	nowhere, other := netip.MustParseAddrPort(freePort(t)), netip.MustParseAddrPort(one.config.Listen)
	two.config.Advertise = func() []netip.AddrPort { return []netip.AddrPort{nowhere, other} }
	two.run(Join(t.Context(), two.config, one.token(TokenRequest{}), JoinRequest{Name: "two"}, nil))
	var control []netip.AddrPort
	eventually(t, "it was reached", func() bool { control = one.State().Nodes[two.ID()].Control; return len(control) > 0 })
	if len(control) != 1 || control[0] != two.Addr() {
		t.Errorf("control addresses %v, want only %s: nobody is at %s, and %s is another node", control, two.Addr(), nowhere, other)
	}
}

// Further ports are measured and named like the first, and so is one at the address
// that others see.
func TestReachOfFurtherPorts(t *testing.T) {
	t.Parallel()
	one := newMachine(t)
	one.config.Also = []string{netip.AddrPortFrom(netip.MustParseAddrPort(one.config.Listen).Addr(), 0).String()}
	one.config.Advertise = func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort(one.config.Listen)} }
	one.run(Init(t.Context(), one.config, initRequest))
	if got, open := one.State().Nodes[one.ID()].Control, one.listener.Also(); len(open) != 1 || len(got) != 2 || !slices.Contains(got, open[0]) {
		t.Errorf("the founder is reached at %v, its further port is %v", got, open)
	}
	two := newMachine(t)
	two.config.Listen, two.config.Also, two.config.Advertise = "127.0.0.1:0", []string{"127.0.0.1:0"}, nil // where others see it
	two.run(Join(t.Context(), two.config, one.token(TokenRequest{}), JoinRequest{Name: "two"}, nil))
	eventually(t, "both ports were reached", func() bool {
		got := one.State().Nodes[two.ID()].Control
		return len(got) == 2 && slices.Contains(got, two.Addr()) && slices.Contains(got, two.listener.Also()[0])
	})
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.joined("two")
	for _, m := range []*machine{one, two} {
		before := m.certificate.Load()
		if m.renewalDue(time.Now()) || !m.renewalDue(before.Leaf.NotAfter.Add(-transport.Lifetime*2/5)) {
			t.Error("renewal is not due at half of the life")
		}
		if err := m.renewOnce(); err != nil {
			t.Fatal(err)
		}
		if m.certificate.Load() == before {
			t.Error("the certificate is the old one")
		}
	}
	two.restart()
	two.propose(two.grant(1))
}

func TestCallerNamesAndMountedRoutes(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.joined("two")
	got := make(chan mesh.NodeID, 1)
	one.Handle("POST /v1/test", Member, handlerOf(got))
	var answer struct{ Name string }
	if err := two.Do(t.Context(), one.ID(), "POST", "/v1/test", struct{}{}, &answer); err != nil || answer.Name != "two" {
		t.Errorf("answer %+v, %v", answer, err)
	}
	if id := <-got; id != two.ID() {
		t.Errorf("caller %s, want %s", id, two.ID())
	}
	err := two.Do(t.Context(), one.ID(), "POST", "/v1/none", struct{}{}, nil)
	if !hasCode(err, store.CodeNotFound) || !strings.Contains(err.Error(), "call one:") {
		t.Errorf("unknown route: %v", err)
	}
	if err := two.Do(t.Context(), mesh.NodeID{9}, "POST", "/v1/test", nil, nil); err == nil {
		t.Error("an unknown node answered")
	}
}
