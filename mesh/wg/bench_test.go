package wg

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/kernel"
)

// BenchmarkThroughput is one TCP stream through one tunnel over a veth pair,
// directly and over a carrier, and the same stream over the bare veth pair.
func BenchmarkThroughput(b *testing.B) {
	for _, path := range []string{"userspace", "kernel", "carrier", "cable"} {
		b.Run(path, func(b *testing.B) {
			mode := Userspace
			if path == "kernel" {
				mode = Kernel
			}
			var x, y *site
			if path == "carrier" {
				x, y, _ = carried(b, mode)
			} else {
				x, y = pair(b, mode)
			}
			connected(x, y)
			from, to := x.overlayAddr(), y.overlayAddr()
			if path == "cable" {
				from, to = "198.18.0.1", "198.18.0.2"
			}
			out, in := stream(x, y, from, to)
			defer in.Close()
			const chunk = 1 << 20
			buf := make([]byte, chunk)
			b.SetBytes(chunk)
			go func() {
				defer out.Close()
				for {
					if _, err := out.Write(buf); err != nil {
						return
					}
				}
			}()
			sink := make([]byte, chunk)
			for range 4 { // past slow start
				if _, err := io.ReadFull(in, sink); err != nil {
					b.Fatal(err)
				}
			}
			begin := time.Now()
			n := 0
			for b.Loop() {
				if _, err := io.ReadFull(in, sink); err != nil {
					b.Fatal(err)
				}
				n++
			}
			b.ReportMetric(float64(n)*chunk*8/1e6/time.Since(begin).Seconds(), "Mbit/s")
		})
	}
}

// stream opens a TCP connection from a to b.
func stream(a, b *site, addrA, addrB string) (out, in net.Conn) {
	a.t.Helper()
	var ln net.Listener
	b.do(func() (err error) {
		ln, err = net.Listen("tcp", net.JoinHostPort(addrB, "7003"))
		return err
	})
	defer ln.Close()
	local, err := net.ResolveTCPAddr("tcp", net.JoinHostPort(addrA, "0"))
	must(a.t, err)
	remote := ln.Addr().(*net.TCPAddr)
	a.do(func() (err error) {
		out, err = net.DialTCP("tcp4", local, remote)
		return err
	})
	in, err = ln.Accept()
	must(a.t, err)
	return out, in
}

// BenchmarkMemory is the resident memory of a data plane with idle devices,
// and with traffic through all of them.
func BenchmarkMemory(b *testing.B) {
	for _, n := range []int{1, 16, 64} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			x, y := newSite(b, Userspace, 8), newSite(b, Userspace, 16)
			cable(x, y, "up0", "198.18.0.1/24", "198.18.0.2/24")
			one := func(i int, s, peer *site, to string) kernel.Tunnel {
				t := s.tunnelTo(peer, to)
				t.Name = fmt.Sprintf("gw-%d", i)
				t.ListenPort += uint16(i * 2)
				t.Endpoint = netip.AddrPortFrom(t.Endpoint.Addr(), t.Endpoint.Port()+uint16(i*2))
				return t
			}
			for i := range n {
				x.create(one(i, x, y, "198.18.0.2"))
				y.create(one(i, y, x, "198.18.0.1"))
			}
			idle := x.resident()
			var chunk [1 << 20]byte
			for b.Loop() {
				for i := range n {
					x.addr("lo", "10.0.0.8/32")
					y.addr("lo", "10.0.0.16/32")
					x.route(fmt.Sprintf("gw-%d", i), "10.0.0.16/32", 254)
					y.route(fmt.Sprintf("gw-%d", i), "10.0.0.8/32", 254)
					out, in := stream(x, y, "10.0.0.8", "10.0.0.16")
					go func() {
						for range 16 {
							out.Write(chunk[:])
						}
						out.Close()
					}()
					if _, err := io.Copy(io.Discard, in); err != nil {
						b.Fatal(err)
					}
					in.Close()
				}
			}
			b.ReportMetric(float64(idle)/1024, "idle-MB")
			b.ReportMetric(float64(x.resident())/1024, "sender-MB")
			b.ReportMetric(float64(y.resident())/1024, "receiver-MB")
			// Shutdown is part of the price: it must not hang with many devices.
			must(b, x.dataplane().Shutdown(context.Background(), true))
		})
	}
}

// BenchmarkTunnels makes as many tunnels on one node, by the kernel if it can.
// It reports the time of each, and what they take of memory: of this machine's,
// which must be quiet, or of the data plane's.
func BenchmarkTunnels(b *testing.B) {
	for _, n := range []int{8, 64, 256} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			x, y := newSite(b, Auto, 8), newSite(b, Auto, 16)
			cable(x, y, "up0", "198.18.0.1/24", "198.18.0.2/24")
			one := func(i int) kernel.Tunnel {
				t := x.tunnelTo(y, "198.18.0.2")
				t.Name, t.Alias, t.ListenPort = fmt.Sprintf("gw-%d", i), fmt.Sprintf("guywire test %d", i), uint16(20000+i)
				t.Peer = mesh.WireGuardKey{0: byte(i), 1: byte(i >> 8), 31: 0x40}
				return t
			}
			maker := x.call(ask{Call: "observe"}).Maker
			taken := func() int {
				if maker == Userspace {
					return x.resident()
				}
				return -memory(b, "/proc/meminfo", "MemAvailable")
			}
			x.create(one(0)) // with the first one come modules and processes
			var grown, rounds int
			for b.Loop() {
				before := taken()
				for i := range n {
					x.create(one(i + 1))
				}
				grown += taken() - before
				rounds++
				b.StopTimer()
				for i := range n {
					x.call(ask{Call: "delete", Tunnel: kernel.Tunnel{Name: one(i + 1).Name}})
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/1e3/float64(n*rounds), "ms/tunnel")
			b.ReportMetric(float64(grown)/float64(n*rounds), "kB/tunnel")
		})
	}
}

// memory gives a figure of a file like /proc/meminfo, in KiB.
func memory(t testing.TB, file, name string) int {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			must(t, err)
			return kb
		}
	}
	t.Fatalf("no %s in %s", name, file)
	return 0
}

// resident gives the resident memory of the site's data plane in KiB.
func (s *site) resident() int {
	s.t.Helper()
	return memory(s.t, fmt.Sprintf("/proc/%d/status", s.dataplanePID()), "VmRSS")
}
