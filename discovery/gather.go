package discovery

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// MaxServers is how many STUN servers are asked at once.
const MaxServers = 8

// askSchedule is when a server is asked: RFC 8489's doubling intervals from
// 100 ms, because mesh nodes are near enough and joining should be quick.
var askSchedule = [...]time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond, 1500 * time.Millisecond}

const (
	// gatherTime is when servers that have not answered are given up.
	gatherTime = 2300 * time.Millisecond
	// gatherPatience is how long after enough answers others are waited for.
	gatherPatience = 250 * time.Millisecond
)

// A Query is one request to a STUN server.
type Query struct {
	Server netip.AddrPort
	Tx     Tx
	// Reply is the port that the answer is to go to, at the address that the server
	// sees (RESPONSE-PORT of RFC 5780, section 7.5); 0: the one that asks.
	Reply uint16
}

// A Gathering asks STUN servers how they see one socket. One goroutine owns it:
// Answered for each answer, Tick no later than the deadline that either gave last.
type Gathering struct {
	enough  int
	end     time.Time
	start   time.Time
	random  *rand.ChaCha8
	asked   []*asked
	answers []Reflexion
}

// asked is one server.
type asked struct {
	server netip.AddrPort
	sent   []time.Time
	tx     []Tx
	done   bool
}

// GatherReady is what the owner does next: send the queries, and if the
// gathering is not Done call Tick at Deadline.
type GatherReady struct {
	Ask      []Query
	Deadline time.Time
	Done     bool
}

// NewGathering prepares to ask the first MaxServers of the servers. Soon after
// enough different addresses of each family have answered it is done, at the
// latest after 2.3 s. seed is secret and random: transaction ids come from it.
func NewGathering(now time.Time, servers []netip.AddrPort, enough int, seed [32]byte) *Gathering {
	g := &Gathering{enough: enough, start: now, end: now.Add(gatherTime), random: rand.NewChaCha8(seed)}
	for _, s := range servers[:min(len(servers), MaxServers)] {
		g.asked = append(g.asked, &asked{server: s})
	}
	return g
}

// Servers gives the servers that are asked.
func (g *Gathering) Servers() []netip.AddrPort {
	list := make([]netip.AddrPort, len(g.asked))
	for i, a := range g.asked {
		list[i] = a.server
	}
	return list
}

// Answers gives what is known so far, in the order in which it came.
func (g *Gathering) Answers() []Reflexion { return g.answers }

// Answered takes in one verified answer.
func (g *Gathering) Answered(now time.Time, from netip.AddrPort, tx Tx, mapped netip.AddrPort) GatherReady {
	for _, a := range g.asked {
		if i := slices.Index(a.tx, tx); i >= 0 && a.server == from && !a.done {
			a.done = true
			g.answers = append(g.answers, Reflexion{Server: from, Mapped: mapped, RTT: now.Sub(a.sent[i])})
			if soon := now.Add(gatherPatience); g.satisfied() && soon.Before(g.end) {
				g.end = soon
			}
		}
	}
	return g.Tick(now)
}

// Unreachable says that the server cannot even be asked.
func (g *Gathering) Unreachable(server netip.AddrPort) {
	for _, a := range g.asked {
		a.done = a.done || a.server == server
	}
}

// satisfied reports whether enough servers of each family that is asked have
// answered, as far as there are so many.
func (g *Gathering) satisfied() bool {
	var there, here [2]map[netip.Addr]bool
	for i := range there {
		there[i], here[i] = map[netip.Addr]bool{}, map[netip.Addr]bool{}
	}
	family := func(a netip.AddrPort) int {
		if a.Addr().Is4() {
			return 0
		}
		return 1
	}
	for _, a := range g.asked {
		there[family(a.server)][a.server.Addr()] = true
	}
	for _, a := range g.answers {
		here[family(a.Server)][a.Server.Addr()] = true
	}
	for i := range there {
		if len(here[i]) < min(g.enough, len(there[i])) {
			return false
		}
	}
	return len(g.answers) > 0
}

// Tick does what is due at now.
func (g *Gathering) Tick(now time.Time) GatherReady {
	ready := GatherReady{Deadline: g.end}
	open := false
	for _, a := range g.asked {
		for !a.done && len(a.sent) < len(askSchedule) && !now.Before(g.start.Add(askSchedule[len(a.sent)])) {
			var tx Tx
			_, _ = g.random.Read(tx[:]) // never fails
			a.tx, a.sent = append(a.tx, tx), append(a.sent, now)
			ready.Ask = append(ready.Ask, Query{Server: a.server, Tx: tx})
		}
		if a.done {
			continue
		}
		open = true
		if len(a.sent) < len(askSchedule) {
			ready.Deadline = earliest(ready.Deadline, g.start.Add(askSchedule[len(a.sent)]))
		}
	}
	if !open || !now.Before(g.end) {
		return GatherReady{Done: true}
	}
	return ready
}
