package keyring

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"guywire/mesh"
)

func newCredential(t testing.TB) *Credential {
	t.Helper()
	c, err := NewCredential("alice", mesh.MeshID{1, 2}, [][32]byte{{3}, {4}},
		[]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51821"), netip.MustParseAddrPort("[2001:db8::1]:51821")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCredential(t *testing.T) {
	path := filepath.Join(t.TempDir(), "alice.json")
	c := newCredential(t)
	if err := c.Write(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v %v, want 0600", info.Mode(), err)
	}
	if err := newCredential(t).Write(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another: %v", err)
	}
	again, err := ReadCredential(path)
	if err != nil || !reflect.DeepEqual(again, c) {
		t.Fatalf("read %v %v, want %v", again, err, c)
	}
	if !c.Identity().Verify([]byte("m"), again.Sign([]byte("m"))) {
		t.Error("Sign")
	}
	s := again.Signer()
	sig, err := s.Sign(nil, []byte("m"), crypto.Hash(0))
	if err != nil || !c.Identity().Verify([]byte("m"), sig) || mesh.IdentityKey(s.Public().(ed25519.PublicKey)) != c.Identity() {
		t.Errorf("Signer: %v", err)
	}
	if other := newCredential(t); other.Identity() == c.Identity() {
		t.Error("two credentials, one key")
	}
	if err := c.Write(filepath.Join(path, "below")); err == nil {
		t.Error("written below a file")
	}
}

func TestCredentialRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "alice.json")
	if _, err := ReadCredential(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := ReadCredential(filepath.Dir(path)); !errors.Is(err, ErrCredential) {
		t.Errorf("a directory: %v", err)
	}
	whole, err := newCredential(t).encode()
	if err != nil {
		t.Fatal(err)
	}
	seed := newCredential(t).identity.Seed()
	other := base64.StdEncoding.EncodeToString(seed)
	var file credentialFile
	if err := json.Unmarshal(whole, &file); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"empty":           nil,
		"cut":             whole[:len(whole)-4],
		"twice":           append(bytes.Clone(whole), whole...),
		"other private":   bytes.Replace(whole, []byte(file.Private), []byte(other), 1),
		"short private":   bytes.Replace(whole, []byte(file.Private), []byte("AAAA"), 1),
		"later version":   bytes.Replace(whole, []byte(`operator": 1`), []byte(`operator": 2`), 1),
		"no pin":          bytes.Replace(whole, []byte(`"`+file.Pins[0]+`",`), nil, 1),
		"wrong pin":       bytes.Replace(whole, []byte(file.Pins[0]), []byte("03"), 1),
		"no name":         bytes.Replace(whole, []byte("alice"), nil, 1),
		"no mesh":         bytes.Replace(whole, []byte(file.Mesh.String()), []byte("0000000000000000"), 1),
		"no port":         bytes.Replace(whole, []byte("192.0.2.1:51821"), []byte("192.0.2.1:0"), 1),
		"something extra": bytes.Replace(whole, []byte("{\n"), []byte("{\n  \"x\": 1,\n"), 1),
		"huge":            append(bytes.Clone(whole), bytes.Repeat([]byte(" "), maxCredential)...),
	} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadCredential(path)
		if !errors.Is(err, ErrCredential) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want ErrCredential and the file", name, err)
		} else if strings.Contains(err.Error(), file.Private[:8]) || strings.Contains(err.Error(), other[:8]) {
			t.Errorf("%s: the error shows the key", name)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadCredential(path); !errors.Is(err, ErrExposed) {
			t.Errorf("mode %#o: %v, want ErrExposed", mode, err)
		}
	}
	server := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}
	for name, make := range map[string]func() (*Credential, error){
		"name": func() (*Credential, error) {
			return NewCredential("not a name", mesh.MeshID{1}, [][32]byte{{1}}, server)
		},
		"mesh":    func() (*Credential, error) { return NewCredential("a", mesh.MeshID{}, [][32]byte{{1}}, server) },
		"pins":    func() (*Credential, error) { return NewCredential("a", mesh.MeshID{1}, nil, server) },
		"servers": func() (*Credential, error) { return NewCredential("a", mesh.MeshID{1}, [][32]byte{{1}}, nil) },
		"server": func() (*Credential, error) {
			return NewCredential("a", mesh.MeshID{1}, [][32]byte{{1}}, []netip.AddrPort{{}})
		},
	} {
		if c, err := make(); err == nil {
			t.Errorf("made without a usable %s: %v", name, c)
		}
	}
}

func TestNothingPrintsCredentials(t *testing.T) {
	c := newCredential(t)
	out := printed(c, []*Credential{c}, struct{ C *Credential }{c}, c.Signer())
	hides(t, out, c.identity.Seed())
	if !strings.Contains(out, c.Identity().String()) {
		t.Error("the public key was not printed")
	}
}

func FuzzCredential(f *testing.F) {
	whole, _ := newCredential(f).encode()
	f.Add(whole)
	f.Add([]byte("{}"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := decodeCredential(in)
		if err != nil {
			if !errors.Is(err, ErrCredential) {
				t.Fatal(err)
			}
			return
		}
		if out, err := c.encode(); err != nil || !bytes.Equal(out, in) {
			t.Fatalf("two spellings: %v", err)
		}
	})
}
