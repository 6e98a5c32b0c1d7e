package rendezvous

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"guywire/discovery"
	"guywire/mesh"
)

// wires are the carriers of all ends: one stands when it is dialled at an address
// that lets it in and accepted with the same token and each other's pins.
type wires struct {
	mu       sync.Mutex
	open     map[[32]byte]map[discovery.AttemptID]Carrier // by the pin of the end that opened it
	passable map[netip.AddrPort]bool
}

type fakeCarriers struct {
	w   *wires
	pin [32]byte
}

func (f fakeCarriers) Pin(context.Context) ([32]byte, error) { return f.pin, nil }

func (f fakeCarriers) Open(_ context.Context, c Carrier) (netip.AddrPort, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if f.w.open[f.pin] == nil {
		f.w.open[f.pin] = map[discovery.AttemptID]Carrier{}
	}
	f.w.open[f.pin][c.ID] = c
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 1000+uint16(f.pin[0])), nil
}

func (f fakeCarriers) Connected(_ context.Context, id discovery.AttemptID) (bool, string, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	c, ok := f.w.open[f.pin][id]
	if !ok {
		return false, "", errors.New("closed meanwhile")
	}
	other, ok := f.w.open[c.PeerPin][id]
	if !ok || other.PeerPin != f.pin || other.Token != c.Token || c.To.IsValid() == other.To.IsValid() {
		return false, "the far end does not know it", nil
	}
	to := c.To
	if !to.IsValid() {
		to = other.To
	}
	return f.w.passable[to], "connection timed out", nil
}

func (f fakeCarriers) Close(_ context.Context, id discovery.AttemptID) error {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	delete(f.w.open[f.pin], id)
	return nil
}

func carrierScene(t *testing.T, passable ...string) (*scene, []*party, *wires) {
	sc, p := newScene(t, 2)
	w := &wires{open: map[[32]byte]map[discovery.AttemptID]Carrier{}, passable: map[netip.AddrPort]bool{}}
	for _, a := range passable {
		w.passable[netip.MustParseAddrPort(a)] = true
	}
	for i := range p {
		p[i].cfg.Carriers = fakeCarriers{w, [32]byte{byte(i + 1)}}
		p[i].cfg.ControlOf = func(mesh.NodeID) []netip.AddrPort {
			return []netip.AddrPort{
				netip.MustParseAddrPort("203.0.113.2:8686"), netip.MustParseAddrPort("203.0.113.2:443"), netip.MustParseAddrPort("[2001:db8::2]:443"),
			}
		}
	}
	return sc, p, w
}

// Where only one of the far end's ports passes, the link is carried by that, and
// the streams that did not come about are gone.
func TestCarrier(t *testing.T) {
	for _, passes := range []string{"203.0.113.2:443", "203.0.113.2:8686"} {
		synctest.Test(t, func(t *testing.T) {
			sc, p, w := carrierScene(t, passes)
			defer sc.end(t)
			req := p[0].request(p[1])
			req.Carrier = true
			if err := p[0].Start(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			a, b := <-p[0].Results(), <-p[1].Results()
			if a.Err != nil || b.Err != nil {
				t.Fatal(a.Err, b.Err)
			}
			if a.Class != discovery.ClassCarrier || a.Carrier != b.Carrier || a.Carrier != a.Attempt || !a.First || b.First {
				t.Errorf("%+v\n%+v", a, b)
			}
			if !a.Endpoint.Addr().IsLoopback() || a.Endpoint.Port() != 1001 || b.Endpoint.Port() != 1002 || a.Port == 0 || b.PeerKey[0] != p[0].id[0] {
				t.Errorf("endpoints %s %s, ports %d %d", a.Endpoint, b.Endpoint, a.Port, b.Port)
			}
			if dialled := w.open[[32]byte{1}][a.Carrier]; dialled.To.String() != passes || dialled.Port != a.Port || dialled.Mark != p[0].uplink.Mark() {
				t.Errorf("dialled %+v", dialled)
			}
			if accepted := w.open[[32]byte{2}][a.Carrier]; accepted.To.IsValid() || accepted.Port != b.Port {
				t.Errorf("accepted %+v", accepted)
			}
			if sc.hub.open != 0 {
				t.Errorf("%d ports are still held", sc.hub.open)
			}
		})
	}
}

// Whatever is in the way, both ends give up in time, say why, and leave nothing.
func TestCarrierFails(t *testing.T) {
	for what, spoil := range map[string]func([]*party){
		"no port passes":              func([]*party) {},
		"the far end has none":        func(p []*party) { p[1].cfg.Carriers = nil },
		"this end has none":           func(p []*party) { p[0].cfg.Carriers = nil },
		"the far end has no address":  func(p []*party) { p[0].cfg.ControlOf = func(mesh.NodeID) []netip.AddrPort { return nil } },
		"the answer is of other kind": func(p []*party) { p[0].cfg.Exchange = plainAnswer(p) },
	} {
		synctest.Test(t, func(t *testing.T) {
			sc, p, w := carrierScene(t)
			defer sc.end(t)
			spoil(p)
			req := p[0].request(p[1])
			req.Carrier = true
			if err := p[0].Start(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			r := <-p[0].Results()
			if r.Err == nil || r.Took > carrierTime+time.Second {
				t.Errorf("%s: %v after %s", what, r.Err, r.Took)
			}
			if what == "no port passes" && !strings.Contains(r.Err.Error(), "timed out") {
				t.Errorf("it is not said why: %v", r.Err)
			}
			time.Sleep(2 * carrierTime)
			w.mu.Lock()
			defer w.mu.Unlock()
			for pin, open := range w.open {
				if len(open) > 0 {
					t.Errorf("%s: left open at %d: %v", what, pin[0], open)
				}
			}
		})
	}
}

func plainAnswer(p []*party) func(context.Context, mesh.NodeID, discovery.Offer) (discovery.Offer, error) {
	return func(_ context.Context, _ mesh.NodeID, o discovery.Offer) (discovery.Offer, error) {
		answer := offer(p[1], p[0])
		answer.Attempt = o.Attempt
		return answer, nil
	}
}
