package model

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"

	"guywire/mesh"
	"guywire/routing/wire"
)

const (
	maxNodes    = 24
	maxPrefixes = maxNodes + 12
)

// set is a set of small numbers: of nodes, prefixes or addresses.
type set uint64

func (s set) has(i int) bool { return s>>i&1 != 0 }
func (s set) with(i int) set { return s | 1<<i }
func (s set) less(i int) set { return s &^ (1 << i) }
func (s set) first() int     { return bits.TrailingZeros64(uint64(s)) }
func (s set) len() int       { return bits.OnesCount64(uint64(s)) }

// all gives the members in order.
func (s set) all(yield func(int) bool) {
	for ; s != 0; s &= s - 1 {
		if !yield(s.first()) {
			return
		}
	}
}

// A space is the prefixes of a world, longest first, and the addresses that
// are looked up in them. The first prefixes are the nodes' own addresses.
type space struct {
	prefixes []netip.Prefix
	keys     []wire.Destination
	index    map[netip.Prefix]int
	addrs    []netip.Addr
	matches  []set // of each address: the prefixes that hold it
	holds    []set // of each prefix: the addresses in it
}

// newSpace makes the prefixes of a world: each node's address, and some that
// nodes announce, in families that overlap.
func newSpace(rng *rand.Rand, ids []mesh.NodeID) *space {
	s := &space{index: map[netip.Prefix]int{}}
	for i, id := range ids {
		s.addrs = append(s.addrs, nodeAddr(i))
		s.prefixes = append(s.prefixes, netip.PrefixFrom(nodeAddr(i), 32))
		s.keys = append(s.keys, wire.Destination{Node: id})
	}
	var announced []netip.Prefix
	add := func(prefix, addr string, a ...any) {
		announced = append(announced, netip.MustParsePrefix(fmt.Sprintf(prefix, a...)))
		s.addrs = append(s.addrs, netip.MustParseAddr(fmt.Sprintf(addr, a...)))
	}
	for family := range 1 + rng.IntN(2) {
		add("10.%d.0.0/16", "10.%d.1.1", 100+family)
		add("10.%d.7.0/24", "10.%d.7.1", 100+family)
		if rng.IntN(2) == 0 {
			add("10.%d.7.128/25", "10.%d.7.129", 100+family)
		}
	}
	if rng.IntN(2) == 0 {
		add("10.200.0.0/24", "10.200.0.1")
	}
	if rng.IntN(3) == 0 {
		add("0.0.0.0/0", "192.0.2.1") // holds the nodes' addresses, too
	}
	slices.SortFunc(announced, func(a, b netip.Prefix) int { return b.Bits() - a.Bits() })
	for _, p := range announced {
		s.prefixes = append(s.prefixes, p)
		s.keys = append(s.keys, wire.Destination{Prefix: p})
	}
	s.matches, s.holds = make([]set, len(s.addrs)), make([]set, len(s.prefixes))
	for p, prefix := range s.prefixes {
		s.index[prefix] = p
		for a, addr := range s.addrs {
			if prefix.Contains(addr) {
				s.matches[a] = s.matches[a].with(p)
				s.holds[p] = s.holds[p].with(a)
			}
		}
	}
	return s
}

func nodeAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 86, 0, byte(i + 1)}) }
