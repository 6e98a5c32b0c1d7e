package flow

import "errors"

var (
	// ErrMalformed is returned for bytes that are not a packet of this package.
	ErrMalformed = errors.New("not a flow packet")

	// ErrMismatch is returned by [Merge] for reports that cannot belong together.
	ErrMismatch = errors.New("reports do not belong together")
)
