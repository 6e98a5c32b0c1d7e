package stun

import "errors"

var (
	// ErrPortInUse: no port of the wanted range is free on both address families.
	ErrPortInUse = errors.New("no free UDP port")
	// ErrPermission: the process may not set firewall marks.
	ErrPermission = errors.New("marking packets is not permitted: CAP_NET_ADMIN is needed in this network namespace")

	errNotOurs = errors.New("not an authenticated message of ours")
)
