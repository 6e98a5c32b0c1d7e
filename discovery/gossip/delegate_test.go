package gossip

import (
	"bytes"
	"crypto/ed25519"
	"net/netip"
	"testing"
	"time"

	"guywire/discovery"
	"guywire/mesh"
)

func testGossip(t testing.TB) *Gossip {
	g, err := New(Config{Name: mesh.NodeID{1}, Bind: netip.MustParseAddr("2001:db8::1"), Label: mesh.MeshID{7}, Seeds: func() []Member { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func testSigned(t testing.TB, node byte, serial uint64) discovery.Signed {
	s, err := discovery.Facts{Mesh: mesh.MeshID{7}, Node: mesh.NodeID{node}, Serial: serial}.Sign(func([]byte) []byte { return make([]byte, ed25519.SignatureSize) })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The callbacks never block: a slow owner loses events, and only what is news
// is delivered.
func TestDelegateIsBounded(t *testing.T) {
	g := testGossip(t)
	d := &delegate{g}
	old := testSigned(t, 2, 5)
	if err := g.Publish(old); err != nil {
		t.Fatal(err)
	}
	d.NotifyMsg(discovery.AppendSigned(nil, old))
	d.NotifyMsg([]byte("garbage"))
	if len(g.events) != 0 {
		t.Error("what is known, or unreadable, was delivered")
	}
	message := discovery.AppendSigned(nil, testSigned(t, 2, 6))
	for range maxEvents + 10 {
		d.NotifyMsg(message)
	}
	if len(g.events) != maxEvents || g.Dropped() != 10 {
		t.Errorf("%d events wait, %d dropped", len(g.events), g.Dropped())
	}
	clear(message)
	if ev := <-g.events; ev.Facts[0].Equal(old) || bytes.Equal(ev.Facts[0].Body, make([]byte, len(ev.Facts[0].Body))) {
		t.Error("the event shares memory with memberlist's buffer")
	}
}

func TestPublish(t *testing.T) {
	g := testGossip(t)
	d := &delegate{g}
	one, two := testSigned(t, 2, 5), testSigned(t, 2, 6)
	if err := g.Publish(two, one); err != nil {
		t.Fatal(err)
	}
	if got := d.LocalState(false); !bytes.Equal(got, discovery.AppendSigned(nil, two)) {
		t.Errorf("local state: %x", got)
	}
	if b := d.GetBroadcasts(3, packetSize); len(b) != 1 || !bytes.Equal(b[0], discovery.AppendSigned(nil, two)) {
		t.Errorf("broadcasts: %x", b)
	}
	if err := g.Publish(discovery.Signed{Body: []byte{1}}); err == nil {
		t.Error("a torn statement was published")
	}
	g.Forget(discovery.Subject{Node: mesh.NodeID{2}})
	if got := d.LocalState(false); len(got) != 0 {
		t.Errorf("forgotten, but still told: %x", got)
	}
}

// A ban of a node and its own words stand beside each other.
func TestBanBesideFacts(t *testing.T) {
	g := testGossip(t)
	d := &delegate{g}
	facts := testSigned(t, 2, 5)
	ban, err := discovery.Ban{Mesh: mesh.MeshID{7}, Node: mesh.NodeID{2}, Author: mesh.IdentityKey{9}, Time: time.Unix(1, 0)}.Sign(
		func([]byte) []byte { return make([]byte, ed25519.SignatureSize) })
	if err != nil {
		t.Fatal(err)
	}
	d.NotifyMsg(discovery.AppendSigned(nil, ban))
	if ev := <-g.events; len(ev.Facts) != 1 || !ev.Facts[0].Equal(ban) {
		t.Errorf("heard: %+v", ev)
	}
	if err := g.Publish(facts, ban); err != nil {
		t.Fatal(err)
	}
	both := discovery.AppendSigned(discovery.AppendSigned(nil, facts), ban)
	if got := d.LocalState(false); !bytes.Equal(got, both) {
		t.Errorf("local state: %x, want %x", got, both)
	}
	if b := d.GetBroadcasts(3, packetSize); len(b) != 2 {
		t.Errorf("%d broadcasts", len(b))
	}
	g.Forget(discovery.Subject{Node: mesh.NodeID{2}})
	if got := d.LocalState(false); !bytes.Equal(got, discovery.AppendSigned(nil, ban)) {
		t.Errorf("without its words: %x", got)
	}
}

func TestAnnouncementsTravelWithTheFullState(t *testing.T) {
	g := testGossip(t)
	d := &delegate{g}
	if err := g.Publish(testSigned(t, 2, 5)); err != nil {
		t.Fatal(err)
	}
	g.cfg.Announcements = func() [][]byte { return [][]byte{{1, 2, 3}, {4}} }
	state := d.LocalState(false)
	other := testGossip(t)
	(&delegate{other}).MergeRemoteState(state, false)
	if ev := <-other.events; ev.Kind != FactsReceived || len(ev.Facts) != 1 {
		t.Errorf("first %+v", ev)
	}
	if ev := <-other.events; ev.Kind != AnnouncementsReceived || len(ev.Announcements) != 2 || !bytes.Equal(ev.Announcements[0], []byte{1, 2, 3}) {
		t.Errorf("then %+v", ev)
	}
}

func FuzzDeliver(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 7, 0, 2, 7})
	f.Add(discovery.AppendSigned(discovery.AppendSigned(nil, testSigned(f, 2, 1)), testSigned(f, 3, 1)))
	f.Add([]byte{0, 1, 2})
	g := testGossip(f)
	d := &delegate{g}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		d.MergeRemoteState(b, true)
		d.NotifyMsg(b)
		if !bytes.Equal(before, b) {
			t.Fatal("the message was changed")
		}
		for len(g.events) > 0 {
			ev := <-g.events
			for _, a := range ev.Announcements {
				if len(a) == 0 || len(a) > maxAnnouncement {
					t.Fatalf("delivered an announcement of %d bytes", len(a))
				}
			}
			for _, s := range ev.Facts {
				if len(s.Body) == 0 || len(s.Body) > discovery.MaxFacts || len(s.Signature) != ed25519.SignatureSize {
					t.Fatalf("delivered %d and %d bytes", len(s.Body), len(s.Signature))
				}
			}
		}
	})
}
