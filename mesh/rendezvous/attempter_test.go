package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"guywire/discovery"
	"guywire/mesh"
)

// A hub is the internet between fake sockets: a check succeeds when both ends
// of one pair of credentials check at the same time.
type hub struct {
	t       *testing.T
	mu      sync.Mutex
	port    uint16
	open    int
	checks  map[string]chan *fakeSocket
	blocked bool
}

type fakeSocket struct {
	hub    *hub
	host   netip.Addr
	seen   []discovery.Reflexion
	port   uint16
	mark   uint32
	closed bool
}

func (s *fakeSocket) Port() uint16 { return s.port }

func (s *fakeSocket) Gather(ctx context.Context, servers []netip.AddrPort) []discovery.Reflexion {
	select {
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
	}
	return s.seen
}

func (s *fakeSocket) Check(ctx context.Context, plan discovery.CheckPlan) (discovery.Proof, error) {
	key := plan.Local.Ufrag + plan.Peer.Ufrag
	if !plan.Controlling {
		key = plan.Peer.Ufrag + plan.Local.Ufrag
	}
	s.hub.mu.Lock()
	ch := s.hub.checks[key]
	if ch == nil {
		ch = make(chan *fakeSocket)
		s.hub.checks[key] = ch
	}
	blocked := s.hub.blocked
	s.hub.mu.Unlock()
	if blocked {
		ch = nil
	}
	timeout := time.After(time.Until(plan.Deadline))
	var other *fakeSocket
	if plan.Controlling {
		select {
		case ch <- s:
			select {
			case other = <-ch:
			case <-ctx.Done():
				return discovery.Proof{}, ctx.Err()
			}
		case <-ctx.Done():
			return discovery.Proof{}, ctx.Err()
		case <-timeout:
			return discovery.Proof{}, discovery.ErrNoPath
		}
	} else {
		select {
		case other = <-ch:
			ch <- s
		case <-ctx.Done():
			return discovery.Proof{}, ctx.Err()
		case <-timeout:
			return discovery.Proof{}, discovery.ErrNoPath
		}
	}
	return discovery.Proof{Remote: netip.AddrPortFrom(other.host, other.port), RTT: time.Millisecond, Confirmed: true}, nil
}

func (s *fakeSocket) Close() error {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.hub.open--
	}
	return nil
}

type party struct {
	*Attempter
	id     mesh.NodeID
	uplink mesh.Uplink
	seen   []discovery.Reflexion
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
	sc := &scene{hub: &hub{t: t, checks: make(map[string]chan *fakeSocket)}, parties: make(map[mesh.NodeID]*party), delay: 30 * time.Millisecond}
	var list []*party
	for i := range n {
		p := &party{id: mesh.NodeID{byte(i + 1)}}
		p.uplink = mesh.Uplink{Name: fmt.Sprintf("wan%d", i), Slot: uint8(i + 1), Up: true, Default4: true, Addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}), netip.MustParseAddr("10.86.0.1"),
		}}
		p.Attempter = New(Config{
			Mesh: testMesh, Self: p.id,
			Uplink:  func(name string) (mesh.Uplink, bool) { return p.uplink, name == p.uplink.Name },
			Servers: func() []netip.AddrPort { return servers },
			Key: func() (mesh.Epoch, mesh.WireGuardKey) {
				return 3, mesh.WireGuardKey(append(p.id[:], make([]byte, 24)...))
			},
			Refuse: []netip.Prefix{netip.MustParsePrefix("10.86.0.0/16")},
			Open: func(mark uint32) (Socket, error) {
				sc.hub.mu.Lock()
				defer sc.hub.mu.Unlock()
				sc.hub.port++
				sc.hub.open++
				return &fakeSocket{hub: sc.hub, host: p.uplink.Addrs[0], port: 51800 + sc.hub.port, mark: mark, seen: p.seen}, nil
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
			p[i].seen = []discovery.Reflexion{
				{Server: servers[0], Mapped: netip.MustParseAddrPort("192.0.2.1:1000")},
				{Server: servers[1], Mapped: netip.MustParseAddrPort("192.0.2.1:1001")},
			}
		}
		if err := p[0].Start(t.Context(), p[0].request(p[1])); err != nil {
			t.Fatal(err)
		}
		for _, r := range []Result{<-p[0].Results(), <-p[1].Results()} {
			if !errors.Is(r.Err, discovery.ErrNoPath) || !strings.Contains(r.Err.Error(), "symmetric") || r.Took > MaxAttempt {
				t.Errorf("%v after %s", r.Err, r.Took)
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
		f, err := p[0].Survey(t.Context(), p[0].uplink)
		if err != nil || f.NAT != discovery.NATEasyPortChanged || len(f.Reflexive) != 1 || len(f.Addrs) != 1 || f.Name != "wan0" {
			t.Errorf("%+v, %v", f, err)
		}
		p[0].uplink.Up = false
		if _, err := p[0].Survey(t.Context(), p[0].uplink); !errors.Is(err, ErrUplink) {
			t.Errorf("uplink down: %v", err)
		}
	})
}
