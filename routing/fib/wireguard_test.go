package fib

import (
	"errors"
	"net/netip"
	"testing"

	"guywire/mesh/kernel"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wireguard makes a WireGuard device of the kernel that is up. It has no peer,
// so each packet that is routed to it is counted as an error.
func wireguard(t testing.TB, name string) {
	t.Helper()
	err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name}})
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("needs the kernel's wireguard module")
	}
	if err != nil {
		t.Fatal(err)
	}
	up(t, name)
}

// routed gives how many packets were routed to a device of wireguard.
func routed(t testing.TB, name string) uint64 {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Statistics.TxErrors
}

// TestWireGuardLegs: the legs of a group are devices of the kernel's WireGuard.
// Flows spread over them, follow each change of the group, and a device that
// goes away takes its leg along until it is made anew.
func TestWireGuardLegs(t *testing.T) {
	modes(t, func(t *testing.T, f *FIB) {
		wireguard(t, "gw-a")
		wireguard(t, "gw-b")
		hints := watch(t, f)
		want := twoLegs()
		apply(t, f, want)
		fd, port := udp(t, unix.AF_INET), uint16(9000)
		burst := func() (onA, onB uint64) {
			t.Helper()
			beforeA, beforeB := routed(t, "gw-a"), routed(t, "gw-b")
			port++
			for i := range 200 {
				to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), byte(7 * i)}), port)
				if err := send(fd, to); !errors.Is(err, unix.ENOKEY) { // there is no peer
					t.Fatal("sent to a device without a peer: ", err)
				}
			}
			return routed(t, "gw-a") - beforeA, routed(t, "gw-b") - beforeB
		}
		if onA, onB := burst(); onA+onB != 200 || onA < 50 || onB < 50 {
			t.Errorf("%d and %d of 200 packets on equal legs", onA, onB)
		}
		if err := f.Do(t.Context(), kernel.PutNextHop{NextHop: kernel.NextHop{ID: group, Members: []kernel.Member{{ID: hopB, Weight: 1}}}}); err != nil {
			t.Fatal(err)
		}
		if onA, onB := burst(); onA != 0 || onB != 200 {
			t.Errorf("%d of 200 packets on the leg that left the group, %d on the other", onA, onB)
		}
		apply(t, f, want)

		gone, err := netlink.LinkByName("gw-b")
		if err == nil {
			err = netlink.LinkDel(gone)
		}
		if err != nil {
			t.Fatal(err)
		}
		<-hints
		// Without objects an IPv4 route goes with any of its devices.
		if got := observe(t, f); len(got.NextHops) != 2 || f.legacy == nil && len(got.Routes) != 2 {
			t.Errorf("without one device:\n%s", got)
		}
		wireguard(t, "gw-b")
		apply(t, f, want)
		if onA, onB := burst(); onA < 50 || onB < 50 {
			t.Errorf("%d and %d of 200 packets on equal legs, one made anew", onA, onB)
		}
	})
}
