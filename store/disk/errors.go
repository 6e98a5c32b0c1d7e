package disk

import "errors"

var (
	// ErrInUse is a state directory that another process has open.
	ErrInUse = errors.New("the state directory is in use")
	// ErrUnsafe is a file or directory that others can read or write, that
	// belongs to someone else, or that is not what it should be.
	ErrUnsafe = errors.New("unsafe file")
	// ErrTooLarge is a file above the limit of its reader.
	ErrTooLarge = errors.New("file too large")
)
