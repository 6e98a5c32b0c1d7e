package store

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestCheckPools(t *testing.T) {
	const ok4, ok6 = "10.86.0.0/16", "fd01:203:405::/48"
	for name, c := range map[string]struct {
		pool4, pool6 string
		locals       []string
		want         string // part of the sentence; empty: accepted
	}{
		"defaults":            {ok4, ok6, nil, ""},
		"other networks":      {ok4, ok6, []string{"10.85.0.0/16", "192.168.1.0/24", "2001:db8::/64", "10.87.0.1/32"}, ""},
		"smallest":            {"10.0.0.0/28", "fd00::/112", nil, ""},
		"largest":             {"10.0.0.0/8", "fd00::/16", nil, ""},
		"local inside":        {ok4, ok6, []string{"10.86.3.7/24"}, "overlaps 10.86.3.0/24, which this machine is connected to"},
		"local around":        {ok4, ok6, []string{"10.0.0.0/8"}, "overlaps 10.0.0.0/8"},
		"IPv6 local":          {ok4, ok6, []string{"fd01:203:405:7::/64"}, "overlaps fd01:203:405:7::/64"},
		"swapped":             {ok6, ok4, nil, "is not an IPv4 prefix"},
		"two of IPv4":         {ok4, "10.87.0.0/16", nil, "is not an IPv6 prefix"},
		"mapped":              {ok4, "::ffff:10.0.0.0/104", nil, "reserved range"},
		"unmasked":            {"10.86.1.0/16", ok6, nil, "write 10.86.0.0/16"},
		"too small":           {"10.86.0.0/29", ok6, nil, "from /8 to /28"},
		"too large":           {"8.0.0.0/7", ok6, nil, "from /8 to /28"},
		"IPv6 too small":      {ok4, "fd00::/113", nil, "from /16 to /112"},
		"IPv6 too large":      {ok4, "2000::/3", nil, "from /16 to /112"},
		"loopback":            {"127.0.0.0/16", ok6, nil, "reserved range 127.0.0.0/8"},
		"link-local":          {"169.254.0.0/20", ok6, nil, "reserved range 169.254.0.0/16"},
		"multicast":           {"239.0.0.0/16", ok6, nil, "reserved range 224.0.0.0/4"},
		"IPv6 link-local":     {ok4, "fe80::/64", nil, "reserved range fe80::/10"},
		"IPv6 multicast":      {ok4, "ff05::/32", nil, "reserved range ff00::/8"},
		"IPv4 in IPv6, NAT64": {ok4, "64:ff9b::/96", nil, "reserved range ::/8"},
	} {
		var locals []netip.Prefix
		for _, l := range c.locals {
			locals = append(locals, netip.MustParsePrefix(l))
		}
		err := CheckPools(netip.MustParsePrefix(c.pool4), netip.MustParsePrefix(c.pool6), locals)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if r, ok := errors.AsType[*Refusal](err); !ok || r.Code != CodePoolRefused || !strings.Contains(r.Message, c.want) || !strings.Contains(r.Message, ";") {
			t.Errorf("%s: %v, want …%s… and a next step", name, err, c.want)
		}
	}
	if err := CheckPools(netip.Prefix{}, netip.Prefix{}, nil); err == nil {
		t.Error("no pools: accepted")
	}
}

func TestRandomULA(t *testing.T) {
	if got := RandomULA([5]byte{0x12, 0x34, 0x56, 0x78, 0x9a}).String(); got != "fd12:3456:789a::/48" {
		t.Error(got)
	}
	ula := netip.MustParsePrefix("fd00::/8")
	for i := range byte(255) {
		p := RandomULA([5]byte{i, ^i, i})
		if !ula.Overlaps(p) || p != p.Masked() || CheckPools(netip.MustParsePrefix("10.86.0.0/16"), p, nil) != nil {
			t.Errorf("%s cannot serve", p)
		}
	}
}

// A pool gives every usable address exactly once, in order, and then says so.
func TestPoolIsUsedUp(t *testing.T) {
	for name, c := range map[string]struct {
		pool4, pool6 string
		want         int
		last         string
	}{
		"IPv4 decides":               {"10.0.0.0/28", "fd00::/64", 14, "10.0.0.14"},
		"ends with .255 and .0 lost": {"10.0.254.0/23", "fd00::/112", 2 * 254, "10.0.255.254"},
	} {
		t.Run(name, func(t *testing.T) {
			s := New()
			s.Mesh.ID, s.Mesh.Pool4, s.Mesh.Pool6 = testMesh, netip.MustParsePrefix(c.pool4), netip.MustParsePrefix(c.pool6)
			var last netip.Addr
			for i := range c.want {
				a4, a6, refused := s.allocate()
				if refused != nil {
					t.Fatalf("after %d: %v", i, refused)
				}
				if b := a4.As4()[3]; b == 0 || b == 255 || !s.Mesh.Pool4.Contains(a4) || !s.Mesh.Pool6.Contains(a6) || last.IsValid() && !last.Less(a4) {
					t.Fatalf("%s after %s", a4, last)
				}
				last = a4
				var id [8]byte
				id[0], id[1] = byte(i), byte(i>>8)
				if i%2 == 0 {
					s.put(Node{ID: id, Addr4: a4, Addr6: a6})
				} else {
					s.bury(id, Tombstone{Addr4: a4, Addr6: a6})
				}
			}
			if last.String() != c.last {
				t.Errorf("last address %s, want %s", last, c.last)
			}
			if a4, _, refused := s.allocate(); refused == nil || refused.Code != CodePoolEmpty {
				t.Errorf("one more than there are: %s", a4)
			}
		})
	}
}

// The 128 highest addresses of an IPv6 pool are anycast (RFC 2526), and the
// highest of an IPv4 pool is its broadcast.
func TestLastHost(t *testing.T) {
	for _, c := range []struct {
		pool4, pool6 string
		want4, want6 string
	}{
		{"10.0.0.0/8", "fd00::/112", "10.0.255.127", "fd00::ff7f"},
		{"10.0.0.0/24", "fd00::/64", "10.0.0.254", "fd00::fe"},
		{"10.0.0.0/8", "fd00::/64", "10.255.255.254", "fd00::ff:fffe"},
	} {
		p4, p6 := netip.MustParsePrefix(c.pool4), netip.MustParsePrefix(c.pool6)
		last := lastHost(p4, p6)
		if a4, a6 := nth(p4, last), nth(p6, last); a4.String() != c.want4 || a6.String() != c.want6 {
			t.Errorf("%s %s: %s %s", p4, p6, a4, a6)
		}
	}
}
