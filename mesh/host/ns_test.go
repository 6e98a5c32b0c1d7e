package host

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// enterNS puts the calling test into a network namespace of its own. The
// thread is never given back, so it ends with the test, and the namespace
// with it.
func enterNS(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs the right to make network namespaces (root, or a user namespace): %v", err)
	}
}

// lockedSetns moves the calling goroutine, for good, into a namespace.
func lockedSetns(fd int) error {
	runtime.LockOSThread()
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

// tun makes a TUN device that is up, with addresses; it stands in for a cable.
func tun(t testing.TB, name string, addrs ...string) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("needs /dev/net/tun: %v", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatalf("make %s: %v", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	l := device(t, name)
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	for _, text := range addrs {
		addr, err := netlink.ParseAddr(text)
		if err == nil {
			addr.Flags = unix.IFA_F_NODAD
			err = netlink.AddrAdd(l, addr)
		}
		if err != nil {
			t.Fatalf("address %s: %v", text, err)
		}
	}
	return f
}

// setCarrier plugs or pulls the cable.
func setCarrier(t testing.TB, f *os.File, on int) {
	t.Helper()
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(conn.Control(func(fd uintptr) {
		err = unix.IoctlSetPointerInt(int(fd), unix.TUNSETCARRIER, on)
	}), err); err != nil {
		t.Fatal(err)
	}
}

func device(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

func addRoute(t testing.TB, prefix, dev, via string, metric int, protocol netlink.RouteProtocol) {
	t.Helper()
	p := netip.MustParsePrefix(prefix)
	r := &netlink.Route{
		Dst:       &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		LinkIndex: device(t, dev).Attrs().Index, Gw: net.ParseIP(via), Priority: metric, Protocol: protocol,
	}
	if err := netlink.RouteAdd(r); err != nil {
		t.Fatalf("route %s: %v", prefix, err)
	}
}
