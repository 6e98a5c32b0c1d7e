package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"guywire/mesh"
)

// gossips is what a state says of its gossip keys: their epochs and the first
// letters of their states.
func gossips(s *State) (text string) {
	for _, k := range s.Mesh.Gossip {
		text += fmt.Sprint(k.Epoch, string(k.State[0]))
	}
	return text
}

func (w *world) gossip(step GossipStep, epoch mesh.Epoch) Command {
	r := &RotateGossip{Step: step, Epoch: epoch}
	switch step {
	case GossipAdd:
		r.Check = Digest{byte(epoch)}
	case GossipSeal:
		r.Copies = map[mesh.NodeID][]Copy{}
		for id, n := range w.s.Nodes {
			for _, lacks := range w.s.Lacks(n) {
				r.Copies[id] = append(r.Copies[id], copyOf(lacks, n.Keys[len(n.Keys)-1].Epoch))
			}
		}
	}
	return w.as(w.root, Command{RotateGossip: r})
}

func TestRotateGossip(t *testing.T) {
	w := newWorld(t)
	oslo, bergen := newJoiner("oslo", "oslo"), newJoiner("bergen", "bergen")
	w.join(oslo)
	check := func(want string, copies ...mesh.Epoch) {
		t.Helper()
		if got := gossips(w.s); got != want {
			t.Errorf("gossip keys %s, want %s", got, want)
		}
		var has []mesh.Epoch
		for _, c := range w.s.Nodes[oslo.id()].Copies {
			has = append(has, c.Epoch)
		}
		if !slices.Equal(has, copies) {
			t.Errorf("oslo has copies of %v, want %v", has, copies)
		}
		restored(t, w.s)
	}
	check("1c")
	w.refused(CodeInvalid, w.gossip(GossipRetire, 1))
	w.refused(CodeInvalid, w.gossip(GossipRetire, 0))
	w.refused(CodeInvalid, w.gossip(GossipUse, 1))
	w.refused(CodeInvalid, w.gossip(GossipAdd, 1))
	w.refused(CodeInvalid, w.gossip(GossipAdd, 3))
	w.refused(CodeNotFound, w.gossip(GossipRetire, 2))
	w.refused(CodeInvalid, w.gossip("burn", 1))
	w.must(w.gossip(GossipAdd, 2))
	w.refused(CodeInvalid, w.gossip(GossipAdd, 3)) // one at a time
	w.refused(CodeInvalid, w.gossip(GossipUse, 2)) // nobody has it
	w.must(w.gossip(GossipSeal, 0))
	check("1c2n", 1, 2)
	w.refused(CodeInvalid, w.gossip(GossipSeal, 0)) // nobody lacks one
	if next, _ := w.s.GossipKey(GossipNext); next.Index != w.s.Index-1 || !next.From.Equal(testNow) {
		t.Errorf("%+v at %d", next, w.s.Index)
	}
	w.must(w.gossip(GossipUse, 2))
	check("1o2c", 1, 2)
	w.must(w.gossip(GossipAdd, 3))
	w.must(w.gossip(GossipRetire, 3)) // thought better of it, and an epoch is never given twice
	w.refused(CodeInvalid, w.gossip(GossipAdd, 3))
	w.must(w.gossip(GossipAdd, 4))
	check("1o2c4n", 1, 2)
	w.must(w.gossip(GossipSeal, 0))
	w.must(w.gossip(GossipUse, 4))
	check("1o2o4c", 1, 2, 4)
	w.refused(CodeInvalid, w.gossip(GossipAdd, 5)) // three are enough
	w.must(w.gossip(GossipRetire, 1))
	check("2o4c", 2, 4)

	// A newcomer brings what its voter sealed; what is gone meanwhile is left out.
	join := bergen.join(w.addToken(2))
	join.Join.Copies = []Copy{copyOf(1, 1), copyOf(4, 1), copyOf(2, 1)}
	if n := w.must(join).Node; len(n.Copies) != 2 || n.Copies[0].Epoch != 2 {
		t.Errorf("%+v", n.Copies)
	}
	bad := newJoiner("voss", "voss").join(w.addToken(3))
	bad.Join.Copies = []Copy{copyOf(4, 2)}
	w.refused(CodeInvalid, bad)

	// Who has another key gets copies for it, and loses those of one it drops.
	w.must(w.as(oslo, Command{AddKey: &AddKey{oslo.id(), Key{2, newJoiner("", "second").key.Public}}}))
	if lacks := w.s.Lacks(w.s.Nodes[oslo.id()]); !slices.Equal(lacks, []mesh.Epoch{2, 4}) {
		t.Errorf("lacks %v", lacks)
	}
	only := w.gossip(GossipSeal, 0)
	for id := range only.RotateGossip.Copies {
		only.RotateGossip.Copies[id] = only.RotateGossip.Copies[id][1:]
	}
	w.must(only)
	w.must(w.as(oslo, Command{DropKey: &DropKey{oslo.id(), 1}}))
	check("2o4c", 4)

	for name, r := range map[string]RotateGossip{
		"a key without a check": {Step: GossipAdd, Epoch: 5},
		"a check of nothing":    {Step: GossipUse, Epoch: 4, Check: Digest{1}},
		"copies to retire":      {Step: GossipRetire, Epoch: 2, Copies: map[mesh.NodeID][]Copy{oslo.id(): {copyOf(2, 2)}}},
		"an epoch to seal":      {Step: GossipSeal, Epoch: 2, Copies: map[mesh.NodeID][]Copy{oslo.id(): {copyOf(2, 2)}}},
		"no copies":             {Step: GossipSeal},
		"a short copy":          {Step: GossipSeal, Copies: map[mesh.NodeID][]Copy{oslo.id(): {{2, 2, []byte{1}}}}},
		"a dropped key":         {Step: GossipSeal, Copies: map[mesh.NodeID][]Copy{oslo.id(): {copyOf(2, 1)}}},
		"too many":              {Step: GossipSeal, Copies: map[mesh.NodeID][]Copy{oslo.id(): {copyOf(2, 2), copyOf(4, 2), copyOf(2, 2), copyOf(4, 2)}}},
	} {
		if r := w.apply(w.as(w.root, Command{RotateGossip: &r})); r.Refused == nil || r.Refused.Code != CodeInvalid {
			t.Errorf("%s: %+v", name, r.Refused)
		}
	}
	w.refused(CodeNotFound, w.as(w.root, Command{RotateGossip: &RotateGossip{Step: GossipSeal, Copies: map[mesh.NodeID][]Copy{oslo.id(): {copyOf(1, 2)}}}}))
	w.refused(CodeNotFound, w.as(w.root, Command{RotateGossip: &RotateGossip{Step: GossipSeal, Copies: map[mesh.NodeID][]Copy{{9}: {copyOf(4, 2)}}}}))
	w.refused(CodeForbidden, w.as(bergen, Command{RotateGossip: &RotateGossip{Step: GossipRetire, Epoch: 2}}))
}

// Whoever is removed by others makes a new key due, and the next one, which it
// may have, is never used.
func TestGossipDue(t *testing.T) {
	w := newWorld(t)
	a, b := newJoiner("a", "a"), newJoiner("b", "b")
	w.join(a)
	w.join(b)
	w.must(w.gossip(GossipAdd, 2))
	w.must(w.gossip(GossipSeal, 0))
	w.must(w.as(a, Command{RemoveNode: &RemoveNode{Node: a.id()}}))
	if w.s.Mesh.GossipDue || gossips(w.s) != "1c2n" {
		t.Errorf("due because somebody left: %s", gossips(w.s))
	}
	before := w.s
	for name, c := range map[string]RemoveNode{"one that left": {a.id(), true}, "a member": {b.id(), false}} {
		w.s = before
		w.must(w.by(Command{RemoveNode: &c}))
		if !w.s.Mesh.GossipDue || gossips(w.s) != "1c" || len(w.s.Nodes[w.root.id()].Copies) != 1 {
			t.Errorf("after the removal of %s: due %t, %s", name, w.s.Mesh.GossipDue, gossips(w.s))
		}
	}
	w.must(w.gossip(GossipAdd, 3))
	w.must(w.gossip(GossipSeal, 0))
	if !w.s.Mesh.GossipDue {
		t.Error("due no more before the new key is used")
	}
	w.must(w.gossip(GossipUse, 3))
	if w.s.Mesh.GossipDue {
		t.Error("still due")
	}
}

// A mesh of version 3 gets its first key like any further one: until it is used
// and the secret of old is retired, gossip is not encrypted, or need not be.
func TestGossipBegins(t *testing.T) {
	w := newWorldOf(t, signedInit)
	w.join(newJoiner("oslo", "oslo"))
	w.refused(CodeVersion, w.gossip(GossipAdd, 1))
	early := newJoiner("early", "early").join(w.addToken(1))
	early.Join.Copies = []Copy{copyOf(1, 1)}
	w.refused(CodeVersion, early)
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: newJoiner("oslo", "oslo").id()}}))
	if w.s.Mesh.GossipDue {
		t.Error("a key is due in a mesh without any")
	}
	w.refused(CodeVersion, w.as(w.root, Command{SetVersion: &SetVersion{signedVersion}}))
	w.must(w.as(w.root, Command{SetVersion: &SetVersion{GossipVersion}}))
	b, err := Snapshot(w.s)
	if err != nil || !strings.HasPrefix(string(b), "guywire-state 4 ") || len(w.s.Mesh.Secret) != SecretSize {
		t.Fatalf("%v: %.40s", err, b)
	}
	w.refused(CodeInvalid, w.gossip(GossipRetire, 0))
	w.must(w.gossip(GossipAdd, 1))
	w.must(w.gossip(GossipSeal, 0))
	w.refused(CodeInvalid, w.gossip(GossipRetire, 0))
	w.must(w.gossip(GossipUse, 1))
	w.must(w.gossip(GossipRetire, 0))
	w.refused(CodeInvalid, w.gossip(GossipRetire, 0))
	if restored(t, w.s).Mesh.Secret != nil || gossips(w.s) != "1c" {
		t.Errorf("%+v", w.s.Mesh)
	}
}

// A mesh of version 4 begins with a key.
func TestSealedInit(t *testing.T) {
	root := newJoiner("hub", "hub")
	for name, change := range map[string]func(*Init){
		"a secret":           func(i *Init) { i.Settings.Secret = make([]byte, SecretSize) },
		"no check":           func(i *Init) { i.Check = Digest{} },
		"no copy":            func(i *Init) { i.Copy = nil },
		"a short copy":       func(i *Init) { i.Copy.Sealed = nil },
		"a later key":        func(i *Init) { i.Copy.Epoch = 2 },
		"another key":        func(i *Init) { i.Copy.Key = 2 },
		"keys":               func(i *Init) { i.Settings.Gossip = []GossipKey{{Epoch: 1}} },
		"due":                func(i *Init) { i.Settings.GossipDue = true },
		"an epoch":           func(i *Init) { i.Settings.GossipEpoch = 7 },
		"a key in version 3": func(i *Init) { i.Settings.Version, i.Settings.Secret = signedVersion, make([]byte, SecretSize) },
	} {
		w := &world{TB: t, s: New(), root: root}
		c := sealedInit(root)
		change(c.Init)
		if r := w.apply(c); r.Refused == nil || r.Refused.Code != CodeInvalid {
			t.Errorf("%s: %+v", name, r.Refused)
		}
	}
}

// All copies of as many nodes as are sealed at once fit into a command.
func TestSealedAtOnce(t *testing.T) {
	w := newWorld(t)
	copies := map[mesh.NodeID][]Copy{}
	for i := range SealedAtOnce {
		copies[mesh.NodeID{byte(i), byte(i >> 8), 1}] = []Copy{copyOf(1, 1), copyOf(2, 1), copyOf(3, 1)}
	}
	if _, err := EncodeCommand(w.signed(w.as(w.root, Command{RotateGossip: &RotateGossip{Step: GossipSeal, Copies: copies}}))); err != nil {
		t.Error(err)
	}
}
