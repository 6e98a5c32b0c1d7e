package invite

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"guywire/mesh"
)

var (
	testMesh   = mesh.MeshID{1, 2, 3, 4, 5, 6, 7, 8}
	testExpiry = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	testRandom = [RandomSize]byte([]byte("idid!SECRET-secret-16"))
)

func testToken(t testing.TB, servers ...string) Token {
	t.Helper()
	if servers == nil {
		servers = []string{"203.0.113.7:8686"}
	}
	var addrs []netip.AddrPort
	for _, s := range servers {
		addrs = append(addrs, netip.MustParseAddrPort(s))
	}
	tok, err := New(testRandom, testMesh, [][32]byte{{9: 9}}, addrs, testExpiry)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func equal(a, b Token) string { return cmp.Diff(a, b, cmp.Comparer(sameToken)) }

func sameToken(a, b Token) bool {
	return a.Text() == b.Text() && a.Public() == b.Public() && a.ID == b.ID && a.Expires.Equal(b.Expires)
}

func TestTextRoundTrip(t *testing.T) {
	pins := [][32]byte{{1}, {2}}
	for _, servers := range [][]string{
		{"203.0.113.7:8686"},
		{"[2001:db8::1]:1"},
		{"203.0.113.7:8686", "[2001:db8::1]:8686"},
		{"[2001:db8::1]:65535", "203.0.113.7:8686", "198.18.0.1:443"},
	} {
		for n := 1; n <= MaxPins; n++ {
			var addrs []netip.AddrPort
			for _, s := range servers {
				addrs = append(addrs, netip.MustParseAddrPort(s))
			}
			tok, err := New(testRandom, testMesh, pins[:n], addrs, testExpiry.Add(300*time.Millisecond))
			if err != nil {
				t.Fatal(err)
			}
			got, err := Parse(tok.Text())
			if err != nil {
				t.Fatalf("%v: %v", servers, err)
			}
			if d := equal(tok, got); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(tok.Servers, got.Servers, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
				t.Error(d)
			}
			if !got.Expires.Equal(testExpiry) {
				t.Errorf("expires %v, want %v", got.Expires, testExpiry)
			}
			if !got.Pinned(pins[0]) || got.Pinned([32]byte{3}) || got.Pinned(pins[1]) != (n == 2) {
				t.Errorf("pins %x", got.Pins)
			}
		}
	}
}

// The text is a promise to every token that is on paper somewhere.
func TestGolden(t *testing.T) {
	tok := testToken(t)
	const text = "gw1-080g40r40m30e239chmp88ak8n1n4ham5nsparvjcnt2tc9pd7t9bg00000000000000028000000000000000000000000000000000035g0w8747q1phe5ac"
	if got := tok.Text(); got != text {
		t.Errorf("text\n got %s\nwant %s", got, text)
	}
	const public = "rmbFZDb7yRTDb+eMPr2SbJNQD2KQ4v2B4oUULjlEj48="
	if got := tok.Public().String(); got != public {
		t.Errorf("key\n got %s\nwant %s", got, public)
	}
}

func TestParseTolerates(t *testing.T) {
	tok := testToken(t)
	text := tok.Text()
	for name, in := range map[string]string{
		"spaces around": "  " + text + "\r\n",
		"line breaks":   text[:40] + "\r\n" + text[40:80] + "\n\t" + text[80:],
		"upper case":    strings.ToUpper(text),
		"look-alikes":   prefix + strings.NewReplacer("0", "O", "1", "l").Replace(text[len(prefix):]),
		"zero width":    "\ufeff" + text[:10] + "\u200b" + text[10:],
		"broken prefix": text[:2] + "\n" + text[2:],
	} {
		got, err := Parse(in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if d := equal(tok, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	text := testToken(t).Text()
	last := text[len(text)-1]
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"empty":            {"", ErrNotToken},
		"other word":       {"hello", ErrNotToken},
		"whole command":    {"meshctl join " + text, ErrNotToken},
		"no prefix":        {text[len(prefix):], ErrNotToken},
		"foreign letter":   {text[:20] + "ü" + text[20:], ErrNotToken},
		"foreign sign":     {text[:20] + "!" + text[21:], ErrNotToken},
		"u is no letter":   {text[:20] + "u" + text[21:], ErrNotToken},
		"huge":             {prefix + strings.Repeat("0", 1<<20), ErrNotToken},
		"next version":     {"gw2-" + text[len(prefix):], ErrVersion},
		"version 12":       {"gw12-abc", ErrVersion},
		"prefix only":      {prefix, ErrTruncated},
		"part of prefix":   {"gw", ErrTruncated},
		"one character":    {text[:len(prefix)+1], ErrTruncated},
		"half":             {text[:len(text)/2], ErrTruncated},
		"last one missing": {text[:len(text)-1], ErrTruncated},
		"one too many":     {text + "0", ErrChecksum},
		"twice":            {text + text[len(prefix):], ErrChecksum},
		"changed":          {text[:50] + swap(text[50]) + text[51:], ErrChecksum},
		"changed checksum": {text[:len(text)-3] + swap(text[len(text)-3]) + text[len(text)-2:], ErrChecksum},
		"unused bits":      {text[:len(text)-1] + string(alphabet[alphabetIndex(last)^1]), ErrChecksum},
		"no servers":       {prefix + "00" + text[len(prefix)+2:], ErrChecksum},
	} {
		_, err := Parse(c.in)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), text[30:40]) {
			t.Errorf("%s: the error repeats the token: %v", name, err)
		}
	}
}

func swap(c byte) string { return string(alphabet[(alphabetIndex(c)+7)%32]) }

// Every single wrong character is found.
func TestEveryTypoIsFound(t *testing.T) {
	text := testToken(t).Text()
	for i := len(prefix); i < len(text); i++ {
		if tok, err := Parse(text[:i] + swap(text[i]) + text[i+1:]); err == nil {
			t.Errorf("character %d changed, accepted as %v", i, tok)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	ok := netip.MustParseAddrPort("203.0.113.7:8686")
	pin := [32]byte{1}
	for name, c := range map[string]struct {
		random  [RandomSize]byte
		mesh    mesh.MeshID
		pins    [][32]byte
		servers []netip.AddrPort
		expires time.Time
	}{
		"no mesh":         {testRandom, mesh.MeshID{}, [][32]byte{pin}, []netip.AddrPort{ok}, testExpiry},
		"no secret":       {[RandomSize]byte{1}, testMesh, [][32]byte{pin}, []netip.AddrPort{ok}, testExpiry},
		"no pin":          {testRandom, testMesh, nil, []netip.AddrPort{ok}, testExpiry},
		"three pins":      {testRandom, testMesh, [][32]byte{{1}, {2}, {3}}, []netip.AddrPort{ok}, testExpiry},
		"same pins":       {testRandom, testMesh, [][32]byte{pin, pin}, []netip.AddrPort{ok}, testExpiry},
		"no server":       {testRandom, testMesh, [][32]byte{pin}, nil, testExpiry},
		"four servers":    {testRandom, testMesh, [][32]byte{pin}, []netip.AddrPort{ok, ok, ok, ok}, testExpiry},
		"server twice":    {testRandom, testMesh, [][32]byte{pin}, []netip.AddrPort{ok, ok}, testExpiry},
		"zero server":     {testRandom, testMesh, [][32]byte{pin}, []netip.AddrPort{{}}, testExpiry},
		"port 0":          {testRandom, testMesh, [][32]byte{pin}, []netip.AddrPort{netip.MustParseAddrPort("203.0.113.7:0")}, testExpiry},
		"any address":     {testRandom, testMesh, [][32]byte{pin}, []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:1")}, testExpiry},
		"zone":            {testRandom, testMesh, [][32]byte{pin}, []netip.AddrPort{netip.MustParseAddrPort("[fe80::1%eth0]:1")}, testExpiry},
		"mapped":          {testRandom, testMesh, [][32]byte{pin}, []netip.AddrPort{netip.MustParseAddrPort("[::ffff:203.0.113.7]:1")}, testExpiry},
		"no expiry":       {testRandom, testMesh, [][32]byte{pin}, []netip.AddrPort{ok}, time.Time{}},
		"expiry too late": {testRandom, testMesh, [][32]byte{pin}, []netip.AddrPort{ok}, time.Date(2107, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if _, err := New(c.random, c.mesh, c.pins, c.servers, c.expires); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestB23RefusedTextIsNotRepeated: an error about a token's text, which may be
// but a slip away from a good one, goes into logs and tickets.
func TestB23RefusedTextIsNotRepeated(t *testing.T) {
	text := testToken(t).Text()
	tries := []string{text + "a", text + text, text[1:], "x" + text, text[:len(prefix)] + "!" + text[len(prefix):]}
	for i := len(prefix); i < len(text); i++ {
		tries = append(tries, text[:i], text[:i]+swap(text[i])+text[i+1:], text[:i]+"\x00"+text[i:], text[:i]+"é"+text[i:])
	}
	refused := 0
	for _, try := range tries {
		_, err := Parse(try)
		if err == nil {
			continue // without what is left out when reading, such as spaces
		}
		refused++
		for i := len(prefix); i+8 <= len(text); i++ {
			if strings.Contains(err.Error(), text[i:i+8]) {
				t.Fatalf("%q repeats %q", err, text[i:i+8])
			}
		}
	}
	if refused < 2*len(text) {
		t.Errorf("only %d texts were refused", refused)
	}
}

// TestB23NothingPrintsTheSecret: no way of printing reveals the secret, its hex,
// or the text.
func TestB23NothingPrintsTheSecret(t *testing.T) {
	tok := testToken(t)
	challenge := NewChallenge([32]byte([]byte("CANARY-canary-CANARY-canary-1234")))
	var out bytes.Buffer
	for _, v := range []any{tok, &tok, []Token{tok}, map[string]any{"t": tok}, struct{ T Token }{tok}, challenge, &challenge, struct{ C Challenge }{challenge}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		j, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(j)
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(h).Error("joined", "token", v)
		}
	}
	fmt.Fprintln(&out, fmt.Errorf("use %v: %w", tok, ErrProof))
	for _, secret := range [][]byte{testRandom[idSize:], []byte("CANARY-canary")} {
		for _, form := range []string{
			string(secret), hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)),
			strings.Trim(fmt.Sprint(secret), "[]"), strings.Trim(fmt.Sprintf("%#v", secret), "[]byte{}"),
		} {
			if strings.Contains(out.String(), form) {
				t.Errorf("secret printed as %s", form)
			}
		}
	}
	if strings.Contains(out.String(), tok.Text()[30:60]) {
		t.Error("the text was printed")
	}
	if !strings.Contains(out.String(), tok.ID) {
		t.Error("the id was not printed")
	}
}

func TestKeyIsBound(t *testing.T) {
	tok := testToken(t)
	other := tok
	other.Mesh[0]++
	again := tok
	again.ID = "00000000"
	secret := tok
	secret.secret[15]++
	keys := map[mesh.IdentityKey]bool{tok.Public(): true, other.Public(): true, again.Public(): true, secret.Public(): true}
	if len(keys) != 4 {
		t.Error("mesh, id and secret must each change the key")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(testToken(f).Text())
	f.Add(testToken(f, "[2001:db8::1]:1", "203.0.113.7:8686").Text())
	f.Add("gw1-")
	f.Add("gw2-abc")
	f.Add(" GW1-o0il")
	f.Fuzz(func(t *testing.T, in string) {
		tok, err := Parse(in)
		if err != nil {
			return
		}
		again, err := Parse(tok.Text())
		if err != nil {
			t.Fatalf("%q was accepted, its text is not: %v", in, err)
		}
		if d := equal(tok, again); d != "" {
			t.Fatal(d)
		}
	})
}
