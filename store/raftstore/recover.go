package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/raft"

	"guywire/mesh"
	"guywire/store"
)

// An Inspection is what a log on disk holds, read without raft.
type Inspection struct {
	State     *store.State // what is known to be committed
	Committed uint64       // the highest index that is known to be
	Last      uint64       // index of the last entry
	Snapshot  uint64       // index of the newest snapshot; 0: there is none
	Term      uint64
	Boots     uint64        // how often the log was opened
	Voters    []mesh.NodeID // as the newest entry about them says, committed or not; sorted
	// Uncommitted are the commands above Committed, oldest first: some or all
	// of them may have been acknowledged.
	Uncommitted []Uncommitted
}

// An Uncommitted command is in the log of a voter, but it is not known there
// whether a majority has it.
type Uncommitted struct {
	Index   uint64        `json:"index"`
	Command store.Command `json:"command"`
}

// Uncommitted are the commands of this voter's log above its state, oldest
// first.
func (s *Store) Uncommitted() (list []Uncommitted, err error) {
	for i := s.State().Index + 1; i <= s.raft.LastIndex(); i++ {
		var entry raft.Log
		switch err := s.log.read(i, &entry); {
		case errors.Is(err, raft.ErrLogNotFound): // cut meanwhile
			continue
		case err != nil:
			return nil, fmt.Errorf("read the log: %w", err)
		case entry.Type != raft.LogCommand:
			continue
		}
		command, err := store.DecodeCommand(entry.Data)
		if err != nil {
			return nil, fmt.Errorf("entry %d of the replicated log: %w", i, err)
		}
		list = append(list, Uncommitted{i, command})
	}
	return list, nil
}

// Inspect reads the log in dir, which no voter may have open: ErrInUse. What
// cannot be read is ErrDamaged.
func Inspect(dir string) (Inspection, error) {
	if !Exists(dir) {
		return Inspection{}, fmt.Errorf("inspect replicated log: %w", os.ErrNotExist)
	}
	closed := make(chan struct{})
	snapshots, err := openSnapshots(dir, newLogger(slog.New(slog.DiscardHandler), closed))
	if err != nil {
		return Inspection{}, err
	}
	bolt, err := openBolt(filepath.Join(dir, "raft.db"))
	if err != nil {
		return Inspection{}, err
	}
	defer bolt.Close()
	s, err := load(Config{}, snapshots, bolt, stallAfter, closed)
	if err != nil {
		return Inspection{}, err
	}
	in := Inspection{State: s.State()}
	if err := in.read(s.log, snapshots); err != nil {
		return Inspection{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return in, nil
}

func (in *Inspection) read(log *logStore, snapshots raft.SnapshotStore) (err error) {
	metas, err := snapshots.List()
	if err != nil {
		return err
	}
	var voters raft.Configuration
	if len(metas) > 0 {
		in.Snapshot, voters = metas[0].Index, metas[0].Configuration
	}
	first, last, err := log.bounds()
	if err != nil {
		return err
	}
	if in.Committed, err = log.committed(); err != nil {
		return err
	}
	in.Committed, in.Last = max(in.Committed, in.Snapshot), max(last, in.Snapshot)
	if in.Term, err = log.GetUint64([]byte(stableKeys[0])); err != nil && !isNotFound(err) {
		return err
	}
	if in.Boots, err = log.boots(); err != nil {
		return err
	}
	for i := first; i != 0 && i <= last; i++ {
		var entry raft.Log
		if err := log.read(i, &entry); err != nil {
			return err
		}
		switch {
		case entry.Type == raft.LogConfiguration && i > in.Snapshot:
			voters = raft.DecodeConfiguration(entry.Data)
		case entry.Type == raft.LogCommand && i > in.Committed:
			command, err := store.DecodeCommand(entry.Data)
			if err != nil {
				return fmt.Errorf("entry %d: %w", i, err)
			}
			in.Uncommitted = append(in.Uncommitted, Uncommitted{i, command})
		}
	}
	for _, server := range voters.Servers {
		if id, err := mesh.ParseNodeID(string(server.ID)); err == nil && server.Suffrage == raft.Voter {
			in.Voters = append(in.Voters, id)
		}
	}
	slices.SortFunc(in.Voters, mesh.NodeID.Compare)
	return nil
}

// Recover makes in dir a log that begins with state, as store.Recovered gave
// it, and in which the node is the only voter. It is for a mesh whose majority
// of voters is lost. What was in dir is kept beside it, with the ending .lost,
// until the next recovery. Nothing may have the log open.
func Recover(dir string, id mesh.NodeID, state *store.State) (err error) {
	for other, n := range state.Nodes {
		if n.Voter != (other == id) {
			return fmt.Errorf("recover replicated log: the state must name %s as its only voter", id)
		}
	}
	old, err := Inspect(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("recover replicated log: %w", err)
	}
	made, lost := dir+".new", dir+".lost"
	if err := os.RemoveAll(made); err != nil {
		return fmt.Errorf("recover replicated log: %w", err)
	}
	if err := begin(made, id, state, old.Term+1, old.Boots); err != nil {
		return fmt.Errorf("recover replicated log: %w", err)
	}
	if _, err := Inspect(made); err != nil { // before anything is given up for it
		return fmt.Errorf("recover replicated log: %w", err)
	}
	if err := os.RemoveAll(lost); err != nil {
		return fmt.Errorf("recover replicated log: %w", err)
	}
	if err := os.Rename(dir, lost); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("recover replicated log: %w", err)
	}
	if err := os.Rename(made, dir); err != nil {
		return fmt.Errorf("recover replicated log: %w", err)
	}
	return syncFolder(filepath.Dir(dir))
}

// begin makes a log that consists of a snapshot of state. It belongs to the
// term, and goes on counting from boots.
func begin(dir string, id mesh.NodeID, state *store.State, term, boots uint64) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	snapshots, err := openSnapshots(dir, newLogger(slog.New(slog.DiscardHandler), nil))
	if err != nil {
		return err
	}
	bolt, err := openBolt(filepath.Join(dir, "raft.db"))
	if err != nil {
		return err
	}
	defer bolt.Close()
	err = errors.Join(
		bolt.Set(sealedKey, sealed(sealedKey, nil)),
		bolt.Set([]byte(stableKeys[0]), sealed([]byte(stableKeys[0]), binary.BigEndian.AppendUint64(nil, term))),
		bolt.Set(bootsKey, sealed(bootsKey, binary.BigEndian.AppendUint64(nil, boots))),
	)
	if err != nil {
		return err
	}
	_, names := raft.NewInmemTransport(raft.ServerAddress(id.String())) // the file store asks it how to write addresses
	sink, err := snapshots.Create(raft.SnapshotVersionMax, state.Index, term, soleVoter(id), state.Index, names)
	if err != nil {
		return err
	}
	return snapshot{state}.Persist(sink)
}

func soleVoter(id mesh.NodeID) raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: serverID(id), Address: raft.ServerAddress(id.String()),
	}}}
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
