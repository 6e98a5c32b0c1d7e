package demo

import "errors"

// ErrClaim: everything ran, but a measured value breaks a promise by a wide margin.
var ErrClaim = errors.New("a promise is broken")
