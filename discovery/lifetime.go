package discovery

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// A Lifetime says for how long after the last packet to somebody an uplink lets
// that one's packets in: the life of a NAT's mapping or a firewall's entry, in
// whole seconds, as far as it was measured.
type Lifetime uint16

const (
	// LifetimeUnknown: it was not measured.
	LifetimeUnknown Lifetime = 0
	// LifetimeShort: less than the shortest pause that was tried.
	LifetimeShort Lifetime = 1
	// LifetimeEndless: packets come in that nobody asked for.
	LifetimeEndless Lifetime = math.MaxUint16
)

// String gives the lifetime in one word.
func (l Lifetime) String() string {
	switch l {
	case LifetimeUnknown:
		return "unknown"
	case LifetimeShort:
		return "short"
	case LifetimeEndless:
		return "endless"
	}
	return fmt.Sprintf("%ds", uint16(l))
}

const (
	// keepaliveUnknown is for uplinks that were not measured: RFC 4787 asks for
	// two minutes, and boxes of 30 s are common.
	keepaliveUnknown = 20 * time.Second
	keepaliveMargin  = 5 * time.Second
	keepaliveLeast   = 10 * time.Second
	keepaliveMost    = 50 * time.Second
)

// Keepalive is the pause between the packets that keep a path between two uplinks
// open while nothing else is sent; zero: it stays open by itself. Each end's
// packets renew what stands before it, and most boxes count the other end's too.
func Keepalive(a, b Lifetime) time.Duration {
	x, y := a.keepalive(), b.keepalive()
	if x == 0 || y == 0 {
		return max(x, y)
	}
	return min(x, y)
}

func (l Lifetime) keepalive() time.Duration {
	switch l {
	case LifetimeUnknown:
		return keepaliveUnknown
	case LifetimeEndless:
		return 0
	}
	return min(max(time.Duration(l)*time.Second-keepaliveMargin, keepaliveLeast), keepaliveMost)
}

// lifetimePauses are tried one after the other; with lifetimeThrifty of them the
// longest keepalive is known to do.
var lifetimePauses = [...]time.Duration{25 * time.Second, 55 * time.Second, 115 * time.Second}

const (
	lifetimeThrifty = 2
	// streamAfter is the pause between the two packets that open a mapping: boxes
	// give one a short life until it is in use for longer than a moment (Linux: 2 s).
	streamAfter = 3 * time.Second
)

// A LifetimeTest measures the Lifetime of one address family of an uplink (RFC 5780,
// section 4.6): a first socket exchanges packets with a STUN server and falls
// silent, and after a pause a second one asks that server for an answer to the first
// one's outside port. It opens other sockets for each pause, because an answer may
// itself renew what is measured.
//
// One goroutine owns it: Tick at first and no later than the deadline that any
// method gave last, Opened after each Fresh, Answered for each answer.
type LifetimeTest struct {
	server  netip.AddrPort
	pauses  []time.Duration
	random  *rand.ChaCha8
	phase   lifetimePhase
	until   time.Time      // of a phase of waiting
	outside netip.AddrPort // of the first socket
	opening exchange       // of the first socket
	plain   exchange       // of the second socket: does the server answer at all?
	aimed   exchange       // of the second socket, to the first
	result  Lifetime
}

type lifetimePhase uint8

const (
	lifetimeFresh   lifetimePhase = iota
	lifetimeUnasked               // is let in what nobody asked for?
	lifetimeOpening
	lifetimeOpened // and used again soon
	lifetimeConfirming
	lifetimePausing
	lifetimeAsking
	lifetimeDone
)

// A LifetimeQuery goes out by one of the two sockets.
type LifetimeQuery struct {
	Query
	Second bool // by the second socket
}

// LifetimeReady is what the owner does next: with Fresh close the sockets, open two
// others and call Opened; send the queries; call Tick at Deadline unless it is Done.
type LifetimeReady struct {
	Fresh    bool
	Ask      []LifetimeQuery
	Deadline time.Time
	Done     bool
}

// NewLifetimeTest prepares to measure with the help of a server that is known to
// answer. kind is the uplink's NAT; thrifty: no more than a keepalive takes. seed is
// secret and random.
func NewLifetimeTest(server netip.AddrPort, kind NAT, thrifty bool, seed [32]byte) *LifetimeTest {
	t := &LifetimeTest{server: server, pauses: lifetimePauses[:], random: rand.NewChaCha8(seed)}
	if thrifty {
		t.pauses = t.pauses[:lifetimeThrifty]
	}
	if kind != NATNone {
		t.phase = lifetimeOpening // nobody could know the port
	}
	return t
}

// Result is what was found, so far.
func (t *LifetimeTest) Result() Lifetime { return t.result }

// Opened says that two sockets are open, and the port of the first.
func (t *LifetimeTest) Opened(now time.Time, port uint16) LifetimeReady {
	if t.phase == lifetimeFresh {
		t.phase, t.outside = lifetimeUnasked, netip.AddrPortFrom(netip.Addr{}, port)
		t.plain.begin(now)
		t.aimed.begin(now)
	} else {
		t.phase = lifetimeOpening
		t.opening.begin(now)
	}
	return t.Tick(now)
}

// Answered takes in one verified answer that came by one of the sockets.
func (t *LifetimeTest) Answered(now time.Time, second bool, from netip.AddrPort, tx Tx, mapped netip.AddrPort) LifetimeReady {
	switch {
	case from != t.server:
	case second && t.aimed.has(tx):
		return t.end(t.result) // the server is too old to be asked for that
	case second && t.plain.has(tx):
		// Of another outside address the mapping of the first is no business.
		t.plain.done = t.phase == lifetimeUnasked || mapped.Addr() == t.outside.Addr()
	case t.aimed.has(tx) && t.phase == lifetimeUnasked:
		return t.end(LifetimeEndless)
	case t.aimed.has(tx) && t.phase == lifetimeAsking:
		t.result = Lifetime(t.pauses[0] / time.Second)
		if t.pauses = t.pauses[1:]; len(t.pauses) == 0 {
			return t.end(t.result)
		}
		return t.fresh(now)
	case t.opening.has(tx) && t.phase == lifetimeOpening:
		t.phase, t.until, t.outside = lifetimeOpened, now.Add(streamAfter), mapped
	case t.opening.has(tx) && t.phase == lifetimeConfirming:
		if mapped != t.outside {
			return t.end(t.result) // the network changes under the test
		}
		t.phase, t.until = lifetimePausing, t.opening.last.Add(t.pauses[0])
	}
	return t.Tick(now)
}

// Tick does what is due at now.
func (t *LifetimeTest) Tick(now time.Time) LifetimeReady {
	switch t.phase {
	case lifetimeDone:
		return LifetimeReady{Done: true}
	case lifetimeFresh:
		return t.fresh(now)
	case lifetimeOpened:
		if now.Before(t.until) {
			return LifetimeReady{Deadline: t.until}
		}
		t.phase = lifetimeConfirming
		t.opening.begin(now)
	case lifetimePausing:
		if now.Before(t.until) {
			return LifetimeReady{Deadline: t.until}
		}
		t.phase = lifetimeAsking
		t.plain.begin(now)
		t.aimed.begin(now)
	}
	if t.phase == lifetimeOpening && t.opening.start.IsZero() {
		return t.fresh(now)
	}
	if t.phase == lifetimeOpening || t.phase == lifetimeConfirming {
		if t.opening.over(now) {
			return t.end(t.result)
		}
		return t.ask(now, false, 0, &t.opening)
	}
	if !t.aimed.over(now) {
		plain, aimed := t.ask(now, true, 0, &t.plain), t.ask(now, true, t.outside.Port(), &t.aimed)
		return LifetimeReady{Ask: append(plain.Ask, aimed.Ask...), Deadline: earliest(plain.Deadline, aimed.Deadline)}
	}
	switch {
	case t.phase == lifetimeUnasked:
		t.phase = lifetimeOpening
		return t.fresh(now)
	case t.plain.done && t.result == LifetimeUnknown:
		t.result = LifetimeShort
	}
	return t.end(t.result)
}

// fresh asks for other sockets.
func (t *LifetimeTest) fresh(now time.Time) LifetimeReady {
	if t.phase != lifetimeFresh {
		t.phase = lifetimeOpening
	}
	t.opening, t.plain, t.aimed = exchange{}, exchange{}, exchange{}
	return LifetimeReady{Fresh: true, Deadline: now}
}

func (t *LifetimeTest) end(result Lifetime) LifetimeReady {
	t.result, t.phase = result, lifetimeDone
	return LifetimeReady{Done: true}
}

// ask sends what is due of an exchange.
func (t *LifetimeTest) ask(now time.Time, second bool, reply uint16, e *exchange) LifetimeReady {
	ready := LifetimeReady{Deadline: e.start.Add(gatherTime)}
	for !e.done && len(e.tx) < len(askSchedule) {
		if due := e.start.Add(askSchedule[len(e.tx)]); now.Before(due) {
			ready.Deadline = due
			break
		}
		var tx Tx
		_, _ = t.random.Read(tx[:]) // never fails
		e.tx, e.last = append(e.tx, tx), now
		ready.Ask = append(ready.Ask, LifetimeQuery{Query{Server: t.server, Tx: tx, Reply: reply}, second})
	}
	return ready
}

// An exchange is one question, repeated until it is answered.
type exchange struct {
	start, last time.Time // the last one is the newest repetition
	tx          []Tx
	done        bool
}

func (e *exchange) begin(now time.Time)     { *e = exchange{start: now} }
func (e *exchange) has(tx Tx) bool          { return slices.Contains(e.tx, tx) }
func (e *exchange) over(now time.Time) bool { return !now.Before(e.start.Add(gatherTime)) }
