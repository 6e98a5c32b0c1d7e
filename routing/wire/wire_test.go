package wire

import (
	"bytes"
	"crypto/ed25519"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"guywire/mesh"
)

func key(seed byte) (ed25519.PrivateKey, mesh.IdentityKey) {
	k := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32))
	return k, mesh.IdentityKey(k.Public().(ed25519.PublicKey))
}

func sample(id mesh.NodeID) LSA {
	return LSA{
		Mesh: mesh.MeshID{1}, Origin: id, Epoch: 7, Seq: 3, NoTransit: true,
		Adjacencies: []Adjacency{{mesh.NodeID{9}, 500}, {mesh.NodeID{2}, 1200}},
		Prefixes:    []netip.Prefix{netip.MustParsePrefix("2001:db8:7::/48"), netip.MustParsePrefix("10.7.0.0/24")},
	}
}

func messages() []Message {
	priv, pub := key(1)
	lsa := Sign(sample(pub.NodeID()), func(b []byte) []byte { return ed25519.Sign(priv, b) })
	return []Message{
		{Incarnation: 1, Body: Probe{Seq: 4, Sent: -5, Interval: 50_000, Flags: Hears | Accepts, EchoSeq: 3, EchoSent: 9, EchoDelay: 17, Loss: 655, Digest: 99}},
		{Incarnation: 2, Body: Flood{LSAs: []SignedLSA{lsa, lsa}}},
		{Incarnation: 3, Body: Ack{Keys: []LSAKey{{pub.NodeID(), 7, 3}}}},
		{Incarnation: 4, Body: Goodbye{}},
	}
}

func TestRoundTrip(t *testing.T) {
	for _, m := range messages() {
		got, err := Decode(Encode(m))
		if err != nil {
			t.Fatalf("%T: %v", m.Body, err)
		}
		if diff := cmp.Diff(m, got); diff != "" {
			t.Errorf("%T (-want +got):\n%s", m.Body, diff)
		}
	}
}

func TestSignatureCoversEverything(t *testing.T) {
	priv, pub := key(1)
	_, other := key(2)
	s := Sign(sample(pub.NodeID()), func(b []byte) []byte { return ed25519.Sign(priv, b) })
	if !s.Verify(pub) || s.Verify(other) {
		t.Fatal("the signature must verify with the origin's key only")
	}
	for i := range s.Body {
		forged := SignedLSA{Body: bytes.Clone(s.Body), Signature: s.Signature}
		forged.Body[i] ^= 1
		if forged.Verify(pub) {
			t.Fatalf("byte %d is not signed", i)
		}
	}
}

func TestLSARefusesOtherEncodings(t *testing.T) {
	priv, pub := key(1)
	sign := func(b []byte) []byte { return ed25519.Sign(priv, b) }
	good := sample(pub.NodeID())
	sorted, err := Sign(good, sign).LSA()
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*LSA){
		"unsorted adjacencies": func(l *LSA) { l.Adjacencies[0], l.Adjacencies[1] = l.Adjacencies[1], l.Adjacencies[0] },
		"duplicate adjacency":  func(l *LSA) { l.Adjacencies[1] = l.Adjacencies[0] },
		"adjacency to itself":  func(l *LSA) { l.Adjacencies[0].Peer = l.Origin },
		"zero cost":            func(l *LSA) { l.Adjacencies[0].Cost = 0 },
		"infinite cost":        func(l *LSA) { l.Adjacencies[0].Cost = mesh.Infinite },
		"unsorted prefixes":    func(l *LSA) { l.Prefixes[0], l.Prefixes[1] = l.Prefixes[1], l.Prefixes[0] },
		"unmasked prefix":      func(l *LSA) { l.Prefixes[0] = netip.MustParsePrefix("10.7.0.1/24") },
		"mapped prefix":        func(l *LSA) { l.Prefixes[1] = netip.MustParsePrefix("::ffff:10.0.0.0/104") },
		"too many prefixes":    func(l *LSA) { l.Prefixes = make([]netip.Prefix, MaxPrefixes+1) },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			l := sorted
			l.Adjacencies = append([]Adjacency(nil), sorted.Adjacencies...)
			l.Prefixes = append([]netip.Prefix(nil), sorted.Prefixes...)
			spoil(&l)
			for i, p := range l.Prefixes {
				if !p.IsValid() {
					l.Prefixes[i] = netip.MustParsePrefix("10.0.0.0/8")
				}
			}
			if _, err := (SignedLSA{Body: appendLSA(nil, l)}).LSA(); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range messages() {
		f.Add(Encode(m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		if again := Encode(m); !bytes.Equal(again, b) {
			t.Fatalf("a second encoding of %+v:\n%x\n%x", m, b, again)
		}
	})
}

func FuzzLSA(f *testing.F) {
	priv, pub := key(1)
	f.Add(Sign(sample(pub.NodeID()), func(b []byte) []byte { return ed25519.Sign(priv, b) }).Body)
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := SignedLSA{Body: b}.LSA()
		if err != nil {
			return
		}
		if again := appendLSA(nil, l); !bytes.Equal(again, b) {
			t.Fatalf("a second encoding of %+v", l)
		}
		back, err := SignedLSA{Body: appendLSA(nil, l)}.LSA()
		if diff := cmp.Diff(l, back, cmpopts.EquateComparable(netip.Prefix{})); err != nil || diff != "" {
			t.Fatalf("%v %s", err, diff)
		}
		if k, ok := (SignedLSA{Body: b}).Key(); !ok || k != l.Key() {
			t.Fatal("the short look at the key differs from the whole")
		}
	})
}
