package store

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"guywire/mesh"
)

func TestSnapshot(t *testing.T) {
	w := newWorld(t)
	j := newJoiner("oslo", "oslo", "192.168.5.0/24")
	w.must(j.join(w.addToken(1)))
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: j.id()}}))
	w.addToken(2)
	for _, s := range []*State{nil, {}, New(), w.s} {
		again := restored(t, s)
		one, _ := Snapshot(s)
		two, _ := Snapshot(again)
		if !bytes.Equal(one, two) {
			t.Errorf("two encodings of one state:\n%s\n%s", one, two)
		}
	}
	// The restored state goes on like the first.
	c := newJoiner("bergen", "bergen").join(newInvite(2))
	a, _ := Apply(w.s, w.index+1, c)
	b, _ := Apply(restored(t, w.s), w.index+1, c)
	if Hash(a) != Hash(b) || Hash(a) == Hash(w.s) {
		t.Error("the restored state is another")
	}
}

// B21: every flipped byte and every missing end is found.
func TestDamagedSnapshot(t *testing.T) {
	good, err := Snapshot(newWorld(t).s)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := Restore(bad); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewer) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		if _, err := Restore(good[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d: %v", i, err)
		}
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"empty":    {nil, ErrCorrupt},
		"appended": {append(bytes.Clone(good), '\n'), ErrCorrupt},
		"newer":    {bytes.Replace(good, []byte("state 1 "), []byte("state 3 "), 1), ErrNewer},
		"too new":  {bytes.Replace(good, []byte("state 1 "), []byte("state 2 "), 1), ErrCorrupt}, // it could be written as 1
		"version":  {bytes.Replace(good, []byte("state 1 "), []byte("state 0 "), 1), ErrCorrupt},
		"spelling": {bytes.Replace(good, []byte("state 1 "), []byte("state 01 "), 1), ErrCorrupt},
		"huge":     {append([]byte("guywire-state 1 0\n"), make([]byte, MaxSnapshotBytes+1)...), ErrTooLarge},
	} {
		if _, err := Restore(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is well written but breaks a rule is not taken either.
func TestRestoreChecksTheRules(t *testing.T) {
	for name, change := range map[string]func(s *State, hub, oslo *Node){
		"address twice":      func(_ *State, hub, oslo *Node) { oslo.Addr4 = hub.Addr4 },
		"outside the pool":   func(_ *State, _, oslo *Node) { oslo.Addr6 = netip.MustParseAddr("fd99::1") },
		"no address":         func(_ *State, _, oslo *Node) { oslo.Addr6 = netip.Addr{} },
		"name twice":         func(_ *State, hub, oslo *Node) { oslo.Name = hub.Name },
		"bad name":           func(_ *State, _, oslo *Node) { oslo.Name = "a b" },
		"key twice":          func(_ *State, hub, oslo *Node) { oslo.Keys = hub.Keys },
		"no key":             func(_ *State, _, oslo *Node) { oslo.Keys = nil },
		"epoch twice":        func(_ *State, _, oslo *Node) { oslo.Keys = append(oslo.Keys, Key{1, newJoiner("", "x").key.Public}) },
		"other identity":     func(_ *State, hub, oslo *Node) { oslo.Identity = hub.Identity },
		"other id":           func(_ *State, hub, oslo *Node) { oslo.ID = hub.ID },
		"overlap":            func(_ *State, hub, oslo *Node) { oslo.Prefixes = hub.Prefixes },
		"control":            func(_ *State, _, oslo *Node) { oslo.Control = make([]netip.AddrPort, 1) },
		"tags in disorder":   func(_ *State, _, oslo *Node) { oslo.Tags = []string{"b", "a"} },
		"bad tag":            func(_ *State, _, oslo *Node) { oslo.Tags = []string{"a tag"} },
		"cap of 1":           func(_ *State, _, oslo *Node) { oslo.MaxDegree = 1 },
		"drained twice":      func(_ *State, _, oslo *Node) { oslo.Drains = []Drain{{Since: testNow}, {Since: testNow}} },
		"drained nothing":    func(_ *State, _, oslo *Node) { oslo.Drains = []Drain{{Remote: "wan", Since: testNow}} },
		"drained at no time": func(_ *State, _, oslo *Node) { oslo.Drains = []Drain{{}} },
		"drained link of a stranger": func(_ *State, hub, _ *Node) {
			hub.Drains = []Drain{{Uplink: "wan", Peer: mesh.NodeID{0xff}, Remote: "wan", Since: testNow}}
		},
		"link drained at the wrong end": func(_ *State, hub, oslo *Node) {
			oslo.Drains = []Drain{{Uplink: "wan", Peer: hub.ID, Remote: "wan", Since: testNow}}
		},
		"hub mode without tag": func(s *State, _, _ *Node) { s.Mesh.Topology.Mode = TopologyHub },
		"tag without hub mode": func(s *State, _, _ *Node) { s.Mesh.Topology.Hub = "hub" },
		"dense full mesh":      func(s *State, _, _ *Node) { s.Mesh.Topology.Mode, s.Mesh.Topology.Dense = TopologyFull, true },
		"unknown mode":         func(s *State, _, _ *Node) { s.Mesh.Topology.Mode = "star" },
		"pair in disorder":     func(s *State, hub, oslo *Node) { s.Mesh.Topology.Pinned = []Pair{{oslo.ID, hub.ID}} },
		"pair with itself":     func(s *State, hub, _ *Node) { s.Mesh.Topology.Pinned = []Pair{{hub.ID, hub.ID}} },
		"pair twice": func(s *State, hub, oslo *Node) {
			s.Mesh.Topology.Pinned = []Pair{{hub.ID, oslo.ID}, {hub.ID, oslo.ID}}
		},
		"pair with a stranger": func(s *State, hub, _ *Node) { s.Mesh.Topology.Forbidden = []Pair{{hub.ID, mesh.NodeID{0xff}}} },
		"pinned and forbidden": func(s *State, hub, oslo *Node) {
			s.Mesh.Topology.Pinned = []Pair{{hub.ID, oslo.ID}}
			s.Mesh.Topology.Forbidden = s.Mesh.Topology.Pinned
		},
		"removed member": func(s *State, hub, _ *Node) { s.bury(hub.ID, Tombstone{Identity: hub.Identity}) },
		"token id":       func(s *State, _, _ *Node) { s.putToken(Token{ID: "A B"}) },
		"mesh name":      func(s *State, _, _ *Node) { s.Mesh.Name = "" },
		"pool":           func(s *State, _, _ *Node) { s.Mesh.Pool4 = netip.Prefix{} },
		"no mesh":        func(s *State, _, _ *Node) { s.Mesh.ID[0], s.Mesh.ID[1] = 0, 0 },
	} {
		w := newWorld(t)
		w.must(newJoiner("oslo", "oslo", "192.168.5.0/24").join(w.addToken(1)))
		s := *w.s
		hub, _ := s.NodeByName("hub")
		oslo, _ := s.NodeByName("oslo")
		id := oslo.ID
		change(&s, &hub, &oslo)
		fresh := *New()
		fresh.Nodes[hub.ID], fresh.Nodes[id] = hub, oslo
		s.Nodes = fresh.Nodes
		b, err := Snapshot(&s)
		if err != nil {
			continue // cannot even be written
		}
		if _, err := Restore(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecodeCommandIsStrict(t *testing.T) {
	good, err := EncodeCommand(Command{Now: testNow, RevokeToken: &RevokeToken{"abc"}})
	if err != nil {
		t.Fatal(err)
	}
	text := string(good)
	policy, err := EncodeCommand(Command{Now: testNow, SetDrain: &SetDrain{Drain: true}})
	if err != nil {
		t.Fatal(err)
	}
	drain := string(policy)
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"itself":        {text, nil},
		"of version 2":  {drain, nil},
		"empty":         {"", ErrCorrupt},
		"null":          {"null", ErrCorrupt},
		"cut":           {text[:len(text)-1], ErrCorrupt},
		"appended":      {text + "{}", ErrCorrupt},
		"space":         {" " + text, ErrCorrupt},
		"unknown field": {strings.Replace(text, `"now"`, `"new":1,"now"`, 1), ErrCorrupt},
		"unknown deep":  {strings.Replace(text, `"id"`, `"new":1,"id"`, 1), ErrCorrupt},
		"twice":         {strings.Replace(text, `"id"`, `"id":"x","id"`, 1), ErrCorrupt},
		"other case":    {strings.Replace(text, `"id"`, `"ID"`, 1), ErrCorrupt},
		"no version":    {strings.Replace(text, `"version":1,`, ``, 1), ErrCorrupt},
		"version 0":     {strings.Replace(text, `"version":1`, `"version":0`, 1), ErrCorrupt},
		"version -1":    {strings.Replace(text, `"version":1`, `"version":-1`, 1), ErrCorrupt},
		"newer":         {strings.Replace(text, `"version":1`, `"version":3,"new":[]`, 1), ErrNewer},
		"too new":       {strings.Replace(text, `"version":1`, `"version":2`, 1), ErrCorrupt},
		"too old":       {strings.Replace(drain, `"version":2`, `"version":1`, 1), ErrCorrupt},
		"huge":          {text + strings.Repeat(" ", MaxCommandBytes), ErrTooLarge},
	} {
		if _, err := DecodeCommand([]byte(c.in)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// What could not be read back never gets into the log.
func TestEncodeCommandRefuses(t *testing.T) {
	for name, c := range map[string]Command{
		"newer":       {Version: Version + 1},
		"not UTF-8":   {Now: testNow, RevokeToken: &RevokeToken{"\xff"}},
		"bad prefix":  {Now: testNow, Grant: &Grant{Prefixes: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 99)}}},
		"year 100000": {Now: testNow.AddDate(100000, 0, 0)},
		"huge":        {Now: testNow, RevokeToken: &RevokeToken{strings.Repeat("x", MaxCommandBytes)}},
	} {
		if b, err := EncodeCommand(c); err == nil {
			t.Errorf("%s: %s", name, b)
		}
	}
}

func FuzzRestore(f *testing.F) {
	w := newWorld(f)
	oslo := newJoiner("oslo", "oslo")
	w.must(oslo.join(w.addToken(1)))
	plain := w.s
	for _, c := range policyCommands(w.root.id(), oslo.id()) {
		w.must(w.by(c))
	}
	for _, s := range []*State{New(), plain, w.s} {
		b, _ := Snapshot(s)
		_, body, _ := bytes.Cut(b, []byte("\n"))
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _ = Restore(body) // the header as it comes
		b := append(snapshotHeader(1, body), body...)
		s, err := Restore(b)
		if err != nil {
			b = append(snapshotHeader(2, body), body...)
			if s, err = Restore(b); err != nil {
				return
			}
		}
		again, err := Snapshot(s)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("two encodings: %v\n%s\n%s", err, b, again)
		}
		if _, r := Apply(s, s.Index+1, w.by(Command{RevokeToken: &RevokeToken{"x"}})); r.Refused == nil && s.Index+1 != 0 {
			t.Fatal("a token that never was is revoked")
		}
	})
}

// FuzzApply feeds any command that decodes to two replicas: none panics, both
// agree, and the state keeps its rules.
func FuzzApply(f *testing.F) {
	w := newWorld(f)
	j := newJoiner("oslo", "oslo", "192.168.5.0/24")
	inv := w.addToken(1)
	for _, c := range []Command{
		j.join(inv), initCommand(j),
		w.by(Command{AddToken: &AddToken{tokenOf(newInvite(2))}}), w.by(Command{RevokeToken: &RevokeToken{inv.ID}}),
		w.by(Command{RemoveNode: &RemoveNode{Node: w.root.id()}}), w.by(Command{SetVoter: &SetVoter{Node: w.root.id()}}),
		w.by(Command{Grant: &Grant{w.root.id(), prefixes("192.168.5.0/24")}}),
		w.by(Command{SetControl: &SetControl{w.root.id(), []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:1")}}}),
	} {
		b, err := EncodeCommand(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	w.must(newJoiner("bergen", "bergen").join(w.addToken(3)))
	for _, c := range policyCommands(w.root.id(), newJoiner("bergen", "bergen").id()) {
		b, err := EncodeCommand(w.by(c))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(fmt.Appendf(nil, `{"version":%d}`, Version))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCommand(b)
		if err != nil {
			return
		}
		again, err := EncodeCommand(c)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("two encodings: %v\n%s\n%s", err, b, again)
		}
		for _, start := range []*State{nil, w.s} {
			var index uint64 = 1
			if start != nil {
				index += start.Index
			}
			one, r := Apply(start, index, c)
			two, _ := Apply(start, index, c)
			if Hash(one) != Hash(two) || one.Index != index {
				t.Fatal("two replicas differ")
			}
			if err := one.check(); err != nil {
				t.Fatalf("%v after %s", err, b)
			}
			if r.Refused == nil {
				restored(t, one)
			}
		}
	})
}
