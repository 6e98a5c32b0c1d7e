package control

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
	"guywire/store/cache"
	"guywire/store/raftstore"
)

// signed makes a command m's, as of a state.
func (m *machine) signed(s *store.State, c store.Command) store.Command {
	m.t.Helper()
	if s.Mesh.Version == 0 && c.SetVersion == nil && c.Recover == nil {
		c.By = store.Authority{Node: m.ID(), Operator: true}
		return c
	}
	c.Author, c.After, c.Request = m.config.Ring.Identity(), s.Index, store.Nonce{byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32()), 1}
	c, err := store.SignCommand(c, s.Mesh.ID, m.config.Ring.Sign)
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// foundedAt is founded for a mesh of a version: 0 is what was made before
// commands were signed. An old follower of it keeps it there.
func foundedAt(t *testing.T, version int) *machine {
	t.Helper()
	m := newMachine(t)
	f, err := prepare(m.config)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlane(m.config, f)
	if err != nil {
		t.Fatal(errors.Join(err, f.close()))
	}
	if version < store.Version {
		p.streams.enter(mesh.NodeID{}, version)
	}
	if err := p.found(t.Context(), initRequest, version); err != nil {
		t.Fatal(errors.Join(err, p.abandon()))
	}
	return m.run(p, nil)
}

// elsewhere gives the state after n grants that the mesh never saw, in the
// name of the operator on m.
func (m *machine) elsewhere(s *store.State, n int) *store.State {
	m.t.Helper()
	for i := range n {
		c := m.signed(s, m.grant(200+i))
		c.Version, c.Now = store.Version, time.Now()
		after, r := store.Apply(s, s.Index+1, c)
		if r.Refused != nil {
			m.t.Fatal(r.Refused)
		}
		s = after
	}
	return s
}

// remembers puts a state into the cache of a machine that does not run.
func (m *machine) remembers(s *store.State, stamp cache.Stamp) {
	m.t.Helper()
	kept, err := cache.Open(m.config.State, m.config.Ring)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := errors.Join(kept.SaveState(s, stamp), kept.Close()); err != nil {
		m.t.Fatal(err)
	}
}

// pair is a mesh of one voter and one follower, at version 0 or the newest.
func pair(t *testing.T, version int) (one, two *machine) {
	one = foundedAt(t, version)
	two = one.admitted("two", TokenRequest{})
	eventually(t, "the second was measured", func() bool { return len(one.State().Nodes[two.ID()].Control) > 0 })
	sameState(t, []*machine{one, two}, one.State().Index)
	return one, two
}

var now = cache.Stamp{Saved: time.Now(), Confirmed: time.Now()}

func TestDivergedFollowerResyncs(t *testing.T) {
	t.Parallel()
	one, two := pair(t, store.Version)
	if err := two.shut(); err != nil {
		t.Fatal(err)
	}
	base := one.State()
	wrong := one.elsewhere(base, 2)
	for n := range 5 {
		one.propose(one.grant(n))
	}
	two.remembers(wrong, now)
	two.run(Open(two.config))
	sameState(t, []*machine{one, two}, one.State().Index)
	r := one.propose(one.grant(9))
	sameState(t, []*machine{one, two}, r.Index)
	eventually(t, "nothing is disputed any more", func() bool { return len(two.Status().Disputed) == 0 })
	// What it had is kept.
	file, err := os.ReadFile(filepath.Join(two.path, "cache", "state.diverged"))
	if err != nil {
		t.Fatal(err)
	}
	if snapshot, err := store.Snapshot(wrong); err != nil || !bytes.HasSuffix(file, snapshot) {
		t.Error("another state was set aside")
	}
}

// One voter that says otherwise proves nothing; a majority does.
func TestMostVotersDecideWhoDiverged(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	four := all[3]
	eventually(t, "it follows", func() bool {
		return !four.Status().Source.IsZero() && voting(all[:3]) == 3 && len(four.Status().Voters) == 3
	})
	eventually(t, "its cache is written", func() bool {
		_, err := os.Stat(filepath.Join(four.path, "cache", "state"))
		return err == nil
	})
	for range 2 {
		if four.dispute(all[0].ID()) || four.following.wantsAnew() {
			t.Fatal("one voter of three was believed")
		}
	}
	if !four.dispute(all[1].ID()) || !four.following.wantsAnew() {
		t.Error("two voters of three were not believed")
	}
}

func TestFollowerAheadIsNotFed(t *testing.T) {
	t.Parallel()
	for version, name := range map[int]string{0: "without trail", 3: "with trail"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			one, two := pair(t, version)
			if err := two.shut(); err != nil {
				t.Fatal(err)
			}
			ahead := one.elsewhere(one.State(), 5)
			two.remembers(ahead, now)
			two.run(Open(two.config))
			eventually(t, "it is told that the voter is behind", func() bool { return slices.Equal(two.Status().Behind, []mesh.NodeID{one.ID()}) })
			for n := range 3 {
				one.propose(one.grant(n))
			}
			if st := two.Status(); st.Index != ahead.Index || !st.Source.IsZero() || store.Hash(two.State()) != store.Hash(ahead) {
				t.Errorf("it was fed: %+v", st)
			}
			for n := range 7 {
				one.propose(one.grant(10 + n))
			}
			sameState(t, []*machine{one, two}, one.State().Index)
			eventually(t, "it follows and the voter is not behind", func() bool {
				st := two.Status()
				return st.Source == one.ID() && len(st.Behind) == 0
			})
		})
	}
}

// TestGenerationWins: after a recovery from an older state, a follower that
// was further on takes the newer generation, and no voter of the older one
// gets it back.
func TestGenerationWins(t *testing.T) {
	t.Parallel()
	one, two := pair(t, store.Version)
	base := one.State()
	for n := range 5 {
		one.propose(one.grant(n))
	}
	sameState(t, []*machine{one, two}, one.State().Index)
	lost := one.State()
	if err := one.shut(); err != nil {
		t.Fatal(err)
	}
	command := one.signed(base, store.Command{Recover: &store.Recover{Node: one.ID(), Generation: 1}})
	command.Version, command.Now = store.Version, time.Now()
	state, r := store.Recovered(base, command)
	if r.Refused != nil {
		t.Fatal(r.Refused)
	}
	if err := raftstore.Recover(one.files.raft(), one.ID(), state); err != nil {
		t.Fatal(err)
	}
	one.run(Open(one.config))
	eventually(t, "the follower is in the new generation", func() bool { return two.Status().Generation == 1 })
	if two.State().Index >= lost.Index {
		t.Errorf("the follower is at %d", two.State().Index)
	}
	w := one.propose(one.grant(77))
	sameState(t, []*machine{one, two}, w.Index)
	two.advance(lost)
	if two.State().Mesh.Generation != 1 {
		t.Error("the lost generation came back")
	}
	later := position{Generation: 2, Index: 1}
	if err := two.Do(t.Context(), one.ID(), http.MethodGet, "/v1/follow?"+later.query().Encode(), nil, nil); !hasCode(err, CodeBehind) {
		t.Errorf("a follower of a later generation: %v", err)
	}
	two.restart()
	if two.State().Mesh.Generation != 1 {
		t.Error("the lost generation was in the cache")
	}
}

// A raw stream is one that a test reads as slowly as it likes.
type raw struct {
	body      io.ReadCloser
	r         *bufio.Reader
	state     *store.State
	snapshots int
}

func (m *machine) stream(from *machine, pos position) *raw {
	m.t.Helper()
	r, err := http.NewRequestWithContext(m.t.Context(), http.MethodGet, "https://"+from.ID().String()+"/v1/follow?"+pos.query().Encode(), nil)
	if err != nil {
		m.t.Fatal(err)
	}
	answer, err := m.client.Do(r)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = answer.Body.Close() })
	if answer.StatusCode != http.StatusOK {
		m.t.Fatal(readAnswer(answer, nil))
	}
	return &raw{body: answer.Body, r: bufio.NewReader(answer.Body), state: store.New()}
}

// read applies one frame.
func (r *raw) read() error {
	kind, payload, err := readFrame(r.r)
	if err != nil {
		return err
	}
	if kind == frameSnapshot {
		r.snapshots++
	}
	r.state, _, err = next(r.state, kind, payload)
	return err
}

// to reads until the state is at index.
func (r *raw) to(t testing.TB, index uint64) {
	t.Helper()
	for r.state.Index < index {
		if err := r.read(); err != nil {
			t.Fatalf("at %d of %d: %v", r.state.Index, index, err)
		}
	}
}

// flood writes more than the voter keeps in memory for followers. The entries
// are refused, which changes no more than the index.
func (m *machine) flood() uint64 {
	m.t.Helper()
	log := m.voter.store()
	for range 80 {
		c := m.signed(log.State(), store.Command{RevokeToken: &store.RevokeToken{ID: strings.Repeat("x", store.MaxCommandBytes*9/10)}})
		if _, err := log.Propose(m.t.Context(), c); err != nil {
			m.t.Fatal(err)
		}
	}
	return log.State().Index
}

// TestStarvedStream: a follower that reads nothing for long loses nothing and
// sees nothing twice or out of order (etcd #17529).
func TestStarvedStream(t *testing.T) {
	t.Parallel()
	one, two := pair(t, 0)
	stream := two.stream(one, position{})
	stream.to(t, one.State().Index)
	one.flood()
	stream.to(t, one.propose(one.grant(1)).Index)
	if store.Hash(stream.state) != store.Hash(one.State()) {
		t.Error("the follower has another state")
	}
	if stream.snapshots < 2 {
		t.Errorf("%d snapshots: the stream was not starved", stream.snapshots)
	}
}

// TestTwoSnapshotsCloseTogether: on one stream, and on many while the state
// changes (etcd #18055); those who come together share the encoding.
func TestTwoSnapshotsCloseTogether(t *testing.T) {
	t.Parallel()
	one, two := pair(t, store.Version)
	log := one.voter.store()
	first, at, err := one.streams.frame(log, position{})
	if err != nil {
		t.Fatal(err)
	}
	one.propose(one.grant(1))
	again, _, err := one.streams.frame(log, position{})
	if err != nil || &first[0] != &again[0] {
		t.Errorf("a second follower had its own snapshot (%v)", err)
	}
	newer, then, err := one.streams.frame(log, at)
	if err != nil || then.compare(at) <= 0 || &first[0] == &newer[0] {
		t.Errorf("a follower at %+v got %+v (%v)", at, then, err)
	}

	var tasks sync.WaitGroup
	var streams []*raw
	for range 10 {
		streams = append(streams, two.stream(one, position{}), two.stream(one, position{Index: 1}))
	}
	tasks.Go(func() {
		for n := range 20 {
			if r, err := one.Propose(t.Context(), one.grant(n)); err != nil || r.Refused != nil {
				t.Error(err, r.Refused)
			}
		}
	})
	tasks.Wait()
	want := one.State()
	for _, s := range streams {
		s.to(t, want.Index)
		if store.Hash(s.state) != store.Hash(want) || s.snapshots != 1 {
			t.Errorf("after %d snapshots the state is another", s.snapshots)
		}
	}

	// One follower, two snapshots, the second right behind the first.
	starved := two.stream(one, position{})
	starved.to(t, one.flood())
	if store.Hash(starved.state) != store.Hash(one.State()) || starved.snapshots < 2 {
		t.Errorf("the follower of %d snapshots has another state, or was not starved", starved.snapshots)
	}
}

// TestNoWatchGoesBack: whatever arrives from whom in whatever order, nobody
// who looks at the state sees an older one (etcd #15271).
func TestNoWatchGoesBack(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	f, err := openFiles(m.config.State)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlane(m.config, f)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(p.abandon(), f.close()); err != nil {
			t.Error(err)
		}
	}()
	var sources, watchers sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		watchers.Go(func() {
			last := p.State()
			for {
				s := p.State()
				if last.Newer(s) {
					t.Errorf("%+v came after %+v", positionOf(s), positionOf(last))
					return
				}
				last = s
				select {
				case <-p.Updates():
				case <-done:
					return
				}
			}
		})
	}
	newest := make([]*store.State, 4)
	for i := range newest {
		sources.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			newest[i] = store.New()
			for range 5000 {
				s := store.New()
				s.Mesh.Generation, s.Index = uint64(r.IntN(5)), uint64(r.IntN(10_000))
				if p.advance(s); s.Newer(newest[i]) {
					newest[i] = s
				}
			}
		})
	}
	sources.Wait()
	close(done)
	watchers.Wait()
	for _, s := range newest {
		if s.Newer(p.State()) {
			t.Errorf("%+v was not taken", positionOf(s))
		}
	}
}

func TestHeadTellsWhereNodesStand(t *testing.T) {
	t.Parallel()
	one, two := pair(t, store.Version)
	base := positionOf(one.State())
	one.propose(one.grant(1))
	sameState(t, []*machine{one, two}, one.State().Index)
	own := positionOf(one.State())
	for _, tc := range []struct {
		at   position
		want raftstore.Verdict
	}{
		{own, raftstore.Known},
		{base, raftstore.Known},
		{position{own.Generation, own.Index, base.Head}, raftstore.Diverged},
		{position{own.Generation, own.Index + 1, own.Head}, raftstore.Ahead},
		{position{own.Generation + 1, 1, own.Head}, raftstore.Ahead},
		{position{own.Generation, 1, own.Head}, raftstore.Unknown},
	} {
		var answer headAnswer
		if err := two.Do(t.Context(), one.ID(), http.MethodGet, "/v1/head?"+tc.at.query().Encode(), nil, &answer); err != nil {
			t.Fatal(err)
		}
		if answer.Verdict != tc.want || answer.position != own || answer.Leader != one.ID() {
			t.Errorf("%+v: %+v", tc.at, answer)
		}
	}
	var answer headAnswer
	eventually(t, "the follower says where it is", func() bool {
		err := one.Do(t.Context(), two.ID(), http.MethodGet, "/v1/head", nil, &answer)
		return err == nil && answer.Leader == one.ID()
	})
	if answer.position != own || answer.Verdict != "" || answer.Version != store.Version {
		t.Errorf("the follower answers %+v", answer)
	}
	// What other voters have told while its own log was out of service.
	told := *one.State()
	told.Index += 5
	one.advance(&told)
	if err := two.Do(t.Context(), one.ID(), http.MethodGet, "/v1/head", nil, &answer); err != nil || answer.Index != told.Index || answer.Leader != one.ID() {
		t.Errorf("with a log that lags behind its state it answers %+v, %v", answer, err)
	}
	stream := two.stream(one, own) // one that does not say its version
	eventually(t, "an old follower counts", func() bool { return one.streams.version() == 2 })
	if err := stream.body.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "it is gone", func() bool { return one.streams.version() == store.Version })
}

func TestLag(t *testing.T) {
	t.Parallel()
	var l lag
	start := time.Unix(1e9, 0)
	for i, step := range []struct {
		own, other uint64
		want       time.Duration
	}{
		{5, 7, 0}, {5, 9, time.Second}, {6, 9, 2 * time.Second}, {7, 9, 0}, {8, 9, time.Second}, {9, 9, 0}, {9, 8, 0}, {9, 8, 0},
	} {
		if got := l.after(position{Index: step.own}, position{Index: step.other}, start.Add(time.Duration(i)*time.Second)); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
	if (&lag{mark: position{Generation: 1}}).after(position{Index: 99}, position{}, start) == 0 {
		t.Error("an older generation passes for newer")
	}
}

// TestB24OpenStreamsEndWithTheRight: what a node has open ends when the mesh
// takes its right away, not when it comes to call again.
func TestB24OpenStreamsEndWithTheRight(t *testing.T) {
	t.Parallel()
	all := three(t, "four", "five")
	one, two, four := all[0], all[1], all[3]
	open := func(m *machine, alpn string) *tls.Conn {
		conn, err := m.dialer.Dial(t.Context(), one.ID(), alpn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	ended := func(what string, r io.Reader) func() {
		end := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, r) // until it ends in whatever way
			close(end)
		}()
		select {
		case <-end:
			t.Fatalf("%s had ended before", what)
		default:
		}
		return func() {
			t.Helper()
			select {
			case <-end:
			case <-time.After(30 * time.Second):
				t.Errorf("%s goes on", what)
			}
		}
	}
	isOpen := func(c net.Conn) {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, err := c.Read(make([]byte, 1))
		if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
			t.Fatalf("the connection is not open: %v", err)
		}
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
	}

	// A voter that goes on as a member loses its Raft connections only, and
	// serves nobody any more.
	raft := open(two, transport.Raft)
	isOpen(raft)
	served := four.stream(two, position{})
	raftEnded := ended("the Raft connection of a former voter", raft)
	if err := two.giveUpVote(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is no voter", func() bool { return !one.State().Nodes[two.ID()].Voter })
	raftEnded()
	var end error
	for end == nil {
		end = served.read()
	}
	if !hasCode(end, CodeNotVoter) {
		t.Errorf("the stream from a former voter ended with %v", end)
	}
	if err := two.Do(t.Context(), one.ID(), http.MethodGet, "/v1/head", nil, nil); err != nil {
		t.Errorf("a former voter is a member: %v", err)
	}

	// A node that is revoked loses everything.
	follow := four.stream(one, position{})
	idle := open(four, transport.Control)
	if _, err := io.WriteString(idle, "GET /v1/head HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(idle), nil)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("a call before: %v %v", answer, err)
	}
	if err := answer.Body.Close(); err != nil {
		t.Fatal(err)
	}
	waits := []func(){ended("the follow stream", follow.body), ended("an idle connection", idle)}
	one.propose(store.Command{RemoveNode: &store.RemoveNode{Node: four.ID(), Revoke: true}})
	for _, wait := range waits {
		wait()
	}
	if err := four.ended(); !errors.Is(err, ErrRemoved) {
		t.Errorf("run returned %v", err)
	}
}

// A node whose cache is too old knows where the voters are, but nothing may be
// built from what it knows until one of them answers.
func TestExpiredCacheWaitsForAVoter(t *testing.T) {
	t.Parallel()
	one, two := pair(t, store.Version)
	limit := time.Hour
	r := one.propose(store.Command{SetSettings: &store.SetSettings{CacheMaxAge: &limit}})
	sameState(t, []*machine{one, two}, r.Index)
	for _, m := range []*machine{two, one} {
		if err := m.shut(); err != nil {
			t.Fatal(err)
		}
	}
	saved := time.Now().Add(-2 * limit)
	two.remembers(two.State(), cache.Stamp{Saved: saved, Confirmed: saved})
	two.run(Open(two.config))
	if st := two.Status(); !two.Expired() || !st.Expired || st.Index < r.Index || st.Confirmed.Unix() != saved.Unix() {
		t.Errorf("without a voter: %+v", st)
	}
	two.restart() // nothing has made it younger
	if !two.Expired() {
		t.Error("a restart confirmed the state")
	}
	for len(two.Updates()) > 0 {
		<-two.Updates()
	}
	one.run(Open(one.config))
	<-two.Updates()
	eventually(t, "a voter confirms it", func() bool { return !two.Expired() })
	if st := two.Status(); time.Since(st.Confirmed) > limit {
		t.Errorf("confirmed: %+v", st)
	}
	two.restart()
	if two.Expired() {
		t.Error("the confirmation was forgotten")
	}
}
