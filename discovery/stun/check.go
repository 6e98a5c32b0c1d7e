package stun

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/pion/stun/v3"

	"guywire/discovery"
)

// Check runs one connectivity check on the socket, until both ends know a path
// or the plan's deadline. It fails with discovery.ErrNoPath, or when ctx ends
// or the socket is closed. Afterwards the caller closes the socket at once and
// hands the port over; stray packets of the check are harmless to WireGuard.
func (s *Socket) Check(ctx context.Context, plan discovery.CheckPlan) (discovery.Proof, error) {
	c := discovery.NewCheck(plan)
	ready := c.Tick(time.Now())
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		for _, p := range ready.Send {
			// An address that cannot be sent to is one that does not answer.
			s.send(encodeCheck(p, plan), p.Peer, p.Via)
		}
		if ready.Done {
			return c.Result()
		}
		timer.Reset(time.Until(ready.Deadline))
		select {
		case <-ctx.Done():
			return discovery.Proof{}, fmt.Errorf("check paths: %w", ctx.Err())
		case <-s.closed:
			return discovery.Proof{}, fmt.Errorf("check paths: %w", net.ErrClosed)
		case <-timer.C:
			ready = c.Tick(time.Now())
		case p := <-s.in:
			ready.Send = nil
			if in, ok := decodeCheck(p, plan); ok {
				ready = c.Receive(p.at, in)
			}
		}
	}
}

// encodeCheck writes a packet for the other end: requests and indications are
// made out to it, answers are ours (RFC 8445, section 7.2.2).
func encodeCheck(p discovery.CheckPacket, plan discovery.CheckPlan) []byte {
	m := message{tx: p.Tx, check: true, controlling: plan.Controlling}
	key := plan.Peer.Password
	switch p.Kind {
	case discovery.CheckRequest, discovery.CheckNominate:
		m.class, m.nominate = stun.ClassRequest, p.Kind == discovery.CheckNominate
	case discovery.CheckDone:
		m.class = stun.ClassIndication
	case discovery.CheckResponse:
		return message{class: stun.ClassSuccessResponse, tx: p.Tx, mapped: p.Mapped}.encode([]byte(plan.Local.Password))
	}
	m.username = plan.Peer.Ufrag + ":" + plan.Local.Ufrag
	return m.encode([]byte(key))
}

// decodeCheck verifies a packet of the other end.
func decodeCheck(p packet, plan discovery.CheckPlan) (discovery.CheckPacket, bool) {
	m, err := decode(p.data, func(m message) []byte {
		switch {
		case m.class == stun.ClassSuccessResponse && m.mapped.IsValid():
			return []byte(plan.Peer.Password)
		case (m.class == stun.ClassRequest || m.class == stun.ClassIndication) && m.check &&
			m.controlling != plan.Controlling && m.username == plan.Local.Ufrag+":"+plan.Peer.Ufrag:
			return []byte(plan.Local.Password)
		}
		return nil
	})
	if err != nil {
		return discovery.CheckPacket{}, false
	}
	in := discovery.CheckPacket{Peer: p.from, Via: p.via, Tx: m.tx, Mapped: m.mapped}
	switch {
	case m.class == stun.ClassSuccessResponse:
		in.Kind = discovery.CheckResponse
	case m.class == stun.ClassIndication:
		in.Kind = discovery.CheckDone
	case m.nominate:
		in.Kind = discovery.CheckNominate
	default:
		in.Kind = discovery.CheckRequest
	}
	return in, true
}
