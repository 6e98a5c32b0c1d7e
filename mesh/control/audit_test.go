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
	"guywire/store/audit"
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
	if err := os.RemoveAll(filepath.Join(lost.path, folder, audit.Folder)); err != nil {
		t.Fatal(err)
	}
	lost.run(Open(lost.config))
	eventually(t, "the files are there again", func() bool {
		own, err := lost.trail.From(1)
		return err == nil && len(own) > store.RecentRecords && own[0].N == 1
	})

	// And one whose files were changed says where.
	name := filepath.Join(lost.path, folder, audit.Folder, fmt.Sprintf("%020d.jsonl", 1))
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
