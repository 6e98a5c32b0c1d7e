package store

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Bounds of Settings.CacheMaxAge, unless it is 0.
const (
	MinCacheAge = time.Hour
	MaxCacheAge = 10 * 365 * 24 * time.Hour
)

func (s *State) setSettings(c SetSettings) *Refusal {
	if c.CacheMaxAge == nil && c.Voters == nil {
		return refuse(CodeInvalid, "there is nothing to set; name a setting")
	}
	if c.CacheMaxAge != nil {
		s.Mesh.CacheMaxAge = *c.CacheMaxAge
	}
	if c.Voters != nil {
		s.Mesh.Voters = *c.Voters
	}
	return checkSettings(s.Mesh)
}

func checkSettings(m Settings) *Refusal {
	if age := m.CacheMaxAge; age != 0 && (age < MinCacheAge || age > MaxCacheAge || age%time.Second != 0) {
		return refuse(CodeInvalid, "a cache may be used for %s to %s, in whole seconds, or 0 for ever, not for %s; choose another age", MinCacheAge, MaxCacheAge, age)
	}
	if !slices.Contains([]int{0, 1, 3, 5}, m.Voters) {
		return refuse(CodeInvalid, "a mesh may have 1, 3 or 5 voters, or 0 for what the mesh chooses, not %d", m.Voters)
	}
	return nil
}

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
}

// A CAStep is a step in the change from one CA to another.
type CAStep string

// Steps. Each is refused where it would leave the order of the states.
const (
	CAAdd     CAStep = "add"     // a new CA is next; the oldest retired one is forgotten where there are MaxRoots
	CAPromote CAStep = "promote" // the next one becomes current, the current one previous
	CARetire  CAStep = "retire"  // a next or previous one is retired
)

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

func (s *State) rotateCA(c RotateCA) *Refusal {
	list := slices.Clone(s.Mesh.Authorities)
	i := slices.IndexFunc(list, func(ca CA) bool { return ca.Pin == c.Pin })
	next := slices.IndexFunc(list, func(ca CA) bool { return ca.State == CANext })
	if (c.Step == CAAdd) != (len(c.Root) > 0) || len(c.Root) > MaxRootBytes {
		return refuse(CodeInvalid, "a step that adds a CA, and no other, holds its certificate of up to %d bytes", MaxRootBytes)
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
		list = append(list, CA{Pin: c.Pin, Root: slices.Clone(c.Root), State: CANext})
	case CAPromote:
		if i != next {
			return refuse(CodeInvalid, "only the CA that is next can become the current one; see meshctl ca")
		}
		for j := range list {
			if list[j].State == CACurrent {
				list[j].State = CAPrevious
			}
		}
		list[i].State = CACurrent
		s.Mesh.CADue = false
	case CARetire:
		if list[i].State != CANext && list[i].State != CAPrevious {
			return refuse(CodeInvalid, "the current CA cannot be retired before another is current; see meshctl ca")
		}
		list[i].State = CARetired
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
