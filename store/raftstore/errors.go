package raftstore

import (
	"errors"
	"fmt"

	"guywire/mesh"
)

var (
	// ErrNotLeader is matched by every NotLeaderError.
	ErrNotLeader = errors.New("this voter is not the leader")
	// ErrUnknownOutcome: the command may or may not be applied; ask again with
	// a command that is safe to repeat.
	ErrUnknownOutcome = errors.New("the outcome of the write is unknown")
	// ErrClosed: the store was closed or has failed.
	ErrClosed = errors.New("the replicated log is closed")
	// ErrDisk: a write to the log failed or did not return in time.
	ErrDisk = errors.New("the disk of the replicated log failed")
	// ErrDamaged: what is on disk cannot be read back. Nothing is served from it.
	ErrDamaged = errors.New("the replicated log on disk is damaged")
	// ErrInUse: another process has the log open.
	ErrInUse = errors.New("the replicated log is in use by another process")
)

// A NotLeaderError says that a command was not taken, and who would take it.
type NotLeaderError struct {
	Leader mesh.NodeID // zero: no leader is known
}

// Error implements error.
func (e *NotLeaderError) Error() string {
	if e.Leader.IsZero() {
		return "no leader is known; a majority of the voters must be up and reach each other"
	}
	return fmt.Sprintf("%s: %s leads", ErrNotLeader, e.Leader)
}

// Is makes the error match ErrNotLeader.
func (e *NotLeaderError) Is(target error) bool { return target == ErrNotLeader }
