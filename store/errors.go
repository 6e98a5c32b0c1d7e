package store

import (
	"errors"
	"fmt"
)

// What DecodeCommand and Restore can find wrong; their errors wrap one of these.
var (
	// ErrNewer is data of a newer version of Guywire. A voter that meets it in
	// the log must stop applying: guessing would make it disagree with the others.
	ErrNewer = errors.New("written by a newer version of Guywire; upgrade this node")
	// ErrCorrupt is data that no EncodeCommand or Snapshot wrote.
	ErrCorrupt = errors.New("the data is corrupt")
	// ErrTooLarge is data above MaxCommandBytes or MaxSnapshotBytes.
	ErrTooLarge = errors.New("the data is too large")
)

func refuse(code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Message: fmt.Sprintf(format, args...)}
}
