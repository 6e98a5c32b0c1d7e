package stun

import (
	"context"
	"net/netip"
	"time"

	"guywire/discovery"
)

// gather asks the servers through the socket.
func gather(s *Socket, servers []netip.AddrPort) []discovery.Reflexion {
	g := discovery.NewGathering(time.Now(), servers, 2, [32]byte{byte(s.Port())})
	ready := g.Tick(time.Now())
	for !ready.Done {
		for _, q := range ready.Ask {
			if !s.Ask(q) {
				g.Unreachable(q.Server)
			}
		}
		select {
		case <-time.After(time.Until(ready.Deadline)):
			ready = g.Tick(time.Now())
		case a := <-s.Arrivals():
			ready = g.Answered(a.At, a.Packet.Peer, a.Packet.Tx, a.Packet.Mapped)
		}
	}
	return g.Answers()
}

// check runs one end of a check.
func check(ctx context.Context, s *Socket, plan discovery.CheckPlan, keys discovery.Keys) (discovery.Proof, error) {
	s.Expect(keys)
	c := discovery.NewCheck(plan)
	ready := c.Tick(time.Now())
	for {
		for _, p := range ready.Send {
			s.Send(p, keys)
		}
		if ready.Done {
			return c.Result()
		}
		select {
		case <-ctx.Done():
			return discovery.Proof{}, ctx.Err()
		case <-time.After(time.Until(ready.Deadline)):
			ready = c.Tick(time.Now())
		case a := <-s.Arrivals():
			ready = c.Receive(a.At, a.Packet)
		}
	}
}
