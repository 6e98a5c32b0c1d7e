package rendezvous

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"guywire/discovery"
	"guywire/discovery/attempt"
	"guywire/mesh"
)

// A hub is the internet between fake sockets: packets arrive after a while, where
// the receiver expects their sender.
type hub struct {
	mu      sync.Mutex
	port    uint16
	open    int
	sockets map[netip.AddrPort]*fakeSocket
	blocked bool
	sent    int
	asked   int
}

const flight = 10 * time.Millisecond

type fakeSocket struct {
	hub  *hub
	at   netip.AddrPort
	seen []discovery.Reflexion
	in   chan discovery.Arrival

	mu     sync.Mutex
	keys   discovery.Keys
	sent   int
	closed bool
}

func (s *fakeSocket) Port() uint16                       { return s.at.Port() }
func (s *fakeSocket) Arrivals() <-chan discovery.Arrival { return s.in }

// Sent says that each packet has ten bytes.
func (s *fakeSocket) Sent() (packets, bytes int) { return s.sent, 10 * s.sent }

func (s *fakeSocket) deliver(p discovery.CheckPacket) {
	time.AfterFunc(flight, func() {
		select {
		case s.in <- discovery.Arrival{At: time.Now(), Packet: p}:
		default:
		}
	})
}

func (s *fakeSocket) Ask(q discovery.Query) bool {
	s.sent++
	s.hub.mu.Lock()
	s.hub.asked++
	s.hub.mu.Unlock()
	for _, r := range s.seen {
		if r.Server == q.Server {
			s.deliver(discovery.CheckPacket{Kind: discovery.ServerResponse, Peer: q.Server, Tx: q.Tx, Mapped: r.Mapped})
		}
	}
	return true
}

func (s *fakeSocket) Expect(k discovery.Keys) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = k
}

func (s *fakeSocket) Send(p discovery.CheckPacket, k discovery.Keys) {
	s.sent++
	s.hub.mu.Lock()
	to := s.hub.sockets[p.Peer]
	s.hub.sent++
	blocked := s.hub.blocked
	s.hub.mu.Unlock()
	if to == nil || blocked || p.TTL > 0 {
		return
	}
	to.mu.Lock()
	known := to.keys.Local == k.Peer && (to.keys.Peer == k.Local || to.keys.Peer == (discovery.Credentials{}))
	to.mu.Unlock()
	if known {
		p.Peer, p.Via = s.at, p.Peer.Addr()
		to.deliver(p)
	}
}

func (s *fakeSocket) Close() error {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.hub.open--
		delete(s.hub.sockets, s.at)
	}
	return nil
}

type party struct {
	*Attempter
	id     mesh.NodeID
	uplink mesh.Uplink
	seen   []discovery.Reflexion
	survey discovery.Uplink
	// declared are addresses at which the operator says that the uplink is reached.
	declared []netip.Addr
	gateway  netip.Addr // lets ports in at the next number; invalid: it does not
	open     netip.Addr // where its ports are; invalid: at its first address
}

type scene struct {
	hub     *hub
	parties map[mesh.NodeID]*party
	delay   time.Duration // of the signalling, one way
}

var (
	testMesh = mesh.MeshID{1}
	servers  = []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:8686"), netip.MustParseAddrPort("198.51.100.2:8686"), netip.MustParseAddrPort("[2001:db8::1]:8686")}
)

func newScene(t *testing.T, n int) (*scene, []*party) {
	sc := &scene{hub: &hub{sockets: make(map[netip.AddrPort]*fakeSocket)}, parties: make(map[mesh.NodeID]*party), delay: 30 * time.Millisecond}
	var list []*party
	for i := range n {
		p := &party{id: mesh.NodeID{byte(i + 1)}}
		p.uplink = mesh.Uplink{Name: fmt.Sprintf("wan%d", i), Slot: uint8(i + 1), Up: true, Default4: true, Addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}), netip.MustParseAddr("10.86.0.1"),
		}}
		p.Attempter = New(Config{
			Mesh: testMesh, Self: p.id,
			Uplink:   func(name string) (mesh.Uplink, bool) { return p.uplink, name == p.uplink.Name },
			Servers:  func() []netip.AddrPort { return servers },
			Declared: func(string) []netip.Addr { return p.declared },
			Map: func(_ context.Context, _ string, port uint16) (netip.AddrPort, bool) {
				return netip.AddrPortFrom(p.gateway, port+1), p.gateway.IsValid()
			},
			Surveyed: func(string) discovery.Uplink { return p.survey },
			Key: func() (mesh.Epoch, mesh.WireGuardKey) {
				return 3, mesh.WireGuardKey(append(p.id[:], make([]byte, 24)...))
			},
			Refuse: []netip.Prefix{netip.MustParsePrefix("10.86.0.0/16")},
			Open: func(mark uint32) (Socket, error) {
				sc.hub.mu.Lock()
				defer sc.hub.mu.Unlock()
				sc.hub.port++
				sc.hub.open++
				s := &fakeSocket{
					hub: sc.hub, at: netip.AddrPortFrom(cmp.Or(p.open, p.uplink.Addrs[0]), 51800+sc.hub.port), seen: p.seen, in: make(chan discovery.Arrival, 64),
				}
				sc.hub.sockets[s.at] = s
				return s, nil
			},
			Exchange: func(ctx context.Context, peer mesh.NodeID, o discovery.Offer) (discovery.Offer, error) {
				b, err := o.MarshalBinary()
				if err != nil {
					return o, err
				}
				time.Sleep(sc.delay)
				var in discovery.Offer
				if err := in.UnmarshalBinary(b); err != nil {
					return o, err
				}
				answer, err := sc.parties[peer].Answer(ctx, p.id, in)
				time.Sleep(sc.delay)
				return answer, err
			},
		})
		sc.parties[p.id] = p
		list = append(list, p)
	}
	return sc, list
}

func (p *party) request(to *party) Request {
	return Request{Peer: to.id, LocalUplink: p.uplink, RemoteUplink: to.uplink.Name, PathRTT: 60 * time.Millisecond}
}

// end closes everything and sees that nothing is left.
func (sc *scene) end(t *testing.T) {
	for _, p := range sc.parties {
		p.Close()
	}
	if sc.hub.open != 0 {
		t.Errorf("%d sockets left open", sc.hub.open)
	}
}

func TestAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc, p := newScene(t, 2)
		defer sc.end(t)
		if err := p[0].Start(t.Context(), p[0].request(p[1])); err != nil {
			t.Fatal(err)
		}
		if err := p[0].Start(t.Context(), p[0].request(p[1])); !errors.Is(err, ErrRunning) {
			t.Errorf("second start: %v", err)
		}
		a, b := <-p[0].Results(), <-p[1].Results()
		if a.Err != nil || b.Err != nil {
			t.Fatal(a.Err, b.Err)
		}
		if a.First == b.First || a.First {
			t.Errorf("the handshake is begun by the end that lets go first: %v %v", a.First, b.First)
		}
		if a.Endpoint.Port() != b.Port || b.Endpoint.Port() != a.Port || a.Attempt != b.Attempt || !a.Initiated || b.Initiated {
			t.Errorf("results do not match:\n%+v\n%+v", a, b)
		}
		if want := (mesh.LinkID{Peer: p[0].id, Local: "wan1", Remote: "wan0"}); b.Link != want {
			t.Errorf("link %s, want %s", b.Link, want)
		}
		if b.PeerKey[0] != p[0].id[0] || b.PeerEpoch != 3 || b.Epoch != 3 {
			t.Errorf("peer key %s of epoch %d", b.PeerKey, b.PeerEpoch)
		}
		if sc.hub.open != 0 {
			t.Errorf("%d sockets open after the results", sc.hub.open)
		}
		if sum := a.Packets + b.Packets; sum != sc.hub.sent+sc.hub.asked || a.Packets == 0 || b.Packets == 0 || a.Bytes+b.Bytes != 10*sum {
			t.Errorf("they have sent %d and %d packets, %d and %d bytes; %d checks and %d queries were sent", a.Packets, b.Packets, a.Bytes, b.Bytes, sc.hub.sent, sc.hub.asked)
		}
	})
}

// A host that knows itself by another address than others reach it at is reached
// where the operator says.
func TestDeclaredAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc, p := newScene(t, 2)
		defer sc.end(t)
		outside := p[0].uplink.Addrs[0]
		p[0].uplink.Addrs = []netip.Addr{netip.MustParseAddr("192.168.7.2")}
		p[0].open = outside
		p[0].declared = []netip.Addr{outside, netip.MustParseAddr("10.86.0.9")} // the second is of the overlay
		var offered []discovery.Candidate
		exchange := p[0].cfg.Exchange
		p[0].cfg.Exchange = func(ctx context.Context, peer mesh.NodeID, o discovery.Offer) (discovery.Offer, error) {
			offered = o.Candidates
			return exchange(ctx, peer, o)
		}
		if err := p[0].Start(t.Context(), p[0].request(p[1])); err != nil {
			t.Fatal(err)
		}
		a, b := <-p[0].Results(), <-p[1].Results()
		if a.Err != nil || b.Err != nil {
			t.Fatal(a.Err, b.Err)
		}
		want := discovery.Candidate{Kind: discovery.CandidateDeclared, Addr: netip.AddrPortFrom(outside, a.Port)}
		if !slices.Contains(offered, want) || len(offered) != 2 || b.Endpoint != want.Addr || b.Class != discovery.ClassDirect {
			t.Errorf("offered %v, reached at %s as %s", offered, b.Endpoint, b.Class)
		}
	})
}

// What a gateway lets in is offered as what it is.
func TestMappedPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc, p := newScene(t, 2)
		defer sc.end(t)
		p[0].gateway = netip.MustParseAddr("198.18.7.7")
		var offered []discovery.Candidate
		exchange := p[0].cfg.Exchange
		p[0].cfg.Exchange = func(ctx context.Context, peer mesh.NodeID, o discovery.Offer) (discovery.Offer, error) {
			offered = o.Candidates
			return exchange(ctx, peer, o)
		}
		if err := p[0].Start(t.Context(), p[0].request(p[1])); err != nil {
			t.Fatal(err)
		}
		a, b := <-p[0].Results(), <-p[1].Results()
		if a.Err != nil || b.Err != nil {
			t.Fatal(a.Err, b.Err)
		}
		want := discovery.Candidate{Kind: discovery.CandidateMapped, Addr: netip.AddrPortFrom(p[0].gateway, a.Port+1)}
		if !slices.Contains(offered, want) || want.Class() != discovery.ClassTranslated {
			t.Errorf("offered %v", offered)
		}
	})
}

func TestGlare(t *testing.T) {
	for _, skew := range []time.Duration{0, 10 * time.Millisecond, -10 * time.Millisecond, 60 * time.Millisecond, -60 * time.Millisecond, 90 * time.Millisecond, -90 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			sc, p := newScene(t, 2)
			defer sc.end(t)
			first, second := p[0], p[1]
			if skew < 0 {
				first, second = second, first
			}
			if err := first.Start(t.Context(), first.request(second)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(skew.Abs())
			if err := second.Start(t.Context(), second.request(first)); err != nil && !errors.Is(err, ErrRunning) {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			var good [2]Result
			for i, party := range p {
				links := 0
				for len(party.Results()) > 0 {
					r := <-party.Results()
					switch {
					case r.Err == nil:
						links++
						good[i] = r
					case !errors.Is(r.Err, ErrYielded):
						t.Errorf("skew %s: end %d: %v", skew, i, r.Err)
					}
				}
				if links != 1 {
					t.Errorf("skew %s: end %d has %d links", skew, i, links)
				}
			}
			if good[0].Attempt != good[1].Attempt || good[0].Endpoint.Port() != good[1].Port {
				t.Errorf("skew %s: the ends have different links", skew)
			}
		})
	}
}

func TestNoPathSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc, p := newScene(t, 2)
		defer sc.end(t)
		sc.hub.blocked = true
		for i := range p {
			p[i].survey = discovery.Uplink{NAT: discovery.NATSymmetric, NAT6: discovery.NATAbsent}
		}
		if err := p[0].Start(t.Context(), p[0].request(p[1])); err != nil {
			t.Fatal(err)
		}
		for _, r := range []Result{<-p[0].Results(), <-p[1].Results()} {
			if !errors.Is(r.Err, discovery.ErrNoPath) || !strings.Contains(r.Err.Error(), "symmetric") || !r.Hopeless || r.Took > attempt.MaxTime {
				t.Errorf("%v after %s, hopeless: %v", r.Err, r.Took, r.Hopeless)
			}
		}
	})
}

// However an attempt is ended, its socket is closed and a result comes.
func TestCancel(t *testing.T) {
	for _, after := range []time.Duration{0, 20 * time.Millisecond, 70 * time.Millisecond, 130 * time.Millisecond, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			sc, p := newScene(t, 2)
			sc.hub.blocked = true
			ctx, cancel := context.WithCancel(t.Context())
			if err := p[0].Start(ctx, p[0].request(p[1])); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after)
			cancel()
			if r := <-p[0].Results(); !errors.Is(r.Err, context.Canceled) {
				t.Errorf("cancelled after %s: %v", after, r.Err)
			}
			time.Sleep(time.Second)
			sc.end(t)
			if err := p[0].Start(t.Context(), p[0].request(p[1])); !errors.Is(err, ErrClosed) {
				t.Errorf("start after Close: %v", err)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc, p := newScene(t, 2)
		defer sc.end(t)
		sc.hub.blocked = true
		begun := 0
		for i := range 2 * maxStarted {
			req := p[0].request(p[1])
			req.RemoteUplink = fmt.Sprintf("wan%d", 100+i)
			switch err := p[0].Start(t.Context(), req); {
			case err == nil:
				begun++
			case !errors.Is(err, ErrBusy):
				t.Fatal(err)
			}
		}
		if begun != maxStarted {
			t.Errorf("%d attempts begun", begun)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		sc, p := newScene(t, 2)
		defer sc.end(t)
		p[1].seen = []discovery.Reflexion{{Server: servers[0], Mapped: netip.MustParseAddrPort("192.0.2.1:1000")}, {Server: servers[1], Mapped: netip.MustParseAddrPort("192.0.2.1:1000")}}
		answered := 0
		for range 3 * peerBurst {
			_, err := p[1].Answer(t.Context(), p[0].id, offer(p[0], p[1]))
			if err == nil {
				answered++
			} else if !errors.Is(err, ErrBusy) {
				t.Fatal(err)
			}
		}
		if answered < peerBurst || answered > peerBurst+3 {
			t.Errorf("%d offers of one peer answered", answered)
		}
		if sc.hub.open > 1 {
			t.Errorf("%d sockets open for one link", sc.hub.open)
		}
	})
}

func offer(from, to *party) discovery.Offer {
	return discovery.Offer{
		Mesh: testMesh, From: from.id, To: to.id, FromUplink: from.uplink.Name, ToUplink: to.uplink.Name,
		Attempt: newAttemptID(), Credentials: discovery.Credentials{Ufrag: "abcd", Password: strings.Repeat("p", 22)},
		Epoch: 1, Key: mesh.WireGuardKey{1}, Expires: time.Now().Add(time.Minute).Truncate(time.Second),
	}
}

// TestReplayedOffer: who carries offers cannot use one twice, and not to end another
// attempt.
func TestReplayedOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc, p := newScene(t, 2)
		defer sc.end(t)
		o := offer(p[0], p[1])
		if _, err := p[1].Answer(t.Context(), p[0].id, o); err != nil {
			t.Fatal(err)
		}
		time.Sleep(attempt.MaxTime)
		if len(p[1].Results()) != 1 {
			t.Fatal("the attempt is not over")
		}
		<-p[1].Results()
		replay := func() {
			t.Helper()
			if _, err := p[1].Answer(t.Context(), p[0].id, o); !errors.Is(err, ErrReplayed) {
				t.Errorf("a replay: %v", err)
			}
		}
		replay()
		if err := p[1].Start(t.Context(), p[1].request(p[0])); err != nil {
			t.Fatal(err)
		}
		replay()
		time.Sleep(attempt.MaxTime)
		for len(p[1].Results()) > 0 {
			if r := <-p[1].Results(); errors.Is(r.Err, ErrYielded) {
				t.Error("a replay ended another attempt")
			}
		}
		// However many come between, it is remembered until it has expired.
		var a accepted
		a.add(discovery.AttemptID{1}, time.Now())
		for i := range maxAccepted/2 - 1 {
			a.add(discovery.AttemptID{2, byte(i), byte(i >> 8)}, time.Now())
		}
		time.Sleep(discovery.MaxOfferUse)
		a.add(discovery.AttemptID{3}, time.Now())
		if !a.has(discovery.AttemptID{1}) {
			t.Error("forgotten too early")
		}
		for i := range 3 * maxAccepted {
			a.add(discovery.AttemptID{4, byte(i), byte(i >> 8)}, time.Now())
		}
		if len(a.young)+len(a.old) > maxAccepted {
			t.Errorf("%d and %d are remembered", len(a.young), len(a.old))
		}
	})
}

func TestAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc, p := newScene(t, 2)
		defer sc.end(t)
		o := offer(p[0], p[1])
		first, err := p[1].Answer(t.Context(), p[0].id, o)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := p[1].Answer(t.Context(), p[0].id, o); err != nil || again.Credentials != first.Credentials {
			t.Errorf("the same offer again is answered otherwise: %v", err)
		}
		for _, c := range first.Candidates {
			if c.Addr.Addr() != p[1].uplink.Addrs[0] {
				t.Errorf("candidate %s in the overlay is offered", c.Addr)
			}
		}
		if _, err := p[1].Answer(t.Context(), mesh.NodeID{9}, o); !errors.Is(err, discovery.ErrForeign) {
			t.Errorf("offer of somebody else: %v", err)
		}
		late := o
		late.Expires = time.Now().Add(-time.Hour).Truncate(time.Second)
		if _, err := p[1].Answer(t.Context(), p[0].id, late); !errors.Is(err, discovery.ErrExpired) {
			t.Errorf("late offer: %v", err)
		}
		unknown := o
		unknown.ToUplink = "lte"
		if _, err := p[1].Answer(t.Context(), p[0].id, unknown); !errors.Is(err, ErrUplink) {
			t.Errorf("unknown uplink: %v", err)
		}
	})
}

func TestSurvey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc, p := newScene(t, 1)
		defer sc.end(t)
		p[0].seen = []discovery.Reflexion{
			{Server: servers[0], Mapped: netip.MustParseAddrPort("192.0.2.1:1000")},
			{Server: servers[1], Mapped: netip.MustParseAddrPort("192.0.2.1:1000")},
		}
		p[0].uplink.Default6 = false
		found, err := p[0].Survey(t.Context(), p[0].uplink)
		f := found.Uplink
		if err != nil || len(found.Asked) < 2 || len(found.Answers) != 2 || f.NAT != discovery.NATEasyPortChanged || f.NAT6 != discovery.NATAbsent || len(f.Reflexive) != 1 || len(f.Addrs) != 1 || f.Name != "wan0" {
			t.Errorf("%+v, %v", f, err)
		}
		p[0].uplink.Up = false
		if _, err := p[0].Survey(t.Context(), p[0].uplink); !errors.Is(err, ErrUplink) {
			t.Errorf("uplink down: %v", err)
		}
	})
}

// Servers that answer are asked again, the nearest first; one that does not is
// left to chance. A single one is asked at two ports.
func TestRanking(t *testing.T) {
	var r ranking
	list := []netip.AddrPort{servers[0], servers[1], netip.MustParseAddrPort("198.51.100.3:8686"), netip.MustParseAddrPort("198.51.100.4:8686")}
	now := time.Unix(1000, 0)
	g := discovery.NewGathering(now, list, 4, [32]byte{1})
	tx := map[netip.AddrPort]discovery.Tx{}
	for _, q := range g.Tick(now).Ask {
		tx[q.Server] = q.Tx
	}
	for i, after := range []time.Duration{0, 30, 10, 20} { // the first is dead
		if s := list[i]; after > 0 {
			g.Answered(now.Add(after*time.Millisecond), s, tx[s], netip.MustParseAddrPort("192.0.2.1:1000"))
		}
	}
	r.note(g)
	for range 20 {
		if got := r.choose(list); len(got) != 3 || got[0] != list[2] || got[1] != list[3] {
			t.Fatalf("chosen: %v", got)
		}
	}
	one := servers[0]
	if got := r.choose([]netip.AddrPort{one}); len(got) != 2 || got[0] != one || got[1].Addr() != one.Addr() || got[1].Port() == one.Port() {
		t.Errorf("of one server: %v", got)
	}
	if got := r.choose(nil); len(got) != 0 {
		t.Errorf("of none: %v", got)
	}
}
