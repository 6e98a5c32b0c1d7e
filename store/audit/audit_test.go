package audit

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"guywire/store"
	"guywire/store/disk"
)

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
			var tr Trail
			defer func() { tr.Close() }()
			if err := errors.Join(tr.Open(dir), tr.Append(records)); err != nil {
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
			if err := errors.Join(tr.dir.Write(newest, change(b)), tr.Close(), tr.Open(dir)); err != nil {
				t.Fatal(err)
			}
			if tr.last.N == 0 || segmentName(tr.last.N+1) != newest {
				t.Fatalf("it goes on after record %d, the damaged file is %s", tr.last.N, newest)
			}
			if err := tr.Append(records[tr.last.N:]); err != nil {
				t.Fatal(err)
			}
			for at := uint64(1); at <= 9000; {
				page, err := tr.From(at)
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
	var tr Trail
	defer func() { tr.Close() }()
	open := func() {
		t.Helper()
		if err := tr.Open(dir); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := tr.From(1); err != nil || got != nil {
		t.Errorf("before it is open: %v %v", got, err)
	}
	open()
	records := chain(0, 9000) // several files
	for i := 0; i < len(records); i += 1500 {
		if err := tr.Append(records[i : i+1500]); err != nil {
			t.Fatal(err)
		}
		if i == 3000 { // as after a crash in the middle of a line
			if err := errors.Join(tr.dir.Append(tr.newest, []byte(`{"n":45`)), tr.Close()); err != nil {
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
			page, err := tr.From(at)
			if err != nil || len(page) == 0 || page[0].N != at {
				t.Fatalf("from %d: %d records, %v", at, len(page), err)
			}
			got, at = append(got, page...), page[len(page)-1].N+1
		}
		if !slices.Equal(got, records[n-1:]) {
			t.Errorf("from %d: other records", n)
		}
	}
	if got, err := tr.From(9001); err != nil || len(got) != 0 {
		t.Errorf("after the end: %v, %v", got, err)
	}
	// After a gap a new file begins, and who asks inside it gets what follows.
	if err := tr.Append(chain(9500, 3)); err != nil {
		t.Fatal(err)
	}
	if got, err := tr.From(9100); err != nil || len(got) != 3 || got[0].N != 9501 {
		t.Errorf("in the gap: %v, %v", got, err)
	}
}
