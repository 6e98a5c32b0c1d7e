package fib

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// enterNS puts the calling test into a network namespace of its own, with the
// loopback device up. The thread is never given back, so it ends with the
// test, and the namespace with it.
func enterNS(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs the right to make network namespaces (root, or a user namespace): %v", err)
	}
	up(t, "lo")
}

func up(t testing.TB, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		t.Fatalf("bring up %s: %v", name, err)
	}
}

func down(t testing.TB, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetDown(link)
	}
	if err != nil {
		t.Fatalf("bring down %s: %v", name, err)
	}
}

// tun makes a TUN device that is up; what is routed to it can be read from
// the file. It stands in for a tunnel.
func tun(t testing.TB, name string) *os.File {
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
	up(t, name)
	return f
}

// packets gives how many of the IP packets that wait in the device are for
// the given UDP port.
func packets(t testing.TB, f *os.File, port uint16) (n int) {
	t.Helper()
	buf := make([]byte, 2048)
	// A deadline may pass before the read on a busy machine: only several in a
	// row say that there is nothing.
	for idle := 0; ; {
		if err := f.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		size, err := f.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if idle++; idle == 3 {
				return n
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		idle = 0
		head := 20
		if buf[0]>>4 == 6 {
			head = 40
		}
		if size >= head+8 && uint16(buf[head+2])<<8|uint16(buf[head+3]) == port {
			n++
		}
	}
}

// udp opens a socket in the namespace of the test.
func udp(t testing.TB, family int) int {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func send(fd int, to netip.AddrPort) error {
	if to.Addr().Is4() {
		return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	}
	return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
}

func open(t testing.TB) *FIB {
	t.Helper()
	f, err := New([]netip.Prefix{netip.MustParsePrefix("10.86.0.0/16"), netip.MustParsePrefix("2001:db8:86::/48")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// lockedSetns moves the calling goroutine, for good, into a namespace.
func lockedSetns(fd int) error {
	runtime.LockOSThread()
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

func ipnet(s string) *net.IPNet {
	p := pfx(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
