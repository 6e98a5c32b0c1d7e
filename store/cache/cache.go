package cache

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/disk"
)

const (
	directory = "cache"
	magic     = "guywire-cache"
	domain    = "guywire cache v1\x00"
	version   = 2

	// MaxBlobBytes bounds the files that the agent fills.
	MaxBlobBytes = 16 << 20
	maxHeader    = 256
)

// A Blob names a cached file whose content is the agent's own business.
type Blob string

// The blobs.
const (
	Links Blob = "links" // ports, proven endpoints: what brings links up again
	Facts Blob = "facts" // what other nodes said about themselves
)

const (
	stateFile    = "state"          // a store.Snapshot
	previousFile = "state.previous" // the one before, in case that is damaged
	asideFile    = "state.diverged" // the same, of a history that was given up
)

// A Stamp says how old a cached state is, by this machine's clock and in whole
// seconds.
type Stamp struct {
	Saved     time.Time // zero: it was written by version 1, which did not say
	Confirmed time.Time // when a voter last said that it knows of nothing newer; zero: never
}

// Age is how long before now the state was confirmed. A clock that is behind
// the time at which it was saved cannot tell, and the age is zero.
func (s Stamp) Age(now time.Time) time.Duration {
	if now.Before(s.Saved) {
		return 0
	}
	return max(0, now.Sub(s.Confirmed))
}

// A Key is the node's identity key, as keyring.Ring is.
type Key interface {
	Identity() mesh.IdentityKey
	Sign(message []byte) []byte
}

// A Cache is one node's. Different files may be used by different goroutines.
type Cache struct {
	dir   *disk.Dir
	owner Owner
	key   Key
}

// Open opens the cache of the node that owns the state directory. The errors
// wrap ErrNotEnrolled, ErrOtherMesh (the key is another node's) or
// disk.ErrUnsafe. Close it before the state directory.
func Open(state *disk.Dir, key Key) (*Cache, error) {
	owner, err := ReadOwner(state)
	if err != nil {
		return nil, err
	}
	if err := owner.check(state, Owner{owner.Mesh, key.Identity().NodeID()}); err != nil {
		return nil, err
	}
	d, err := state.Sub(directory)
	if err != nil {
		return nil, err
	}
	return &Cache{dir: d, owner: owner, key: key}, nil
}

// Close releases the directory.
func (c *Cache) Close() error { return c.dir.Close() }

// Owner is the node and the mesh whose cache it is.
func (c *Cache) Owner() Owner { return c.owner }

// SaveState keeps the state; when it returns nil the next boot starts from it.
// A state of another mesh is ErrOtherMesh.
func (c *Cache) SaveState(s *store.State, stamp Stamp) error {
	if s.Mesh.ID != c.owner.Mesh {
		return fmt.Errorf("cache state of mesh %s in that of %s: %w", s.Mesh.ID, c.owner.Mesh, ErrOtherMesh)
	}
	b, err := store.Snapshot(s)
	if err != nil {
		return fmt.Errorf("cache state: %w", err)
	}
	if err = c.dir.Keep(stateFile, previousFile); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, c.write(header{version, stateFile, stamp}, b))
}

// LoadState gives the state that was saved last, and how old it is. The errors
// are ErrEmpty, or wrap ErrUnusable or store.ErrNewer. With ErrRemoved and
// ErrExpired the state comes all the same: it says when, and where the voters
// are. So it does with ErrUnusable when the one saved before is good.
func (c *Cache) LoadState(now time.Time) (*store.State, Stamp, error) {
	s, stamp, err := c.loadState(stateFile)
	if s == nil && (errors.Is(err, ErrUnusable) || errors.Is(err, ErrEmpty)) {
		before, at, failed := c.loadState(previousFile)
		switch {
		case before != nil && errors.Is(err, ErrEmpty): // it was set aside at an earlier boot
			s, stamp, err = before, at, nil
		case before != nil:
			s, stamp = before, at
		case !errors.Is(failed, ErrEmpty):
			err = errors.Join(err, failed)
		}
	}
	if s == nil {
		return nil, Stamp{}, err
	}
	if _, removed := s.Removed[c.owner.Node]; removed {
		return s, stamp, errors.Join(err, ErrRemoved)
	}
	if limit := s.Mesh.CacheMaxAge; limit > 0 && stamp.Age(now) > limit {
		return s, stamp, errors.Join(err, ErrExpired)
	}
	return s, stamp, err
}

func (c *Cache) loadState(name string) (*store.State, Stamp, error) {
	h, b, err := c.read(name, stateFile, store.MaxSnapshotBytes+maxHeader)
	if err != nil {
		return nil, Stamp{}, err
	}
	s, err := store.Restore(b)
	switch {
	case err != nil:
	case s.Mesh.ID != c.owner.Mesh:
		err = fmt.Errorf("it is of mesh %s", s.Mesh.ID)
	default:
		_, member := s.Nodes[c.owner.Node]
		if _, removed := s.Removed[c.owner.Node]; !member && !removed {
			err = errors.New("this node is not in it")
		}
	}
	if err != nil {
		return nil, Stamp{}, c.setAside(name, err)
	}
	return s, h.stamp, nil
}

// SetAside keeps a copy of the state, for a person to look at, and gives its
// path; the next SaveState does not replace it. The state stays what the next
// boot starts from.
func (c *Cache) SetAside() (string, error) {
	b, err := c.dir.Read(stateFile, store.MaxSnapshotBytes+maxHeader)
	if err != nil {
		return "", err
	}
	return c.dir.Path(asideFile), c.dir.Write(asideFile, b)
}

// SaveBlob keeps Links or Facts.
func (c *Cache) SaveBlob(name Blob, blob []byte) error {
	if len(blob) > MaxBlobBytes {
		return fmt.Errorf("cache %s: %d bytes are more than %d", name, len(blob), MaxBlobBytes)
	}
	return c.write(header{version: 1, kind: string(name)}, blob)
}

// LoadBlob gives what SaveBlob kept. The errors are ErrEmpty or wrap ErrUnusable.
func (c *Cache) LoadBlob(name Blob) ([]byte, error) {
	_, b, err := c.read(string(name), string(name), MaxBlobBytes+maxHeader)
	return b, err
}

func (c *Cache) write(h header, body []byte) error {
	return c.dir.Write(h.kind, c.seal(h, body))
}

func (c *Cache) read(name, kind string, limit int64) (header, []byte, error) {
	b, err := c.dir.Read(name, limit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return header{}, nil, ErrEmpty
	case errors.Is(err, disk.ErrTooLarge):
		return header{}, nil, c.setAside(name, err)
	case err != nil:
		return header{}, nil, err
	}
	h, body, err := c.open(kind, b)
	if err != nil {
		return header{}, nil, c.setAside(name, err)
	}
	return h, body, nil
}

// A file is one line, "guywire-cache 2 KIND MESH NODE SAVED CONFIRMED
// SIGNATURE", and the body. The signature covers all of it. The times are
// seconds of Unix time, 0 for none. Version 1 has no times: it is what states
// were written in before, and what blobs are, which have no age.
type header struct {
	version int
	kind    string
	stamp   Stamp
}

func (c *Cache) line(h header, signature []byte) []byte {
	times := ""
	if h.version > 1 {
		times = fmt.Sprintf(" %d %d", seconds(h.stamp.Saved), seconds(h.stamp.Confirmed))
	}
	return fmt.Appendf(nil, "%s %d %s %s %s%s %s\n", magic, h.version, h.kind, c.owner.Mesh, c.owner.Node, times, base64.StdEncoding.EncodeToString(signature))
}

func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func (c *Cache) message(h header, body []byte) []byte {
	m := append([]byte(domain), c.line(h, nil)...)
	return append(m, body...)
}

// seal gives the whole file.
func (c *Cache) seal(h header, body []byte) []byte {
	return append(c.line(h, c.key.Sign(c.message(h, body))), body...)
}

// open checks a file and gives its header and body.
func (c *Cache) open(kind string, b []byte) (header, []byte, error) {
	line, body, found := bytes.Cut(b, []byte("\n"))
	if !found || len(line) > maxHeader {
		return header{}, nil, errors.New("it does not begin as one")
	}
	fields := strings.Split(string(line), " ")
	if len(fields) < 2 || fields[0] != magic {
		return header{}, nil, errors.New("it does not begin as one")
	}
	h := header{kind: kind}
	switch v, err := strconv.Atoi(fields[1]); {
	case err == nil && v > version:
		return header{}, nil, fmt.Errorf("it is of version %d: %w", v, store.ErrNewer)
	case err == nil && v == 1 && len(fields) == 6:
		h.version = 1
	case err == nil && v == version && len(fields) == 8:
		h.version = version
		if h.stamp, err = parseStamp(fields[5], fields[6]); err != nil {
			return header{}, nil, err
		}
	default:
		return header{}, nil, errors.New("it does not begin as one")
	}
	signature, err := base64.StdEncoding.DecodeString(fields[len(fields)-1])
	if err != nil || !bytes.Equal(c.line(h, signature), b[:len(line)+1]) {
		return header{}, nil, errors.New("it is another kind of file, or another node's")
	}
	if !c.key.Identity().Verify(c.message(h, body), signature) {
		return header{}, nil, errors.New("its signature is wrong")
	}
	return h, body, nil
}

func parseStamp(saved, confirmed string) (Stamp, error) {
	s, err1 := parseSeconds(saved)
	c, err2 := parseSeconds(confirmed)
	return Stamp{Saved: s, Confirmed: c}, errors.Join(err1, err2)
}

func parseSeconds(text string) (time.Time, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil:
		return time.Time{}, fmt.Errorf("its times are malformed: %w", err)
	case n == 0:
		return time.Time{}, nil
	default:
		return time.Unix(n, 0), nil
	}
}

// setAside takes a file that cannot be used out of the way. A state that a
// newer Guywire wrote is good, and stays for it: after an upgrade that was taken
// back, a follower has nothing else to start from.
func (c *Cache) setAside(name string, why error) error {
	if errors.Is(why, store.ErrNewer) && (name == stateFile || name == previousFile) {
		return fmt.Errorf("%s: %w", c.dir.Path(name), why)
	}
	path, err := c.dir.SetAside(name)
	if err != nil {
		return fmt.Errorf("%w: %s: %w; it could not be set aside: %w", ErrUnusable, c.dir.Path(name), why, err)
	}
	return fmt.Errorf("%w: %s: %w; it was set aside as %s and the node starts from what it kept before, or from the log", ErrUnusable, c.dir.Path(name), why, path)
}
