package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/control"
	"guywire/mesh/core"
	"guywire/mesh/link"
	"guywire/mesh/rendezvous"
)

// Only where a working tunnel has led for a while is a node vouched for.
func TestVouched(t *testing.T) {
	now, peer := time.Unix(2_000_000_000, 0), mesh.NodeID{7}
	for name, c := range map[string]struct {
		change func(*core.LinkView)
		want   bool
	}{
		"a working tunnel": {func(*core.LinkView) {}, true},
		"another node":     {func(l *core.LinkView) { l.Record.Link.Peer = mesh.NodeID{8} }, false},
		"another uplink":   {func(l *core.LinkView) { l.Record.Link.Remote = "lte" }, false},
		"no tunnel":        {func(l *core.LinkView) { l.Tunnel = false }, false},
		"suspect":          {func(l *core.LinkView) { l.State = link.Suspect }, false},
		"not usable":       {func(l *core.LinkView) { l.Usable = false }, false},
		"just up":          {func(l *core.LinkView) { l.Since = now.Add(-witnessSettled / 2) }, false},
		"has just moved":   {func(l *core.LinkView) { l.Roamed = now.Add(-witnessSettled / 2) }, false},
		"over TLS":         {func(l *core.LinkView) { l.Record.Class = discovery.ClassCarrier }, false},
		"private":          {func(l *core.LinkView) { l.Traffic.Endpoint = netip.MustParseAddrPort("10.0.0.1:5") }, false},
		"IPv6":             {func(l *core.LinkView) { l.Traffic.Endpoint = netip.MustParseAddrPort("[2001:db8::1]:5") }, false},
		"unknown":          {func(l *core.LinkView) { l.Traffic.Endpoint = netip.AddrPort{} }, false},
	} {
		l := core.LinkView{
			Record: core.Record{Link: mesh.LinkID{Peer: peer, Local: "wan", Remote: "isp"}, Class: discovery.ClassTranslated}, Tunnel: true, Usable: true,
			State: link.Up, Since: now.Add(-time.Minute), Roamed: now.Add(-time.Minute), Traffic: core.Traffic{Endpoint: netip.MustParseAddrPort("203.0.113.7:5")},
		}
		c.change(&l)
		want := "[]"
		if c.want {
			want = "[203.0.113.7]"
		}
		if got := fmt.Sprint(vouched([]core.LinkView{l, l}, peer, "isp", now)); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// Two must name an address, each counts once, and one is enough where there is no other.
func TestWitnessesAgree(t *testing.T) {
	a, b := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("192.0.2.1")
	for name, c := range map[string]struct {
		words  [][]netip.Addr
		enough int
		want   string
	}{
		"nobody":             {nil, 2, "[]"},
		"one of several":     {[][]netip.Addr{{a}, nil}, 2, "[]"},
		"one voice twice":    {[][]netip.Addr{{a, a, a}, {b}}, 2, "[]"},
		"two":                {[][]netip.Addr{{a}, {b, a}}, 2, "[203.0.113.1]"},
		"the only other one": {[][]netip.Addr{{a}}, 1, "[203.0.113.1]"},
		"no other at all":    {nil, 0, "[]"},
	} {
		if got := fmt.Sprint(agreed(c.words, c.enough)); got != c.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// A node asks once a second, whoever else does.
func TestWitnessesAreAskedSlowly(t *testing.T) {
	m, now := &member{witnessed: map[mesh.NodeID]time.Time{}}, time.Unix(2_000_000_000, 0)
	one, two := mesh.NodeID{1}, mesh.NodeID{2}
	for i, c := range []struct {
		caller mesh.NodeID
		after  time.Duration
		want   bool
	}{{one, 0, true}, {one, witnessEvery / 2, false}, {two, witnessEvery / 2, true}, {one, witnessEvery, true}} {
		if got := m.mayAsk(c.caller, now.Add(c.after)); got != c.want {
			t.Errorf("question %d: %v", i, got)
		}
	}
}

// An end without room is told from one that was in vain, whichever end it is.
func TestBusy(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("no path"), false},
		{fmt.Errorf("offer link: %w", rendezvous.ErrBusy), true},
		{fmt.Errorf("offer link: %w", &control.Error{Code: control.CodeBusy}), true},
		{fmt.Errorf("offer link: %w", &control.Error{Code: control.CodeInternal}), false},
	} {
		if got := busy(c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
