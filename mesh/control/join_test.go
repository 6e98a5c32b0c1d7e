package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
)

func handlerOf(got chan<- mesh.NodeID) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- Caller(r.Context())
		Reply(w, struct{ Name string }{"two"})
	})
}

// refused joins with a token that must not work, checks what is said, and that
// nothing is left behind.
func refused(t *testing.T, text string, request JoinRequest, want ...string) {
	t.Helper()
	m := newMachine(t)
	p, err := Join(t.Context(), m.config, text, request, nil)
	if err == nil {
		p.Close()
		t.Error("the join succeeded")
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\nlacks %q", err, w)
		}
	}
	if token, parseErr := invite.Parse(text); parseErr == nil && strings.Contains(err.Error(), token.Text()[:20]) {
		t.Error("the error shows the token")
	}
	if _, err := Open(m.config); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("open after a failed join: %v, want ErrNotEnrolled", err)
	}
}

func TestJoinRefused(t *testing.T) {
	t.Parallel()
	one := founded(t)
	used := one.token(TokenRequest{})
	two := newMachine(t)
	two.run(Join(t.Context(), two.config, used, JoinRequest{Name: "two"}, nil))
	revoked := one.token(TokenRequest{})
	parsed, err := invite.Parse(revoked)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.RevokeToken(t.Context(), parsed.ID); err != nil {
		t.Fatal(err)
	}
	short := one.token(TokenRequest{Lifetime: 2 * time.Second})
	good := one.token(TokenRequest{Uses: 100, Name: "gamma", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}})

	refused(t, used, JoinRequest{Name: "three"}, "refuses", "has been used")
	refused(t, revoked, JoinRequest{Name: "three"}, "no such token", "meshctl token create")
	refused(t, good, JoinRequest{Name: "delta"}, "--name gamma")
	refused(t, good, JoinRequest{Name: "gamma", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, "does not allow 10.1.0.0/16")
	refused(t, good[:len(good)-9], JoinRequest{Name: "gamma"}, "cut off")
	typo := "x"
	if good[30] == 'x' {
		typo = "y"
	}
	refused(t, good[:30]+typo+good[31:], JoinRequest{Name: "gamma"}, "damaged")
	refused(t, "hello", JoinRequest{Name: "gamma"}, "not a join token")
	refused(t, good, JoinRequest{}, "--name")
	refused(t, good, JoinRequest{Name: "Not A Name"}, "name")
	unfit := errors.New("pools overlap eth0")
	refused(t, good, JoinRequest{Name: "gamma", Check: func(pool4, _ netip.Prefix) error {
		if pool4 != initRequest.Pool4 {
			t.Errorf("asked about the pool %s", pool4)
		}
		return unfit
	}}, "pools overlap eth0")
	eventually(t, "the short token has expired", func() bool { return time.Now().After(mustParse(t, short).Expires) })
	refused(t, short, JoinRequest{Name: "three"}, "expired")
	if got := one.State().Tokens[mustParse(t, good).ID].Uses; got != 100 {
		t.Errorf("refused joins used the token: %d left of 100", got)
	}
	if got := len(one.State().Nodes); got != 2 {
		t.Errorf("%d nodes, want 2", got)
	}

	third := newMachine(t)
	if _, err := Join(t.Context(), two.config, good, JoinRequest{Name: "gamma"}, nil); !errors.Is(err, ErrEnrolled) {
		t.Errorf("join of a member: %v, want ErrEnrolled", err)
	}
	third.run(Join(t.Context(), third.config, good, JoinRequest{Name: "gamma", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.3.0/24")}}, nil))
}

func mustParse(t *testing.T, text string) invite.Token {
	t.Helper()
	token, err := invite.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// withServers is the same token with other servers and pins, as a forger or a
// stale paste would have it.
func withServers(t *testing.T, m *machine, pin [32]byte, servers ...string) string {
	t.Helper()
	var addrs []netip.AddrPort
	for _, s := range servers {
		addrs = append(addrs, netip.MustParseAddrPort(s))
	}
	var random [invite.RandomSize]byte
	for i := range random {
		random[i] = byte(i + 1)
	}
	token, err := invite.New(random, m.State().Mesh.ID, [][32]byte{pin}, addrs, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if _, known := m.State().Tokens[token.ID]; !known {
		m.propose(store.Command{AddToken: &store.AddToken{Token: store.Token{
			ID: token.ID, Key: token.Public(), Expires: token.Expires, Uses: 100, Roles: []store.NodeRole{store.NodeOperator},
		}}})
	}
	return token.Text()
}

func TestJoinServers(t *testing.T) {
	t.Parallel()
	one := founded(t)
	other := founded(t)
	pin := one.State().Pins()[0]
	closed := freePort(t)

	// Another mesh answers at the address: nothing but a handshake reaches it.
	refused(t, withServers(t, one, pin, other.config.Listen), JoinRequest{Name: "x"}, "does not hold the key that the token pins", other.config.Listen)
	refused(t, withServers(t, one, other.State().Pins()[0], one.config.Listen), JoinRequest{Name: "x"}, "does not hold the key that the token pins")
	refused(t, withServers(t, one, pin, closed), JoinRequest{Name: "x"}, "cannot be reached", closed)

	// One good server is enough, wherever it stands; a silent one costs nothing.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	m := newMachine(t)
	var steps []string
	m.run(Join(t.Context(), m.config, withServers(t, one, pin, silent.Addr().String(), closed, one.config.Listen), JoinRequest{Name: "two"},
		func(step string, _ ...any) { steps = append(steps, step) }))
	if got := strings.Join(steps, ", "); got != "server verified, admitted, joined" {
		t.Errorf("steps: %s", got)
	}
}

func TestLostAnswerIsGivenAgain(t *testing.T) {
	t.Parallel()
	one := founded(t)
	text := one.token(TokenRequest{})
	m := newMachine(t)
	// The first attempt is admitted, and its answer never stored.
	given, err := redeem(t.Context(), m.config, mustParse(t, text), JoinRequest{Name: "two"}, func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	m.run(Join(t.Context(), m.config, text, JoinRequest{Name: "two"}, nil))
	if got, first := m.State().Nodes[m.ID()], given.state.Nodes[m.ID()]; got.Addr4 != first.Addr4 || got.Addr6 != first.Addr6 {
		t.Errorf("the second answer is %+v, the first was %+v", got, first)
	}
	if len(m.State().Nodes) != 2 {
		t.Errorf("%d nodes, want 2", len(m.State().Nodes))
	}
}

// TestLostAnswerIsNoRefusal: who is cut off between the commit and the answer is
// told so, and goes on with the same identity.
func TestLostAnswerIsNoRefusal(t *testing.T) {
	t.Parallel()
	one := founded(t)
	text := one.token(TokenRequest{})
	m := newMachine(t)
	admitted := func() bool { return len(one.State().Nodes) == 2 }
	cut := m.config
	cut.Network = func(ctx context.Context, addr string) (net.Conn, error) {
		if admitted() {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ENETUNREACH}
		}
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		return deafConn{conn, admitted}, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	p, err := Join(ctx, cut, text, JoinRequest{Name: "two"}, nil)
	if err == nil {
		p.Close()
	}
	if !errors.Is(err, ErrMayBeMember) || !admitted() {
		t.Fatalf("cut off after the commit: %v", err)
	}
	m.run(Join(t.Context(), m.config, text, JoinRequest{Name: "two"}, nil))
	if n := len(m.State().Nodes); n != 2 || m.State().Nodes[m.ID()].Name != "two" {
		t.Errorf("%d nodes, this one is %+v", n, m.State().Nodes[m.ID()])
	}
}

// A deafConn hears nothing more once cut says so.
type deafConn struct {
	net.Conn
	cut func() bool
}

func (c deafConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.cut() {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

func TestFollowerAdmits(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.joined("two")
	eventually(t, "it has a control address", func() bool { return len(one.State().Nodes[two.ID()].Control) > 0 })
	text := withServers(t, one, one.State().Pins()[0], two.config.Listen)
	m := newMachine(t)
	m.run(Join(t.Context(), m.config, text, JoinRequest{Name: "three"}, nil))
	if two.Status().Role != "follower" && len(two.State().Nodes) < 3 {
		t.Errorf("status: %+v", two.Status())
	}
}

func TestRacingJoinsUseATokenOnce(t *testing.T) {
	t.Parallel()
	all := three(t)
	text := all[0].token(TokenRequest{})
	if got := len(mustParse(t, text).Servers); got != 3 {
		t.Fatalf("the token names %d servers, want 3", got)
	}
	const racers = 30
	machines := make([]*machine, racers)
	for i := range machines {
		machines[i] = newMachine(t)
	}
	var (
		tasks sync.WaitGroup
		mu    sync.Mutex
		won   []*Plane
	)
	for i, m := range machines {
		token := mustParse(t, text)
		token.Servers = token.Servers[i%3 : i%3+1] // each asks one server
		tasks.Go(func() {
			p, err := join(t.Context(), m.config, prepared(t, m.config), token, JoinRequest{Name: fmt.Sprintf("n%d", i)}, func(string, ...any) {})
			if err != nil {
				if !strings.Contains(err.Error(), "has been used") {
					t.Errorf("racer %d: %v", i, err)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			won = append(won, p)
		})
	}
	tasks.Wait()
	if len(won) != 1 {
		t.Fatalf("%d joined with one token", len(won))
	}
	defer won[0].Close()
	if got := len(all[1].State().Nodes); got > 4 {
		t.Errorf("%d nodes, want 4", got)
	}
}

func prepared(t *testing.T, config Config) files {
	f, err := prepare(config)
	if err != nil {
		t.Error(err)
	}
	t.Cleanup(func() { f.close() })
	return f
}

// TestB03ProofsOfAnotherJoin: a joiner that does not do as it should.
func TestB03ProofsOfAnotherJoin(t *testing.T) {
	t.Parallel()
	one := founded(t)
	token := mustParse(t, one.token(TokenRequest{}))
	m := newMachine(t)
	connect := func() (session, *tls.Conn) {
		t.Helper()
		dialer := &transport.Dialer{Trust: transport.Trust{Certificate: func() *tls.Certificate { return nil }, Pins: func() [][32]byte { return token.Pins }}}
		conn, err := dialer.DialAddr(t.Context(), token.Servers[0].String(), transport.Control)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return session{oneConnection(conn), "x"}, conn
	}
	begin := func(s session) [32]byte {
		t.Helper()
		var begun joinBegun
		if err := s.post(t.Context(), "/v1/join/begin", struct{}{}, &begun); err != nil {
			t.Fatal(err)
		}
		return [32]byte(begun.Challenge)
	}
	proofs := func(conn *tls.Conn, challenge [32]byte) joinRequest {
		t.Helper()
		r, err := prove(m.config, token, conn.ConnectionState(), challenge, JoinRequest{Name: "two"})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	finish := func(s session, r joinRequest, want string) {
		t.Helper()
		if err := s.post(context.Background(), "/v1/join/finish", r, nil); !hasCode(err, want) {
			t.Errorf("finish: %v, want %s", err, want)
		}
	}
	a, connA := connect()
	b, connB := connect()
	begin(a)
	challenge := begin(b)
	finish(b, proofs(connA, challenge), store.CodeTokenProof)   // of another connection
	finish(b, proofs(connB, challenge), CodeMalformed)          // a challenge serves once
	finish(a, proofs(connA, [32]byte{9}), store.CodeTokenProof) // of another challenge
	finish(a, joinRequest{}, CodeMalformed)                     // none begun
	bad := proofs(connA, begin(a))
	bad.Signature[3] ^= 1
	finish(a, bad, store.CodeTokenProof)
	bad = proofs(connA, begin(a))
	bad.Signature = mustParse(t, one.token(TokenRequest{})).Sign(bad.Transcript) // of another token
	finish(a, bad, store.CodeTokenProof)
	bad = proofs(connA, begin(a))
	bad.Proof = invite.ProveIdentity(newMachine(t).config.Ring.Sign, bad.Transcript) // of another machine
	finish(a, bad, store.CodeTokenProof)
	bad = proofs(connA, begin(a))
	bad.Proof[3] ^= 1
	finish(a, bad, store.CodeTokenProof)
	bad = proofs(connA, begin(a))
	bad.Answer[3] ^= 1
	finish(a, bad, store.CodeTokenProof)
	var answer joinAnswer
	if err := a.post(t.Context(), "/v1/join/finish", proofs(connA, begin(a)), &answer); err != nil {
		t.Errorf("the honest join: %v", err)
	}
	if len(one.State().Nodes) != 2 {
		t.Errorf("%d nodes, want 2 after the one honest join", len(one.State().Nodes))
	}
}
