package rendezvous

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"guywire/discovery"
	"guywire/discovery/nattest"
	"guywire/mesh"
)

// boxed is a socket behind a box, before a server that answers to any port.
type boxed struct {
	*fakeSocket
	box *nattest.Box
}

func (s boxed) Ask(q discovery.Query) bool {
	s.box.Now = time.Now()
	mapped := s.box.Out(s.at, q.Server)
	to := mapped
	if q.Reply != 0 {
		to = netip.AddrPortFrom(mapped.Addr(), q.Reply)
	}
	inside, ok := s.box.In(q.Server, to)
	if !ok {
		return true
	}
	s.hub.mu.Lock()
	receiver := s.hub.sockets[inside]
	s.hub.mu.Unlock()
	if receiver != nil {
		receiver.deliver(discovery.CheckPacket{Kind: discovery.ServerResponse, Peer: q.Server, Tx: q.Tx, Mapped: mapped})
	}
	return true
}

func TestLifetime(t *testing.T) {
	for _, c := range []struct {
		life    time.Duration
		metered bool
		want    discovery.Lifetime
	}{{time.Minute, false, 55}, {2 * time.Minute, false, 115}, {2 * time.Minute, true, 55}, {20 * time.Second, false, discovery.LifetimeShort}} {
		synctest.Test(t, func(t *testing.T) {
			box := nattest.New(netip.MustParseAddr("203.0.113.9"))
			box.Life, box.Young = c.life, 15*time.Second
			h := &hub{sockets: map[netip.AddrPort]*fakeSocket{}}
			a := New(Config{Open: func(uint32) (Socket, error) {
				h.port++
				h.open++
				s := &fakeSocket{hub: h, at: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), 51800+h.port), in: make(chan discovery.Arrival, 64)}
				h.sockets[s.at] = s
				return boxed{s, box}, nil
			}})
			defer a.Close()
			got, err := a.Lifetime(t.Context(), mesh.Uplink{Name: "wan", Up: true, Metered: c.metered}, servers[0], discovery.NATEasy)
			if err != nil || got != c.want {
				t.Errorf("life of %s: %s (%v), want %s", c.life, got, err, c.want)
			}
			if h.open != 0 {
				t.Errorf("%d sockets left open", h.open)
			}
		})
	}
}
