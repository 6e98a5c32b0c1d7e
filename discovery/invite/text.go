package invite

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"guywire/mesh"
)

// The text of a token is "gw1-" and Crockford's base32 in lower case. Base32
// costs a fifth more characters than base64 and gives what a pasted and
// sometimes dictated secret needs: one word for a double click, no meaning in
// upper or lower case, and no pair of characters that look alike.
//
//	byte   head: bit 0 two pins, bits 1-2 servers, bits 3-5 server i is IPv6
//	8      mesh id
//	5      token id
//	16     secret
//	4      expiry, seconds since 1970
//	32     pin, one or two
//	6, 18  server: address and port, one to three
//	4      first bytes of the SHA-256 of "gw1-" and all the above
//
// The head comes first so that a token whose end is missing is known as cut
// off, which is the usual accident, and not as damaged.
const (
	prefix      = "gw1-"
	alphabet    = "0123456789abcdefghjkmnpqrstvwxyz"
	sumSize     = 4
	fixedSize   = 1 + 8 + idSize + secretSize + 4
	maxExpiry   = 1<<32 - 1
	maxTextSize = 4096 // of what Parse looks at; the longest token has 326 characters
)

var encoding = base32.NewEncoding(alphabet).WithPadding(base32.NoPadding)

// Text gives the text that admits a node. It is the one function that
// reveals the secret: print it once, to the person who asked for the token.
func (t Token) Text() string {
	var b []byte
	head := byte(len(t.Pins)-1) | byte(len(t.Servers))<<1
	for i, s := range t.Servers {
		if s.Addr().Is6() {
			head |= 1 << (3 + i)
		}
	}
	id, _ := encoding.DecodeString(t.ID) // New and Parse made it
	b = append(b, head)
	b = append(b, t.Mesh[:]...)
	b = append(b, id...)
	b = append(b, t.secret[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(t.Expires.Unix()))
	for _, pin := range t.Pins {
		b = append(b, pin[:]...)
	}
	for _, s := range t.Servers {
		b = append(b, s.Addr().AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, s.Port())
	}
	b = append(b, checksum(b)...)
	return prefix + encoding.EncodeToString(b)
}

// Parse reads what Text wrote. It tolerates white space anywhere (a terminal
// that broke the line), any case, and Crockford's look-alikes (o for 0; i and
// l for 1). The expiry is not judged here: whoever has a clock does that.
func Parse(text string) (Token, error) {
	word, err := normalise(text)
	if err != nil {
		return Token{}, err
	}
	if len(word) < 2 {
		return Token{}, fmt.Errorf("%w: nothing follows %s", ErrTruncated, prefix)
	}
	head := alphabetIndex(word[0])<<3 | alphabetIndex(word[1])>>2
	size, ok := sizeOf(byte(head))
	if !ok {
		return Token{}, ErrChecksum
	}
	want := encoding.EncodedLen(size)
	switch {
	case len(word) < want:
		return Token{}, fmt.Errorf("%w: %d of %d characters are here", ErrTruncated, len(prefix)+len(word), len(prefix)+want)
	case len(word) > want:
		return Token{}, fmt.Errorf("%w: %d characters follow its end", ErrChecksum, len(word)-want)
	}
	b, err := encoding.DecodeString(word)
	if err != nil || encoding.EncodeToString(b) != word { // unused bits of the last character
		return Token{}, ErrChecksum
	}
	body, sum := b[:size-sumSize], b[size-sumSize:]
	if !bytes.Equal(checksum(body), sum) {
		return Token{}, ErrChecksum
	}
	return parseBody(body)
}

// normalise strips the prefix and gives the rest in the canonical alphabet.
func normalise(text string) (string, error) {
	if len(text) > maxTextSize {
		return "", ErrNotToken
	}
	var w strings.Builder
	for _, r := range text {
		switch {
		case unicode.IsSpace(r), r == '\u200b', r == '\ufeff': // also what browsers and chat programs slip in
		case r > unicode.MaxASCII:
			return "", ErrNotToken
		default:
			w.WriteRune(unicode.ToLower(r))
		}
	}
	word := w.String()
	switch {
	case strings.HasPrefix(word, prefix):
		word = word[len(prefix):]
	case otherVersion(word):
		return "", ErrVersion
	case word != "" && strings.HasPrefix(prefix, word):
		return "", ErrTruncated
	default:
		return "", ErrNotToken
	}
	word = strings.NewReplacer("o", "0", "i", "1", "l", "1").Replace(word)
	for i := range len(word) {
		if alphabetIndex(word[i]) < 0 {
			return "", fmt.Errorf("%w: character %d cannot stand in a token", ErrNotToken, len(prefix)+i+1)
		}
	}
	return word, nil
}

// otherVersion reports whether word is "gw", a number and a hyphen.
func otherVersion(word string) bool {
	number, _, found := strings.Cut(strings.TrimPrefix(word, "gw"), "-")
	return found && strings.HasPrefix(word, "gw") && number != "" && strings.Trim(number, "0123456789") == ""
}

func alphabetIndex(c byte) int { return strings.IndexByte(alphabet, c) }

// sizeOf gives the whole size in bytes that the head announces.
func sizeOf(head byte) (int, bool) {
	servers := int(head >> 1 & 3)
	if servers == 0 || head>>(3+servers) != 0 {
		return 0, false
	}
	size := fixedSize + 32*(int(head&1)+1) + sumSize
	for i := range servers {
		size += serverSize(head, i)
	}
	return size, true
}

func serverSize(head byte, i int) int {
	if head>>(3+i)&1 == 1 {
		return 16 + 2
	}
	return 4 + 2
}

// parseBody reads the fields; the size is known to match the head.
func parseBody(b []byte) (Token, error) {
	head := b[0]
	t := Token{
		Mesh:   mesh.MeshID(b[1:9]),
		ID:     encoding.EncodeToString(b[9 : 9+idSize]),
		secret: [secretSize]byte(b[9+idSize:]),
	}
	t.Expires = time.Unix(int64(binary.BigEndian.Uint32(b[fixedSize-4:])), 0).UTC()
	rest := b[fixedSize:]
	for range int(head&1) + 1 {
		t.Pins = append(t.Pins, [32]byte(rest))
		rest = rest[32:]
	}
	for i := range int(head >> 1 & 3) {
		n := serverSize(head, i)
		addr, _ := netip.AddrFromSlice(rest[:n-2])
		t.Servers = append(t.Servers, netip.AddrPortFrom(addr, binary.BigEndian.Uint16(rest[n-2:])))
		rest = rest[n:]
	}
	if err := t.check(); err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrNotToken, err)
	}
	return t, nil
}

func checksum(body []byte) []byte {
	h := sha256.New()
	h.Write([]byte(prefix))
	h.Write(body)
	return h.Sum(nil)[:sumSize]
}
