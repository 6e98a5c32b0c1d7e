package core

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/routing/wire"
)

// Neighbours tell each other where they see each other's tunnels: when that changes,
// and now and then.
func TestSights(t *testing.T) {
	link := mesh.LinkID{Peer: id(2), Local: "isp1", Remote: "a"}
	record := Record{
		Link: link, Device: "gw-n2-abcde", Slot: 1, Port: 51900, Class: discovery.ClassTranslated,
		Endpoint: netip.MustParseAddrPort("198.18.0.9:51900"), Epoch: 1, Peer: mesh.WireGuardKey{2}, Alive: true,
	}
	n := node(state(2, 1, 2), record)
	n.Step(start, FactsChanged{Facts: facts(2, "a")})
	told := func(at time.Time, endpoint string) (out []netip.AddrPort) {
		t.Helper()
		r := n.Step(at, Measured{Tunnels: map[string]Traffic{record.Device: {Endpoint: netip.MustParseAddrPort(endpoint)}}})
		for _, d := range r.Send {
			if m, err := wire.Decode(d.Payload); err == nil && d.Device == record.Device {
				if s, ok := m.Body.(wire.Sight); ok {
					out = append(out, s.Endpoint)
				}
			}
		}
		return out
	}
	const first, second = "203.0.113.5:40001", "203.0.113.5:40002"
	for i, c := range []struct {
		endpoint string
		told     bool
	}{{first, true}, {first, false}, {second, true}, {second, false}, {"127.0.0.1:9", false}} {
		got := told(start.Add(time.Duration(i)*time.Second), c.endpoint)
		if want := netip.MustParseAddrPort(c.endpoint); slices.Contains(got, want) != c.told || len(got) > 1 {
			t.Errorf("look %d at %s: told %v", i, c.endpoint, got)
		}
	}

	n.entries[link].sight, n.entries[link].sighted = netip.MustParseAddrPort(second), start.Add(6*time.Second-sightEvery)
	if got := told(start.Add(5*time.Second), second); len(got) > 0 {
		t.Errorf("told again too soon: %v", got)
	}
	if got := told(start.Add(6*time.Second), second); len(got) != 1 {
		t.Errorf("not told again: %v", got)
	}

	hear := func(at time.Time, endpoint string) []Sight {
		return n.Step(at, Received{Device: record.Device, Message: wire.Message{Incarnation: 1, Body: wire.Sight{Endpoint: netip.MustParseAddrPort(endpoint)}}, At: at}).Sights
	}
	at := start.Add(10 * time.Second)
	got := hear(at, first)
	want := Sight{Link: link, Port: 51900, Witness: n.entries[link].rec.Endpoint, Endpoint: netip.MustParseAddrPort(first)}
	if len(got) != 1 || got[0] != want {
		t.Errorf("heard %+v, want %+v", got, want)
	}
	if got := hear(at.Add(sightLeast/2), second); len(got) > 0 {
		t.Errorf("a flood of words is listened to: %+v", got)
	}
	if got := hear(at.Add(sightLeast), "224.0.0.1:9"); len(got) > 0 {
		t.Errorf("not an address of a host: %+v", got)
	}
	if got := hear(at.Add(sightLeast), second); len(got) != 1 {
		t.Errorf("the next word: %+v", got)
	}
}

// A stream has its own endpoint on the loopback, of which nobody is told.
func TestCarriersAreNotSighted(t *testing.T) {
	link := mesh.LinkID{Peer: id(2), Local: "isp1", Remote: "a"}
	record := Record{
		Link: link, Device: "gw-n2-abcde", Slot: 1, Port: 51900, Class: discovery.ClassCarrier,
		Endpoint: netip.MustParseAddrPort("127.0.0.1:51900"), Epoch: 1, Peer: mesh.WireGuardKey{2}, Alive: true,
	}
	n := node(state(2, 1, 2), record)
	n.Step(start, FactsChanged{Facts: facts(2, "a")})
	r := n.Step(start, Received{Device: record.Device, Message: wire.Message{Incarnation: 1, Body: wire.Sight{Endpoint: netip.MustParseAddrPort("203.0.113.5:1")}}, At: start})
	if len(r.Sights) > 0 {
		t.Errorf("%+v", r.Sights)
	}
}
