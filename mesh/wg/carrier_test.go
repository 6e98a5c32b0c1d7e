package wg

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"guywire/mesh/carrier"
	"guywire/mesh/dataplane"
	"guywire/mesh/transport"
)

// startDataplane starts the site's data plane, as its agent does before it opens
// a carrier: with tunnels of the kernel nothing else would.
func (s *site) startDataplane() {
	s.t.Helper()
	must(s.t, s.enter(func() error {
		return dataplane.Spawner{
			Client: dataplane.Client{Socket: controlSocket},
			Exe:    "/proc/self/exe", Args: []string{"run-dataplane"},
		}.Ensure(context.Background())
	}, "net", "mnt"))
}

// door is the control port of an agent at the site: it hands over what wants a
// carrier.
func (s *site) door(address string) *transport.Listener {
	s.t.Helper()
	var door *transport.Listener
	s.do(func() (err error) {
		door, err = transport.Listen(transport.ListenConfig{
			Address: address, Logger: slog.New(slog.NewTextHandler(s.t.Output(), nil)),
			Trust: transport.Trust{Certificate: func() *tls.Certificate { return nil }},
			Divert: map[string]func(context.Context, *net.TCPConn){carrier.ALPN: func(ctx context.Context, conn *net.TCPConn) {
				if err := s.dataplane().HandOver(ctx, conn); err != nil {
					s.t.Log(err) // the far end hears of it
				}
			}},
		})
		return err
	})
	s.t.Cleanup(func() { door.Close() })
	return door
}

var carrierID = [16]byte{1}

// carried makes two sites with a cable and a tunnel over a carrier from a to b.
// Only the carrier's mark leads to b.
func carried(t testing.TB, mode Mode) (a, b *site, door *transport.Listener) {
	t.Helper()
	const mark = 0x8601
	a, b = newSite(t, mode, 8), newSite(t, mode, 16)
	cable(a, b, "up0", "198.18.0.1/24", "198.18.0.2/24")
	b.addr("lo", "203.0.113.2/32")
	a.route("up0", "0.0.0.0/0", 8601)
	rule := netlink.NewRule()
	rule.Priority, rule.Mark, rule.Mask, rule.Table, rule.Family = 8601, uint32(mark), new(uint32(0xffff)), 8601, unix.AF_INET
	must(t, a.nl.RuleAdd(rule))
	a.startDataplane()
	b.startDataplane()
	door = b.door("203.0.113.2:443")

	pinA, err := a.dataplane().Pin(t.Context())
	must(t, err)
	pinB, err := b.dataplane().Pin(t.Context())
	must(t, err)
	toB, toA := a.tunnelTo(b, "127.0.0.1"), b.tunnelTo(a, "127.0.0.1")
	spec := dataplane.Carrier{ID: carrierID, PeerPin: pinA, Token: [16]byte{2}, Port: toA.ListenPort}
	toA.Endpoint, err = b.dataplane().OpenCarrier(t.Context(), spec)
	must(t, err)
	spec.Addr, spec.Mark, spec.PeerPin, spec.Port = door.Addr(), mark, pinB, toB.ListenPort
	toB.Endpoint, err = a.dataplane().OpenCarrier(t.Context(), spec)
	must(t, err)
	toB.Mark = mark
	a.create(toB)
	b.create(toA)
	a.overlay(b)
	b.overlay(a)
	return a, b, door
}

// A tunnel of either maker works over a carrier alone: no UDP leaves the sites.
// The carrier's mark leads to the uplink, the tunnel's mark does not keep its
// packets from the loopback.
func TestThroughCarrier(t *testing.T) {
	for _, mode := range []Mode{Userspace, Kernel} {
		t.Run(string(mode), func(t *testing.T) {
			a, b, door := carried(t, mode)
			connected(a, b)
			connected(b, a)
			endpoint := a.carrier().Local
			diff(t, a.observe()[0].Endpoint, endpoint)

			must(t, door.Close())    // the agent goes: what is open stays
			const n, size = 40, 1200 // fewer than a queue holds
			before := a.carrier()    // which dropped some if the first handshake was lost: what waited for the second one came at once
			if arrived := burst(a, b, n, size); arrived != n {
				t.Errorf("%d of %d datagrams arrived", arrived, n)
			}
			if got := a.carrier(); !got.Connected || got.Dropped != before.Dropped || got.Sent < before.Sent+n*size {
				t.Errorf("%+v, before %+v", got, before)
			}
			diff(t, a.observe()[0].Endpoint, endpoint) // nothing has roamed
			must(t, a.dataplane().CloseCarrier(t.Context(), carrierID))
			if arrived := burst(a, b, 1, size); arrived != 0 {
				t.Error("something else carries datagrams")
			}
		})
	}
}

// carrier is the status of the site's only carrier.
func (s *site) carrier() dataplane.CarrierStatus {
	s.t.Helper()
	list, err := s.dataplane().Carriers(s.t.Context())
	must(s.t, err)
	if len(list) != 1 {
		s.t.Fatalf("carriers: %+v", list)
	}
	return list[0]
}
