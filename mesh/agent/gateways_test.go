package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/core"
	"guywire/store/disk"
)

// fakeMapper is a gateway that lets everything in at an address, unless it is deaf.
type fakeMapper struct {
	outside netip.Addr
	deaf    bool
	known   bool
	mapped  map[uint16]netip.AddrPort
	renewed int // all at once
}

func (f *fakeMapper) Probe(context.Context) error {
	f.known = !f.deaf
	if f.deaf {
		return errors.New("no gateway")
	}
	return nil
}

func (f *fakeMapper) Protocol() string {
	if f.known {
		return "PCP"
	}
	return ""
}

func (f *fakeMapper) Map(_ context.Context, port uint16) (netip.AddrPort, error) {
	if f.deaf {
		return netip.AddrPort{}, errors.New("no answer")
	}
	f.mapped[port] = netip.AddrPortFrom(f.outside, port+1)
	return f.mapped[port], nil
}

func (f *fakeMapper) Release(_ context.Context, port uint16) error {
	delete(f.mapped, port)
	return nil
}

func (f *fakeMapper) Renew(_ context.Context, all bool) error {
	if all {
		f.renewed++
	}
	return nil
}

func (f *fakeMapper) Mapped() map[uint16]netip.AddrPort { return maps.Clone(f.mapped) }

// mappingMember is a member behind a gateway, with the uplink wan.
func mappingMember(t *testing.T, config string) (*member, *fakeMapper, mesh.Uplink) {
	t.Helper()
	dir, err := disk.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	f := &fakeMapper{outside: netip.MustParseAddr("203.0.113.5"), mapped: map[uint16]netip.AddrPort{}}
	c := testConfig(t, config)
	m := &member{
		agent: &Agent{
			config: c, names: newNames(c, nil, nil), dir: dir,
			outside: Outside{PortMapper: func(netip.Addr, netip.Addr, uint32, [32]byte) PortMapper { return f }},
		},
		log: slog.New(slog.DiscardHandler), surveys: map[string]survey{}, gateways: map[string]*gateway{}, doubted: map[string]time.Time{},
	}
	u := mesh.Uplink{
		Name: "wan", Slot: 1, Interface: "eth0", Up: true, Default4: true, Gateway4: netip.MustParseAddr("192.168.1.1"),
		Addrs: []netip.Addr{netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("192.168.1.7"), netip.MustParseAddr("2001:db8::7")},
	}
	m.host.Store(&core.Host{Uplinks: []mesh.Uplink{u}})
	return m, f, u
}

var lan = []core.Attached{{Device: "eth0", Prefix: netip.MustParsePrefix("192.168.1.0/24")}}

func TestGatewayIsKeptMapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f, u := mappingMember(t, "nat: {port_mapping: on}")
		g := m.gatewayOf(u, lan, [32]byte{1})
		if g == nil || g.record.Local != netip.MustParseAddr("192.168.1.7") || m.gatewayOf(u, lan, [32]byte{1}) != g {
			t.Fatalf("%+v", g)
		}
		start := time.Now()
		has := func(what string, ports ...uint16) {
			t.Helper()
			if got := slices.Sorted(maps.Keys(f.mapped)); !slices.Equal(got, ports) {
				t.Errorf("%s: mapped %v, want %v", what, got, ports)
			}
		}
		if _, ok := m.mapPort(t.Context(), "wan", 51850); ok || !m.tend(t.Context(), g, "wan", []uint16{51900}, start) {
			t.Error("an attempt waits for what is not known, or the address is no news")
		}
		has("a tunnel", 51900)
		m.mu.Lock()
		if got := fmt.Sprint(m.outsideOf("wan").Forwarded); got != "[203.0.113.5]" {
			t.Errorf("forwarded at %s", got)
		}
		m.mu.Unlock()
		if at, ok := m.mapPort(t.Context(), "wan", 51901); !ok || at != netip.MustParseAddrPort("203.0.113.5:51902") {
			t.Errorf("an attempt: %s, %v", at, ok)
		}
		if m.tend(t.Context(), g, "wan", []uint16{51900}, start) {
			t.Error("news where nothing changed")
		}
		has("an attempt under way", 51900, 51901)
		time.Sleep(gatewayGrace + time.Second)
		m.tend(t.Context(), g, "wan", []uint16{51900}, start)
		has("an attempt that failed", 51900)

		// The gateway is restarted: a link is lost, everything is asked for again.
		m.doubt("wan")
		f.outside = netip.MustParseAddr("203.0.113.6")
		clear(f.mapped)
		if !m.tend(t.Context(), g, "wan", []uint16{51900}, time.Now().Add(-time.Second)) || f.renewed != 1 {
			t.Errorf("the new address is no news, or renewed %d times", f.renewed)
		}
		has("after the restart", 51900)

		// What others see is another address: there is one more NAT.
		m.surveys["wan"] = survey{Uplink: discovery.Uplink{Name: "wan", Reflexive: endpoints("198.51.100.9:7")}, at: time.Now()}
		if at, ok := m.mapPort(t.Context(), "wan", 51903); ok {
			t.Errorf("offers %s, which others do not see", at)
		}
		m.surveys["wan"] = survey{Uplink: discovery.Uplink{Name: "wan", Reflexive: endpoints("203.0.113.6:7")}, at: time.Now()}
		if _, ok := m.mapPort(t.Context(), "wan", 51903); !ok {
			t.Error("the address that others see is not offered")
		}

		m.closeGateways()
		has("after leaving")
	})
}

func TestGatewaysThatAreNotAsked(t *testing.T) {
	m, f, u := mappingMember(t, "nat: {port_mapping: on}")
	public, down, six := u, u, u
	public.Addrs = []netip.Addr{netip.MustParseAddr("203.0.113.9")}
	down.Up = false
	six.Gateway4, six.Addrs = netip.Addr{}, u.Addrs[2:]
	for name, u := range map[string]mesh.Uplink{"public": public, "down": down, "IPv6 only": six} {
		if g := m.gatewayOf(u, nil, [32]byte{1}); g != nil {
			t.Errorf("%s: %+v", name, g.record)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		g := m.gatewayOf(u, lan, [32]byte{1})
		f.deaf = true
		m.tend(t.Context(), g, "wan", []uint16{51900}, time.Now())
		f.deaf = false
		m.tend(t.Context(), g, "wan", []uint16{51900}, time.Now())
		if len(f.mapped) > 0 {
			t.Error("a deaf gateway is asked again at once")
		}
		time.Sleep(gatewayRetry)
		m.tend(t.Context(), g, "wan", []uint16{51900}, time.Now())
		if len(f.mapped) != 1 {
			t.Error("a gateway is not asked again")
		}
	})
}

// What one life mapped the next one takes back when it is switched off.
func TestMappingIsTakenBack(t *testing.T) {
	m, f, u := mappingMember(t, "nat: {port_mapping: on}")
	g := m.gatewayOf(u, lan, [32]byte{1})
	m.tend(t.Context(), g, "wan", []uint16{51900, 51901}, time.Now())
	m.saveGateways(gatewaysBlob{[32]byte{1}, m.gatewayRecords()})
	saved := m.loadGateways()
	if len(f.mapped) != 2 || saved.Secret != [32]byte{1} || len(saved.Gateways) != 1 || fmt.Sprint(saved.Gateways[0].Ports) != "[51900 51901]" {
		t.Fatalf("mapped %v, saved %+v", f.mapped, saved)
	}
	m.agent.config.NAT.PortMapping = false
	if err := m.mapPorts(t.Context()); err != nil || len(f.mapped) != 0 {
		t.Errorf("%v, left: %v", err, f.mapped)
	}
	if again := m.loadGateways(); again.Secret != ([32]byte{}) {
		t.Errorf("still remembered: %+v", again)
	}
}
