package store

import (
	"crypto"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"guywire/discovery/invite"
	"guywire/mesh"
)

func prefixes(in ...string) (out []netip.Prefix) {
	for _, s := range in {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestInit(t *testing.T) {
	w := newWorld(t)
	n := w.s.Nodes[w.root.id()]
	if n.Name != "hub" || !n.Voter || n.Addr4.String() != "10.86.0.1" || n.Addr6.String() != "fd01:203:405::1" || len(n.Control) != 1 || !n.Joined.Equal(testNow) {
		t.Errorf("first node: %+v", n)
	}
	w.refused(CodeInitialised, initCommand(newJoiner("other", "other")))
}

func TestInitRefusals(t *testing.T) {
	low := newJoiner("hub", "hub")
	low.identity = mesh.IdentityKey{1}
	for name, c := range map[string]struct {
		code   string
		change func(*Init)
	}{
		"no id":          {CodeInvalid, func(i *Init) { i.Settings.ID = mesh.MeshID{} }},
		"mesh name":      {CodeNameInvalid, func(i *Init) { i.Settings.Name = "Acme Inc" }},
		"node name":      {CodeNameInvalid, func(i *Init) { i.Name = "hub.acme" }},
		"name is an id":  {CodeNameInvalid, func(i *Init) { i.Name = "0123456789abcdef" }},
		"no pool":        {CodePoolRefused, func(i *Init) { i.Settings.Pool4 = netip.Prefix{} }},
		"swapped pools":  {CodePoolRefused, func(i *Init) { i.Settings.Pool4, i.Settings.Pool6 = i.Settings.Pool6, i.Settings.Pool4 }},
		"own prefix":     {CodePrefixRefused, func(i *Init) { i.Prefixes = prefixes("10.86.5.0/24") }},
		"low-order key":  {CodeInvalid, func(i *Init) { i.Identity = low.identity }},
		"no key":         {CodeInvalid, func(i *Init) { i.Key.Public = mesh.WireGuardKey{} }},
		"no epoch":       {CodeInvalid, func(i *Init) { i.Key.Epoch = 0 }},
		"many CAs":       {CodeInvalid, func(i *Init) { i.Settings.CA = make([][32]byte, MaxRoots+1) }},
		"large CA":       {CodeInvalid, func(i *Init) { i.Settings.Roots = [][]byte{make([]byte, MaxRootBytes+1)} }},
		"control port 0": {CodeInvalid, func(i *Init) { i.Control = []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:0")} }},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{TB: t, s: New()}
			cmd := initCommand(newJoiner("hub", "hub"))
			c.change(cmd.Init)
			w.refused(c.code, cmd)
		})
	}
}

func TestJoin(t *testing.T) {
	w := newWorld(t)
	inv := w.addToken(1, func(t *Token) { t.Tags = []string{"site", "branch"} })
	j := newJoiner("oslo", "oslo", "192.168.7.0/24", "192.168.5.0/24", "2001:db8:5::/48")
	n := w.must(j.join(inv)).Node
	want := &Node{
		ID: j.id(), Name: "oslo", Identity: j.identity, Keys: []Key{j.key},
		Addr4: netip.MustParseAddr("10.86.0.2"), Addr6: netip.MustParseAddr("fd01:203:405::2"),
		Prefixes: prefixes("192.168.5.0/24", "192.168.7.0/24", "2001:db8:5::/48"),
		Tags:     []string{"branch", "site"}, Joined: testNow, Request: j.request,
	}
	if d := cmp.Diff(want, n, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	if w.s.Tokens[inv.ID].Uses != 0 {
		t.Error("the token was not consumed")
	}
	w.refused(CodeTokenUsed, newJoiner("bergen", "bergen").join(inv))
}

// A client that lost the answer asks again over another connection, and gets
// the same answer even when the token is used up, expired or revoked by then.
func TestJoinIsIdempotent(t *testing.T) {
	w := newWorld(t)
	inv := w.addToken(1, func(t *Token) { t.Uses = 2 })
	j := newJoiner("oslo", "oslo")
	first := w.must(j.join(inv)).Node
	again := func() Command {
		c := j.join(inv)
		tr := j.transcript(inv)
		tr.Exporter[0]++
		c.Join.Transcript, _ = tr.Encode()
		c.Join.Proof = invite.ProveIdentity(func(m []byte) []byte { return signWith(j, m) }, c.Join.Transcript)
		c.Join.Signature = inv.Sign(c.Join.Transcript)
		return c
	}
	late := again()
	late.Now = testNow.Add(24 * time.Hour)
	for _, c := range []Command{again(), late} {
		r := w.must(c)
		if r.Node.ID != first.ID || r.Node.Addr4 != first.Addr4 || w.s.Tokens[inv.ID].Uses != 1 {
			t.Errorf("second answer %+v, uses %d", r.Node, w.s.Tokens[inv.ID].Uses)
		}
	}
	w.must(w.by(Command{RevokeToken: &RevokeToken{inv.ID}}))
	w.must(again())
	j.request = "another"
	w.refused(CodeIdentityTaken, j.join(inv))
}

// B1 to B4, B11, B18: every way in that is not the way in. Each case changes
// one thing of a join that is right otherwise.
func TestJoinRefusals(t *testing.T) {
	other := newJoiner("other", "other")
	for name, c := range map[string]struct {
		code   string
		token  func(*Token)
		joiner func(*joiner)
		change func(w *world, c *Command)
	}{
		"unknown token":     {code: CodeTokenUnknown, change: func(w *world, c *Command) { *c = newJoiner("oslo", "oslo").join(newInvite(2)) }},
		"revoked token":     {code: CodeTokenUnknown, change: func(w *world, c *Command) { w.must(w.by(Command{RevokeToken: &RevokeToken{c.Join.Token}})) }},
		"at the expiry":     {code: CodeTokenExpired, change: func(_ *world, c *Command) { c.Now = testNow.Add(time.Hour) }},
		"no signature":      {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Signature = nil }},
		"cut signature":     {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Signature = c.Join.Signature[:63] }},
		"other's signature": {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Signature = newInvite(2).Sign(c.Join.Transcript) }},
		"no proof":          {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Proof = nil }},
		"other's proof": {code: CodeTokenProof, change: func(_ *world, c *Command) {
			c.Join.Proof = invite.ProveIdentity(func(m []byte) []byte { return signWith(other, m) }, c.Join.Transcript)
		}},
		"token's as proof":     {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Proof = c.Join.Signature }},
		"no transcript":        {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Transcript = nil }},
		"cut transcript":       {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Transcript = c.Join.Transcript[:50] }},
		"swapped name":         {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Name = "bergen" }},
		"swapped key":          {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Key = other.key }},
		"swapped epoch":        {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Key.Epoch++ }},
		"swapped identity":     {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Identity = other.identity }},
		"swapped prefixes":     {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Prefixes = prefixes("192.168.9.0/24") }},
		"swapped request":      {code: CodeTokenProof, change: func(_ *world, c *Command) { c.Join.Request = "stolen" }},
		"swapped token":        {code: CodeTokenProof, change: func(w *world, c *Command) { c.Join.Token = w.addToken(2).ID }},
		"another mesh":         {code: CodeTokenProof, change: func(w *world, c *Command) { w.s = withMesh(w.s, mesh.MeshID{9}) }},
		"name taken":           {code: CodeNameTaken, joiner: func(j *joiner) { j.name = "hub" }},
		"name alphabet":        {code: CodeNameInvalid, joiner: func(j *joiner) { j.name = "oslo;reboot" }},
		"no name":              {code: CodeNameInvalid, joiner: func(j *joiner) { j.name = "" }},
		"name is an id":        {code: CodeNameInvalid, joiner: func(j *joiner) { j.name = "0123456789abcdef" }},
		"name is an address":   {code: CodeNameInvalid, joiner: func(j *joiner) { j.name = "10.86.0.1" }},
		"token's name":         {code: CodeNameInvalid, token: func(t *Token) { t.Name = "bergen" }},
		"no request":           {code: CodeInvalid, joiner: func(j *joiner) { j.request = "" }},
		"unprintable request":  {code: CodeInvalid, joiner: func(j *joiner) { j.request = "a\nb" }},
		"WireGuard key of hub": {code: CodeIdentityTaken, joiner: func(j *joiner) { j.key = newJoiner("hub", "hub").key }},
		"zero WireGuard key":   {code: CodeInvalid, joiner: func(j *joiner) { j.key.Public = mesh.WireGuardKey{} }},
		"high-bit WireGuard key": {code: CodeInvalid, joiner: func(j *joiner) {
			j.key = newJoiner("hub", "hub").key
			j.key.Public[31] |= 0x80
		}},
		"epoch 0":              {code: CodeInvalid, joiner: func(j *joiner) { j.key.Epoch = 0 }},
		"hub's prefix":         {code: CodePrefixTaken, joiner: func(j *joiner) { j.prefixes = prefixes("192.168.1.0/24") }},
		"part of hub's":        {code: CodePrefixTaken, joiner: func(j *joiner) { j.prefixes = prefixes("192.168.1.128/25") }},
		"around hub's":         {code: CodePrefixTaken, joiner: func(j *joiner) { j.prefixes = prefixes("192.168.0.0/16") }},
		"IPv4 pool":            {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("10.86.9.0/24") }},
		"around the IPv4 pool": {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("10.0.0.0/8") }},
		"IPv6 pool":            {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("fd01:203:405:1::/64") }},
		"IPv4 default":         {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("0.0.0.0/0") }},
		"IPv6 default":         {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("::/0") }},
		"half the internet":    {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("128.0.0.0/1") }},
		"loopback":             {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("127.1.0.0/16") }},
		"IPv6 loopback":        {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("::1/128") }},
		"link-local":           {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("169.254.7.0/24") }},
		"IPv6 link-local":      {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("fe80::/64") }},
		"multicast":            {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("239.1.0.0/16") }},
		"IPv6 multicast":       {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("ff05::/16") }},
		"mapped":               {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("::ffff:192.168.5.0/120") }},
		"twice":                {code: CodePrefixRefused, joiner: func(j *joiner) { j.prefixes = prefixes("192.168.5.0/24", "192.168.5.0/24") }},
		"outside the token's":  {code: CodePrefixRefused, token: func(t *Token) { t.Prefixes = prefixes("192.168.4.0/22") }, joiner: func(j *joiner) { j.prefixes = prefixes("192.168.8.0/24") }},
		"above the token's":    {code: CodePrefixRefused, token: func(t *Token) { t.Prefixes = prefixes("192.168.8.0/22") }, joiner: func(j *joiner) { j.prefixes = prefixes("192.168.8.0/21") }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var tokens []func(*Token)
			if c.token != nil {
				tokens = append(tokens, c.token)
			}
			inv := w.addToken(1, tokens...)
			j := newJoiner("oslo", "oslo")
			w.must(newJoiner("witness", "witness").join(w.addToken(3))) // the right way works
			if c.joiner != nil {
				c.joiner(j)
			}
			cmd := j.join(inv)
			if c.change != nil {
				c.change(w, &cmd)
			}
			w.refused(c.code, cmd)
			if tok, ok := w.s.Tokens[inv.ID]; ok && tok.Uses != 1 {
				t.Error("a refused join consumed the token")
			}
		})
	}
}

func signWith(j *joiner, m []byte) []byte {
	sig, err := j.private.Sign(nil, m, crypto.Hash(0))
	if err != nil {
		panic(err)
	}
	return sig
}

func withMesh(s *State, id mesh.MeshID) *State {
	c := *s
	c.Mesh.ID = id
	return &c
}

func TestUnmaskedPrefixRefused(t *testing.T) {
	w := newWorld(t)
	r := w.apply(w.by(Command{Grant: &Grant{Node: w.root.id(), Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.5.1/24")}}}))
	if r.Refused == nil || r.Refused.Code != CodePrefixRefused || r.Refused.Message != "the prefix 192.168.5.1/24 has bits after its length; write 192.168.5.0/24" {
		t.Errorf("%+v", r.Refused)
	}
	w.refused(CodePrefixRefused, w.by(Command{Grant: &Grant{Node: w.root.id(), Prefixes: []netip.Prefix{{}}}}))
	w.refused(CodePrefixRefused, w.by(Command{Grant: &Grant{Node: w.root.id(), Prefixes: make([]netip.Prefix, MaxPrefixes+1)}}))
}

func TestTokenLimitsPrefixes(t *testing.T) {
	w := newWorld(t)
	inv := w.addToken(1, func(t *Token) { t.Prefixes, t.Name = prefixes("192.168.4.0/22", "2001:db8::/32"), "oslo" })
	n := w.must(newJoiner("oslo", "oslo", "192.168.5.0/24", "2001:db8:5::/48").join(inv)).Node
	if !slices.Equal(n.Prefixes, prefixes("192.168.5.0/24", "2001:db8:5::/48")) {
		t.Errorf("%v", n.Prefixes)
	}
}

func TestTokenRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		code   string
		change func(*Token)
	}{
		"no id":           {CodeInvalid, func(t *Token) { t.ID = "" }},
		"strange id":      {CodeInvalid, func(t *Token) { t.ID = "a b" }},
		"no key":          {CodeInvalid, func(t *Token) { t.Key = mesh.IdentityKey{} }},
		"low-order key":   {CodeInvalid, func(t *Token) { t.Key = mesh.IdentityKey{1} }},
		"no uses":         {CodeInvalid, func(t *Token) { t.Uses = 0 }},
		"negative uses":   {CodeInvalid, func(t *Token) { t.Uses = -1 }},
		"many uses":       {CodeInvalid, func(t *Token) { t.Uses = MaxTokenUses + 1 }},
		"no expiry":       {CodeInvalid, func(t *Token) { t.Expires = time.Time{} }},
		"expires now":     {CodeInvalid, func(t *Token) { t.Expires = testNow }},
		"expires too far": {CodeInvalid, func(t *Token) { t.Expires = testNow.Add(MaxTokenLifetime + 1) }},
		"bad name":        {CodeNameInvalid, func(t *Token) { t.Name = "Oslo" }},
		"bad tag":         {CodeInvalid, func(t *Token) { t.Tags = []string{"a tag"} }},
		"many tags":       {CodeInvalid, func(t *Token) { t.Tags = make([]string, MaxTags+1) }},
		"bad prefix":      {CodePrefixRefused, func(t *Token) { t.Prefixes = prefixes("0.0.0.0/0") }},
		"pool prefix":     {CodePrefixRefused, func(t *Token) { t.Prefixes = prefixes("10.86.1.0/24") }},
		"many prefixes":   {CodePrefixRefused, func(t *Token) { t.Prefixes = make([]netip.Prefix, MaxPrefixes+1) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tok := tokenOf(newInvite(1))
			c.change(&tok)
			w.refused(c.code, w.by(Command{AddToken: &AddToken{tok}}))
		})
	}
	w := newWorld(t)
	w.addToken(1)
	w.refused(CodeInvalid, w.by(Command{AddToken: &AddToken{tokenOf(newInvite(1))}}))
	w.refused(CodeNotFound, w.by(Command{RevokeToken: &RevokeToken{"nothing"}}))
}

// Expired tokens are told apart from unknown ones for a week, then forgotten.
func TestOldTokensAreForgotten(t *testing.T) {
	w := newWorld(t)
	old := w.addToken(1)
	add := func(seed int, after time.Duration) {
		c := w.by(Command{AddToken: &AddToken{tokenOf(newInvite(seed))}})
		c.Now = testNow.Add(after)
		c.AddToken.Token.Expires = c.Now.Add(time.Hour)
		w.must(c)
	}
	add(2, 7*24*time.Hour)
	if _, ok := w.s.Tokens[old.ID]; !ok {
		t.Error("forgotten too early")
	}
	add(3, 7*24*time.Hour+time.Hour+1)
	if _, ok := w.s.Tokens[old.ID]; ok || len(w.s.Tokens) != 2 {
		t.Errorf("still there: %v", w.s.Tokens)
	}
}

// Every command of versions 1 and 2 by every kind of authority; TestRoles is
// about version 3.
func TestAuthorityUnsigned(t *testing.T) {
	w := oldWorld(t)
	a, b := newJoiner("oslo", "oslo"), newJoiner("bergen", "bergen")
	gone := newJoiner("gone", "gone")
	for i, j := range []*joiner{a, b, gone} {
		w.must(j.join(w.addToken(i + 1)))
	}
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: gone.id(), Revoke: true}}))
	w.addToken(7)

	commands := map[string]Command{
		"add token":    {AddToken: &AddToken{tokenOf(newInvite(8))}},
		"revoke token": {RevokeToken: &RevokeToken{newInvite(7).ID}},
		"grant":        {Grant: &Grant{Node: a.id(), Prefixes: prefixes("192.168.5.0/24")}},
		"control":      {SetControl: &SetControl{a.id(), []netip.AddrPort{netip.MustParseAddrPort("203.0.113.9:8686")}}},
		"voter":        {SetVoter: &SetVoter{a.id(), true}},
		"remove":       {RemoveNode: &RemoveNode{Node: a.id()}},
		"revoke":       {RemoveNode: &RemoveNode{Node: a.id(), Revoke: true}},
		"topology":     {SetTopology: &SetTopology{Mode: TopologyFull}},
		"pairs":        {SetPairs: &SetPairs{Pin: []Pair{{a.id(), b.id()}}}},
		"set node":     {SetNode: &SetNode{Node: a.id(), Transit: new(false)}},
		"drain":        {SetDrain: &SetDrain{Node: a.id(), Drain: true}},
	}
	authorities := map[string]Authority{
		"nobody":           {},
		"operator nowhere": {Operator: true},
		"stranger":         {Node: newJoiner("x", "x").id()},
		"node":             {Node: a.id()},
		"other node":       {Node: b.id()},
		"revoked":          {Node: gone.id()},
		"revoked operator": {Node: gone.id(), Operator: true},
		"operator":         {Node: b.id(), Operator: true},
	}
	allowed := map[string][]string{
		"add token": {"operator"}, "revoke token": {"operator"}, "grant": {"operator"}, "revoke": {"operator"},
		"control": {"node", "operator", "other node"}, "voter": {"node", "operator", "other node"},
		"remove":   {"node", "operator"},
		"topology": {"operator"}, "pairs": {"operator"}, "set node": {"operator"}, "drain": {"operator"},
	}
	for what, c := range commands {
		for who, by := range authorities {
			c.Version, c.Now, c.By = Version, testNow, by
			_, r := Apply(w.s, w.index+1, c)
			want := slices.Contains(allowed[what], who)
			if got := r.Refused == nil; got != want || !want && r.Refused.Code != CodeForbidden {
				t.Errorf("%s by %s: %v, want allowed = %v", what, who, r.Refused, want)
			}
		}
	}
}

func TestRemoval(t *testing.T) {
	w := newWorld(t)
	j := newJoiner("oslo", "oslo", "192.168.5.0/24")
	first := w.must(j.join(w.addToken(1))).Node
	leave := w.signed(w.as(j, Command{RemoveNode: &RemoveNode{Node: j.id()}}))
	w.must(leave)
	if again := w.must(leave).Node; again == nil || again.Addr4 != first.Addr4 { // the same answer
		t.Errorf("asked again: %+v", again)
	}
	w.refused(CodeForbidden, w.as(j, Command{RemoveNode: &RemoveNode{Node: j.id()}}))
	w.refused(CodeIdentityTaken, j.join(w.addToken(2)))
	w.refused(CodeNotFound, w.by(Command{RemoveNode: &RemoveNode{Node: newJoiner("x", "x").id()}}))
	w.refused(CodeNotFound, w.by(Command{Grant: &Grant{Node: j.id()}}))
	w.refused(CodeNotFound, w.by(Command{SetVoter: &SetVoter{Node: j.id()}}))
	w.refused(CodeNotFound, w.by(Command{SetControl: &SetControl{Node: j.id()}}))

	// Name and prefixes are free again, addresses and keys are not.
	thief := newJoiner("thief", "thief")
	thief.key = j.key
	w.refused(CodeIdentityTaken, thief.join(w.addToken(3)))
	again := w.must(newJoiner("oslo", "oslo#2", "192.168.5.0/24").join(w.addToken(4))).Node
	if again.Addr4 == first.Addr4 || again.Addr6 == first.Addr6 {
		t.Errorf("the address %s was given again", again.Addr4)
	}

	// What left can still be revoked; revoked stays revoked.
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: j.id(), Revoke: true}}))
	w.must(leave)
	if !w.s.Removed[j.id()].Revoked {
		t.Error("not revoked")
	}
	w.refused(CodeRevoked, j.join(w.addToken(5)))
}

func TestLastVoterStays(t *testing.T) {
	w := newWorld(t)
	j := newJoiner("oslo", "oslo")
	w.must(j.join(w.addToken(1)))
	leave := w.by(Command{RemoveNode: &RemoveNode{Node: w.root.id()}})
	w.refused(CodeLastVoter, leave)
	w.must(w.by(Command{SetVoter: &SetVoter{j.id(), true}}))
	w.refused(CodeLastOperator, leave)
	w.must(w.by(Command{SetRoles: &SetRoles{j.id(), []NodeRole{NodeOperator}}}))
	w.must(leave)
	w.must(w.as(j, Command{RemoveNode: &RemoveNode{Node: j.id()}})) // the very last one may go
}

func TestMalformedCommands(t *testing.T) {
	w := newWorld(t)
	ok := Command{RevokeToken: &RevokeToken{"x"}}
	two := w.by(ok)
	two.SetVoter = &SetVoter{}
	newer := w.by(ok)
	newer.Version++
	early, late := w.by(ok), w.by(ok)
	early.Now, late.Now = time.Time{}, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []Command{{}, w.by(Command{}), two, newer, early, late} {
		w.refused(CodeInvalid, c)
	}
	s, r := Apply(w.s, w.s.Index, w.by(Command{AddToken: &AddToken{tokenOf(newInvite(1))}}))
	if s != w.s || r.Refused == nil || r.Refused.Code != CodeInvalid {
		t.Errorf("a replayed index: %+v", r)
	}
	if _, r := Apply(nil, 1, w.by(ok)); r.Refused == nil || r.Refused.Code != CodeNotFound {
		t.Errorf("without a mesh: %+v", r)
	}
}

func TestControlRefusals(t *testing.T) {
	w := newWorld(t)
	for _, addrs := range [][]netip.AddrPort{
		{{}},
		make([]netip.AddrPort, MaxControl+1),
		{netip.MustParseAddrPort("0.0.0.0:1")},
		{netip.MustParseAddrPort("224.0.0.1:1")},
		{netip.MustParseAddrPort("[fe80::1%eth0]:1")},
		{netip.MustParseAddrPort("[::ffff:203.0.113.1]:1")},
		{netip.MustParseAddrPort("203.0.113.1:1"), netip.MustParseAddrPort("203.0.113.1:1")},
	} {
		w.refused(CodeInvalid, w.by(Command{SetControl: &SetControl{w.root.id(), addrs}}))
	}
}

func TestLookups(t *testing.T) {
	w := newWorld(t)
	j := newJoiner("oslo", "oslo", "192.168.4.0/22", "192.168.5.0/24")
	w.must(j.join(w.addToken(1)))
	for addr, want := range map[string]string{
		"10.86.0.1": "hub", "fd01:203:405::2": "oslo", "192.168.1.9": "hub", "192.168.5.1": "oslo", "192.168.7.1": "oslo", "192.168.8.1": "", "10.86.0.3": "",
	} {
		n, ok := w.s.Owner(netip.MustParseAddr(addr))
		if n.Name != want || ok != (want != "") {
			t.Errorf("%s belongs to %q, want %q", addr, n.Name, want)
		}
	}
	if _, ok := w.s.Owner(netip.Addr{}); ok {
		t.Error("the zero address has an owner")
	}
}
