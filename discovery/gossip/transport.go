package gossip

import (
	"context"
	"log"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// netTransport is memberlist's, but dials from the overlay address, and
// ends dials and conversations in flight when it is shut down.
type netTransport struct {
	*memberlist.NetTransport
	dialer net.Dialer
	ctx    context.Context // ended by Shutdown; the interface passes none
	cancel context.CancelFunc
}

var _ memberlist.NodeAwareTransport = (*netTransport)(nil)

func newTransport(bind netip.Addr, port uint16, logger *log.Logger) (*netTransport, error) {
	nt, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{bind.String()}, BindPort: int(port), Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	t := &netTransport{NetTransport: nt}
	t.dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(bind, 0))
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

// DialTimeout implements memberlist.Transport.
func (t *netTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	conn, err := t.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &boundConn{Conn: conn}
	c.stop = context.AfterFunc(t.ctx, func() { _ = conn.Close() })
	return c, nil
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *netTransport) DialAddressTimeout(addr memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(addr.Addr, timeout)
}

// Shutdown implements memberlist.Transport.
func (t *netTransport) Shutdown() error {
	t.cancel()
	return t.NetTransport.Shutdown()
}

// boundConn is closed at the latest with its transport.
type boundConn struct {
	net.Conn
	stop func() bool
}

func (c *boundConn) Close() error {
	c.stop()
	return c.Conn.Close()
}
