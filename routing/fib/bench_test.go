package fib

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"guywire/mesh"
	"guywire/mesh/kernel"
)

// BenchmarkGroupReplace changes one group under many routes: the time must
// not depend on how many there are. Own routes by the alternative,
// BenchmarkRoutes, are what it saves.
func BenchmarkGroupReplace(b *testing.B) {
	for _, routes := range []int{1000, 10_000} {
		b.Run(fmt.Sprint(routes), func(b *testing.B) {
			f := manyRoutes(b, routes)
			one := kernel.PutNextHop{NextHop: kernel.NextHop{ID: group, Members: []kernel.Member{{ID: hopA, Weight: 1}}}}
			two := kernel.PutNextHop{NextHop: kernel.NextHop{ID: group, Members: []kernel.Member{{ID: hopA, Weight: 1}, {ID: hopB, Weight: 1}}}}
			for b.Loop() {
				do(b, f, one)
				do(b, f, two)
			}
		})
	}
}

// BenchmarkRoutes replaces routes one by one.
func BenchmarkRoutes(b *testing.B) {
	f := manyRoutes(b, 0)
	i := 0
	for b.Loop() {
		do(b, f, kernel.PutRoute{Route: route(i % 10_000)})
		i++
	}
}

// BenchmarkObserve reads 10 000 routes back.
func BenchmarkObserve(b *testing.B) {
	f := manyRoutes(b, 10_000)
	for b.Loop() {
		observe(b, f)
	}
}

func route(i int) kernel.Route {
	return kernel.Route{
		Table: mesh.RouteTable, NextHop: group,
		Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i)}), 24),
	}
}

func manyRoutes(b *testing.B, n int) *FIB {
	b.Helper()
	enterNS(b)
	// Without it the kernel tells every route of a group that changes.
	if err := os.WriteFile("/proc/sys/net/ipv4/nexthop_compat_mode", []byte("0"), 0); err != nil {
		b.Fatal(err)
	}
	tun(b, "gw-a")
	tun(b, "gw-b")
	f := open(b)
	for _, n := range twoLegs().NextHops {
		do(b, f, kernel.PutNextHop{NextHop: n})
	}
	for i := range n {
		do(b, f, kernel.PutRoute{Route: route(i)})
	}
	return f
}

func do(b *testing.B, f *FIB, op kernel.Op) {
	b.Helper()
	if err := f.Do(b.Context(), op); err != nil {
		b.Fatal(err)
	}
}
