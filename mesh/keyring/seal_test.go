package keyring

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"guywire/mesh"
	"guywire/store/disk"
)

// What is sealed to a key opens with that key and info alone, whole.
func TestSeal(t *testing.T) {
	dir, err := disk.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	r, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	one, err := r.Generate(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Generate(2); err != nil {
		t.Fatal(err)
	}
	message, info := []byte("thirty-two bytes of a secret key"), []byte("for the test")
	sealed, err := Seal(one, info, message)
	if err != nil {
		t.Fatal(err)
	}
	if len(sealed) != 32+len(message)+16 || bytes.Contains(sealed, message[:8]) {
		t.Errorf("sealed as %d bytes %x", len(sealed), sealed)
	}
	if again, err := Seal(one, info, message); err != nil || bytes.Equal(again, sealed) {
		t.Errorf("sealed twice alike: %v", err)
	}
	if got, err := r.Unseal(1, info, sealed); err != nil || !bytes.Equal(got, message) {
		t.Errorf("opened as %q: %v", got, err)
	}
	if _, err := r.Unseal(2, info, sealed); err == nil {
		t.Error("another key opens it")
	}
	if _, err := r.Unseal(3, info, sealed); !errors.Is(err, ErrNoKey) {
		t.Error(err)
	}
	if _, err := r.Unseal(1, []byte("for something else"), sealed); err == nil {
		t.Error("it opens as something else")
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := r.Unseal(1, info, bad); err == nil {
			t.Fatalf("byte %d may be changed", i)
		}
		if _, err := r.Unseal(1, info, sealed[:i]); err == nil {
			t.Fatalf("%d bytes are enough", i)
		}
	}
	if _, err := Seal(mesh.WireGuardKey{}, info, message); err == nil {
		t.Error("sealed to a key that everybody has")
	}
}
