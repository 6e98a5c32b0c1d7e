package dataplane

import "golang.zx2c4.com/wireguard/conn"

// A bind is wireguard-go's UDP bind under another type. wireguard-go starts
// a route listener for each device whose bind is exactly *conn.StdNetBind: it
// is woken by every IPv4 route message of the host and asks the kernel for a
// route in return. Our own agent writes routes by the ten thousand, with tens of
// devices listening. What the listener is for (forgetting the source address
// when the route to the peer moves to another interface) is not needed: each
// tunnel's mark leads to a table with one uplink in it.
type bind struct{ conn.Bind }

func newBind() bind { return bind{conn.NewStdNetBind()} }

// Open binds the sockets of both families. On a kernel without IPv6 the
// standard bind reports port 0 although it listens on the port asked for.
func (b bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := b.Bind.Open(port)
	if err == nil && actual == 0 {
		actual = port
	}
	return fns, actual, err
}
