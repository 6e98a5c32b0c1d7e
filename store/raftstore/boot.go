package raftstore

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"guywire/mesh"
	"guywire/store"
)

// ErrStaleCopy: the log is one that the mesh has seen further on: its disk was
// set back to a backup, or another machine runs with a copy of it. It must not
// vote, for it has forgotten what it promised; destroy it and join the voters
// anew.
var ErrStaleCopy = errors.New("the replicated log is an old or a second copy")

// bootsKey counts in the stable store how often the log was opened.
var bootsKey = []byte("Boots")

// countBoot begins a run: its number is on disk when the call returns, and no
// other copy of the log has its instance.
func (l *logStore) countBoot() (store.Boot, error) {
	n, err := l.boots()
	if err != nil {
		return store.Boot{}, err
	}
	boot := store.Boot{N: n + 1}
	if _, err := rand.Read(boot.Instance[:]); err != nil {
		return store.Boot{}, err
	}
	value := sealed(bootsKey, binary.BigEndian.AppendUint64(nil, boot.N))
	return boot, l.write("count the boot", func() error { return l.disk.Set(bootsKey, value) })
}

func (l *logStore) boots() (uint64, error) {
	n, err := l.GetUint64(bootsKey)
	if isNotFound(err) {
		return 0, nil
	}
	return n, err
}

// CheckBoot compares the run of a copy of a voter's log with the one that the
// mesh has registered for the voter. An error wraps ErrStaleCopy.
func CheckBoot(own, registered store.Boot) error {
	switch {
	case own.N < registered.N:
		return fmt.Errorf("%w: it was opened %d times and the mesh knows of %d", ErrStaleCopy, own.N, registered.N)
	case own.N == registered.N && own.Instance != registered.Instance:
		return fmt.Errorf("%w: both were opened %d times", ErrStaleCopy, own.N)
	}
	return nil
}

// Boot identifies this run of this copy of the log, for RegisterBoot.
func (s *Store) Boot() store.Boot { return s.boot }

// A preface begins each connection between voters. It says which history the
// maker of the connection has, and which copy of its log.
type preface struct {
	mesh       mesh.MeshID // zero: it has no state yet
	generation uint64
	boot       store.Boot
}

const (
	prefaceMagic = "GWR\x01" // the last byte is the version
	prefaceSize  = len(prefaceMagic) + len(mesh.MeshID{}) + 8 + 8 + len(store.Nonce{})
)

func (p preface) encode() []byte {
	b := append(make([]byte, 0, prefaceSize), prefaceMagic...)
	b = append(b, p.mesh[:]...)
	b = binary.BigEndian.AppendUint64(b, p.generation)
	b = binary.BigEndian.AppendUint64(b, p.boot.N)
	return append(b, p.boot.Instance[:]...)
}

func decodePreface(b []byte) (p preface, err error) {
	if len(b) != prefaceSize || string(b[:len(prefaceMagic)]) != prefaceMagic {
		return preface{}, errors.New("the connection does not begin as those of this version do; run the same version of Guywire on all voters")
	}
	b = b[len(prefaceMagic):]
	b = b[copy(p.mesh[:], b):]
	p.generation = binary.BigEndian.Uint64(b)
	p.boot.N = binary.BigEndian.Uint64(b[8:])
	copy(p.boot.Instance[:], b[16:])
	return p, nil
}

// check refuses who has another history than state, or an old or a second copy
// of the log of the voter id.
func (p preface) check(id mesh.NodeID, state *store.State) error {
	if !p.mesh.IsZero() && !state.Mesh.ID.IsZero() {
		if p.mesh != state.Mesh.ID {
			return fmt.Errorf("it is of mesh %s", p.mesh)
		}
		if p.generation != state.Mesh.Generation {
			return fmt.Errorf("it is of generation %d and this is generation %d: the mesh was recovered; let the voter of the lower one join anew", p.generation, state.Mesh.Generation)
		}
	}
	return CheckBoot(p.boot, state.Nodes[id].Boot)
}

// A prefaced connection came in; its first read is that of the preface, so that
// nobody waits for a silent one but its own reader.
type prefaced struct {
	net.Conn
	check func(preface) error
	once  sync.Once
	err   error // why nothing is read from it
}

// Read implements net.Conn.
func (c *prefaced) Read(b []byte) (int, error) {
	c.once.Do(func() {
		if c.err = c.greet(); c.err != nil {
			c.Conn.Close()
		}
	})
	if c.err != nil {
		return 0, c.err
	}
	return c.Conn.Read(b)
}

func (c *prefaced) greet() error {
	var b [prefaceSize]byte
	if err := c.SetReadDeadline(time.Now().Add(rpcTimeout)); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.Conn, b[:]); err != nil {
		return err
	}
	p, err := decodePreface(b[:])
	if err == nil {
		err = c.check(p)
	}
	return errors.Join(err, c.SetReadDeadline(time.Time{}))
}
