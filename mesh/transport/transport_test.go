package transport

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"guywire/mesh"
)

// node is one end of the tests: an identity with a certificate of some CA.
type node struct {
	id    mesh.NodeID
	key   ed25519.PrivateKey
	trust Trust
}

func newAuthority(t testing.TB) *Authority {
	t.Helper()
	ca, err := NewAuthority(mesh.MeshID{1}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newNode(t testing.TB, ca *Authority, issued time.Time) node {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	identity := mesh.IdentityKey(public)
	leaf, err := ca.Issue(identity, issued)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := Certificate(leaf, ca.Certificate(), key)
	if err != nil {
		t.Fatal(err)
	}
	return node{id: identity.NodeID(), key: key, trust: Trust{
		Certificate: func() *tls.Certificate { return cert },
		Pins:        func() [][32]byte { return [][32]byte{ca.Pin()} },
	}}
}

// members is the view of a state in which the nodes are the members.
func members(nodes ...node) func(mesh.NodeID) (mesh.IdentityKey, bool) {
	keys := map[mesh.NodeID]mesh.IdentityKey{}
	for _, n := range nodes {
		keys[n.id] = mesh.IdentityKey(n.key.Public().(ed25519.PublicKey))
	}
	return func(id mesh.NodeID) (mesh.IdentityKey, bool) {
		key, ok := keys[id]
		return key, ok
	}
}

// nobody trusts ca and has no certificate.
func nobody(ca *Authority) Trust {
	return Trust{
		Certificate: func() *tls.Certificate { return nil },
		Pins:        func() [][32]byte { return [][32]byte{ca.Pin()} },
	}
}

func listen(t testing.TB, n node) *Listener {
	t.Helper()
	l, err := Listen(ListenConfig{
		Address: "127.0.0.1:0", Trust: n.trust,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dialer of one's own, for one address.
func (n node) dialer() *Dialer { return &Dialer{Trust: n.trust} }

// greet serves a stream: it tells every client who it is, then closes.
func greet(s *Stream) {
	for {
		c, err := s.Accept()
		if err != nil {
			return
		}
		state := c.(*tls.Conn).ConnectionState()
		text := "nobody"
		if peer, ok := s.listener.config.Trust.Peer(&state, time.Now()); ok {
			text = peer.ID.String()
			if peer.Stale {
				text += " stale"
			}
		}
		io.WriteString(c, text)
		c.Close()
	}
}

func read(t testing.TB, c net.Conn) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		return "error: " + err.Error()
	}
	return string(b)
}

func TestBothEndsKnowEachOther(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server, client := newNode(t, ca, time.Now()), newNode(t, ca, time.Now())
	l := listen(t, server)
	control, raft := l.Stream(Control), l.Stream(Raft)
	go greet(control)
	d := Dialer{Trust: client.trust, Resolve: func(mesh.NodeID) []netip.AddrPort { return []netip.AddrPort{l.Addr()} }}
	c, err := d.Dial(t.Context(), server.id, Control)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, c); got != client.id.String() {
		t.Errorf("server saw %q, want %s", got, client.id)
	}

	// The other protocol arrives at the other stream.
	c, err = d.Dial(t.Context(), server.id, Raft)
	if err != nil {
		t.Fatal(err)
	}
	go greet(raft)
	if got := read(t, c); got != client.id.String() {
		t.Errorf("raft stream saw %q, want %s", got, client.id)
	}

	// A closed protocol is refused, the other one goes on.
	raft.Close()
	if c, err = d.Dial(t.Context(), server.id, Raft); err == nil {
		if got := read(t, c); got == client.id.String() {
			t.Error("a closed protocol was served")
		}
	}
	if c, err = d.Dial(t.Context(), server.id, Control); err != nil {
		t.Fatal(err)
	}
	if got := read(t, c); got != client.id.String() {
		t.Errorf("control stream saw %q after the other one closed", got)
	}

	c, err = (&Dialer{Trust: nobody(ca)}).DialAddr(t.Context(), l.Addr().String(), Control)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, c); got != "nobody" {
		t.Errorf("server saw %q, want nobody", got)
	}
}

func TestB17ClientRefuses(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	now := time.Now()
	good, stranger := newNode(t, ca, now), newNode(t, other, now)
	expired := newNode(t, ca, now.Add(-Lifetime-time.Hour))
	future := newNode(t, ca, now.Add(Backdating+time.Hour))
	for _, tc := range []struct {
		name   string
		server node
		want   mesh.NodeID
		err    error
		text   string
	}{
		{"other CA", stranger, stranger.id, ErrUntrusted, "not from this mesh"},
		{"another node", good, stranger.id, ErrWrongNode, good.id.String()},
		{"expired", expired, expired.id, ErrClock, "valid until"},
		{"not yet valid", future, future.id, ErrClock, "set the clock"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := listen(t, tc.server)
			go greet(l.Stream(Control))
			_, err := good.dialer().DialNode(t.Context(), l.Addr(), tc.want, Control)
			if !errors.Is(err, tc.err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v, want %v with %q", err, tc.err, tc.text)
			}
		})
	}
}

func TestB17ServerRefuses(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	now := time.Now()
	server := newNode(t, ca, now)
	l := listen(t, server)
	go greet(l.Stream(Control))

	// A client that trusts the server, whatever the server thinks of it.
	as := func(n node) Trust { return Trust{Certificate: n.trust.Certificate, Pins: server.trust.Pins} }
	// A certificate of the mesh's CA for a key, used with another key.
	thief := newNode(t, other, now)
	stolen := Trust{Pins: server.trust.Pins, Certificate: func() *tls.Certificate {
		cert := *server.trust.Certificate()
		cert.PrivateKey = thief.key
		return &cert
	}}
	for name, trust := range map[string]Trust{
		"other CA":         as(newNode(t, other, now)),
		"not yet valid":    as(newNode(t, ca, now.Add(Backdating+time.Hour))),
		"another's key":    stolen,
		"self-made issuer": {Pins: server.trust.Pins, Certificate: func() *tls.Certificate { return forged(t, server) }},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := (&Dialer{Trust: trust}).DialNode(t.Context(), l.Addr(), server.id, Control)
			if err == nil { // in TLS 1.3 the client learns of the refusal when it reads
				if got := read(t, c); got != "" && !strings.HasPrefix(got, "error") {
					t.Errorf("server said %q, want nothing", got)
				}
			}
		})
	}

	// An expired certificate proves its key and is stale.
	old := newNode(t, ca, now.Add(-Lifetime-time.Hour))
	c, err := (&Dialer{Trust: as(old)}).DialNode(t.Context(), l.Addr(), server.id, Control)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, c); got != old.id.String()+" stale" {
		t.Errorf("server saw %q, want a stale %s", got, old.id)
	}
}

// forged is a chain in which an ordinary member signs for another identity.
func forged(t *testing.T, member node) *tls.Certificate {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issuer := &Authority{certificate: member.trust.Certificate().Leaf, key: member.key}
	leaf, err := issuer.Issue(mesh.IdentityKey(public), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(leaf)
	if err != nil {
		t.Fatal(err)
	}
	chain := append([][]byte{leaf}, member.trust.Certificate().Certificate...)
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: parsed}
}

func TestB17OldAndPlainProtocols(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	l := listen(t, newNode(t, ca, time.Now()))
	go greet(l.Stream(Control))

	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "GET /v1/follow HTTP/1.1\r\nHost: x\r\n\r\n")
	if got := read(t, c); strings.Contains(got, "HTTP/1.1 200") || strings.Contains(got, "nobody") {
		t.Errorf("plaintext was answered: %q", got)
	}
	for name, config := range map[string]*tls.Config{
		"TLS 1.2":       {MaxVersion: tls.VersionTLS12, NextProtos: []string{Control}},
		"no ALPN":       {},
		"unknown ALPN":  {NextProtos: []string{"h2"}},
		"next protocol": {NextProtos: []string{"guywire/2"}},
	} {
		config.InsecureSkipVerify = true
		c, err := tls.Dial("tcp", l.Addr().String(), config)
		if err != nil {
			continue
		}
		if got := read(t, c); got == "nobody" {
			t.Errorf("%s was served", name)
		}
	}

	// The same from the other side: a server in the right place, with the
	// node's own key, that does not speak what was asked for.
	server, client := newNode(t, ca, time.Now()), newNode(t, ca, time.Now())
	client.trust.Member = members(server)
	own := tls.Config{Certificates: []tls.Certificate{*server.trust.Certificate()}}
	for name, answer := range map[string]func(net.Conn){
		"plaintext": func(c net.Conn) { io.WriteString(c, "\x00\x00raft\n") },
		"echo":      func(c net.Conn) { io.Copy(c, c) },
		"TLS 1.2": func(c net.Conn) {
			config := own.Clone()
			config.MaxVersion, config.NextProtos = tls.VersionTLS12, []string{Raft}
			tls.Server(c, config).Handshake()
		},
		"no ALPN": func(c net.Conn) { tls.Server(c, &own).Handshake() },
	} {
		plain, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		go func() {
			for {
				c, err := plain.Accept()
				if err != nil {
					return
				}
				answer(c)
				c.Close()
			}
		}()
		addr := plain.Addr().(*net.TCPAddr).AddrPort()
		if c, err := client.dialer().DialNode(t.Context(), addr, server.id, Raft); err == nil {
			c.Close()
			t.Errorf("a server of Raft with %s was believed", name)
		}
	}
}

func TestCutClosesOnlyThatNode(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server, a, b := newNode(t, ca, time.Now()), newNode(t, ca, time.Now()), newNode(t, ca, time.Now())
	l := listen(t, server)
	s := l.Stream(Control)
	accepted := func(n node) (near, far net.Conn) {
		t.Helper()
		near, err := n.dialer().DialNode(t.Context(), l.Addr(), server.id, Control)
		if err != nil {
			t.Fatal(err)
		}
		far, err = s.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return near, far
	}
	nearA, _ := accepted(a)
	nearB, farB := accepted(b)
	l.Cut(a.id)
	nearA.SetDeadline(time.Now().Add(20 * time.Second))
	var timeout net.Error
	if _, err := nearA.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("read on the cut connection: %v, want it closed", err)
	}
	go io.WriteString(farB, "x")
	if _, err := io.ReadFull(nearB, make([]byte, 1)); err != nil {
		t.Errorf("the other node's connection: %v", err)
	}
}

func TestMemberConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	var g gate
	g.init()
	open := func() *conn {
		near, far := net.Pipe()
		t.Cleanup(func() { near.Close(); far.Close() })
		c := &conn{Conn: near, gate: &g, source: netip.MustParseAddr("203.0.113.7")}
		if !g.begin(c) {
			t.Fatal("gate is closed")
		}
		return c
	}
	var last *conn
	for i := range maxMember {
		if last = open(); !g.establish(last, mesh.NodeID{7}, Control, true) {
			t.Fatalf("connection %d refused", i)
		}
	}
	over := open()
	if g.establish(over, mesh.NodeID{7}, Control, true) {
		t.Error("a member went over its bound")
	}
	over.Close()
	if other := open(); !g.establish(other, mesh.NodeID{8}, Control, true) {
		t.Error("one member took another's room")
	}
	for i := range maxAnonymousSource {
		stranger := mesh.NodeID{0, byte(i)} // the first is nobody
		if !g.establish(open(), stranger, Control, false) {
			t.Error("nobody was refused below the bound")
		}
	}
	for i, id := range []mesh.NodeID{{}, {7}, {10}} {
		first := g.nameless[over.source][0]
		if !g.establish(open(), id, Control, false) {
			t.Errorf("%s, who is no member, was refused for older ones of its source", id)
		}
		if len(g.nameless[over.source]) != maxAnonymousSource || first.phase != phaseClosed {
			t.Errorf("stranger %d: %d of one source, the oldest is in phase %d", i, len(g.nameless[over.source]), first.phase)
		}
	}
	last.Close()
	last.Close() // twice gives one place back
	if !g.establish(open(), mesh.NodeID{7}, Control, true) {
		t.Error("a closed connection kept its place")
	}
	if g.members[mesh.NodeID{7}] != maxMember || g.waiting != 0 {
		t.Errorf("counts: %d of the member, %d pending", g.members[mesh.NodeID{7}], g.waiting)
	}
	g.closeAll()
	if len(g.live)+len(g.members)+len(g.nameless)+len(g.pending)+g.unknown+g.waiting != 0 {
		t.Errorf("not empty after close: %+v", &g)
	}
	if g.begin(&conn{gate: &g}) {
		t.Error("a closed gate let a connection in")
	}
}

// TestB19JoinersAreNotKeptOut: who holds all places of nobody, from few
// sources, loses them to those who come from others, and keeps no member out.
func TestB19JoinersAreNotKeptOut(t *testing.T) {
	t.Parallel()
	var g gate
	g.init()
	open := func(source string) *conn {
		near, far := net.Pipe()
		t.Cleanup(func() { near.Close(); far.Close() })
		c := &conn{Conn: near, gate: &g, source: netip.MustParseAddr(source)}
		if !g.begin(c) {
			t.Fatal("gate is closed")
		}
		return c
	}
	for i := range maxAnonymous {
		if !g.establish(open(fmt.Sprintf("203.0.113.%d", i%4)), mesh.NodeID{}, Control, false) {
			t.Fatalf("connection %d refused", i)
		}
	}
	var joiners []*conn
	for i := range 20 {
		c := open(fmt.Sprintf("198.51.100.%d", i))
		if !g.establish(c, mesh.NodeID{}, Control, false) {
			t.Fatalf("joiner %d refused", i)
		}
		joiners = append(joiners, c)
		if !g.establish(open(fmt.Sprintf("203.0.113.%d", i%4)), mesh.NodeID{}, Control, false) {
			t.Fatal("an older connection did not make room")
		}
	}
	for i, c := range joiners {
		if c.phase != phaseAnonymous {
			t.Errorf("joiner %d lost its place", i)
		}
	}
	if g.unknown != maxAnonymous || len(g.live) != maxAnonymous {
		t.Errorf("%d connections, %d of nobody, bound is %d", len(g.live), g.unknown, maxAnonymous)
	}
	if !g.establish(open("203.0.113.1"), mesh.NodeID{1}, Control, true) {
		t.Error("a member was kept out")
	}
}

func TestDialTriesAllAddresses(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	now := time.Now()
	server, other, client := newNode(t, ca, now), newNode(t, ca, now), newNode(t, ca, now)
	l, wrong := listen(t, server), listen(t, other)
	go greet(l.Stream(Control))
	go greet(wrong.Stream(Control))
	silent, err := net.Listen("tcp", "127.0.0.1:0") // never answers a handshake
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	addr := func(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }
	addrs := []netip.AddrPort{addr(silent), addr(closed), wrong.Addr(), l.Addr(), l.Addr()}
	d := Dialer{Trust: client.trust, Resolve: func(mesh.NodeID) []netip.AddrPort { return addrs }}
	c, err := d.Dial(t.Context(), server.id, Control)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, c); got != client.id.String() {
		t.Errorf("server said %q", got)
	}

	addrs = []netip.AddrPort{addr(closed), wrong.Addr()}
	_, err = d.Dial(t.Context(), server.id, Control)
	if !errors.Is(err, ErrWrongNode) || !strings.Contains(err.Error(), addr(closed).String()) {
		t.Errorf("got %v, want both attempts in the error", err)
	}
	addrs = nil
	if _, err = d.Dial(t.Context(), server.id, Control); !errors.Is(err, ErrNoAddress) {
		t.Errorf("got %v, want ErrNoAddress", err)
	}
	addrs = []netip.AddrPort{addr(silent)}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = d.Dial(ctx, server.id, Control); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the cancellation", err)
	}
}

func TestRenewedCertificateCountsAtOnce(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	first, client := newNode(t, ca, time.Now()), newNode(t, ca, time.Now())
	var current atomic.Pointer[tls.Certificate]
	l := listen(t, node{trust: Trust{Certificate: current.Load, Pins: first.trust.Pins}})
	go greet(l.Stream(Control))
	if _, err := client.dialer().DialNode(t.Context(), l.Addr(), first.id, Control); err == nil {
		t.Error("a server without a certificate was accepted")
	}
	current.Store(first.trust.Certificate())
	if _, err := client.dialer().DialNode(t.Context(), l.Addr(), first.id, Control); err != nil {
		t.Errorf("after the certificate came: %v", err)
	}
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	n := newNode(t, newAuthority(t), time.Now())
	l := listen(t, n)
	_, err := Listen(ListenConfig{Address: l.Addr().String(), Trust: n.trust, Logger: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "port is in use") {
		t.Errorf("got %v, want the port in use", err)
	}
}

func TestAuthorityRoundTrip(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	again, err := ParseAuthority(ca.Certificate(), ca.Key())
	if err != nil {
		t.Fatal(err)
	}
	if pin, err := Pin(ca.Certificate()); err != nil || again.Pin() != ca.Pin() || pin != ca.Pin() {
		t.Errorf("pins differ: %x %x %x %v", again.Pin(), ca.Pin(), pin, err)
	}
	if _, err := ParseAuthority(ca.Certificate(), other.Key()); err == nil {
		t.Error("another CA's key was accepted")
	}
	if _, err := ParseAuthority(ca.Certificate(), nil); err == nil {
		t.Error("an empty key was accepted")
	}
	n := newNode(t, ca, time.Now())
	if _, err := Certificate(n.trust.Certificate().Certificate[0], ca.Certificate(), other.Key()); err == nil {
		t.Error("a certificate of another key was accepted")
	}
}

// FuzzVerify: no chain makes verify panic, and none passes without the CA's
// signature. All is fixed, so that every process of the fuzzer sees the same.
func FuzzVerify(f *testing.F) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	key := func(n byte) ed25519.PrivateKey {
		return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
	}
	issue := func(template, parent *x509.Certificate, of, by ed25519.PrivateKey) *x509.Certificate {
		template.SerialNumber = big.NewInt(1)
		der, err := x509.CreateCertificate(nil, template, parent, of.Public(), by)
		if err != nil {
			f.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			f.Fatal(err)
		}
		return cert
	}
	authority := func(n byte) *x509.Certificate {
		template := &x509.Certificate{NotBefore: now, NotAfter: now.AddDate(1, 0, 0), KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true}
		return issue(template, template, key(n), key(n))
	}
	leaf := func(n byte, ca *x509.Certificate, by byte) *x509.Certificate {
		return issue(leafOf(mesh.IdentityKey(key(n).Public().(ed25519.PublicKey)), now), ca, key(n), key(by))
	}
	ca, other := authority(1), authority(2)
	good := leaf(3, ca, 1)
	if err := verify([]*x509.Certificate{good, ca}, [][32]byte{pinOf(ca)}, x509.ExtKeyUsageClientAuth, now, false); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Raw, ca.Raw)
	f.Add(leaf(4, other, 2).Raw, ca.Raw)
	f.Add(ca.Raw, ca.Raw)
	f.Add([]byte{}, []byte{0x30})
	trust := Trust{Pins: func() [][32]byte { return [][32]byte{pinOf(ca)} }}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var chain []*x509.Certificate
		for _, der := range [][]byte{a, b} {
			if cert, err := x509.ParseCertificate(der); err == nil {
				chain = append(chain, cert)
			}
		}
		err := verify(chain, trust.Pins(), x509.ExtKeyUsageClientAuth, now, true)
		if err == nil && chain[0].CheckSignatureFrom(ca) != nil {
			t.Error("a chain without the CA's signature passed")
		}
		if peer, known := trust.Peer(&tls.ConnectionState{PeerCertificates: chain}, now); known && !peer.Stale && err != nil {
			t.Errorf("not stale: %v", err)
		}
	})
}
