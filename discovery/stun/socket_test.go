package stun

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"guywire/discovery"
)

var (
	testKey = []byte("members only")
	left    = discovery.Credentials{Ufrag: "left", Password: "leftleftleftleftleftleft"}
	right   = discovery.Credentials{Ufrag: "rigt", Password: "rightrightrightrightright"}

	leftKeys  = discovery.Keys{Controlling: true, Local: left, Peer: right}
	rightKeys = discovery.Keys{Local: right, Peer: left}
)

func testKeys() [][]byte { return [][]byte{[]byte("members to come"), testKey} }

func openTest(t *testing.T) *Socket {
	t.Helper()
	s, err := Open(OpenConfig{First: 20000, Last: 29999, Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func at(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}

func startServer(t *testing.T, addrs ...string) []netip.AddrPort {
	t.Helper()
	var bind []netip.AddrPort
	for _, a := range addrs {
		bind = append(bind, netip.MustParseAddrPort(a))
	}
	s, err := Listen(bind, testKeys)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s.Addrs()
}

func TestGather(t *testing.T) {
	servers := startServer(t, "127.0.0.1:0", "127.0.0.2:0", "[::1]:0")
	s := openTest(t)
	silent := at("127.0.0.3", servers[0].Port())
	answers := gather(s, append(servers, silent))
	if len(answers) != 3 {
		t.Fatalf("answers: %v", answers)
	}
	for _, a := range answers {
		if a.Mapped.Port() != s.Port() || !a.Mapped.Addr().IsLoopback() || a.RTT <= 0 {
			t.Errorf("%+v", a)
		}
	}
	if nat := discovery.Classify([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}, s.Port(), servers, answers); nat != discovery.NATNone {
		t.Errorf("NAT: %s", nat)
	}
}

// A server on the wildcard answers from the address that was asked: the
// client accepts no other.
func TestWildcardServer(t *testing.T) {
	port := startServer(t, "0.0.0.0:0")[0].Port()
	s := openTest(t)
	if answers := gather(s, []netip.AddrPort{at("127.0.0.7", port)}); len(answers) != 1 {
		t.Errorf("answers: %v", answers)
	}
}

func TestPortInUse(t *testing.T) {
	s := openTest(t)
	if _, err := Open(OpenConfig{First: s.Port(), Last: s.Port()}); !errors.Is(err, ErrPortInUse) {
		t.Errorf("second socket: %v", err)
	}
	// Only one family taken is as bad: WireGuard wants both.
	if err := s.four.Close(); err != nil {
		t.Fatal(err)
	}
	if s.six.UDPConn != nil {
		if _, err := Open(OpenConfig{First: s.Port(), Last: s.Port()}); !errors.Is(err, ErrPortInUse) {
			t.Errorf("socket beside an IPv6 one: %v", err)
		}
	}
	_ = s.Close()
	again, err := Open(OpenConfig{First: s.Port(), Last: s.Port()})
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	_ = again.Close()
}

func plans(a, b *Socket, start time.Time) (discovery.CheckPlan, discovery.CheckPlan) {
	pa := discovery.CheckPlan{
		Controlling: true, Seed: [32]byte{1}, Start: start, Deadline: start.Add(discovery.CheckTime),
		Remote: []discovery.Candidate{{Kind: discovery.CandidateHost, Addr: at("127.0.0.1", b.Port())}, {Kind: discovery.CandidateReflexive, Addr: at("127.0.0.9", 9)}},
	}
	pb := pa
	pb.Controlling, pb.Seed = false, [32]byte{2}
	pb.Remote = []discovery.Candidate{{Kind: discovery.CandidateHost, Addr: at("127.0.0.1", a.Port())}}
	return pa, pb
}

func TestCheckPair(t *testing.T) {
	a, b := openTest(t), openTest(t)
	pa, pb := plans(a, b, time.Now())
	pb.Start = pa.Start.Add(300 * time.Millisecond)
	var wg sync.WaitGroup
	for _, end := range []struct {
		self, other *Socket
		plan        discovery.CheckPlan
		keys        discovery.Keys
	}{{a, b, pa, leftKeys}, {b, a, pb, rightKeys}} {
		wg.Go(func() {
			p, err := check(t.Context(), end.self, end.plan, end.keys)
			if err != nil || p.Remote != at("127.0.0.1", end.other.Port()) || !p.Local.IsLoopback() {
				t.Errorf("%+v, %v", p, err)
			}
			if err := end.self.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// Another attempt's credentials, or one's own packets, prove nothing.
func TestCheckRefusesStrangers(t *testing.T) {
	a, b := openTest(t), openTest(t)
	pa, pb := plans(a, b, time.Now())
	pa.Deadline = pa.Start.Add(700 * time.Millisecond)
	pb.Deadline = pa.Deadline
	strange := rightKeys
	strange.Peer.Password = "somethingelseentirely0000"
	strange.Local.Password = "somethingelseentirely1111"
	var wg sync.WaitGroup
	wg.Go(func() {
		if p, err := check(t.Context(), a, pa, leftKeys); !errors.Is(err, discovery.ErrNoPath) {
			t.Errorf("%+v, %v", p, err)
		}
	})
	wg.Go(func() {
		if p, err := check(t.Context(), b, pb, strange); !errors.Is(err, discovery.ErrNoPath) {
			t.Errorf("%+v, %v", p, err)
		}
	})
	wg.Wait()
}

// The other end's requests are known before its offer is, by our own credentials;
// its answers are not.
func TestEarlyRequests(t *testing.T) {
	a, b := openTest(t), openTest(t)
	a.Expect(discovery.Keys{Controlling: true, Local: left})
	b.Send(discovery.CheckPacket{Kind: discovery.CheckResponse, Peer: at("127.0.0.1", a.Port()), Tx: discovery.Tx{1}, Mapped: at("127.0.0.1", 9)}, rightKeys)
	b.Send(discovery.CheckPacket{Kind: discovery.CheckRequest, Peer: at("127.0.0.1", a.Port()), Tx: discovery.Tx{2}}, rightKeys)
	select {
	case got := <-a.Arrivals():
		if packets, bytes := b.Sent(); packets != 2 || bytes < 2*20 {
			t.Errorf("%d packets with %d bytes sent", packets, bytes)
		}
		if got.Packet.Kind != discovery.CheckRequest || got.Packet.Tx != (discovery.Tx{2}) || got.Packet.Peer != at("127.0.0.1", b.Port()) {
			t.Errorf("%+v", got)
		}
	case <-time.After(30 * time.Second):
		t.Error("nothing arrives")
	}
}

// One socket asks, the other one is answered.
func TestAnswerToAnotherPort(t *testing.T) {
	server := startServer(t, "127.0.0.1:0")[0]
	first, second := openTest(t), openTest(t)
	tx := discovery.Tx{7}
	if !second.Ask(discovery.Query{Server: server, Tx: tx, Reply: first.Port()}) {
		t.Fatal("cannot ask")
	}
	select {
	case a := <-first.Arrivals():
		if a.Packet.Tx != tx || a.Packet.Peer != server || a.Packet.Mapped.Port() != second.Port() {
			t.Errorf("%+v", a)
		}
	case a := <-second.Arrivals():
		t.Errorf("the one that asked got %+v", a)
	case <-time.After(30 * time.Second):
		t.Error("nothing arrives")
	}
}
