package gossip_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"guywire/discovery"
	"guywire/discovery/gossip"
	"guywire/discovery/gossip/gossiptest"
	"guywire/mesh"
	"guywire/routing/topology/coordinate"
)

var label = mesh.MeshID{7}

// A node is a member with an owner that verifies and passes on, as the agent
// does.
type node struct {
	key    mesh.IdentityKey
	priv   ed25519.PrivateKey
	addr   netip.AddrPort
	gossip *gossip.Gossip
	stop   func()

	mu  sync.Mutex
	dir *discovery.Directory
	ups map[mesh.NodeID]bool
	// downs are how often somebody was given up.
	downs int
}

type cluster struct {
	t     *testing.T
	net   gossiptest.Network
	nodes []*node
	keys  map[mesh.NodeID]*node

	gossipKeys gossip.Keys
	measured   int // of how many others each tells the distance: it makes what it says longer
}

// keyOf is a gossip key; using is how to accept it, and use it.
func keyOf(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func using(b byte) gossip.Keys { return gossip.Keys{Use: keyOf(b), Accept: [][]byte{keyOf(b)}} }

func newCluster(t *testing.T, n int) *cluster {
	c := &cluster{t: t, keys: make(map[mesh.NodeID]*node), gossipKeys: using(9)}
	for i := range n {
		priv := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 16))
		nd := &node{priv: priv, key: mesh.IdentityKey(priv.Public().(ed25519.PublicKey))}
		nd.addr = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1)), mesh.GossipPort)
		c.nodes = append(c.nodes, nd)
		c.keys[nd.key.NodeID()] = nd
	}
	return c
}

func (c *cluster) start(nd *node) {
	g, err := gossip.New(gossip.Config{
		Name: nd.key.NodeID(), Bind: nd.addr.Addr(), Label: label, Keys: c.gossipKeys,
		Seeds: func() []gossip.Member {
			var seeds []gossip.Member
			for _, other := range c.nodes {
				seeds = append(seeds, gossip.Member{Node: other.key.NodeID(), Addr: other.addr})
			}
			return seeds
		},
		Admit: func(id mesh.NodeID, addr netip.Addr) bool {
			return c.keys[id] != nil && c.keys[id].addr.Addr() == addr
		},
		Transport: func() (memberlist.NodeAwareTransport, error) { return c.net.Transport(nd.addr) },
		Logger:    slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	nd.gossip, nd.dir, nd.ups = g, discovery.NewDirectory(label, 400), make(map[mesh.NodeID]bool)
	ctx, cancel := context.WithCancel(c.t.Context())
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if err := g.Run(ctx); err != nil {
			c.t.Error(err)
		}
	})
	tasks.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case ev := <-g.Events():
				c.handle(nd, ev)
			}
		}
	})
	nd.stop = func() { cancel(); tasks.Wait() }
	c.say(nd, 1)
}

func (c *cluster) handle(nd *node, ev gossip.Event) {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	switch ev.Kind {
	case gossip.MemberUp:
		nd.ups[ev.Member.Node] = true
	case gossip.MemberDown:
		delete(nd.ups, ev.Member.Node)
		nd.downs++
	case gossip.FactsReceived:
		for _, s := range ev.Facts {
			about, _, _ := s.Claimed()
			if from := c.keys[about.Node]; from != nil {
				if changed, _ := nd.dir.Merge(time.Now(), s, from.key); changed {
					_ = nd.gossip.Publish(s)
				}
			}
		}
	}
}

func (c *cluster) say(nd *node, serial uint64) {
	f := discovery.Facts{Mesh: label, Node: nd.key.NodeID(), Serial: serial, Version: "test", Distances: coordinate.Report{RTT: map[mesh.NodeID]time.Duration{}}}
	for i := range min(c.measured, len(c.nodes)) {
		f.Distances.RTT[c.nodes[i].key.NodeID()] = time.Duration(i+1) * time.Millisecond
	}
	s, err := f.Sign(func(m []byte) []byte { return ed25519.Sign(nd.priv, m) })
	if err != nil {
		c.t.Fatal(err)
	}
	if err := nd.gossip.Publish(s); err != nil {
		c.t.Error(err)
	}
	nd.mu.Lock()
	defer nd.mu.Unlock()
	if _, err := nd.dir.Merge(time.Now(), s, nd.key); err != nil {
		c.t.Error(err)
	}
}

// within waits in virtual time until cond holds.
func (c *cluster) within(limit time.Duration, what string, cond func() bool) {
	c.t.Helper()
	start := time.Now()
	for !cond() {
		if time.Since(start) > limit {
			c.t.Fatalf("%s: not within %s", what, limit)
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Logf("%s after %s", what, time.Since(start))
}

// knows reports whether nd sees exactly the members want and has a fact with
// at least that serial of each.
func (c *cluster) knows(nd *node, want []*node, serial uint64) bool {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	if len(nd.gossip.Members()) != len(want)-1 || len(nd.ups) != len(want)-1 {
		return false
	}
	for _, other := range want {
		if f, ok := nd.dir.Get(other.key.NodeID()); !ok || f.Serial < serial {
			return false
		}
	}
	return true
}

// heard is the newest that a node has heard of another.
func (nd *node) heard(other *node) uint64 {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	f, _ := nd.dir.Get(other.key.NodeID())
	return f.Serial
}

// equal tells whether all of want know each other as knows says.
func (c *cluster) equal(want []*node, serial uint64) func() bool {
	return func() bool {
		for _, nd := range want {
			if !c.knows(nd, want, serial) {
				return false
			}
		}
		return true
	}
}

// crowd is how many nodes there are in the largest cluster.
var crowd = 200

// TestTwoHundredNodes: after a restart of all, after a partition of 10 minutes
// and after the restart of one, all views are equal again within a minute.
func TestTwoHundredNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute of processor time; run without -short")
	}
	began := time.Now()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, crowd)
		c.measured = 36 // statements of 600 bytes, as they are
		start := func() {
			for _, nd := range c.nodes {
				c.start(nd)
			}
		}
		start()
		c.within(time.Minute, "everyone knows everyone", c.equal(c.nodes, 1))

		time.Sleep(time.Minute)
		for _, nd := range c.nodes {
			nd.stop()
		}
		start()
		c.within(time.Minute, "all are back after all restarted", c.equal(c.nodes, 1))

		half := func(a netip.AddrPort) bool { return a.Addr().Compare(c.nodes[crowd/2].addr.Addr()) < 0 }
		c.net.Cut(func(from, to netip.AddrPort) bool { return half(from) != half(to) })
		time.Sleep(10 * time.Minute)
		for i, nd := range c.nodes {
			if n := len(nd.gossip.Members()); n != crowd/2-1 {
				t.Errorf("node %d sees %d members of its half", i, n)
			}
			c.say(nd, 2)
		}
		c.net.Cut(nil)
		c.within(time.Minute, "halves are one again", c.equal(c.nodes, 2))

		// One that restarts while it is taken for dead: everybody has another idea
		// of its incarnation, or none at all.
		for away := 10 * time.Second; away < 5*time.Minute; away *= 2 {
			dead := c.nodes[7]
			dead.stop()
			time.Sleep(away)
			c.start(dead)
			c.say(dead, 3+uint64(away.Seconds()))
			c.within(time.Minute, fmt.Sprintf("it is back after %s", away), c.equal(c.nodes, 2))
		}
		for _, nd := range c.nodes {
			if n := nd.gossip.Dropped(); n > 0 {
				t.Errorf("%d events dropped", n)
			}
			nd.stop()
		}
		drain()
	})
	t.Logf("took %s", time.Since(began))
}

func TestFiftyNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 50)
		for _, nd := range c.nodes {
			c.start(nd)
		}
		all := c.equal
		c.within(time.Minute, "everyone knows everyone", all(c.nodes, 1))

		c.say(c.nodes[17], 2)
		c.within(10*time.Second, "a change reaches everyone", func() bool {
			for _, nd := range c.nodes {
				if nd.heard(c.nodes[17]) != 2 {
					return false
				}
			}
			return true
		})

		left, right := c.nodes[:25], c.nodes[25:]
		half := func(a netip.AddrPort) bool { return a.Addr().Compare(right[0].addr.Addr()) < 0 }
		c.net.Cut(func(from, to netip.AddrPort) bool { return half(from) != half(to) })
		c.within(5*time.Minute, "both halves see only themselves", func() bool {
			return len(left[0].gossip.Members()) == 24 && len(right[0].gossip.Members()) == 24
		})
		time.Sleep(10 * time.Minute)
		for _, nd := range c.nodes {
			c.say(nd, 3)
		}
		c.net.Cut(nil)
		c.within(time.Minute, "halves are one again", all(c.nodes, 3))

		// One dies silently, one says goodbye.
		dead, polite := c.nodes[3], c.nodes[4]
		rest := append(append([]*node(nil), c.nodes[:3]...), c.nodes[5:]...)
		dead.stop()
		if err := polite.gossip.Leave(); err != nil {
			t.Error(err)
		}
		polite.stop()
		c.within(2*time.Minute, "two are gone", all(rest, 3))

		c.start(dead)
		c.start(polite)
		c.say(dead, 4)
		c.say(polite, 4)
		c.within(time.Minute, "they are back", all(c.nodes, 3))
		for _, nd := range c.nodes {
			if n := nd.gossip.Dropped(); n > 0 {
				t.Errorf("%d events dropped", n)
			}
			nd.stop()
		}
		drain()
	})
}

// An address that appears late is bound late; one that never does ends with
// the context.
func TestBindRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		blocker, err := c.net.Transport(c.nodes[0].addr)
		if err != nil {
			t.Fatal(err)
		}
		c.start(c.nodes[0])
		c.start(c.nodes[1])
		time.Sleep(time.Minute)
		if n := len(c.nodes[1].gossip.Members()); n != 0 {
			t.Errorf("%d members before the address exists", n)
		}
		_ = blocker.Shutdown()
		c.within(time.Minute, "bound and joined", func() bool { return c.knows(c.nodes[0], c.nodes, 1) && c.knows(c.nodes[1], c.nodes, 1) })
		for _, nd := range c.nodes {
			nd.stop()
		}
		drain()
	})
}

// drain lets memberlist's last probe run out: its shutdown does not wait for it.
func drain() { time.Sleep(time.Minute) }

// A member that the log does not know is not let in, and its facts are not believed.
func TestStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		delete(c.keys, c.nodes[2].key.NodeID())
		for _, nd := range c.nodes {
			c.start(nd)
		}
		time.Sleep(2 * time.Minute)
		if n := len(c.nodes[0].gossip.Members()); n != 1 {
			t.Errorf("node 0 has %d members, want only node 1", n)
		}
		if _, ok := c.nodes[0].dir.Get(c.nodes[2].key.NodeID()); ok {
			t.Error("the stranger's facts are believed")
		}
		for _, nd := range c.nodes {
			nd.stop()
		}
		drain()
	})
}

// Real sockets: two nodes on loopback, and a stop that does not wait for a
// seed that never answers.
func TestRealTransport(t *testing.T) {
	ids := []mesh.NodeID{{1}, {2}}
	var gs []*gossip.Gossip
	ctx, cancel := context.WithCancel(t.Context())
	var tasks sync.WaitGroup
	for i, id := range ids {
		g, err := gossip.New(gossip.Config{
			Name: id, Bind: netip.AddrFrom4([4]byte{127, 86, 0, byte(i + 1)}), Label: label, Keys: gossip.Keys{Clear: true},
			Seeds: func() []gossip.Member {
				return []gossip.Member{
					{Node: ids[0], Addr: netip.MustParseAddrPort("127.86.0.1:0")},
					{Node: mesh.NodeID{3}, Addr: netip.MustParseAddrPort("127.86.0.9:1")},
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		gs = append(gs, g)
		tasks.Go(func() {
			if err := g.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	for _, g := range gs {
		for up := false; !up; {
			select {
			case ev := <-g.Events():
				up = ev.Kind == gossip.MemberUp
			case <-time.After(time.Minute):
				t.Fatal("no member within a minute")
			}
		}
	}
	if m := gs[0].Members(); len(m) != 1 || m[0].Node != ids[1] || m[0].Addr.Port() != mesh.GossipPort {
		t.Errorf("members: %v", m)
	}
	cancel()
	tasks.Wait()
	if err := gs[0].Leave(); err != nil || gs[0].Members() != nil {
		t.Error("a stopped gossip is not quiet")
	}
}

func TestConfigRefused(t *testing.T) {
	good := gossip.Config{Name: mesh.NodeID{1}, Bind: netip.MustParseAddr("2001:db8::1"), Label: label, Seeds: func() []gossip.Member { return nil }}
	for name, change := range map[string]func(*gossip.Config){
		"no name":   func(c *gossip.Config) { c.Name = mesh.NodeID{} },
		"no label":  func(c *gossip.Config) { c.Label = mesh.MeshID{} },
		"no bind":   func(c *gossip.Config) { c.Bind = netip.Addr{} },
		"no seeds":  func(c *gossip.Config) { c.Seeds = nil },
		"short key": func(c *gossip.Config) { c.Keys.Accept = [][]byte{[]byte("short")} },
		"deaf":      func(c *gossip.Config) { c.Keys = gossip.Keys{Use: keyOf(1), Accept: [][]byte{keyOf(2)}} },
	} {
		cfg := good
		change(&cfg)
		if _, err := gossip.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
