package fib

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/kernel"
	"guywire/mesh/reconcile"
)

// BenchmarkFailover10kPrefixes is the loss of one of 8 links with 10 000
// prefixes behind it: from the desired state that is without it, through the
// reconciler and the real kernel, to the report that it is done. Beside it, in
// the same run, the same prefixes are moved route by route.
//
//	shared    every group has another leg: one message
//	backups   half of the groups had that leg only, and get a backup
//	IPv6      as backups, with half of the prefixes IPv6: to replace their group costs the kernel time per route
//	compat    as backups, with the kernel's default nexthop_compat_mode: then that tells every route
//	classic   as shared, on a kernel without next-hop objects: every route is written again
func BenchmarkFailover10kPrefixes(b *testing.B) {
	for _, name := range []string{"shared", "backups", "IPv6", "compat", "classic"} {
		b.Run(name, func(b *testing.B) {
			enterNS(b)
			mode := map[bool]string{true: "1", false: "0"}[name == "compat"]
			if err := os.WriteFile("/proc/sys/net/ipv4/nexthop_compat_mode", []byte(mode), 0); err != nil {
				b.Fatal(err)
			}
			f := open(b)
			if name == "classic" {
				f.legacy = newLegacy()
			}
			have, cut := behindOneLink(name != "shared" && name != "classic", name == "IPv6")
			for _, t := range have.Tunnels {
				tun(b, t.Name)
			}
			rest := kernel.NewFake(kernel.State{Tunnels: have.Tunnels})
			counted := &counter{FIB: f}
			done := make(chan reconcile.Report, 100)
			r := reconcile.New(reconcile.Backends{rest, counted, rest, rest}, reconcile.Options{Report: func(rep reconcile.Report) { done <- rep }})
			ctx, cancel := context.WithCancel(b.Context())
			ended := make(chan error, 1)
			go func() { ended <- r.Run(ctx) }()
			defer func() {
				cancel()
				<-ended
			}()
			revision := uint64(0)
			set := func(s kernel.State) time.Duration {
				revision++
				s.Revision = revision
				start := time.Now()
				r.Set(s)
				for rep := range done {
					if rep.Done && rep.Safe && rep.Revision == revision {
						break
					}
				}
				return time.Since(start)
			}
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				set(have)
				before := counted.ops.Load()
				b.StartTimer()
				took = append(took, set(cut))
				b.ReportMetric(float64(counted.ops.Load()-before), "operations")
			}
			slices.Sort(took)
			median := took[len(took)/2]
			b.ReportMetric(float64(median.Microseconds())/1000, "ms-median")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
			if name == "classic" {
				return // it is route by route itself
			}
			// The best of three, so that a busy machine does not flatter us.
			each := time.Duration(math.MaxInt64)
			for i := range 3 {
				start := time.Now()
				for _, r := range have.Routes {
					r.NextHop = cut.NextHops[i].ID // a single next hop that is alive
					do(b, f, kernel.PutRoute{Route: r})
				}
				each = min(each, time.Since(start))
			}
			b.ReportMetric(float64(each.Microseconds())/1000, "ms-route-by-route")
			b.ReportMetric(float64(each)/float64(median), "times-faster")
		})
	}
}

// A counter counts the operations that a FIB does.
type counter struct {
	*FIB
	ops atomic.Int64
}

func (c *counter) Do(ctx context.Context, op kernel.Op) error {
	c.ops.Add(1)
	return c.FIB.Do(ctx, op)
}

// behindOneLink gives a state in which 10 000 prefixes use the last of 8
// links, and the same without it, its tunnel staying.
func behindOneLink(backups, ipv6 bool) (have, cut kernel.State) {
	const links = 8
	have.Complete = true
	var groups []uint32
	for i := range uint32(links) {
		device := fmt.Sprintf("gw-%d", i)
		have.Tunnels = append(have.Tunnels, kernel.Tunnel{Name: device})
		have.NextHops = append(have.NextHops, kernel.NextHop{ID: hopA + i, Device: device})
	}
	const dying = hopA + links - 1
	cut = have
	cut.NextHops = slices.Clone(have.NextHops[:links-1])
	for i := range uint32(links - 1) {
		other := []kernel.Member{{ID: hopA + i, Weight: 1}}
		both := append(slices.Clone(other), kernel.Member{ID: dying, Weight: 1})
		have.NextHops = append(have.NextHops, kernel.NextHop{ID: group + 2*i, Members: both})
		cut.NextHops = append(cut.NextHops, kernel.NextHop{ID: group + 2*i, Members: other})
		groups = append(groups, group+2*i)
		if backups {
			have.NextHops = append(have.NextHops, kernel.NextHop{ID: group + 2*i + 1, Members: both[1:]})
			cut.NextHops = append(cut.NextHops, kernel.NextHop{ID: group + 2*i + 1, Members: other})
			groups = append(groups, group+2*i+1)
		}
	}
	for i := range 10_000 {
		r := route(i)
		r.NextHop = groups[i%len(groups)]
		if ipv6 && i%2 == 0 {
			r.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, byte(i >> 8), byte(i)}), 48)
		}
		have.Routes = append(have.Routes, r)
	}
	have.Sort()
	cut.Routes = have.Routes
	return have, cut
}

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
