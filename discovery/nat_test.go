package discovery

import (
	"net/netip"
	"slices"
	"testing"
)

func TestClassify(t *testing.T) {
	s1, s2, s3, s1b, s6, t6 := ap("203.0.113.1:8686"), ap("203.0.113.2:8686"), ap("203.0.113.3:8686"), ap("203.0.113.1:8687"), ap("[2001:db8::1]:8686"), ap("[2001:db8::2]:8686")
	local := []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")}
	for _, c := range []struct {
		name    string
		asked   []netip.AddrPort
		answers []Reflexion
		want    NAT
	}{
		{"no server", nil, nil, NATUnknown},
		{"one silent server", []netip.AddrPort{s1}, nil, NATUnknown},
		{"two silent servers", []netip.AddrPort{s1, s2}, nil, NATBlocked},
		{"public, one answer", []netip.AddrPort{s1, s2}, []Reflexion{{Server: s1, Mapped: ap("203.0.113.9:51800")}}, NATNone},
		{"easy", []netip.AddrPort{s1, s2}, []Reflexion{{Server: s1, Mapped: ap("198.51.100.1:51800")}, {Server: s2, Mapped: ap("198.51.100.1:51800")}}, NATEasy},
		{"port changed", []netip.AddrPort{s1, s2}, []Reflexion{{Server: s1, Mapped: ap("198.51.100.1:9")}, {Server: s2, Mapped: ap("198.51.100.1:9")}}, NATEasyPortChanged},
		{"own address, other port", []netip.AddrPort{s1, s2}, []Reflexion{{Server: s1, Mapped: ap("203.0.113.9:9")}, {Server: s2, Mapped: ap("203.0.113.9:9")}}, NATEasyPortChanged},
		{"symmetric", []netip.AddrPort{s1, s2}, []Reflexion{{Server: s1, Mapped: ap("198.51.100.1:9")}, {Server: s2, Mapped: ap("198.51.100.1:10")}}, NATSymmetric},
		{"symmetric by address pool", []netip.AddrPort{s1, s2}, []Reflexion{{Server: s1, Mapped: ap("198.51.100.1:9")}, {Server: s2, Mapped: ap("198.51.100.2:9")}}, NATSymmetric},
		{"one server's two ports differ", []netip.AddrPort{s1, s1b}, []Reflexion{{Server: s1, Mapped: ap("198.51.100.1:9")}, {Server: s1b, Mapped: ap("198.51.100.1:10")}}, NATSymmetric},
		{"one server's two ports agree", []netip.AddrPort{s1, s1b}, []Reflexion{{Server: s1, Mapped: ap("198.51.100.1:9")}, {Server: s1b, Mapped: ap("198.51.100.1:9")}}, NATEasyPortChanged},
		{"a liar among three", []netip.AddrPort{s1, s2, s3}, []Reflexion{{Server: s1, Mapped: ap("192.0.2.1:53")}, {Server: s2, Mapped: ap("198.51.100.1:51800")}, {Server: s3, Mapped: ap("198.51.100.1:51800")}}, NATEasy},
		{"one answer behind NAT", []netip.AddrPort{s1, s2}, []Reflexion{{Server: s1, Mapped: ap("198.51.100.1:9")}}, NATUnknown},
		{"IPv6", []netip.AddrPort{s6, t6}, []Reflexion{{Server: s6, Mapped: ap("[2001:db8::9]:51800")}}, NATNone},
	} {
		if got := Classify(local, 51800, c.asked, c.answers); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestNATText(t *testing.T) {
	for n := range natEnd {
		text, _ := n.MarshalText()
		var again NAT
		if err := again.UnmarshalText(text); err != nil || again != n {
			t.Errorf("%s reads as %s (%v)", text, again, err)
		}
	}
	if err := new(NAT).UnmarshalText([]byte("cone")); err == nil {
		t.Error("unknown kind accepted")
	}
}

func TestExpect(t *testing.T) {
	four := func(n NAT) Uplink { return Uplink{NAT: n, NAT6: NATAbsent} }
	six := func(n NAT) Uplink { return Uplink{NAT: NATAbsent, NAT6: n} }
	at := func(u Uplink, outside string) Uplink {
		u.Reflexive = []netip.AddrPort{ap(outside)}
		return u
	}
	open := func(u Uplink, forwarded string) Uplink {
		u.Forwarded = []netip.Addr{netip.MustParseAddr(forwarded)}
		return u
	}
	for _, c := range []struct {
		a, b Uplink
		want Expectation
	}{
		{four(NATNone), four(NATSymmetric), Direct},
		{four(NATEasy), four(NATEasyPortChanged), Direct},
		{four(NATUnknown), four(NATSymmetric), Direct},
		{four(NATSymmetric), four(NATEasy), Perhaps},
		{four(NATSymmetric), four(NATSymmetric), Never},
		{at(four(NATSymmetric), "203.0.113.1:1"), at(four(NATSymmetric), "203.0.113.1:2"), Perhaps},
		{at(four(NATSymmetric), "203.0.113.1:1"), at(four(NATSymmetric), "203.0.113.2:2"), Never},
		{four(NATBlocked), four(NATNone), Never},
		{six(NATNone), six(NATNone), Direct},
		{six(NATNone), four(NATNone), Never},
		{six(NATNone), Uplink{NAT: NATSymmetric, NAT6: NATNone}, Direct},
		{Uplink{NAT: NATSymmetric, NAT6: NATNone}, Uplink{NAT: NATSymmetric, NAT6: NATNone}, Direct},
		{Uplink{NAT: NATSymmetric, NAT6: NATBlocked}, Uplink{NAT: NATEasy, NAT6: NATNone}, Perhaps},
		{Uplink{}, Uplink{}, Direct},
		{open(four(NATSymmetric), "203.0.113.9"), four(NATSymmetric), Direct},
		{open(four(NATSymmetric), "203.0.113.9"), four(NATEasy), Direct},
		{open(four(NATSymmetric), "2001:db8::9"), four(NATSymmetric), Never},
		{open(four(NATBlocked), "203.0.113.9"), four(NATEasy), Never},
	} {
		for _, pair := range [][2]Uplink{{c.a, c.b}, {c.b, c.a}} {
			if got, why := Expect(pair[0], pair[1]); got != c.want || got != Direct && why == "" {
				t.Errorf("%+v with %+v: %d %q, want %d", pair[0], pair[1], got, why, c.want)
			}
		}
	}
}

func TestAgreed(t *testing.T) {
	one, two, three, six := ap("203.0.113.1:8686"), ap("203.0.113.2:8686"), ap("203.0.113.3:8686"), ap("[2001:db8::1]:8686")
	me, other, victim := ap("198.51.100.1:9"), ap("198.51.100.1:10"), ap("192.0.2.1:53")
	for name, c := range map[string]struct {
		answers []Reflexion
		want    []netip.AddrPort
	}{
		"one server is all there is": {[]Reflexion{{Server: one, Mapped: me}}, []netip.AddrPort{me}},
		"a liar among three":         {[]Reflexion{{Server: one, Mapped: victim}, {Server: two, Mapped: me}, {Server: three, Mapped: me}}, []netip.AddrPort{me}},
		"word against word":          {[]Reflexion{{Server: one, Mapped: victim}, {Server: two, Mapped: me}}, nil},
		"two ports of one address":   {[]Reflexion{{Server: one, Mapped: me}, {Server: two, Mapped: other}}, []netip.AddrPort{me, other}},
		"families by themselves":     {[]Reflexion{{Server: one, Mapped: me}, {Server: six, Mapped: ap("[2001:db8::9]:9")}}, []netip.AddrPort{me, ap("[2001:db8::9]:9")}},
		"nothing to send to":         {[]Reflexion{{Server: one, Mapped: ap("127.0.0.1:9")}}, nil},
	} {
		if got := Agreed(c.answers); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestUsable(t *testing.T) {
	for _, bad := range []string{
		"127.0.0.1:1", "0.0.0.0:1", "0.1.2.3:1", "224.0.0.1:1", "255.255.255.255:1", "240.0.0.1:1", "169.254.1.1:1", "10.0.0.1:0",
		"[::1]:1", "[::]:1", "[fe80::1]:1", "[fe80::1%1]:1", "[ff02::1]:1", "[::ffff:10.0.0.1]:1",
	} {
		if Usable(ap(bad)) == nil {
			t.Errorf("%s passes", bad)
		}
	}
	for _, good := range []string{"10.0.0.1:1", "100.64.0.1:1", "203.0.113.1:65535", "[2001:db8::1]:1", "[fd00::1]:1"} {
		if err := Usable(ap(good)); err != nil {
			t.Error(err)
		}
	}
}

func TestChoose(t *testing.T) {
	var list []Candidate
	for i := range 10 {
		list = append(list, Candidate{CandidateHost, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 7)})
	}
	mapped := Candidate{CandidateReflexive, ap("203.0.113.1:7")}
	six := Candidate{CandidateHost, ap("[2001:db8::1]:7")}
	list = append(list, mapped, six, Candidate{CandidateReflexive, six.Addr})
	got := Choose(list, MaxCandidates)
	if len(got) != MaxCandidates || !slices.Contains(got, mapped) || !slices.Contains(got, six) {
		t.Errorf("chosen: %v", got)
	}
	if got[0].Addr != ap("10.0.0.1:7") || got[len(got)-1] != mapped || got[len(got)-2] != six {
		t.Errorf("order: %v", got)
	}
	if n := len(Choose(list[:3], MaxCandidates)); n != 3 {
		t.Errorf("%d of 3 chosen", n)
	}
}
