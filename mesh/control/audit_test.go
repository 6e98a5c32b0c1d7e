package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"guywire/store"
	"guywire/store/disk"
)

// audited reads the whole trail of a node.
func (m *machine) audited(from uint64) (records []store.AuditRecord, err error) {
	for r, err := range m.Audit(context.Background(), from) {
		if err != nil {
			return records, err
		}
		records = append(records, r)
	}
	return records, nil
}

// whole reports whether the records are all from a number to the end of a state.
func whole(records []store.AuditRecord, from uint64, s *store.State) bool {
	if len(records) == 0 || records[0].N != from || records[len(records)-1].Head() != s.Audit.Head {
		return false
	}
	_, err := store.VerifyAudit(records[0].Prev, records)
	return err == nil
}

func TestAuditIsKeptByVoters(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	const writes = 3 * store.RecentRecords / 2
	var tasks sync.WaitGroup
	for i, m := range all {
		tasks.Go(func() {
			for n := range writes / len(all) {
				m.propose(m.grant(60*i + n%60))
			}
		})
	}
	tasks.Wait()
	for i, m := range all { // three from their files, the follower from theirs
		eventually(t, fmt.Sprintf("node %d has the whole trail", i), func() bool {
			records, err := m.audited(0)
			return err == nil && whole(records, 1, m.State()) && len(records) > store.RecentRecords
		})
	}
	records, err := all[3].audited(7)
	if err != nil || !whole(records, 7, all[3].State()) {
		t.Errorf("from record 7: %d records, %v", len(records), err)
	}
	if first := records[0]; first.Author.NodeID().IsZero() || first.Outcome == "" || first.Time.IsZero() {
		t.Errorf("record %+v", first)
	}
	operator := slices.ContainsFunc(records, func(r store.AuditRecord) bool {
		return r.Author == all[3].config.Ring.Identity() && r.Action == "grant" && r.About == all[3].ID().String()
	})
	if !operator {
		t.Error("the trail does not say who wrote")
	}

	// A voter that lost its files gets them from another.
	lost := all[1]
	if err := lost.shut(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(lost.path, folder, auditFolder)); err != nil {
		t.Fatal(err)
	}
	lost.run(Open(lost.config))
	eventually(t, "the files are there again", func() bool {
		own, err := lost.trail.from(1)
		return err == nil && len(own) > store.RecentRecords && own[0].N == 1
	})

	// And one whose files were changed says where.
	name := filepath.Join(lost.path, folder, auditFolder, segmentName(1))
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(b, []byte(`"action":"join"`), []byte(`"action":"init"`), 1)
	if err := os.WriteFile(name, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lost.audited(0); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("a changed record: %v", err)
	}
}

// TestB21FlippedAudit flips a bit in every byte of a file of the trail, and
// cuts it everywhere: it cannot be read, or does not lead to the head.
func TestB21FlippedAudit(t *testing.T) {
	t.Parallel()
	records := chain(0, 6)
	var file []byte
	for _, r := range records {
		line, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		file = append(append(file, line...), '\n')
	}
	head := records[len(records)-1].Head()
	passes := func(b []byte) bool {
		got, err := parseSegment(segmentName(1), b)
		if err != nil {
			return false
		}
		end, err := store.VerifyAudit([32]byte{}, got)
		return err == nil && end == head
	}
	if !passes(file) {
		t.Fatal("the file itself does not pass")
	}
	for i := range file {
		for bit := range 8 {
			b := slices.Clone(file)
			b[i] ^= 1 << bit
			if passes(b) {
				t.Fatalf("byte %d: bit %d was flipped and nobody noticed", i, bit)
			}
		}
		if i < len(file)-1 && passes(file[:i]) { // but for the end of its last line
			t.Fatalf("cut at byte %d", i)
		}
	}
}

// chain makes records that continue a trail.
func chain(after uint64, n int) (records []store.AuditRecord) {
	var head store.Digest
	for i := range uint64(n) {
		r := store.AuditRecord{N: after + i + 1, Index: 10 + after + i, Action: "grant", Outcome: store.OutcomeOK, Prev: head}
		head = r.Head()
		records = append(records, r)
	}
	return records
}

// TestB21DamagedNewestAudit: whatever is wrong with the newest file, the trail
// goes on from the one before it, and the older ones stay as they are.
func TestB21DamagedNewestAudit(t *testing.T) {
	t.Parallel()
	records := chain(0, 9000)
	for name, change := range map[string]func(b []byte) []byte{
		"a flipped bit":      func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"a crash at the end": func(b []byte) []byte { return b[:40] },
		"empty":              func([]byte) []byte { return nil },
		"too large":          func([]byte) []byte { return make([]byte, 2*maxSegment+1) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := disk.Open(filepath.Join(t.TempDir(), "state"))
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			var tr trail
			defer func() { tr.close() }()
			if err := errors.Join(tr.open(dir), tr.append(records)); err != nil {
				t.Fatal(err)
			}
			names, err := tr.names()
			if err != nil || len(names) < 2 {
				t.Fatalf("files %v, %v", names, err)
			}
			newest := names[len(names)-1]
			b, err := tr.dir.Read(newest, maxSegment)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(tr.dir.Write(newest, change(b)), tr.close(), tr.open(dir)); err != nil {
				t.Fatal(err)
			}
			if tr.last.N == 0 || segmentName(tr.last.N+1) != newest {
				t.Fatalf("it goes on after record %d, the damaged file is %s", tr.last.N, newest)
			}
			if err := tr.append(records[tr.last.N:]); err != nil {
				t.Fatal(err)
			}
			for at := uint64(1); at <= 9000; {
				page, err := tr.from(at)
				if err != nil || len(page) == 0 || !slices.Equal(page, records[at-1:page[len(page)-1].N]) {
					t.Fatalf("from %d: %d records, %v", at, len(page), err)
				}
				at = page[len(page)-1].N + 1
			}
		})
	}
}

func TestTrailSegments(t *testing.T) {
	t.Parallel()
	dir, err := disk.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var tr trail
	defer func() { tr.close() }()
	open := func() {
		t.Helper()
		if err := tr.open(dir); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := tr.from(1); err != nil || got != nil {
		t.Errorf("before it is open: %v %v", got, err)
	}
	open()
	records := chain(0, 9000) // several files
	for i := 0; i < len(records); i += 1500 {
		if err := tr.append(records[i : i+1500]); err != nil {
			t.Fatal(err)
		}
		if i == 3000 { // as after a crash in the middle of a line
			if err := errors.Join(tr.dir.Append(tr.newest, []byte(`{"n":45`)), tr.close()); err != nil {
				t.Fatal(err)
			}
			open()
			if tr.last.N != 4500 {
				t.Fatalf("it goes on after record %d", tr.last.N)
			}
		}
	}
	names, err := tr.names()
	if err != nil || len(names) < 2 {
		t.Fatalf("files %v, %v", names, err)
	}
	for _, n := range []uint64{1, 2, 4499, 4500, 4501, 9000} {
		var got []store.AuditRecord
		for at := n; at <= 9000; {
			page, err := tr.from(at)
			if err != nil || len(page) == 0 || page[0].N != at {
				t.Fatalf("from %d: %d records, %v", at, len(page), err)
			}
			got, at = append(got, page...), page[len(page)-1].N+1
		}
		if !slices.Equal(got, records[n-1:]) {
			t.Errorf("from %d: other records", n)
		}
	}
	if got, err := tr.from(9001); err != nil || len(got) != 0 {
		t.Errorf("after the end: %v, %v", got, err)
	}
	// After a gap a new file begins, and who asks inside it gets what follows.
	if err := tr.append(chain(9500, 3)); err != nil {
		t.Fatal(err)
	}
	if got, err := tr.from(9100); err != nil || len(got) != 3 || got[0].N != 9501 {
		t.Errorf("in the gap: %v, %v", got, err)
	}
}
