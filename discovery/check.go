package discovery

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Limits and times of a check. An address that has not answered with the
// credentials of this attempt gets at most len(checkSchedule) packets, so
// nobody can aim the mesh at a victim; one that has is a willing peer.
const (
	maxPeerReflexive = 4                      // learned addresses per attempt
	maxTriggered     = 10                     // requests to an address that has proven itself
	maxResponses     = 32                     // answers per address
	maxNominations   = 8                      // requests that nominate
	checkStagger     = 5 * time.Millisecond   // between first packets to different addresses
	triggerGap       = 20 * time.Millisecond  // least time between triggered requests
	triggerRetry     = 100 * time.Millisecond // first repeat of one; grows by half each time
	settle           = 100 * time.Millisecond // how long a better path may still prove itself
	minRTO, maxRTO   = 50 * time.Millisecond, 500 * time.Millisecond
)

// checkSchedule is when an address is asked, counted from the start: dense at
// first for the agreed moment, then long enough for ends that begin a second
// apart. A second packet soon after the first also stretches mappings that
// would otherwise die within seconds.
var checkSchedule = [...]time.Duration{
	0, 80 * time.Millisecond, 180 * time.Millisecond, 320 * time.Millisecond, 520 * time.Millisecond,
	820 * time.Millisecond, 1250 * time.Millisecond, 1850 * time.Millisecond, 2700 * time.Millisecond, 3800 * time.Millisecond,
}

// CheckTime is a good length for a check: the schedule and one long round trip.
const CheckTime = 5 * time.Second

// A Tx is a STUN transaction id.
type Tx [12]byte

// A CheckKind is the meaning of one packet of a check.
type CheckKind uint8

const (
	// CheckRequest asks the other end to answer.
	CheckRequest CheckKind = iota + 1
	// CheckNominate is a request that also says: this path it shall be.
	CheckNominate
	// CheckResponse answers either.
	CheckResponse
	// CheckDone says that the nomination was answered and the sender has let
	// go of the port; it is not answered.
	CheckDone
	// ServerResponse is no packet of a check, but a STUN server's answer.
	ServerResponse
)

// Keys are what the packets of one attempt are verified and sent with at one end.
type Keys struct {
	Controlling bool
	Local       Credentials // admit the other end to us
	Peer        Credentials // and us to it; zero: not known yet
}

// An Arrival is one verified packet.
type Arrival struct {
	At     time.Time
	Packet CheckPacket
}

// A CheckPacket is one authenticated packet of a check, in or out.
type CheckPacket struct {
	Kind CheckKind
	Peer netip.AddrPort // where it came from or goes to
	// Via is the local address that it came to or leaves from. Invalid: the
	// kernel's choice.
	Via netip.Addr
	// TTL of the packet on its way out; zero: the kernel's.
	TTL int
	// Socket is the one of this end's that it came to or leaves from: the first, 0,
	// but in a spread.
	Socket int
	Tx     Tx
	// Mapped, in a response, is how the answering end saw the asking one.
	Mapped netip.AddrPort
}

// A CheckPlan says what to check.
type CheckPlan struct {
	// Controlling is true at exactly one of the two ends: the one that chooses.
	Controlling bool
	Remote      []Candidate // the other end's; at most MaxCandidates are used
	// Seed is secret and random: all our transaction ids come from it. Who gets
	// one of them must not guess another, or a member could answer for an
	// address that is not its own.
	Seed     [32]byte
	Start    time.Time // no packet of our own before one from there, but for Prime
	Deadline time.Time // the end, with or without a path
	// Prime: before the start, each outside address of the other end gets one packet
	// that does not live to arrive, so that our own NAT or firewall expects the other
	// end's. One that is surprised by a packet from there takes it for its own, and
	// gives our socket another port towards it.
	Prime bool
	// Below is the worst path that will not do: this one is to be better than another
	// that works. Zero: any will do. The end that does not control leaves it to
	// the other one.
	Below PathClass
	// Spread looks for a path by chance instead of in Remote, and has been allowed
	// as a whole: its packets are not taken from Budget. Controlling is the easy
	// end, which has one socket. Nil: none.
	Spread *Spread
	// Refuse holds prefixes in which the other end cannot be: the overlay's own.
	Refuse []netip.Prefix
	Budget Allowance // nil: no limits beyond this check's own
}

// primeTTL lets a packet pass this site's own gateway, and no more: were it to
// arrive, it would be the early packet that it is to forestall.
const primeTTL = 2

// A Proof is a path that carried packets in both directions.
type Proof struct {
	Remote netip.AddrPort // where the other end is reached
	Kind   CandidateKind  // of Remote
	Local  netip.Addr     // our address on the path; invalid: not known
	Mapped netip.AddrPort // how the other end sees us; invalid: not known
	RTT    time.Duration  // zero: not measured by this end
	// Confirmed: the other end is known to have the same result. Otherwise it
	// very probably has, and WireGuard's first handshake settles it.
	Confirmed      bool
	Socket         int // ours, see CheckPacket
	Sent, Received int // packets
}

// A Check finds, together with its counterpart at the other end, a pair of
// addresses over which both can talk. It follows ICE (RFC 8445) with one local
// socket, or many in a spread, and regular nomination, and differs where a port
// is handed over at the end: the controlled end lets go when the controlling one
// says that it knows, or when no more nominations come.
//
// One goroutine owns it: Receive for each authenticated packet, Tick no later
// than the deadline that either of them gave last.
type Check struct {
	plan      CheckPlan
	paths     []*path
	sentAt    map[Tx]request
	random    *rand.ChaCha8
	learned   int
	talks     int       // paths of a spread that something came from
	paced     time.Time // by when a spread's packets would have left evenly
	sent      int
	received  int
	chosen    *path // controlling: nominated by us; controlled: by the other end
	nominated int
	next      time.Time // next nomination, or the end of the controlled end's patience
	primed    bool
	done      bool
	confirmed bool
	out       []CheckPacket
}

type path struct {
	cand      Candidate
	socket    int // ours
	via       netip.Addr
	heard     bool // an authenticated packet came from here
	valid     bool // a request of ours was answered
	since     time.Time
	rtt       time.Duration
	mapped    netip.AddrPort
	blind     int // requests sent before anything was heard
	triggered int // and after
	responses int
	last      time.Time // of our last request
	next      time.Time // of our next one; zero: none planned
}

type request struct {
	path     *path
	at       time.Time
	nominate bool
}

// CheckReady is what the owner does next: send the packets, and if the check is
// not Done call Tick at Deadline.
type CheckReady struct {
	Send     []CheckPacket
	Deadline time.Time
	Done     bool
}

// NewCheck prepares a check; the first Tick starts it.
func NewCheck(plan CheckPlan) *Check {
	c := &Check{plan: plan, sentAt: make(map[Tx]request), random: rand.NewChaCha8(plan.Seed)}
	if plan.Spread != nil {
		c.paths = plan.Spread.paths(rand.New(c.random), plan.Start)
		return c
	}
	remote := slices.DeleteFunc(slices.Clone(plan.Remote), func(r Candidate) bool { return c.refused(r.Addr) })
	for i, cand := range Choose(remote, MaxCandidates) {
		c.paths = append(c.paths, &path{cand: cand, next: plan.Start.Add(time.Duration(i) * checkStagger)})
	}
	return c
}

func (c *Check) refused(a netip.AddrPort) bool {
	return slices.ContainsFunc(c.plan.Refuse, func(p netip.Prefix) bool { return p.Contains(a.Addr()) })
}

// Receive takes in one packet whose credentials have been verified.
func (c *Check) Receive(now time.Time, p CheckPacket) CheckReady {
	if c.done {
		return CheckReady{Done: true}
	}
	c.received++
	switch p.Kind {
	case CheckRequest, CheckNominate:
		c.asked(now, p)
	case CheckResponse:
		c.answered(now, p)
	case CheckDone:
		if !c.plan.Controlling && c.chosen != nil && c.chosen == c.find(p) {
			c.done, c.confirmed = true, true
		}
	}
	return c.Tick(now)
}

func (c *Check) asked(now time.Time, p CheckPacket) {
	from := c.find(p)
	if from == nil {
		if c.learned == maxPeerReflexive || Usable(p.Peer) != nil || c.refused(p.Peer) || c.astray(p.Peer) {
			return
		}
		c.learned++
		from = &path{cand: Candidate{Kind: CandidatePeerReflexive, Addr: p.Peer}, socket: p.Socket}
		c.paths = append(c.paths, from)
	}
	if c.plan.Spread != nil && !from.heard {
		if c.talks == maxPeerReflexive {
			return
		}
		c.talks++
	}
	from.heard, from.via = true, p.Via
	// A nomination is believed once an answer to us has come from there (RFC
	// 8445 7.3.1.5): WireGuard would send to an address that a member made up.
	// Until then it is not answered, so that it is repeated.
	unproven := p.Kind == CheckNominate && !c.plan.Controlling && !from.valid
	if from.responses < maxResponses && !unproven {
		from.responses++
		c.send(CheckPacket{Kind: CheckResponse, Peer: p.Peer, Via: p.Via, Socket: p.Socket, Tx: p.Tx, Mapped: p.Peer})
	}
	switch {
	case p.Kind == CheckNominate && !c.plan.Controlling && from.valid:
		// The other end repeats itself until it has this answer: every
		// repetition renews our patience.
		c.chosen = from
		c.next = now.Add(patience(from.rtt))
	case !from.valid && from.triggered < maxTriggered:
		from.next = latest(now, from.last.Add(triggerGap))
	}
}

// patience is how long the controlled end waits for another nomination: the
// time in which the controlling one would have repeated it three times.
func patience(rtt time.Duration) time.Duration { return 3*rto(rtt) + settle }

func rto(rtt time.Duration) time.Duration {
	if rtt == 0 {
		return maxRTO
	}
	return min(max(2*rtt, minRTO), maxRTO)
}

func (c *Check) answered(now time.Time, p CheckPacket) {
	q, ok := c.sentAt[p.Tx]
	if !ok || q.path != c.find(p) {
		return // late twin, or an answer from elsewhere: no symmetric path
	}
	delete(c.sentAt, p.Tx)
	from := q.path
	from.heard, from.via = true, p.Via
	from.next = time.Time{}
	if rtt := now.Sub(q.at); !from.valid || rtt < from.rtt {
		from.rtt, from.mapped = rtt, p.Mapped
	}
	if !from.valid {
		from.valid, from.since = true, now
		if c.plan.Budget != nil {
			c.plan.Budget.Proven(p.Peer.Addr())
		}
	}
	if q.nominate {
		// Two, because nothing answers them and the other end's port waits.
		c.send(CheckPacket{Kind: CheckDone, Peer: p.Peer, Via: p.Via, Socket: p.Socket, Tx: c.tx()})
		c.send(CheckPacket{Kind: CheckDone, Peer: p.Peer, Via: p.Via, Socket: p.Socket, Tx: c.tx()})
		c.done, c.confirmed = true, true
	}
}

// Tick does what is due at now.
func (c *Check) Tick(now time.Time) CheckReady {
	if !c.done {
		c.advance(now)
	}
	ready := CheckReady{Send: c.out, Done: c.done}
	c.out = nil
	if !c.done {
		ready.Deadline = c.deadline()
	}
	return ready
}

func (c *Check) advance(now time.Time) {
	if !now.Before(c.plan.Deadline) {
		c.done = true
		return
	}
	if c.plan.Prime && !c.primed {
		c.primed = true
		c.prime(now)
	}
	if c.chosen == nil && c.plan.Controlling {
		if best := c.best(); best != nil && !now.Before(c.ripe(best)) {
			c.chosen, c.next = best, now
		}
	}
	if c.chosen != nil {
		switch {
		case now.Before(c.next):
		case !c.plan.Controlling, c.nominated == maxNominations:
			c.done = true
		default:
			c.nominated++
			c.next = now.Add(rto(c.chosen.rtt))
			c.request(now, c.chosen, true, 0)
		}
		return // nothing else needs proof
	}
	for _, p := range c.paths {
		if p.valid || p.next.IsZero() || now.Before(p.next) {
			continue
		}
		if p.heard {
			c.request(now, p, false, 0)
			p.triggered++
			p.next = time.Time{}
			if p.triggered < maxTriggered {
				p.next = now.Add(growing(triggerRetry, p.triggered-1))
			}
			continue
		}
		ttl, pause, ok := c.blind(now, p)
		p.next = time.Time{}
		if ok {
			c.request(now, p, false, ttl)
			p.blind++
		}
		if pause > 0 {
			p.next = now.Add(pause)
		}
	}
}

// blind tells how a path's next packet leaves from which nothing has come, and after
// which pause there is another; false: none may leave now, since others aimed us there
// enough, or a spread is to catch up on a pause of this process.
func (c *Check) blind(now time.Time, p *path) (ttl int, pause time.Duration, ok bool) {
	if s := c.plan.Spread; s != nil {
		if early := c.paced.Sub(now); early > spreadBurst*spreadEvery {
			return 0, early - spreadBurst*spreadEvery, false
		}
		c.paced = latest(c.paced, now).Add(spreadEvery)
		ttl, pause = s.blind(p.blind)
		return ttl, pause, true
	}
	if !c.allow(now, p.cand.Addr) {
		return 0, 0, false
	}
	if n := p.blind + 1; n < len(checkSchedule) {
		pause = checkSchedule[n] - checkSchedule[n-1]
	}
	return 0, pause, true
}

// astray reports whether a packet does not come from where a spread goes to.
func (c *Check) astray(from netip.AddrPort) bool {
	return c.plan.Spread != nil && from.Addr() != c.plan.Spread.Peer.Addr()
}

func (c *Check) prime(now time.Time) {
	for _, p := range c.paths {
		if a := p.cand.Addr.Addr(); now.Before(p.next) && Global(a) && c.allow(now, p.cand.Addr) {
			c.request(now, p, false, primeTTL)
		}
	}
}

func (c *Check) allow(now time.Time, a netip.AddrPort) bool {
	return c.plan.Budget == nil || c.plan.Budget.Allow(now, a.Addr())
}

// growing is d x 1.5^n.
func growing(d time.Duration, n int) time.Duration {
	for range n {
		d += d / 2
	}
	return d
}

// ripe is when a valid path may be chosen: a better one gets a moment to prove
// itself, but nothing is better than the same LAN, and of a spread all are alike.
func (c *Check) ripe(p *path) time.Time {
	if p.cand.Class() == ClassLAN || c.plan.Spread != nil {
		return p.since
	}
	return p.since.Add(settle)
}

func (c *Check) best() *path {
	var best *path
	for _, p := range c.paths {
		if p.valid && (!c.plan.Controlling || c.plan.Below == 0 || p.cand.Class() < c.plan.Below) && (best == nil || cmp.Or(cmp.Compare(p.cand.Class(), best.cand.Class()), cmp.Compare(p.rtt, best.rtt)) < 0) {
			best = p
		}
	}
	return best
}

func (c *Check) deadline() time.Time {
	if c.chosen != nil {
		return earliest(c.plan.Deadline, c.next)
	}
	d := c.plan.Deadline
	if best := c.best(); best != nil && c.plan.Controlling {
		d = earliest(d, c.ripe(best))
	}
	for _, p := range c.paths {
		if !p.valid && !p.next.IsZero() {
			d = earliest(d, p.next)
		}
	}
	return d
}

func (c *Check) request(now time.Time, p *path, nominate bool, ttl int) {
	kind := CheckRequest
	if nominate {
		kind = CheckNominate
	}
	tx := c.tx()
	c.sentAt[tx] = request{path: p, at: now, nominate: nominate}
	p.last = now
	c.send(CheckPacket{Kind: kind, Peer: p.cand.Addr, Via: p.via, TTL: ttl, Socket: p.socket, Tx: tx})
}

func (c *Check) send(p CheckPacket) {
	if s := c.plan.Spread; s != nil && c.sent >= s.most() {
		return
	}
	c.sent++
	c.out = append(c.out, p)
}

func (c *Check) tx() Tx {
	var tx Tx
	_, _ = c.random.Read(tx[:]) // never fails
	return tx
}

// find gives the path that a packet came by.
func (c *Check) find(in CheckPacket) *path {
	for _, p := range c.paths {
		if p.cand.Addr == in.Peer && p.socket == in.Socket {
			return p
		}
	}
	return nil
}

// Result gives the proven path once the check is done, or ErrNoPath with what
// was seen. The controlled end falls back to the best path that answered it
// when no nomination came through, unless it depends on which path it is.
func (c *Check) Result() (Proof, error) {
	p := c.chosen
	if p == nil && c.plan.Below == 0 {
		p = c.best()
	}
	if s := c.plan.Spread; p == nil && s != nil {
		return Proof{Sent: c.sent, Received: c.received}, s.tried(c.paths, c.sent)
	}
	if p == nil {
		why := "nothing arrived from the other end"
		if c.received > 0 {
			why = fmt.Sprintf("%d packets of the other end arrived here, but none of its answers", c.received)
		}
		return Proof{Sent: c.sent, Received: c.received},
			fmt.Errorf("%w: %d addresses tried with %d packets; %s", ErrNoPath, len(c.paths), c.sent, why)
	}
	return Proof{
		Remote: p.cand.Addr, Kind: p.cand.Kind, Local: p.via, Mapped: p.mapped, RTT: p.rtt,
		Confirmed: c.confirmed, Socket: p.socket, Sent: c.sent, Received: c.received,
	}, nil
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
