package store

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"guywire/mesh"
)

const (
	// RecentRecords is how many audit records a state holds; the voters keep
	// older ones in files.
	RecentRecords = 128
	// MaxAuditRecordBytes bounds the encoding of one record.
	MaxAuditRecordBytes = 1 << 10

	auditDomain   = "guywire audit v1\x00"
	maxAuditAbout = 64
)

// Outcomes of an entry in the audit trail; a refusal is followed by its code.
const (
	OutcomeOK       = "ok"
	OutcomeRepeated = "repeated" // a request that was answered before; nothing was done
	OutcomeRefused  = "refused "
)

// An Audit is the end of the audit trail: a hash chain (Haber and Stornetta,
// 1991) with one record for each entry of the log. Two replicas with one Head
// had one history, and a record cannot be changed or left out without it
// showing in all that follow.
type Audit struct {
	Head   Digest        `json:"head"`             // of the newest record; without any, where the trail is anchored
	Recent []AuditRecord `json:"recent,omitempty"` // newest last
}

// Count is the number of the newest record; 0: there is none.
func (a Audit) Count() uint64 {
	if len(a.Recent) == 0 {
		return 0
	}
	return a.Recent[len(a.Recent)-1].N
}

// Time is when the newest record was made, by its leader's clock; zero: not known.
func (a Audit) Time() time.Time {
	if len(a.Recent) == 0 {
		return time.Time{}
	}
	return a.Recent[len(a.Recent)-1].Time
}

// IsZero reports whether there is no trail: before version 3.
func (a Audit) IsZero() bool { return a.Head.IsZero() && len(a.Recent) == 0 }

// An AuditRecord says what one entry of the log did, on whose authority.
type AuditRecord struct {
	N     uint64 `json:"n"`     // from 1
	Index uint64 `json:"index"` // of the entry
	// Generation counts recoveries, see Settings; indexes grow within one.
	Generation uint64           `json:"generation,omitempty"`
	Time       time.Time        `json:"time"`            // leader's clock; zero: it was unusable
	Author     mesh.IdentityKey `json:"author,omitzero"` // who signed, or joined; zero: nobody proved to have
	Action     string           `json:"action"`          // the command's name in the encoding; "invalid": not one command
	About      string           `json:"about,omitempty"` // the id or name of what it was about
	Outcome    string           `json:"outcome"`
	Command    Digest           `json:"command"` // of the entry, as in the log
	Prev       Digest           `json:"prev"`    // head of the trail before
}

// Head is the head of the trail after the record: the SHA-256 of its canonical
// encoding, in a domain of its own.
func (r AuditRecord) Head() [32]byte {
	b, err := json.Marshal(r)
	if err != nil { // a time that no state holds
		return [32]byte{}
	}
	return sha256.Sum256(append([]byte(auditDomain), b...))
}

// Encode gives the canonical form of a record: one line of JSON without its end.
func (r AuditRecord) Encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode audit record: %w", err)
	}
	if _, err := DecodeAuditRecord(b); err != nil {
		return nil, fmt.Errorf("encode audit record: %w", err)
	}
	return b, nil
}

// DecodeAuditRecord reads what Encode wrote, and nothing else. Errors wrap
// ErrCorrupt or ErrTooLarge.
func DecodeAuditRecord(b []byte) (AuditRecord, error) {
	if len(b) > MaxAuditRecordBytes {
		return AuditRecord{}, fmt.Errorf("decode audit record of %d bytes: %w", len(b), ErrTooLarge)
	}
	var r AuditRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return AuditRecord{}, fmt.Errorf("decode audit record: %w: %w", ErrCorrupt, err)
	}
	r.Time = r.Time.UTC()
	again, err := json.Marshal(r)
	if err != nil || !bytes.Equal(again, b) || r.N == 0 {
		return AuditRecord{}, fmt.Errorf("decode audit record: %w: it is not in the canonical form", ErrCorrupt)
	}
	return r, nil
}

// VerifyAudit checks that the records continue the trail from anchor (the
// Prev of the first), one after the other, and gives the head after the last:
// the caller compares it with one that it trusts, such as Audit.Head. The
// error names the first record at which the chain breaks and wraps ErrCorrupt;
// what changed is that record or the one before.
func VerifyAudit(anchor [32]byte, records []AuditRecord) ([32]byte, error) {
	head := anchor
	for i, r := range records {
		switch {
		case r.Prev != head:
			return head, fmt.Errorf("audit record %d: %w: it does not continue the trail; it or the record before was changed, or one is missing", r.N, ErrCorrupt)
		case i > 0 && r.N != records[i-1].N+1:
			return head, fmt.Errorf("audit record %d: %w: it follows record %d", r.N, ErrCorrupt, records[i-1].N)
		case i > 0 && r.Generation == records[i-1].Generation && r.Index <= records[i-1].Index:
			return head, fmt.Errorf("audit record %d: %w: its index %d is not above %d", r.N, ErrCorrupt, r.Index, records[i-1].Index)
		}
		head = r.Head()
	}
	return head, nil
}

// Head identifies the history that led to the state: states of one mesh are
// ordered by generation, then by index, and two with equal generation and
// index and another head do not have one history. The head is zero before
// version 3.
func (s *State) Head() (generation, index uint64, head [32]byte) {
	return s.Mesh.Generation, s.Index, s.Audit.Head
}

// Newer reports whether s comes after other, of the same mesh.
func (s *State) Newer(other *State) bool {
	return cmp.Or(cmp.Compare(s.Mesh.Generation, other.Mesh.Generation), cmp.Compare(s.Index, other.Index)) > 0
}

// record appends to the trail what an entry did.
func (s *State) record(c Command, author mesh.IdentityKey, outcome string) *AuditRecord {
	r := AuditRecord{
		N: s.Audit.Count() + 1, Index: s.Index, Generation: s.Mesh.Generation, Author: author,
		Action: c.action(), About: c.about(), Outcome: outcome, Command: c.digest(), Prev: s.Audit.Head,
	}
	if validTime(c.Now) {
		r.Time = c.Now
	}
	keep := s.Audit.Recent
	keep = keep[max(0, len(keep)+1-RecentRecords):]
	s.Audit = Audit{Head: r.Head(), Recent: append(slices.Clip(keep), r)}
	return &r
}

// digest is the SHA-256 of the command as EncodeCommand writes it; zero for
// one that it would not.
func (c Command) digest() Digest {
	c.Version, c.Now = c.since(), c.Now.UTC()
	b, err := json.Marshal(c)
	if err != nil {
		return Digest{}
	}
	return sha256.Sum256(b)
}

// about names what the command is about, if that can stand in a log.
func (c Command) about() string {
	about := ""
	switch {
	case c.Init != nil:
		about = c.Init.Identity.NodeID().String()
	case c.AddToken != nil:
		about = c.AddToken.Token.ID
	case c.RevokeToken != nil:
		about = c.RevokeToken.ID
	case c.Join != nil:
		about = c.Join.Name
	case c.SetControl != nil:
		about = c.SetControl.Node.String()
	case c.SetVoter != nil:
		about = c.SetVoter.Node.String()
	case c.Grant != nil:
		about = c.Grant.Node.String()
	case c.RemoveNode != nil:
		about = c.RemoveNode.Node.String()
	case c.SetTopology != nil:
		about = string(c.SetTopology.Mode)
	case c.SetNode != nil:
		about = c.SetNode.Node.String()
	case c.SetDrain != nil:
		about = c.SetDrain.Node.String()
	case c.SetRoles != nil:
		about = c.SetRoles.Node.String()
	case c.SetOperator != nil:
		about = c.SetOperator.Name
	case c.RemoveOperator != nil:
		about = c.RemoveOperator.Name
	case c.Reserve != nil:
		about = c.Reserve.Name
	case c.Unreserve != nil:
		about = c.Unreserve.Name
	case c.AddKey != nil:
		about = c.AddKey.Node.String()
	case c.DropKey != nil:
		about = c.DropKey.Node.String()
	case c.RotateCA != nil:
		about = c.RotateCA.Pin.String()
	case c.RotateGossip != nil:
		about = fmt.Sprint(c.RotateGossip.Step, " ", c.RotateGossip.Epoch)
	case c.SetVersion != nil:
		about = fmt.Sprint(c.SetVersion.Version)
	case c.RegisterBoot != nil:
		about = c.RegisterBoot.Node.String()
	case c.Recover != nil:
		about = c.Recover.Node.String()
	}
	if len(about) > maxAuditAbout || !printable(about) {
		return ""
	}
	return about
}
