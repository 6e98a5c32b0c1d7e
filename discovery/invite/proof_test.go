package invite

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"guywire/mesh"
)

func testTranscript() Transcript {
	return Transcript{
		Mesh: testMesh, Token: "abc", Exporter: [32]byte{1}, Identity: mesh.IdentityKey{2}, Epoch: 1,
		Key: mesh.WireGuardKey{3}, Name: "oslo", Request: "r1",
		Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.5.0/24"), netip.MustParsePrefix("2001:db8:5::/48")},
	}
}

var netipCmp = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestTranscriptRoundTrip(t *testing.T) {
	for _, tr := range []Transcript{{}, testTranscript()} {
		b, err := tr.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeTranscript(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tr, got, netipCmp); d != "" {
			t.Error(d)
		}
		for n := range b {
			if _, err := DecodeTranscript(b[:n]); !errors.Is(err, ErrTranscript) {
				t.Errorf("cut to %d bytes: %v", n, err)
			}
		}
		if _, err := DecodeTranscript(append(b, 0)); !errors.Is(err, ErrTranscript) {
			t.Errorf("trailing byte: %v", err)
		}
	}
}

// Each field changes the encoding: nothing a joiner says is outside the proofs.
func TestTranscriptCoversEveryField(t *testing.T) {
	seen := map[string]string{}
	for name, change := range map[string]func(*Transcript){
		"none":     func(*Transcript) {},
		"mesh":     func(tr *Transcript) { tr.Mesh[7]++ },
		"token":    func(tr *Transcript) { tr.Token = "abd" },
		"exporter": func(tr *Transcript) { tr.Exporter[31]++ },
		"identity": func(tr *Transcript) { tr.Identity[31]++ },
		"epoch":    func(tr *Transcript) { tr.Epoch = 1 << 24 },
		"key":      func(tr *Transcript) { tr.Key[31]++ },
		"name":     func(tr *Transcript) { tr.Name = "bergen" },
		"request":  func(tr *Transcript) { tr.Request = "r2" },
		"bits":     func(tr *Transcript) { tr.Prefixes[0] = netip.MustParsePrefix("192.168.5.0/25") },
		"fewer":    func(tr *Transcript) { tr.Prefixes = tr.Prefixes[:1] },
		"shifted":  func(tr *Transcript) { tr.Name, tr.Request = "oslor", "1" },
	} {
		tr := testTranscript()
		change(&tr)
		b, err := tr.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if other, dup := seen[string(b)]; dup {
			t.Errorf("%s and %s encode alike", name, other)
		}
		seen[string(b)] = name
	}
}

func TestTranscriptRefuses(t *testing.T) {
	for name, change := range map[string]func(*Transcript){
		"long name":      func(tr *Transcript) { tr.Name = string(make([]byte, MaxText+1)) },
		"many prefixes":  func(tr *Transcript) { tr.Prefixes = make([]netip.Prefix, MaxPrefixes+1) },
		"invalid prefix": func(tr *Transcript) { tr.Prefixes = []netip.Prefix{{}} },
		"unmasked":       func(tr *Transcript) { tr.Prefixes = []netip.Prefix{netip.MustParsePrefix("192.168.5.1/24")} },
	} {
		tr := testTranscript()
		change(&tr)
		if _, err := tr.Encode(); !errors.Is(err, ErrTranscript) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecodeTranscript(f *testing.F) {
	b, _ := testTranscript().Encode()
	f.Add(b)
	b, _ = Transcript{}.Encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		tr, err := DecodeTranscript(in)
		if err != nil {
			return
		}
		out, err := tr.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(in, out) {
			t.Fatalf("two encodings of one transcript:\n%x\n%x", in, out)
		}
	})
}

func TestSignatures(t *testing.T) {
	tok := testToken(t)
	private := ed25519.NewKeyFromSeed(slices.Repeat([]byte{7}, 32))
	identity := mesh.IdentityKey(private.Public().(ed25519.PublicKey))
	transcript, _ := testTranscript().Encode()
	changed := slices.Clone(transcript)
	changed[20]++
	byToken := tok.Sign(transcript)
	byIdentity := ProveIdentity(func(m []byte) []byte { return ed25519.Sign(private, m) }, transcript)
	otherTok := testToken(t)
	otherTok.secret[0]++

	for name, c := range map[string]struct{ got, want bool }{
		"token":                   {VerifyToken(tok.Public(), transcript, byToken), true},
		"identity":                {VerifyIdentity(identity, transcript, byIdentity), true},
		"token, changed":          {VerifyToken(tok.Public(), changed, byToken), false},
		"identity, changed":       {VerifyIdentity(identity, changed, byIdentity), false},
		"other token":             {VerifyToken(otherTok.Public(), transcript, byToken), false},
		"empty signature":         {VerifyToken(tok.Public(), transcript, nil), false},
		"short signature":         {VerifyToken(tok.Public(), transcript, byToken[:63]), false},
		"identity's for token's":  {VerifyToken(identity, transcript, byIdentity), false},
		"token's for identity's":  {VerifyIdentity(tok.Public(), transcript, byToken), false},
		"without a domain":        {VerifyIdentity(identity, transcript, ed25519.Sign(private, transcript)), false},
		"no key":                  {VerifyToken(mesh.IdentityKey{}, transcript, make([]byte, 64)), false},
		"signature for everyone":  {VerifyIdentity(mesh.IdentityKey{1}, transcript, append([]byte{1}, make([]byte, 63)...)), false},
		"not a point on the line": {VerifyIdentity(mesh.IdentityKey{2}, transcript, byIdentity), false},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
}

// The table of low orders is what it says: for each of those keys some message
// has a signature that needs no private key, which plain Ed25519 accepts.
func TestLowOrderKeysAreForgeable(t *testing.T) {
	sig := append([]byte{1}, make([]byte, 63)...) // R the neutral point, S = 0
	for _, key := range lowOrder {
		forged := false
		for i := 0; i < 1000 && !forged; i++ {
			forged = key.Verify(fmt.Append(nil, i), sig)
		}
		if !forged {
			t.Errorf("%x is not of low order", key)
		}
		for _, sign := range []byte{0, 0x80} {
			k := key
			k[31] |= sign
			if err := CheckIdentityKey(k); !errors.Is(err, ErrKey) {
				t.Errorf("%x: %v", k, err)
			}
		}
	}
	for _, high := range []byte{0xed, 0xee, 0xff} {
		k := mesh.IdentityKey(slices.Repeat([]byte{0xff}, 32))
		k[0] = high
		if err := CheckIdentityKey(k); !errors.Is(err, ErrKey) {
			t.Errorf("%x is not reduced: %v", k, err)
		}
	}
}

func wgKey(t testing.TB, fill byte) (private [32]byte, public mesh.WireGuardKey) {
	t.Helper()
	k, err := ecdh.X25519().NewPrivateKey(slices.Repeat([]byte{fill}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return [32]byte(k.Bytes()), mesh.WireGuardKey(k.PublicKey().Bytes())
}

func TestWireGuardProof(t *testing.T) {
	private, public := wgKey(t, 1)
	otherPrivate, otherPublic := wgKey(t, 2)
	transcript, _ := testTranscript().Encode()
	c := NewChallenge([32]byte{42})
	answer, err := AnswerChallenge(private, c.Public(), transcript)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(public, transcript, answer); err != nil {
		t.Fatal(err)
	}
	byOther, _ := AnswerChallenge(otherPrivate, c.Public(), transcript)
	highBit := public
	highBit[31] |= 0x80
	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"other key":        {c.Verify(otherPublic, transcript, answer), ErrProof},
		"other holder":     {c.Verify(public, transcript, byOther), ErrProof},
		"other transcript": {c.Verify(public, append(transcript, 0), answer), ErrProof},
		"other challenge":  {NewChallenge([32]byte{64}).Verify(public, transcript, answer), ErrProof},
		"empty":            {c.Verify(public, transcript, nil), ErrProof},
		"zero key":         {c.Verify(mesh.WireGuardKey{}, transcript, answer), ErrKey},
		"high bit":         {c.Verify(highBit, transcript, answer), ErrKey},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
		}
	}
}

// The points of low order of Curve25519 and its twist, as in RFC 7748 section
// 7 and the list of Bernstein, with the spellings that are not reduced.
func TestLowOrderPointsRefused(t *testing.T) {
	transcript, _ := testTranscript().Encode()
	private, _ := wgKey(t, 1)
	for _, s := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
		"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		point := [32]byte(fromHex(s))
		if err := CheckWireGuardKey(point); !errors.Is(err, ErrKey) {
			t.Errorf("%s as key: %v", s, err)
		}
		if _, err := AnswerChallenge(private, point, transcript); !errors.Is(err, ErrKey) {
			t.Errorf("%s as challenge: %v", s, err)
		}
	}
	_, public := wgKey(t, 9)
	if err := CheckWireGuardKey(public); err != nil {
		t.Errorf("an ordinary key: %v", err)
	}
}

// FuzzProof: no bytes from the other side make either party panic, and no
// answer but the right one is taken.
func FuzzProof(f *testing.F) {
	f.Add([]byte{1}, []byte{2}, []byte{3})
	f.Fuzz(func(t *testing.T, key, answer, transcript []byte) {
		var k [32]byte
		copy(k[:], key)
		c := NewChallenge([32]byte{42})
		if c.Verify(k, transcript, answer) == nil {
			t.Fatal("an answer was guessed")
		}
		private, public := wgKey(t, 1)
		got, err := AnswerChallenge(private, k, transcript)
		if err == nil && len(got) != 32 {
			t.Fatal("short answer")
		}
		right, err := AnswerChallenge(private, c.Public(), transcript)
		if err != nil || c.Verify(public, transcript, right) != nil {
			t.Fatal("the right answer is refused")
		}
	})
}
