package store

import (
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
