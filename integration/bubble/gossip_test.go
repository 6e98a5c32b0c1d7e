package bubble

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"guywire/discovery/gossip"
	"guywire/discovery/gossip/gossiptest"
	"guywire/mesh"
	"guywire/mesh/control"
	"guywire/store"
)

// A talker is a node's part in gossip, with the keys that its plane knows, as the
// agent runs it.
type talker struct {
	*gossip.Gossip
	downs atomic.Int64 // how often it gave somebody up
	stop  func()
}

// talk begins gossip on a node whose plane runs.
func (b *bubble) talk(net *gossiptest.Network, n *node) *talker {
	b.Helper()
	keys := func() gossip.Keys {
		shared := n.plane.Shared()
		return gossip.Keys{Use: shared.Key, Accept: shared.Keys, Clear: shared.Clear}
	}
	state := n.plane.State()
	self := state.Nodes[n.plane.ID()]
	g, err := gossip.New(gossip.Config{
		Name: self.ID, Bind: self.Addr6, Label: state.Mesh.ID, Keys: keys(),
		Seeds: func() (out []gossip.Member) {
			for id, m := range n.plane.State().Nodes {
				if id != self.ID {
					out = append(out, gossip.Member{Node: id, Addr: netip.AddrPortFrom(m.Addr6, mesh.GossipPort)})
				}
			}
			return out
		},
		Transport: func() (memberlist.NodeAwareTransport, error) {
			return net.Transport(netip.AddrPortFrom(self.Addr6, mesh.GossipPort))
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended, done := make(chan error, 1), make(chan struct{})
	t := &talker{Gossip: g, stop: func() { cancel(); <-done }}
	go func() { ended <- g.Run(ctx) }()
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := g.SetKeys(keys()); err != nil {
					b.Error(err)
				}
			case ev := <-g.Events():
				if ev.Kind == gossip.MemberDown {
					t.downs.Add(1)
				}
			case err := <-ended:
				if err != nil {
					b.Error(err)
				}
				return
			}
		}
	}()
	return t
}

// rotate revokes a node that was admitted for that, and waits until the gossip key
// of before is forgotten on some nodes.
func (b *bubble) rotate(number int, nodes []*node) {
	b.Helper()
	current := func(n *node) mesh.Epoch {
		k, _ := n.plane.State().GossipKey(store.GossipCurrent)
		return k.Epoch
	}
	before := current(b.nodes[0])
	text, _, err := b.nodes[0].plane.CreateToken(b.Context(), control.TokenRequest{Roles: []store.NodeRole{store.NodeNoVote}})
	if err != nil {
		b.Fatal(err)
	}
	name := fmt.Sprintf("victim-%d", number)
	config, release, err := b.open(name, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 19, byte(number), 1}), port))
	if err != nil {
		b.Fatal(err)
	}
	p, err := control.Join(b.Context(), config, text, control.JoinRequest{Name: name}, nil)
	if err != nil {
		b.Fatal(err)
	}
	id := p.ID()
	if err := errors.Join(p.Close(), release()); err != nil {
		b.Fatal(err)
	}
	if err := b.nodes[0].plane.Revoke(b.Context(), id); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	b.within("another gossip key is used", 3*time.Minute, func() bool {
		return !slices.ContainsFunc(nodes, func(n *node) bool { return current(n) <= before })
	})
	b.Logf("the gossip key of epoch %d is used everywhere %s after a revocation", current(b.nodes[0]), time.Since(began).Round(time.Second))
	b.within("the key of before is forgotten", 15*time.Minute, func() bool {
		return !slices.ContainsFunc(nodes, func(n *node) bool { return len(n.plane.Shared().Keys) != 1 })
	})
}

// TestB41GossipTwoRotationsAway: the gossip key changes twice, because of two
// revocations, and nobody who is there loses anybody. A node that slept meanwhile
// cannot be heard in gossip, gets the keys by the control plane, and is back.
func TestB41GossipTwoRotationsAway(t *testing.T) {
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		b := found(t, dir)
		defer b.end()
		var net gossiptest.Network
		talkers := map[*node]*talker{}
		for _, n := range b.nodes {
			talkers[n] = b.talk(&net, n)
		}
		all := func(nodes []*node) func() bool {
			return func() bool {
				return !slices.ContainsFunc(nodes, func(n *node) bool { return len(talkers[n].Members()) != len(nodes)-1 })
			}
		}
		sleeper, rest := b.nodes[len(b.nodes)-1], b.nodes[:len(b.nodes)-1]
		b.within("all hear each other", time.Minute, all(b.nodes))
		old := sleeper.plane.Shared().Key
		talkers[sleeper].stop()
		sleeper.crash()
		b.within("it is missed", 5*time.Minute, all(rest))
		for _, n := range rest {
			talkers[n].downs.Store(0)
		}
		for i := range 2 {
			b.rotate(i, rest)
			if !all(rest)() {
				b.Error("a rotation parted them")
			}
		}
		for _, n := range rest {
			if downs := talkers[n].downs.Load(); downs > 0 {
				b.Errorf("%s gave up %d others while the keys changed", n.name, downs)
			}
			for _, key := range append(n.plane.Shared().Keys, n.plane.Shared().STUN...) {
				if string(key) == string(old) {
					b.Errorf("%s still accepts the key of before", n.name)
				}
			}
		}

		began := time.Now()
		sleeper.open()
		talkers[sleeper] = b.talk(&net, sleeper)
		b.within("it is back", time.Minute, all(b.nodes))
		b.Logf("back in gossip after %s", time.Since(began).Round(100*time.Millisecond))
		for _, tk := range talkers {
			tk.stop()
		}
		time.Sleep(time.Minute) // memberlist's last probes run out
	})
}
