package dataplane

import "io/fs"

// Errors that callers tell apart with errors.Is. All but ErrRunning may come
// over the control socket.
var (
	// ErrNotRunning: no data plane answers on the socket.
	ErrNotRunning = &sentinel{text: "no data plane runs; start `meshd dataplane`", is: fs.ErrNotExist}
	// ErrRunning: another data plane owns the socket.
	ErrRunning = &sentinel{text: "another data plane is running on this socket; use it, or stop it first"}
	// ErrExists: a device, link or carrier of that name is there already.
	ErrExists = &sentinel{text: "exists already", is: fs.ErrExist}
	// ErrNoDevice: this data plane has no device of that name.
	ErrNoDevice = &sentinel{text: "no such device in the data plane", is: fs.ErrNotExist}
	// ErrNoCarrier: this data plane has no such carrier.
	ErrNoCarrier = &sentinel{text: "no such carrier in the data plane", is: fs.ErrNotExist}
	// ErrBusy: the data plane still has devices or carriers and the shutdown was not forced.
	ErrBusy = &sentinel{text: "data plane still has devices or carriers; remove them, or force the shutdown"}
	// ErrInvalid: the request cannot be right.
	ErrInvalid = &sentinel{text: "invalid request"}
	// ErrUnsupported: this data plane is older than the request.
	ErrUnsupported = &sentinel{text: "operation not known to this data plane; restart it to upgrade"}
)

// A sentinel is a fixed error that may stand for a more general one.
type sentinel struct {
	text string
	is   error
}

func (e *sentinel) Error() string { return e.text }
func (e *sentinel) Unwrap() error { return e.is }
