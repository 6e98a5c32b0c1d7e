package firewall

import (
	"encoding/binary"
	"errors"
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
	// On one CPU, injected packets keep their order from device to device.
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	link(t, "lo")
}

func link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		t.Fatalf("bring up %s: %v", name, err)
	}
	return l
}

func sysctl(t testing.TB, path, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// tun makes a TUN device, with a route to each prefix with the given MTU: an
// end of a cable that the test holds in its hand.
func tun(t testing.TB, name string, mtu int, to ...string) *os.File {
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
	l := link(t, name)
	sysctl(t, "net/ipv4/conf/"+name+"/rp_filter", "0")
	for _, p := range to {
		dst, err := netlink.ParseIPNet(p)
		if err == nil {
			err = netlink.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: l.Attrs().Index, MTU: mtu})
		}
		if err != nil {
			t.Fatalf("route %s: %v", p, err)
		}
	}
	return f
}

// A packet is what tests send and look for.
type packet struct {
	src, dst string
	syn      bool   // TCP SYN with MSS 1460 to port; else UDP
	port     uint16 // destination; tells packets apart
}

func (p packet) bytes() []byte {
	src, dst := netip.MustParseAddr(p.src), netip.MustParseAddr(p.dst)
	body := make([]byte, 8, 24)
	proto := byte(unix.IPPROTO_UDP)
	binary.BigEndian.PutUint16(body[0:], 4000)
	binary.BigEndian.PutUint16(body[2:], p.port)
	check := 6
	if p.syn {
		proto, check = unix.IPPROTO_TCP, 16
		body = body[:24]
		body[12], body[13] = 6<<4, 0x02
		copy(body[20:], []byte{unix.TCPOPT_MAXSEG, 4, 1460 >> 8, 1460 & 0xff})
	} else {
		binary.BigEndian.PutUint16(body[4:], uint16(len(body)))
	}
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = append(pseudo, 0, proto, 0, byte(len(body)))
	binary.BigEndian.PutUint16(body[check:], checksum(append(pseudo, body...)))
	var head []byte
	if src.Is4() {
		head = append([]byte{0x45, 0, 0, byte(20 + len(body)), 0, 0, 0, 0, 64, proto, 0, 0}, src.AsSlice()...)
		head = append(head, dst.AsSlice()...)
		binary.BigEndian.PutUint16(head[10:], checksum(head))
	} else {
		head = append([]byte{0x60, 0, 0, 0, 0, byte(len(body)), proto, 64}, src.AsSlice()...)
		head = append(head, dst.AsSlice()...)
	}
	return append(head, body...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// inject lets the packet arrive on the device.
func inject(t testing.TB, f *os.File, p packet) {
	t.Helper()
	if _, err := f.Write(p.bytes()); err != nil {
		t.Fatal(err)
	}
}

// patience is how long a packet may take that must come; one that must not is
// awaited only until a marker sent after it has come.
const patience = 10 * time.Second

// next reads the next UDP packet or TCP SYN that leaves by the device, and
// gives its port and, for TCP, its MSS.
func next(t testing.TB, f *os.File) (port, mss uint16) {
	t.Helper()
	if err := f.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("nothing left by " + f.Name())
		}
		if err != nil {
			t.Fatal(err)
		}
		proto, body := buf[9], buf[20:n]
		if buf[0]>>4 == 6 {
			proto, body = buf[6], buf[40:n]
		}
		switch {
		case proto == unix.IPPROTO_UDP:
			return binary.BigEndian.Uint16(body[2:]), 0
		case proto == unix.IPPROTO_TCP:
			return binary.BigEndian.Uint16(body[2:]), binary.BigEndian.Uint16(body[22:])
		}
	}
}

// lockedSetns moves the calling goroutine, for good, into a namespace.
func lockedSetns(fd int) error {
	runtime.LockOSThread()
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

func addAddr(l netlink.Link, text string) error {
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		return err
	}
	addr.Flags = unix.IFA_F_NODAD
	return netlink.AddrAdd(l, addr)
}

// socket opens a UDP socket for both families in the namespace of the test.
func socket(t testing.TB, port uint16) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		t.Cleanup(func() { unix.Close(fd) })
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience.Seconds())}),
			unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)}),
		)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// receive gives the sender of the next datagram.
func receive(t testing.TB, fd int) netip.Addr {
	t.Helper()
	_, from, err := unix.Recvfrom(fd, make([]byte, 2048), 0)
	if err != nil {
		t.Fatalf("no datagram: %v", err)
	}
	return netip.AddrFrom16(from.(*unix.SockaddrInet6).Addr).Unmap()
}

// awaitLocal waits until the kernel, which does it in the background, takes
// packets for an IPv6 address of the device.
func awaitLocal(t testing.TB, l netlink.Link, a netip.Addr) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6,
			&netlink.Route{Table: unix.RT_TABLE_LOCAL, LinkIndex: l.Attrs().Index}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Dst != nil && r.Dst.IP.Equal(a.AsSlice()) {
				return
			}
		}
	}
	t.Fatalf("%s never became an address of %s", a, l.Attrs().Name)
}
