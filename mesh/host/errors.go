package host

import "errors"

// ErrPrivilege means that this process may not configure the network.
var ErrPrivilege = errors.New("no right to configure the network of this namespace: " +
	"run meshd by its service unit or as root, or give it CAP_NET_ADMIN")

// errMalformed says that the kernel's answer could not be read.
var errMalformed = errors.New("malformed netlink message")
