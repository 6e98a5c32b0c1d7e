package fib

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
const settle = 5 * time.Millisecond

// watched are the multicast groups that can mean a loss of ours.
var watched = []uint{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
	unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP,
}

// Watch calls hint whenever something happened in the kernel that may have
// damaged what is ours, and that this FIB did not do itself: it is time to
// Observe. Hints come at most every few milliseconds; they may be false, and
// a notification that the kernel could not deliver is a hint as well. It
// blocks until ctx ends and returns its error, or why it cannot watch.
func (f *FIB) Watch(ctx context.Context, hint func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, watched...)
	if err != nil {
		return fmt.Errorf("watch rtnetlink: %w", err)
	}
	defer context.AfterFunc(ctx, s.Close)()
	defer s.Close()
	var due time.Time // of the pending hint
	for {
		var wait unix.Timeval // zero: for ever
		if !due.IsZero() {
			wait = unix.NsecToTimeval(max(time.Until(due), time.Microsecond).Nanoseconds())
		}
		if err := s.SetReceiveTimeout(&wait); err != nil {
			return fmt.Errorf("watch rtnetlink: %w", err)
		}
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, unix.EAGAIN):
			hint()
			due = time.Time{}
		case errors.Is(err, unix.ENOBUFS): // we were too slow: anything may have happened
			if due.IsZero() {
				due = time.Now().Add(settle)
			}
		case err != nil:
			return fmt.Errorf("watch rtnetlink: %w", err)
		case due.IsZero() && f.concern(msgs):
			due = time.Now().Add(settle)
		}
	}
}

// concern reports whether any of the messages tells of a change by others
// that can be a loss of ours. A router with a full table must not make us
// look again for every route of its own.
func (f *FIB) concern(msgs []syscall.NetlinkMessage) bool {
	for _, m := range msgs {
		if m.Header.Pid == f.write.port {
			continue
		}
		switch m.Header.Type {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			if r, _, err := parseRoute(m.Data); err == nil && !ourTable(r.Table) {
				continue
			}
		case unix.RTM_NEWRULE, unix.RTM_DELRULE:
			if _, ours, err := parseRule(m.Data); err == nil && !ours {
				continue
			}
		case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
			if n, _, err := parseNextHop(m.Data); err == nil && (n.ID < mesh.NextHopBase || n.ID >= mesh.NextHopEnd) {
				continue
			}
		}
		return true
	}
	return false
}
