package firewall

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// settle is how long a burst of notifications is gathered into one hint.
const settle = 5 * time.Millisecond

// Watch calls hint when anyone changed nftables, this process included: it is
// time to Observe, which costs one message unless it was our table. Hints come
// at most every few milliseconds. It blocks until ctx ends and returns its
// error, or why it cannot watch.
func (f *Firewall) Watch(ctx context.Context, hint func()) error {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
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
			return fmt.Errorf("watch nftables: %w", err)
		}
		_, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, unix.EAGAIN):
			hint()
			due = time.Time{}
		case err != nil && !errors.Is(err, unix.ENOBUFS): // that one says that we missed some
			return fmt.Errorf("watch nftables: %w", err)
		case due.IsZero():
			due = time.Now().Add(settle)
		}
	}
}
