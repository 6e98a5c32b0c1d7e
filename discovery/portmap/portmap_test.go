package portmap

import (
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestMapRenewRelease(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(*gateway)
		want string
	}{
		"PCP":                        {func(g *gateway) { g.pcp = true }, "PCP"},
		"both":                       {func(g *gateway) { g.pcp, g.pmp = true, true }, "PCP"},
		"NAT-PMP":                    {func(g *gateway) { g.pmp, g.hints = true, true }, "NAT-PMP"},
		"NAT-PMP, mute at PCP":       {func(g *gateway) { g.pmp = true }, "NAT-PMP"},
		"PCP, the first packet lost": {func(g *gateway) { g.pcp, g.lost = true, 1 }, "PCP"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t)
			g.is(func() { c.set(g) })
			client := g.client()
			if _, err := client.Map(t.Context(), 51900); !errors.Is(err, ErrNoGateway) {
				t.Errorf("before the probe: %v", err)
			}
			if err := client.Probe(t.Context()); err != nil || client.Protocol() != c.want {
				t.Fatalf("speaks %q, %v", client.Protocol(), err)
			}
			want := netip.MustParseAddrPort("203.0.113.5:51900")
			if got, err := client.Map(t.Context(), 51900); err != nil || got != want {
				t.Fatalf("mapped to %s, %v", got, err)
			}
			if got := client.Mapped(); len(got) != 1 || got[51900] != want {
				t.Errorf("mapped: %v", got)
			}
			// Nothing is due; then it is, and the same outside port is asked for.
			if err := client.Renew(t.Context(), false); err != nil {
				t.Error(err)
			}
			g.is(func() {
				if g.asked != 1 || g.mapped[51900].external != 51900 {
					t.Errorf("%d requests, %v", g.asked, g.mapped)
				}
			})
			if err := client.Renew(t.Context(), true); err != nil {
				t.Error(err)
			}
			// Another life of the same host knows the nonce.
			again := g.client()
			if err := errors.Join(again.Probe(t.Context()), again.Release(t.Context(), 51900)); err != nil {
				t.Error(err)
			}
			g.is(func() {
				if g.asked != 3 || len(g.mapped) != 0 {
					t.Errorf("%d requests, left: %v", g.asked, g.mapped)
				}
			})
			if err := client.Release(t.Context(), 51900); err != nil || len(client.Mapped()) != 0 {
				t.Errorf("%v, mapped: %v", err, client.Mapped())
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(*gateway)
		want string
	}{
		"not allowed":     {func(g *gateway) { g.pcp, g.refuse = true, 2 }, "does not allow it"},
		"another NAT":     {func(g *gateway) { g.pcp, g.refuse = true, 12 }, "another NAT"},
		"unheard of":      {func(g *gateway) { g.pcp, g.refuse = true, 99 }, "code 99"},
		"NAT-PMP, full":   {func(g *gateway) { g.pmp, g.refuse = true, 4 }, "no room"},
		"no outside":      {func(g *gateway) { g.pcp, g.outside = true, netip.MustParseAddr("0.0.0.0") }, "outside endpoint"},
		"another's nonce": {func(g *gateway) { g.pcp, g.forged = true, true }, "no answer"},
		"taken":           {func(g *gateway) { g.pcp = true; g.mapped[51900] = entry{nonce{1}, 51900} }, "does not allow it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t)
			g.is(func() { c.set(g) })
			client := g.client()
			client.version = versionPCP
			g.is(func() {
				if g.pmp {
					client.version = versionPMP
				}
			})
			got, err := client.Map(t.Context(), 51900)
			if err == nil || !strings.Contains(err.Error(), c.want) || len(client.Mapped()) > 0 {
				t.Errorf("mapped to %s, %v", got, err)
			}
		})
	}
}

func TestSilentGateway(t *testing.T) {
	t.Parallel()
	g := newGateway(t) // speaks nothing
	client := g.client()
	if err := client.Probe(t.Context()); !errors.Is(err, ErrNoGateway) || client.Protocol() != "" {
		t.Errorf("%v, %q", err, client.Protocol())
	}
	ctx, cancel := context.WithCancel(t.Context())
	client.version = versionPCP
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := client.Map(ctx, 51900); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	_ = g.conn.Close() // now the kernel says that nobody is there
	if err := client.Probe(t.Context()); !errors.Is(err, ErrNoGateway) {
		t.Errorf("%v", err)
	}
}

// A gateway that was restarted is asked for everything again.
func TestGatewayRestarts(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.is(func() { g.pcp = true })
	client := g.client()
	if err := client.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{51900, 51901} {
		if _, err := client.Map(t.Context(), port); err != nil {
			t.Fatal(err)
		}
	}
	g.is(func() {
		clear(g.mapped)
		g.started, g.outside = time.Now(), netip.MustParseAddr("203.0.113.77")
	})
	if _, err := client.Map(t.Context(), 51902); err != nil { // its epoch tells
		t.Fatal(err)
	}
	if err := client.Renew(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	g.is(func() {
		if len(g.mapped) != 3 {
			t.Errorf("mapped: %v", g.mapped)
		}
	})
	for port, at := range client.Mapped() {
		if at.Addr() != netip.MustParseAddr("203.0.113.77") {
			t.Errorf("port %d still at %s", port, at)
		}
	}
}

func TestEpoch(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	for name, c := range map[string]struct {
		after time.Duration
		epoch uint32 // it was 1000
		lost  bool
	}{
		"in step":             {100 * time.Second, 1100, false},
		"one back":            {0, 999, false},
		"two back":            {0, 998, true},
		"new":                 {time.Hour, 5, true},
		"new, but older":      {time.Minute, 10_000, true},
		"a little slow":       {1600 * time.Second, 2510, false},
		"too slow":            {1600 * time.Second, 2490, true},
		"a little fast":       {1500 * time.Second, 2590, false},
		"too fast":            {1500 * time.Second, 2610, true},
		"it stands still":     {time.Hour, 1000, true},
		"at once, one second": {0, 1002, false},
	} {
		e := epoch{}
		if e.lost(start, 1000) {
			t.Error("lost at the first word")
		}
		if got := e.lost(start.Add(c.after), c.epoch); got != c.lost {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The bytes of the RFCs' figures: RFC 6887 sections 7.1 and 11.1, RFC 6886 section 3.3.
func TestRequests(t *testing.T) {
	client := netip.MustParseAddr("192.168.1.7")
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"ANNOUNCE": {pcpRequest{client: client}.encode(), "02000000 00000000 00000000000000000000ffffc0a80107"},
		"MAP": {
			pcpRequest{client: client, port: 51900, nonce: nonce{1, 2, 3}, external: netip.MustParseAddrPort("203.0.113.5:40001"), lifetime: 7200}.encode(),
			"02010000 00001c20 00000000000000000000ffffc0a80107 010203000000000000000000 11000000 cabc 9c41 00000000000000000000ffffcb007105",
		},
		"address": {pmpRequest{}.encode(), "0000"},
		"map":     {pmpRequest{port: 51900, external: 40001, lifetime: 7200}.encode(), "00010000 cabc 9c41 00001c20"},
	} {
		if got := hex.EncodeToString(c.got); got != strings.ReplaceAll(c.want, " ", "") {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func FuzzDecodePCP(f *testing.F) {
	f.Add(pcpResponse{announce: true, epoch: 9}.encode())
	f.Add(pcpResponse{lifetime: 7200, epoch: 9, nonce: nonce{1}, port: 51900, external: netip.MustParseAddrPort("203.0.113.5:1")}.encode())
	f.Add(append(pcpResponse{result: 2, port: 1}.encode(), 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodePCP(b)
		if err != nil {
			return
		}
		if r.result == 0 && !r.announce && !r.external.Addr().Is4() {
			t.Fatalf("accepted %+v", r)
		}
		if r.external.IsValid() && !r.external.Addr().Is4() {
			return // of a refusal, and not looked at
		}
		if again, err := decodePCP(r.encode()); err != nil || again != r {
			t.Fatalf("%+v reads again as %+v (%v)", r, again, err)
		}
	})
}

func FuzzDecodePMP(f *testing.F) {
	f.Add(pmpResponse{op: opAddress, epoch: 9, address: netip.MustParseAddr("203.0.113.5")}.encode())
	f.Add(pmpResponse{op: opMap, epoch: 9, port: 51900, external: 40001, lifetime: 7200}.encode())
	f.Add(pmpResponse{op: opMap, result: 2}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodePMP(b)
		if err != nil {
			return
		}
		if r.op == opMap && r.port == 0 && len(b) == 16 {
			return // our encoder of answers has none without a port
		}
		if again, err := decodePMP(r.encode()); err != nil || again != r {
			t.Fatalf("%+v reads again as %+v (%v)", r, again, err)
		}
	})
}
