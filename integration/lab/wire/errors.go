package wire

import "errors"

// ErrClosed is returned by operations on a wire that was closed.
var ErrClosed = errors.New("wire is closed")
