package probe

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"guywire/mesh"
)

// namespace makes an empty network namespace that lives as long as the test.
func namespace(t *testing.T) netns.NsHandle {
	t.Helper()
	type made struct {
		ns  netns.NsHandle
		err error
	}
	ch := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.New()
		ch <- made{ns, err}
	}()
	m := <-ch
	if errors.Is(m.err, unix.EPERM) {
		t.Skip("making a network namespace needs CAP_SYS_ADMIN: run as root or inside a user namespace")
	}
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { _ = m.ns.Close() })
	return m.ns
}

// within runs f on a thread inside ns.
func within(ns netns.NsHandle, f func() error) error {
	ch := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			ch <- err
			return
		}
		ch <- f()
	}()
	return <-ch
}

type host struct {
	id   mesh.NodeID
	ns   netns.NsHandle
	nl   *netlink.Handle
	conn *Conn
}

// pair makes two hosts with n links between them:
//
//	a [gw-0 … gw-n] ══ veth ══ [gw-0 … gw-n] b
//
// Every end of a link has its host's one link-local address.
func pair(t *testing.T, n int) (a, b *host) {
	t.Helper()
	a, b = &host{id: mesh.NodeID{0xa}}, &host{id: mesh.NodeID{0xb}}
	for _, h := range []*host{a, b} {
		h.ns = namespace(t)
		nl, err := netlink.NewHandleAt(h.ns)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nl.Close)
		h.nl = nl
	}
	for i := range n {
		name := "gw-" + string(rune('0'+i))
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(b.ns)}
		if err := a.nl.LinkAdd(veth); err != nil {
			t.Fatal("add veth:", err)
		}
		for _, h := range []*host{a, b} {
			link, err := h.nl.LinkByName(name)
			if err != nil {
				t.Fatal(err)
			}
			addr := &netlink.Addr{
				IPNet: &net.IPNet{IP: h.id.LinkLocal().AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD,
			}
			if err := errors.Join(h.nl.AddrAdd(link, addr), h.nl.LinkSetUp(link)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, h := range []*host{a, b} {
		if err := within(h.ns, func() (err error) { h.conn, err = Open(h.id.LinkLocal()); return err }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.conn.Close() })
	}
	return a, b
}

func (h *host) ifindex(t *testing.T, name string) int {
	t.Helper()
	link, err := h.nl.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Index
}

type datagram struct {
	ifindex int
	from    netip.Addr
	payload []byte
	at      time.Time
}

// listen receives on h until the test ends.
func (h *host) listen(t *testing.T) (<-chan datagram, <-chan Hint) {
	got, hints := make(chan datagram, 16), make(chan Hint, 16)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.conn.Receive(ctx, func(ifindex int, from netip.Addr, payload []byte, at time.Time) {
			select {
			case got <- datagram{ifindex, from, bytes.Clone(payload), at}:
			default: // the test has what it wanted
			}
		}, func(hint Hint) {
			select {
			case hints <- hint:
			default:
			}
		}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return got, hints
}

// sendUntil repeats a datagram until something comes out of ch: a new veth may
// still be without carrier.
func sendUntil[T any](t *testing.T, ch <-chan T, send func()) T {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		send()
		select {
		case v := <-ch:
			return v
		case <-tick.C:
		case <-deadline:
			t.Fatal("nothing arrived")
		}
	}
}

func TestLinksAreToldApart(t *testing.T) {
	a, b := pair(t, 2)
	got, _ := b.listen(t)
	for _, name := range []string{"gw-0", "gw-1"} {
		before := time.Now()
		payload := []byte("over " + name)
		var d datagram
		for string(d.payload) != string(payload) {
			d = sendUntil(t, got, func() { _ = a.conn.Send(a.ifindex(t, name), b.id.LinkLocal(), payload) })
		}
		if d.ifindex != b.ifindex(t, name) || d.from != a.id.LinkLocal() {
			t.Errorf("%s: on interface %d from %s", name, d.ifindex, d.from)
		}
		if d.at.Before(before) || d.at.After(time.Now()) {
			t.Errorf("%s: stamped %s, sent after %s", name, d.at, before)
		}
	}
}

func TestStrangersAreDropped(t *testing.T) {
	a, b := pair(t, 1)
	got, _ := b.listen(t)
	index := a.ifindex(t, "gw-0")
	var other *net.UDPConn
	if err := within(a.ns, func() (err error) { other, err = net.ListenUDP("udp6", nil); return err }); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	d := sendUntil(t, got, func() {
		_, _, err := other.WriteMsgUDPAddrPort([]byte("stranger"), appendPktinfo(nil, netip.Addr{}, index), netip.AddrPortFrom(b.id.LinkLocal(), mesh.ProbePort))
		if err == nil {
			err = a.conn.Send(index, b.id.LinkLocal(), make([]byte, 1400))
		}
		_ = err // a veth without carrier: sent again
	})
	for {
		if string(d.payload) == "stranger" {
			t.Error("a datagram from another port arrived")
		}
		select {
		case d = <-got:
			continue
		default:
		}
		break
	}
}

// A datagram travels whole or not at all: one that fits the interface to the
// byte arrives, one more byte is refused.
func TestNothingIsFragmented(t *testing.T) {
	a, b := pair(t, 1)
	got, _ := b.listen(t)
	link, err := a.nl.LinkByName("gw-0")
	if err != nil {
		t.Fatal(err)
	}
	const mtu, headers = 1380, 40 + 8
	if err := a.nl.LinkSetMTU(link, mtu); err != nil {
		t.Fatal(err)
	}
	whole := bytes.Repeat([]byte{7}, mtu-headers)
	arrived := sendUntil(t, got, func() { _ = a.conn.Send(link.Attrs().Index, b.id.LinkLocal(), whole) })
	if !bytes.Equal(arrived.payload, whole) {
		t.Errorf("%d bytes arrived of %d", len(arrived.payload), len(whole))
	}
	var hint *Hint
	if err := a.conn.Send(link.Attrs().Index, b.id.LinkLocal(), append(whole, 7)); !errors.As(err, &hint) || hint.Reason != TooBig {
		t.Errorf("one byte too much: %v", err)
	}
	// Refusals leave nothing behind that takes the place of what arrives.
	back, _ := a.listen(t)
	for range 4_000 {
		_ = a.conn.Send(link.Attrs().Index, b.id.LinkLocal(), append(whole, 7))
	}
	sendUntil(t, back, func() { _ = b.conn.Send(b.ifindex(t, "gw-0"), a.id.LinkLocal(), []byte("after")) })
}

func TestHints(t *testing.T) {
	a, b := pair(t, 2)
	_, hints := a.listen(t)
	up, _ := b.listen(t)
	index := a.ifindex(t, "gw-0")
	sendUntil(t, up, func() { _ = a.conn.Send(index, b.id.LinkLocal(), []byte("hello")) })

	var hint *Hint
	if err := a.conn.Send(9999, b.id.LinkLocal(), []byte("x")); !errors.As(err, &hint) || hint.Reason != DeviceGone || hint.Ifindex != 9999 {
		t.Errorf("no such interface: %v", err)
	}

	// The neighbour's agent stops: its kernel says so.
	if err := b.conn.Close(); err != nil {
		t.Fatal(err)
	}
	h := sendUntil(t, hints, func() { _ = a.conn.Send(index, b.id.LinkLocal(), []byte("anyone?")) })
	if h.Reason != Refused || h.Ifindex != index || h.Addr != b.id.LinkLocal() {
		t.Errorf("port closed: %+v", h)
	}

	link, err := a.nl.LinkByName("gw-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.nl.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	if err := a.conn.Send(link.Attrs().Index, b.id.LinkLocal(), []byte("x")); !errors.As(err, &hint) || hint.Reason != DeviceDown {
		t.Errorf("interface down: %v", err)
	}
	if err := a.nl.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	if err := a.conn.Send(link.Attrs().Index, b.id.LinkLocal(), []byte("x")); !errors.As(err, &hint) || hint.Reason != DeviceGone {
		t.Errorf("interface gone: %v", err)
	}
	_ = a.conn.Close()
	if err := a.conn.Send(index, b.id.LinkLocal(), []byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// Receive can be ended and begun again.
func TestReceiveAgain(t *testing.T) {
	a, b := pair(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.conn.Receive(ctx, nil, nil); err != nil {
		t.Fatal(err)
	}
	got, _ := b.listen(t)
	index := a.ifindex(t, "gw-0")
	sendUntil(t, got, func() { _ = a.conn.Send(index, b.id.LinkLocal(), []byte("hello")) })
}

func TestClassify(t *testing.T) {
	for errno, want := range map[unix.Errno]Reason{
		unix.ENOKEY: NoKey, unix.EDESTADDRREQ: NoEndpoint, unix.ENODEV: DeviceGone, unix.ENETDOWN: DeviceDown,
		unix.ENETUNREACH: Unreachable, unix.ECONNREFUSED: Refused, unix.EMSGSIZE: TooBig, unix.ENOBUFS: Busy, unix.EPERM: Other,
	} {
		err := &net.OpError{Op: "write", Err: errno}
		if got := classify(err); got != want {
			t.Errorf("%v: %s, want %s", errno, got, want)
		}
	}
}

func TestArrived(t *testing.T) {
	now := time.Now()
	wall := now.Round(0)
	for _, c := range []struct {
		stamp time.Time
		want  time.Time
	}{
		{wall.Add(-3 * time.Millisecond), now.Add(-3 * time.Millisecond)},
		{wall.Add(time.Millisecond), now}, // the clock was set back
		{wall.Add(-time.Hour), now},       // or forth
		{time.Time{}, now},
	} {
		if got := arrived(now, c.stamp); got != c.want {
			t.Errorf("stamp %s: %s, want %s", c.stamp, got, c.want)
		}
	}
}

func FuzzControl(f *testing.F) {
	f.Add(appendPktinfo(nil, netip.MustParseAddr("fe80::1"), 7))
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		parseError(b)
		messages, err := unix.ParseSocketControlMessage(b)
		if err != nil {
			return
		}
		n := 0
		eachControl(b, func(level, kind int32, data []byte) {
			if n >= len(messages) || messages[n].Header.Level != level || messages[n].Header.Type != kind || !bytes.Equal(messages[n].Data, data) {
				t.Fatalf("message %d differs from what the library reads", n)
			}
			n++
		})
		if n != len(messages) {
			t.Fatalf("%d messages, the library reads %d", n, len(messages))
		}
	})
}
