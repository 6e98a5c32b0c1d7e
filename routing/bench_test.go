package routing

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/routing/spf"
	"guywire/routing/wire"
)

// large is the router of node 0 in a mesh of n nodes with about eight links
// and one prefix each.
func large(n int) (r *Router, ids []mesh.NodeID, lsas []wire.LSA) {
	rng := rand.New(rand.NewPCG(uint64(n), 8))
	members := map[mesh.NodeID]Member{}
	for i := range n {
		var id mesh.NodeID
		binary.BigEndian.PutUint64(id[:], rng.Uint64())
		ids = append(ids, id)
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		members[id] = Member{Addrs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200 + byte(i>>16), byte(i >> 8), byte(i)}), 32)}, Prefixes: []netip.Prefix{p}}
	}
	adj := make([]map[int]mesh.Cost, n)
	for i := range adj {
		adj[i] = map[int]mesh.Cost{}
	}
	join := func(a, b int) {
		if a != b {
			c := mesh.Cost(250 * (4 + rng.IntN(200)))
			adj[a][b], adj[b][a] = c, c
		}
	}
	for i := range n {
		join(i, (i+1)%n)
		for range 3 {
			join(i, rng.IntN(n))
		}
	}
	r = New(Config{Self: ids[0], Mesh: mesh.MeshID{1}, Epoch: 1, Sign: func([]byte) []byte { return make([]byte, 64) }})
	r.SetMembers(members)
	for i, id := range ids {
		lsa := wire.LSA{Mesh: mesh.MeshID{1}, Origin: id, Epoch: 1, Seq: 1, Fragments: 2}
		for b, c := range adj[i] {
			lsa.Adjacencies = append(lsa.Adjacencies, wire.Adjacency{Peer: ids[b], Cost: c})
		}
		lsas = append(lsas, lsa)
		for _, l := range []wire.LSA{lsa, {Mesh: lsa.Mesh, Origin: id, Fragment: 1, Epoch: 1, Seq: 2, Prefixes: members[id].Prefixes}} {
			s := wire.Sign(l, r.cfg.Sign)
			decoded, err := s.LSA()
			if err != nil {
				panic(err)
			}
			r.db.store(newStored(s, decoded))
		}
	}
	for b, c := range adj[0] {
		r.SetNeighbour(ids[b], c, false, time.Millisecond)
		nb := r.neighbours[ids[b]]
		nb.welcome, nb.complete = true, true
		r.ready(nb)
	}
	r.recompute()
	for b := range adj[0] {
		for i := range r.routes.dests {
			d := &r.routes.dests[i]
			r.lfi.Hear(ids[b], d.key, d.nearest(r.neighbours[ids[b]].tree))
		}
	}
	r.Committed(r.Step())
	return r, ids, lsas
}

// BenchmarkRecompute measures what follows a change of the database: shortest
// paths from here and from each neighbour, advice for every destination, and
// the table for the kernel. Whole: from nothing. Event: one far link changed.
// Memory: the heap that a router with all this holds.
func BenchmarkRecompute(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		before := heap()
		r, _, lsas := large(n)
		held := heap() - before
		b.Run(fmt.Sprintf("memory/n=%d", n), func(b *testing.B) {
			for b.Loop() {
				r.Table()
			}
			b.ReportMetric(float64(held)/1e6, "MB")
		})
		b.Run(fmt.Sprintf("whole/n=%d", n), func(b *testing.B) {
			for b.Loop() {
				r.self = spf.NewTree(r.db.graph, r.db.graph.Node(r.cfg.Self))
				for _, nb := range r.order {
					nb.tree = spf.NewTree(r.db.graph, r.db.graph.Node(nb.id))
				}
				r.recompute()
				r.Table()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/1000, "ms")
		})
		b.Run(fmt.Sprintf("event/n=%d", n), func(b *testing.B) {
			far := lsas[n/2]
			for i := 0; b.Loop(); i++ {
				far.Seq++
				far.Adjacencies[0].Cost += mesh.Cost(500 - 1000*(i%2))
				r.db.store(stored{lsa: far})
				r.recompute()
				r.Table()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/1000, "ms")
		})
	}
}

// heap is what is reachable now, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
