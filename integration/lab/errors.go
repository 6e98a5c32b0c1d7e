package lab

import (
	"errors"
	"fmt"
)

var (
	// ErrNotRunning: no lab of that name is running. Errors that wrap it satisfy errors.Is.
	ErrNotRunning = errors.New("not running")
	// ErrRunning: a lab of that name is already running.
	ErrRunning = errors.New("already running")
	// ErrUnknown: the network has no such node, link or process.
	ErrUnknown = errors.New("unknown")
	// ErrNotWire: the link is a veth pair, which cannot be impaired.
	ErrNotWire = errors.New("not a wire")
	// ErrNoFaults: the lab, or a program in it, was not made for faults of disks and clocks.
	ErrNoFaults = errors.New("not made for such faults")
)

// FileError is a mistake in a network file. Its text begins with the line.
type FileError struct {
	Line int    // 1-based; 0 when the mistake belongs to no line
	Path string // such as "nodes.fra.uplinks[0]"; may be empty
	Text string
}

func (e *FileError) Error() string {
	s := e.Text
	if e.Path != "" {
		s = e.Path + ": " + s
	}
	if e.Line > 0 {
		s = fmt.Sprintf("line %d: %s", e.Line, s)
	}
	return s
}

// remoteError carries an error over the control socket so that errors.Is still works at the other end.
type remoteError struct {
	text string
	kind error // one of the sentinels above, or nil
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

// errorKinds names the sentinels on the control socket.
var errorKinds = map[string]error{"unknown": ErrUnknown, "not-wire": ErrNotWire, "running": ErrRunning, "not-running": ErrNotRunning, "no-faults": ErrNoFaults}

func errorKind(err error) string {
	for name, kind := range errorKinds {
		if errors.Is(err, kind) {
			return name
		}
	}
	return ""
}
