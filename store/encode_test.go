package store

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

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
	var good []byte
	for _, s := range []*State{newWorld(t).s, oldWorld(t).s} {
		var err error
		if good, err = Snapshot(s); err != nil {
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
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"empty":    {nil, ErrCorrupt},
		"appended": {append(bytes.Clone(good), '\n'), ErrCorrupt},
		"newer":    {bytes.Replace(good, []byte("state 1 "), []byte("state 5 "), 1), ErrNewer},
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
		"a role twice":        func(_ *State, _, oslo *Node) { oslo.Roles = []NodeRole{NodeOperator, NodeOperator} },
		"roles in disorder":   func(_ *State, _, oslo *Node) { oslo.Roles = []NodeRole{NodeOperator, NodeNoVote} },
		"no such role":        func(_ *State, _, oslo *Node) { oslo.Roles = []NodeRole{"root"} },
		"bad site":            func(_ *State, _, oslo *Node) { oslo.Site = "a b" },
		"shared, not granted": func(_ *State, _, oslo *Node) { oslo.Shared = prefixes("192.168.9.0/24") },
		"shared by one":       func(_ *State, hub, oslo *Node) { oslo.Prefixes, oslo.Shared = hub.Prefixes, hub.Prefixes },
		"last epoch":          func(_ *State, _, oslo *Node) { oslo.Keys[0].Epoch, oslo.LastEpoch = 5, 4 },
		"reserved and used":   func(s *State, hub, _ *Node) { s.Reserved = map[string]Reservation{"x": {hub.Addr4, hub.Addr6}} },
		"reserved for a node": func(s *State, _, _ *Node) { s.Reserved = map[string]Reservation{"hub": reservation(9, 9)} },
		"reserved unlike":     func(s *State, _, _ *Node) { s.Reserved = map[string]Reservation{"x": reservation(8, 9)} },
		"reserved twice": func(s *State, _, _ *Node) {
			s.Reserved = map[string]Reservation{"x": reservation(9, 9), "y": reservation(9, 9)}
		},
		"reserved the network": func(s *State, _, _ *Node) { s.Reserved = map[string]Reservation{"x": reservation(0, 0)} },
		"operator's name":      func(s *State, _, _ *Node) { s.Operators = map[string]Operator{"a b": operatorOf("x")} },
		"operator twice": func(s *State, _, _ *Node) {
			s.Operators = map[string]Operator{"a": operatorOf("x"), "b": operatorOf("x")}
		},
		"operator is a node": func(s *State, _, _ *Node) { s.Operators = map[string]Operator{"a": operatorOf("hub")} },
		"operator of nothing": func(s *State, _, _ *Node) {
			s.Operators = map[string]Operator{"a": {Key: newJoiner("", "x").identity, Created: testNow}}
		},
		"token gives a role": func(s *State, _, _ *Node) { changeToken(s, func(t *Token) { t.Roles = []NodeRole{"root"} }) },
		"token gives a site": func(s *State, _, _ *Node) { changeToken(s, func(t *Token) { t.Site = "-" }) },
		"token any and some": func(s *State, _, _ *Node) { changeToken(s, func(t *Token) { t.Prefixes = prefixes("192.168.9.0/24") }) },
		"four voters":        func(s *State, _, _ *Node) { s.Mesh.Voters = 4 },
		"cache age":          func(s *State, _, _ *Node) { s.Mesh.CacheMaxAge = 1 },
		"no version":         func(s *State, _, _ *Node) { s.Mesh.Version = 0 },
		"a version of none":  func(s *State, _, _ *Node) { s.Mesh.Version = 1 },
		"a CA of old":        func(s *State, _, _ *Node) { s.Mesh.CA = [][32]byte{{1}} },
		"no CA":              func(s *State, _, _ *Node) { s.Mesh.Authorities = nil },
		"no current CA":      func(s *State, _, _ *Node) { s.Mesh.Authorities = []CA{{Pin: Digest{1}, State: CANext}} },
		"two current CAs": func(s *State, _, _ *Node) {
			s.Mesh.Authorities = []CA{{Pin: Digest{1}, State: CACurrent}, {Pin: Digest{2}, State: CACurrent}}
		},
		"an old CA begins": func(s *State, _, _ *Node) {
			s.Mesh.Authorities = []CA{{Pin: Digest{1}, State: CAPrevious, From: testNow}, {Pin: Digest{2}, State: CACurrent}}
		},
		"one CA twice": func(s *State, _, _ *Node) {
			s.Mesh.Authorities = []CA{{Pin: Digest{1}, State: CACurrent}, {Pin: Digest{1}, State: CANext}}
		},
		"a CA of no kind": func(s *State, _, _ *Node) {
			s.Mesh.Authorities = []CA{{Pin: Digest{1}, State: CACurrent}, {Pin: Digest{2}, State: "x"}}
		},
		"a secret":                func(s *State, _, _ *Node) { s.Mesh.Secret = []byte{1} },
		"no gossip key":           func(s *State, hub, _ *Node) { s.Mesh.Gossip, hub.Copies = nil, nil },
		"a gossip key of epoch 0": func(s *State, _, _ *Node) { changeGossip(s, func(k *GossipKey) { k.Epoch = 0 }) },
		"a gossip key to come":    func(s *State, _, _ *Node) { changeGossip(s, func(k *GossipKey) { k.Epoch = 2 }) },
		"a gossip key of later":   func(s *State, _, _ *Node) { changeGossip(s, func(k *GossipKey) { k.Index = s.Index + 1 }) },
		"no check":                func(s *State, _, _ *Node) { changeGossip(s, func(k *GossipKey) { k.Check = Digest{} }) },
		"a gossip key of no kind": func(s *State, _, _ *Node) { changeGossip(s, func(k *GossipKey) { k.State = "x" }) },
		"two current gossip keys": func(s *State, _, _ *Node) { s.addGossip(2, Digest{2}, GossipCurrent, testNow) },
		"two next gossip keys": func(s *State, _, _ *Node) {
			s.addGossip(2, Digest{2}, GossipNext, testNow)
			s.addGossip(3, Digest{3}, GossipNext, testNow)
		},
		"four gossip keys": func(s *State, _, _ *Node) {
			for epoch := range mesh.Epoch(3) {
				s.addGossip(epoch+2, Digest{2}, GossipOld, testNow)
			}
		},
		"only an old gossip key": func(s *State, _, _ *Node) {
			s.Mesh.Secret = make([]byte, SecretSize)
			changeGossip(s, func(k *GossipKey) { k.State = GossipOld })
		},
		"a copy too short":      func(_ *State, _, oslo *Node) { oslo.Copies = []Copy{{1, 1, []byte{1}}} },
		"a copy of nothing":     func(_ *State, _, oslo *Node) { oslo.Copies = []Copy{copyOf(2, 1)} },
		"a copy for no key":     func(_ *State, _, oslo *Node) { oslo.Copies = []Copy{copyOf(1, 2)} },
		"two copies of a key":   func(_ *State, _, oslo *Node) { oslo.Copies = []Copy{copyOf(1, 1), copyOf(1, 1)} },
		"gossip in version 3":   func(s *State, _, _ *Node) { s.Mesh.Version = signedVersion },
		"copies in version 3":   func(s *State, _, _ *Node) { s.Mesh.Version, s.Mesh.Gossip, s.Mesh.GossipEpoch = signedVersion, nil, 0 },
		"an epoch in version 3": func(s *State, hub, _ *Node) { s.Mesh.Version, s.Mesh.Gossip, hub.Copies = signedVersion, nil, nil },
		"no trail":              func(s *State, _, _ *Node) { s.Audit = Audit{} },
		"no records":            func(s *State, _, _ *Node) { s.Audit.Recent = nil },
		"another head":          func(s *State, _, _ *Node) { s.Audit.Head[0] ^= 1 },
		"a trail too short": func(s *State, _, _ *Node) {
			s.Audit.Recent = s.Audit.Recent[:1]
			s.Audit.Head = s.Audit.Recent[0].Head()
		},
		"a changed record": func(s *State, _, _ *Node) {
			s.Audit.Recent = slices.Clone(s.Audit.Recent)
			s.Audit.Recent[0].About = "x"
		},
		"another index":      func(s *State, _, _ *Node) { s.Index++ },
		"another generation": func(s *State, _, _ *Node) { s.Mesh.Generation++ },
		"an answer to come":  func(s *State, _, _ *Node) { s.Answered = Answers{{index: s.Index + 1}} },
		"an old answer":      func(s *State, _, _ *Node) { s.Index += Window + 1; s.Answered = Answers{{index: 0}} },
		"answers in disorder": func(s *State, _, _ *Node) {
			s.Answered = Answers{{index: 2}, {index: 1}}
		},
		"an unknown answer": func(s *State, _, _ *Node) { s.Answered = Answers{{index: 1, code: byte(len(codes))}} },
		"removed member":    func(s *State, hub, _ *Node) { s.bury(hub.ID, Tombstone{Identity: hub.Identity}) },
		"token id":          func(s *State, _, _ *Node) { s.putToken(Token{ID: "A B"}) },
		"mesh name":         func(s *State, _, _ *Node) { s.Mesh.Name = "" },
		"pool":              func(s *State, _, _ *Node) { s.Mesh.Pool4 = netip.Prefix{} },
		"no mesh":           func(s *State, _, _ *Node) { s.Mesh.ID[0], s.Mesh.ID[1] = 0, 0 },
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

func reservation(host4, host6 uint64) Reservation {
	return Reservation{nth(testPool4, host4), nth(RandomULA([5]byte{1, 2, 3, 4, 5}), host6)}
}

func operatorOf(seed string) Operator {
	return Operator{Key: newJoiner("", seed).identity, Right: RightRead, Created: testNow}
}

func changeGossip(s *State, change func(*GossipKey)) {
	s.Mesh.Gossip = slices.Clone(s.Mesh.Gossip)
	change(&s.Mesh.Gossip[0])
}

func changeToken(s *State, change func(*Token)) {
	t := s.Tokens[newInvite(1).ID]
	change(&t)
	s.putToken(t)
}

// A mesh of versions 1 and 2 holds nothing of version 3, in any header.
func TestOldStateHoldsNothingNew(t *testing.T) {
	for name, change := range map[string]func(*State){
		"a generation": func(s *State) { s.Mesh.Generation = 1 },
		"gossip due":   func(s *State) { s.Mesh.GossipDue = true },
		"a copy":       func(s *State) { n := s.Nodes[s.ids()[0]]; n.Copies = []Copy{copyOf(1, 1)}; s.put(n) },
		"an authority": func(s *State) { s.Mesh.Authorities = []CA{{Pin: Digest{1}, State: CACurrent}} },
		"a setting":    func(s *State) { s.Mesh.Voters = 3 },
		"an operator":  func(s *State) { s.Operators = map[string]Operator{"a": operatorOf("x")} },
		"a trail":      func(s *State) { s.Audit.Head[0] = 1 },
		"an answer":    func(s *State) { s.Answered = Answers{{index: 1}} },
		"a site":       func(s *State) { n := s.Nodes[s.ids()[0]]; n.Site = "oslo"; s.put(n) },
		"a boot":       func(s *State) { n := s.Nodes[s.ids()[0]]; n.Boot.N = 1; s.put(n) },
		"a token":      func(s *State) { t := tokenOf(newInvite(1)); t.AnyPrefix = true; s.putToken(t) },
	} {
		s := *oldWorld(t).s
		change(&s)
		b, err := Snapshot(&s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		s.Version = 2
		_, body, _ := bytes.Cut(b, []byte("\n"))
		body = bytes.Replace(body, fmt.Appendf(nil, `{"version":%d`, s.since()), []byte(`{"version":2`), 1)
		if _, err := Restore(append(snapshotHeader(2, body), body...)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s, as version 2: %v", name, err)
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
		"newer":         {strings.Replace(text, `"version":1`, `"version":5,"new":[]`, 1), ErrNewer},
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

// newCommands uses every part of what versions 3 and 4 brought, with two members.
func newCommands(root, oslo *joiner) []Command {
	a := oslo.id()
	return []Command{
		{SetRoles: &SetRoles{a, []NodeRole{NodeOperator, NodeNoVote}}},
		{SetRoles: &SetRoles{a, nil}},
		{SetNode: &SetNode{Node: a, Site: new("oslo")}},
		{SetOperator: &SetOperator{"anna", Operator{Key: newJoiner("", "anna").identity, Right: RightChange, Expires: testNow.Add(time.Hour)}}},
		{SetOperator: &SetOperator{"ci", Operator{Key: newJoiner("", "ci").identity, Right: RightRead}}},
		{RemoveOperator: &RemoveOperator{"ci"}},
		{Reserve: &Reserve{"bergen", nth(testPool4, 9)}},
		{Reserve: &Reserve{"narvik", nth(testPool4, 10)}},
		{Unreserve: &Unreserve{"narvik"}},
		{Grant: &Grant{Node: a, Prefixes: prefixes("172.16.0.0/16"), Shared: prefixes("172.16.0.0/16")}},
		{SetSettings: &SetSettings{CacheMaxAge: new(time.Hour), Voters: new(3)}},
		{RotateCA: &RotateCA{Step: CAAdd, Pin: Digest{2}, Root: []byte{0x30}}},
		{RotateCA: &RotateCA{Step: CAPromote, Pin: Digest{2}}},
		{RotateCA: &RotateCA{Step: CARetire, Pin: Digest{1}}},
		{RotateCA: &RotateCA{Step: CAAdd, Pin: Digest{3}, Root: []byte{0x30}, Aged: true}},
		{RotateGossip: &RotateGossip{Step: GossipAdd, Epoch: 2, Check: Digest{2}, Copies: map[mesh.NodeID][]Copy{root.id(): {copyOf(2, 1)}}}},
		{RotateGossip: &RotateGossip{Step: GossipSeal, Copies: map[mesh.NodeID][]Copy{a: {copyOf(1, 1), copyOf(2, 1)}}}},
		{RotateGossip: &RotateGossip{Step: GossipUse, Epoch: 2}},
		{RotateGossip: &RotateGossip{Step: GossipAdd, Epoch: 3, Check: Digest{3}}},
		{RotateGossip: &RotateGossip{Step: GossipRetire, Epoch: 1}},
		{AddKey: &AddKey{root.id(), Key{2, newJoiner("", "new key").key.Public}}},
		{DropKey: &DropKey{root.id(), 1}},
		{RegisterBoot: &RegisterBoot{root.id(), Boot{1, Nonce{1}}}},
		{SetVoter: &SetVoter{a, true}},
		{AddToken: &AddToken{Token{
			ID: newInvite(77).ID, Key: newInvite(77).Public(), Uses: 1, Expires: testNow.Add(time.Hour), AnyPrefix: true, Site: "oslo", Roles: []NodeRole{NodeNoVote},
		}}},
		{SetVersion: &SetVersion{Version}},
		{Recover: &Recover{root.id(), 1}},
	}
}

func FuzzRestore(f *testing.F) {
	states := []*State{New()}
	for _, w := range []*world{oldWorld(f), newWorldOf(f, signedInit), newWorld(f)} {
		oslo := newJoiner("oslo", "oslo")
		w.must(oslo.join(w.addToken(1)))
		states = append(states, w.s)
		for _, c := range policyCommands(w.root.id(), oslo.id()) {
			w.must(w.by(c))
		}
		states = append(states, w.s)
		if w.signs() {
			for _, c := range newCommands(w.root, oslo) {
				w.apply(w.by(c))
			}
			states = append(states, w.s)
		}
	}
	for _, s := range states {
		b, err := Snapshot(s)
		if err != nil {
			f.Fatal(err)
		}
		_, body, _ := bytes.Cut(b, []byte("\n"))
		f.Add(body)
	}
	w := oldWorld(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _ = Restore(body) // the header as it comes
		for version := 1; version <= Version; version++ {
			b := append(snapshotHeader(version, body), body...)
			s, err := Restore(b)
			if err != nil {
				continue
			}
			again, err := Snapshot(s)
			if err != nil || !bytes.Equal(again, b) {
				t.Fatalf("two encodings: %v\n%s\n%s", err, b, again)
			}
			if _, r := Apply(s, s.Index+1, w.by(Command{RevokeToken: &RevokeToken{"x"}})); r.Refused == nil && s.Index+1 != 0 {
				t.Fatal("a token that never was is revoked")
			}
		}
	})
}

// FuzzApply feeds any command that decodes to two replicas, and once more with
// a signature that is good: none panics, both agree, and the state keeps its
// rules.
func FuzzApply(f *testing.F) {
	add := func(c Command) {
		b, err := EncodeCommand(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	starts := []*State{nil}
	var signed *world
	for _, w := range []*world{oldWorld(f), newWorld(f)} {
		signed = w
		j := newJoiner("oslo", "oslo", "192.168.5.0/24")
		inv := w.addToken(1)
		commands := []Command{
			{AddToken: &AddToken{tokenOf(newInvite(2))}},
			{RevokeToken: &RevokeToken{inv.ID}},
			{RemoveNode: &RemoveNode{Node: w.root.id()}},
			{SetVoter: &SetVoter{Node: w.root.id()}},
			{Grant: &Grant{Node: w.root.id(), Prefixes: prefixes("192.168.5.0/24")}},
			{SetControl: &SetControl{w.root.id(), []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:1")}}},
		}
		add(j.join(inv))
		add(w.signed(initCommand(j)))
		add(w.signed(signedInit(j)))
		bergen := newJoiner("bergen", "bergen")
		w.must(bergen.join(w.addToken(3)))
		commands = append(append(commands, policyCommands(w.root.id(), bergen.id())...), newCommands(w.root, bergen)...)
		for _, c := range commands {
			add(w.signed(w.by(c)))
		}
		starts = append(starts, w.s)
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
		commands := []Command{c}
		if c.Join == nil && c.Init == nil {
			c.Author, c.Request, c.After = signed.root.identity, Nonce{0xff}, signed.s.Index
			commands = append(commands, signAs(t, signed.root, c))
		}
		for _, start := range starts {
			for _, c := range commands {
				index := uint64(1)
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
				if r.Refused == nil || r.Record != nil {
					restored(t, one)
				}
			}
		}
	})
}

// Everything that versions 3 and 4 brought survives a snapshot.
func TestSnapshotOfEverything(t *testing.T) {
	w := newWorld(t)
	oslo := newJoiner("oslo", "oslo")
	w.join(oslo)
	for _, c := range newCommands(w.root, oslo) {
		r := w.apply(w.by(c))
		if never := c.SetVersion != nil || c.Recover != nil; (r.Refused != nil) != never {
			t.Errorf("%+v: %v", c, r.Refused)
		}
		restored(t, w.s)
	}
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: oslo.id(), Revoke: true}}))
	again := restored(t, w.s)
	if !again.Mesh.CADue || !again.Mesh.GossipDue || len(again.Mesh.Gossip) != 1 || !again.Removed[oslo.id()].EverVoted || len(again.Operators)+len(again.Reserved) != 2 || len(again.Answered) != len(w.s.Answered) {
		t.Errorf("%+v", again)
	}
}
