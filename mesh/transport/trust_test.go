package transport

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
	"guywire/mesh/transport/transporttest"
)

// A world is a network in memory, for tests in a bubble.
type world struct {
	t *testing.T
	transporttest.Network
}

func newWorld(t *testing.T) *world { return &world{t: t} }

func host(n byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, n}) }

func (w *world) listen(n node, at byte) *Listener {
	w.t.Helper()
	port, err := w.Listen(netip.AddrPortFrom(host(at), 51821))
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := Listen(ListenConfig{Listener: port, Trust: n.trust, Logger: slog.New(slog.NewTextHandler(w.t.Output(), nil))})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	return l
}

func (w *world) dialer(n node, at byte, to *Listener) *Dialer {
	return &Dialer{
		Trust: n.trust, Network: w.Dialer(host(at)),
		Resolve: func(mesh.NodeID) []netip.AddrPort { return []netip.AddrPort{to.Addr()} },
	}
}

// identity is a node without a certificate.
func (n node) identity() mesh.IdentityKey {
	return mesh.IdentityKey(n.key.Public().(ed25519.PublicKey))
}

// certified gives the node another certificate of its key.
func (n node) certified(t testing.TB, ca *Authority, issued time.Time) node {
	t.Helper()
	leaf, err := ca.Issue(n.identity(), issued)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := Certificate(leaf, ca.Certificate(), n.key)
	if err != nil {
		t.Fatal(err)
	}
	n.trust.Certificate = func() *tls.Certificate { return cert }
	return n
}

// A joiner believes the CAs whose pins it has, and no other.
func TestCARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, now := newWorld(t), time.Now()
		former, current, other := newAuthority(t), newAuthority(t), newAuthority(t)
		pins := map[string][][32]byte{
			"old": {former.Pin()}, "new": {current.Pin()}, "both": {former.Pin(), current.Pin()}, "neither": {other.Pin()}, "none": nil,
		}
		want := map[string]string{"old": "old both", "new": "new both"} // issuer: pins that accept it
		at := byte(0)
		for issuer, ca := range map[string]*Authority{"old": former, "new": current} {
			for ours, accepted := range pins {
				at++
				server, client := newNode(t, ca, now), newNode(t, ca, now)
				server.trust.Pins = func() [][32]byte { return accepted }
				client.trust.Pins = server.trust.Pins
				l := w.listen(server, at)
				go greet(l.Stream(Control))
				fits := slices.Contains(strings.Fields(want[issuer]), ours)
				_, err := w.dialer(client, 200, l).DialAddr(t.Context(), l.Addr().String(), Control)
				if fits && err != nil || !fits && !errors.Is(err, ErrUntrusted) {
					t.Errorf("client with pins %s, server of the %s CA: %v", ours, issuer, err)
				}
				client.trust.Pins = func() [][32]byte { return [][32]byte{ca.Pin()} } // it believes; does the server?
				if got := greeting(w.dialer(client, 200, l), server.id); (got == client.id.String()) != fits {
					t.Errorf("server with pins %s, client of the %s CA: it heard %q", ours, issuer, got)
				}
			}
		}

		// A whole change, over one connection that stays open: the client's CA
		// is current, then previous, then retired, then forgotten.
		var accepted, retired atomic.Pointer[[][32]byte]
		set := func(p *atomic.Pointer[[][32]byte], pins ...[32]byte) { p.Store(&pins) }
		set(&accepted, former.Pin())
		set(&retired)
		server, client, gone := newNode(t, former, now), newNode(t, former, now), newNode(t, former, now)
		server.trust.Pins = func() [][32]byte { return *accepted.Load() }
		server.trust.Retired = func() [][32]byte { return *retired.Load() }
		server.trust.Member = members(server, client)
		client.trust.Member = server.trust.Member
		l := w.listen(server, 100)
		s := l.Stream(Control)
		d := w.dialer(client, 200, l)
		near, err := d.Dial(t.Context(), server.id, Control)
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		far, err := s.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go greet(s)
		state := far.(*tls.Conn).ConnectionState()
		for _, step := range []struct {
			name              string
			accepted, retired [][32]byte
			stale             bool
			stranger          bool // a node that is no member is heard
		}{
			{"next", [][32]byte{former.Pin(), current.Pin()}, nil, false, true},
			{"retired", [][32]byte{current.Pin()}, [][32]byte{former.Pin()}, true, true},
			{"forgotten", [][32]byte{current.Pin()}, nil, true, false},
		} {
			set(&accepted, step.accepted...)
			set(&retired, step.retired...)
			word := ""
			if step.stale {
				word = " stale"
			}
			if peer, known := server.trust.Peer(&state, now); !known || peer.Stale != step.stale || peer.ID != client.id {
				t.Errorf("%s: the open connection is %+v", step.name, peer)
			}
			if got := greeting(d, server.id); got != client.id.String()+word {
				t.Errorf("%s: a member heard %q", step.name, got)
			}
			got := greeting(w.dialer(gone, 200, l), server.id)
			if heard := got == gone.id.String()+word; heard != step.stranger {
				t.Errorf("%s: who is no member heard %q", step.name, got)
			}
		}
		renewed := client.certified(t, current, now)
		if got := greeting(w.dialer(renewed, 200, l), server.id); got != client.id.String() {
			t.Errorf("with a certificate of the new CA: heard %q", got)
		}
	})
}

// greeting is what a server of greet says; "" when it says nothing.
func greeting(d *Dialer, id mesh.NodeID) string {
	c, err := d.Dial(context.Background(), id, Control)
	if err != nil {
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		return ""
	}
	return string(b)
}

// The voters are gone for longer than certificates live, and a clock is back in
// 1970: members still prove to each other who they are, marked as stale.
func TestStaleLeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca, other := newAuthority(t), newAuthority(t)
		server, client, revoked, stranger := newNode(t, ca, time.Now()), newNode(t, ca, time.Now()), newNode(t, ca, time.Now()), newNode(t, other, time.Now())
		server.trust.Member = members(server, client)
		client.trust.Member = server.trust.Member
		revoked.trust.Member = members(server) // of an old state
		l := w.listen(server, 1)
		go greet(l.Stream(Control))
		d := w.dialer(client, 2, l)
		if got := greeting(d, server.id); got != client.id.String() {
			t.Errorf("fresh: heard %q", got)
		}
		time.Sleep(Lifetime + time.Hour)
		if got := greeting(d, server.id); got != client.id.String()+" stale" {
			t.Errorf("expired: heard %q", got)
		}
		state := func() tls.ConnectionState {
			c, err := d.Dial(t.Context(), server.id, Control)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			return c.ConnectionState()
		}()
		if peer, known := client.trust.Peer(&state, time.Now()); !known || !peer.Stale || peer.ID != server.id {
			t.Errorf("the client sees %+v", peer)
		}
		// Removed meanwhile: heard as stale, so that it can be told.
		if got := greeting(w.dialer(revoked, 3, l), server.id); got != revoked.id.String()+" stale" {
			t.Errorf("no member any more: heard %q", got)
		}
		if got := greeting(w.dialer(stranger, 4, l), server.id); got != "" {
			t.Errorf("of another CA: heard %q", got)
		}
		// Who knows only pins needs a valid certificate.
		joiner := &Dialer{Trust: nobody(ca), Network: w.Dialer(host(5))}
		if _, err := joiner.DialAddr(t.Context(), l.Addr().String(), Control); !errors.Is(err, ErrClock) {
			t.Errorf("a joiner: %v, want ErrClock", err)
		}
		if _, err := d.DialAddr(t.Context(), l.Addr().String(), Control); !errors.Is(err, ErrClock) {
			t.Errorf("a member that names nobody: %v, want ErrClock", err)
		}
		// Being a member excuses the certificate, not the place.
		if _, err := d.Dial(t.Context(), revoked.id, Control); !errors.Is(err, ErrWrongNode) {
			t.Errorf("at another's address: %v, want ErrWrongNode", err)
		}
		fresh := server.certified(t, ca, time.Now())
		later := w.listen(fresh, 6)
		go greet(later.Stream(Control))
		former := client
		former.trust.Member = members(client)
		if _, err := w.dialer(former, 2, later).Dial(t.Context(), server.id, Control); !errors.Is(err, ErrUntrusted) {
			t.Errorf("a server that is no member any more: %v, want ErrUntrusted", err)
		}
		future := client.certified(t, ca, time.Now().Add(1000*time.Hour))
		if got := greeting(w.dialer(future, 2, l), server.id); got != client.id.String()+" stale" {
			t.Errorf("with the server's clock behind: heard %q", got)
		}
	})
}

// TestCAFromTheFuture: a CA that was made while a clock was wrong vouches for
// its nodes all the same.
func TestCAFromTheFuture(t *testing.T) {
	for _, made := range []time.Time{time.Now().Add(30 * 365 * 24 * time.Hour), time.Unix(0, 0).Add(-authorityLifetime)} {
		ca, err := NewAuthority(mesh.MeshID{1}, made)
		if err != nil {
			t.Fatal(err)
		}
		n := newNode(t, ca, time.Now())
		state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{n.trust.Certificate().Leaf, ca.certificate}}
		if peer, known := n.trust.Peer(state, time.Now()); !known || peer.Stale {
			t.Errorf("made in %d: known %v, %+v", made.Year(), known, peer)
		}
		if peer, _ := n.trust.Peer(state, time.Now().Add(2*Lifetime)); !peer.Stale {
			t.Errorf("made in %d: an expired leaf is good", made.Year())
		}
	}
}

// B11, the transport's half: neither another certificate nor another spelling
// of a key makes another peer, or one that anyone can be.
func TestB11OtherSpellings(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	now := time.Now()
	server, banned := newNode(t, ca, now), newNode(t, ca, now)
	server.trust.Pins = func() [][32]byte { return [][32]byte{ca.Pin(), other.Pin()} }
	l := listen(t, server)
	s := l.Stream(Control)
	var open []net.Conn
	for _, n := range []node{banned, banned.certified(t, ca, now.Add(-time.Minute)), banned.certified(t, other, now)} {
		near, err := n.dialer().DialNode(t.Context(), l.Addr(), server.id, Control)
		if err != nil {
			t.Fatal(err)
		}
		far, err := s.Accept()
		if err != nil {
			t.Fatal(err)
		}
		state := far.(*tls.Conn).ConnectionState()
		if peer, _ := server.trust.Peer(&state, now); peer.ID != banned.id || peer.Key != banned.identity() {
			t.Errorf("another certificate made the peer %+v", peer)
		}
		open = append(open, near)
	}
	l.Cut(banned.id)
	for i, c := range open {
		if !isCut(c) {
			t.Errorf("certificate %d of the same key outlived the ban", i)
		}
	}

	// Points of low order, and the second spelling of one: the signature below
	// is right for any message by anyone.
	for name, key := range map[string]mesh.IdentityKey{
		"neutral point":    {0: 1},
		"high bit":         {0: 1, 31: 0x80},
		"not reduced":      spelled(0x7f),
		"not reduced, too": spelled(0xff),
	} {
		leaf, err := ca.Issue(key, now)
		if err != nil {
			t.Fatal(err)
		}
		cert := &tls.Certificate{Certificate: [][]byte{leaf, ca.Certificate()}, PrivateKey: anyone(key)}
		trust := Trust{Pins: server.trust.Pins, Certificate: func() *tls.Certificate { return cert }}
		c, err := (&Dialer{Trust: trust}).DialNode(t.Context(), l.Addr(), server.id, Control)
		if err == nil && !isCut(c) {
			t.Errorf("%s: served", name)
		}
	}
}

// spelled is the neutral point again: y = 1 written as p + 1, p = 2^255-19.
func spelled(last byte) mesh.IdentityKey {
	key := mesh.IdentityKey(bytes.Repeat([]byte{0xff}, 32))
	key[0], key[31] = 0xee, last
	return key
}

// anyone "signs" for the neutral point: with A = 1, the equation
// [S]B = R + [k]A of RFC 8032 holds for R = 1 and S = 0.
type anyone mesh.IdentityKey

func (a anyone) Public() crypto.PublicKey { return ed25519.PublicKey(a[:]) }

func (a anyone) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return append([]byte{1}, make([]byte, ed25519.SignatureSize-1)...), nil
}

// isCut reports whether the other end closed the connection without a word.
func isCut(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, err := c.Read(make([]byte, 1))
	var timeout net.Error
	return n == 0 && err != nil && !(errors.As(err, &timeout) && timeout.Timeout())
}

// An operator without a node is heard by one protocol only, and as nothing else.
func TestOperatorIsHeardByAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := newAuthority(t)
		server, operator, other := newNode(t, ca, time.Now()), newNode(t, ca, time.Now()), newNode(t, ca, time.Now())
		server.trust.Operator = func(key mesh.IdentityKey) bool { return key == operator.identity() }
		l := w.listen(server, 1)
		go greet(l.Stream(Control))
		go greet(l.Stream(API))
		ask := func(n node, alpn string) string {
			cert, err := SelfSigned(n.key, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			n.trust.Certificate = func() *tls.Certificate { return cert }
			c, err := w.dialer(n, 2, l).DialAddr(t.Context(), l.Addr().String(), alpn)
			if err != nil {
				t.Fatal(err)
			}
			return read(t, c)
		}
		if got := ask(operator, API); got != operator.id.String()+" stale" {
			t.Errorf("operator: heard %q", got)
		}
		for name, got := range map[string]string{
			"operator on control": ask(operator, Control), "another on API": ask(other, API), "another on control": ask(other, Control),
		} {
			if !strings.HasPrefix(got, "error") {
				t.Errorf("%s: heard %q", name, got)
			}
		}
	})
}

func TestSealIsBound(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	answer := invite.Answer{
		Mesh: mesh.MeshID{1}, Transcript: sha256.Sum256([]byte("of this connection")),
		Certificate: []byte("leaf"), State: []byte("state"),
	}
	encode := func(change func(*invite.Answer)) []byte {
		t.Helper()
		a := answer
		change(&a)
		b, err := a.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	message := encode(func(*invite.Answer) {})
	seal := ca.Seal(message)
	pins := [][32]byte{other.Pin(), ca.Pin()}
	if err := VerifySeal(pins, ca.Certificate(), message, seal); err != nil {
		t.Fatal(err)
	}
	long := append(bytes.Clone(seal), 0)
	member := newNode(t, ca, time.Now())
	leaf := member.trust.Certificate().Certificate[0]
	leafPin, err := Pin(leaf)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		pins              [][32]byte
		ca, message, seal []byte
	}{
		"other transcript": {pins, ca.Certificate(), encode(func(a *invite.Answer) { a.Transcript = sha256.Sum256([]byte("of another")) }), seal},
		"other state":      {pins, ca.Certificate(), encode(func(a *invite.Answer) { a.State = []byte("stale") }), seal},
		"other leaf":       {pins, ca.Certificate(), encode(func(a *invite.Answer) { a.Certificate = []byte("leap") }), seal},
		"moved border":     {pins, ca.Certificate(), encode(func(a *invite.Answer) { a.Certificate, a.State = []byte("lea"), []byte("fstate") }), seal},
		"other mesh":       {pins, ca.Certificate(), encode(func(a *invite.Answer) { a.Mesh[0]++ }), seal},
		"other CA":         {pins, other.Certificate(), message, seal},
		"other CA's seal":  {pins, ca.Certificate(), message, other.Seal(message)},
		"CA not pinned":    {pins[:1], ca.Certificate(), message, seal},
		"no pins":          {nil, ca.Certificate(), message, seal},
		"no seal":          {pins, ca.Certificate(), message, nil},
		"longer seal":      {pins, ca.Certificate(), message, long},
		"no certificate":   {pins, nil, message, seal},
		"a member's":       {[][32]byte{leafPin}, leaf, message, ed25519.Sign(member.key, sealed(message))},
		"plain signature":  {pins, ca.Certificate(), message, ed25519.Sign(ca.Key(), message)},
	} {
		if err := VerifySeal(c.pins, c.ca, c.message, c.seal); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v, want ErrUntrusted", name, err)
		}
	}
	for i := range message {
		changed := bytes.Clone(message)
		changed[i] ^= 1
		if VerifySeal(pins, ca.Certificate(), changed, seal) == nil {
			t.Errorf("byte %d is not sealed", i)
		}
	}
	// A seal over the body of a certificate is not the signature of one.
	tbs := member.trust.Certificate().Leaf.RawTBSCertificate
	if ed25519.Verify(ed25519.PublicKey(ca.certificate.PublicKey.(ed25519.PublicKey)), tbs, ca.Seal(tbs)) {
		t.Error("Seal makes certificates")
	}
}

// Cut ends what is open, what waits in a handshake and what is still dialled,
// to that node, by that protocol, and nothing else.
func TestCutOutgoing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := newAuthority(t)
		client, a, b := newNode(t, ca, time.Now()), newNode(t, ca, time.Now()), newNode(t, ca, time.Now())
		at := map[mesh.NodeID]netip.AddrPort{}
		for i, n := range []node{a, b} {
			l := w.listen(n, byte(1+i))
			at[n.id] = l.Addr()
			for _, alpn := range []string{Control, Raft} {
				go hold(l.Stream(alpn))
			}
		}
		d := &Dialer{Trust: client.trust, Network: w.Dialer(host(9)), Resolve: func(id mesh.NodeID) []netip.AddrPort { return []netip.AddrPort{at[id]} }}
		dial := func(id mesh.NodeID, alpn string) net.Conn {
			t.Helper()
			c, err := d.Dial(t.Context(), id, alpn)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		open := map[string]net.Conn{
			"a control": dial(a.id, Control), "a raft": dial(a.id, Raft), "b control": dial(b.id, Control), "b raft": dial(b.id, Raft),
		}
		check := func(want ...string) {
			t.Helper()
			for name, c := range open {
				c.SetReadDeadline(time.Now().Add(time.Second))
				_, err := c.Read(make([]byte, 1))
				var timeout net.Error
				alive := errors.As(err, &timeout) && timeout.Timeout()
				if alive != slices.Contains(want, name) {
					t.Errorf("%s: alive %v (%v)", name, alive, err)
				}
			}
			d.out.mu.Lock()
			defer d.out.mu.Unlock()
			if len(d.out.lines) != len(want) {
				t.Errorf("%d connections are known, want %d", len(d.out.lines), len(want))
			}
		}
		check("a control", "a raft", "b control", "b raft")
		d.CutStream(Raft, a.id)
		check("a control", "b control", "b raft")
		d.Cut(b.id)
		check("a control")
		open["b control"] = dial(b.id, Control) // a cut is no ban: that is for Trust
		check("a control", "b control")
		open["a control"].Close()
		check("b control")

		// A dial that does not come through yet, and a handshake that hangs.
		attempt := func() <-chan error {
			outcome := make(chan error, 1)
			go func() {
				_, err := d.Dial(t.Context(), a.id, Control)
				outcome <- err
			}()
			return outcome
		}
		w.Cut(func(_, to netip.Addr) bool { return to == host(1) })
		dialled := attempt()
		synctest.Wait()
		silent, err := w.Listen(netip.AddrPortFrom(host(3), 1))
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		at[a.id] = netip.AddrPortFrom(host(3), 1)
		hanging := attempt()
		synctest.Wait()
		began := time.Now()
		d.Cut(a.id)
		for _, outcome := range []<-chan error{dialled, hanging} {
			if err := <-outcome; err == nil || time.Since(began) > 0 {
				t.Errorf("an attempt outlived the cut: %v after %s", err, time.Since(began))
			}
		}
		check("b control")
	})
}

// A cut in the last moment of a dial: the other end is about to be believed, or
// has been.
func TestCutDuringDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := newAuthority(t)
		client, server := newNode(t, ca, time.Now()), newNode(t, ca, time.Now())
		l := w.listen(server, 1)
		go hold(l.Stream(Control))
		d := w.dialer(client, 2, l)
		pins := d.Trust.Pins
		d.Trust.Pins = func() [][32]byte {
			d.Cut(server.id)
			return pins()
		}
		for range 20 {
			if _, err := d.Dial(t.Context(), server.id, Control); err == nil {
				t.Fatal("a connection slipped through the cut")
			}
		}
		var o outgoing
		attempt := o.begin(server.id, Control, func() {})
		o.cut(func(*line) bool { return true })
		if o.establish(attempt) {
			t.Error("an attempt that was cut succeeded")
		}
	})
}

// hold serves a stream by keeping its connections open.
func hold(s *Stream) {
	for {
		if _, err := s.Accept(); err != nil {
			return
		}
	}
}

// CutStream ends one protocol of one node.
func TestCutStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := newAuthority(t)
		server, a, b := newNode(t, ca, time.Now()), newNode(t, ca, time.Now()), newNode(t, ca, time.Now())
		l := w.listen(server, 1)
		go hold(l.Stream(Control))
		go hold(l.Stream(Raft))
		open := map[string]net.Conn{}
		for name, n := range map[string]node{"a": a, "b": b} {
			for _, alpn := range []string{Control, Raft} {
				c, err := w.dialer(n, 2, l).Dial(t.Context(), server.id, alpn)
				if err != nil {
					t.Fatal(err)
				}
				open[name+" "+alpn] = c
			}
		}
		synctest.Wait()
		l.CutStream(Raft, a.id)
		for name, c := range open {
			if cut := isCut(c); cut != (name == "a "+Raft) {
				t.Errorf("%s: cut %v", name, cut)
			}
		}
	})
}
