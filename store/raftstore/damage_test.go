package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"guywire/store"
)

// written is a folder with a snapshot and entries before and after it, and the
// hashes of all states that it went through, by index.
func written(t *testing.T) (dir string, history map[uint64][32]byte, last uint64) {
	t.Helper()
	f := newFleet(t)
	v := f.founded()
	history = map[uint64][32]byte{0: store.Hash(store.New())}
	note := func() { history[v.State().Index] = store.Hash(v.State()) }
	note()
	for n := range 12 {
		if n == 5 {
			if err := v.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
		f.propose([]*voter{v}, f.write(n+1))
		note()
	}
	last = v.State().Index
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	return v.config.Dir, history, last
}

// reload reads a folder as Open does, without raft.
func reload(dir string) (*store.State, error) {
	closed := make(chan struct{})
	logger := newLogger(slog.New(slog.DiscardHandler), closed)
	snaps, err := openSnapshots(dir, logger)
	if err != nil {
		return nil, err
	}
	bolt, err := openBolt(filepath.Join(dir, "raft.db"))
	if err != nil {
		return nil, err
	}
	defer bolt.Close()
	s, err := load(Config{}, snaps, bolt, time.Minute, closed)
	if err != nil {
		return nil, err
	}
	return s.State(), nil
}

// A voter never serves another state than one that was: what is damaged is
// found, and otherwise it was not needed.
func TestB21FlippedLog(t *testing.T) {
	t.Parallel()
	dir, history, last := written(t)
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			files = append(files, rel)
		}
		return err
	})
	if err != nil || len(files) != 4 {
		t.Fatalf("files %v: %v", files, err)
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 21))
	t.Logf("seed %d", seed)
	place := filepath.Join(t.TempDir(), "copy")
	whole, refused, earlier := 0, 0, 0
	try := func(file, what string, b []byte) {
		t.Helper()
		if err := os.RemoveAll(place); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(place, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(place, file), b, 0o600); err != nil {
			t.Fatal(err)
		}
		state, err := reload(place)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%s, %s: %v, want ErrDamaged", file, what, err)
			}
			refused++
			return
		}
		if want, known := history[state.Index]; !known || store.Hash(state) != want {
			t.Errorf("%s, %s: another state at %d", file, what, state.Index)
		}
		if state.Index < last-1 { // the commit index of the last entry is not in the log yet
			earlier++
			t.Logf("%s, %s: state at %d", file, what, state.Index)
		} else {
			whole++
		}
	}
	for _, file := range files {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		flips := min(len(b), 120)
		for range flips {
			at := random.IntN(len(b))
			for try := 0; b[at] == 0 && try < 20; try++ { // most of a database is empty
				at = random.IntN(len(b))
			}
			changed := bytes.Clone(b)
			changed[at] ^= 1 << random.IntN(8)
			try(file, "bit flipped at "+itoa(at), changed)
		}
		for range 10 {
			at := random.IntN(len(b))
			n := min(1+random.IntN(5000), len(b)-at)
			if filepath.Base(file) != "raft.db" { // bbolt's file ends where it likes
				try(file, "cut at "+itoa(at), b[:at])
			}
			zeroed := bytes.Clone(b)
			clear(zeroed[at : at+n])
			try(file, "zeroed from "+itoa(at)+" by "+itoa(n), zeroed)
			doubled := bytes.Clone(b)
			from := random.IntN(len(b))
			copy(doubled[at:], b[from:min(len(b), from+100)])
			try(file, "overwritten at "+itoa(at), doubled)
		}
	}
	t.Logf("%d whole, %d refused, %d earlier", whole, refused, earlier)
	if whole == 0 || refused == 0 {
		t.Error("the test damages nothing, or all")
	}
}

// hashicorp/raft issue 85: the newest snapshot cannot be read, an older one is
// taken in silence, and the entries between them are gone.
func TestRaft085NewestSnapshotDamaged(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(folder string) error{
		"state flipped": func(folder string) error {
			return change(filepath.Join(folder, "state.bin"), func(b []byte) { b[len(b)/2] ^= 4 })
		},
		"state cut":  func(folder string) error { return os.Truncate(filepath.Join(folder, "state.bin"), 40) },
		"state gone": func(folder string) error { return os.Remove(filepath.Join(folder, "state.bin")) },
		"meta no JSON": func(folder string) error {
			return change(filepath.Join(folder, "meta.json"), func(b []byte) { b[0] = '[' })
		},
		"meta cut":  func(folder string) error { return os.Truncate(filepath.Join(folder, "meta.json"), 40) },
		"meta gone": func(folder string) error { return os.Remove(filepath.Join(folder, "meta.json")) },
		"meta of a future version": func(folder string) error {
			return change(filepath.Join(folder, "meta.json"), func(b []byte) { copy(b[bytes.Index(b, []byte(`"Version":1`)):], `"Version":9`) })
		},
		"configuration": func(folder string) error {
			return change(filepath.Join(folder, "meta.json"), func(b []byte) { copy(b[bytes.Index(b, []byte(`"Suffrage":0`)):], `"Suffrage":1`) })
		},
		"folder gone": os.RemoveAll,
	} {
		f := newFleet(t)
		v := f.founded()
		for n := range 3 { // two of them stay
			f.propose([]*voter{v}, f.write(2*n+1))
			f.propose([]*voter{v}, f.write(2*n+2))
			if err := v.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		folders, err := filepath.Glob(filepath.Join(v.config.Dir, "snapshots", "*"))
		if err != nil || len(folders) != 2 {
			t.Fatalf("%s: snapshots %v: %v", name, folders, err)
		}
		// As with many entries after it: the log begins behind the newest one.
		bolt, err := openBolt(filepath.Join(v.config.Dir, "raft.db"))
		if err != nil {
			t.Fatal(err)
		}
		first, _ := bolt.FirstIndex()
		last, _ := bolt.LastIndex()
		if err := errors.Join(bolt.DeleteRange(first, last-1), bolt.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := reload(v.config.Dir); err != nil {
			t.Fatalf("%s, before the damage: %v", name, err)
		}
		if err := damage(folders[1]); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if state, err := reload(v.config.Dir); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged (state %v)", name, err, state)
		}
	}
}

func change(path string, edit func([]byte)) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	edit(b)
	return os.WriteFile(path, b, 0o600)
}

func itoa(n int) string { return slog.IntValue(n).String() }

// Each field of an entry on disk is under its checksum, the commit index too.
func TestEntriesAreSummed(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*raft.Log){
		"data":   func(l *raft.Log) { l.Data[0] ^= 1 },
		"term":   func(l *raft.Log) { l.Term++ },
		"type":   func(l *raft.Log) { l.Type = raft.LogNoop },
		"commit": func(l *raft.Log) { binary.BigEndian.PutUint64(l.Extensions, 2) },
		"sum":    func(l *raft.Log) { l.Extensions[11] ^= 1 },
		"none":   func(l *raft.Log) { l.Extensions = nil },
		"old":    func(l *raft.Log) { l.Extensions = l.Extensions[:8] },
	} {
		disk := raft.NewInmemStore()
		l := &logStore{disk: memory{disk}, stall: time.Minute, onFail: func(err error) { t.Error(err) }}
		entry := &raft.Log{Index: 7, Term: 3, Type: raft.LogCommand, Data: []byte("abc")}
		if err := l.StoreLog(entry); err != nil {
			t.Fatal(err)
		}
		var got raft.Log
		if err := l.GetLog(7, &got); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got.Data = bytes.Clone(got.Data)
		change(&got)
		if err := disk.StoreLog(&got); err != nil {
			t.Fatal(err)
		}
		if err := l.GetLog(7, &got); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s changed: %v, want ErrDamaged", name, err)
		}
	}
}

// memory is a disk that is none.
type memory struct{ *raft.InmemStore }

func (memory) Close() error { return nil }

// A log that was begun before there were checksums is read and goes on with them.
func TestLogWithoutSumsIsRead(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	disk := raft.NewInmemStore()
	old := []*raft.Log{{Index: 1, Term: 1, Data: []byte("a")}, {Index: 2, Term: 1, Extensions: binary.BigEndian.AppendUint64(nil, 1)}}
	if err := disk.StoreLogs(old); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string][]byte{
		"CurrentTerm": binary.BigEndian.AppendUint64(nil, 4), "LastVoteTerm": binary.BigEndian.AppendUint64(nil, 3),
		"LastVoteCand": []byte(f.first().String()),
	} {
		if err := disk.Set([]byte(key), value); err != nil {
			t.Fatal(err)
		}
	}
	reopen := func() (*logStore, error) {
		l := &logStore{disk: memory{disk}, stall: time.Minute, onFail: func(err error) { t.Error(err) }}
		return l, l.check()
	}
	for range 2 {
		l, err := reopen()
		if err != nil {
			t.Fatal(err)
		}
		if c, err := l.committed(); c != 1 || err != nil {
			t.Errorf("commit index %d, %v; want 1", c, err)
		}
		if term, err := l.GetUint64([]byte("CurrentTerm")); term != 4 || err != nil {
			t.Errorf("term %d, %v; want 4", term, err)
		}
		if vote, err := l.Get([]byte("LastVoteCand")); string(vote) != f.first().String() || err != nil {
			t.Errorf("vote for %s, %v", vote, err)
		}
	}
	l, _ := reopen()
	if err := l.StoreLog(&raft.Log{Index: 3, Term: 4}); err != nil {
		t.Fatal(err)
	}
	if err := disk.StoreLog(&raft.Log{Index: 4, Term: 4}); err != nil {
		t.Fatal(err)
	}
	if _, err := reopen(); !errors.Is(err, ErrDamaged) {
		t.Errorf("an entry without checksum after one with: %v, want ErrDamaged", err)
	}
	if err := disk.DeleteRange(4, 4); err != nil {
		t.Fatal(err)
	}
	b, err := disk.Get([]byte("CurrentTerm"))
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.Clone(b)
	b[7] ^= 1
	if err := disk.Set([]byte("CurrentTerm"), b); err != nil {
		t.Fatal(err)
	}
	if _, err := reopen(); !errors.Is(err, ErrDamaged) {
		t.Errorf("another term: %v, want ErrDamaged", err)
	}
}

// The log must go on where the newest snapshot ends.
func TestLogJoinsTheSnapshot(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		first, last uint64 // of the log, in term 2; 0: empty
		commit      uint64
		index, term uint64 // of the snapshot
		damaged     bool
		left        uint64 // last index of the log afterwards
	}{
		{"empty", 0, 0, 0, 0, 0, false, 0},
		{"no snapshot", 1, 9, 5, 0, 0, false, 9},
		{"begins late", 2, 9, 5, 0, 0, true, 0},
		{"gap", 7, 9, 5, 5, 2, true, 0},
		{"meets", 6, 9, 5, 5, 2, false, 9},
		{"overlaps", 3, 9, 5, 5, 2, false, 9},
		{"ends before", 3, 9, 5, 20, 2, false, 0},
		{"replaced", 3, 9, 4, 5, 3, false, 0},
		{"disagrees", 3, 9, 5, 5, 3, true, 0},
	} {
		disk := raft.NewInmemStore()
		l := &logStore{disk: memory{disk}, stall: time.Minute, onFail: func(err error) { t.Error(err) }}
		l.staged.Store(c.commit)
		for i := c.first; i != 0 && i <= c.last; i++ {
			if err := l.StoreLog(&raft.Log{Index: i, Term: 2}); err != nil {
				t.Fatal(err)
			}
		}
		err := l.join(c.index, c.term)
		if errors.Is(err, ErrDamaged) != c.damaged || err != nil && !c.damaged {
			t.Errorf("%s: %v, damaged must be %v", c.name, err, c.damaged)
		}
		if last, _ := disk.LastIndex(); err == nil && last != c.left {
			t.Errorf("%s: the log ends at %d, want %d", c.name, last, c.left)
		}
	}
}

// The start of a voter reads its whole log.
func BenchmarkCheck(b *testing.B) {
	bolt, err := openBolt(filepath.Join(b.TempDir(), "raft.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer bolt.Close()
	l := &logStore{disk: bolt, stall: time.Minute, onFail: func(err error) { b.Error(err) }}
	if err := l.SetUint64([]byte(stableKeys[0]), 1); err != nil {
		b.Fatal(err)
	}
	var batch []*raft.Log
	for i := range uint64(10_000) {
		batch = append(batch, &raft.Log{Index: i + 1, Term: 1, Data: make([]byte, 500)})
	}
	if err := errors.Join(l.Set(sealedKey, nil), l.StoreLogs(batch)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := l.check(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(batch)), "entries")
}
