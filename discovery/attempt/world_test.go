package attempt

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/discovery"
	"guywire/discovery/nattest"
	"guywire/mesh"
)

// A world is two ends with what lies before them, two STUN servers, and the
// signalling between them.
type world struct {
	t       *testing.T
	now     time.Time
	rand    *rand.Rand
	loss    float64
	oneWay  time.Duration // of packets, and half of that more by chance
	signal  time.Duration // of offers, one way
	skew    time.Duration // between the ends' idea of the moment
	ends    [2]*end
	queue   []happening
	servers []netip.AddrPort
}

type end struct {
	host    netip.AddrPort
	box     *nattest.Box // nil: none
	config  Config
	attempt *Attempt // nil: not begun
	timer   time.Time
	verdict *Verdict
	ended   time.Time
	sent    map[netip.Addr]int // packets of checks, by target
	times   []time.Time        // of these
	sockets int                // at ports from host's on
	asked   int
}

type happening struct {
	at time.Time
	do func()
}

var begin = time.Unix(2_000_000_000, 0).UTC()

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

type site func(public netip.Addr) *nattest.Box

func box(change func(*nattest.Box)) site {
	return func(public netip.Addr) *nattest.Box {
		b := nattest.New(public)
		change(b)
		return b
	}
}

var sites = map[string]site{
	"public":    func(netip.Addr) *nattest.Box { return nil },
	"firewall":  box(func(b *nattest.Box) { b.Firewall = true }),
	"easy":      box(func(*nattest.Box) {}),
	"changed":   box(func(b *nattest.Box) { b.Keep = false }),
	"address":   box(func(b *nattest.Box) { b.Filter = nattest.ByAddress }),
	"cone":      box(func(b *nattest.Box) { b.Filter = nattest.None }),
	"symmetric": box(func(b *nattest.Box) { b.Symmetric = true }),
}

var kinds = map[string]discovery.NAT{
	"public": discovery.NATNone, "firewall": discovery.NATNone, "easy": discovery.NATEasy, "changed": discovery.NATEasyPortChanged,
	"address": discovery.NATEasy, "cone": discovery.NATEasy, "symmetric": discovery.NATSymmetric,
}

func newWorld(t *testing.T, seed uint64, a, b string) *world {
	w := &world{
		t: t, now: begin, rand: rand.New(rand.NewPCG(seed, 5)), oneWay: 20 * time.Millisecond, signal: 30 * time.Millisecond,
		servers: []netip.AddrPort{ap("198.51.100.1:8686"), ap("198.51.100.2:8686")},
	}
	for i, kind := range []string{a, b} {
		public := netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + i)})
		e := &end{host: netip.AddrPortFrom(public, 51800), box: sites[kind](public), sent: map[netip.Addr]int{}, sockets: 1}
		if e.box != nil && !e.box.Firewall {
			e.host = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 2}), 51800)
		}
		e.config = Config{
			Offer: discovery.Offer{
				Mesh: mesh.MeshID{1}, From: mesh.NodeID{byte(i + 1)}, To: mesh.NodeID{byte(2 - i)}, FromUplink: "wan", ToUplink: "wan",
				Attempt: discovery.AttemptID{9}, NAT: kinds[kind], NAT6: discovery.NATAbsent, Epoch: 1, Key: mesh.WireGuardKey{byte(i + 1)},
				Credentials: discovery.Credentials{Ufrag: strings.Repeat(string(rune('a'+i)), 4), Password: strings.Repeat("p", 22)},
				Expires:     begin.Add(time.Minute),
			},
			Own:     []discovery.Candidate{{Kind: discovery.CandidateHost, Addr: e.host}},
			Servers: w.servers, PathRTT: 2 * w.signal, Seed: [32]byte{byte(seed), byte(i)}, Budget: &discovery.Budget{},
		}
		w.ends[i] = e
	}
	return w
}

func (w *world) after(d time.Duration, do func()) {
	w.queue = append(w.queue, happening{w.now.Add(d), do})
}

// run begins the initiator's attempt and moves time on until both ends are done.
func (w *world) run() {
	w.ends[0].attempt = New(w.now, w.ends[0].config)
	w.act(0, w.ends[0].attempt.Tick(w.now))
	for steps := 0; ; steps++ {
		if steps > 20_000 {
			w.t.Fatal("the attempt does not end")
		}
		var next time.Time
		for _, e := range w.ends {
			if e.attempt != nil && e.verdict == nil && (next.IsZero() || e.timer.Before(next)) {
				next = e.timer
			}
		}
		i := -1
		for j, h := range w.queue {
			if next.IsZero() || h.at.Before(next) {
				next, i = h.at, j
			}
		}
		if next.IsZero() {
			return
		}
		if next.After(w.now) {
			w.now = next
		}
		if i >= 0 {
			do := w.queue[i].do
			w.queue = slices.Delete(w.queue, i, i+1)
			do()
			continue
		}
		for i, e := range w.ends {
			if e.attempt != nil && e.verdict == nil && !e.timer.After(w.now) {
				w.act(i, e.attempt.Tick(w.now))
			}
		}
	}
}

func (w *world) delay() time.Duration {
	return w.oneWay + time.Duration(w.rand.Int64N(int64(w.oneWay)/2+1))
}

// leave gives the source that a packet has outside.
func (e *end) leave(socket int, dst netip.AddrPort) netip.AddrPort {
	e.sockets = max(e.sockets, socket+1)
	host := netip.AddrPortFrom(e.host.Addr(), e.host.Port()+uint16(socket))
	if e.box == nil || dst.Addr().IsPrivate() {
		return host
	}
	return e.box.Out(host, dst)
}

// arrive tells which end a packet on the wire reaches, and there which socket, if any.
func (w *world) arrive(from, to netip.AddrPort) (end, socket int, ok bool) {
	for i, e := range w.ends {
		inside, ok := to, true
		if e.box != nil {
			inside, ok = e.box.In(from, to)
		}
		if s := int(inside.Port()) - int(e.host.Port()); ok && inside.Addr() == e.host.Addr() && s >= 0 && s < e.sockets {
			return i, s, true
		}
	}
	return 0, 0, false
}

func (w *world) act(i int, r Ready) {
	e := w.ends[i]
	for _, q := range r.Ask {
		e.asked++
		src := e.leave(0, q.Server)
		if w.rand.Float64() >= w.loss {
			w.after(2*w.delay(), func() {
				if e.verdict == nil {
					w.act(i, e.attempt.Received(w.now, discovery.CheckPacket{Kind: discovery.ServerResponse, Peer: q.Server, Tx: q.Tx, Mapped: src}))
				}
			})
		}
	}
	for _, p := range r.Send {
		e.sent[p.Peer.Addr()]++
		e.times = append(e.times, w.now)
		src := e.leave(p.Socket, p.Peer)
		if p.TTL > 0 || w.rand.Float64() < w.loss {
			continue
		}
		w.after(w.delay(), func() {
			if j, socket, ok := w.arrive(src, p.Peer); ok && w.ends[j].attempt != nil && w.ends[j].verdict == nil {
				p.Peer, p.Socket = src, socket
				w.act(j, w.ends[j].attempt.Received(w.now, p))
			}
		})
	}
	if r.Offer != nil {
		w.carry(i, *r.Offer)
	}
	if r.Verdict != nil {
		e.verdict, e.ended = r.Verdict, w.now
	} else if !r.Deadline.After(w.now) && e.verdict == nil {
		w.t.Fatalf("end %d: a deadline %s ago", i, w.now.Sub(r.Deadline))
	}
	e.timer = r.Deadline
}

// carry brings an offer or its answer to the other end.
func (w *world) carry(i int, o discovery.Offer) {
	other := w.ends[1-i]
	w.after(w.signal+w.skew, func() {
		switch {
		case other.attempt == nil:
			other.config.Theirs = &o
			other.attempt = New(w.now, other.config)
			w.act(1-i, other.attempt.Tick(w.now))
		case other.verdict == nil:
			w.act(1-i, other.attempt.Answered(w.now, o))
		}
	})
}

// agree verifies by the boxes themselves that what both ends proved is one path
// that carries packets both ways.
func (w *world) agree() string {
	for i, e := range w.ends {
		if e.verdict == nil {
			return "no verdict"
		}
		if e.verdict.Err != nil {
			return e.verdict.Err.Error()
		}
		to := e.verdict.Proof.Remote
		src := e.leave(e.verdict.Proof.Socket, to)
		other := w.ends[1-i].verdict
		if j, socket, ok := w.arrive(src, to); !ok || j != 1-i || other != nil && other.Err == nil && socket != other.Proof.Socket {
			return "packets to " + to.String() + " do not arrive"
		}
		if other != nil && other.Err == nil && other.Proof.Remote != src {
			return "it sends from " + src.String() + ", the other end believes in " + other.Proof.Remote.String()
		}
	}
	if w.ends[0].verdict.First == w.ends[1].verdict.First {
		return "both or none begin the handshake"
	}
	return ""
}
