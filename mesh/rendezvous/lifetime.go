package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"guywire/discovery"
	"guywire/mesh"
)

// Lifetime measures for how long an uplink lets in what comes from a STUN server
// that is known to answer; kind is its NAT of that address family. It blocks for some
// minutes, and fails when a port cannot be opened or ctx ends.
func (a *Attempter) Lifetime(ctx context.Context, uplink mesh.Uplink, server netip.AddrPort, kind discovery.NAT) (discovery.Lifetime, error) {
	test := discovery.NewLifetimeTest(server, kind, uplink.Metered, newSeed())
	var first, second Socket
	closeBoth := func() (err error) {
		for _, s := range []Socket{first, second} {
			if s != nil {
				err = errors.Join(err, s.Close())
			}
		}
		first, second = nil, nil
		return err
	}
	defer func() { _ = closeBoth() }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	ready := test.Tick(time.Now())
	for !ready.Done {
		if ready.Fresh {
			err := closeBoth()
			if err == nil {
				first, err = a.open(uplink)
			}
			if err == nil {
				second, err = a.open(uplink)
			}
			if err != nil {
				return discovery.LifetimeUnknown, fmt.Errorf("measure %s: %w", uplink.Name, err)
			}
			ready = test.Opened(time.Now(), first.Port())
		}
		for _, q := range ready.Ask {
			if q.Second {
				second.Ask(q.Query)
			} else {
				first.Ask(q.Query)
			}
		}
		timer.Reset(time.Until(ready.Deadline))
		select {
		case <-ctx.Done():
			return discovery.LifetimeUnknown, context.Cause(ctx)
		case <-timer.C:
			ready = test.Tick(time.Now())
		case p := <-first.Arrivals():
			ready = test.Answered(p.At, false, p.Packet.Peer, p.Packet.Tx, p.Packet.Mapped)
		case p := <-second.Arrivals():
			ready = test.Answered(p.At, true, p.Packet.Peer, p.Packet.Tx, p.Packet.Mapped)
		}
	}
	return test.Result(), closeBoth()
}
