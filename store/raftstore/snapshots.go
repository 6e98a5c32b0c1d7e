package raftstore

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// snapshots is raft's file store with modes that no umask can widen (raft
// makes directories 0755 and files 0644), with a checksum of the metadata
// beside it, which raft has for the state only, and without its silence about
// a snapshot that it cannot read: it would take an older one.
type snapshots struct {
	*raft.FileSnapshotStore
	dir string
}

func openSnapshots(dir string, logger hclog.Logger) (*snapshots, error) {
	inner := filepath.Join(dir, "snapshots") // the name that raft's store appends
	if err := os.MkdirAll(inner, 0o700); err != nil {
		return nil, fmt.Errorf("make snapshot folder: %w", err)
	}
	if err := os.Chmod(inner, 0o700); err != nil {
		return nil, fmt.Errorf("protect snapshot folder: %w", err)
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, logger)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return &snapshots{files, inner}, nil
}

// Create implements raft.SnapshotStore. The modes are set before the first
// byte of state is written; the rename at the end keeps them.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, transport raft.Transport,
) (raft.SnapshotSink, error) {
	sink, err := s.FileSnapshotStore.Create(version, index, term, configuration, configurationIndex, transport)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, sink.ID()+".tmp")
	for path, mode := range map[string]os.FileMode{
		dir:                             0o700,
		filepath.Join(dir, "state.bin"): 0o600,
		filepath.Join(dir, "meta.json"): 0o600,
	} {
		if err := os.Chmod(path, mode); err != nil {
			_ = sink.Cancel() // the folder cannot be protected: keep nothing
			return nil, fmt.Errorf("protect snapshot: %w", err)
		}
	}
	return summedSink{sink, filepath.Join(s.dir, sink.ID())}, nil
}

// A summedSink adds the checksum of the metadata once they are final. Only
// then raft cuts the log, so a snapshot without one still has its entries.
type summedSink struct {
	raft.SnapshotSink
	dir string // once closed
}

// Close implements raft.SnapshotSink.
func (s summedSink) Close() error {
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	meta, err := os.ReadFile(filepath.Join(s.dir, "meta.json"))
	if err == nil {
		err = writeSynced(filepath.Join(s.dir, sumFile), binary.BigEndian.AppendUint32(nil, crc32.Checksum(meta, castagnoli)))
	}
	if err != nil {
		return fmt.Errorf("sum up snapshot: %w", err)
	}
	return nil
}

// sumFile holds the CRC-32C of meta.json, 4 bytes, beside it.
const sumFile = "meta.crc32c"

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// List implements raft.SnapshotStore. It is an error if any is damaged: raft
// lists what it can read.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	folders, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	for _, folder := range folders {
		if folder.IsDir() && !strings.HasSuffix(folder.Name(), ".tmp") { // raft was killed while it wrote that
			if err := s.check(folder.Name()); err != nil {
				return nil, fmt.Errorf("%w: snapshot %s: %w", ErrDamaged, folder.Name(), err)
			}
		}
	}
	return s.FileSnapshotStore.List()
}

// check compares the metadata of a snapshot with its name and its checksum.
func (s *snapshots) check(name string) error {
	b, err := os.ReadFile(filepath.Join(s.dir, name, "meta.json"))
	if err != nil {
		return err
	}
	var meta raft.SnapshotMeta
	if err := json.Unmarshal(b, &meta); err != nil {
		return err
	}
	if meta.ID != name || !strings.HasPrefix(name, fmt.Sprintf("%d-%d-", meta.Term, meta.Index)) {
		return errors.New("its metadata are another's")
	}
	want, err := os.ReadFile(filepath.Join(s.dir, name, sumFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // from before there were checksums, or killed before it
	case err != nil:
		return err
	case len(want) == 0: // killed while it was written
		return nil
	case len(want) != 4 || binary.BigEndian.Uint32(want) != crc32.Checksum(b, castagnoli):
		return errors.New("its metadata do not have their checksum")
	}
	return nil
}
