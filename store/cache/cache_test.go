package cache

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/disk"
)

var (
	testMesh = mesh.MeshID{1, 2, 3}
	testNow  = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

	testStamp = Stamp{Saved: testNow, Confirmed: testNow.Add(-time.Minute)}
)

type testKey ed25519.PrivateKey

func newKey(fill byte) testKey {
	return testKey(ed25519.NewKeyFromSeed(slices.Repeat([]byte{fill}, 32)))
}

func (k testKey) Identity() mesh.IdentityKey {
	return mesh.IdentityKey(ed25519.PrivateKey(k).Public().(ed25519.PublicKey))
}

func (k testKey) Sign(m []byte) []byte { return ed25519.Sign(ed25519.PrivateKey(k), m) }

func (k testKey) owner() Owner { return Owner{testMesh, k.Identity().NodeID()} }

// testState is a mesh of one node with this key.
func testState(t testing.TB, k testKey) *store.State {
	t.Helper()
	wg, err := ecdh.X25519().NewPrivateKey(k[:32])
	if err != nil {
		t.Fatal(err)
	}
	return apply(t, nil, store.Command{Init: &store.Init{
		Settings: store.Settings{ID: testMesh, Name: "acme", Pool4: netip.MustParsePrefix("10.86.0.0/16"), Pool6: store.RandomULA([5]byte{1}), Secret: make([]byte, store.SecretSize)},
		Name:     "hub", Identity: k.Identity(), Key: store.Key{Epoch: 1, Public: mesh.WireGuardKey(wg.PublicKey().Bytes())},
	}})
}

func apply(t testing.TB, s *store.State, c store.Command) *store.State {
	t.Helper()
	c.Version, c.Now = store.Version, testNow
	index := uint64(1)
	if s != nil {
		index += s.Index
	}
	s, r := store.Apply(s, index, c)
	if r.Refused != nil {
		t.Fatal(r.Refused)
	}
	return s
}

func stateDir(t testing.TB, path string) *disk.Dir {
	t.Helper()
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func openCache(t testing.TB, d *disk.Dir, k testKey) *Cache {
	t.Helper()
	if err := Bind(d, k.owner()); err != nil {
		t.Fatal(err)
	}
	c, err := Open(d, k)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d, k := stateDir(t, path), newKey(1)
	c := openCache(t, d, k)
	if c.Owner() != k.owner() {
		t.Errorf("owner %v", c.Owner())
	}
	if _, _, err := c.LoadState(testNow); !errors.Is(err, ErrEmpty) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty: %v", err)
	}
	s := testState(t, k)
	for _, name := range []Blob{Links, Facts} {
		if _, err := c.LoadBlob(name); !errors.Is(err, ErrEmpty) {
			t.Errorf("empty: %v", err)
		}
	}
	if err := errors.Join(c.SaveState(s, testStamp), c.SaveBlob(Links, []byte("line one\nline two")), c.SaveBlob(Facts, nil)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}

	d = stateDir(t, path)
	c, err := Open(d, k)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, stamp, err := c.LoadState(testNow)
	if err != nil || store.Hash(got) != store.Hash(s) || !stamp.Saved.Equal(testStamp.Saved) || !stamp.Confirmed.Equal(testStamp.Confirmed) {
		t.Errorf("state: %+v %v", stamp, err)
	}
	if b, err := c.LoadBlob(Links); err != nil || string(b) != "line one\nline two" {
		t.Errorf("links: %q %v", b, err)
	}
	if b, err := c.LoadBlob(Facts); err != nil || len(b) != 0 {
		t.Errorf("facts: %q %v", b, err)
	}
	if err := c.SaveBlob(Links, make([]byte, MaxBlobBytes+1)); err == nil {
		t.Error("a huge blob was taken")
	}
}

// B21: whatever is damaged is set aside with a clear error, and the next save works.
func TestUnusableIsSetAside(t *testing.T) {
	k := newKey(1)
	good := testState(t, k)
	other := newKey(2)
	for name, change := range map[string]func(t *testing.T, file string, b []byte) []byte{
		"empty":          func(*testing.T, string, []byte) []byte { return nil },
		"truncated":      func(_ *testing.T, _ string, b []byte) []byte { return b[:len(b)-1] },
		"cut header":     func(_ *testing.T, _ string, b []byte) []byte { return b[:30] },
		"appended":       func(_ *testing.T, _ string, b []byte) []byte { return append(b, ' ') },
		"flipped body":   func(_ *testing.T, _ string, b []byte) []byte { b[len(b)-9] ^= 1; return b },
		"flipped header": func(_ *testing.T, _ string, b []byte) []byte { b[3] ^= 1; return b },
		"flipped sign":   func(_ *testing.T, _ string, b []byte) []byte { b[bytes.IndexByte(b, '\n')-9] ^= 1; return b },
		"older": func(_ *testing.T, _ string, b []byte) []byte {
			return bytes.Replace(b, []byte(" 2 "), []byte(" 1 "), 1)
		},
		"other time": func(_ *testing.T, _ string, b []byte) []byte {
			return bytes.Replace(b, fmt.Appendf(nil, " %d ", testStamp.Confirmed.Unix()), fmt.Appendf(nil, " %d ", testStamp.Confirmed.Unix()+1), 1)
		},
		"no time": func(_ *testing.T, _ string, b []byte) []byte {
			return bytes.Replace(b, fmt.Appendf(nil, " %d ", testStamp.Confirmed.Unix()), []byte(" x "), 1)
		},
		"no line end":     func(*testing.T, string, []byte) []byte { return make([]byte, 100_000) },
		"another's":       func(t *testing.T, _ string, _ []byte) []byte { return fileOf(t, other, stateFile, testState(t, other)) },
		"of another kind": func(t *testing.T, _ string, _ []byte) []byte { return fileOf(t, k, string(Links), good) },
		"node is not in":  func(t *testing.T, _ string, _ []byte) []byte { return fileOf(t, k, stateFile, testState(t, other)) },
		"not a state":     func(t *testing.T, _ string, _ []byte) []byte { return signed(k, stateFile, testStamp, []byte("{}")) },
		"of another mesh": func(t *testing.T, _ string, _ []byte) []byte {
			s := *good
			s.Mesh.ID[0]++
			return fileOf(t, k, stateFile, &s)
		},
		"other's mesh too": func(t *testing.T, _ string, b []byte) []byte {
			return bytes.Replace(b, []byte(testMesh.String()), []byte("0123456789abcdef"), 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			c := openCache(t, stateDir(t, path), k)
			if err := c.SaveState(good, testStamp); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(path, directory, stateFile)
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			bad := change(t, file, b)
			if err := os.WriteFile(file, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			s, _, err := c.LoadState(testNow)
			if !errors.Is(err, ErrUnusable) || s != nil || !strings.Contains(err.Error(), file+".bad") {
				t.Fatalf("%v", err)
			}
			if kept, err := os.ReadFile(file + ".bad"); err != nil || !bytes.Equal(kept, bad) {
				t.Errorf("set aside: %v", err)
			}
			if _, _, err := c.LoadState(testNow); !errors.Is(err, ErrEmpty) {
				t.Errorf("after that: %v", err)
			}
			if err := c.SaveState(good, testStamp); err != nil {
				t.Error(err)
			}
			if _, _, err := c.LoadState(testNow); err != nil {
				t.Error(err)
			}
		})
	}
}

// A state of a newer Guywire stays where it is, for after the upgrade.
func TestNewerStateStays(t *testing.T) {
	k := newKey(1)
	path := filepath.Join(t.TempDir(), "state")
	c := openCache(t, stateDir(t, path), k)
	file := filepath.Join(path, directory, stateFile)
	good := fileOf(t, k, stateFile, testState(t, k))
	body, err := store.Snapshot(testState(t, k))
	if err != nil {
		t.Fatal(err)
	}
	for name, newer := range map[string][]byte{
		"of the cache": bytes.Replace(good, []byte(" 2 "), []byte(" 3 "), 1),
		"of the state": signed(k, stateFile, testStamp, bytes.Replace(body, []byte("state 1 "), []byte("state 9 "), 1)),
	} {
		if err := os.WriteFile(file, newer, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if s, _, err := c.LoadState(testNow); !errors.Is(err, store.ErrNewer) || errors.Is(err, ErrUnusable) || s != nil || !strings.Contains(err.Error(), file) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if kept, err := os.ReadFile(file); err != nil || !bytes.Equal(kept, newer) {
			t.Errorf("%s: it is not there any more: %v", name, err)
		}
	}
}

// TestB21PreviousState: what was saved before is there when the newest is
// damaged or missing, and is not replaced by what is damaged.
func TestB21PreviousState(t *testing.T) {
	k := newKey(1)
	path := filepath.Join(t.TempDir(), "state")
	c := openCache(t, stateDir(t, path), k)
	file := filepath.Join(path, directory, stateFile)
	first := testState(t, k)
	second := *first
	second.Index++
	for _, s := range []*store.State{first, &second} {
		if err := c.SaveState(s, Stamp{Saved: testNow, Confirmed: testNow.Add(time.Duration(s.Index) * time.Minute)}); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-9] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	is := func(s *store.State, stamp Stamp, want *store.State) bool {
		return s != nil && s.Index == want.Index && stamp.Confirmed.Equal(testNow.Add(time.Duration(want.Index)*time.Minute))
	}
	if s, stamp, err := c.LoadState(testNow); !errors.Is(err, ErrUnusable) || !is(s, stamp, first) {
		t.Errorf("the one before: %+v %v", stamp, err)
	}
	if s, stamp, err := c.LoadState(testNow); err != nil || !is(s, stamp, first) {
		t.Errorf("again: %+v %v", stamp, err)
	}
	third := second
	third.Index++
	if err := c.SaveState(&third, Stamp{Saved: testNow, Confirmed: testNow.Add(time.Duration(third.Index) * time.Minute)}); err != nil {
		t.Fatal(err)
	}
	if s, stamp, err := c.LoadState(testNow); err != nil || !is(s, stamp, &third) {
		t.Errorf("the newest: %+v %v", stamp, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if s, stamp, err := c.LoadState(testNow); err != nil || !is(s, stamp, first) {
		t.Errorf("the newest is missing: %+v %v", stamp, err)
	}
	// It is judged as any other.
	gone := apply(t, first, store.Command{By: store.Authority{Node: k.Identity().NodeID()}, RemoveNode: &store.RemoveNode{Node: k.Identity().NodeID()}})
	if err := os.WriteFile(filepath.Join(path, directory, previousFile), fileOf(t, k, stateFile, gone), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.LoadState(testNow); !errors.Is(err, ErrRemoved) {
		t.Errorf("removed: %v", err)
	}
}

// signed is a file as the key's owner writes it: of version 1 with a zero stamp.
func signed(k testKey, kind string, stamp Stamp, body []byte) []byte {
	c := &Cache{owner: k.owner(), key: k}
	h := header{version, kind, stamp}
	if stamp == (Stamp{}) {
		h.version = 1
	}
	return c.seal(h, body)
}

func fileOf(t *testing.T, k testKey, kind string, s *store.State) []byte {
	t.Helper()
	b, err := store.Snapshot(s)
	if err != nil {
		t.Fatal(err)
	}
	return signed(k, kind, testStamp, b)
}

// A file that others can read is refused and stays where it is: it is not
// damaged, and a person must see why.
func TestUnsafeStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	k := newKey(1)
	c := openCache(t, stateDir(t, path), k)
	if err := c.SaveState(testState(t, k), testStamp); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(path, directory, stateFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.LoadState(testNow); !errors.Is(err, disk.ErrUnsafe) {
		t.Errorf("%v", err)
	}
	if err := os.Chmod(filepath.Join(path, directory, stateFile), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.LoadState(testNow); err != nil {
		t.Error(err)
	}
}

// Tombstones are checked again at boot: a removed node brings nothing up.
func TestRemovedNode(t *testing.T) {
	k := newKey(1)
	c := openCache(t, stateDir(t, filepath.Join(t.TempDir(), "state")), k)
	id := k.Identity().NodeID()
	s := apply(t, testState(t, k), store.Command{By: store.Authority{Node: id}, RemoveNode: &store.RemoveNode{Node: id}})
	if err := c.SaveState(s, testStamp); err != nil {
		t.Fatal(err)
	}
	got, _, err := c.LoadState(testNow)
	if !errors.Is(err, ErrRemoved) || got == nil || !got.Removed[id].At.Equal(testNow) {
		t.Errorf("%v", err)
	}
}

func TestOtherMeshIsNotSaved(t *testing.T) {
	k := newKey(1)
	c := openCache(t, stateDir(t, filepath.Join(t.TempDir(), "state")), k)
	s := *testState(t, k)
	s.Mesh.ID[7]++
	if err := c.SaveState(&s, testStamp); !errors.Is(err, ErrOtherMesh) {
		t.Errorf("%v", err)
	}
}

func TestOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d, k, other := stateDir(t, path), newKey(1), newKey(2)
	if _, err := ReadOwner(d); !errors.Is(err, ErrNotEnrolled) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("new: %v", err)
	}
	if _, err := Open(d, k); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("new: %v", err)
	}
	for range 2 {
		if err := Bind(d, k.owner()); err != nil {
			t.Fatal(err)
		}
	}
	if o, err := ReadOwner(d); err != nil || o != k.owner() {
		t.Errorf("%v %v", o, err)
	}
	for _, o := range []Owner{other.owner(), {mesh.MeshID{9}, k.Identity().NodeID()}} {
		if err := Bind(d, o); !errors.Is(err, ErrOtherMesh) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "meshctl leave") {
			t.Errorf("%v", err)
		}
	}
	if _, err := Open(d, other); !errors.Is(err, ErrOtherMesh) {
		t.Errorf("another key: %v", err)
	}

	c := openCache(t, d, k)
	if err := errors.Join(c.SaveBlob(Links, []byte("x")), c.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Forget(d); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := d.List(); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
	if err := Bind(d, other.owner()); err != nil {
		t.Errorf("after Forget: %v", err)
	}
}

func TestBadOwnerFile(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "array": "[]", "missing": `{"version":1,"mesh":"0102030405060708"}`, "id": `{"version":1,"mesh":"x","node":"0102030405060708"}`,
		"no version": `{"mesh":"0102030405060708","node":"0102030405060708"}`, "newer": `{"version":2,"mesh":"0102030405060708","node":"0102030405060708"}`,
		"two": `{"version":1,"mesh":"0102030405060708","node":"0102030405060708"}{}`,
	} {
		path := filepath.Join(t.TempDir(), "state")
		d := stateDir(t, path)
		if err := d.Write(nodeFile, []byte(content)); err != nil {
			t.Fatal(err)
		}
		_, err := ReadOwner(d)
		if err == nil || errors.Is(err, ErrNotEnrolled) || !strings.Contains(err.Error(), d.Path(nodeFile)) {
			t.Errorf("%s: %v", name, err)
		}
		if err := Bind(d, newKey(1).owner()); err == nil {
			t.Errorf("%s: was overwritten", name)
		}
	}
}

// Before version 2 there were no times. What an old node wrote, the next
// version reads; and where an age is asked for, it has none.
func TestCacheV1IsRead(t *testing.T) {
	k := newKey(1)
	d := stateDir(t, filepath.Join(t.TempDir(), "state"))
	c := openCache(t, d, k)
	s := testState(t, k)
	b, err := store.Snapshot(s)
	if err != nil {
		t.Fatal(err)
	}
	message := fmt.Sprintf("guywire cache v1\x00guywire-cache 1 state %s %s \n%s", testMesh, k.Identity().NodeID(), b)
	file := fmt.Appendf(nil, "guywire-cache 1 state %s %s %s\n%s", testMesh, k.Identity().NodeID(), base64.StdEncoding.EncodeToString(k.Sign([]byte(message))), b)
	if err := c.dir.Write(stateFile, file); err != nil {
		t.Fatal(err)
	}
	got, stamp, err := c.LoadState(testNow)
	if err != nil || store.Hash(got) != store.Hash(s) || stamp != (Stamp{}) {
		t.Fatalf("%+v %v", stamp, err)
	}
	if stamp.Age(testNow) < store.MaxCacheAge {
		t.Error("a state that nobody confirmed passes for new")
	}
}

// TestCacheTooOld: the policy is the mesh's, the age counts from when a voter
// confirmed the state, and a clock that was set back proves nothing.
func TestCacheTooOld(t *testing.T) {
	k := newKey(1)
	c := openCache(t, stateDir(t, filepath.Join(t.TempDir(), "state")), k)
	old := testState(t, k)
	upgrade, err := store.SignCommand(store.Command{
		Version: store.Version, Author: k.Identity(), Request: store.Nonce{1}, After: old.Index, SetVersion: &store.SetVersion{Version: 3},
	}, testMesh, k.Sign)
	if err != nil {
		t.Fatal(err)
	}
	s := *apply(t, old, upgrade)
	s.Mesh.Authorities = []store.CA{{Pin: store.Digest{1}, Root: []byte{1}, State: store.CACurrent}}
	confirmed := testStamp.Confirmed
	for _, tc := range []struct {
		limit time.Duration
		now   time.Time
		old   bool
	}{
		{0, confirmed.Add(100 * 365 * 24 * time.Hour), false},
		{time.Hour, confirmed.Add(time.Hour), false},
		{time.Hour, confirmed.Add(time.Hour + time.Second), true},
		{2 * time.Hour, confirmed.Add(time.Hour + time.Second), false},
		{time.Hour, time.Unix(0, 0), false},
		{time.Hour, testStamp.Saved.Add(-time.Second), false},
	} {
		s.Mesh.CacheMaxAge = tc.limit
		if err := c.SaveState(&s, testStamp); err != nil {
			t.Fatal(err)
		}
		got, stamp, err := c.LoadState(tc.now)
		if errors.Is(err, ErrExpired) != tc.old || got == nil || !stamp.Confirmed.Equal(confirmed) {
			t.Errorf("limit %s at %s: %v", tc.limit, tc.now, err)
		}
	}
	// Nobody ever confirmed it: it has no age, but the greatest.
	s.Mesh.CacheMaxAge = store.MaxCacheAge
	if err := c.SaveState(&s, Stamp{Saved: testNow}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.LoadState(testNow); !errors.Is(err, ErrExpired) {
		t.Errorf("never confirmed: %v", err)
	}
}

func TestSetAside(t *testing.T) {
	k := newKey(1)
	c := openCache(t, stateDir(t, filepath.Join(t.TempDir(), "state")), k)
	if _, err := c.SetAside(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing to set aside: %v", err)
	}
	s := testState(t, k)
	if err := c.SaveState(s, testStamp); err != nil {
		t.Fatal(err)
	}
	path, err := c.SetAside()
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(kept, fileOf(t, k, stateFile, s)) {
		t.Errorf("the copy: %v", err)
	}
	if _, _, err := c.LoadState(testNow); err != nil {
		t.Errorf("the state itself: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	k := newKey(1)
	c := &Cache{owner: k.owner(), key: k}
	f.Add(signed(k, stateFile, testStamp, []byte("body")))
	f.Add(signed(k, stateFile, Stamp{}, []byte("body")))
	f.Add(signed(k, string(Links), Stamp{}, nil))
	f.Add([]byte("guywire-cache 2 state 1 2\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, body, err := c.open(stateFile, b)
		if err == nil && !bytes.Equal(c.seal(h, body), b) {
			t.Fatalf("taken, but never signed: %q", b)
		}
	})
}

func FuzzOwner(f *testing.F) {
	f.Add([]byte(`{"version":1,"mesh":"0102030405060708","node":"0102030405060708"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := decodeOwner(b); err == nil && (o.Mesh.IsZero() || o.Node.IsZero()) {
			t.Fatal("an owner without a name")
		}
	})
}
