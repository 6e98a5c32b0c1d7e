package keyring

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"guywire/mesh"
	"guywire/store/disk"
)

func stateDir(t *testing.T, path string) *disk.Dir {
	t.Helper()
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func newRing(t *testing.T, d *disk.Dir) *Ring {
	t.Helper()
	r, err := Create(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestLife(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := stateDir(t, path)
	if _, err := Open(d); !errors.Is(err, ErrNoIdentity) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty: %v", err)
	}
	r := newRing(t, d)
	if _, err := Create(d); !errors.Is(err, ErrExists) {
		t.Errorf("twice: %v", err)
	}
	one, err := r.Generate(1)
	if err != nil {
		t.Fatal(err)
	}
	two, err := r.Generate(2)
	if err != nil || one == two {
		t.Errorf("%v %v %v", one, two, err)
	}
	if _, err := r.Generate(0); err == nil {
		t.Error("epoch 0")
	}
	if again, err := r.Generate(1); err != nil || again != one {
		t.Errorf("asked again: %v %v", again, err)
	}
	if err := errors.Join(r.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}

	// After a restart everything is the same.
	d = stateDir(t, path)
	again, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Identity() != r.Identity() || !slices.Equal(again.Epochs(), []mesh.Epoch{1, 2}) {
		t.Errorf("%v %v", again.Identity(), again.Epochs())
	}
	private, err := again.Private(2)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ecdh.X25519().NewPrivateKey(private[:])
	if public, err2 := again.Public(2); err != nil || err2 != nil || mesh.WireGuardKey(k.PublicKey().Bytes()) != two || public != two {
		t.Errorf("epoch 2: %v %v %v", err, err2, public)
	}
	if private[0]&7 != 0 || private[31]&0xc0 != 0x40 {
		t.Error("the private key is not clamped")
	}
	for range 2 {
		if err := again.Retire(1); err != nil {
			t.Error(err)
		}
	}
	if _, err := again.Private(1); !errors.Is(err, ErrNoKey) {
		t.Errorf("retired: %v", err)
	}
	if _, err := again.Public(1); !errors.Is(err, ErrNoKey) {
		t.Errorf("retired: %v", err)
	}

	// Destroy leaves nothing, and the next identity is another.
	if err := again.Destroy(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(path, directory)); err != nil || len(left) != 0 {
		t.Errorf("%v %v", left, err)
	}
	if next := newRing(t, d); next.Identity() == r.Identity() || len(next.Epochs()) != 0 {
		t.Error("the old keys are back")
	}
}

// A crash in the middle of Destroy leaves no key of the old identity behind.
func TestCreateAfterInterruptedDestroy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := stateDir(t, path)
	r := newRing(t, d)
	if _, err := r.Generate(1); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(path, directory, identityFile)); err != nil {
		t.Fatal(err)
	}
	if next := newRing(t, d); len(next.Epochs()) != 0 {
		t.Errorf("epochs %v", next.Epochs())
	}
}

func TestSigning(t *testing.T) {
	r := newRing(t, stateDir(t, filepath.Join(t.TempDir(), "state")))
	if !r.Identity().Verify([]byte("m"), r.Sign([]byte("m"))) {
		t.Error("Sign")
	}
	s := r.Signer()
	sig, err := s.Sign(nil, []byte("m"), crypto.Hash(0))
	if err != nil || !ed25519.Verify(s.Public().(ed25519.PublicKey), []byte("m"), sig) || mesh.IdentityKey(s.Public().(ed25519.PublicKey)) != r.Identity() {
		t.Errorf("Signer: %v", err)
	}
}

func TestBadFiles(t *testing.T) {
	for name, c := range map[string]struct {
		change func(identity, wg string) error
		want   error
	}{
		"identity bit":   {func(id, _ string) error { return edit(id, func(b []byte) []byte { b[12] ^= 1; return b }) }, ErrCorrupt},
		"key bit":        {func(_, wg string) error { return edit(wg, func(b []byte) []byte { b[12] ^= 1; return b }) }, ErrCorrupt},
		"truncated":      {func(id, _ string) error { return edit(id, func(b []byte) []byte { return b[:40] }) }, ErrCorrupt},
		"empty":          {func(id, _ string) error { return edit(id, func([]byte) []byte { return nil }) }, ErrCorrupt},
		"other kind":     {func(id, wg string) error { return os.Rename(wg, id) }, ErrCorrupt},
		"second line":    {func(_, wg string) error { return edit(wg, func(b []byte) []byte { return append(b, b...) }) }, ErrCorrupt},
		"huge":           {func(_, wg string) error { return edit(wg, func([]byte) []byte { return make([]byte, maxFile+1) }) }, disk.ErrTooLarge},
		"readable":       {func(id, _ string) error { return os.Chmod(id, 0o644) }, disk.ErrUnsafe},
		"WireGuard mode": {func(_, wg string) error { return os.Chmod(wg, 0o640) }, disk.ErrUnsafe},
		"directory mode": {func(id, _ string) error { return os.Chmod(filepath.Dir(id), 0o755) }, disk.ErrUnsafe},
		"symbolic link":  {func(id, wg string) error { return errors.Join(os.Remove(id), os.Symlink(wg, id)) }, disk.ErrUnsafe},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			d := stateDir(t, path)
			r := newRing(t, d)
			if _, err := r.Generate(1); err != nil {
				t.Fatal(err)
			}
			keys := filepath.Join(path, directory)
			if err := c.change(filepath.Join(keys, identityFile), filepath.Join(keys, fileOf(1))); err != nil {
				t.Fatal(err)
			}
			_, err := Open(d)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), keys) {
				t.Errorf("%v, want %v and the file", err, c.want)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "state")
	d := stateDir(t, path)
	newRing(t, d)
	if err := os.WriteFile(filepath.Join(path, directory, epochPrefix+"01"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(d); err == nil || !strings.Contains(err.Error(), epochPrefix+"01") {
		t.Errorf("a strange name: %v", err)
	}
}

func edit(path string, change func([]byte) []byte) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, change(b), 0o600)
}

// TestB05NothingPrintsKeys: no verb, handler or encoder shows a private key.
func TestB05NothingPrintsKeys(t *testing.T) {
	r := newRing(t, stateDir(t, filepath.Join(t.TempDir(), "state")))
	if _, err := r.Generate(1); err != nil {
		t.Fatal(err)
	}
	wg, _ := r.Private(1)
	out := printed(r, []*Ring{r}, struct{ R *Ring }{r}, r.Signer())
	hides(t, out, r.identity.Seed())
	hides(t, out, wg[:])
	if !strings.Contains(out, r.Identity().String()) {
		t.Error("the public identity was not printed")
	}
}

// printed is what every verb, handler and encoder makes of values.
func printed(values ...any) string {
	var out bytes.Buffer
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		j, _ := json.Marshal(v)
		out.Write(j)
		slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "v", v)
	}
	return out.String()
}

// hides fails when a secret is in a text, however it is written.
func hides(t *testing.T, text string, secret []byte) {
	t.Helper()
	for _, form := range []string{
		string(secret), hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret),
		strings.Trim(fmt.Sprint(secret), "[]"), strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", secret), "[]byte{"), "}"),
	} {
		if strings.Contains(text, form) {
			t.Errorf("a private key was printed as %s", form)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	r := newRing(t, stateDir(t, filepath.Join(t.TempDir(), "state")))
	var wg sync.WaitGroup
	keys := make([]mesh.WireGuardKey, 8)
	for i := range keys {
		wg.Go(func() {
			keys[i], _ = r.Generate(7)
			_, _ = r.Private(7)
			_ = r.Epochs()
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] || k.IsZero() {
			t.Fatalf("one epoch, several keys: %v", keys)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(string(encode(kindWireGuard, make([]byte, 32), make([]byte, 32))))
	f.Add("x25519-v1 AA BB")
	f.Add("")
	f.Fuzz(func(t *testing.T, in string) {
		private, public, err := decode(kindWireGuard, []byte(in))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if string(encode(kindWireGuard, private[:], public[:])) != in {
			t.Fatalf("two spellings: %q", in)
		}
	})
}
