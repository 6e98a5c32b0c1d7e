package kernel

import "errors"

// ErrRefused is what an error of Backend.Do wraps if nothing was changed, for
// certain. After any other error nobody knows before the next look.
var ErrRefused = errors.New("refused, and nothing was changed")

// Refusals of a Fake, as the kernel words them.
var (
	ErrNoDevice = errors.New("no such device")
	ErrDown     = errors.New("device is down")
	ErrNoHop    = errors.New("nexthop id does not exist")
	ErrKind     = errors.New("can not replace a nexthop with a nexthop group, or the reverse")
	ErrInvalid  = errors.New("invalid argument")
)
