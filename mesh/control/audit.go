package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/disk"
	"guywire/store/raftstore"
)

// A trail is this voter's copy of the audit trail, in files of which each is
// named after the number of its first record and has one record a line. The
// state holds the end of the trail, and its head, which the files must lead to.
type trail struct {
	mu  sync.Mutex // guards dir, and the files while they are written
	dir *disk.Dir  // nil: not opened yet

	// For keepAudit alone.
	newest string // the file that is appended to; empty: a new one is to begin
	size   int    // of newest
	last   store.AuditRecord
}

const (
	auditFolder = "audit"
	auditEnding = ".jsonl"
	maxSegment  = 1 << 20 // bytes after which a new file begins
	maxSegments = 128     // the oldest ones are removed
)

// open reads the end of the trail. What a crash left half written is cut off. A
// damaged file is set aside, for people to look at, and the trail goes on from
// the one before: what the damaged one held is fetched again.
func (t *trail) open(parent *disk.Dir) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir != nil {
		return nil
	}
	dir, err := parent.Sub(auditFolder)
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
func (t *trail) continueFrom(name string) error {
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

func (t *trail) close() error {
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
func (t *trail) names() ([]string, error) {
	names, err := t.dir.List()
	return slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(name, auditEnding) }), err
}

func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, auditEnding) }

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

// append writes records that continue the trail, or begin a new part of it.
func (t *trail) append(records []store.AuditRecord) error {
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

func (t *trail) reopen() error {
	err := t.dir.Close()
	t.dir = nil
	return err
}

func (t *trail) prune() error {
	names, err := t.names()
	for i := 0; err == nil && i < len(names)-maxSegments; i++ {
		err = t.dir.Remove(names[i])
	}
	return err
}

// from gives records from number n on, or from the first one after it that is
// kept: as many as there are in a file.
func (t *trail) from(n uint64) ([]store.AuditRecord, error) {
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

// keepAudit writes the trail to files as long as this node is a voter.
func (p *Plane) keepAudit() {
	var kept *store.State // whose records are all in the files
	failed := false       // is told once
	var log *raftstore.Store
	for alive := true; alive; {
		alive = p.sleep(auditEvery)
		if open := p.voter.store(); open != nil {
			log = open
		} else if alive {
			log = nil
		}
		if log == nil {
			continue // no voter, nor one that was until now
		}
		state := p.State()
		err := p.trail.open(p.files.dir)
		if err == nil {
			err = p.writeAudit(log, kept, state)
		}
		if err == nil {
			kept = state
		} else if !failed && alive {
			p.logger.Error("this voter does not keep the audit trail; check the disk of the state directory, and that the other voters answer", mesh.LogError, err)
		}
		failed = err != nil
	}
}

// writeAudit brings the files to the end of a state's trail. What is not in the
// state any more is made again from the log, or fetched from another voter.
func (p *Plane) writeAudit(log *raftstore.Store, kept, state *store.State) error {
	t, recent := &p.trail, state.Audit.Recent
	if len(recent) == 0 || t.last.N >= state.Audit.Count() {
		return nil
	}
	if kept != nil && kept.Audit.Count() == t.last.N && t.last.N+1 < recent[0].N {
		for {
			changes, known := log.Since(kept.Index, batch)
			if !known || len(changes) == 0 {
				break
			}
			var records []store.AuditRecord
			for _, c := range changes {
				command, err := store.DecodeCommand(c.Command)
				if err != nil {
					return err
				}
				var result store.Result
				if kept, result = store.Apply(kept, c.Index, command); result.Record != nil {
					records = append(records, *result.Record)
				}
			}
			if err := t.append(records); err != nil {
				return err
			}
		}
	}
	for t.last.N+1 < recent[0].N {
		page, err := p.fetchAudit(p.life, t.last.N+1)
		if err != nil {
			return err
		}
		page = slices.DeleteFunc(page, func(r store.AuditRecord) bool { return r.N >= recent[0].N })
		if len(page) == 0 {
			break // nobody has it
		}
		anchor := page[0].Prev
		if page[0].N == t.last.N+1 && t.last.N > 0 {
			anchor = t.last.Head()
		}
		if _, err := store.VerifyAudit(anchor, page); err != nil {
			return err
		}
		if err := t.append(page); err != nil {
			return err
		}
	}
	return t.append(slices.DeleteFunc(slices.Clone(recent), func(r store.AuditRecord) bool { return r.N <= t.last.N }))
}

type auditPage struct {
	Records []store.AuditRecord `json:"records"`
}

// serveAudit gives a part of the trail.
func (p *Plane) serveAudit(w http.ResponseWriter, r *http.Request) {
	from, err := strconv.ParseUint(r.URL.Query().Get("from"), 10, 64)
	if err != nil {
		Fail(w, newError(http.StatusBadRequest, CodeMalformed, "from must be the number of a record"))
		return
	}
	if p.voter.store() == nil {
		Fail(w, p.notVoter())
		return
	}
	records, err := p.trail.from(from)
	if err != nil {
		Fail(w, err)
		return
	}
	Reply(w, auditPage{records})
}

// fetchAudit asks the other voters for records from a number on and takes the
// answer that begins first. Empty: those that answer have none. It fails when
// there are other voters and none of them answers.
func (p *Plane) fetchAudit(ctx context.Context, from uint64) (best []store.AuditRecord, err error) {
	answered := false
	for _, id := range p.voters() {
		var page auditPage
		if e := p.Do(ctx, id, http.MethodGet, fmt.Sprintf("/v1/audit?from=%d", from), nil, &page); e != nil {
			err = e
			continue
		}
		answered = true
		if len(page.Records) == 0 || page.Records[0].N < from || len(best) > 0 && best[0].N <= page.Records[0].N {
			continue
		}
		if best = page.Records; best[0].N == from {
			break
		}
	}
	if answered {
		err = nil
	}
	return best, err
}

// Audit gives the audit trail from record number from on, oldest first, up to
// the end of State; 0 begins with the oldest record that is kept. Older ones
// come from this voter's files or another voter's, the newest from State.
//
// The trail is a chain to the head that State has, so what was given is proven
// only when the sequence has ended without an error. An error is the last thing
// in it; one that wraps store.ErrCorrupt names the record at which the chain
// breaks.
func (p *Plane) Audit(ctx context.Context, from uint64) iter.Seq2[store.AuditRecord, error] {
	return func(yield func(store.AuditRecord, error) bool) {
		recent := p.State().Audit.Recent
		if len(recent) == 0 {
			yield(store.AuditRecord{}, errors.New("the mesh has no audit trail yet; it begins by itself when all nodes run a Guywire that has one"))
			return
		}
		next, begun := max(from, 1), false
		var head [32]byte
		give := func(page []store.AuditRecord) bool {
			if !begun {
				begun, head, next = true, page[0].Prev, page[0].N
			}
			after, err := store.VerifyAudit(head, page)
			if page[0].N > next {
				err = fmt.Errorf("the audit records %d to %d are not kept by any voter that answers", next, page[0].N-1)
			}
			if err != nil {
				yield(store.AuditRecord{}, err)
				return false
			}
			for _, r := range page {
				if !yield(r, nil) {
					return false
				}
			}
			head, next = after, page[len(page)-1].N+1
			return true
		}
		for next < recent[0].N {
			page, err := p.auditAt(ctx, next)
			if err != nil {
				yield(store.AuditRecord{}, err)
				return
			}
			page = slices.DeleteFunc(page, func(r store.AuditRecord) bool { return r.N >= recent[0].N })
			if len(page) == 0 {
				break
			}
			if !give(page) {
				return
			}
		}
		if page := slices.DeleteFunc(slices.Clone(recent), func(r store.AuditRecord) bool { return r.N < next }); len(page) > 0 {
			give(page)
		}
	}
}

// auditAt gives a part of the trail from this voter's files, if they have it.
func (p *Plane) auditAt(ctx context.Context, from uint64) ([]store.AuditRecord, error) {
	own, err := p.trail.from(from)
	if err != nil || len(own) > 0 && own[0].N == from {
		return own, err
	}
	page, err := p.fetchAudit(ctx, from)
	if len(page) == 0 || len(own) > 0 && own[0].N < page[0].N {
		if len(own) > 0 {
			return own, nil
		}
	}
	return page, err
}
