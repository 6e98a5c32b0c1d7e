package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Bounds of the encodings.
const (
	MaxCommandBytes  = 256 << 10
	MaxSnapshotBytes = 64 << 20
)

// EncodeCommand gives the bytes for the log. A Version up to the current one
// becomes the lowest that knows the command, and Now becomes UTC. What
// DecodeCommand would not read back (text that is not UTF-8, a prefix that is
// none) is refused here, before it is in anyone's log.
func EncodeCommand(c Command) ([]byte, error) {
	if v := max(c.Version, c.since()); v > Version {
		return nil, fmt.Errorf("encode command of version %d: this is version %d", v, Version)
	}
	c.Version, c.Now = c.since(), c.Now.UTC()
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	if _, err := DecodeCommand(b); err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	return b, nil
}

// DecodeCommand reads what EncodeCommand wrote, and nothing else: a field it
// does not know, a second spelling or trailing data is ErrCorrupt, a higher
// version ErrNewer. What the command asks for is judged by Apply alone.
func DecodeCommand(b []byte) (Command, error) {
	if len(b) > MaxCommandBytes {
		return Command{}, fmt.Errorf("decode command of %d bytes: %w", len(b), ErrTooLarge)
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return Command{}, fmt.Errorf("decode command: %w: %w", ErrCorrupt, err)
	}
	if v.Version > Version {
		return Command{}, fmt.Errorf("decode command of version %d: %w", v.Version, ErrNewer)
	}
	var c Command
	if err := json.Unmarshal(b, &c); err != nil {
		return Command{}, fmt.Errorf("decode command: %w: %w", ErrCorrupt, err)
	}
	c.Now = c.Now.UTC()
	again, err := json.Marshal(c)
	if err != nil || c.Version != c.since() || !bytes.Equal(again, b) {
		return Command{}, fmt.Errorf("decode command: %w: it is not in the canonical form", ErrCorrupt)
	}
	return c, nil
}

// A snapshot is one line, "guywire-state VERSION SHA256", and the state as
// JSON with sorted keys. The version stands before everything whose meaning
// it decides, and the sum finds a flipped bit that would still be JSON.
const snapshotMagic = "guywire-state "

// Snapshot gives the canonical encoding: equal states, equal bytes.
func Snapshot(s *State) ([]byte, error) {
	body, err := encodeState(s)
	if err != nil {
		return nil, err
	}
	if len(body) > MaxSnapshotBytes {
		return nil, fmt.Errorf("encode state of %d bytes: %w", len(body), ErrTooLarge)
	}
	return append(snapshotHeader(s.since(), body), body...), nil
}

// since is the first version that can hold the state.
func (s *State) since() int {
	if s == nil {
		return 1
	}
	if s.Mesh.Version >= signedVersion {
		return s.Mesh.Version
	}
	if s.beyond3() {
		return GossipVersion
	}
	if s.beyond2() {
		return signedVersion
	}
	if !s.Mesh.Topology.IsZero() {
		return 2
	}
	for _, n := range s.Nodes {
		if n.NoTransit || n.MaxDegree != 0 || len(n.Drains) > 0 {
			return 2
		}
	}
	return 1
}

// beyond2 reports whether there is something in the state that versions 1 and
// 2 do not know. Apply makes it only in a mesh of version 3.
func (s *State) beyond2() bool {
	if s.Mesh.beyond2() || len(s.Operators)+len(s.Reserved)+len(s.Answered) > 0 || !s.Audit.IsZero() {
		return true
	}
	for _, n := range s.Nodes {
		if n.Site != "" || n.Boot != (Boot{}) || n.EverVoted || n.LastEpoch != 0 || len(n.Roles)+len(n.Shared) > 0 {
			return true
		}
	}
	for _, t := range s.Tokens {
		if t.beyond2() {
			return true
		}
	}
	for _, t := range s.Removed {
		if t.EverVoted {
			return true
		}
	}
	return false
}

func (m Settings) beyond2() bool {
	return m.Version != 0 || m.Generation != 0 || m.CADue || m.CacheMaxAge != 0 || m.Voters != 0 || len(m.Authorities) > 0
}

// beyond3 reports whether there is something in the state that version 3 does not
// know.
func (s *State) beyond3() bool {
	if s.Mesh.beyond3() {
		return true
	}
	for _, n := range s.Nodes {
		if len(n.Copies) > 0 {
			return true
		}
	}
	return false
}

func (m Settings) beyond3() bool { return len(m.Gossip) > 0 || m.GossipEpoch != 0 || m.GossipDue }

func (t Token) beyond2() bool {
	return t.AnyPrefix || t.Site != "" || len(t.Roles) > 0 || t.CAIndex != 0
}

// Restore reads what Snapshot wrote, and nothing else; the state then keeps
// every rule that Apply keeps. Errors wrap ErrNewer, ErrCorrupt or ErrTooLarge.
func Restore(b []byte) (*State, error) {
	line, body, found := bytes.Cut(b, []byte("\n"))
	rest, magic := strings.CutPrefix(string(line[:min(len(line), 200)]), snapshotMagic)
	if !found || !magic {
		return nil, fmt.Errorf("restore state: %w: it does not begin as a snapshot", ErrCorrupt)
	}
	number, _, _ := strings.Cut(rest, " ")
	version, err := strconv.Atoi(number)
	switch {
	case err != nil || version < 1:
		return nil, fmt.Errorf("restore state: %w: it has no version", ErrCorrupt)
	case version > Version:
		return nil, fmt.Errorf("restore state of version %d: %w", version, ErrNewer)
	case len(body) > MaxSnapshotBytes:
		return nil, fmt.Errorf("restore state of %d bytes: %w", len(body), ErrTooLarge)
	case string(line)+"\n" != string(snapshotHeader(version, body)):
		return nil, fmt.Errorf("restore state: %w: its checksum is wrong", ErrCorrupt)
	}
	var s State
	if err := json.Unmarshal(body, &s); err != nil {
		return nil, fmt.Errorf("restore state: %w: %w", ErrCorrupt, err)
	}
	again, err := encodeState(&s)
	if err != nil || s.Version != version || !bytes.Equal(again, body) {
		return nil, fmt.Errorf("restore state: %w: it is not in the canonical form", ErrCorrupt)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("restore state: %w: %w", ErrCorrupt, err)
	}
	return &s, nil
}

// Hash is the SHA-256 of the canonical encoding: replicas at one index that
// agree have one hash. It is zero for a state that cannot be encoded, which
// Apply never makes.
func Hash(s *State) [32]byte {
	body, err := encodeState(s)
	if err != nil {
		return [32]byte{}
	}
	return sha256.Sum256(body)
}

func snapshotHeader(version int, body []byte) []byte {
	sum := sha256.Sum256(body)
	return fmt.Appendf(nil, "%s%d %s\n", snapshotMagic, version, hex.EncodeToString(sum[:]))
}

// encodeState writes the empty maps of New for nil ones, and encoding/json
// sorts the keys of all.
func encodeState(s *State) ([]byte, error) {
	canonical := New()
	canonical.Version = s.since()
	if s != nil {
		canonical.Index, canonical.Mesh = s.Index, s.Mesh
		if s.Nodes != nil {
			canonical.Nodes = s.Nodes
		}
		if s.Tokens != nil {
			canonical.Tokens = s.Tokens
		}
		if s.Removed != nil {
			canonical.Removed = s.Removed
		}
		canonical.Operators, canonical.Reserved = s.Operators, s.Reserved
		canonical.Audit, canonical.Answered = s.Audit, s.Answered
	}
	b, err := json.Marshal(canonical)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	return b, nil
}
