package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/core"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

var sameAddrs = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}

func addrs(texts ...string) (out []netip.Addr) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func observe(t *testing.T) core.Host {
	t.Helper()
	h, err := Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestObserve builds a site with two ISPs, a LAN, and things of ours that must
// not be seen.
func TestObserve(t *testing.T) {
	enterNS(t)
	if h := observe(t); len(h.Uplinks)+len(h.Attached) > 0 {
		t.Errorf("an empty namespace: %+v", h)
	}
	isp := tun(t, "eth1", "203.0.113.2/24", "2001:db8:1::2/64")
	tun(t, "eth0", "198.18.0.2/24")
	tun(t, "lan0", "10.1.0.1/16", "2001:db8:10::1/64")
	tun(t, "gw-z", "10.86.0.1/24")
	addRoute(t, "0.0.0.0/0", "eth0", "198.18.0.1", 200, 4)
	addRoute(t, "0.0.0.0/0", "eth1", "203.0.113.1", 100, 4)
	addRoute(t, "0.0.0.0/0", "eth1", "203.0.113.254", 300, 4) // a worse one
	addRoute(t, "::/0", "eth1", "fe80::1", 1024, 9)
	addRoute(t, "0.0.0.0/0", "gw-z", "", 50, 4)
	addRoute(t, "0.0.0.0/0", "lan0", "", 60, mesh.RouteProtocol)
	addRoute(t, "10.77.0.0/16", "lan0", "10.1.0.9", 0, 4)
	addRoute(t, "10.78.0.0/16", "lan0", "", 0, 4)

	got := observe(t)
	want := core.Host{
		Uplinks: []mesh.Uplink{
			{
				Name: "eth1", Interface: "eth1", Up: true, Addrs: addrs("203.0.113.2", "2001:db8:1::2"), MTU: 1500,
				Default4: true, Gateway4: netip.MustParseAddr("203.0.113.1"), Default6: true, Gateway6: netip.MustParseAddr("fe80::1"),
			},
			{Name: "eth0", Interface: "eth0", Up: true, Addrs: addrs("198.18.0.2"), MTU: 1500, Default4: true, Gateway4: netip.MustParseAddr("198.18.0.1")},
		},
		Attached: []core.Attached{
			{Device: "lan0", Prefix: netip.MustParsePrefix("10.1.0.0/16")},
			{Device: "lan0", Prefix: netip.MustParsePrefix("10.78.0.0/16")},
			{Device: "eth0", Prefix: netip.MustParsePrefix("198.18.0.0/24")},
			{Device: "eth1", Prefix: netip.MustParsePrefix("203.0.113.0/24")},
			{Device: "eth1", Prefix: netip.MustParsePrefix("2001:db8:1::/64")},
			{Device: "lan0", Prefix: netip.MustParsePrefix("2001:db8:10::/64")},
		},
		AcceptRA: []string{"eth1", "eth0"},
	}
	if diff := cmp.Diff(want, got, sameAddrs); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}

	setCarrier(t, isp, 0)
	if got := observe(t); len(got.Uplinks) != 2 || got.Uplinks[0].Up || !got.Uplinks[1].Up {
		t.Errorf("with the cable of eth1 pulled: %+v", got.Uplinks)
	}
	setCarrier(t, isp, 1)
	if err := netlink.LinkSetDown(device(t, "eth0")); err != nil {
		t.Fatal(err)
	}
	if got := observe(t); len(got.Uplinks) != 1 || got.Uplinks[0].Name != "eth1" || !got.Uplinks[0].Up {
		t.Errorf("with eth0 switched off: %+v", got.Uplinks)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/eth1/accept_ra", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	if got := observe(t).AcceptRA; len(got) > 0 {
		t.Errorf("router advertisements are refused, yet: %v", got)
	}
}

// TestForms covers default routes that say their interface in other ways:
// multipath, and next-hop objects, also when the kernel tells only their id.
func TestForms(t *testing.T) {
	for _, compat := range []string{"0", "1"} {
		for _, form := range []string{"multipath", "object", "group"} {
			t.Run(form+compat, func(t *testing.T) {
				enterNS(t)
				if err := os.WriteFile("/proc/sys/net/ipv4/nexthop_compat_mode", []byte(compat), 0); err != nil {
					t.Skipf("this kernel has no next-hop objects: %v", err)
				}
				tun(t, "eth0", "198.18.0.2/24")
				tun(t, "eth1", "203.0.113.2/24")
				var legs []*netlink.NexthopInfo
				for i, gw := range []string{"198.18.0.1", "203.0.113.1"} {
					index := device(t, fmt.Sprintf("eth%d", i)).Attrs().Index
					legs = append(legs, &netlink.NexthopInfo{LinkIndex: index, Gw: net.ParseIP(gw)})
					put(t, nl.NewRtAttr(unix.NHA_ID, nl.Uint32Attr(uint32(i+1))), nl.NewRtAttr(unix.NHA_OIF, nl.Uint32Attr(uint32(index))),
						nl.NewRtAttr(unix.NHA_GATEWAY, netip.MustParseAddr(gw).AsSlice()))
				}
				want := 2
				switch form {
				case "multipath":
					if err := netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, MultiPath: legs}); err != nil {
						t.Fatal(err)
					}
				case "object":
					want = 1
					routeVia(t, 1)
				case "group":
					members := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, 1), 2)
					put(t, nl.NewRtAttr(unix.NHA_ID, nl.Uint32Attr(9)), nl.NewRtAttr(unix.NHA_GROUP, members))
					routeVia(t, 9)
				}
				got := observe(t).Uplinks
				if len(got) != want || got[0].Name != "eth0" || got[0].Gateway4 != netip.MustParseAddr("198.18.0.1") {
					t.Errorf("%+v", got)
				}
			})
		}
	}
}

func request(t *testing.T, kind int, head []byte, attrs ...*nl.RtAttr) {
	t.Helper()
	req := nl.NewNetlinkRequest(kind, unix.NLM_F_CREATE|unix.NLM_F_ACK)
	req.AddRawData(head)
	for _, a := range attrs {
		req.AddRawData(a.Serialize())
	}
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		t.Fatal(err)
	}
}

// put makes a next-hop object; a group if it has no family of its own.
func put(t *testing.T, attrs ...*nl.RtAttr) {
	t.Helper()
	head := make([]byte, sizeofNhmsg)
	if len(attrs) > 2 {
		head[0] = unix.AF_INET
	}
	request(t, unix.RTM_NEWNEXTHOP, head, attrs...)
}

func routeVia(t *testing.T, id uint32) {
	t.Helper()
	head := nl.NewRtMsg()
	head.Family = unix.AF_INET
	request(t, unix.RTM_NEWROUTE, head.Serialize(), nl.NewRtAttr(rtaNhID, nl.Uint32Attr(id)))
}

// TestWatch pulls a cable: the hint must come, and find it pulled.
func TestWatch(t *testing.T) {
	enterNS(t)
	f := tun(t, "eth0", "198.18.0.2/24")
	addRoute(t, "0.0.0.0/0", "eth0", "198.18.0.1", 0, 4)
	ns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ns)
	ctx, cancel := context.WithCancel(t.Context())
	hints, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		if err := lockedSetns(ns); err != nil {
			ended <- err
			return
		}
		ended <- Watch(ctx, func() {
			select {
			case hints <- struct{}{}:
			default:
			}
		})
	}()
	// Changes that come before it watches are missed; so repeat.
	wait := func(carrier int) {
		t.Helper()
		for deadline := time.After(20 * time.Second); ; {
			setCarrier(t, f, 1-carrier)
			setCarrier(t, f, carrier)
			select {
			case <-hints:
				return
			case err := <-ended:
				t.Fatal(err)
			case <-deadline:
				t.Fatal("no hint")
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	wait(0)
	if u := observe(t).Uplinks; len(u) != 1 || u[0].Up {
		t.Errorf("after the cable was pulled: %+v", u)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestConcern subscribes as Watch does and judges single messages: routes of
// others' traffic give no hint, an uplink's default route does.
func TestConcern(t *testing.T) {
	enterNS(t)
	tun(t, "eth0", "198.18.0.2/24")
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	addRoute(t, "203.0.113.0/24", "eth0", "198.18.0.1", 0, 4)
	addRoute(t, "0.0.0.0/0", "eth0", "198.18.0.1", 0, 4)
	addRoute(t, "10.5.0.0/16", "eth0", "", 0, 4)
	var got []bool
	for len(got) < 3 {
		msgs, _, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for i := range msgs {
			got = append(got, concern(msgs[i:i+1]))
		}
	}
	if diff := cmp.Diff([]bool{false, true, true}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPrivileges(t *testing.T) {
	enterNS(t)
	if err := Privileges(t.Context()); err != nil {
		t.Errorf("in a namespace of our own: %v", err)
	}
	// Without any capability left, on this thread only.
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capset(&head, &data[0]); err != nil {
		t.Fatal(err)
	}
	if err := Privileges(t.Context()); !errors.Is(err, ErrPrivilege) {
		t.Errorf("without capabilities: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Privileges(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
}

// FuzzLegs feeds what a kernel might say to the route parser.
func FuzzLegs(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0, 8, 0, 5, 0, 198, 18, 0, 1, 8, 0, 4, 0, 2, 0, 0, 0})
	f.Add([]byte{2, 16, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0, 8, 0, 1, 0, 10, 1, 0, 0, 20, 0, 9, 0, 16, 0, 0, 0, 2, 0, 0, 0, 8, 0, 5, 0, 10, 0, 0, 1})
	f.Add([]byte("000000000000\x05\x000000")) // an attribute that ends unaligned
	f.Fuzz(func(t *testing.T, m []byte) {
		if len(m) < unix.SizeofRtMsg {
			return
		}
		head := nl.DeserializeRtMsg(m)
		attrs, err := parseAttrs(m[unix.SizeofRtMsg:])
		if err != nil || head.Dst_len == 0 && number(attrs, rtaNhID) != 0 {
			return // would ask the kernel
		}
		legs, err := (*conn)(nil).legs(m)
		if err != nil {
			return
		}
		for _, r := range legs {
			if r.prefix.Bits() > 0 && r.gateway.IsValid() {
				t.Errorf("%+v is neither a default route nor on link", r)
			}
		}
	})
}
