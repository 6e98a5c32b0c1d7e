package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
)

// MaxReservations bounds the addresses that are kept for nodes to come.
const MaxReservations = 4096

// A Reservation is the pair of addresses that a node to come will get. It ends
// when a node joins with the name, or when an operator takes it back.
type Reservation struct {
	Addr4 netip.Addr `json:"addr4"`
	Addr6 netip.Addr `json:"addr6"` // ends like Addr4
}

func (s *State) reserve(c Reserve) *Refusal {
	if refused := checkNodeName(c.Name); refused != nil {
		return refused
	}
	if n, live := s.NodeByName(c.Name); live {
		return refuse(CodeNameTaken, "%s is a member already and has %s and %s; reserve for another name", n.Name, n.Addr4, n.Addr6)
	}
	pool := s.Mesh.Pool4
	if c.Addr.Is6() {
		pool = s.Mesh.Pool6
	}
	host, ok := hostOf(pool, c.Addr)
	if !ok || !s.usable(host) {
		return refuse(CodeInvalid, "%s is not an address that a node can have; name one from %s or %s", c.Addr, s.Mesh.Pool4, s.Mesh.Pool6)
	}
	r := Reservation{nth(s.Mesh.Pool4, host), nth(s.Mesh.Pool6, host)}
	reserved := maps.Clone(s.Reserved)
	if reserved == nil {
		reserved = map[string]Reservation{}
	}
	delete(reserved, c.Name)
	s.Reserved = reserved
	if s.given(r) {
		return refuse(CodeAddressTaken, "%s and %s belong to a node, to one that is gone, or are reserved; name another", r.Addr4, r.Addr6)
	}
	if len(reserved) >= MaxReservations {
		return refuse(CodeInvalid, "there are %d reservations; give one back first: meshctl unreserve NAME", MaxReservations)
	}
	reserved[c.Name] = r
	return nil
}

func (s *State) unreserve(c Unreserve) *Refusal {
	if _, known := s.Reserved[c.Name]; !known {
		return refuse(CodeNotFound, "nothing is reserved for %q; see meshctl nodes", c.Name)
	}
	s.release(c.Name)
	return nil
}

func (s *State) release(name string) {
	s.Reserved = maps.Clone(s.Reserved)
	delete(s.Reserved, name)
	if len(s.Reserved) == 0 {
		s.Reserved = nil
	}
}

// usable reports whether a node can have the host number: it is in both pools,
// and its IPv4 address does not end in .0 or .255, which old equipment takes
// for a network or a broadcast.
func (s *State) usable(host uint64) bool {
	if host == 0 || host > lastHost(s.Mesh.Pool4, s.Mesh.Pool6) {
		return false
	}
	last := nth(s.Mesh.Pool4, host).As4()[3]
	return last != 0 && last != 255
}

// given reports whether somebody has, had or shall have one of the addresses.
func (s *State) given(r Reservation) bool {
	for _, n := range s.Nodes {
		if n.Addr4 == r.Addr4 || n.Addr6 == r.Addr6 {
			return true
		}
	}
	for _, t := range s.Removed {
		if t.Addr4 == r.Addr4 || t.Addr6 == r.Addr6 {
			return true
		}
	}
	for _, x := range s.Reserved {
		if x == r {
			return true
		}
	}
	return false
}

// taken tells of each host number, from 0 up to a free one at least, whether
// somebody has, had or shall have it, in either pool.
func (s *State) taken() []bool {
	held := 2 * (len(s.Nodes) + len(s.Removed) + len(s.Reserved))
	last := min(lastHost(s.Mesh.Pool4, s.Mesh.Pool6), uint64(held+held/100+16)) // some are never given
	taken := make([]bool, last+1)
	mark := func(addrs ...netip.Addr) {
		for i, pool := range []prefix{s.Mesh.Pool4, s.Mesh.Pool6} {
			if host, ok := hostOf(pool, addrs[i]); ok && host <= last {
				taken[host] = true
			}
		}
	}
	for _, n := range s.Nodes {
		mark(n.Addr4, n.Addr6)
	}
	for _, t := range s.Removed {
		mark(t.Addr4, t.Addr6)
	}
	for _, r := range s.Reserved {
		mark(r.Addr4, r.Addr6)
	}
	return taken
}

// hostOf is the inverse of nth; false: addr is not in the pool, or beyond the
// numbers that are given.
func hostOf(pool prefix, addr netip.Addr) (uint64, bool) {
	if !addr.IsValid() || addr.Zone() != "" || !pool.Contains(addr) {
		return 0, false
	}
	if addr.Is4() {
		a, base := addr.As4(), pool.Addr().As4()
		return uint64(binary.BigEndian.Uint32(a[:]) - binary.BigEndian.Uint32(base[:])), true
	}
	a := addr.As16()
	host := binary.BigEndian.Uint64(a[8:]) - lowHalf(pool)
	return host, nth(pool, host) == addr
}

func lowHalf(pool prefix) uint64 {
	base := pool.Addr().As16()
	return binary.BigEndian.Uint64(base[8:])
}

func (s *State) checkReserved() error {
	if len(s.Reserved) > MaxReservations {
		return fmt.Errorf("it has %d reservations", len(s.Reserved))
	}
	for name, r := range s.Reserved {
		if refused := checkNodeName(name); refused != nil {
			return refused
		}
		host, ok := hostOf(s.Mesh.Pool4, r.Addr4)
		if !ok || !s.usable(host) || nth(s.Mesh.Pool6, host) != r.Addr6 {
			return fmt.Errorf("%s and %s are not addresses that can be reserved", r.Addr4, r.Addr6)
		}
		if _, live := s.NodeByName(name); live {
			return errors.New("there is a reservation for a member")
		}
	}
	return nil
}
