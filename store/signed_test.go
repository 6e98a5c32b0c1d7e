package store

import (
	"crypto/ed25519"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/mesh"
)

// TestRoles asks for every command of the Command struct in every role, about
// oneself and about another node. A new command without a row fails.
func TestRoles(t *testing.T) {
	w := newWorld(t)
	node, other, voter, gone := newJoiner("node", "node"), newJoiner("other", "other"), newJoiner("voter", "voter"), newJoiner("gone", "gone")
	chief := newJoiner("chief", "chief")
	for _, j := range []*joiner{node, other, voter, gone, chief} {
		w.join(j)
	}
	w.must(w.by(Command{SetVoter: &SetVoter{voter.id(), true}}))
	w.must(w.by(Command{SetRoles: &SetRoles{chief.id(), []NodeRole{NodeOperator}}}))
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: gone.id(), Revoke: true}}))
	reader, laptop, late := newJoiner("reader", "reader"), newJoiner("laptop", "laptop"), newJoiner("late", "late")
	w.must(w.by(Command{SetOperator: &SetOperator{"reader", Operator{Key: reader.identity, Right: RightRead}}}))
	w.must(w.by(Command{SetOperator: &SetOperator{"laptop", Operator{Key: laptop.identity, Right: RightChange}}}))
	w.must(w.by(Command{SetOperator: &SetOperator{"late", Operator{Key: late.identity, Right: RightChange, Expires: testNow.Add(time.Second)}}}))
	w.must(w.by(Command{Reserve: &Reserve{"kept", nth(testPool4, 99)}}))
	inv := w.addToken(7)

	stranger := newJoiner("stranger", "stranger")
	authors := map[string]*joiner{
		"nobody": stranger, "self": node, "node": other, "operator": chief, "voter": voter, "revoked": gone,
		"reader": reader, "laptop": laptop, "expired": late,
	}
	operators := []string{"operator", "laptop"}
	about := node.id()
	// What may be done about node (self), and by whom.
	rows := map[string]struct {
		command Command
		allowed []string
	}{
		"Init":           {Command{Init: sealedInit(stranger).Init}, nil},
		"RotateGossip":   {Command{RotateGossip: &RotateGossip{Step: GossipAdd, Epoch: 2, Check: Digest{2}}}, []string{"voter"}},
		"Join":           {Command{Join: newJoiner("new", "new").join(inv).Join}, nil}, // signed by anyone: a join proves itself
		"AddToken":       {Command{AddToken: &AddToken{tokenOf(newInvite(8))}}, operators},
		"RevokeToken":    {Command{RevokeToken: &RevokeToken{inv.ID}}, operators},
		"SetControl":     {Command{SetControl: &SetControl{Node: about}}, []string{"self", "voter"}},
		"SetVoter":       {Command{SetVoter: &SetVoter{about, true}}, []string{"voter"}},
		"Grant":          {Command{Grant: &Grant{Node: about}}, operators},
		"RemoveNode":     {Command{RemoveNode: &RemoveNode{Node: about}}, append([]string{"self"}, operators...)},
		"Revoke":         {Command{RemoveNode: &RemoveNode{Node: about, Revoke: true}}, operators},
		"SetTopology":    {Command{SetTopology: &SetTopology{Mode: TopologyFull}}, operators},
		"SetPairs":       {Command{SetPairs: &SetPairs{Pin: []Pair{{about, other.id()}}}}, operators},
		"SetNode":        {Command{SetNode: &SetNode{Node: about, Site: new("oslo"), Transit: new(false)}}, operators},
		"Site":           {Command{SetNode: &SetNode{Node: about, Site: new("oslo")}}, append([]string{"self"}, operators...)},
		"SetDrain":       {Command{SetDrain: &SetDrain{Node: about, Drain: true}}, append([]string{"self"}, operators...)},
		"SetRoles":       {Command{SetRoles: &SetRoles{about, []NodeRole{NodeOperator}}}, operators},
		"SetOperator":    {Command{SetOperator: &SetOperator{"new", Operator{Key: stranger.identity, Right: RightRead}}}, operators},
		"RemoveOperator": {Command{RemoveOperator: &RemoveOperator{"reader"}}, operators},
		"Reserve":        {Command{Reserve: &Reserve{"new", nth(testPool4, 98)}}, operators},
		"Unreserve":      {Command{Unreserve: &Unreserve{"kept"}}, operators},
		"AddKey":         {Command{AddKey: &AddKey{about, Key{2, newJoiner("", "key").key.Public}}}, []string{"self"}},
		"DropKey":        {Command{DropKey: &DropKey{about, 1}}, nil},
		"SetSettings":    {Command{SetSettings: &SetSettings{Voters: new(3)}}, operators},
		"RotateCA":       {Command{RotateCA: &RotateCA{Step: CAAdd, Pin: Digest{2}, Root: []byte{0x30}}}, []string{"voter"}},
		"SetVersion":     {Command{SetVersion: &SetVersion{Version}}, nil}, // it has that version
		"RegisterBoot":   {Command{RegisterBoot: &RegisterBoot{voter.id(), Boot{1, Nonce{1}}}}, []string{"voter"}},
		"Recover":        {Command{Recover: &Recover{about, 1}}, nil},
	}
	for f := range reflect.TypeFor[Command]().Fields() {
		if f.Type.Kind() == reflect.Pointer {
			row, known := rows[f.Name]
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !known || row.command.action() != name {
				t.Errorf("%s: no row, or not the action %s", f.Name, name)
			}
		}
	}
	for what, row := range rows {
		for who, j := range authors {
			c := w.signed(w.as(j, row.command))
			if row.command.Join != nil {
				c.Author, c.Request = j.identity, Nonce{1}
			}
			c.Now = testNow.Add(time.Minute) // late has expired
			_, r := Apply(w.s, w.index+1, c)
			want := slices.Contains(row.allowed, who)
			if got := r.Refused == nil; got != want {
				t.Errorf("%s by %s: %v, want allowed = %v", what, who, r.Refused, want)
			}
			if !want && len(row.allowed) > 0 && r.Refused.Code != CodeForbidden {
				t.Errorf("%s by %s: %v, want it forbidden", what, who, r.Refused)
			}
		}
	}
	// Only the one key of a node is dropped by nobody.
	w.must(w.as(node, rows["AddKey"].command))
	w.refused(CodeForbidden, w.by(Command{DropKey: &DropKey{about, 1}}))
	w.must(w.as(node, Command{DropKey: &DropKey{about, 1}}))
	// A voter speaks for itself only, and nobody makes itself one.
	w.refused(CodeForbidden, w.as(w.root, Command{RegisterBoot: &RegisterBoot{voter.id(), Boot{1, Nonce{1}}}}))
	w.refused(CodeForbidden, w.as(node, Command{SetVoter: &SetVoter{about, true}}))

	for who, want := range map[string]Role{
		"nobody": RoleNobody, "self": RoleNode, "operator": RoleNode | RoleReader | RoleOperator, "voter": RoleNode | RoleVoter,
		"revoked": RoleRevoked, "reader": RoleReader, "laptop": RoleReader | RoleOperator, "expired": RoleNobody,
	} {
		if got := w.s.RoleOf(authors[who].identity, testNow.Add(time.Minute)); got != want {
			t.Errorf("%s has role %b, want %b", who, got, want)
		}
	}
	if w.s.RoleOf(late.identity, testNow) != RoleReader|RoleOperator {
		t.Error("expired too early")
	}
}

// What a signature is bound to: each case changes one thing of a command that
// is right otherwise.
func TestSignature(t *testing.T) {
	w := newWorld(t)
	j := newJoiner("oslo", "oslo")
	w.join(j)
	sign := func(m []byte) []byte { return ed25519.Sign(w.root.private, m) }
	good := func() Command {
		return w.signed(w.by(Command{Grant: &Grant{Node: j.id(), Prefixes: prefixes("192.168.5.0/24")}}))
	}
	for name, change := range map[string]func(*Command){
		"nothing":          func(c *Command) { c.Signature = nil },
		"cut":              func(c *Command) { c.Signature = c.Signature[:63] },
		"a bit":            func(c *Command) { c.Signature[0] ^= 1 },
		"other author":     func(c *Command) { c.Author = j.identity },
		"no author":        func(c *Command) { c.Author = mesh.IdentityKey{} },
		"low-order author": func(c *Command) { c.Author = mesh.IdentityKey{1} },
		"other request":    func(c *Command) { c.Request[0]++ },
		"no request":       func(c *Command) { c.Request = Nonce{} },
		"other index":      func(c *Command) { c.After-- },
		"other content":    func(c *Command) { c.Grant.Prefixes = prefixes("192.168.0.0/16") },
		"other node":       func(c *Command) { c.Grant.Node = w.root.id() },
		"an authority":     func(c *Command) { c.By = w.operator() },
		"another mesh": func(c *Command) {
			*c, _ = SignCommand(*c, mesh.MeshID{9}, sign)
		},
		"another domain": func(c *Command) {
			m, _ := c.message(testMesh)
			c.Signature = sign(m[len(commandDomain):])
		},
	} {
		c := good()
		grant := *c.Grant
		c.Grant, c.Signature = &grant, slices.Clone(c.Signature)
		change(&c)
		r := w.apply(c)
		if r.Refused == nil || r.Refused.Code != CodeUnsigned || !r.Record.Author.IsZero() {
			t.Errorf("%s: %+v", name, r)
		}
	}
	// The leader says when it is, and the encoding which version it has.
	c := good()
	c.Now, c.Version = testNow.Add(time.Hour), signedVersion
	b, err := EncodeCommand(c)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = DecodeCommand(b); err != nil {
		t.Fatal(err)
	}
	if r := w.must(c); r.Record.Author != w.root.identity || r.Record.Action != "grant" || r.Record.About != j.id().String() {
		t.Errorf("%+v", r.Record)
	}

	for name, c := range map[string]Command{
		"no author": {Request: Nonce{1}}, "no request": {Author: j.identity},
		"a join":  {Author: j.identity, Request: Nonce{1}, Join: &Join{}},
		"no time": {Author: j.identity, Request: Nonce{1}, AddToken: &AddToken{Token{Expires: testNow.AddDate(99999, 0, 0)}}},
	} {
		if c, err := SignCommand(c, testMesh, sign); err == nil {
			t.Errorf("%s: signed as %+v", name, c)
		}
	}
}

// TestRequestsOnce repeats requests in any order and number, and signs some
// again: each is done once, and each answer is that of the first time.
func TestRequestsOnce(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 4))
		w := newWorld(t)
		w.rare = 16
		inv := newInvite(1)
		made := make([]Command, 0, 12)
		for i := range 6 {
			token := tokenOf(newInvite(i + 2))
			made = append(made, w.signed(w.by(Command{AddToken: &AddToken{token}})), w.signed(w.by(Command{RevokeToken: &RevokeToken{token.ID}})))
		}
		made = append(made, w.signed(w.by(Command{RevokeToken: &RevokeToken{inv.ID}}))) // refused at any time
		type first struct {
			index uint64
			code  string
		}
		answers := map[Nonce]first{}
		for range 60 {
			c := made[rng.IntN(len(made))]
			if rng.IntN(3) == 0 { // the proposer met an index that moved on
				c.After = w.s.Index
				c = signAs(w, w.root, c)
			}
			if rng.IntN(10) == 0 {
				w.s = restored(t, w.s)
			}
			r := w.apply(c)
			got := first{index: r.Index}
			if r.Refused != nil {
				got.code = r.Refused.Code
			}
			if was, asked := answers[c.Request]; asked && got != was {
				t.Fatalf("seed %d: answered %+v, at first %+v", seed, got, was)
			} else if !asked && got.index != w.index {
				t.Fatalf("seed %d: a new request was answered as entry %d", seed, got.index)
			}
			answers[c.Request] = got
		}
		done := 0
		for _, a := range answers {
			if a.code == "" {
				done++
			}
		}
		ok := 0
		for _, r := range w.s.Audit.Recent {
			if r.Outcome == OutcomeOK {
				ok++
			}
		}
		if ok != done+1 || done == 0 || done == len(answers) { // and init
			t.Errorf("seed %d: %d requests were done %d times", seed, done, ok-1)
		}
	}
}

// The memory of requests and the life of a signature end together, so there
// is no index at which an old command can be done again.
func TestWindow(t *testing.T) {
	w := newWorld(t)
	c := w.signed(w.by(Command{AddToken: &AddToken{tokenOf(newInvite(1))}}))
	start := w.s.Index // c.After
	s, r := Apply(w.s, start+1, c)
	if r.Refused != nil {
		t.Fatal(r.Refused)
	}
	for after, want := range map[uint64]string{
		start + 2: OutcomeRepeated, start + Window: OutcomeRepeated, start + Window + 1: OutcomeRepeated,
		start + Window + 2: OutcomeRefused + CodeStale, math.MaxUint64: OutcomeRefused + CodeStale,
	} {
		if _, r := Apply(s, after, c); r.Record.Outcome != want {
			t.Errorf("%d entries later: %s, want %s", after-start, r.Record.Outcome, want)
		}
	}
	// Never seen before, it is as good as its signature.
	for after, want := range map[uint64]string{
		start + Window: OutcomeOK, start + Window + 1: OutcomeRefused + CodeStale,
	} {
		if _, r := Apply(w.s, after, c); r.Record.Outcome != want {
			t.Errorf("first seen %d entries later: %s, want %s", after-start, r.Record.Outcome, want)
		}
	}
	// A signature for a time to come would outlive the memory.
	c.After = start + 10
	if _, r := Apply(w.s, start+1, signAs(t, w.root, c)); r.Refused == nil || r.Refused.Code != CodeStale {
		t.Errorf("%+v", r.Refused)
	}
	// A stale request is not decided: signed again it is done.
	old := c
	old.After = 0
	s, r = Apply(w.s, start+Window+5, signAs(t, w.root, old))
	if r.Refused == nil || r.Refused.Code != CodeStale {
		t.Fatal(r.Refused)
	}
	c.After = s.Index
	if _, r = Apply(s, s.Index+1, signAs(t, w.root, c)); r.Refused != nil {
		t.Error(r.Refused)
	}
	// What is remembered is bounded: two of these requests are in one window.
	s = w.s
	for range 5 {
		c.Request[1]++
		c.After = s.Index
		s, _ = Apply(s, s.Index+Window-10, signAs(t, w.root, c))
		if len(s.Answered) > 2 {
			t.Errorf("%d requests are remembered", len(s.Answered))
		}
	}
}

// Nobody takes the request id of somebody else: a voter that relays a request
// could answer it with something of its own.
func TestRequestOfAnother(t *testing.T) {
	w := newWorld(t)
	j := newJoiner("oslo", "oslo")
	w.join(j)
	theirs := w.signed(w.by(Command{Grant: &Grant{Node: j.id(), Prefixes: prefixes("192.168.5.0/24")}}))
	own := w.as(j, Command{SetControl: &SetControl{Node: j.id()}})
	own.Author, own.Request, own.After = j.identity, theirs.Request, w.s.Index
	w.must(signAs(w, j, own))
	if r := w.must(theirs); len(r.Node.Prefixes) != 1 || r.Record.Outcome != OutcomeOK {
		t.Errorf("%+v", r)
	}
}

// B25: what counts is the state at the entry's own index, whatever was right
// when the command was signed, or checked.
func TestB25AuthorityAtTheIndex(t *testing.T) {
	for name, taken := range map[string]Command{
		"role":    {SetRoles: &SetRoles{newJoiner("chief", "chief").id(), nil}},
		"removed": {RemoveNode: &RemoveNode{Node: newJoiner("chief", "chief").id()}},
		"revoked": {RemoveNode: &RemoveNode{Node: newJoiner("chief", "chief").id(), Revoke: true}},
		"laptop":  {RemoveOperator: &RemoveOperator{"laptop"}},
	} {
		w := newWorld(t)
		chief, laptop := newJoiner("chief", "chief"), newJoiner("laptop", "laptop")
		w.join(chief, func(t *Token) { t.Roles = []NodeRole{NodeOperator} })
		w.must(w.by(Command{SetOperator: &SetOperator{"laptop", Operator{Key: laptop.identity, Right: RightChange}}}))
		who := chief
		if name == "laptop" {
			who = laptop
		}
		c := w.signed(w.as(who, Command{AddToken: &AddToken{tokenOf(newInvite(9))}}))
		if refused := Check(w.s, c); refused != nil {
			t.Errorf("%s: %v in advance", name, refused)
		}
		w.must(w.by(taken))
		w.refused(CodeForbidden, c)
	}
}

// B26: a batch is allowed if each of its parts is.
func TestB26BatchIsItsParts(t *testing.T) {
	w, ids := sites(t, 5)
	rng := rand.New(rand.NewPCG(26, 0))
	single := func(c SetPairs) (parts []SetPairs) {
		for _, p := range c.Unpin {
			parts = append(parts, SetPairs{Unpin: []Pair{p}})
		}
		for _, p := range c.Allow {
			parts = append(parts, SetPairs{Allow: []Pair{p}})
		}
		for _, p := range c.Pin {
			parts = append(parts, SetPairs{Pin: []Pair{p}})
		}
		for _, p := range c.Forbid {
			parts = append(parts, SetPairs{Forbid: []Pair{p}})
		}
		return parts
	}
	random := func() (out []Pair) {
		for range rng.IntN(4) / 2 {
			out = append(out, Pair{ids[rng.IntN(len(ids))], ids[rng.IntN(len(ids))]})
		}
		return out
	}
	applied, refused := 0, 0
	for range 400 {
		batch := SetPairs{Unpin: random(), Allow: random(), Pin: random(), Forbid: random()}
		who := machines[ids[rng.IntN(2)]] // the operator, or a node
		isRoot := who.id() == w.root.id()
		whole, r := Apply(w.s, w.index+1, w.signed(w.as(&who, Command{SetPairs: &batch})))
		parts, all := w.s, true
		for _, p := range single(batch) {
			c := w.as(&who, Command{SetPairs: &p})
			c.Author, c.After = who.identity, parts.Index
			w.asked++
			c.Request = Nonce{15: 1, 14: byte(w.asked), 13: byte(w.asked >> 8)}
			var one Result
			parts, one = Apply(parts, parts.Index+1, signAs(t, &who, c))
			all = all && one.Refused == nil
		}
		if len(single(batch)) == 0 {
			continue
		}
		if !isRoot && (r.Refused == nil || r.Refused.Code != CodeForbidden) {
			t.Fatalf("%+v by a node: %v", batch, r.Refused)
		}
		if all != (r.Refused == nil) {
			t.Fatalf("%+v: in parts %v, as a batch %v", batch, all, r.Refused)
		}
		if !all {
			refused++
			continue
		}
		applied++
		if !reflect.DeepEqual(parts.Mesh.Topology, whole.Mesh.Topology) {
			t.Fatalf("%+v: in parts %+v, as a batch %+v", batch, parts.Mesh.Topology, whole.Mesh.Topology)
		}
		w.s, w.index = whole, whole.Index
	}
	if applied < 50 || refused < 50 {
		t.Errorf("%d applied and %d refused: the test proves little", applied, refused)
	}
}

// B39: every number at the ends of its range and beyond.
func TestB39Numbers(t *testing.T) {
	w := newWorld(t)
	j := newJoiner("oslo", "oslo")
	w.join(j)
	tokens := 0
	token := func(uses int, lifetime time.Duration) Command {
		tokens++
		t := tokenOf(newInvite(20_000 + tokens))
		t.Uses, t.Expires = uses, testNow.Add(lifetime)
		return Command{AddToken: &AddToken{t}}
	}
	for name, c := range map[string]struct {
		command func(n int64) Command
		good    func(n int64) bool
	}{
		"voters": {
			func(n int64) Command { return Command{SetSettings: &SetSettings{Voters: new(int(n))}} },
			func(n int64) bool { return n == 0 || n == 1 || n == 3 || n == 5 },
		},
		"cache age": {
			func(n int64) Command { return Command{SetSettings: &SetSettings{CacheMaxAge: new(time.Duration(n))}} },
			func(n int64) bool {
				return n == 0 || n >= int64(MinCacheAge) && n <= int64(MaxCacheAge) && n%int64(time.Second) == 0
			},
		},
		"cap": {
			func(n int64) Command { return Command{SetNode: &SetNode{Node: j.id(), MaxDegree: new(int(n))}} },
			func(n int64) bool { return n == 0 || n >= MinDegreeCap && n <= MaxDegreeCap },
		},
		"uses": {
			func(n int64) Command { return token(int(n), time.Hour) },
			func(n int64) bool { return n >= 1 && n <= MaxTokenUses },
		},
		"lifetime": {
			func(n int64) Command { return token(1, time.Duration(n)) },
			func(n int64) bool { return n >= 1 && n <= int64(MaxTokenLifetime) },
		},
	} {
		for _, n := range []int64{
			0, -1, 1, 2, 3, 4, 5, 6, math.MinInt64, math.MaxInt64, math.MaxInt32, math.MaxUint32, MinDegreeCap - 1, MaxDegreeCap, MaxDegreeCap + 1,
			MaxTokenUses, MaxTokenUses + 1, int64(MinCacheAge), int64(MinCacheAge) - 1, int64(MinCacheAge) + 1, int64(MaxCacheAge), int64(MaxCacheAge) + 1,
			int64(MaxTokenLifetime), int64(MaxTokenLifetime) + 1,
		} {
			if r := w.apply(w.by(c.command(n))); (r.Refused == nil) != c.good(n) {
				t.Errorf("%s %d: %v, want it taken = %v", name, n, r.Refused, c.good(n))
			}
		}
	}
	// Numbers of single nodes.
	for _, c := range []Command{
		{AddKey: &AddKey{j.id(), Key{0, newJoiner("", "k").key.Public}}},
		{DropKey: &DropKey{j.id(), 0}},
		{DropKey: &DropKey{j.id(), math.MaxUint32}},
	} {
		if r := w.apply(w.as(j, c)); r.Refused == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	w.refused(CodeInvalid, w.as(w.root, Command{RegisterBoot: &RegisterBoot{w.root.id(), Boot{0, Nonce{1}}}}))
	w.must(w.as(w.root, Command{RegisterBoot: &RegisterBoot{w.root.id(), Boot{math.MaxUint64, Nonce{1}}}}))
	w.must(w.as(j, Command{AddKey: &AddKey{j.id(), Key{math.MaxUint32, newJoiner("", "k").key.Public}}}))
	w.refused(CodeInvalid, w.as(j, Command{AddKey: &AddKey{j.id(), Key{1, newJoiner("", "k2").key.Public}}}))
}

// Settings change one by one.
func TestSettings(t *testing.T) {
	w := newWorld(t)
	w.must(w.by(Command{SetSettings: &SetSettings{CacheMaxAge: new(48 * time.Hour), Voters: new(3)}}))
	w.must(w.by(Command{SetSettings: &SetSettings{Voters: new(5)}}))
	if w.s.Mesh.CacheMaxAge != 48*time.Hour || w.s.Mesh.Voters != 5 {
		t.Errorf("%+v", w.s.Mesh)
	}
	w.refused(CodeInvalid, w.by(Command{SetSettings: &SetSettings{}}))
	w.refused(CodeInvalid, w.by(Command{SetSettings: &SetSettings{CacheMaxAge: new(time.Hour + 1)}}))
}
