package discovery

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"guywire/mesh"
)

var testMesh = mesh.MeshID{1, 2, 3, 4, 5, 6, 7, 8}

type identity struct {
	key  mesh.IdentityKey
	priv ed25519.PrivateKey
}

func newIdentity(seed byte) identity {
	priv := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	return identity{key: mesh.IdentityKey(priv.Public().(ed25519.PublicKey)), priv: priv}
}

func (i identity) sign(message []byte) []byte { return ed25519.Sign(i.priv, message) }

func (i identity) facts(serial uint64) Facts {
	return Facts{
		Mesh: testMesh, Node: i.key.NodeID(), Serial: serial,
		Uplinks: []Uplink{
			{
				Name: "eth0", Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("2001:db8::2")}, Reflexive: []netip.AddrPort{ap("203.0.113.5:40001")}, NAT: NATEasyPortChanged, NAT6: NATNone,
				Forwarded: []netip.Addr{netip.MustParseAddr("203.0.113.6")}, Lifetime: 55, Lifetime6: LifetimeEndless,
			},
			{Name: "lte", NAT: NATSymmetric, Metered: true},
		},
		Control: []netip.AddrPort{ap("203.0.113.5:8686")},
		STUN:    []netip.AddrPort{ap("[2001:db8::2]:8686")},
		Version: "v1.2.3",
	}
}

func TestFactsRoundTrip(t *testing.T) {
	id := newIdentity(1)
	want := id.facts(77)
	s, err := want.Sign(id.sign)
	if err != nil {
		t.Fatal(err)
	}
	twin, rest, err := CutSigned(AppendSigned(AppendSigned(nil, s), s))
	if err != nil || !twin.Equal(s) || len(rest) != 2+len(s.Body)+len(s.Signature) {
		t.Fatalf("cut: %v, %d bytes left", err, len(rest))
	}
	got, err := twin.Open(id.key)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Error(diff)
	}
}

// factsV2 are the facts of the version before with one uplink.
var factsV2 = slices.Concat(
	[]byte{factsBefore}, testMesh[:], []byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte{0, 0, 0, 0, 0, 0, 0, 9}, // serial
	[]byte{1, 4}, []byte("eth0"), []byte{byte(NATEasy), 1, 1, 4, 10, 0, 0, 2}, // one metered uplink with one address
	[]byte{1, 4, 203, 0, 113, 5, 0x9c, 0x41}, // seen there
	[]byte{0, 0, 2, 'v', '1', 0, 0},
)

// Facts that a node said before it was upgraded, and those of one that was not, are read.
func TestFactsOfTheVersionBefore(t *testing.T) {
	got, err := DecodeFacts(factsV2)
	if err != nil {
		t.Fatal(err)
	}
	want := Facts{Mesh: testMesh, Node: mesh.NodeID{1, 2, 3, 4, 5, 6, 7, 8}, Serial: 9, Version: "v1", Uplinks: []Uplink{{
		Name: "eth0", NAT: NATEasy, Metered: true, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, Reflexive: []netip.AddrPort{ap("203.0.113.5:40001")},
	}}}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Error(diff)
	}
}

func TestFactsRefused(t *testing.T) {
	id := newIdentity(1)
	for name, change := range map[string]func(*Facts){
		"loopback":        func(f *Facts) { f.Control = []netip.AddrPort{ap("127.0.0.1:1")} },
		"multicast":       func(f *Facts) { f.Uplinks[0].Addrs = []netip.Addr{netip.MustParseAddr("ff02::1")} },
		"zone":            func(f *Facts) { f.Uplinks[0].Addrs = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} },
		"mapped":          func(f *Facts) { f.STUN = []netip.AddrPort{ap("[::ffff:203.0.113.1]:1")} },
		"no address":      func(f *Facts) { f.STUN = []netip.AddrPort{{}} },
		"port 0":          func(f *Facts) { f.STUN = []netip.AddrPort{ap("203.0.113.1:0")} },
		"uplink twice":    func(f *Facts) { f.Uplinks[1].Name = "eth0" },
		"uplink name":     func(f *Facts) { f.Uplinks[1].Name = "ETH0" },
		"NAT kind":        func(f *Facts) { f.Uplinks[1].NAT = natEnd },
		"many addresses":  func(f *Facts) { f.Uplinks[0].Addrs = make([]netip.Addr, MaxUplinkAddrs+1) },
		"many uplinks":    func(f *Facts) { f.Uplinks = make([]Uplink, MaxUplinks+1) },
		"forwarded":       func(f *Facts) { f.Uplinks[0].Forwarded = []netip.Addr{netip.MustParseAddr("224.0.0.1")} },
		"many forwarded":  func(f *Facts) { f.Uplinks[0].Forwarded = make([]netip.Addr, MaxForwarded+1) },
		"long version":    func(f *Facts) { f.Version = strings.Repeat("v", MaxVersion+1) },
		"version escapes": func(f *Facts) { f.Version = "\x1b[2J" },
	} {
		f := id.facts(1)
		change(&f)
		if _, err := f.Encode(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDirectory(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	micros := uint64(now.UnixMicro())
	a, b, c := newIdentity(1), newIdentity(2), newIdentity(3)
	signed := func(i identity, serial uint64) Signed {
		s, err := i.facts(serial).Sign(i.sign)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	d := NewDirectory(testMesh, 2)
	merge := func(what string, s Signed, key mesh.IdentityKey, changed bool, want error) {
		t.Helper()
		got, err := d.Merge(now, s, key)
		if got != changed || !errors.Is(err, want) {
			t.Errorf("%s: changed %v, error %v", what, got, err)
		}
	}
	merge("first", signed(a, micros), a.key, true, nil)
	merge("again", signed(a, micros), a.key, false, nil)
	merge("older", signed(a, micros-1), a.key, false, nil)
	merge("newer", signed(a, micros+5), a.key, true, nil)
	merge("too far ahead", signed(a, micros+uint64(2*MaxAhead/time.Microsecond)), a.key, false, ErrExpired)
	merge("never", signed(a, ^uint64(0)), a.key, false, ErrExpired)
	merge("wrong key", signed(b, micros), a.key, false, ErrSignature)
	forged, _ := a.facts(micros + 9).Sign(b.sign)
	merge("b about a", forged, b.key, false, ErrForeign)
	other := b.facts(micros)
	other.Mesh[0]++
	foreign, _ := other.Sign(b.sign)
	merge("other mesh", foreign, b.key, false, ErrForeign)
	torn := signed(b, micros)
	torn.Body = torn.Body[:10]
	merge("torn", torn, b.key, false, ErrMalformed)
	merge("second", signed(b, micros), b.key, true, nil)
	merge("third", signed(c, micros), c.key, false, ErrFull)

	if f, ok := d.Get(a.key.NodeID()); !ok || f.Serial != micros+5 {
		t.Errorf("got %+v, %v", f, ok)
	}
	all := d.All()
	if len(all) != 2 || all[0].Node.Compare(all[1].Node) >= 0 || len(d.Signed()) != 2 {
		t.Errorf("all: %v", all)
	}
	d.Remove(a.key.NodeID())
	merge("third, with room", signed(c, micros), c.key, true, nil)
}

func TestNextSerial(t *testing.T) {
	if NextSerial(5, 9) != 9 || NextSerial(9, 9) != 10 || NextSerial(9, 3) != 10 {
		t.Error("serials do not grow")
	}
}

func FuzzFacts(f *testing.F) {
	body, err := newIdentity(1).facts(77).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add(factsV2)
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		facts, err := DecodeFacts(b)
		if err != nil {
			return
		}
		again, err := facts.Encode()
		if b[0] == factsBefore {
			twin, twinErr := DecodeFacts(again)
			if err != nil || twinErr != nil || !cmp.Equal(facts, twin, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})) {
				t.Fatalf("%x of the version before decodes to what encodes as %x (%v, %v)", b, again, err, twinErr)
			}
			return
		}
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x decodes to what encodes as %x (%v)", b, again, err)
		}
	})
}

func FuzzCutSigned(f *testing.F) {
	id := newIdentity(1)
	s, err := id.facts(77).Sign(id.sign)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(AppendSigned(AppendSigned(nil, s), s))
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		for rest := b; len(rest) > 0; {
			s, next, err := CutSigned(rest)
			if err != nil {
				return
			}
			_, _, _ = s.Claimed()
			_, _ = s.Open(id.key)
			again, rest = AppendSigned(again, s), next
		}
		if !bytes.Equal(again, b) {
			t.Fatal("not the same bytes again")
		}
	})
}
