package store

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/mesh"
)

// B2: a token's signature is checked before anything is said about tokens,
// names or prefixes.
func TestB02TokenSignature(t *testing.T) {
	w := newWorld(t)
	inv := w.addToken(1, func(t *Token) { t.Uses = 5 })
	w.must(newJoiner("bergen", "bergen").join(inv))
	good := newJoiner("oslo", "oslo")
	for name, change := range map[string]func(c *Join){
		"other key":       func(c *Join) { c.Signature = newInvite(2).Sign(c.Transcript) },
		"empty":           func(c *Join) { c.Signature = nil },
		"truncated":       func(c *Join) { c.Signature = c.Signature[:32] },
		"longer":          func(c *Join) { c.Signature = append(slices.Clone(c.Signature), 0) },
		"of other bytes":  func(c *Join) { c.Signature = inv.Sign(c.Transcript[1:]) },
		"identity's":      func(c *Join) { c.Signature = c.Proof },
		"a taken name":    func(c *Join) { *c = *newJoiner("bergen", "x").join(inv).Join; c.Signature = nil },
		"a taken prefix":  func(c *Join) { *c = *newJoiner("x", "x", "192.168.1.0/24").join(inv).Join; c.Signature = nil },
		"a used up token": func(c *Join) { c.Signature[5] ^= 1 },
		"of another mesh": func(c *Join) {
			tr := good.transcript(inv)
			tr.Mesh = mesh.MeshID{9}
			c.Transcript, _ = tr.Encode()
		},
		"of an expired token": func(c *Join) { c.Signature[63] ^= 0x80 },
	} {
		c := good.join(inv)
		c.Join.Signature = slices.Clone(c.Join.Signature)
		change(c.Join)
		if name == "of an expired token" {
			c.Now = testNow.Add(24 * time.Hour)
		}
		if r := w.apply(c); r.Refused == nil || r.Refused.Code != CodeTokenProof {
			t.Errorf("%s: %+v", name, r.Refused)
		}
	}
	w.must(good.join(inv))
}

// B11: an identity that was banned is not let in again in another spelling,
// and no key has two.
func TestB11OtherSpellings(t *testing.T) {
	w := newWorld(t)
	bad := newJoiner("bad", "bad")
	w.join(bad)
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: bad.id(), Revoke: true}}))
	for _, change := range []func(*joiner){
		func(*joiner) {}, func(j *joiner) { j.name = "good" }, func(j *joiner) { j.request = "another" },
		func(j *joiner) { j.key = newJoiner("", "fresh").key },
	} {
		j := *bad
		change(&j)
		w.refused(CodeRevoked, j.join(w.addToken(10)))
		w.must(w.by(Command{RevokeToken: &RevokeToken{newInvite(10).ID}}))
	}
	// The same point with the sign bit set, or not reduced, is no key at all.
	for i, change := range []func(*joiner){
		func(j *joiner) { j.identity[31] ^= 0x80 },
		func(j *joiner) { j.identity = mesh.IdentityKey(slices.Repeat([]byte{0xff}, 32)) },
		func(j *joiner) { j.key.Public[31] |= 0x80 },
		func(j *joiner) { j.key.Public = mesh.WireGuardKey(slices.Repeat([]byte{0xff}, 32)) },
	} {
		j := *newJoiner("other", fmt.Sprint("other", i))
		change(&j)
		if r := w.apply(j.join(w.addToken(20 + i))); r.Refused == nil {
			t.Errorf("%s was let in", j.identity)
		}
	}
	// A tunnel key of somebody else does not become one's own by its high bit.
	j := newJoiner("oslo", "oslo")
	w.join(j)
	for _, key := range []mesh.WireGuardKey{w.root.key.Public, bad.key.Public, j.key.Public} {
		high := key
		high[31] |= 0x80
		w.refused(CodeIdentityTaken, w.as(j, Command{AddKey: &AddKey{j.id(), Key{2, key}}}))
		w.refused(CodeInvalid, w.as(j, Command{AddKey: &AddKey{j.id(), Key{2, high}}}))
	}
	// An operator's key is not a node's, alive or gone, in any spelling.
	for _, key := range []mesh.IdentityKey{bad.identity, j.identity, {}, {1}, mesh.IdentityKey(slices.Repeat([]byte{0xff}, 32))} {
		if r := w.apply(w.by(Command{SetOperator: &SetOperator{"x", Operator{Key: key, Right: RightChange}}})); r.Refused == nil {
			t.Errorf("%s became an operator", key)
		}
	}
	if _, err := DecodeCommand([]byte(strings.Replace(encoded(t, w.as(j, Command{SetControl: &SetControl{Node: j.id()}})), j.id().String(), strings.ToUpper(j.id().String()), 1))); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

func encoded(t testing.TB, c Command) string {
	t.Helper()
	b, err := EncodeCommand(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// B37: the second of two copies of a voter is found, and so is an old copy.
func TestB37CloneIsFound(t *testing.T) {
	w := newWorld(t)
	boot := func(n uint64, instance byte) Command {
		return w.as(w.root, Command{RegisterBoot: &RegisterBoot{w.root.id(), Boot{n, Nonce{instance}}}})
	}
	w.must(boot(4, 1))
	w.must(boot(4, 1)) // asked again by the same
	w.refused(CodeStaleBoot, boot(4, 2))
	w.refused(CodeStaleBoot, boot(3, 1))
	w.must(boot(5, 2))
	w.refused(CodeInvalid, boot(6, 0))
	if w.s.Nodes[w.root.id()].Boot != (Boot{5, Nonce{2}}) {
		t.Errorf("%+v", w.s.Nodes[w.root.id()].Boot)
	}
	// Who was no voter in between begins with a new log.
	j := newJoiner("oslo", "oslo")
	w.join(j)
	w.must(w.by(Command{SetVoter: &SetVoter{j.id(), true}}))
	w.must(w.as(j, Command{SetVoter: &SetVoter{w.root.id(), false}}))
	w.refused(CodeForbidden, boot(6, 2))
	w.must(w.as(j, Command{SetVoter: &SetVoter{w.root.id(), true}}))
	w.must(boot(1, 3))
}

func TestReservations(t *testing.T) {
	w := newWorld(t)
	reserve := func(name, addr string) Command {
		return w.by(Command{Reserve: &Reserve{name, netip.MustParseAddr(addr)}})
	}
	w.must(reserve("oslo", "10.86.0.3"))
	if r := w.s.Reserved["oslo"]; r.Addr6.String() != "fd01:203:405::3" {
		t.Errorf("%+v", r)
	}
	w.must(reserve("bergen", "fd01:203:405::fffe"))
	for addr, code := range map[string]string{
		"10.86.0.1": CodeAddressTaken, "fd01:203:405::1": CodeAddressTaken, "10.86.0.3": CodeAddressTaken,
		"10.86.0.0": CodeInvalid, "10.86.255.255": CodeInvalid, "10.86.4.255": CodeInvalid, "10.86.4.0": CodeInvalid, "10.87.0.1": CodeInvalid,
		"fd01:203:405::": CodeInvalid, "fd01:203:405:0:1::1": CodeInvalid, "fd01:203:405::1:0:3": CodeInvalid, "fd99::1": CodeInvalid,
		"::ffff:10.86.0.9": CodeInvalid, "fd01:203:405::9%eth0": CodeInvalid,
	} {
		w.refused(code, reserve("trondheim", addr))
	}
	w.refused(CodeInvalid, w.by(Command{Reserve: &Reserve{Name: "trondheim"}}))
	w.refused(CodeNameTaken, reserve("hub", "10.86.0.9"))
	w.refused(CodeNameInvalid, reserve("a b", "10.86.0.9"))

	// Nobody else gets it; who has the name does, and then it is the node's.
	if n := w.join(newJoiner("a", "a")); n.Addr4.String() != "10.86.0.2" {
		t.Errorf("%s", n.Addr4)
	}
	if n := w.join(newJoiner("b", "b")); n.Addr4.String() != "10.86.0.4" {
		t.Errorf("%s", n.Addr4)
	}
	j := newJoiner("oslo", "oslo")
	if n := w.join(j); n.Addr4.String() != "10.86.0.3" || n.Addr6.String() != "fd01:203:405::3" {
		t.Errorf("%s %s", n.Addr4, n.Addr6)
	}
	if _, still := w.s.Reserved["oslo"]; still {
		t.Error("still reserved")
	}
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: j.id()}}))
	w.refused(CodeAddressTaken, reserve("oslo", "10.86.0.3")) // a tombstone has it

	// Replaced and given back, it is free again.
	w.must(reserve("oslo", "10.86.0.5"))
	w.must(reserve("oslo", "10.86.0.5"))
	w.must(reserve("oslo", "10.86.0.6"))
	w.must(reserve("trondheim", "10.86.0.5"))
	w.must(w.by(Command{Unreserve: &Unreserve{"trondheim"}}))
	w.refused(CodeNotFound, w.by(Command{Unreserve: &Unreserve{"trondheim"}}))
	if n := w.join(newJoiner("c", "c")); n.Addr4.String() != "10.86.0.5" {
		t.Errorf("%s", n.Addr4)
	}
}

// Reserving the last free address empties the pool, for all but its owner.
func TestReservedPool(t *testing.T) {
	w := &world{TB: t, s: New(), root: newJoiner("hub", "hub")}
	c := signedInit(w.root)
	c.Init.Settings.Pool4 = netip.MustParsePrefix("10.86.0.0/28")
	w.must(c)
	for i := range 13 {
		w.must(w.by(Command{Reserve: &Reserve{fmt.Sprint("n", i), nth(c.Init.Settings.Pool4, uint64(i+2))}}))
	}
	w.refused(CodePoolEmpty, newJoiner("x", "x").join(w.addToken(1)))
	w.join(newJoiner("n12", "n12"))
}

// allocate agrees with a slow search, however the numbers are taken.
func TestAllocateIsTheLowest(t *testing.T) {
	h := newHistory(5)
	s := New()
	s.Mesh.ID, s.Mesh.Pool4, s.Mesh.Pool6 = testMesh, netip.MustParsePrefix("10.1.254.0/22"), netip.MustParsePrefix("fd00::/64")
	s.Mesh.Pool4 = s.Mesh.Pool4.Masked()
	for i := range 300 {
		host := uint64(h.IntN(500))
		a4, a6 := nth(s.Mesh.Pool4, host), nth(s.Mesh.Pool6, uint64(h.IntN(500)))
		id := mesh.NodeID{byte(i), byte(i >> 8)}
		switch h.IntN(3) {
		case 0:
			s.put(Node{ID: id, Addr4: a4, Addr6: a6})
		case 1:
			s.bury(id, Tombstone{Addr4: a4, Addr6: a6})
		default:
			s.Reserved = map[string]Reservation{"x": {a4, a6}}
		}
		var want netip.Addr
		for n := uint64(1); !want.IsValid(); n++ {
			x4, x6 := nth(s.Mesh.Pool4, n), nth(s.Mesh.Pool6, n)
			if last := x4.As4()[3]; last != 0 && last != 255 && !s.given(Reservation{x4, x6}) && s.Reserved["x"].Addr4 != x4 && s.Reserved["x"].Addr6 != x6 {
				want = x4
			}
		}
		if got, _, refused := s.allocate(); refused != nil || got != want {
			t.Fatalf("after %d: %s %v, want %s", i, got, refused, want)
		}
	}
}

func TestSharedPrefixes(t *testing.T) {
	w := newWorld(t)
	a, b, c := newJoiner("a", "a"), newJoiner("b", "b"), newJoiner("c", "c")
	for _, j := range []*joiner{a, b, c} {
		w.join(j)
	}
	grant := func(j *joiner, own, shared []netip.Prefix) Command {
		return w.by(Command{Grant: &Grant{Node: j.id(), Prefixes: append(slices.Clone(own), shared...), Shared: shared}})
	}
	p, q := prefixes("172.16.0.0/16"), prefixes("192.168.7.0/24")
	w.must(grant(a, p, nil))
	w.refused(CodePrefixTaken, grant(b, p, nil))
	w.refused(CodePrefixTaken, grant(b, nil, p)) // a has it for itself
	w.must(grant(a, q, p))
	w.refused(CodePrefixTaken, grant(b, p, nil)) // b would have it for itself
	w.must(grant(b, nil, p))
	w.must(grant(c, nil, p))
	w.refused(CodePrefixTaken, grant(c, prefixes("172.16.5.0/24"), nil)) // a part of it
	w.refused(CodePrefixTaken, grant(c, nil, prefixes("172.16.5.0/24")))
	w.refused(CodePrefixTaken, grant(c, nil, prefixes("172.16.0.0/12")))
	w.refused(CodePrefixTaken, grant(a, append(q, p...), nil)) // not alone any more
	w.refused(CodePrefixRefused, w.by(Command{Grant: &Grant{Node: a.id(), Prefixes: q, Shared: p}}))
	w.refused(CodePrefixRefused, w.by(Command{Grant: &Grant{Node: a.id(), Prefixes: p, Shared: append(slices.Clone(p), p...)}}))
	w.refused(CodePrefixTaken, newJoiner("d", "d", "172.16.0.0/16").join(w.addToken(9)))

	lowest := slices.MinFunc([]mesh.NodeID{a.id(), b.id(), c.id()}, mesh.NodeID.Compare)
	for range 20 { // maps have no order
		if n, ok := w.s.Owner(netip.MustParseAddr("172.16.1.1")); !ok || n.ID != lowest {
			t.Fatalf("the owner is %s, want %s", n.ID, lowest)
		}
	}
	for _, j := range []*joiner{a, b, c} {
		if !slices.Contains(w.s.Nodes[j.id()].Prefixes, p[0]) {
			t.Errorf("not granted to %s", j.name)
		}
	}
	w.must(grant(a, q, nil))
	w.must(grant(b, nil, nil))
	w.must(grant(c, p, nil)) // alone
}

func TestKeyEpochs(t *testing.T) {
	w := newWorld(t)
	j := newJoiner("oslo", "oslo")
	w.join(j)
	key := func(epoch mesh.Epoch, seed string) Command {
		return w.as(j, Command{AddKey: &AddKey{j.id(), Key{epoch, newJoiner("", seed).key.Public}}})
	}
	drop := func(epoch mesh.Epoch) Command { return w.as(j, Command{DropKey: &DropKey{j.id(), epoch}}) }
	w.refused(CodeInvalid, drop(1)) // the only one
	w.refused(CodeInvalid, key(1, "k1"))
	w.must(key(3, "k3"))
	w.refused(CodeInvalid, key(2, "k2"))
	w.refused(CodeIdentityTaken, key(4, "k3"))
	w.must(key(4, "k4"))
	w.refused(CodeInvalid, key(5, "k5")) // three are enough
	w.must(drop(1))
	w.must(drop(4))
	w.refused(CodeNotFound, drop(4))
	w.refused(CodeInvalid, key(4, "k6")) // used before, and dropped
	w.must(key(5, "k5"))
	if n := w.s.Nodes[j.id()]; len(n.Keys) != 2 || n.Keys[0].Epoch != 3 || n.Keys[1].Epoch != 5 || n.LastEpoch != 5 {
		t.Errorf("%+v", n)
	}
	w.refused(CodeIdentityTaken, w.as(w.root, Command{AddKey: &AddKey{w.root.id(), Key{9, newJoiner("", "k5").key.Public}}}))
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: j.id()}}))
	w.refused(CodeIdentityTaken, w.as(w.root, Command{AddKey: &AddKey{w.root.id(), Key{9, newJoiner("", "k5").key.Public}}}))
}

// A token gives what it says and nothing else.
func TestTokenGives(t *testing.T) {
	w := newWorld(t)
	token := func(seed int, change func(*Token)) Command {
		t := tokenOf(newInvite(seed))
		change(&t)
		return w.by(Command{AddToken: &AddToken{t}})
	}
	w.must(token(1, func(*Token) {}))
	w.refused(CodePrefixRefused, newJoiner("oslo", "oslo", "192.168.5.0/24").join(newInvite(1)))
	w.must(newJoiner("oslo", "oslo").join(newInvite(1)))
	w.must(token(2, func(t *Token) { t.AnyPrefix, t.Site, t.Roles = true, "north", []NodeRole{NodeOperator, NodeNoVote} }))
	n := w.must(newJoiner("bergen", "bergen", "192.168.5.0/24").join(newInvite(2))).Node
	if n.Site != "north" || !slices.Equal(n.Roles, []NodeRole{NodeNoVote, NodeOperator}) || len(n.Prefixes) != 1 {
		t.Errorf("%+v", n)
	}
	w.refused(CodePrefixRefused, token(3, func(t *Token) { t.AnyPrefix, t.Prefixes = true, prefixes("192.168.9.0/24") }))
	w.refused(CodeInvalid, token(3, func(t *Token) { t.Roles = []NodeRole{"root"} }))
	w.refused(CodeInvalid, token(3, func(t *Token) { t.Roles = []NodeRole{NodeNoVote, NodeNoVote} }))
	w.refused(CodeInvalid, token(3, func(t *Token) { t.Site = "a b" }))
	w.refused(CodeForbidden, w.by(Command{SetVoter: &SetVoter{n.ID, true}}))
}

func TestOperators(t *testing.T) {
	w := newWorld(t)
	laptop, ci := newJoiner("laptop", "laptop"), newJoiner("ci", "ci")
	set := func(name string, o Operator) Command { return w.by(Command{SetOperator: &SetOperator{name, o}}) }
	w.must(set("anna", Operator{Key: laptop.identity, Right: RightChange, Expires: testNow.Add(time.Hour)}))
	w.must(set("ci", Operator{Key: ci.identity, Right: RightRead}))
	for code, c := range map[string]Command{
		CodeIdentityTaken: set("x", Operator{Key: laptop.identity, Right: RightRead}),
		CodeNameInvalid:   set("", Operator{Key: newJoiner("", "y").identity, Right: RightRead}),
		CodeInvalid:       set("x", Operator{Key: newJoiner("", "y").identity}),
		CodeNotFound:      w.by(Command{RemoveOperator: &RemoveOperator{"x"}}),
	} {
		w.refused(code, c)
	}
	w.refused(CodeInvalid, set("x", Operator{Key: newJoiner("", "y").identity, Right: RightRead, Expires: testNow}))
	w.refused(CodeForbidden, w.as(ci, Command{RevokeToken: &RevokeToken{"x"}}))
	w.refused(CodeNotFound, w.as(laptop, Command{RevokeToken: &RevokeToken{"x"}}))
	late := w.as(laptop, Command{RevokeToken: &RevokeToken{"x"}})
	late.Now = testNow.Add(time.Hour)
	w.refused(CodeForbidden, late)

	// anna's right ends by itself, so somebody else must remain.
	w.refused(CodeLastOperator, w.by(Command{SetRoles: &SetRoles{Node: w.root.id()}}))
	w.must(set("anna", Operator{Key: laptop.identity, Right: RightChange}))
	w.must(w.by(Command{SetRoles: &SetRoles{Node: w.root.id()}}))
	w.refused(CodeLastOperator, w.as(laptop, Command{RemoveOperator: &RemoveOperator{"anna"}}))
	w.refused(CodeLastOperator, w.as(laptop, Command{SetOperator: &SetOperator{"anna", Operator{Key: laptop.identity, Right: RightRead}}}))
}

// A node's key and an operator's are two: a state with one that is both could
// not be restored.
func TestOperatorDoesNotJoin(t *testing.T) {
	w := newWorld(t)
	j := newJoiner("oslo", "oslo")
	w.must(w.by(Command{SetOperator: &SetOperator{"anna", Operator{Key: j.identity, Right: RightRead}}}))
	w.refused(CodeIdentityTaken, j.join(w.addToken(1)))
	w.must(w.by(Command{RemoveOperator: &RemoveOperator{"anna"}}))
	w.must(j.join(newInvite(1)))
}

// A mesh of version 3 begins with all that it needs.
func TestSignedInit(t *testing.T) {
	root := newJoiner("hub", "hub")
	for name, c := range map[string]struct {
		code   string
		change func(*Init)
		after  func(*Command)
	}{
		"unsigned":        {CodeUnsigned, nil, func(c *Command) { c.Signature = nil }},
		"by another":      {CodeUnsigned, nil, func(c *Command) { c.Author = newJoiner("x", "x").identity }},
		"for another":     {CodeUnsigned, nil, func(c *Command) { c.Init.Name = "x" }},
		"no CA":           {CodeInvalid, func(i *Init) { i.Settings.CA, i.Settings.Roots = nil, nil }, nil},
		"half a CA":       {CodeInvalid, func(i *Init) { i.Settings.Roots = nil }, nil},
		"one CA twice":    {CodeInvalid, func(i *Init) { i.Settings.CA, i.Settings.Roots = [][32]byte{{1}, {1}}, [][]byte{{1}, {2}} }, nil},
		"generation":      {CodeInvalid, func(i *Init) { i.Settings.Generation = 1 }, nil},
		"voters":          {CodeInvalid, func(i *Init) { i.Settings.Voters = 3 }, nil},
		"authorities":     {CodeInvalid, func(i *Init) { i.Settings.Authorities = []CA{{}} }, nil},
		"bad site":        {CodeInvalid, func(i *Init) { i.Site = "a b" }, nil},
		"version 2":       {CodeVersion, func(i *Init) { i.Settings.Version = 2 }, nil},
		"site without it": {CodeInvalid, func(i *Init) { i.Settings.Version, i.Site = 0, "oslo" }, nil},
	} {
		w := &world{TB: t, s: New(), root: root}
		cmd := signedInit(root)
		if c.change != nil {
			c.change(cmd.Init)
		}
		cmd = w.signed(cmd)
		if c.after != nil {
			c.after(&cmd)
		}
		if r := w.apply(cmd); r.Refused == nil || r.Refused.Code != c.code {
			t.Errorf("%s: %+v, want %s", name, r.Refused, c.code)
		}
	}
	w := &world{TB: t, s: New(), root: root}
	c := signedInit(root)
	c.Init.Site = "oslo"
	n := w.must(c).Node
	if n.Site != "oslo" || !n.EverVoted || w.s.RoleOf(root.identity, testNow) != RoleNode|RoleVoter|RoleReader|RoleOperator || len(w.s.Mesh.CA) != 0 || len(w.s.Pins()) != 1 {
		t.Errorf("%+v %+v", n, w.s.Mesh)
	}
}
