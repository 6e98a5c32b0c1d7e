package control

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
)

// nobody connects without a certificate.
func (m *machine) nobody() session {
	m.t.Helper()
	dialer := &transport.Dialer{Trust: transport.Trust{Certificate: func() *tls.Certificate { return nil }, Pins: m.State().Pins}}
	conn, err := dialer.DialAddr(m.t.Context(), m.config.Listen, transport.Control)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { conn.Close() })
	return session{oneConnection(conn), "x"}
}

// asleep is a member whose plane is open and does nothing by itself.
func (m *machine) asleep() {
	m.t.Helper()
	if err := m.shut(); err != nil {
		m.t.Fatal(err)
	}
	p, err := Open(m.config)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { p.Close() })
	m.Plane = p
}

// expire gives a sleeping member a certificate of long ago.
func (m *machine) expire(ca *transport.Authority) {
	m.t.Helper()
	leaf, err := ca.Issue(m.config.Ring.Identity(), time.Now().Add(-transport.Lifetime-time.Hour))
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.present(certificate{Node: leaf, Authority: ca.Certificate()}); err != nil {
		m.t.Fatal(err)
	}
	m.client.CloseIdleConnections()
}

// TestB06EveryControlCallByEveryRole is made from the table of routes: each is
// called by everybody, and who may not is told why.
func TestB06EveryControlCallByEveryRole(t *testing.T) {
	t.Parallel()
	all := three(t)
	one := all[0]
	node, other := one.admitted("node", TokenRequest{}), one.admitted("other", TokenRequest{})
	operator := one.joined("operator")
	gone, stale := one.admitted("gone", TokenRequest{}), one.admitted("stale", TokenRequest{})
	gone.asleep()
	stale.asleep()
	stale.expire(one.voter.authority())
	r := one.propose(store.Command{RemoveNode: &store.RemoveNode{Node: gone.ID(), Revoke: true}})
	for _, m := range []*machine{node, other, operator} {
		sameState(t, []*machine{one, m}, r.Index)
	}

	const fine = ""
	expected := map[string]map[Role]string{ // what everybody is told
		"nobody":   {Joiner: fine, Hint: CodeNoCertificate, Member: CodeNoCertificate, Voter: CodeNoCertificate},
		"revoked":  {Joiner: CodeRemoved, Hint: CodeRemoved, Member: CodeRemoved, Voter: CodeRemoved},
		"stale":    {Joiner: fine, Hint: fine, Member: CodeExpired, Voter: CodeExpired},
		"node":     {Joiner: fine, Hint: fine, Member: fine, Voter: CodeNotVoter},
		"other":    {Joiner: fine, Hint: fine, Member: fine, Voter: CodeNotVoter},
		"operator": {Joiner: fine, Hint: fine, Member: fine, Voter: CodeNotVoter},
		"voter":    {Joiner: fine, Hint: fine, Member: fine, Voter: fine},
	}
	planes := map[string]*machine{"revoked": gone, "stale": stale, "node": node, "other": other, "operator": operator, "voter": all[1]}
	call := func(who, method, path string) error {
		if who == "nobody" {
			return one.nobody().send(t.Context(), method, path, struct{}{}, nil)
		}
		return planes[who].Do(t.Context(), one.ID(), method, path, struct{}{}, nil)
	}
	for _, r := range one.routes() {
		method, path, found := strings.Cut(r.pattern, " ")
		if !found {
			method, path = http.MethodGet, r.pattern
		}
		// The same right with a handler that does nothing, for who may.
		pattern := strings.TrimSuffix(method+" /as"+path, "/")
		one.Handle(pattern, r.role, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { Reply(w, struct{}{}) }))
		for who, roles := range expected {
			want, known := roles[r.role]
			if !known {
				t.Fatalf("%s: a role without a column", r.pattern)
			}
			_, mounted, _ := strings.Cut(pattern, " ")
			if err := call(who, method, mounted); want == fine && err != nil || want != fine && !hasCode(err, want) {
				t.Errorf("%s with a handler that does nothing, by %s: %v, want %q", r.pattern, who, err, want)
			}
			if want == fine {
				continue
			}
			if err := call(who, method, path); !hasCode(err, want) {
				t.Errorf("%s by %s: %v, want %q", r.pattern, who, err, want)
			}
		}
	}
}

// TestOperatorRoleIsNeeded: root of a member decides about that member alone,
// until an operator makes it one, and for as long.
func TestOperatorRoleIsNeeded(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.admitted("two", TokenRequest{})
	forbidden := func(err error) {
		t.Helper()
		if r, ok := errors.AsType[*store.Refusal](err); !ok || r.Code != store.CodeForbidden || !strings.Contains(r.Message, "--role operator") {
			t.Errorf("by a node without the role: %v", err)
		}
	}
	_, token, err := one.CreateToken(t.Context(), TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []store.Command{
		two.grant(1),
		{SetTopology: &store.SetTopology{Dense: true}},
		{SetNode: &store.SetNode{Node: two.ID(), Transit: new(false)}},
		{SetDrain: &store.SetDrain{Node: one.ID(), Drain: true}},
		{SetRoles: &store.SetRoles{Node: two.ID(), Roles: []store.NodeRole{store.NodeOperator}}},
	} {
		_, err := two.Operate(t.Context(), c)
		forbidden(err)
	}
	forbidden(two.Revoke(t.Context(), one.ID()))
	forbidden(two.RevokeToken(t.Context(), token.ID))
	if text, _, err := two.CreateToken(t.Context(), TokenRequest{}); err == nil || text != "" {
		t.Errorf("a token was made: %v", err)
	}
	// What is its own it may do.
	two.propose(store.Command{SetDrain: &store.SetDrain{Node: two.ID(), Drain: true}})
	two.propose(store.Command{SetDrain: &store.SetDrain{Node: two.ID()}})

	// The only operator neither gives the role up nor leaves.
	last := func(err error) {
		t.Helper()
		if r, ok := errors.AsType[*store.Refusal](err); !ok || r.Code != store.CodeLastOperator {
			t.Errorf("the last operator went: %v", err)
		}
	}
	_, err = one.Operate(t.Context(), store.Command{SetRoles: &store.SetRoles{Node: one.ID()}})
	last(err)
	last(one.Leave(t.Context()))

	set := func(roles ...store.NodeRole) {
		t.Helper()
		if _, err := one.Operate(t.Context(), store.Command{SetRoles: &store.SetRoles{Node: two.ID(), Roles: roles}}); err != nil {
			t.Fatal(err)
		}
	}
	set(store.NodeOperator)
	two.propose(two.grant(2))
	if err := two.RevokeToken(t.Context(), token.ID); err != nil {
		t.Error(err)
	}
	set()
	_, err = two.Operate(t.Context(), two.grant(3))
	forbidden(err)
}

// TestB03CredentialsOfOthers: what proves one to be somebody proves nothing of
// anybody else, and nothing twice. The proofs of a join are in
// TestB03ProofsOfAnotherJoin. A follow stream has no credential of its own.
func TestB03CredentialsOfOthers(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.admitted("two", TokenRequest{})
	foreign := founded(t)

	// A certificate serves who holds its key.
	others := one.certificate.Load()
	if _, err := transport.Certificate(others.Certificate[0], others.Certificate[1], two.config.Ring.Signer()); err == nil {
		t.Error("another node's certificate was taken for this key")
	}

	request := func(c store.Command) store.Command {
		c.Author, c.After, c.Request = one.config.Ring.Identity(), two.State().Index, store.Nonce{1, 2, 3}
		return c
	}
	sign := func(c store.Command, id mesh.MeshID, sign func([]byte) []byte) store.Command {
		t.Helper()
		signed, err := store.SignCommand(request(c), id, sign)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	remove := store.Command{RemoveNode: &store.RemoveNode{Node: one.ID(), Revoke: true}}
	dense := store.Command{SetTopology: &store.SetTopology{Dense: true}}
	ours := one.State().Mesh.ID
	changed := sign(dense, ours, one.config.Ring.Sign)
	changed.SetTopology = &store.SetTopology{Mode: store.TopologyFull}
	for name, c := range map[string]store.Command{
		"unsigned, in another's name":       {By: store.Authority{Operator: true, Node: one.ID()}, RemoveNode: remove.RemoveNode},
		"author another, signed by oneself": sign(remove, ours, two.config.Ring.Sign),
		"signed for another mesh":           sign(dense, foreign.State().Mesh.ID, one.config.Ring.Sign),
		"changed after it was signed":       changed,
		"nothing but the author":            request(dense),
	} {
		var result store.Result
		err := two.Do(t.Context(), one.ID(), http.MethodPost, "/v1/propose", c, &result)
		if err != nil || result.Refused == nil || result.Refused.Code != store.CodeUnsigned {
			t.Errorf("%s: %v %+v", name, err, result)
		}
	}
	// An operator's own command, overheard and sent again: it is done once.
	real := sign(store.Command{SetTopology: &store.SetTopology{Dense: true}}, ours, one.config.Ring.Sign)
	var first, again store.Result
	if err := two.Do(t.Context(), one.ID(), http.MethodPost, "/v1/propose", real, &first); err != nil || first.Refused != nil {
		t.Fatalf("%v %+v", err, first)
	}
	one.propose(store.Command{SetTopology: &store.SetTopology{}})
	if err := two.Do(t.Context(), one.ID(), http.MethodPost, "/v1/propose", real, &again); err != nil || again.Index != first.Index {
		t.Errorf("sent again: %v %+v, the first was %+v", err, again, first)
	}
	if one.State().Mesh.Topology.Dense {
		t.Error("an old command was done again")
	}
	// A join goes where it is looked at.
	if err := two.Do(t.Context(), one.ID(), http.MethodPost, "/v1/propose", store.Command{Join: &store.Join{}}, nil); !hasCode(err, store.CodeForbidden) {
		t.Errorf("a join as a proposal: %v", err)
	}
}

// TestProposalsAreBounded: what nobody has signed, or is no command, costs no
// entry of the log; and no member has more written than it may, though it gets
// what it asks for in the end.
func TestProposalsAreBounded(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.joined("two")
	registered(t, []*machine{one})
	sameState(t, []*machine{one, two}, one.State().Index)
	propose := func(c store.Command) (r store.Result, err error) {
		return r, two.Do(t.Context(), one.ID(), http.MethodPost, "/v1/propose", c, &r)
	}
	unsigned := store.Command{SetTopology: &store.SetTopology{Dense: true}}
	both := unsigned
	both.SetDrain = &store.SetDrain{Node: two.ID(), Drain: true}
	for code, c := range map[string]store.Command{store.CodeUnsigned: unsigned, store.CodeInvalid: both} {
		trail := one.State().Audit.Recent
		r, err := propose(c)
		if err != nil || r.Refused == nil || r.Refused.Code != code {
			t.Errorf("want %s: %v %+v", code, err, r)
		}
		for _, record := range one.State().Audit.Recent {
			if record.Author.IsZero() && record.Index > trail[len(trail)-1].Index {
				t.Errorf("%s is in the log: %+v", code, record)
			}
		}
	}
	began, n := time.Now(), 0
	for ; ; n++ {
		if _, err := propose(unsigned); hasCode(err, CodeBusy) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if most := proposalsOfOne.burst + proposalsOfOne.each*time.Since(began).Seconds(); float64(n) > most {
			t.Fatalf("%d commands of one member were looked at, at most %.0f may be", n, most)
		}
	}
	two.propose(two.grant(1))
}

// TestStaleCommandIsSignedAgain: a proposer that is far behind the log gets its
// command in, once.
func TestStaleCommandIsSignedAgain(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.joined("two")
	old, err := two.sign(two.grant(1))
	if err != nil {
		t.Fatal(err)
	}
	old.After += 1 << 20 // as unusable as one from 4096 entries ago
	if old, err = store.SignCommand(old, two.State().Mesh.ID, two.config.Ring.Sign); err != nil {
		t.Fatal(err)
	}
	r, err := two.Plane.propose(t.Context(), old)
	if err != nil || r.Refused == nil || r.Refused.Code != store.CodeStale {
		t.Fatalf("%v %+v", err, r)
	}
	again := two.grant(1)
	again.Request = old.Request
	two.propose(again)
	if got := two.State().Nodes[two.ID()].Prefixes; len(got) != 1 || got[0] != netip.MustParsePrefix("192.168.1.0/24") {
		t.Errorf("prefixes %v", got)
	}
}

func TestB08TwoInstallsShareNoSecret(t *testing.T) {
	t.Parallel()
	secrets := func() map[string]string {
		m := founded(t)
		private, err := m.config.Ring.Private(1)
		if err != nil {
			t.Fatal(err)
		}
		identity, token := m.config.Ring.Identity(), mustParse(t, m.token(TokenRequest{})).Public()
		state := m.State()
		return map[string]string{
			"identity": string(identity[:]), "WireGuard key": string(private[:]),
			"CA key": string(m.voter.authority().Key().Seed()), "CA": string(state.Mesh.Authorities[0].Root),
			"mesh id": string(state.Mesh.ID[:]), "gossip key": string(m.Shared().Key), "STUN key": string(m.Shared().STUN[0]), "token": string(token[:]),
		}
	}
	a, b := secrets(), secrets()
	seen := map[string]string{}
	for _, of := range []map[string]string{a, b} {
		for name, secret := range of {
			if strings.Trim(secret, secret[:1]) == "" {
				t.Errorf("the %s is a default: % x", name, secret)
			}
			if other, twice := seen[secret]; twice {
				t.Errorf("the %s is a %s, too", name, other)
			}
			seen[secret] = name
		}
	}
}

func TestOutdated(t *testing.T) {
	t.Parallel()
	signed := store.Command{Author: mesh.IdentityKey{1}}
	for _, tc := range []struct {
		command store.Command
		code    string
		want    bool
	}{
		{signed, store.CodeStale, true},
		{signed, store.CodeUnsigned, false}, // it will not get better
		{signed, store.CodeForbidden, false},
		{store.Command{}, store.CodeUnsigned, true}, // the mesh has got version 3 meanwhile
		{store.Command{}, store.CodeForbidden, false},
	} {
		if got := outdated(tc.command, &store.Refusal{Code: tc.code}); got != tc.want {
			t.Errorf("%s, author %s: %t", tc.code, tc.command.Author, got)
		}
	}
}

// TestB30SameNameAnotherMachine: a machine that comes with the name of one that
// is gone is somebody else, to whoever calls it and for what it asks.
func TestB30SameNameAnotherMachine(t *testing.T) {
	t.Parallel()
	one := founded(t)
	old := one.admitted("oslo", TokenRequest{Roles: []store.NodeRole{store.NodeNoVote, store.NodeOperator}})
	was := old.ID()
	if _, err := Join(t.Context(), newMachine(t).config, one.token(TokenRequest{}), JoinRequest{Name: "oslo"}, nil); !hasCode(err, store.CodeNameTaken) {
		t.Errorf("a second oslo beside the first: %v", err)
	}
	one.propose(store.Command{RemoveNode: &store.RemoveNode{Node: was}})
	if err := old.ended(); !errors.Is(err, ErrRemoved) {
		t.Fatal(err)
	}
	next := one.admitted("oslo", TokenRequest{Roles: []store.NodeRole{store.NodeNoVote}})
	eventually(t, "it follows", func() bool { _, gone := next.State().Removed[was]; return gone })
	if next.ID() == was {
		t.Fatal("two machines are one")
	}
	for id, want := range map[mesh.NodeID]bool{was: false, next.ID(): true} {
		c, err := one.dialer.DialNode(t.Context(), next.Addr(), id, transport.Control)
		if (err == nil) != want {
			t.Errorf("called as %s, the next oslo (%s) answers: %v", id, next.ID(), err)
		}
		if err == nil {
			_ = c.Close()
		}
	}
	_, err := next.Operate(t.Context(), store.Command{Unreserve: &store.Unreserve{Name: "x"}})
	if r, ok := errors.AsType[*store.Refusal](err); !ok || r.Code != store.CodeForbidden {
		t.Errorf("with the role of the last oslo: %v", err)
	}
}

// TestB21DamagedAuthorityFile: a voter comes up without its CA key. The leader
// gives it again; the only voter, whose key nobody has, makes a new CA.
func TestB21DamagedAuthorityFile(t *testing.T) {
	t.Parallel()
	damage := func(m *machine) {
		t.Helper()
		if err := m.shut(); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(m.path, folder, authorityFile)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b[:len(b)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		m.run(Open(m.config))
	}
	t.Run("one of three", func(t *testing.T) {
		t.Parallel()
		all := three(t)
		registered(t, all)
		leader := leaderOf(t, all)
		pin := leader.voter.authority().Pin()
		other := all[(slices.Index(all, leader)+1)%3]
		damage(other)
		eventually(t, "it has the key again", func() bool {
			ca := other.voter.authority()
			return ca != nil && ca.Pin() == pin
		})
	})
	t.Run("the only one", func(t *testing.T) {
		t.Parallel()
		one := founded(t)
		pin := one.voter.authority().Pin()
		damage(one)
		eventually(t, "it has another CA", func() bool {
			ca := one.voter.authority()
			return ca != nil && ca.Pin() != pin
		})
		one.joined("two")
	})
}

// TestB19NobodyKeepsNoConnection: a caller without a certificate keeps its
// connection for a join only.
func TestB19NobodyKeepsNoConnection(t *testing.T) {
	t.Parallel()
	one := founded(t)
	for path, kept := range map[string]bool{"/": false, "/v1/nothing": false, "/v1/head": false, "/v1/join/begin": true} {
		method := http.MethodGet
		if kept {
			method = http.MethodPost
		}
		r, err := http.NewRequestWithContext(t.Context(), method, "https://x"+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := one.nobody().client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.Close == kept {
			t.Errorf("%s: closed %v, want %v", path, answer.Close, !kept)
		}
	}
}
