package store

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"guywire/mesh"
)

// The audit trail tells who did what, and the encoding of it is one.
func TestAuditChain(t *testing.T) {
	w := newWorld(t)
	w.rare = 50
	j := newJoiner("oslo", "oslo")
	var records []AuditRecord
	keep := func(r Result) { records = append(records, *r.Record) }
	records = append(records, w.s.Audit.Recent...)
	keep(w.apply(w.by(Command{AddToken: &AddToken{Token{ID: "x"}}})))
	inv := w.addToken(1)
	records = append(records, w.s.Audit.Recent[len(w.s.Audit.Recent)-1])
	keep(w.apply(j.join(inv)))
	forged := j.join(inv)
	forged.Join.Proof = nil
	keep(w.apply(forged))
	keep(w.apply(Command{}))
	keep(w.apply(w.by(Command{RevokeToken: &RevokeToken{strings.Repeat("x", 300)}})))
	keep(w.apply(w.by(Command{RevokeToken: &RevokeToken{"\x1b[2J"}})))
	for _, want := range []struct {
		n                      int
		action, about, outcome string
		author                 mesh.IdentityKey
	}{
		{0, "init", w.root.id().String(), "ok", w.root.identity},
		{1, "add_token", "x", "refused invalid", w.root.identity},
		{2, "add_token", inv.ID, "ok", w.root.identity},
		{3, "join", "oslo", "ok", j.identity},
		{4, "join", "oslo", "refused token-proof", mesh.IdentityKey{}},
		{5, "invalid", "", "refused invalid", mesh.IdentityKey{}},
		{6, "revoke_token", "", "refused not-found", w.root.identity},
		{7, "revoke_token", "", "refused not-found", w.root.identity},
	} {
		if r := records[want.n]; r.N != uint64(want.n+1) || r.Action != want.action || r.About != want.about || r.Outcome != want.outcome || r.Author != want.author {
			t.Errorf("record %d: %+v, want %+v", want.n, r, want)
		}
	}
	if !records[5].Time.IsZero() || !records[3].Time.Equal(testNow) {
		t.Error("times are wrong")
	}
	for len(records) < RecentRecords+20 {
		keep(w.apply(w.by(Command{SetSettings: &SetSettings{Voters: new(len(records) % 2 * 3)}})))
	}
	generation, index, head := w.s.Head()
	if generation != 0 || index != w.index || head != w.s.Audit.Head || len(w.s.Audit.Recent) != RecentRecords || w.s.Audit.Count() != uint64(len(records)) {
		t.Errorf("the state ends at record %d with %d", w.s.Audit.Count(), len(w.s.Audit.Recent))
	}
	if got, err := VerifyAudit([32]byte{}, records); err != nil || got != head {
		t.Fatalf("the trail does not lead to the state: %v", err)
	}
	if got, err := VerifyAudit(records[9].Head(), records[10:]); err != nil || got != head {
		t.Fatalf("the end of the trail does not lead to the state: %v", err)
	}

	// Any flipped bit, any record left out, put in twice or moved is found.
	lines := make([][]byte, 8)
	for i := range lines {
		var err error
		if lines[i], err = records[i].Encode(); err != nil {
			t.Fatal(err)
		}
	}
	trusted, trail := records[len(lines)-1].Head(), records[:len(lines)]
	found := func(trail []AuditRecord) bool {
		got, err := VerifyAudit([32]byte{}, trail)
		return err != nil || got != trusted
	}
	if found(trail) {
		t.Fatal("a good trail is refused")
	}
	for i, line := range lines {
		for at := range line {
			for _, bit := range []byte{1, 0x20} { // the second turns letters into others of the same name
				bad := bytes.Clone(line)
				bad[at] ^= bit
				changed := slices.Clone(trail)
				var err error
				if changed[i], err = DecodeAuditRecord(bad); err == nil && !found(changed) {
					t.Fatalf("record %d, byte %d: not found:\n%s\n%s", i+1, at, line, bad)
				}
			}
		}
		if found(slices.Insert(slices.Clone(trail), i, trail[i])) && found(slices.Delete(slices.Clone(trail), i, i+1)) {
			continue
		}
		t.Errorf("record %d left out, or twice: not found", i+1)
	}
	for i := range trail[1:] {
		changed := slices.Clone(trail)
		changed[i], changed[i+1] = trail[i+1], trail[i]
		if !found(changed) {
			t.Errorf("records %d and %d exchanged: not found", i+1, i+2)
		}
	}
	// A changed record is named.
	changed := slices.Clone(records)
	changed[6].About = "y"
	if _, err := VerifyAudit([32]byte{}, changed); err == nil || !strings.Contains(err.Error(), "audit record 8:") {
		t.Error(err)
	}
}

// Two histories that differ in anything differ in their heads from there on,
// even where the states are equal again.
func TestHeadsTellHistoriesApart(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	a.must(a.by(Command{SetSettings: &SetSettings{Voters: new(3)}}))
	b.must(b.by(Command{SetSettings: &SetSettings{Voters: new(5)}}))
	for range 3 {
		for _, w := range []*world{a, b} {
			w.must(w.by(Command{SetSettings: &SetSettings{Voters: new(0)}}))
		}
		_, i, one := a.s.Head()
		_, j, two := b.s.Head()
		if i != j || one == two {
			t.Error("two histories have one head")
		}
	}
}

func FuzzAuditRecord(f *testing.F) {
	w := newWorld(f)
	w.join(newJoiner("oslo", "oslo"))
	w.apply(Command{})
	for _, r := range w.s.Audit.Recent {
		b, err := r.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeAuditRecord(b)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("two encodings: %v\n%s\n%s", err, b, again)
		}
	})
}

func ExampleVerifyAudit() {
	first := AuditRecord{N: 1, Index: 2, Action: "init", Outcome: OutcomeOK}
	second := AuditRecord{N: 2, Index: 5, Action: "grant", Outcome: OutcomeOK, Prev: first.Head()}
	trusted := second.Head() // from the state of the mesh
	first.Action = "nothing of the kind"
	head, err := VerifyAudit([32]byte{}, []AuditRecord{first, second})
	fmt.Println(head == trusted, err)
	// Output: false audit record 2: the data is corrupt: it does not continue the trail; it or the record before was changed, or one is missing
}
