package fib

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Lookup is what the kernel would do with a packet of this host.
type Lookup struct {
	Local  bool   // it is this host's own
	Device string // by which it would leave
	Text   string // as a person would read it
}

// Ask asks the kernel's real tables where a packet of this host to an address
// would go. No route is an answer, too, and no error.
func Ask(to netip.Addr) (Lookup, error) {
	routes, err := netlink.RouteGet(to.AsSlice())
	if err != nil {
		return Lookup{Text: fmt.Sprintf("%s: %v", to, err)}, nil
	}
	if len(routes) == 0 {
		return Lookup{Text: fmt.Sprintf("%s: no route", to)}, nil
	}
	r := routes[0]
	if r.Type == unix.RTN_LOCAL {
		return Lookup{Local: true, Text: fmt.Sprintf("%s is this host's own", to)}, nil
	}
	link, err := netlink.LinkByIndex(r.LinkIndex)
	if err != nil {
		return Lookup{}, fmt.Errorf("look up %s: device %d: %w", to, r.LinkIndex, err)
	}
	l := Lookup{Device: link.Attrs().Name}
	l.Text = fmt.Sprintf("%s dev %s", to, l.Device)
	if r.Gw != nil {
		l.Text += " via " + r.Gw.String()
	}
	if r.Src != nil {
		l.Text += " src " + r.Src.String()
	}
	return l, nil
}
