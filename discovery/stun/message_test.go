package stun

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v3"

	"guywire/discovery"
)

func anyKey(key string) func(message) []byte { return func(message) []byte { return []byte(key) } }

func TestMessageRoundTrip(t *testing.T) {
	for _, m := range []message{
		{class: stun.ClassRequest, tx: discovery.Tx{1}, padded: true},
		{class: stun.ClassRequest, tx: discovery.Tx{2}, username: "abcd:efgh", check: true, controlling: true, nominate: true},
		{class: stun.ClassIndication, tx: discovery.Tx{3}, username: "abcd:efgh", check: true},
		{class: stun.ClassSuccessResponse, tx: discovery.Tx{4}, mapped: netip.MustParseAddrPort("203.0.113.5:40001")},
		{class: stun.ClassSuccessResponse, tx: discovery.Tx{5}, mapped: netip.MustParseAddrPort("[2001:db8::5]:40001")},
	} {
		b := m.encode([]byte("secret"))
		if got, err := decode(b, anyKey("secret")); err != nil || got != m {
			t.Errorf("%+v reads as %+v (%v)", m, got, err)
		}
		if _, err := decode(b, anyKey("other")); err == nil {
			t.Errorf("%+v passes with another key", m)
		}
		for i := range b {
			broken := bytes.Clone(b)
			broken[i] ^= 1
			if _, err := decode(broken, anyKey("secret")); err == nil {
				t.Errorf("%+v passes with byte %d changed", m, i)
			}
		}
	}
}

// Our own XOR-MAPPED-ADDRESS is what pion reads, and the other way round.
func TestXORAddressAgreesWithPion(t *testing.T) {
	for _, addr := range []string{"203.0.113.5:40001", "[2001:db8::5]:1"} {
		want := netip.MustParseAddrPort(addr)
		var m stun.Message
		b := message{class: stun.ClassSuccessResponse, tx: discovery.Tx{7, 8, 9}, mapped: want}.encode([]byte("k"))
		var x stun.XORMappedAddress
		if err := stun.Decode(b, &m); err != nil {
			t.Fatal(err)
		}
		if err := x.GetFrom(&m); err != nil || x.String() != want.String() {
			t.Errorf("pion reads %s (%v), want %s", x, err, want)
		}
	}
}

// What stands behind the integrity is not protected by it.
func TestNothingBehindIntegrity(t *testing.T) {
	raw := stun.New()
	raw.SetType(stun.BindingRequest)
	raw.WriteHeader()
	_ = stun.MessageIntegrity("secret").AddTo(raw)
	raw.Add(stun.AttrUseCandidate, nil)
	_ = stun.Fingerprint.AddTo(raw)
	if m, err := decode(raw.Raw, anyKey("secret")); err == nil {
		t.Errorf("accepted as %+v", m)
	}
}

func TestServerAnswers(t *testing.T) {
	s := &Server{keys: func() [][]byte { return [][]byte{[]byte("newer"), []byte("secret")} }}
	now := time.Unix(1000, 0)
	for _, from := range []string{"203.0.113.5:40001", "[2001:db8::5]:40001"} {
		request := message{class: stun.ClassRequest, tx: discovery.Tx{1}, padded: true}.encode(s.keys()[1])
		answer, _ := s.answer(now, request, netip.MustParseAddrPort(from))
		m, err := decode(answer, anyKey("secret"))
		if err != nil || m.mapped.String() != from || m.tx != (discovery.Tx{1}) {
			t.Errorf("%s is answered %+v (%v)", from, m, err)
		}
		if len(answer) > len(request) {
			t.Errorf("%d bytes answer %d", len(answer), len(request))
		}
	}
	from := netip.MustParseAddrPort("203.0.113.6:1")
	for name, b := range map[string][]byte{
		"stranger":  message{class: stun.ClassRequest, padded: true}.encode([]byte("guess")),
		"bare":      stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw,
		"short":     message{class: stun.ClassRequest}.encode(s.keys()[1]),
		"response":  message{class: stun.ClassSuccessResponse, mapped: from, padded: true}.encode(s.keys()[1]),
		"check":     message{class: stun.ClassRequest, check: true, padded: true}.encode(s.keys()[1]),
		"WireGuard": append([]byte{1, 0, 0, 0}, make([]byte, 144)...),
	} {
		if a, _ := s.answer(now, b, from); a != nil {
			t.Errorf("%s: answered with %d bytes", name, len(a))
		}
	}
}

func TestServerLimits(t *testing.T) {
	s := &Server{keys: func() [][]byte { return [][]byte{[]byte("newer"), []byte("secret")} }}
	now := time.Unix(1000, 0)
	request := message{class: stun.ClassRequest, tx: discovery.Tx{1}, padded: true}.encode(s.keys()[1])
	count := func(n int, from func(i int) netip.AddrPort) (answered int) {
		for i := range n {
			if a, _ := s.answer(now, request, from(i)); a != nil {
				answered++
			}
		}
		return answered
	}
	one := func(int) netip.AddrPort { return netip.MustParseAddrPort("203.0.113.5:1") }
	if n := count(1000, one); n != sourceBurst {
		t.Errorf("one source got %d answers at once", n)
	}
	now = now.Add(time.Second)
	if n := count(1000, one); n != sourceRate {
		t.Errorf("one source got %d answers a second later", n)
	}
	many := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, byte(i >> 16), byte(i >> 8), byte(i), 15: byte(i)}), 1)
	}
	if n := count(20000, many); n > globalBurst {
		t.Errorf("%d answers at once", n)
	}
	if n := len(s.limits.young) + len(s.limits.old); n > 2*sourcesLimit {
		t.Errorf("%d sources remembered", n)
	}
	same64 := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 1, 14: byte(i >> 8), 15: byte(i)}), 1)
	}
	now = now.Add(time.Minute)
	if n := count(1000, same64); n != sourceBurst {
		t.Errorf("one /64 got %d answers at once", n)
	}
}

func BenchmarkServerAnswer(b *testing.B) {
	s := &Server{keys: func() [][]byte { return [][]byte{[]byte("newer"), []byte("secret")} }}
	request := message{class: stun.ClassRequest, tx: discovery.Tx{1}, padded: true}.encode(s.keys()[1])
	from, now := netip.MustParseAddrPort("203.0.113.5:1"), time.Unix(1000, 0)
	for b.Loop() {
		now = now.Add(time.Second)
		s.answer(now, request, from)
	}
}

func FuzzDecode(f *testing.F) {
	key := []byte("secret")
	f.Add(message{class: stun.ClassRequest, tx: discovery.Tx{1}, padded: true}.encode(key))
	f.Add(message{class: stun.ClassRequest, tx: discovery.Tx{1}, padded: true, reply: 40001}.encode(key))
	f.Add(message{class: stun.ClassRequest, username: "abcd:efgh", check: true, nominate: true}.encode(key))
	f.Add(message{class: stun.ClassSuccessResponse, mapped: netip.MustParseAddrPort("[2001:db8::5]:1")}.encode(key))
	f.Add([]byte{1, 1, 0, 4, 0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0})
	s := &Server{keys: func() [][]byte { return [][]byte{key} }}
	keys := discovery.Keys{Local: discovery.Credentials{Ufrag: "abcd", Password: "secret"}, Peer: discovery.Credentials{Ufrag: "efgh", Password: "secret"}}
	from := netip.MustParseAddrPort("203.0.113.5:1")
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		m, err := decode(b, anyKey("secret"))
		if err == nil {
			again, err := decode(m.encode(key), anyKey("secret"))
			if err != nil || again != m {
				t.Fatalf("%+v reads again as %+v (%v)", m, again, err)
			}
		}
		if answer, to := s.answer(time.Unix(1000, 0), b, from); len(answer) > len(b) || answer != nil && to.Addr() != from.Addr() {
			t.Fatalf("%d bytes to %s answer %d", len(answer), to, len(b))
		}
		decodeCheck(b, keys)
		// The parser of the library, which strangers reach first.
		var raw stun.Message
		if stun.Decode(b, &raw) == nil {
			v, _ := raw.Get(stun.AttrXORMappedAddress)
			ours := parseXORAddr(v, raw.TransactionID)
			var x stun.XORMappedAddress
			if ours.IsValid() && (x.GetFrom(&raw) != nil || x.Port != int(ours.Port())) {
				t.Fatalf("ours %s, pion's %s", ours, x)
			}
		}
		if !bytes.Equal(before, b) {
			t.Fatal("the message was changed")
		}
	})
}

// An answer may go to another port of the address that asked, and nowhere else.
func TestResponsePort(t *testing.T) {
	s := &Server{keys: testKeys}
	from := netip.MustParseAddrPort("203.0.113.5:40000")
	for _, c := range []struct {
		reply uint16
		to    string
	}{{0, "203.0.113.5:40000"}, {40001, "203.0.113.5:40001"}, {65535, "203.0.113.5:65535"}, {1024, "203.0.113.5:1024"}, {1023, ""}, {53, ""}} {
		request := message{class: stun.ClassRequest, tx: discovery.Tx{1}, padded: true, reply: c.reply}.encode(testKey)
		answer, to := s.answer(time.Unix(1000, 0), request, from)
		if c.to == "" {
			if answer != nil {
				t.Errorf("port %d: answered to %s", c.reply, to)
			}
			continue
		}
		m, err := decode(answer, anyKey(string(testKey)))
		if err != nil || to != netip.MustParseAddrPort(c.to) || m.mapped != from || len(answer) > len(request) {
			t.Errorf("port %d: %d bytes to %s, %+v (%v)", c.reply, len(answer), to, m, err)
		}
	}
}
