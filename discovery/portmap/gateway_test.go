package portmap

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// A gateway maps ports as the two RFCs say, or as a test wants it.
type gateway struct {
	t    *testing.T
	conn *net.UDPConn

	mu       sync.Mutex
	pcp, pmp bool // what it speaks
	hints    bool // without PCP: it says so, instead of nothing
	refuse   byte // the result of all requests
	forged   bool // its answers have another nonce
	granted  uint32
	outside  netip.Addr
	started  time.Time
	mapped   map[uint16]entry
	asked    int // MAP requests
	lost     int // requests still to be ignored
}

type entry struct {
	nonce    nonce
	external uint16
}

func newGateway(t *testing.T) *gateway {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{t: t, conn: conn, granted: 7200, outside: netip.MustParseAddr("203.0.113.5"), started: time.Now().Add(-time.Hour), mapped: map[uint16]entry{}}
	var serving sync.WaitGroup
	serving.Go(g.serve)
	t.Cleanup(func() { _ = conn.Close(); serving.Wait() })
	return g
}

func (g *gateway) client() *Client {
	c := New(Config{Gateway: netip.MustParseAddr("127.0.0.1"), Local: netip.MustParseAddr("127.0.0.1"), Secret: [32]byte{7}})
	c.port = g.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	return c
}

// is runs f under the lock.
func (g *gateway) is(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

func (g *gateway) serve() {
	buf := make([]byte, 2048)
	for {
		n, from, err := g.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		g.mu.Lock()
		answer := g.answer(slices.Clone(buf[:n]), from)
		g.mu.Unlock()
		if answer != nil {
			_, _ = g.conn.WriteToUDPAddrPort(answer, from)
		}
	}
}

func (g *gateway) answer(b []byte, from netip.AddrPort) []byte {
	epoch := uint32(time.Since(g.started) / time.Second)
	if g.lost > 0 {
		g.lost--
		return nil
	}
	if b[0] == versionPCP && g.pcp {
		r := pcpResponse{announce: b[1] == opAnnounce, result: g.refuse, epoch: epoch}
		if len(b) < pcpHeader || netip.AddrFrom16([16]byte(b[8:24])).Unmap() != from.Addr() {
			r.result = 12
			return r.encode()
		}
		if r.announce {
			return r.encode()
		}
		g.asked++
		r.nonce, r.port, r.lifetime = nonce(b[24:36]), binary.BigEndian.Uint16(b[40:]), g.granted
		wanted := binary.BigEndian.Uint16(b[42:])
		if old, ok := g.mapped[r.port]; ok && old.nonce != r.nonce {
			r.result = 2 // RFC 6887, section 11.3
		}
		r.external = netip.AddrPortFrom(g.outside, g.give(r.port, wanted, binary.BigEndian.Uint32(b[4:]), r.nonce, r.result))
		if g.forged {
			r.nonce[0]++
		}
		return r.encode()
	}
	if b[0] == versionPCP && g.pmp && g.hints {
		return pmpResponse{result: 1, epoch: epoch}.encode()
	}
	if b[0] != versionPMP || !g.pmp {
		return nil
	}
	r := pmpResponse{op: b[1], result: uint16(g.refuse), epoch: epoch}
	if r.op == opAddress {
		r.address = g.outside
		return r.encode()
	}
	g.asked++
	r.port, r.lifetime = binary.BigEndian.Uint16(b[4:]), g.granted
	r.external = g.give(r.port, binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint32(b[8:]), nonce{}, g.refuse)
	return r.encode()
}

// give maps, renews or releases, and gives the outside port.
func (g *gateway) give(port, wanted uint16, seconds uint32, n nonce, result byte) uint16 {
	switch {
	case result != 0:
		return 0
	case seconds == 0:
		delete(g.mapped, port)
		return 0
	case wanted == 0:
		wanted = 40000
	}
	g.mapped[port] = entry{n, wanted}
	return wanted
}

func (r pcpResponse) encode() []byte {
	op := byte(response | opMap)
	if r.announce {
		op = response | opAnnounce
	}
	b := []byte{versionPCP, op, 0, r.result}
	b = binary.BigEndian.AppendUint32(b, r.lifetime)
	b = binary.BigEndian.AppendUint32(b, r.epoch)
	b = append(b, make([]byte, 12)...)
	if r.announce {
		return b
	}
	b = append(b, r.nonce[:]...)
	b = append(b, protocolUDP, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, r.port)
	b = binary.BigEndian.AppendUint16(b, r.external.Port())
	return append(b, mapped(r.external.Addr())...)
}

func (r pmpResponse) encode() []byte {
	b := []byte{versionPMP, response | r.op}
	b = binary.BigEndian.AppendUint16(b, r.result)
	b = binary.BigEndian.AppendUint32(b, r.epoch)
	switch {
	case r.op == opAddress && r.address.IsValid():
		b = append(b, r.address.AsSlice()...)
	case r.op == opMap && r.port != 0:
		b = binary.BigEndian.AppendUint16(b, r.port)
		b = binary.BigEndian.AppendUint16(b, r.external)
		b = binary.BigEndian.AppendUint32(b, r.lifetime)
	}
	return b
}
