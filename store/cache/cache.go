package cache

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/disk"
)

const (
	directory = "cache"
	magic     = "guywire-cache"
	domain    = "guywire cache v1\x00"
	version   = 1

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

const stateFile = "state" // a store.Snapshot

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
func (c *Cache) SaveState(s *store.State) error {
	if s.Mesh.ID != c.owner.Mesh {
		return fmt.Errorf("cache state of mesh %s in that of %s: %w", s.Mesh.ID, c.owner.Mesh, ErrOtherMesh)
	}
	b, err := store.Snapshot(s)
	if err != nil {
		return fmt.Errorf("cache state: %w", err)
	}
	return c.write(stateFile, b)
}

// LoadState gives the state that was saved last. The errors are ErrEmpty,
// ErrRemoved (the state comes with it, to say when), or wrap ErrUnusable.
func (c *Cache) LoadState() (*store.State, error) {
	b, err := c.read(stateFile, store.MaxSnapshotBytes+maxHeader)
	if err != nil {
		return nil, err
	}
	s, err := store.Restore(b)
	if err == nil && s.Mesh.ID != c.owner.Mesh {
		err = fmt.Errorf("it is of mesh %s", s.Mesh.ID)
	}
	if err != nil {
		return nil, c.setAside(stateFile, err)
	}
	if _, removed := s.Removed[c.owner.Node]; removed {
		return s, ErrRemoved
	}
	if _, member := s.Nodes[c.owner.Node]; !member {
		return nil, c.setAside(stateFile, errors.New("this node is not in it"))
	}
	return s, nil
}

// SaveBlob keeps Links or Facts.
func (c *Cache) SaveBlob(name Blob, blob []byte) error {
	if len(blob) > MaxBlobBytes {
		return fmt.Errorf("cache %s: %d bytes are more than %d", name, len(blob), MaxBlobBytes)
	}
	return c.write(string(name), blob)
}

// LoadBlob gives what SaveBlob kept. The errors are ErrEmpty or wrap ErrUnusable.
func (c *Cache) LoadBlob(name Blob) ([]byte, error) {
	return c.read(string(name), MaxBlobBytes+maxHeader)
}

func (c *Cache) write(kind string, body []byte) error {
	return c.dir.Write(kind, append(c.header(kind, c.key.Sign(c.message(kind, body))), body...))
}

func (c *Cache) read(kind string, limit int64) ([]byte, error) {
	b, err := c.dir.Read(kind, limit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrEmpty
	case errors.Is(err, disk.ErrTooLarge):
		return nil, c.setAside(kind, err)
	case err != nil:
		return nil, err
	}
	body, err := c.open(kind, b)
	if err != nil {
		return nil, c.setAside(kind, err)
	}
	return body, nil
}

// A file is one line, "guywire-cache VERSION KIND MESH NODE SIGNATURE", and
// the body. The signature covers all of it.
func (c *Cache) header(kind string, signature []byte) []byte {
	return fmt.Appendf(nil, "%s %d %s %s %s %s\n", magic, version, kind, c.owner.Mesh, c.owner.Node, base64.StdEncoding.EncodeToString(signature))
}

func (c *Cache) message(kind string, body []byte) []byte {
	m := append([]byte(domain), c.header(kind, nil)...)
	return append(m, body...)
}

// open checks a file and gives its body.
func (c *Cache) open(kind string, b []byte) ([]byte, error) {
	line, body, found := bytes.Cut(b, []byte("\n"))
	if !found || len(line) > maxHeader {
		return nil, errors.New("it does not begin as one")
	}
	fields := strings.Split(string(line), " ")
	if len(fields) != 6 || fields[0] != magic {
		return nil, errors.New("it does not begin as one")
	}
	if v, err := strconv.Atoi(fields[1]); err == nil && v > version {
		return nil, fmt.Errorf("it is of version %d: %w", v, store.ErrNewer)
	}
	signature, err := base64.StdEncoding.DecodeString(fields[5])
	if err != nil || !bytes.Equal(c.header(kind, signature), b[:len(line)+1]) {
		return nil, errors.New("it is another kind of file, or another node's")
	}
	if !c.key.Identity().Verify(c.message(kind, body), signature) {
		return nil, errors.New("its signature is wrong")
	}
	return body, nil
}

func (c *Cache) setAside(kind string, why error) error {
	path, err := c.dir.SetAside(kind)
	if err != nil {
		return fmt.Errorf("%w: %s: %w; it could not be set aside: %w", ErrUnusable, c.dir.Path(kind), why, err)
	}
	return fmt.Errorf("%w: %s: %w; it was set aside as %s and the node starts from the log", ErrUnusable, c.dir.Path(kind), why, path)
}
