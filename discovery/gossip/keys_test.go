package gossip_test

import (
	"testing"
	"testing/synctest"
	"time"

	"guywire/discovery/gossip"
)

// keys makes some of one byte each: the one to use first, 0 for none.
func keys(clear bool, use byte, accept ...byte) gossip.Keys {
	k := gossip.Keys{Clear: clear}
	if use != 0 {
		k.Use = keyOf(use)
	}
	for _, b := range accept {
		k.Accept = append(k.Accept, keyOf(b))
	}
	return k
}

// turn gives keys to nodes one after the other, three seconds apart, so that
// members of two steps speak with each other, and then lets all work.
func (c *cluster) turn(nodes []*node, k gossip.Keys) {
	c.t.Helper()
	for _, nd := range nodes {
		if err := nd.gossip.SetKeys(k); err != nil {
			c.t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
	}
	time.Sleep(time.Minute)
}

// together fails unless all of them hear each other, and always did.
func (c *cluster) together(what string, nodes []*node, serial uint64) {
	c.t.Helper()
	for _, nd := range nodes {
		c.say(nd, serial)
	}
	c.within(20*time.Second, what, c.equal(nodes, serial))
	for i, nd := range nodes {
		nd.mu.Lock()
		if nd.downs > 0 {
			c.t.Errorf("%s: node %d gave up %d others", what, i, nd.downs)
			nd.downs = 0
		}
		nd.mu.Unlock()
	}
}

// TestRotation: members change from key to key without losing each other for a
// moment. Who missed it is neither heard nor hears, until it has the keys.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 8)
		for _, nd := range c.nodes {
			c.start(nd)
		}
		all, rest, late := c.nodes, c.nodes[:7], c.nodes[7]
		c.within(time.Minute, "everyone knows everyone", c.equal(all, 1))
		for i, step := range []gossip.Keys{
			keys(false, 9, 9, 2), keys(false, 2, 9, 2), keys(false, 2, 2, 9, 3), keys(false, 3, 2, 3, 9), keys(false, 3, 3, 4), keys(false, 3, 3),
		} {
			c.turn(all, step)
			c.together("all go on", all, uint64(i+2))
		}
		c.turn(rest, keys(false, 3, 3, 5))
		c.turn(rest, keys(false, 5, 3, 5))
		c.turn(rest, keys(false, 5, 5))
		time.Sleep(10 * time.Minute)
		for i, nd := range rest {
			if n := len(nd.gossip.Members()); n != 6 {
				t.Errorf("node %d has %d members", i, n)
			}
		}
		if n := len(late.gossip.Members()); n != 0 {
			t.Errorf("who has no key any more has %d members", n)
		}
		c.say(late, 11)
		c.say(rest[0], 11)
		time.Sleep(time.Minute)
		if rest[1].heard(late) == 11 {
			t.Error("who has no key any more is heard")
		}
		if late.heard(rest[0]) == 11 {
			t.Error("who has no key any more hears")
		}
		if err := late.gossip.SetKeys(keys(false, 0)); err != nil { // a copy that cannot be opened
			t.Error(err)
		}
		c.say(late, 12)
		if err := late.gossip.SetKeys(keys(false, 5, 5)); err != nil {
			t.Fatal(err)
		}
		c.within(time.Minute, "it is back with the key", c.equal(all, 1))
		for _, nd := range all {
			nd.stop()
		}
		drain()
	})
}

// TestEncryptionTurnedOn: a mesh that gossiped in the clear turns to a key step by
// step, and nobody loses anybody. At the end the clear is not heard any more.
func TestEncryptionTurnedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 8)
		c.gossipKeys = keys(true, 0)
		all, rest, late := c.nodes, c.nodes[:7], c.nodes[7]
		for _, nd := range rest {
			c.start(nd)
		}
		c.within(time.Minute, "everyone knows everyone", c.equal(rest, 1))
		for i, step := range []gossip.Keys{keys(true, 0, 1), keys(true, 1, 1), keys(false, 1, 1)} {
			c.turn(rest, step)
			c.together("all go on", rest, uint64(i+2))
		}

		c.start(late)
		time.Sleep(5 * time.Minute)
		if n := len(late.gossip.Members()); n != 0 {
			t.Errorf("in the clear there are %d members", n)
		}
		c.together("all go on", rest, 9)
		late.stop()
		c.gossipKeys = gossip.Keys{}
		c.start(late)
		time.Sleep(5 * time.Minute)
		if n := len(late.gossip.Members()); n != 0 {
			t.Errorf("without a key there are %d members", n)
		}
		if err := late.gossip.SetKeys(keys(false, 1, 1)); err != nil {
			t.Fatal(err)
		}
		c.within(time.Minute, "with the key it is there", c.equal(all, 1))
		for _, nd := range all {
			nd.stop()
		}
		drain()
	})
}

func TestSetKeysRefused(t *testing.T) {
	c := newCluster(t, 1)
	g, err := gossip.New(gossip.Config{Name: c.nodes[0].key.NodeID(), Bind: c.nodes[0].addr.Addr(), Label: label, Seeds: func() []gossip.Member { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if g.SetKeys(gossip.Keys{Accept: [][]byte{[]byte("short")}}) == nil || g.SetKeys(keys(false, 1, 2)) == nil {
		t.Error("keys that cannot be are accepted")
	}
}
