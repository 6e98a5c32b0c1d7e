package raftstore

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// snapshots is raft's file store with modes that no umask can widen: raft
// makes directories 0755 and files 0644.
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
	return sink, nil
}
