package chaos

import (
	"net/netip"
	"testing"
)

const (
	snmp = `Ip: Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors
Ip: 1 64 100 7 0
Icmp: InMsgs InErrors OutMsgs OutTimeExcds OutParmProbs
Icmp: 5 0 5 3 0
Udp: InDatagrams NoPorts
Udp: 90 1
`
	snmp6 = "Ip6InReceives                   \t50\nIp6InHdrErrors                  \t4\nIcmp6OutTimeExcds               \t2\n"
)

func TestParseExpired(t *testing.T) {
	for six, want := range map[string]expired{snmp6: {3, 2, 7, 4}, "": {Told4: 3, Headers: 7}} {
		if got, err := parseExpired(snmp, six); err != nil || got != want {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
	for _, bad := range [][2]string{{"", snmp6}, {snmp, "Ip6InHdrErrors 1\n"}, {"Ip: InHdrErrors\nIp: many\n", snmp6}} {
		if got, err := parseExpired(bad[0], bad[1]); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func FuzzParseExpired(f *testing.F) {
	f.Add(snmp, snmp6)
	f.Add("Ip: a\nIp: 1 2 3\n", "x y\n")
	f.Fuzz(func(t *testing.T, four, six string) {
		a, err := parseExpired(four, six)
		if b, again := parseExpired(four, six); a != b && err == nil || (err == nil) != (again == nil) {
			t.Errorf("%+v, %v and then %+v, %v", a, err, b, again)
		}
	})
}

func TestLongest(t *testing.T) {
	routes := []route{
		{netip.MustParsePrefix("10.0.0.0/8"), []int{1}},
		{netip.MustParsePrefix("10.1.0.0/24"), []int{2, 3}},
		{netip.MustParsePrefix("10.2.0.0/16"), nil},
		{netip.MustParsePrefix("::/0"), []int{4}},
	}
	for to, want := range map[string]int{"10.1.0.10": 2, "10.3.0.1": 1, "10.2.0.1": 0, "192.0.2.1": 0, "fd00::1": 1} {
		if got := longest(routes, netip.MustParseAddr(to)); len(got.devices) != want {
			t.Errorf("to %s: %+v, want %d ways", to, got, want)
		}
	}
}
