package transport

import "errors"

var (
	// ErrUntrusted: the other end has no certificate of a CA that we accept.
	ErrUntrusted = errors.New("certificate is not from this mesh")
	// ErrClock: a certificate is outside its validity by our clock.
	ErrClock = errors.New("certificate does not fit this machine's clock")
	// ErrWrongNode: the address belongs to a member, but to another one.
	ErrWrongNode = errors.New("another node answers at this address")
	// ErrCut: the connection was cut while it was being made.
	ErrCut = errors.New("the connection was cut: the node may not be talked to any more")
	// ErrNoAddress: nothing is known about where the node could be reached.
	ErrNoAddress = errors.New("no control address is known")
	// ErrNoCertificate: this node has no certificate to show yet.
	ErrNoCertificate = errors.New("this node has no certificate yet")
)
