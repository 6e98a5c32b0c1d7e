package discovery

import "errors"

var (
	// ErrMalformed: the bytes are not what Encode writes, or exceed a limit.
	ErrMalformed = errors.New("malformed")
	// ErrSignature: the statement is not signed by the key it must be signed by.
	ErrSignature = errors.New("signature does not match")
	// ErrForeign: the statement was made for another mesh or about another node.
	ErrForeign = errors.New("made for another mesh or node")
	// ErrExpired: the statement is too old, or comes from too far in the future.
	ErrExpired = errors.New("expired")
	// ErrForbidden: its author has not the right to say this.
	ErrForbidden = errors.New("its author is no operator of the mesh")
	// ErrFull: the directory holds as many nodes as it may.
	ErrFull = errors.New("directory is full")
	// ErrNoPath: no pair of addresses let packets through in both directions.
	ErrNoPath = errors.New("no working path")
)
