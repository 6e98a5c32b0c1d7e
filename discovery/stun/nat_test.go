package stun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"guywire/discovery"
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

// within runs f on a thread inside ns; sockets that it opens stay there.
func within(t *testing.T, ns netns.NsHandle, f func() error) {
	t.Helper()
	ch := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(ns)
		if err == nil {
			err = f()
		}
		ch <- err
	}()
	if err := <-ch; err != nil {
		t.Fatal(err)
	}
}

// connect joins two namespaces by a veth pair, with one address at each end.
func connect(t *testing.T, a netns.NsHandle, nameA, addrA string, b netns.NsHandle, nameB, addrB string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nameA
	ha := handle(t, a)
	if err := ha.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: nameB, PeerNamespace: netlink.NsFd(b)}); err != nil {
		t.Fatal(err)
	}
	setUp(t, ha, nameA, addrA)
	setUp(t, handle(t, b), nameB, addrB)
}

func handle(t *testing.T, ns netns.NsHandle) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func setUp(t *testing.T, h *netlink.Handle, name string, addrs ...string) {
	t.Helper()
	link, err := h.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err == nil {
			err = h.AddrAdd(link, addr)
		}
		if err != nil {
			t.Fatal(a, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

func route(t *testing.T, ns netns.NsHandle, via string) {
	t.Helper()
	if err := handle(t, ns).RouteAdd(&netlink.Route{Gw: net.ParseIP(via)}); err != nil {
		t.Fatal("default route:", err)
	}
}

func forward(t *testing.T, ns netns.NsHandle) {
	t.Helper()
	within(t, ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
}

// masquerade makes ns a NAT box towards its interface wan. It drops what is
// new from outside, as home routers do.
func masquerade(t *testing.T, ns netns.NsHandle, symmetric bool) {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
	chain := c.AddChain(&nftables.Chain{Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte("wan"), make([]byte, 13)...)},
		&expr.Masq{FullyRandom: symmetric},
	}})
	drop := nftables.ChainPolicyDrop
	c.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	if err := c.Flush(); err != nil {
		t.Skip("this kernel cannot make a NAT box with nftables: ", err)
	}
}

// internet is two sites, each behind a box of its kind, and two STUN servers:
//
//	host ─ box ─┐              ┌─ box ─ host
//	            ├─ the core ───┤
//	        STUN 198.18.0.1, 198.18.0.2
type internet struct {
	hosts   [2]netns.NsHandle
	local   [2][]netip.Addr
	servers []netip.AddrPort
}

func build(t *testing.T, kinds [2]string) internet {
	t.Helper()
	core := namespace(t)
	forward(t, core)
	setUp(t, handle(t, core), "lo", "198.18.0.1/32", "198.18.0.2/32")
	var in internet
	for i, kind := range kinds {
		wan, gateway := fmt.Sprintf("203.0.113.%d", 4*i+2), fmt.Sprintf("203.0.113.%d", 4*i+1)
		box := namespace(t)
		connect(t, core, fmt.Sprintf("site%d", i), gateway+"/30", box, "wan", wan+"/30")
		route(t, box, gateway)
		in.hosts[i], in.local[i] = box, []netip.Addr{netip.MustParseAddr(wan)}
		if kind == "public" {
			continue
		}
		host, lan := namespace(t), fmt.Sprintf("10.%d.0.", i+1)
		connect(t, box, "lan", lan+"1/24", host, "eth0", lan+"2/24")
		route(t, host, lan+"1")
		forward(t, box)
		masquerade(t, box, kind == "symmetric")
		in.hosts[i], in.local[i] = host, []netip.Addr{netip.MustParseAddr(lan + "2")}
	}
	in.servers = []netip.AddrPort{netip.MustParseAddrPort("198.18.0.1:8686"), netip.MustParseAddrPort("198.18.0.2:8686")}
	var server *Server
	within(t, core, func() (err error) { server, err = Listen(in.servers, testKeys); return err })
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return in
}

// Real sockets through real NATs: the mapping is told apart, and pairs connect
// exactly where their NATs permit it.
func TestThroughNATs(t *testing.T) {
	nats := map[string]discovery.NAT{"public": discovery.NATNone, "easy": discovery.NATEasy, "symmetric": discovery.NATSymmetric}
	for _, c := range []struct {
		kinds [2]string
		want  bool
	}{
		{[2]string{"public", "public"}, true},
		{[2]string{"easy", "public"}, true},
		{[2]string{"public", "symmetric"}, true},
		{[2]string{"easy", "easy"}, true},
		{[2]string{"symmetric", "easy"}, false},
	} {
		t.Run(c.kinds[0]+"–"+c.kinds[1], func(t *testing.T) {
			in := build(t, c.kinds)
			var sockets [2]*Socket
			var cands [2][]discovery.Candidate
			for i, ns := range in.hosts {
				within(t, ns, func() (err error) {
					sockets[i], err = Open(OpenConfig{Mark: 0x8601, First: 51800, Last: 51899, Key: testKey})
					return err
				})
				defer sockets[i].Close()
				seen := gather(sockets[i], in.servers)
				if nat := discovery.Classify(in.local[i], sockets[i].Port(), in.servers, seen); nat != nats[c.kinds[i]] {
					t.Errorf("%s NAT is called %s: %v", c.kinds[i], nat, seen)
				}
				cands[i] = []discovery.Candidate{{Kind: discovery.CandidateHost, Addr: netip.AddrPortFrom(in.local[i][0], sockets[i].Port())}}
				for _, r := range seen {
					cands[i] = append(cands[i], discovery.Candidate{Kind: discovery.CandidateReflexive, Addr: r.Mapped})
				}
			}
			start := time.Now()
			var proofs [2]discovery.Proof
			var errs [2]error
			var wg sync.WaitGroup
			for i := range sockets {
				keys := leftKeys
				if i == 1 {
					keys = rightKeys
				}
				wg.Go(func() {
					proofs[i], errs[i] = check(t.Context(), sockets[i], discovery.CheckPlan{
						Controlling: i == 0, Remote: cands[1-i], Seed: [32]byte{byte(i)},
						Start: start, Deadline: start.Add(discovery.CheckTime),
					}, keys)
					_ = sockets[i].Close()
				})
			}
			wg.Wait()
			if !c.want {
				if !errors.Is(errs[0], discovery.ErrNoPath) || !errors.Is(errs[1], discovery.ErrNoPath) {
					t.Errorf("connected although it cannot: %v %v", errs[0], errs[1])
				}
				return
			}
			if err := errors.Join(errs[:]...); err != nil {
				t.Fatal(err)
			}
			for i := range proofs {
				if other := proofs[1-i].Mapped; other.IsValid() && proofs[i].Remote != other {
					t.Errorf("end %d sends to %s, the other end is seen at %s", i, proofs[i].Remote, other)
				}
				// The port is free for WireGuard, mapping and filter are open:
				// a plain datagram passes.
				within(t, in.hosts[i], func() (err error) {
					sockets[i], err = Open(OpenConfig{First: sockets[i].Port(), Last: sockets[i].Port(), Key: testKey})
					return err
				})
				defer sockets[i].Close()
			}
			hello := discovery.CheckPacket{Kind: discovery.CheckRequest, Tx: discovery.Tx{7}}
			for i, keys := range []discovery.Keys{leftKeys, rightKeys} {
				sockets[i].Expect(keys)
			}
			for i, keys := range []discovery.Keys{leftKeys, rightKeys} {
				hello.Peer = proofs[i].Remote
				sockets[i].Send(hello, keys)
			}
			for i := range proofs {
				deadline := time.After(30 * time.Second)
				for arrived := false; !arrived; {
					select {
					case a := <-sockets[i].Arrivals():
						arrived = a.Packet.Tx == hello.Tx // or a late packet of the check
					case <-deadline:
						t.Fatalf("end %d: nothing arrives after the hand-over", i)
					}
				}
			}
		})
	}
}
