package bubble

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"guywire/mesh"
	"guywire/mesh/control"
	"guywire/mesh/keyring"
	"guywire/mesh/transport/transporttest"
	"guywire/store"
	"guywire/store/disk"
)

var (
	seed    = flag.Uint64("seed", 1, "of the first mesh's faults; each further mesh has the next")
	meshes  = flag.Int("meshes", 1, "how many meshes are broken, one after the other")
	minutes = flag.Int("minutes", 10, "how long each is broken, in the bubble's time")
)

const (
	voters    = 5
	followers = 3
	port      = 8686
)

// A bubble is a mesh with clock and network of a test.
type bubble struct {
	*testing.T
	net   transporttest.Network
	dir   string
	nodes []*node
	trace []string // what was done to it

	mu    sync.Mutex // guards what follows: what is known of all histories
	heads map[uint64]store.Digest
	given map[netip.Addr]mesh.NodeID // I3: who has or had an address
	acked map[string]uint64          // reservations that were acknowledged, and where
	tried int
}

// A node is one machine: its files, and its plane while it runs.
type node struct {
	b       *bubble
	name    string
	addr    netip.Addr
	plane   *control.Plane
	newest  *store.State // that it ever showed
	stop    context.CancelFunc
	done    chan error
	release func() error
}

// TestBubble breaks meshes of five voters and some followers by partitions,
// cuts of one direction and crashes, while operators write on all nodes. No
// follower goes back; all agree on the history; nothing acknowledged is lost,
// and no address is given twice.
func TestBubble(t *testing.T) {
	for i := range *meshes {
		n := *seed + uint64(i)
		t.Run(fmt.Sprintf("seed %d", n), func(t *testing.T) {
			began := time.Now()
			t.Cleanup(func() {
				t.Logf("%d minutes in %s", *minutes, time.Since(began).Round(100*time.Millisecond))
				if t.Failed() {
					t.Logf("to repeat it, if the scheduler will: go test ./integration/bubble -run 'TestBubble$' -v -args -seed %d -minutes %d", n, *minutes)
				}
			})
			dir := memoryDir(t)
			synctest.Test(t, func(t *testing.T) { breakMesh(t, dir, rand.New(rand.NewPCG(n, 0))) })
		})
	}
}

// TestB33MassRestart: all voters and followers restart at once, and the mesh
// is as it was.
func TestB33MassRestart(t *testing.T) {
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		b := found(t, dir)
		defer b.end()
		b.write(b.nodes[0])
		for _, n := range b.nodes {
			n.crash()
		}
		random := rand.New(rand.NewPCG(33, 0))
		for _, i := range random.Perm(len(b.nodes)) {
			time.Sleep(time.Duration(random.IntN(5000/len(b.nodes))) * time.Millisecond)
			b.nodes[i].open()
		}
		began := time.Now()
		b.settle(time.Minute)
		t.Logf("all agree %s after the last one started", time.Since(began).Round(time.Millisecond))
	})
}

// memoryDir is a folder for files that need not last.
func memoryDir(t *testing.T) string {
	if dir, err := os.MkdirTemp("/dev/shm", "guywire-bubble-"); err == nil {
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		return dir
	}
	return t.TempDir()
}

// found makes the mesh and waits for its voters.
func found(t *testing.T, dir string) *bubble {
	t.Helper()
	b := &bubble{
		T: t, dir: dir,
		heads: map[uint64]store.Digest{}, given: map[netip.Addr]mesh.NodeID{}, acked: map[string]uint64{},
	}
	first := b.machine("n0", 0)
	first.run(control.Init(t.Context(), first.config(), control.InitRequest{
		Mesh: "bubble", Name: first.name, Pool4: netip.MustParsePrefix("10.86.0.0/16"), Pool6: netip.MustParsePrefix("fd12:3456:789a::/48"),
	}))
	five := voters
	if _, err := first.plane.Operate(t.Context(), store.Command{SetSettings: &store.SetSettings{Voters: &five}}); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < voters+followers; i++ {
		roles := []store.NodeRole{store.NodeOperator}
		if i >= voters {
			roles = []store.NodeRole{store.NodeNoVote, store.NodeOperator}
		}
		text, _, err := first.plane.CreateToken(t.Context(), control.TokenRequest{Roles: roles})
		if err != nil {
			t.Fatal(err)
		}
		n := b.machine(fmt.Sprintf("n%d", i), i)
		n.run(control.Join(t.Context(), n.config(), text, control.JoinRequest{Name: n.name}, nil))
	}
	b.within("five voters", 10*time.Minute, func() bool { return b.voting() == voters })
	return b
}

func (b *bubble) voting() int {
	n := 0
	for _, m := range b.nodes[0].plane.State().Nodes {
		if m.Voter {
			n++
		}
	}
	return n
}

func (b *bubble) machine(name string, i int) *node {
	n := &node{b: b, name: name, addr: netip.AddrFrom4([4]byte{198, 18, byte(i), 1}), newest: store.New()}
	b.nodes = append(b.nodes, n)
	return n
}

// config opens the node's state directory and takes its port.
func (n *node) config() control.Config {
	n.b.Helper()
	c, release, err := n.b.open(n.name, netip.AddrPortFrom(n.addr, port))
	if err != nil {
		n.b.Fatal(err)
	}
	n.release = release
	return c
}

func (b *bubble) open(name string, at netip.AddrPort) (control.Config, func() error, error) {
	state, err := disk.Open(filepath.Join(b.dir, name))
	if err != nil {
		return control.Config{}, nil, err
	}
	ring, err := keyring.Open(state)
	if errors.Is(err, keyring.ErrNoIdentity) {
		ring, err = keyring.Create(state)
	}
	if err != nil {
		return control.Config{}, nil, errors.Join(err, state.Close())
	}
	listener, err := b.net.Listen(at)
	if err != nil {
		return control.Config{}, nil, errors.Join(err, ring.Close(), state.Close())
	}
	return control.Config{
		State: state, Ring: ring, Listener: listener, Network: b.net.Dialer(at.Addr()), Logger: slog.New(slog.DiscardHandler),
		Advertise: func() []netip.AddrPort { return []netip.AddrPort{at} },
		Overlay:   func(store.Node) []netip.AddrPort { return nil },
	}, func() error { return errors.Join(ring.Close(), state.Close()) }, nil
}

// run serves a plane and watches all that it shows.
func (n *node) run(p *control.Plane, err error) {
	n.b.Helper()
	if err != nil {
		n.b.Fatalf("%s: %v", n.name, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	n.plane, n.stop, n.done = p, stop, make(chan error, 1)
	go func() {
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		for {
			n.see(p.State())
			select {
			case <-p.Updates():
			case err := <-ended:
				n.see(p.State())
				n.done <- err
				return
			}
		}
	}()
}

// see holds a state that a node shows against all others that were ever seen.
func (n *node) see(s *store.State) {
	b := n.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if n.newest.Newer(s) {
		b.Errorf("%s went back from %d to %d", n.name, n.newest.Index, s.Index)
	}
	if s.Index == n.newest.Index {
		return
	}
	n.newest = s
	_, index, head := s.Head()
	if other, known := b.heads[index]; known && other != head {
		b.Errorf("%s has another history at %d than another node", n.name, index)
	}
	b.heads[index] = head
	for id, m := range s.Nodes {
		if other, known := b.given[m.Addr4]; known && other != id {
			b.Errorf("%s was given to %s and to %s", m.Addr4, other, id)
		}
		b.given[m.Addr4] = id
	}
	for name, at := range b.acked { // I4: in each state from there on
		if _, there := s.Reserved[name]; !there && s.Index >= at {
			b.Errorf("%s, acknowledged at %d, is not in the state of %s at %d", name, at, n.name, s.Index)
		}
	}
}

// crash cuts the machine off and ends it, so that it can tell nobody.
func (n *node) crash() {
	n.b.Helper()
	if n.plane == nil {
		return
	}
	n.stop()
	if err := <-n.done; err != nil {
		n.b.Errorf("%s: %v", n.name, err)
	}
	if err := n.release(); err != nil {
		n.b.Error(err)
	}
	n.plane = nil
}

func (n *node) open() {
	n.b.Helper()
	if n.plane == nil {
		n.run(control.Open(n.config()))
	}
}

func (b *bubble) end() {
	b.net.Cut(nil)
	for _, n := range b.nodes {
		n.crash()
	}
	if b.Failed() {
		for _, line := range b.trace {
			b.Log(line)
		}
	}
}

func (b *bubble) say(format string, args ...any) {
	b.trace = append(b.trace, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

// within waits for something in the time of the bubble.
func (b *bubble) within(what string, limit time.Duration, done func() bool) {
	b.Helper()
	for began := time.Now(); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > limit {
			for _, n := range b.nodes {
				if n.plane != nil {
					b.Logf("%s at %d: %+v", n.name, n.plane.State().Index, n.plane.Status().Raft)
				}
			}
			b.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// write makes one change through a node; what was acknowledged must last.
func (b *bubble) write(n *node) bool {
	b.mu.Lock()
	b.tried++
	name := fmt.Sprintf("w-%d", b.tried)
	addr := netip.AddrFrom4([4]byte{10, 86, byte(100 + b.tried/250), byte(1 + b.tried%250)})
	b.mu.Unlock()
	r, err := n.plane.Operate(b.Context(), store.Command{Reserve: &store.Reserve{Name: name, Addr: addr}})
	if err != nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.acked[name] = r.Index
	return true
}

// read checks that a linearizable read has all that was acknowledged before.
func (b *bubble) read(n *node) {
	b.mu.Lock()
	before := maps.Clone(b.acked)
	b.mu.Unlock()
	s, err := n.plane.Read(b.Context())
	if err != nil {
		return
	}
	for name := range before {
		if _, there := s.Reserved[name]; !there {
			b.Errorf("a read on %s does not have %s, which was acknowledged before", n.name, name)
		}
	}
}

// settle heals all and waits until everybody agrees.
func (b *bubble) settle(limit time.Duration) {
	b.Helper()
	b.net.Cut(nil)
	for _, n := range b.nodes {
		n.open()
	}
	b.within("a write", limit, func() bool { return b.write(b.nodes[voters]) })
	b.within("all agree", limit, func() bool {
		want := store.Hash(b.nodes[0].plane.State())
		return !slices.ContainsFunc(b.nodes, func(n *node) bool { return store.Hash(n.plane.State()) != want })
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	for name := range b.acked {
		if _, there := b.nodes[0].plane.State().Reserved[name]; !there {
			b.Errorf("%s was acknowledged and is lost", name)
		}
	}
}

func breakMesh(t *testing.T, dir string, random *rand.Rand) {
	b := found(t, dir)
	defer b.end()
	until := time.Now().Add(time.Duration(*minutes) * time.Minute)
	joined := 0
	for time.Now().Before(until) && !t.Failed() {
		undo := b.harm(random)
		// Everybody who runs works meanwhile.
		var work sync.WaitGroup
		for i, n := range b.nodes {
			if n.plane == nil {
				continue
			}
			choice, pause := random.IntN(3), time.Duration(random.IntN(4000))*time.Millisecond
			work.Go(func() {
				time.Sleep(pause)
				switch {
				case choice == 0:
					b.read(n)
				case choice == 1 && i == 0:
					joined++
					b.join(n, joined)
				default:
					b.write(n)
				}
			})
		}
		time.Sleep(time.Duration(3000+random.IntN(12000)) * time.Millisecond)
		work.Wait() // before anybody is stopped or started
		undo()
		time.Sleep(time.Duration(random.IntN(5000)) * time.Millisecond)
	}
	b.settle(2 * time.Minute)
	b.mu.Lock()
	defer b.mu.Unlock()
	t.Logf("%d faults; %d of %d writes acknowledged, %d addresses given, %d states seen", len(b.trace), len(b.acked), b.tried, len(b.given), len(b.heads))
	if len(b.acked) < 5**minutes {
		t.Errorf("only %d writes of %d were acknowledged", len(b.acked), b.tried)
	}
}

// join admits a node that never runs.
func (b *bubble) join(through *node, number int) {
	text, _, err := through.plane.CreateToken(b.Context(), control.TokenRequest{})
	if err != nil {
		return
	}
	name := fmt.Sprintf("j%d", number)
	config, release, err := b.open(name, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 19, byte(number), 1}), port))
	if err != nil {
		b.Error(err)
		return
	}
	p, err := control.Join(b.Context(), config, text, control.JoinRequest{Name: name}, nil)
	if err == nil {
		err = p.Close()
		if err != nil {
			b.Error(err)
		}
	}
	if err := release(); err != nil {
		b.Error(err)
	}
}

// harm breaks something and gives what mends it.
func (b *bubble) harm(random *rand.Rand) (undo func()) {
	some := func(n int) []*node {
		picked := slices.Clone(b.nodes)
		random.Shuffle(len(picked), func(i, j int) { picked[i], picked[j] = picked[j], picked[i] })
		return picked[:n]
	}
	names := func(nodes []*node) (list []string) {
		for _, n := range nodes {
			list = append(list, n.name)
		}
		return list
	}
	in := func(nodes []*node, a netip.Addr) bool {
		return slices.ContainsFunc(nodes, func(n *node) bool { return n.addr == a })
	}
	mend := func() { b.net.Cut(nil) }
	switch random.IntN(4) {
	case 0:
		part := some(1 + random.IntN(4))
		b.say("%v are parted from the others", names(part))
		b.net.Cut(func(from, to netip.Addr) bool { return in(part, from) != in(part, to) })
		return mend
	case 1:
		deaf := some(1)
		b.say("%v is not heard", names(deaf))
		b.net.Cut(func(from, _ netip.Addr) bool { return in(deaf, from) })
		return mend
	case 2:
		pair := some(2)
		b.say("%v do not reach each other", names(pair))
		b.net.Cut(func(from, to netip.Addr) bool { return in(pair, from) && in(pair, to) })
		return mend
	default:
		down := some(1 + random.IntN(2))
		b.say("%v crash", names(down))
		b.net.Cut(func(from, to netip.Addr) bool { return in(down, from) || in(down, to) })
		for _, n := range down {
			n.crash()
		}
		b.net.Cut(nil)
		return func() {
			for _, n := range down {
				n.open()
			}
		}
	}
}
