package control

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strconv"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

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
		err := p.trail.Open(p.files.dir)
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
	if len(recent) == 0 || t.Last().N >= state.Audit.Count() {
		return nil
	}
	if kept != nil && kept.Audit.Count() == t.Last().N && t.Last().N+1 < recent[0].N {
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
			if err := t.Append(records); err != nil {
				return err
			}
		}
	}
	for t.Last().N+1 < recent[0].N {
		page, err := p.fetchAudit(p.life, t.Last().N+1)
		if err != nil {
			return err
		}
		page = slices.DeleteFunc(page, func(r store.AuditRecord) bool { return r.N >= recent[0].N })
		if len(page) == 0 {
			break // nobody has it
		}
		anchor := page[0].Prev
		if page[0].N == t.Last().N+1 && t.Last().N > 0 {
			anchor = t.Last().Head()
		}
		if _, err := store.VerifyAudit(anchor, page); err != nil {
			return err
		}
		if err := t.Append(page); err != nil {
			return err
		}
	}
	return t.Append(slices.DeleteFunc(slices.Clone(recent), func(r store.AuditRecord) bool { return r.N <= t.Last().N }))
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
	records, err := p.trail.From(from)
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
	own, err := p.trail.From(from)
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
