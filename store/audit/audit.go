// Package audit keeps a voter's copy of the audit trail in files, each named after
// the number of its first record and with one record a line. The state holds the
// end of the trail and its head, to which the files must lead: who reads them
// checks that with store.VerifyAudit.
package audit

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"guywire/store"
	"guywire/store/disk"
)

// A Trail is the files of one voter; the zero value is closed. One goroutine
// opens and appends, any may read and close.
type Trail struct {
	mu  sync.Mutex // guards the fields below, and the files while they are written
	dir *disk.Dir  // nil: not opened yet

	newest string // the file that is appended to; empty: a new one is to begin
	size   int    // of newest
	last   store.AuditRecord
}

// Folder is where the files are, in the folder that Open is given.
const Folder = "audit"

const (
	ending      = ".jsonl"
	maxSegment  = 1 << 20 // bytes after which a new file begins
	maxSegments = 128     // the oldest ones are removed
)

// Open reads the end of the trail, unless it is open. What a crash left half
// written is cut off. A damaged file is set aside, for people to look at, and the
// trail goes on from the one before: what the damaged one held is to be appended
// again.
func (t *Trail) Open(parent *disk.Dir) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir != nil {
		return nil
	}
	dir, err := parent.Sub(Folder)
	if err != nil {
		return err
	}
	t.dir, t.newest, t.size, t.last = dir, "", 0, store.AuditRecord{}
	names, err := t.names()
	for _, name := range slices.Backward(names) {
		if err != nil || t.newest != "" {
			break
		}
		err = t.continueFrom(name)
	}
	if err != nil {
		return errors.Join(err, t.reopen())
	}
	return nil
}

// continueFrom makes a file the newest if it has records.
func (t *Trail) continueFrom(name string) error {
	b, err := t.dir.Read(name, 2*maxSegment)
	if err != nil && !errors.Is(err, disk.ErrTooLarge) {
		return err
	}
	whole := bytes.LastIndexByte(b, '\n') + 1
	records, damage := parseSegment(name, b[:whole])
	if damage == nil && len(records) > 0 {
		_, damage = store.VerifyAudit(records[0].Prev, records)
	}
	switch {
	case errors.Join(err, damage) != nil:
		_, err = t.dir.SetAside(name)
		return err
	case len(records) == 0:
		return t.dir.Remove(name)
	case whole < len(b):
		if err := t.dir.Write(name, b[:whole]); err != nil {
			return err
		}
	}
	t.newest, t.size, t.last = name, whole, records[len(records)-1]
	return nil
}

// Close closes the folder; the trail may be opened again.
func (t *Trail) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir == nil {
		return nil
	}
	err := t.dir.Close()
	t.dir = nil
	return err
}

// names are those of the files, oldest first.
func (t *Trail) names() ([]string, error) {
	names, err := t.dir.List()
	return slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(name, ending) }), err
}

func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, ending) }

func parseSegment(name string, b []byte) (records []store.AuditRecord, err error) {
	for line := range bytes.Lines(b) {
		r, err := store.DecodeAuditRecord(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			return records, fmt.Errorf("%s, line %d: %w", name, len(records)+1, err)
		}
		records = append(records, r)
	}
	if len(records) > 0 && segmentName(records[0].N) != name {
		return nil, fmt.Errorf("%s: %w: it begins with record %d", name, store.ErrCorrupt, records[0].N)
	}
	return records, nil
}

// Last is the record that Append continues; its number is 0 where there is none.
func (t *Trail) Last() store.AuditRecord {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last
}

// Append writes records that follow each other and continue the open trail, or
// begin a new part of it after a gap. When it fails the trail is closed, for they may
// have been written in part: Open tells how far it goes.
func (t *Trail) Append(records []store.AuditRecord) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(records) > 0 {
		if records[0].N != t.last.N+1 || t.size >= maxSegment {
			t.newest, t.size = "", 0
		}
		if t.newest == "" {
			t.newest = segmentName(records[0].N)
		}
		var b []byte
		n := 0
		for n < len(records) && t.size+len(b) < maxSegment {
			line, err := records[n].Encode()
			if err != nil {
				return err
			}
			b = append(append(b, line...), '\n')
			n++
		}
		write := t.dir.Append
		if t.size == 0 { // a new file holds nothing else
			write = t.dir.Write
		}
		if err := write(t.newest, b); err != nil {
			return errors.Join(err, t.reopen()) // it may have been written in part
		}
		t.size += len(b)
		t.last, records = records[n-1], records[n:]
	}
	return t.prune()
}

func (t *Trail) reopen() error {
	err := t.dir.Close()
	t.dir = nil
	return err
}

func (t *Trail) prune() error {
	names, err := t.names()
	for i := 0; err == nil && i < len(names)-maxSegments; i++ {
		err = t.dir.Remove(names[i])
	}
	return err
}

// From gives records from number n on, or from the first one after it that is
// kept: as many as there are in a file. A closed trail has none. Errors wrap
// store.ErrCorrupt where the files are damaged.
func (t *Trail) From(n uint64) ([]store.AuditRecord, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir == nil {
		return nil, nil
	}
	names, err := t.names()
	if err != nil {
		return nil, err
	}
	at, found := slices.BinarySearch(names, segmentName(n))
	if !found && at > 0 {
		at-- // the one before may hold it
	}
	for _, name := range names[at:] {
		b, err := t.dir.Read(name, 2*maxSegment)
		if err != nil {
			return nil, err
		}
		records, err := parseSegment(name, b)
		if err != nil {
			return nil, err
		}
		records = slices.DeleteFunc(records, func(r store.AuditRecord) bool { return r.N < n })
		if len(records) > 0 {
			return records, nil
		}
	}
	return nil, nil
}
