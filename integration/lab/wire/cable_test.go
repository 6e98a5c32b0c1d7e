package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestMain gives a plain user a user namespace to be root of, so that the tests need no privilege.
func TestMain(m *testing.M) {
	const inside = "WIRE_TEST_INSIDE"
	if os.Getuid() == 0 || os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil { // no user namespaces here: the tests that need one skip themselves
		os.Exit(m.Run())
	}
}

// etherType is the first of IEEE 802's two local experimental types: nobody but these tests sends it.
const etherType = 0x88b5

// patience bounds every wait; it is never the expected time.
const patience = 20 * time.Second

// end is one end of a cable: a TAP device in a namespace of its own and a socket that sends and receives our frames.
type end struct {
	tap   *os.File
	sock  *os.File
	kern  *netlink.Handle
	name  string
	index int
}

// newEnd makes a namespace with one TAP device that is up.
func newEnd(tb testing.TB, name string) *end {
	tb.Helper()
	type result struct {
		end *end
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread dies with the goroutine, the namespace lives in the files
		e, err := openEnd(name)
		done <- result{e, err}
	}()
	r := <-done
	if errors.Is(r.err, fs.ErrPermission) || errors.Is(r.err, fs.ErrNotExist) {
		tb.Skipf("needs network namespaces, /dev/net/tun and packet sockets (root, or user namespaces): %v", r.err)
	}
	if r.err != nil {
		tb.Fatal(r.err)
	}
	tb.Cleanup(func() {
		r.end.kern.Close()
		_ = r.end.sock.Close()
		_ = r.end.tap.Close()
	})
	return r.end
}

func openEnd(name string) (*end, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	tap, err := OpenTAP(name)
	if err != nil {
		return nil, err
	}
	kern, err := netlink.NewHandle()
	if err != nil {
		return nil, err
	}
	link, err := kern.LinkByName(name)
	if err != nil {
		return nil, err
	}
	// Without addresses the kernel sends nothing of its own, so that the counters count only our frames.
	if err := kern.LinkSetIP6AddrGenMode(link, 1); err != nil {
		return nil, err
	}
	if err := kern.LinkSetMTU(link, 9000); err != nil {
		return nil, err
	}
	if err := kern.LinkSetUp(link); err != nil {
		return nil, err
	}
	proto := int(etherType>>8 | etherType&0xff<<8) // in network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, err
	}
	index := link.Attrs().Index
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(proto), Ifindex: index}); err != nil {
		return nil, err
	}
	const buffer = 4 << 20
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer) // as much as the host allows
	}
	return &end{tap, os.NewFile(uintptr(fd), "packet"), kern, name, index}, nil
}

// carrier reports whether the device sees one.
func (e *end) carrier(tb testing.TB) bool {
	tb.Helper()
	link, err := e.kern.LinkByName(e.name)
	if err != nil {
		tb.Fatal(err)
	}
	return link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
}

// message is what a test frame of size bytes carries behind its Ethernet header.
type message struct {
	seq  uint32
	sent time.Duration
	size int
}

const minFrame = etherHeader + 4 + 8

func (e *end) send(tb testing.TB, seq uint32, size int) {
	tb.Helper()
	frame := make([]byte, size)
	copy(frame, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1})
	binary.BigEndian.PutUint16(frame[12:], etherType)
	binary.BigEndian.PutUint32(frame[14:], seq)
	binary.BigEndian.PutUint64(frame[18:], uint64(monotonic()))
	if _, err := e.sock.Write(frame); err != nil {
		tb.Fatal(err)
	}
}

// receive returns the next frame and when it was taken.
func (e *end) receive(tb testing.TB) (message, time.Duration) {
	tb.Helper()
	m, at, err := e.receiveWithin(patience)
	if err != nil {
		tb.Fatal(err)
	}
	return m, at
}

func (e *end) receiveWithin(d time.Duration) (message, time.Duration, error) {
	if err := e.sock.SetReadDeadline(time.Now().Add(d)); err != nil {
		return message{}, 0, err
	}
	var buf [10_000]byte
	n, err := e.sock.Read(buf[:])
	if err != nil {
		return message{}, 0, fmt.Errorf("receive on %s: %w", e.name, err)
	}
	now := monotonic()
	return message{binary.BigEndian.Uint32(buf[14:]), time.Duration(binary.BigEndian.Uint64(buf[18:])), n}, now, nil
}

// cable is a wire between two ends.
type cable struct {
	*Wire
	a, b *end
}

func newCable(tb testing.TB, seed uint64) *cable {
	tb.Helper()
	a, b := newEnd(tb, "left"), newEnd(tb, "right")
	w := New(a.tap, b.tap, seed)
	tb.Cleanup(func() {
		if err := w.Close(); err != nil {
			tb.Error(err)
		}
	})
	return &cable{w, a, b}
}

// await returns once the counters of dir satisfy ok.
func (c *cable) await(tb testing.TB, dir Direction, what string, ok func(Stats) bool) Stats {
	tb.Helper()
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		s := c.Stats()[dir]
		if ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			tb.Fatalf("waiting for %s: %+v", what, s)
		}
	}
}

// feed sends n frames from a to b, as fast as the wire reads them, so that the device's own queue drops none.
func (c *cable) feed(tb testing.TB, n, size int) Stats {
	tb.Helper()
	start := c.Stats()[AtoB].Frames
	for i := range n {
		c.a.send(tb, uint32(i), size)
		if i%64 == 63 {
			c.await(tb, AtoB, "frames to be read", func(s Stats) bool { return s.Frames-start == uint64(i+1) })
		}
	}
	return c.await(tb, AtoB, "frames to be read", func(s Stats) bool { return s.Frames-start == uint64(n) })
}

// collect receives at b until all that was delivered is there.
func (c *cable) collect(tb testing.TB) (seqs []uint32) {
	tb.Helper()
	s := c.await(tb, AtoB, "the wire to run empty", func(s Stats) bool { return s.Queued == 0 })
	for range s.Delivered {
		m, _ := c.b.receive(tb)
		seqs = append(seqs, m.seq)
	}
	if s.Frames+s.Duplicated != s.Delivered+s.Lost+s.Overflowed+s.TooLarge+s.Cut+s.Refused {
		tb.Errorf("the counters do not add up: %+v", s)
	}
	return seqs
}
