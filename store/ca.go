package store

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// A CAState says what a CA of the mesh is good for.
type CAState string

// States of a CA, in the order in which it goes through them.
const (
	CANext     CAState = "next"     // accepted; the voters are getting its key
	CACurrent  CAState = "current"  // issues certificates; there is exactly one
	CAPrevious CAState = "previous" // issues no more, still accepted
	CARetired  CAState = "retired"  // not accepted; its certificates are good for a renewal only
)

// A CA is one certificate authority of the mesh.
type CA struct {
	Pin   Digest  `json:"pin"`            // SHA-256 of its SubjectPublicKeyInfo
	Root  []byte  `json:"root,omitempty"` // certificate, DER
	State CAState `json:"state"`
	Index uint64  `json:"index,omitempty"` // of the entry that added it; 0: the mesh began with it
	// From is when a next one may become current, zero: as soon as the voters
	// have its key; and when the current one became it. Leader's clock.
	From time.Time `json:"from,omitzero"`
}

// MaxCAWait bounds how long a CA is next for the sake of tokens that pin the
// one before: the longest time for which meshctl makes one.
const MaxCAWait = 30 * 24 * time.Hour

// Waits reports whether a next CA must not become current yet. A date that is further
// away than any that is given is from a clock that was wrong, and does not count.
func (c CA) Waits(now time.Time) bool {
	return c.State == CANext && now.Before(c.From) && c.From.Sub(now) <= MaxCAWait
}

// A CAStep is a step in the change from one CA to another.
type CAStep string

// Steps. Each is refused where it would leave the order of the states.
const (
	CAAdd     CAStep = "add"     // a new CA is next; the oldest retired one is forgotten where there are MaxRoots
	CAPromote CAStep = "promote" // the next one becomes current, the current one previous
	CARetire  CAStep = "retire"  // a next or previous one is retired
)

// Issuers are the CA that issues certificates and the one that will, if there
// is one: what a token is to pin. There are none before version 3.
func (s *State) Issuers() (list []CA) {
	for _, want := range []CAState{CACurrent, CANext} {
		for _, c := range s.Mesh.Authorities {
			if c.State == want {
				list = append(list, c)
			}
		}
	}
	return list
}

// Outlived reports whether the CAs that a token pins issue no more, because it
// was made before the current one was known: it admits nobody.
func (s *State) Outlived(t Token) bool {
	list := s.Issuers()
	return len(list) > 0 && t.CAIndex < list[0].Index
}

// newestCA is the index of the newest CA that a token made now pins.
func (s *State) newestCA() uint64 {
	if list := s.Issuers(); len(list) > 0 {
		return list[len(list)-1].Index
	}
	return 0
}

// lastToken is when the last of the tokens that may be used now expires, but
// not later than MaxCAWait from now; zero: there are none.
func (s *State) lastToken(now time.Time) (last time.Time) {
	for _, t := range s.Tokens {
		if t.Uses > 0 && t.Expires.After(now) && t.Expires.After(last) && !s.Outlived(t) {
			last = t.Expires
		}
	}
	if most := now.Add(MaxCAWait); last.After(most) {
		last = most
	}
	return last
}

// distrustCAs makes another CA due, because somebody who is no member any more
// may know the keys of all that there are.
func (s *State) distrustCAs() {
	s.Mesh.CADue = true
	s.Mesh.Authorities = slices.Clone(s.Mesh.Authorities)
	for i, c := range s.Mesh.Authorities {
		if c.State == CANext {
			s.Mesh.Authorities[i] = c.retired()
		}
	}
}

func (c CA) retired() CA {
	c.State, c.From = CARetired, time.Time{}
	return c
}

// Pins are those of the CAs that are accepted, oldest first.
func (s *State) Pins() [][32]byte {
	if s.Mesh.Version < signedVersion {
		return s.Mesh.CA
	}
	return s.pins(func(c CA) bool { return c.State != CARetired })
}

// Retired are the pins of CAs that were accepted, oldest first.
func (s *State) Retired() [][32]byte {
	return s.pins(func(c CA) bool { return c.State == CARetired })
}

func (s *State) pins(wanted func(CA) bool) (pins [][32]byte) {
	for _, c := range s.Mesh.Authorities {
		if wanted(c) {
			pins = append(pins, c.Pin)
		}
	}
	return pins
}

func (s *State) rotateCA(c RotateCA, now time.Time) *Refusal {
	list := slices.Clone(s.Mesh.Authorities)
	i := slices.IndexFunc(list, func(ca CA) bool { return ca.Pin == c.Pin })
	next := slices.IndexFunc(list, func(ca CA) bool { return ca.State == CANext })
	if (c.Step == CAAdd) != (len(c.Root) > 0) || len(c.Root) > MaxRootBytes {
		return refuse(CodeInvalid, "a step that adds a CA, and no other, holds its certificate of up to %d bytes", MaxRootBytes)
	}
	if c.Aged && c.Step != CAAdd {
		return refuse(CodeInvalid, "only a step that adds a CA says why")
	}
	if c.Step != CAAdd && i < 0 {
		return refuse(CodeNotFound, "the mesh has no CA %s; see meshctl ca", c.Pin)
	}
	switch c.Step {
	case CAAdd:
		if i >= 0 || next >= 0 || c.Pin.IsZero() {
			return refuse(CodeInvalid, "a change of the CA is under way, or this one is known already; finish that first: meshctl ca")
		}
		if retired := slices.IndexFunc(list, func(ca CA) bool { return ca.State == CARetired }); len(list) >= MaxRoots && retired >= 0 {
			list = slices.Delete(list, retired, retired+1)
		}
		if len(list) >= MaxRoots {
			return refuse(CodeInvalid, "the mesh has %d CAs; retire one first: meshctl ca", MaxRoots)
		}
		added := CA{Pin: c.Pin, Root: slices.Clone(c.Root), State: CANext, Index: s.Index}
		if c.Aged {
			added.From = s.lastToken(now)
		}
		list = append(list, added)
	case CAPromote:
		if i != next {
			return refuse(CodeInvalid, "only the CA that is next can become the current one; see meshctl ca")
		}
		if list[i].Waits(now) {
			return refuse(CodeInvalid, "tokens that pin the current CA are good until %s; to do without them: meshctl ca rotate", list[i].From.Format(time.RFC3339))
		}
		for j := range list {
			if list[j].State == CACurrent {
				list[j].State, list[j].From = CAPrevious, time.Time{}
			}
		}
		list[i].State, list[i].From = CACurrent, now
		s.Mesh.CADue = false
	case CARetire:
		if list[i].State != CANext && list[i].State != CAPrevious {
			return refuse(CodeInvalid, "the current CA cannot be retired before another is current; see meshctl ca")
		}
		list[i] = list[i].retired()
	default:
		return refuse(CodeInvalid, "there is no step %q of a change of the CA; choose %s, %s or %s", c.Step, CAAdd, CAPromote, CARetire)
	}
	s.Mesh.Authorities = list
	return nil
}

func checkAuthorities(list []CA) error {
	count := map[CAState]int{}
	for i, c := range list {
		count[c.State]++
		if c.Pin.IsZero() || len(c.Root) > MaxRootBytes || slices.ContainsFunc(list[:i], func(o CA) bool { return o.Pin == c.Pin }) {
			return errors.New("a CA is not one that can be added")
		}
		if !c.From.IsZero() && c.State != CANext && c.State != CACurrent {
			return errors.New("a CA that issues no more begins to")
		}
	}
	if len(list) > MaxRoots || count[CACurrent] != 1 || count[CANext] > 1 || count[CANext]+1+count[CAPrevious]+count[CARetired] != len(list) {
		return fmt.Errorf("its %d CAs are not in order", len(list))
	}
	return nil
}

// adoptCA moves the CAs of versions 1 and 2 to where version 3 has them.
func (m *Settings) adoptCA() {
	for i, pin := range m.CA {
		c := CA{Pin: pin, State: CAPrevious}
		if i < len(m.Roots) {
			c.Root = m.Roots[i]
		}
		if i == len(m.CA)-1 {
			c.State = CACurrent
		}
		m.Authorities = append(m.Authorities, c)
	}
	m.CA, m.Roots = nil, nil
}
