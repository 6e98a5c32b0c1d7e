package discovery

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/store"
)

// banned is a state of the log with members, of whom the first is an operator,
// and with a newest entry of the time at.
func banned(at time.Time, index uint64, members ...identity) *store.State {
	s := store.New()
	s.Audit.Recent = []store.AuditRecord{{N: 1, Time: at}}
	s.Mesh.ID, s.Index = testMesh, index
	s.Nodes = map[mesh.NodeID]store.Node{}
	for i, m := range members {
		n := store.Node{ID: m.key.NodeID(), Identity: m.key}
		if i == 0 {
			n.Roles = []store.NodeRole{store.NodeOperator}
		}
		s.Nodes[n.ID] = n
	}
	return s
}

func (i identity) ban(node identity, index uint64, at time.Time) Ban {
	return Ban{Mesh: testMesh, Node: node.key.NodeID(), Author: i.key, Index: index, Time: at}
}

func (i identity) word(t testing.TB, b Ban) Signed {
	s, err := b.Sign(i.sign)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A ban counts by the state of whoever hears it, and for as long.
func TestBans(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	operator, other, gone := newIdentity(1), newIdentity(2), newIdentity(3)
	state := banned(now, 7, operator, other, gone)
	b := NewBans()
	merge := func(what string, s Signed, changed bool, want error) {
		t.Helper()
		got, err := b.Merge(now, s, state)
		if got != changed || !errors.Is(err, want) {
			t.Errorf("%s: changed %t, error %v", what, got, err)
		}
	}
	said := operator.ban(gone, 7, now)
	merge("by no operator", other.word(t, other.ban(gone, 7, now)), false, ErrForbidden)
	merge("signed by another", other.word(t, said), false, ErrSignature)
	merge("of nobody here", operator.word(t, operator.ban(newIdentity(9), 7, now)), false, ErrForeign)
	foreign := said
	foreign.Mesh[0]++
	merge("of another mesh", operator.word(t, foreign), false, ErrForeign)
	merge("too old, and the log went on", operator.word(t, operator.ban(gone, 6, now.Add(-BanLife-time.Second))), false, ErrExpired)
	torn := operator.word(t, said)
	torn.Body = torn.Body[:40]
	merge("torn", torn, false, ErrMalformed)
	facts, err := gone.facts(9).Sign(gone.sign)
	if err != nil {
		t.Fatal(err)
	}
	merge("facts", facts, false, ErrMalformed)
	if all := b.All(); len(all) > 0 {
		t.Fatalf("refused, and kept: %+v", all)
	}

	word := operator.word(t, said)
	merge("an operator's", word, true, nil)
	merge("again", word, false, nil)
	merge("older", operator.word(t, operator.ban(gone, 7, now.Add(-time.Hour))), false, nil)
	newer := operator.word(t, operator.ban(gone, 7, now.Add(time.Microsecond)))
	merge("newer", newer, true, nil)
	if s := b.Signed(); len(s) != 1 || !s[0].Equal(newer) || len(b.All()) != 1 || b.All()[0].Node != gone.key.NodeID() {
		t.Errorf("kept: %+v", b.All())
	}
}

// What ends a ban: the log alone, or time that passed with the log going on.
func TestBanEnds(t *testing.T) {
	said := time.Unix(2_000_000_000, 0)
	operator, second, gone := newIdentity(1), newIdentity(2), newIdentity(3)
	late := said.Add(BanLife + time.Second)
	recovered := banned(late, 1, operator, second, gone)
	recovered.Mesh.Generation = 1
	for what, c := range map[string]struct {
		state *store.State
		ended bool
	}{
		"nothing happened":                  {banned(said, 7, operator, second, gone), false},
		"the log goes on":                   {banned(said.Add(time.Hour), 8, operator, second, gone), false},
		"a day, and this node is behind":    {banned(said.Add(-BanLife), 6, operator, second, gone), false},
		"a day, and the log goes on":        {banned(late, 8, operator, second, gone), true},
		"a day, and the mesh was recovered": {recovered, true},
		"an entry without a time":           {banned(time.Time{}, 8, operator, second, gone), false},
		"the log confirms":                  {banned(said, 8, operator, second), true},
		"its author lost the role":          {banned(said, 8, second, operator, gone), true},
		"its author was removed":            {banned(said, 8, second, gone), true},
		"its author is banned, not removed": {banned(said, 8, operator, second, gone), false},
	} {
		// Whatever the clock of this node says: after a start it may stand anywhere.
		for _, now := range []time.Time{said, time.Unix(0, 0), said.AddDate(5, 0, 0)} {
			b := NewBans()
			before := banned(said, 7, operator, second, gone)
			before.Nodes[second.key.NodeID()] = store.Node{ID: second.key.NodeID(), Identity: second.key, Roles: []store.NodeRole{store.NodeOperator}}
			for _, s := range []Signed{operator.word(t, operator.ban(gone, 7, said)), second.word(t, second.ban(operator, 7, said))} {
				if changed, err := b.Merge(now, s, before); !changed || err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			ended := b.Prune(now, c.state)
			about := func(x Ban) bool { return x.Node == gone.key.NodeID() }
			if slices.ContainsFunc(ended, about) != c.ended || slices.ContainsFunc(b.All(), about) == c.ended {
				t.Errorf("%s, at %s: ended %t, wanted %t", what, now, !c.ended, c.ended)
			}
			if len(ended)+len(b.All()) != 2 {
				t.Errorf("%s: of two bans %d ended and %d are left", what, len(ended), len(b.All()))
			}
		}
	}
}

// An author whose clock is behind the log does not say what is over already.
func TestNewBan(t *testing.T) {
	entry := time.Unix(2_000_000_000, 5_000)
	one, two := newIdentity(1), newIdentity(2)
	state := banned(entry, 7, one, two)
	state.Mesh.Generation = 3
	for now, want := range map[time.Time]time.Time{
		entry.Add(-time.Hour): entry, time.Unix(0, 0): entry, entry.Add(time.Hour + 1): entry.Add(time.Hour),
	} {
		b := NewBan(now, state, two.key.NodeID(), one.key)
		if !b.Time.Equal(want) || b.Generation != 3 || b.Index != 7 || b.Mesh != testMesh || b.Author != one.key || b.Node != two.key.NodeID() {
			t.Errorf("at %s: %+v", now, b)
		}
		if _, err := b.Encode(); err != nil {
			t.Error(err)
		}
	}
}

// Two nodes that hear the same bans in any order agree.
func TestBansAgree(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	one, two, three := newIdentity(1), newIdentity(2), newIdentity(3)
	state := banned(now, 7, one, two, three)
	for id, n := range state.Nodes {
		n.Roles = []store.NodeRole{store.NodeOperator}
		state.Nodes[id] = n
	}
	words := []Signed{
		one.word(t, one.ban(two, 7, now)), two.word(t, two.ban(one, 7, now.Add(time.Second))),
		one.word(t, one.ban(three, 7, now)), two.word(t, two.ban(three, 7, now.Add(time.Second))),
	}
	heard := func(order []int) []Ban {
		b := NewBans()
		for _, i := range order {
			if _, err := b.Merge(now, words[i], state); err != nil {
				t.Fatal(err)
			}
		}
		return b.All()
	}
	want := heard([]int{0, 1, 2, 3})
	if len(want) != 3 {
		t.Fatalf("%d are banned", len(want))
	}
	for _, order := range [][]int{{3, 2, 1, 0}, {1, 3, 0, 2}, {2, 0, 3, 1}} {
		if got := heard(order); !slices.Equal(got, want) {
			t.Errorf("heard as %v: %+v, want %+v", order, got, want)
		}
	}
}

func TestBanRefused(t *testing.T) {
	id, now := newIdentity(1), time.Unix(2_000_000_000, 0)
	for name, change := range map[string]func(*Ban){
		"itself":      func(b *Ban) { b.Node = id.key.NodeID() },
		"nobody":      func(b *Ban) { b.Node = mesh.NodeID{} },
		"by nobody":   func(b *Ban) { b.Author = mesh.IdentityKey{} },
		"no time":     func(b *Ban) { b.Time = time.Unix(0, 0) },
		"nanoseconds": func(b *Ban) { b.Time = now.Add(1) },
	} {
		b := id.ban(newIdentity(2), 1, now)
		change(&b)
		if _, err := b.Encode(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzBan(f *testing.F) {
	body, err := newIdentity(1).ban(newIdentity(2), 7, time.Unix(2_000_000_000, 5000)).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte{banVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		ban, err := DecodeBan(b)
		if err != nil {
			return
		}
		again, err := ban.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x decodes to what encodes as %x (%v)", b, again, err)
		}
		about, serial, err := (Signed{Body: b}).Claimed()
		if err != nil || about != (Subject{ban.Node, true}) || serial != uint64(ban.Time.UnixMicro()) {
			t.Fatalf("%x claims to be %v, %d (%v)", b, about, serial, err)
		}
	})
}
