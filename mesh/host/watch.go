package host

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"guywire/mesh"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// settle is how long a burst of notifications is gathered into one hint.
const settle = 2 * time.Millisecond

// watched are the multicast groups of what Observe reads.
var watched = []uint{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
}

// Watch calls hint whenever the machine may look different: it is time to
// Observe. Hints come at most every few milliseconds and may be false; a
// notification that the kernel could not deliver is a hint as well. It blocks
// until ctx ends and returns its cause, or why it cannot watch.
func Watch(ctx context.Context, hint func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, watched...)
	if err != nil {
		return fmt.Errorf("watch rtnetlink: %w", err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, s.Close)()
	hint()            // for what happened before the subscription
	var due time.Time // of the pending hint
	for {
		var wait unix.Timeval // zero: for ever
		if !due.IsZero() {
			wait = unix.NsecToTimeval(max(time.Until(due), time.Microsecond).Nanoseconds())
		}
		if err := s.SetReceiveTimeout(&wait); err != nil && ctx.Err() == nil {
			return fmt.Errorf("watch rtnetlink: %w", err)
		}
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			hint()
			due = time.Time{}
		case errors.Is(err, unix.ENOBUFS): // we were too slow: anything may have happened
			if due.IsZero() {
				due = time.Now().Add(settle)
			}
		case err != nil:
			return fmt.Errorf("watch rtnetlink: %w", err)
		case due.IsZero() && concern(msgs):
			due = time.Now().Add(settle)
		}
	}
}

// concern reports whether any of the messages may tell of a change of uplinks
// or attached prefixes. A router with a full table must not make us look again
// for every route of its own.
func concern(msgs []syscall.NetlinkMessage) bool {
	for _, m := range msgs {
		switch m.Header.Type {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			if !routeMatters(m.Data) {
				continue
			}
		}
		return true
	}
	return false
}

// routeMatters reports whether a route is a default route or leads to a
// network without a gateway, and is not ours.
func routeMatters(b []byte) bool {
	if len(b) < unix.SizeofRtMsg {
		return true
	}
	length, table, protocol := b[1], b[4], b[5]
	if protocol == mesh.RouteProtocol || table == mesh.RouteTable || table == unix.RT_TABLE_LOCAL {
		return false
	}
	attrs, err := nl.ParseRouteAttrAsMap(b[unix.SizeofRtMsg:])
	if err != nil {
		return true
	}
	_, gateway := attrs[unix.RTA_GATEWAY]
	_, via := attrs[rtaVia]
	return length == 0 || !gateway && !via
}
