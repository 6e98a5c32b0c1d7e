package icmp

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// inNamespace runs the test on a thread of its own in a new network namespace
// with its loopback up. The thread ends with the test.
func inNamespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Skipf("needs the privilege to make a network namespace: %v", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestPing(t *testing.T) {
	inNamespace(t)
	c, err := Open(func(Answer) {})
	if errors.Is(err, os.ErrPermission) {
		t.Skip("needs CAP_NET_RAW")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, to := range []string{"127.0.0.1", "::1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		rtt, err := c.Ping(ctx, netip.MustParseAddr(to), 56)
		cancel()
		if err != nil || rtt <= 0 {
			t.Errorf("%s: %v %v", to, rtt, err)
		}
	}
	if _, err := c.Ping(t.Context(), netip.MustParseAddr("10.9.9.9"), 56); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("an address without a route: %v", err)
	}
}

func TestAskAnswersWithTheInterface(t *testing.T) {
	inNamespace(t)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	a, _ := netlink.LinkByName("a")
	addr, _ := netlink.ParseAddr("fe80::1/64")
	addr.Flags = 0x2 // IFA_F_NODAD
	if err := errors.Join(netlink.AddrAdd(a, addr), netlink.LinkSetUp(a)); err != nil {
		t.Fatal(err)
	}
	b, _ := netlink.LinkByName("b")
	if err := netlink.LinkSetUp(b); err != nil {
		t.Fatal(err)
	}
	answers := make(chan Answer, 1)
	c, err := Open(func(a Answer) {
		select {
		case answers <- a:
		default:
		}
	})
	if err != nil {
		t.Skipf("needs CAP_NET_RAW: %v", err)
	}
	defer c.Close()
	to := netip.MustParseAddr("fe80::1")
	// Again and again: a new address may not be in use for a moment.
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for deadline := time.After(10 * time.Second); ; {
		if err := c.Ask(a.Attrs().Index, to); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-answers:
			if got.From != to || got.At.IsZero() {
				t.Errorf("%+v", got)
			}
			return
		case <-again.C:
		case <-deadline:
			t.Fatal("no answer from our own address")
		}
	}
}
