package control

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/store"
)

// gossipsWith waits until all machines encrypt with the key of an epoch, the
// same one.
func gossipsWith(t *testing.T, all []*machine, epoch mesh.Epoch) {
	t.Helper()
	eventually(t, fmt.Sprintf("all use the gossip key of epoch %d", epoch), func() bool {
		want := all[0].Shared()
		return want.Key != nil && !slices.ContainsFunc(all, func(m *machine) bool {
			k, known := m.State().GossipKey(store.GossipCurrent)
			return !known || k.Epoch != epoch || !bytes.Equal(m.Shared().Key, want.Key)
		})
	})
}

// TestGossipKeyRotates: whoever is revoked makes the mesh change its gossip key
// and the key of STUN, the leader takes the steps when everybody who is there
// knows them, and neither is in the clear anywhere in the state.
func TestGossipKeyRotates(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	gossipsWith(t, all, 1)
	first := all[0].Shared()
	if first.Clear || len(first.Keys) != 1 || len(first.STUN) != 1 || bytes.Equal(first.Key, first.STUN[0]) {
		t.Fatalf("a new mesh shares %d keys, %d for STUN, in the clear %t", len(first.Keys), len(first.STUN), first.Clear)
	}
	for i, m := range all {
		if got := m.Shared(); !reflect.DeepEqual(got, first) {
			t.Errorf("node %d shares something else", i)
		}
	}
	away := all[0].admitted("away", TokenRequest{Roles: []store.NodeRole{store.NodeNoVote}})
	if err := away.shut(); err != nil {
		t.Fatal(err)
	}
	gone := all[0].admitted("gone", TokenRequest{Roles: []store.NodeRole{store.NodeNoVote}})
	gossipsWith(t, append(all, gone), 1)
	if err := all[0].Revoke(t.Context(), gone.ID()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the next key is with all", func() bool {
		return !slices.ContainsFunc(all, func(m *machine) bool { return len(m.Shared().Keys) != 2 })
	})
	for i, m := range all {
		if got := m.Shared(); !bytes.Equal(got.Key, first.Key) || len(got.STUN) != 2 || !bytes.Equal(got.STUN[0], first.STUN[0]) {
			t.Errorf("node %d uses the next key already", i)
		}
	}
	later(all, gossipStep+time.Second)
	gossipsWith(t, all, 2)
	second := all[0].Shared()
	if bytes.Equal(second.Key, first.Key) || len(second.Keys) != 2 || len(second.STUN) != 2 || bytes.Equal(second.STUN[0], first.STUN[0]) || !bytes.Equal(second.STUN[1], first.STUN[0]) {
		t.Error("the keys of before are not accepted, or used")
	}
	later(all, gossipStep+gossipOverlap+time.Minute)
	eventually(t, "the old key is forgotten", func() bool {
		return !slices.ContainsFunc(all, func(m *machine) bool { return len(m.Shared().Keys) != 1 || len(m.Shared().STUN) != 1 })
	})

	snapshot, err := store.Snapshot(all[0].State())
	if err != nil {
		t.Fatal(err)
	}
	var texts [][]byte
	for _, s := range all[0].openCopies(all[0].State()) {
		texts = append(texts, s)
		if text := fmt.Sprintf("%v %x %s %d %q", s, s, s, s, s); text != "secret secret secret secret secret" {
			t.Errorf("a secret is printed as %s", text)
		}
	}
	for _, text := range append(texts, second.Key, second.STUN[0]) {
		if bytes.Contains(snapshot, text) || bytes.Contains(snapshot, []byte(base64.StdEncoding.EncodeToString(text))) {
			t.Error("a secret is in the state")
		}
	}

	away.run(Open(away.config))
	gossipsWith(t, append(all, away), 2)
}

// TestGossipKeyIsSealedAnew: a node that changes its WireGuard key can open its
// copies also when it has dropped the key of before and started again.
func TestGossipKeyIsSealedAnew(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.joined("two")
	all := []*machine{one, two}
	for _, m := range all {
		public, err := m.config.Ring.Generate(2)
		if err != nil {
			t.Fatal(err)
		}
		m.propose(store.Command{AddKey: &store.AddKey{Node: m.ID(), Key: store.Key{Epoch: 2, Public: public}}})
		eventually(t, "it has a copy for its new key", func() bool { return len(m.State().Lacks(m.State().Nodes[m.ID()])) == 0 })
		m.propose(store.Command{DropKey: &store.DropKey{Node: m.ID(), Epoch: 1}})
		if err := m.config.Ring.Retire(1); err != nil {
			t.Fatal(err)
		}
		m.restart()
	}
	gossipsWith(t, all, 1)

	// A voter that cannot open its copy is no voter that could admit: a new key
	// takes the place of one that no leader knows.
	if err := one.config.Ring.Retire(2); err != nil {
		t.Fatal(err)
	}
	public, err := one.config.Ring.Generate(3)
	if err != nil {
		t.Fatal(err)
	}
	one.restart()
	if one.Shared().Key != nil {
		t.Error("it has the key still")
	}
	one.propose(store.Command{AddKey: &store.AddKey{Node: one.ID(), Key: store.Key{Epoch: 3, Public: public}}})
	eventually(t, "another key is next", func() bool { return len(two.Shared().Keys) == 2 && len(one.Shared().Keys) == 1 })
	later(all, gossipStep+time.Second)
	gossipsWith(t, all, 2)
}

// TestGossipKeyOfAnOldMesh: a mesh of before gets a key by itself; until
// everybody has used it for a while, what is not encrypted is accepted.
func TestGossipKeyOfAnOldMesh(t *testing.T) {
	t.Parallel()
	one := foundedAt(t, 3)
	two := one.joined("two")
	all := []*machine{one, two}
	was := two.State().Mesh.Secret
	if s := two.Shared(); !s.Clear || s.Key != nil || len(s.Keys) != 0 || len(s.STUN) != 1 || !bytes.Equal(s.STUN[0], was) {
		t.Errorf("before version 4: %d keys, in the clear %t", len(s.Keys), s.Clear)
	}
	one.streams.leave(mesh.NodeID{}, 3)
	eventually(t, "both know the first key", func() bool {
		return !slices.ContainsFunc(all, func(m *machine) bool { return len(m.Shared().Keys) != 1 })
	})
	if s := two.Shared(); !s.Clear || s.Key != nil || len(s.STUN) != 2 || !bytes.Equal(s.STUN[0], was) {
		t.Error("the first key is used at once")
	}
	later(all, gossipStep+time.Second)
	gossipsWith(t, all, 1)
	if s := two.Shared(); !s.Clear || len(s.STUN) != 2 || !bytes.Equal(s.STUN[1], was) {
		t.Error("what is not encrypted is refused at once")
	}
	later(all, gossipStep+gossipOverlap+time.Minute)
	eventually(t, "the secret of before is forgotten", func() bool {
		s := two.Shared()
		return !s.Clear && len(s.STUN) == 1 && two.State().Mesh.Secret == nil
	})
}

// TestGossipKeyWaits: the next key is not used while a follower that is there
// does not know it, and used without it in the end.
func TestGossipKeyWaits(t *testing.T) {
	t.Parallel()
	one := founded(t)
	state := *one.State()
	next := store.GossipKey{Epoch: 2, State: store.GossipNext, Index: state.Index, From: one.clock.now()}
	call, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	knows := func(after time.Duration) bool {
		return one.known(t.Context(), one.voter.store(), &state, next, next.From.Add(after))
	}
	if knows(gossipStep-1) || !knows(gossipStep) {
		t.Error("with no follower it is not a matter of time")
	}
	one.delivered.note(call, position{Index: next.Index - 1})
	if knows(gossipStep) || knows(gossipPatience) {
		t.Error("a follower behind is not waited for")
	}
	if !knows(gossipPatience+1) || !knows(-2*maxClockOffset) {
		t.Error("a follower behind is waited for, for ever")
	}
	one.delivered.note(call, position{Index: next.Index})
	if !knows(gossipStep) {
		t.Error("a follower that knows is waited for")
	}
	one.delivered.note(call, position{})
	one.delivered.forget(call)
	if !knows(gossipStep) {
		t.Error("a follower that went is waited for")
	}
}
