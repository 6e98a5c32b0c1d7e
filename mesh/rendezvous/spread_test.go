package rendezvous

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"guywire/discovery"
	"guywire/mesh"
)

// spreadScene is an easy end, a hard one, and their witnesses. The internet is flat, so
// that the easy end's one port is where it says. All ports are below those that it
// guesses, so that none of its guesses is right.
func spreadScene(t *testing.T) (*scene, []*party) {
	sc, p := newScene(t, 2)
	const before = 100
	sc.hub.port = 1<<16 - 51800 + before
	for i, party := range p {
		other := p[1-i]
		party.open = party.uplink.Addrs[0]
		party.uplink.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i), 2})}
		party.survey.NAT, party.survey.NAT6 = []discovery.NAT{discovery.NATEasy, discovery.NATSymmetric}[i], discovery.NATAbsent
		for _, s := range servers[:2] {
			party.seen = append(party.seen, discovery.Reflexion{Server: s, Mapped: netip.AddrPortFrom(party.open, uint16(before+1+i))})
		}
		party.cfg.SeenAt = func(_ context.Context, peer mesh.NodeID, uplink string) ([]netip.Addr, error) {
			if peer != other.id || uplink != other.uplink.Name {
				t.Errorf("asked for %s of %s", uplink, peer)
			}
			return []netip.Addr{other.open}, nil
		}
	}
	return sc, p
}

func spreadRequest(from, to *party) Request {
	r := from.request(to)
	r.Spread = true
	return r
}

// One of the hard end's many sockets gets through, and its port is the result.
func TestSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc, p := spreadScene(t)
		defer sc.end(t)
		if err := p[0].Start(t.Context(), spreadRequest(p[0], p[1])); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2500 * time.Millisecond)
		sc.hub.mu.Lock()
		if sc.hub.open != 1+discovery.SpreadSockets {
			t.Errorf("%d sockets open", sc.hub.open)
		}
		sc.hub.mu.Unlock()
		a := <-p[0].Results()
		if a.Err != nil {
			t.Fatal(a.Err)
		}
		b := <-p[1].Results()
		if b.Err != nil {
			t.Fatal(b.Err)
		}
		if a.Endpoint.Port() != b.Port || b.Endpoint.Port() != a.Port || a.First || !b.First || !a.Spread || !b.Spread || a.Class != discovery.ClassTranslated {
			t.Errorf("results do not match:\n%+v\n%+v", a, b)
		}
		if sum := a.Packets + b.Packets; sum != sc.hub.sent+sc.hub.asked || a.Packets < discovery.SpreadProbes || b.Packets < discovery.SpreadSockets {
			t.Errorf("%d and %d packets, %d and %d have left", a.Packets, b.Packets, sc.hub.sent, sc.hub.asked)
		}
		if sc.hub.open != 0 {
			t.Errorf("%d sockets open after the results", sc.hub.open)
		}
	})
}

// Where it is off at either end, where others do not see the far end, and where another
// one is under way, not one packet of a search leaves.
func TestSpreadRefused(t *testing.T) {
	unseen := errors.New("nobody sees it")
	for name, c := range map[string]struct {
		change func([]*party) (undo func())
		want   error
	}{
		"off here":  {func(p []*party) func() { p[0].cfg.SeenAt = nil; return nil }, ErrNoSpread},
		"off there": {func(p []*party) func() { p[1].cfg.SeenAt = nil; return nil }, ErrNoSpread},
		"unseen": {func(p []*party) func() {
			p[1].cfg.SeenAt = func(context.Context, mesh.NodeID, string) ([]netip.Addr, error) { return nil, unseen }
			return nil
		}, unseen},
		"another one": {func(p []*party) func() {
			b := <-p[1].spreads
			return func() { p[1].spreads <- b }
		}, ErrBusy},
	} {
		synctest.Test(t, func(t *testing.T) {
			sc, p := spreadScene(t)
			defer sc.end(t)
			undo := c.change(p)
			if err := p[0].Start(t.Context(), spreadRequest(p[0], p[1])); err != nil {
				t.Fatal(err)
			}
			if r := <-p[0].Results(); !errors.Is(r.Err, c.want) || !r.Spread {
				t.Errorf("%s: %+v", name, r)
			}
			if sc.hub.sent > 0 {
				t.Errorf("%s: %d packets have left", name, sc.hub.sent)
			}
			if undo != nil {
				undo()
			}
			for _, party := range p {
				if len(party.spreads) != 1 {
					t.Errorf("%s: the turn is lost", name)
				}
			}
		})
	}
}

// An end that is stopped in the middle leaves no socket behind, and the turn is free.
func TestSpreadCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc, p := spreadScene(t)
		defer sc.end(t)
		if err := p[0].Start(t.Context(), spreadRequest(p[0], p[1])); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		stopped := errors.New("the operator says so")
		p[1].Cancel(mesh.LinkID{Peer: p[0].id, Local: p[1].uplink.Name, Remote: p[0].uplink.Name}, stopped)
		if r := <-p[1].Results(); !errors.Is(r.Err, stopped) || r.Packets < discovery.SpreadSockets {
			t.Errorf("%+v", r)
		}
		synctest.Wait()
		sc.hub.mu.Lock()
		if sc.hub.open != 1 || len(p[1].spreads) != 1 {
			t.Errorf("%d sockets open with the easy end's, %d turns free", sc.hub.open, len(p[1].spreads))
		}
		sc.hub.mu.Unlock()
	})
}
