package discovery

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"guywire/mesh"
)

var offerTime = time.Unix(2_000_000_000, 0).UTC()

func testOffer() Offer {
	return Offer{
		Mesh: testMesh, From: mesh.NodeID{1}, To: mesh.NodeID{2}, FromUplink: "eth0", ToUplink: "wan",
		Lane: 1, Below: ClassCarrier,
		Attempt:     AttemptID{9},
		Candidates:  []Candidate{{CandidateHost, ap("[2001:db8::2]:51800")}, {CandidateReflexive, ap("203.0.113.5:40001")}},
		Credentials: Credentials{Ufrag: "abcd", Password: strings.Repeat("p", 22)},
		Carrier:     &CarrierTerms{Pin: [32]byte{1}, Token: [16]byte{2}},
		NAT:         NATEasy, NAT6: NATAbsent, Epoch: 3, Key: mesh.WireGuardKey{4}, Delay: 40 * time.Millisecond, Expires: offerTime.Add(time.Minute),
	}
}

func TestOfferRoundTrip(t *testing.T) {
	want := testOffer()
	b, err := want.MarshalBinary()
	if err != nil || len(b) > MaxOffer {
		t.Fatal(len(b), err)
	}
	var got Offer
	if err := got.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Error(diff)
	}
	if err := got.Validate(offerTime, testMesh, mesh.NodeID{2}); err != nil {
		t.Error(err)
	}
}

// An offer of a search by chance is of a version of its own, which those do not take
// that know none; others are as ever.
func TestOfferOfASpread(t *testing.T) {
	for _, spread := range []bool{false, true} {
		o := testOffer()
		o.Spread, o.Carrier, o.Below = spread, nil, 0
		b, err := o.MarshalBinary()
		if want := map[bool]byte{false: 2, true: 3}[spread]; err != nil || b[0] != want {
			t.Fatalf("version %d: %v", b[0], err)
		}
		var got Offer
		if err := got.UnmarshalBinary(b); err != nil || got.Spread != spread {
			t.Errorf("%v reads as %v: %v", spread, got.Spread, err)
		}
	}
}

func TestAttemptIDText(t *testing.T) {
	id := AttemptID{1, 0xab, 15: 7}
	var again AttemptID
	if err := again.UnmarshalText([]byte(id.String())); err != nil || again != id {
		t.Errorf("%s reads as %s (%v)", id, again, err)
	}
	for _, bad := range []string{"", "ab", id.String() + "00", strings.Repeat("z", 32)} {
		if again.UnmarshalText([]byte(bad)) == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestOfferRefused(t *testing.T) {
	for name, change := range map[string]func(*Offer){
		"to itself":       func(o *Offer) { o.To = o.From },
		"nobody":          func(o *Offer) { o.From = mesh.NodeID{} },
		"spread, carried": func(o *Offer) { o.Spread, o.Below = true, 0 },
		"spread, better":  func(o *Offer) { o.Spread, o.Carrier = true, nil },
		"lane":            func(o *Offer) { o.Lane = 2 },
		"path class":      func(o *Offer) { o.Below = classEnd },
		"no attempt":      func(o *Offer) { o.Attempt = AttemptID{} },
		"many candidates": func(o *Offer) { o.Candidates = make([]Candidate, MaxCandidates+1) },
		"loopback":        func(o *Offer) { o.Candidates[0].Addr = ap("127.0.0.1:53") },
		"twice":           func(o *Offer) { o.Candidates[0].Addr = o.Candidates[1].Addr },
		"learned kind":    func(o *Offer) { o.Candidates[0].Kind = CandidatePeerReflexive },
		"short password":  func(o *Offer) { o.Credentials.Password = "short" },
		"ufrag with ':'":  func(o *Offer) { o.Credentials.Ufrag = "ab:cd" },
		"long delay":      func(o *Offer) { o.Delay = time.Minute },
		"uplink name":     func(o *Offer) { o.ToUplink = "" },
		"no key":          func(o *Offer) { o.Key = mesh.WireGuardKey{} },
		"fraction":        func(o *Offer) { o.Expires = o.Expires.Add(1) },
	} {
		o := testOffer()
		change(&o)
		if _, err := o.MarshalBinary(); !errors.Is(err, ErrMalformed) {
			t.Errorf("encode, %s: %v", name, err)
		}
		if err := o.Validate(offerTime, testMesh, mesh.NodeID{2}); !errors.Is(err, ErrMalformed) {
			t.Errorf("validate, %s: %v", name, err)
		}
	}
	o := testOffer()
	if err := o.Validate(offerTime, mesh.MeshID{}, o.To); !errors.Is(err, ErrForeign) {
		t.Error(err)
	}
	if err := o.Validate(offerTime, testMesh, o.From); !errors.Is(err, ErrForeign) {
		t.Error(err)
	}
	for _, now := range []time.Time{offerTime.Add(time.Hour), offerTime.Add(-time.Hour)} {
		if err := o.Validate(now, testMesh, o.To); !errors.Is(err, ErrExpired) {
			t.Error(err)
		}
	}
}

func TestOfferAnswer(t *testing.T) {
	o := testOffer()
	answer := testOffer()
	answer.From, answer.To, answer.FromUplink, answer.ToUplink = o.To, o.From, o.ToUplink, o.FromUplink
	if err := o.ValidateAnswer(offerTime, answer); err != nil {
		t.Error(err)
	}
	answer.Attempt = AttemptID{1}
	if err := o.ValidateAnswer(offerTime, answer); !errors.Is(err, ErrForeign) {
		t.Error(err)
	}
}

func FuzzOffer(f *testing.F) {
	b, err := testOffer().MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	spread := testOffer()
	spread.Spread, spread.Carrier, spread.Below = true, nil, 0
	if b, err = spread.MarshalBinary(); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var o Offer
		if o.UnmarshalBinary(b) != nil {
			return
		}
		_ = o.Validate(offerTime, testMesh, mesh.NodeID{2})
		again, err := o.MarshalBinary()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x decodes to what encodes as %x (%v)", b, again, err)
		}
	})
}
