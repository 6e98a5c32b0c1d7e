package wire

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"guywire/mesh"
)

var equate = cmp.Options{cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{}, Destination{})}

func key(seed byte) (ed25519.PrivateKey, mesh.IdentityKey) {
	k := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32))
	return k, mesh.IdentityKey(k.Public().(ed25519.PublicKey))
}

func signer(seed byte) func([]byte) []byte {
	k, _ := key(seed)
	return func(b []byte) []byte { return ed25519.Sign(k, b) }
}

// lsas has a fragment of each kind.
func lsas(id mesh.NodeID) []LSA {
	return []LSA{
		{
			Mesh: mesh.MeshID{1}, Origin: id, Epoch: 7, Seq: 3, NoTransit: true, Overload: true, Fragments: 2,
			Adjacencies: []Adjacency{{mesh.NodeID{2}, 1200, true}, {mesh.NodeID{9}, 500, false}},
		},
		{
			Mesh: mesh.MeshID{1}, Origin: id, Fragment: 1, Epoch: 7, Seq: 4,
			Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.7.0.0/23"), netip.MustParsePrefix("2001:db8:7::/48"), netip.MustParsePrefix("fd00::1/128")},
		},
		{Mesh: mesh.MeshID{1}, Origin: id, Fragment: MaxFragments - 1, Epoch: math.MaxUint64, Seq: 0},
	}
}

func messages() []Message {
	header := Header{From: 1 << 60, To: 12, Received: 5000, Committed: 4000, Cold: true, Open: true, Gap: true}
	return []Message{
		{Incarnation: 1, Body: Probe{
			Seq: 4, Sent: -5, Interval: 50_000, Want: 20_000, Flags: Hears | HoldsDown, EchoSeq: 3, EchoSent: 9, EchoDelay: 17,
			Loss: 655, Digest: 99, Session: header, Pad: 100, PadEcho: 1300,
		}},
		{Incarnation: 1, Body: Probe{Seq: 5, Pad: MaxPad}},
		{Incarnation: 2, Body: Segment{Header: header, Offset: 1 << 40, Data: []byte("part of a stream")}},
		{Incarnation: 2, Body: Segment{Header: Header{From: 3}, Data: bytes.Repeat([]byte{7}, MaxSegmentData)}},
		{Incarnation: 2, Body: Segment{Header: Header{From: 3, Open: true}}},
		{Incarnation: 3, Body: Silence{Links: []LinkName{{"isp-a", "wan"}, {"isp-b", "lte0"}, {"isp-b", "wan"}}}},
		{Incarnation: 3, Body: Silence{}},
		{Incarnation: 4, Body: Goodbye{}},
		{Incarnation: 5, Body: Sight{netip.MustParseAddrPort("203.0.113.5:40001")}},
		{Incarnation: 5, Body: Sight{netip.MustParseAddrPort("[2001:db8::5]:1")}},
	}
}

func notes() []Note {
	_, pub := key(1)
	out := []Note{
		Distances{Entries: []Entry{
			{Index: 0, Key: Destination{Node: mesh.NodeID{3}}, Distance: 0},
			{Index: 1, Key: Destination{Prefix: netip.MustParsePrefix("10.7.0.0/23")}, Distance: mesh.Infinite - 1, Patient: true},
			{Index: 70_000, Key: Destination{Prefix: netip.MustParsePrefix("2001:db8::/33")}, Distance: 127},
			{Index: math.MaxUint32, Distance: mesh.Infinite},
		}},
		Distances{},
		Complete{},
		Welcome{},
		Settled{},
	}
	for _, l := range lsas(pub.NodeID()) {
		out = append(out, Flood{Sign(l, signer(1))})
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	for i, m := range messages() {
		got, err := Decode(Encode(m))
		if err != nil {
			t.Fatalf("message %d, %T: %v", i, m.Body, err)
		}
		if diff := cmp.Diff(m, got, equate); diff != "" {
			t.Errorf("message %d, %T (-want +got):\n%s", i, m.Body, diff)
		}
	}
	for i, n := range notes() {
		got, err := DecodeNote(EncodeNote(n))
		if err != nil {
			t.Fatalf("note %d, %T: %v", i, n, err)
		}
		if diff := cmp.Diff(n, got, equate); diff != "" {
			t.Errorf("note %d, %T (-want +got):\n%s", i, n, diff)
		}
	}
	_, pub := key(1)
	for _, l := range lsas(pub.NodeID()) {
		s := Sign(l, signer(1))
		got, err := s.LSA()
		if err != nil {
			t.Fatalf("fragment %d: %v", l.Fragment, err)
		}
		if diff := cmp.Diff(l, got, equate); diff != "" {
			t.Errorf("fragment %d (-want +got):\n%s", l.Fragment, diff)
		}
		if k, ok := s.Key(); !ok || k != l.Key() {
			t.Errorf("fragment %d: the short look at the key gives %+v", l.Fragment, k)
		}
	}
}

// Every cut and every addition of a valid encoding is refused, as is every
// change that a decoder could overlook.
func TestNothingButTheWholeEncoding(t *testing.T) {
	refused := func(name string, good []byte, decode func([]byte) error) {
		t.Helper()
		if decode(good) != nil {
			t.Fatalf("%s: the encoding itself is refused", name)
		}
		if decode(append(slices.Clone(good), 0)) == nil {
			t.Errorf("%s: a trailing byte is accepted", name)
		}
		for n := range good {
			if decode(good[:n]) == nil {
				t.Errorf("%s: %d of %d bytes are accepted", name, n, len(good))
			}
		}
	}
	for _, m := range messages() {
		switch body := m.Body.(type) {
		case Segment: // its data ends where the datagram ends
			if len(body.Data) < MaxSegmentData {
				continue
			}
			if _, err := Decode(append(Encode(m), 0)); err == nil {
				t.Error("a segment over MaxSegmentData is accepted")
			}
		case Probe:
			if body.Pad > 1000 {
				continue
			}
			refused("probe", Encode(m), func(b []byte) error { _, err := Decode(b); return err })
		default:
			refused(fmt.Sprintf("%T", m.Body), Encode(m), func(b []byte) error { _, err := Decode(b); return err })
		}
	}
	for _, n := range []Note{Complete{}, Welcome{}, Settled{}} {
		refused(fmt.Sprintf("%T", n), EncodeNote(n), func(b []byte) error { _, err := DecodeNote(b); return err })
	}
	_, pub := key(1)
	for _, l := range lsas(pub.NodeID()) {
		refused("LSA", appendLSA(nil, l), func(b []byte) error { _, err := SignedLSA{Body: b}.LSA(); return err })
	}
}

func TestDatagramRefusesOtherEncodings(t *testing.T) {
	probe := Encode(Message{Body: Probe{Pad: 3}})
	segment := Encode(Message{Body: Segment{}})
	silence := Encode(Message{Body: Silence{Links: []LinkName{{"a", "b"}, {"c", "d"}}}})
	const body = datagramLen
	tests := map[string]struct {
		b  []byte
		at int
		to byte
	}{
		"another version":      {probe, 0, Version + 1},
		"an unknown type":      {probe, 1, typeSight + 1},
		"an unknown verdict":   {probe, body + 20, byte(knownFlags) + 1},
		"padding with content": {probe, ProbeLen + 1, 1},
		"more padding claimed": {probe, ProbeLen - 1, 4},
		"an unknown flag":      {segment, body + headerLen - 1, 8},
		"unsorted links":       {silence, body + 2, 'x'},
		"a twofold link":       {silence, body + 7, 'z'},
		"not a name":           {silence, body + 2, 'A'},
		"too many links":       {silence, body, MaxSilenceLinks + 1},
		"fewer links than say": {silence, body, 3},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := slices.Clone(test.b)
			b[test.at] = test.to
			if name == "a twofold link" {
				b = Encode(Message{Body: Silence{Links: []LinkName{{"a", "b"}}}})
				b = append(b, b[body+1:]...)
				b[body] = 2
			}
			if m, err := Decode(b); err == nil {
				t.Errorf("accepted as %+v", m)
			}
		})
	}
	for _, b := range [][]byte{{}, {1}, {1, 2}, {1, 2, 3, 4, 0}, {1, 2, 3, 4, 0, 0}, append(make([]byte, 10), 0xff, 0xff, 1, 2, 3, 4, 0, 9)} {
		head := Encode(Message{Body: Goodbye{}})
		head[1] = typeSight
		if m, err := Decode(append(head, b...)); err == nil {
			t.Errorf("a sight of %x is accepted as %+v", b, m)
		}
	}
	if _, err := Decode(Encode(Message{Body: Probe{Pad: MaxPad + 1}})); err == nil {
		t.Error("a datagram over MaxMessage is accepted")
	}
}

func TestSilenceIsSortedAndBounded(t *testing.T) {
	var all []LinkName
	for i := range 3 * MaxSilenceLinks {
		all = append(all, LinkName{Local: strings.Repeat("u", 1+i%32), Remote: fmt.Sprintf("r%03d", i)})
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	all = append(all, all[0])
	before := slices.Clone(all)
	m, err := Decode(Encode(Message{Body: Silence{Links: all}}))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, all); diff != "" {
		t.Error("encoding changed the caller's list")
	}
	slices.SortFunc(all, LinkName.compare)
	if diff := cmp.Diff(slices.Compact(all)[:MaxSilenceLinks], m.Body.(Silence).Links); diff != "" {
		t.Error(diff)
	}
}

func TestProbeLen(t *testing.T) {
	for _, pad := range []int{0, 1, 1200} {
		if n := len(Encode(Message{Body: Probe{Pad: uint16(pad)}})); n != ProbeLen+pad {
			t.Errorf("a probe with %d bytes of padding has %d bytes, not %d", pad, n, ProbeLen+pad)
		}
	}
}

// A full segment must pass the smallest link MTU that IPv6 allows: inner IPv6
// and UDP headers take 48 bytes.
func TestSegmentFitsSmallestMTU(t *testing.T) {
	if n := len(Encode(Message{Body: Segment{Data: make([]byte, MaxSegmentData)}})) + 48; n > 1280 {
		t.Errorf("a full segment makes a packet of %d bytes", n)
	}
}

func TestDistancesRefuseOtherEncodings(t *testing.T) {
	uv := func(v uint64) []byte { return binary.AppendUvarint(nil, v) }
	note := func(parts ...[]byte) []byte { return append([]byte{noteDistances}, slices.Concat(parts...)...) }
	tests := map[string]struct {
		b  []byte
		ok bool
	}{
		"plain":                    {note(uv(5<<entryBits), uv(7)), true},
		"largest distance":         {note(uv(0), uv(uint64(mesh.Infinite))), true},
		"beyond infinite":          {note(uv(0), uv(uint64(mesh.Infinite)+1)), false},
		"long form of a step":      {note([]byte{0x80, 0}, uv(7)), false},
		"long form of a distance":  {note(uv(0), []byte{0x87, 0}), false},
		"endless uvarint":          {note(bytes.Repeat([]byte{0xff}, 12), uv(7)), false},
		"largest index":            {note(uv(math.MaxUint32<<entryBits), uv(7)), true},
		"index beyond 32 bits":     {note(uv(math.MaxUint32<<entryBits), uv(7), uv(0), uv(7)), false},
		"no distance":              {note(uv(0)), false},
		"node without id":          {note(uv(keyNode), make([]byte, 8), uv(7)), false},
		"short node":               {note(uv(keyNode), make([]byte, 7)), false},
		"IPv4 prefix":              {note(uv(keyPrefix4), []byte{9, 10, 128}, uv(7)), true},
		"IPv4 prefix, too long":    {note(uv(keyPrefix4), []byte{33, 1, 2, 3, 4, 5}, uv(7)), false},
		"IPv4 prefix, unmasked":    {note(uv(keyPrefix4), []byte{9, 10, 64}, uv(7)), false},
		"IPv6 prefix, unmasked":    {note(uv(keyPrefix6), []byte{9, 0xfd, 1}, uv(7)), false},
		"IPv6 prefix, IPv4 inside": {note(uv(keyPrefix6), []byte{96}, append(make([]byte, 10), 0xff, 0xff), uv(7)), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n, err := DecodeNote(test.b)
			if (err == nil) != test.ok {
				t.Errorf("%+v, %v", n, err)
			}
			if test.ok && !bytes.Equal(EncodeNote(n), test.b) {
				t.Errorf("encodes as %x, not %x", EncodeNote(n), test.b)
			}
		})
	}
	full := Distances{}
	for i := range MaxEntries {
		full.Entries = append(full.Entries, Entry{Index: uint32(i) << 22, Key: Destination{Prefix: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(i)}), 128)}, Distance: mesh.Infinite - 1})
	}
	b := EncodeNote(full)
	if len(b) > MaxNote {
		t.Errorf("the largest table part has %d bytes", len(b))
	}
	if _, err := DecodeNote(b); err != nil {
		t.Error("the largest table part is refused")
	}
	if _, err := DecodeNote(append(b, 0, 0)); err == nil {
		t.Error("one entry too many is accepted")
	}
}

func TestSignatureCoversEverything(t *testing.T) {
	_, pub := key(1)
	_, other := key(2)
	for _, l := range lsas(pub.NodeID()) {
		s := Sign(l, signer(1))
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
}

func TestLSARefusesOtherEncodings(t *testing.T) {
	_, pub := key(1)
	tests := map[string]struct {
		fragment int
		spoil    func(*LSA)
	}{
		"unsorted adjacencies":      {0, func(l *LSA) { slices.Reverse(l.Adjacencies) }},
		"duplicate adjacency":       {0, func(l *LSA) { l.Adjacencies[1] = l.Adjacencies[0] }},
		"adjacency to itself":       {0, func(l *LSA) { l.Adjacencies[0].Peer = l.Origin }},
		"zero cost":                 {0, func(l *LSA) { l.Adjacencies[0].Cost = 0 }},
		"infinite cost":             {0, func(l *LSA) { l.Adjacencies[0].Cost = mesh.Infinite }},
		"too many adjacencies":      {0, func(l *LSA) { l.Adjacencies = adjacencies(AdjacenciesPerFragment + 1) }},
		"adjacencies and prefixes":  {1, func(l *LSA) { l.Adjacencies = adjacencies(1) }},
		"no fragments":              {0, func(l *LSA) { l.Fragments = 0 }},
		"too many fragments":        {0, func(l *LSA) { l.Fragments = MaxFragments + 1 }},
		"number beyond all":         {1, func(l *LSA) { l.Fragment = MaxFragments }},
		"unsorted prefixes":         {1, func(l *LSA) { slices.Reverse(l.Prefixes) }},
		"duplicate prefix":          {1, func(l *LSA) { l.Prefixes[1] = l.Prefixes[0] }},
		"unmasked prefix":           {1, func(l *LSA) { l.Prefixes[1] = netip.MustParsePrefix("10.7.1.0/23") }},
		"mapped prefix":             {1, func(l *LSA) { l.Prefixes[3] = netip.MustParsePrefix("::ffff:10.0.0.0/104") }},
		"too many prefixes":         {1, func(l *LSA) { l.Prefixes = prefixes(PrefixesPerFragment + 1) }},
		"IPv6 before IPv4 prefixes": {1, func(l *LSA) { l.Prefixes[1], l.Prefixes[2] = l.Prefixes[2], l.Prefixes[1] }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := lsas(pub.NodeID())[test.fragment]
			if _, err := (SignedLSA{Body: appendLSA(nil, l)}).LSA(); err != nil {
				t.Fatal("refused before it was spoilt")
			}
			test.spoil(&l)
			if _, err := (SignedLSA{Body: appendLSA(nil, l)}).LSA(); err == nil {
				t.Error("accepted")
			}
		})
	}
	flags := len(mesh.MeshID{}) + len(mesh.NodeID{}) + 2 + 8 + 8
	b := appendLSA(nil, lsas(pub.NodeID())[0])
	b[flags] |= 4
	if _, err := (SignedLSA{Body: b}).LSA(); err == nil {
		t.Error("an unknown flag is accepted")
	}
}

func adjacencies(n int) (out []Adjacency) {
	for i := range n {
		out = append(out, Adjacency{Peer: mesh.NodeID{1, byte(i)}, Cost: mesh.Infinite - 1, Drain: true})
	}
	return out
}

func prefixes(n int) (out []netip.Prefix) {
	for i := range n {
		out = append(out, netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 1: byte(i), 15: 1}), 128))
	}
	return out
}

// The largest fragments must stay within MaxLSA, and a node's fragments within
// MaxFragments.
func TestLargestFragments(t *testing.T) {
	_, pub := key(1)
	for _, l := range []LSA{
		{Origin: pub.NodeID(), Fragments: MaxFragments, Adjacencies: adjacencies(AdjacenciesPerFragment)},
		{Origin: pub.NodeID(), Fragments: MaxFragments, Prefixes: prefixes(PrefixesPerFragment)},
	} {
		s := Sign(l, signer(1))
		if got, err := s.LSA(); err != nil || !cmp.Equal(l, got, equate) {
			t.Fatalf("%+v %v", got, err)
		}
		if n := len(s.Body) + len(s.Signature); n > MaxLSA {
			t.Errorf("a full fragment has %d bytes", n)
		}
		if _, err := DecodeNote(EncodeNote(Flood{s})); err != nil {
			t.Error(err)
		}
	}
	big := SignedLSA{Body: make([]byte, maxBody+1)}
	if _, err := DecodeNote(EncodeNote(Flood{big})); err == nil {
		t.Error("an announcement over MaxLSA is accepted")
	}
	up := func(n, per int) int { return (n + per - 1) / per }
	if n := up(MaxAdjacencies, AdjacenciesPerFragment) + up(MaxPrefixes, PrefixesPerFragment); n > MaxFragments {
		t.Errorf("the largest node needs %d fragments", n)
	}
}

func TestSignSorts(t *testing.T) {
	_, pub := key(1)
	for _, l := range lsas(pub.NodeID())[:2] {
		want := Sign(l, signer(1))
		slices.Reverse(l.Adjacencies)
		slices.Reverse(l.Prefixes)
		if got := Sign(l, signer(1)); !bytes.Equal(got.Body, want.Body) {
			t.Error("the order of the lists changes the encoding")
		}
	}
}

func TestNewer(t *testing.T) {
	order := []LSAKey{{Epoch: 1, Seq: 1}, {Epoch: 1, Seq: 9}, {Epoch: 2, Seq: 0}, {Epoch: 2, Seq: 1}}
	for i, a := range order {
		for j, b := range order {
			if a.Newer(b) != (i > j) {
				t.Errorf("%+v.Newer(%+v) = %v", a, b, a.Newer(b))
			}
		}
	}
}

func TestDestination(t *testing.T) {
	sorted := []Destination{
		{Node: mesh.NodeID{1}},
		{Node: mesh.NodeID{1, 2}},
		{Prefix: netip.MustParsePrefix("10.0.0.0/8")},
		{Prefix: netip.MustParsePrefix("10.0.0.0/9")},
		{Prefix: netip.MustParsePrefix("fd00::/8")},
	}
	for i, a := range sorted {
		for j, b := range sorted {
			got := a.Compare(b)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%v.Compare(%v) = %d", a, b, got)
			}
		}
	}
	if got := fmt.Sprint(sorted[1], " ", sorted[4]); got != "0102000000000000 fd00::/8" {
		t.Error(got)
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

func FuzzDecodeNote(f *testing.F) {
	for _, n := range notes() {
		f.Add(EncodeNote(n))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := DecodeNote(b)
		if err != nil {
			return
		}
		if again := EncodeNote(n); !bytes.Equal(again, b) {
			t.Fatalf("a second encoding of %+v:\n%x\n%x", n, b, again)
		}
		d, ok := n.(Distances)
		if !ok {
			return
		}
		for i, e := range d.Entries {
			if i > 0 && d.Entries[i-1].Index >= e.Index || e.Distance > mesh.Infinite || !e.Key.Node.IsZero() && e.Key.Prefix.IsValid() {
				t.Fatalf("entry %d: %+v", i, e)
			}
		}
	})
}

func FuzzLSA(f *testing.F) {
	_, pub := key(1)
	for _, l := range lsas(pub.NodeID()) {
		f.Add(Sign(l, signer(1)).Body)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := SignedLSA{Body: b}.LSA()
		if err != nil {
			return
		}
		if again := Sign(l, signer(1)).Body; !bytes.Equal(again, b) {
			t.Fatalf("a second encoding of %+v", l)
		}
		if k, ok := (SignedLSA{Body: b}).Key(); !ok || k != l.Key() {
			t.Fatal("the short look at the key differs from the whole")
		}
		if len(l.Adjacencies) > AdjacenciesPerFragment || len(l.Prefixes) > PrefixesPerFragment || len(b) > maxBody {
			t.Fatalf("over the limit: %+v", l)
		}
	})
}
