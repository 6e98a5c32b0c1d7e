package lab

import (
	"fmt"
	"net/netip"
	"testing"
)

// natNetwork is the built-in network of all NATs, with two servers on the internet.
func natNetwork(t testing.TB) *Network {
	n, err := Load("nats")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		n.Nodes[name] = &Node{Kind: Host, Uplinks: []*Uplink{{To: "isp"}}}
	}
	return n
}

// TestNAT checks every kind of NAT against the table it is built from: mapping towards (A:1000, A:1001, B:1000), and
// filtering with a fresh socket.
func TestNAT(t *testing.T) {
	l := start(t, natNetwork(t))
	a, b := address(t, l, "a", "", false), address(t, l, "b", "", false)
	a1000, a1001, b1000 := open(t, l, "a", 1000), open(t, l, "a", 1001), open(t, l, "b", 1000)

	for _, tt := range []struct {
		site, outside string // the box whose address is seen
		eim, kept     bool
		address, any  bool // lets the same address on another port in; lets anybody in
	}{
		{site: "pub", outside: "pub", eim: true, kept: true, address: true, any: true},
		{site: "eim", outside: "n-eim", eim: true, kept: true},
		{site: "open", outside: "n-open", eim: true, kept: true},
		{site: "port", outside: "n-port", eim: true},
		{site: "adf", outside: "n-adf", eim: true, kept: true, address: true},
		{site: "cone", outside: "n-cone", eim: true, kept: true, address: true, any: true},
		{site: "sym", outside: "n-sym"},
		{site: "cgn", outside: "n-cgn", eim: true, kept: true},
		{site: "short", outside: "n-short", eim: true, kept: true},
		{site: "six", outside: "n-six", eim: true, kept: true},
		{site: "fw", outside: "fw", eim: true, kept: true},
	} {
		t.Run(tt.site, func(t *testing.T) {
			iface := "wan"
			if tt.outside == tt.site {
				iface = "isp1"
			}
			outer := address(t, l, tt.outside, iface, false)

			const port = 21800
			s := open(t, l, tt.site, port)
			var seen [3]netip.AddrPort
			for i, dst := range []struct {
				to   *socket
				addr netip.AddrPort
			}{{a1000, netip.AddrPortFrom(a, 1000)}, {a1001, netip.AddrPortFrom(a, 1001)}, {b1000, netip.AddrPortFrom(b, 1000)}} {
				s.send(dst.addr, "mapping")
				seen[i] = dst.to.want("mapping")
				if seen[i].Addr() != outer {
					t.Errorf("seen as %s, want the address %s", seen[i], outer)
				}
				dst.to.send(seen[i], "answer")
				s.want("answer")
			}
			if eim := seen[0] == seen[1] && seen[1] == seen[2]; eim != tt.eim {
				t.Errorf("seen as %v; endpoint-independent: %v, want %v", seen, eim, tt.eim)
			}
			if kept := seen[0].Port() == port; kept != tt.kept {
				t.Errorf("seen as %v; port kept: %v, want %v", seen[0], kept, tt.kept)
			}

			fresh := open(t, l, tt.site, port+1)
			fresh.send(netip.AddrPortFrom(a, 1000), "filter")
			hole := a1000.want("filter")
			b1000.send(hole, "stranger")
			a1001.send(hole, "neighbour")
			a1000.send(hole, "friend") // on the same way, so it comes last
			if tt.any {
				fresh.want("stranger")
			}
			if tt.address {
				fresh.want("neighbour")
			}
			fresh.want("friend")
		})
	}

	t.Run("early packet", func(t *testing.T) {
		for _, tt := range []struct {
			site, box string
			spoilt    bool
		}{{"eim", "n-eim", false}, {"open", "n-open", true}} {
			const port = 21900
			b1000.send(netip.AddrPortFrom(address(t, l, tt.box, "wan", false), port), "early")
			s := open(t, l, tt.site, port)
			s.send(netip.AddrPortFrom(b, 1000), "punch")
			if got := b1000.want("punch"); (got.Port() != port) != tt.spoilt {
				t.Errorf("%s: behind an early packet the port is %d; spoilt should be %v", tt.site, got.Port(), tt.spoilt)
			} else {
				b1000.fence(s, got)
			}
		}
	})

	t.Run("same port twice", func(t *testing.T) {
		var seen [2]netip.AddrPort
		for i, site := range []string{"cone", "cone2"} {
			s := open(t, l, site, 22000)
			s.send(netip.AddrPortFrom(a, 1000), site)
			seen[i] = a1000.want(site)
			// The map of the full cone must know the outer port, which is not the inner one for the second.
			b1000.send(seen[i], "hello "+site)
			s.want("hello " + site)
		}
		if seen[0].Port() != 22000 || seen[1].Port() == 22000 {
			t.Errorf("seen as %v; want the port kept for the first only", seen)
		}
	})

	t.Run("hairpin", func(t *testing.T) {
		s, s2 := open(t, l, "cone", 22100), open(t, l, "cone2", 22101)
		s.send(netip.AddrPortFrom(a, 1000), "first")
		hole := a1000.want("first")
		s2.send(hole, "neighbour")
		if from := s.want("neighbour"); from.Addr() != hole.Addr() {
			t.Errorf("hairpinned packet comes from %s, want the outer address %s", from, hole.Addr())
		} else {
			s.send(from, "back")
		}
		s2.want("back")
	})

	// Two machines in one LAN, or in two homes behind one provider's NAT, meet by their outer addresses only where the box
	// hairpins. Both begin, as two ends of a link do.
	t.Run("neighbours", func(t *testing.T) {
		for i, tt := range []struct {
			left, right string
			meet        bool
		}{{"eim", "eim2", false}, {"both", "both2", true}, {"cgn", "cgn2", false}, {"pin1", "pin2", true}} {
			s, s2 := open(t, l, tt.left, 22110+2*uint16(i)), open(t, l, tt.right, 22111+2*uint16(i))
			var holes [2]netip.AddrPort
			for k, s := range []*socket{s, s2} {
				s.send(netip.AddrPortFrom(a, 1000), "who am I")
				holes[k] = a1000.want("who am I")
			}
			if holes[0].Addr() != holes[1].Addr() {
				t.Errorf("%s and %s are seen as %v; want one outer address", tt.left, tt.right, holes)
			}
			if !tt.meet {
				_ = s.trySend(holes[1], "one")
				_ = s2.trySend(holes[0], "two")
				_ = s.trySend(holes[1], "three")
				a1000.fence(s, holes[0])
				a1000.fence(s2, holes[1])
				continue
			}
			// A home's own filter opens with its first packet; from then on both ways are free.
			_ = s.trySend(holes[1], "first")
			if from := exchange(s2, s, holes[0], "second"); from != holes[1] {
				t.Errorf("%s sees %s as %s, want %s as the internet does", tt.left, tt.right, from, holes[1])
			}
			if from := exchange(s, s2, holes[1], "third"); from != holes[0] {
				t.Errorf("%s sees %s as %s, want %s as the internet does", tt.right, tt.left, from, holes[0])
			}
		}
		// In one LAN the inner addresses do.
		s, s2 := open(t, l, "eim", 22130), open(t, l, "eim2", 22131)
		from := exchange(s, s2, netip.AddrPortFrom(address(t, l, "eim2", "isp1", false), 22131), "inside")
		if inner := netip.AddrPortFrom(address(t, l, "eim", "isp1", false), 22130); from != inner {
			t.Errorf("in one LAN eim is seen as %s, want %s", from, inner)
		}
	})

	t.Run("pool of four ports", func(t *testing.T) {
		ports := map[uint16]bool{}
		for i := range 4 {
			s := open(t, l, "few", 22200+uint16(i))
			s.send(netip.AddrPortFrom(a, 1000), "one of four")
			ports[a1000.want("one of four").Port()] = true
		}
		for p := range ports {
			if p < 40000 || p > 40003 {
				t.Errorf("port %d is outside the pool", p)
			}
		}
		if len(ports) != 4 {
			t.Errorf("four flows to one place have the ports %v, want four", ports)
		}
		fifth := open(t, l, "few", 22204)
		_ = fifth.trySend(netip.AddrPortFrom(a, 1000), "one too many")
		fifth.send(netip.AddrPortFrom(b, 1000), "elsewhere") // ports are free towards another place
		b1000.want("elsewhere")
		b1000.fence(a1000, netip.AddrPortFrom(a, 1000))
	})

	t.Run("UDP blocked", func(t *testing.T) {
		serve(t, l, "a", ":80")
		s := open(t, l, "tcp", 0)
		_ = s.trySend(netip.AddrPortFrom(a, 1000), "blocked")
		if got := run(t, l, "tcp", "dial", fmt.Sprintf("%s:80", a)); got != "hello\n" {
			t.Errorf("TCP gave %q", got)
		}
		b1000.fence(a1000, netip.AddrPortFrom(a, 1000))
	})

	t.Run("only TCP 443", func(t *testing.T) {
		for _, port := range []int{443, 8686} {
			serve(t, l, "b", fmt.Sprintf(":%d", port))
		}
		s := open(t, l, "https", 0)
		_ = s.trySend(netip.AddrPortFrom(a, 1000), "blocked")
		if got := run(t, l, "https", "dial", fmt.Sprintf("%s:443", b)); got != "hello\n" {
			t.Errorf("TCP 443 gave %q", got)
		}
		if got := run(t, l, "https", "refused", fmt.Sprintf("%s:8686", b)); got != "no answer\n" {
			t.Errorf("TCP 8686 gave %q", got)
		}
		b1000.fence(a1000, netip.AddrPortFrom(a, 1000))
	})

	t.Run("some UDP ports", func(t *testing.T) {
		a53, s := open(t, l, "a", 53), open(t, l, "web", 0)
		_ = s.trySend(netip.AddrPortFrom(a, 1000), "blocked")
		s.send(netip.AddrPortFrom(a, 53), "question")
		a53.send(a53.want("question"), "answer")
		s.want("answer")
		b1000.fence(a1000, netip.AddrPortFrom(a, 1000))
	})

	t.Run("IPv6 firewall", func(t *testing.T) {
		for _, site := range []string{"six", "fw"} {
			a6, own := address(t, l, "a", "", true), address(t, l, site, "isp1", true)
			s := open(t, l, site, 22300)
			from := exchange(s, a1000, netip.AddrPortFrom(a6, 1000), "six")
			if from != netip.AddrPortFrom(own, 22300) {
				t.Errorf("%s is seen as %s, want its own address", site, from)
			}
			exchange(open(t, l, "b", 0), a1000, netip.AddrPortFrom(a6, 1000), "b has IPv6")
			b1000.send(from, "stranger")
			a1000.send(from, "friend")
			s.want("friend")
		}
	})

	t.Run("IPv6 only", func(t *testing.T) {
		st, err := l.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, node := range []string{"only6", "fw6", "n-fw6"} {
			n, _ := st.Node(node)
			if a4, has := n.Addr("", false); has {
				t.Errorf("%s has the IPv4 address %s", node, a4)
			}
		}
		a6 := address(t, l, "a", "", true)
		for i, site := range []string{"only6", "fw6"} {
			s := open(t, l, site, 22310)
			if said := s.trySend(netip.AddrPortFrom(a, 1000), "four"); said == "ok" {
				t.Errorf("%s sends to IPv4", site)
			}
			own := netip.AddrPortFrom(address(t, l, site, "isp1", true), 22310)
			if from := exchange(s, a1000, netip.AddrPortFrom(a6, 1000), "hello"); from != own {
				t.Errorf("%s is seen as %s, want %s", site, from, own)
			}
			b6 := open(t, l, "b", 22310+uint16(i))
			b6.send(own, "stranger")
			if site == "only6" {
				s.want("stranger")
			}
			a1000.send(own, "friend")
			s.want("friend")
		}
	})

	t.Run("expiry", func(t *testing.T) {
		s := open(t, l, "short", 22400)
		s.send(netip.AddrPortFrom(a, 1000), "open")
		hole := a1000.want("open")
		a1000.send(hole, "in time")
		s.want("in time")
		eventually(t, "the end of the mapping", func() bool { return run(t, l, "n-short", "conntrack", "22400") == "0\n" })
		a1000.send(hole, "too late")
		s.send(netip.AddrPortFrom(b, 1000), "again")
		b1000.send(b1000.want("again"), "welcome")
		s.want("welcome")
	})

	t.Run("reboot", func(t *testing.T) {
		for _, site := range []string{"eim", "cone", "adf", "sym"} {
			s := open(t, l, site, 22500)
			s.send(netip.AddrPortFrom(a, 1000), "before")
			hole := a1000.want("before")
			if err := l.Reboot(t.Context(), "n-"+site, 1); err != nil {
				t.Fatal(err)
			}
			a1000.send(hole, "forgotten")
			answered(s, b1000, netip.AddrPortFrom(b, 1000), "after")
		}
	})

	t.Run("another kind", func(t *testing.T) {
		s := open(t, l, "eim", 22550)
		kept := exchange(s, a1000, netip.AddrPortFrom(a, 1000), "as eim")
		if err := l.Translate(t.Context(), "n-eim", Symmetric); err != nil {
			t.Fatal(err)
		}
		if from := exchange(s, a1000, netip.AddrPortFrom(a, 1000), "known"); from != kept {
			t.Errorf("a known flow moved from %s to %s", kept, from)
		}
		fresh := open(t, l, "eim", 22551)
		one := exchange(fresh, a1000, netip.AddrPortFrom(a, 1000), "one")
		if two := exchange(fresh, b1000, netip.AddrPortFrom(b, 1000), "two"); one == two {
			t.Errorf("seen as %s by two servers, want two ports", one)
		}
		// It keeps to that when an address of the lab changes.
		if _, err := l.Readdress(t.Context(), "n-port:wan"); err != nil {
			t.Fatal(err)
		}
		fresh = open(t, l, "eim", 22552)
		one = exchange(fresh, a1000, netip.AddrPortFrom(a, 1000), "three")
		if two := exchange(fresh, b1000, netip.AddrPortFrom(b, 1000), "four"); one == two {
			t.Errorf("behind a change of addresses seen as %s by two servers, want two ports", one)
		}
		if err := l.Translate(t.Context(), "n-eim", EIM); err != nil {
			t.Fatal(err)
		}
		fresh = open(t, l, "eim", 22553)
		if from := exchange(fresh, a1000, netip.AddrPortFrom(a, 1000), "as before"); from.Port() != 22553 {
			t.Errorf("seen as %s, want the port kept again", from)
		}
		for node, to := range map[string]Mapping{"n-eim": NoNAT, "n-fw": EIM, "n-cone": Symmetric, "n-sym": "conical", "isp": EIM, "ghost": EIM} {
			if err := l.Translate(t.Context(), node, to); err == nil {
				t.Errorf("%s became %s", node, to)
			}
		}
	})

	t.Run("udp", func(t *testing.T) {
		s := open(t, l, "eim", 22560)
		exchange(s, a1000, netip.AddrPortFrom(a, 1000), "passes")
		if err := l.UDP(t.Context(), "n-eim", false); err != nil {
			t.Fatal(err)
		}
		s.send(netip.AddrPortFrom(a, 1000), "dropped")
		if err := l.UDP(t.Context(), "n-eim", true); err != nil {
			t.Fatal(err)
		}
		s.send(netip.AddrPortFrom(a, 1000), "passes again")
		a1000.want("passes again") // and nothing before
		if err := l.UDP(t.Context(), "isp", false); err == nil {
			t.Error("a router has a firewall")
		}
	})

	t.Run("readdress", func(t *testing.T) {
		before := address(t, l, "n-port", "wan", false)
		now, err := l.Readdress(t.Context(), "n-port:wan")
		if err != nil {
			t.Fatal(err)
		}
		if now[0].Addr() == before {
			t.Fatalf("the address is still %s", before)
		}
		from := exchange(open(t, l, "port", 22600), a1000, netip.AddrPortFrom(a, 1000), "moved")
		if from.Addr() != now[0].Addr() {
			t.Errorf("seen as %s, want the new address %s", from, now[0].Addr())
		}
	})
}

// serve starts a TCP server on the node and waits until it listens.
func serve(t testing.TB, l *Lab, node, addr string) {
	t.Helper()
	name := "server" + addr
	if _, err := l.Start(t.Context(), node, name, helperArgv(t, "serve", addr)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server's start", func() bool { return logOf(t, l, node, name) == "ok\n" })
}
