package discovery_test

import (
	"net/netip"
	"testing"
	"time"

	"guywire/discovery"
	"guywire/discovery/nattest"
)

// way is what lies between a host and the server of a lifetime test.
type way struct {
	box    *nattest.Box
	server netip.AddrPort
	loss   func(n int) bool // of packet n
	deaf   time.Time        // the server is gone from then on
	old    bool             // the server knows nothing of RESPONSE-PORT
	sent   int
	took   time.Duration
}

// measure plays a test through a way, each packet taking 10 ms.
func (w *way) measure(kind discovery.NAT, thrifty bool) discovery.Lifetime {
	const flight = 10 * time.Millisecond
	host := netip.MustParseAddr("10.0.0.2")
	if w.box.Firewall {
		host = w.box.Public
	}
	now := time.Unix(1_800_000_000, 0)
	start, port := now, uint16(51800)
	test := discovery.NewLifetimeTest(w.server, kind, thrifty, [32]byte{1})
	type arrival struct {
		at     time.Time
		second bool
		tx     discovery.Tx
		mapped netip.AddrPort
	}
	var coming []arrival
	var sockets [2]netip.AddrPort
	ready := test.Tick(now)
	for !ready.Done {
		if ready.Fresh {
			coming = nil
			for i := range sockets {
				port++
				sockets[i] = netip.AddrPortFrom(host, port)
			}
			ready = test.Opened(now, sockets[0].Port())
		}
		for _, q := range ready.Ask {
			w.sent++
			if w.loss != nil && w.loss(w.sent) {
				continue
			}
			src := sockets[0]
			if q.Second {
				src = sockets[1]
			}
			w.box.Now = now
			mapped := w.box.Out(src, q.Server)
			if !w.deaf.IsZero() && now.After(w.deaf) {
				continue
			}
			to := mapped
			if q.Reply != 0 && !w.old {
				to = netip.AddrPortFrom(mapped.Addr(), q.Reply)
			}
			if inside, ok := w.box.In(q.Server, to); ok {
				for i, s := range sockets {
					if s == inside {
						coming = append(coming, arrival{now.Add(flight), i == 1, q.Tx, mapped})
					}
				}
			}
		}
		if len(coming) > 0 && !coming[0].at.After(ready.Deadline) {
			a := coming[0]
			coming, now = coming[1:], a.at
			ready = test.Answered(now, a.second, w.server, a.tx, a.mapped)
			continue
		}
		now = ready.Deadline
		ready = test.Tick(now)
	}
	w.took = now.Sub(start)
	return test.Result()
}

func newWay(change func(*nattest.Box)) *way {
	box := nattest.New(netip.MustParseAddr("203.0.113.5"))
	change(box)
	return &way{box: box, server: netip.MustParseAddrPort("198.51.100.1:8686")}
}

func TestLifetime(t *testing.T) {
	for name, c := range map[string]struct {
		box     func(*nattest.Box)
		kind    discovery.NAT
		thrifty bool
		want    discovery.Lifetime
	}{
		"Linux":         {func(b *nattest.Box) { b.Life, b.Young = 120*time.Second, 30*time.Second }, discovery.NATEasy, false, 115},
		"Linux metered": {func(b *nattest.Box) { b.Life, b.Young = 120*time.Second, 30*time.Second }, discovery.NATEasy, true, 55},
		"one minute":    {func(b *nattest.Box) { b.Life = 60 * time.Second }, discovery.NATEasy, false, 55},
		"half a minute": {func(b *nattest.Box) { b.Life = 30 * time.Second }, discovery.NATEasyPortChanged, false, 25},
		"too short":     {func(b *nattest.Box) { b.Life = 20 * time.Second }, discovery.NATEasy, false, discovery.LifetimeShort},
		"symmetric":     {func(b *nattest.Box) { b.Life, b.Symmetric = 60*time.Second, true }, discovery.NATSymmetric, false, 55},
		"full cone":     {func(b *nattest.Box) { b.Life, b.Filter = 60*time.Second, nattest.None }, discovery.NATEasy, false, 55},
		"firewall":      {func(b *nattest.Box) { b.Life, b.Firewall = 60*time.Second, true }, discovery.NATNone, false, 55},
		"nothing":       {func(b *nattest.Box) { b.Firewall, b.Filter = true, nattest.None }, discovery.NATNone, false, discovery.LifetimeEndless},
		"answers itself": {func(b *nattest.Box) {
			b.Life, b.Answers = 30*time.Second, true
		}, discovery.NATEasy, false, 25},
	} {
		w := newWay(c.box)
		if got := w.measure(c.kind, c.thrifty); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		if w.sent > 40 || w.took > 4*time.Minute {
			t.Errorf("%s: %d packets in %s", name, w.sent, w.took)
		}
		w = newWay(c.box)
		w.loss = func(n int) bool { return n%3 == 0 }
		if got := w.measure(c.kind, c.thrifty); got != c.want {
			t.Errorf("%s with every third packet lost: %s, want %s", name, got, c.want)
		}
	}
}

// A server that goes away, or never could do it, proves nothing.
func TestLifetimeWithoutServer(t *testing.T) {
	minute := func(b *nattest.Box) { b.Life = time.Minute }
	w := newWay(minute)
	w.old = true
	if got := w.measure(discovery.NATEasy, false); got != discovery.LifetimeUnknown {
		t.Errorf("an old server: %s", got)
	}
	w = newWay(minute)
	w.loss = func(int) bool { return true }
	if got := w.measure(discovery.NATEasy, false); got != discovery.LifetimeUnknown || w.took > 10*time.Second {
		t.Errorf("no server: %s after %s", got, w.took)
	}
	start := time.Unix(1_800_000_000, 0)
	for gone, want := range map[time.Duration]discovery.Lifetime{20 * time.Second: discovery.LifetimeUnknown, 40 * time.Second: 25} {
		w = newWay(minute)
		w.deaf = start.Add(gone)
		if got := w.measure(discovery.NATEasy, false); got != want {
			t.Errorf("gone after %s: %s, want %s", gone, got, want)
		}
	}
}

func TestKeepalive(t *testing.T) {
	const endless, unknown, short = discovery.LifetimeEndless, discovery.LifetimeUnknown, discovery.LifetimeShort
	for _, c := range []struct {
		a, b discovery.Lifetime
		want int // seconds
	}{
		{endless, endless, 0},
		{unknown, unknown, 20},
		{unknown, endless, 20},
		{short, endless, 10},
		{short, 115, 10},
		{25, 55, 20},
		{25, unknown, 20},
		{55, endless, 50},
		{55, unknown, 20},
		{115, 115, 50},
		{14, endless, 10},
	} {
		for _, l := range [][2]discovery.Lifetime{{c.a, c.b}, {c.b, c.a}} {
			if got := discovery.Keepalive(l[0], l[1]); got != time.Duration(c.want)*time.Second {
				t.Errorf("%s and %s: %s, want %d s", l[0], l[1], got, c.want)
			}
		}
	}
}
