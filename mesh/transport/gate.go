package transport

import (
	"net"
	"net/netip"
	"slices"
	"sync"

	"guywire/mesh"
)

// A gate counts the connections of a listener and keeps them within bounds:
// those in handshake by source, those of no live member by source, members by
// identity, so that none of the three can take the room of another.
type gate struct {
	mu       sync.Mutex
	pending  map[netip.Addr][]*conn // by source, oldest first
	waiting  int                    // conns in pending
	nameless map[netip.Addr][]*conn // those of no member by source, oldest first
	unknown  int                    // conns in nameless
	members  map[mesh.NodeID]int
	live     map[*conn]struct{} // everything not closed
	closed   bool
}

// A conn is the TCP connection under a TLS one; closing it gives its place back.
type conn struct {
	net.Conn
	gate   *gate
	source netip.Addr

	// Guarded by gate.mu.
	phase phase
	id    mesh.NodeID // zero until established, and for nobody
	alpn  string
}

type phase uint8

const (
	phasePending phase = iota
	phaseAnonymous
	phaseMember
	phaseClosed
)

func (g *gate) init() {
	g.pending = map[netip.Addr][]*conn{}
	g.nameless = map[netip.Addr][]*conn{}
	g.members = map[mesh.NodeID]int{}
	g.live = map[*conn]struct{}{}
}

// begin takes in a new connection, at the price of an older silent one when
// there is no room. False: the listener is closed.
func (g *gate) begin(c *conn) bool {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return false
	}
	var victim *conn
	if own := g.pending[c.source]; len(own) >= maxPendingSource {
		victim = own[0]
	} else if g.waiting >= maxPending {
		victim = greediest(g.pending)
	}
	g.pending[c.source] = append(g.pending[c.source], c)
	g.waiting++
	g.live[c] = struct{}{}
	g.mu.Unlock()
	if victim != nil {
		victim.Close()
	}
	return true
}

// greediest is the oldest connection of the source that has most.
func greediest(sources map[netip.Addr][]*conn) *conn {
	var most []*conn
	for _, own := range sources {
		if len(own) > len(most) || len(own) == len(most) && own[0].source.Less(most[0].source) {
			most = own
		}
	}
	return most[0]
}

// establish moves c from handshake to service; a zero id is nobody. An identity
// that is no member's has the room of nobody: whoever knew the key of a retired
// CA could make any number of them. There, too, an older connection pays for the
// newest: a join takes seconds, so the oldest is idle. False: there is no room,
// or c was closed meanwhile.
func (g *gate) establish(c *conn, id mesh.NodeID, alpn string, member bool) bool {
	g.mu.Lock()
	if c.phase != phasePending || member && g.members[id] >= maxMember {
		g.mu.Unlock()
		return false
	}
	var victim *conn
	switch own := g.nameless[c.source]; {
	case member:
	case len(own) >= maxAnonymousSource:
		victim = own[0]
	case g.unknown >= maxAnonymous:
		victim = greediest(g.nameless)
	}
	g.leaveLocked(c)
	c.id, c.alpn = id, alpn
	if member {
		c.phase = phaseMember
		g.members[id]++
	} else {
		c.phase = phaseAnonymous
		g.nameless[c.source] = append(g.nameless[c.source], c)
		g.unknown++
	}
	g.mu.Unlock()
	if victim != nil {
		victim.Close()
	}
	return true
}

// without takes c out of the list of its source.
func without(sources map[netip.Addr][]*conn, c *conn) {
	own := slices.DeleteFunc(sources[c.source], func(o *conn) bool { return o == c })
	if len(own) == 0 {
		delete(sources, c.source)
	} else {
		sources[c.source] = own
	}
}

// leaveLocked takes c out of the count of its phase.
func (g *gate) leaveLocked(c *conn) {
	switch c.phase {
	case phasePending:
		without(g.pending, c)
		g.waiting--
	case phaseAnonymous:
		without(g.nameless, c)
		g.unknown--
	case phaseMember:
		if g.members[c.id]--; g.members[c.id] == 0 {
			delete(g.members, c.id)
		}
	case phaseClosed:
	}
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.gate.mu.Lock()
	c.gate.leaveLocked(c)
	c.phase = phaseClosed
	delete(c.gate.live, c)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}

func (g *gate) closeAll() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.closeIf(func(*conn) bool { return true })
}

func (g *gate) closeIf(match func(*conn) bool) {
	g.mu.Lock()
	var victims []*conn
	for c := range g.live {
		if match(c) {
			victims = append(victims, c)
		}
	}
	g.mu.Unlock()
	for _, c := range victims {
		c.Close()
	}
}

// sourceOf is what counts as one source: an IPv4 address or an IPv6 /64.
func sourceOf(addr net.Addr) netip.Addr {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	a := tcp.AddrPort().Addr().Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	prefix, err := a.Prefix(64)
	if err != nil {
		return a
	}
	return prefix.Addr()
}
