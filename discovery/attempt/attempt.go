package attempt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"guywire/discovery"
)

// Times of an attempt.
const (
	// MaxTime is the longest that an attempt takes.
	MaxTime = 15 * time.Second
	// exchangeTime is how long the other end may take to answer an offer.
	exchangeTime = 7 * time.Second
	leastDelay   = 100 * time.Millisecond // beyond the round trip of the answer, for our own slowness
	unknownDelay = 400 * time.Millisecond
	maxReflexive = 2 // offered; more are of a symmetric NAT and of no use
	maxEarly     = 16
)

// Config says what to try.
type Config struct {
	// Offer is ours, but for its candidates, delay and whatever the gathering tells.
	// Its NAT kinds, if they are known from an earlier measurement, are kept.
	Offer discovery.Offer
	// Theirs is the offer that this attempt answers; nil: this end initiates.
	Theirs *discovery.Offer
	// Own are the endpoints of the port that need no asking: the host's addresses
	// and what the operator declared.
	Own []discovery.Candidate
	// Servers are STUN servers to ask, best first.
	Servers []netip.AddrPort
	// Outside are addresses that several servers are known to have seen this uplink
	// at: one server's word is enough for these.
	Outside []netip.Addr
	// Likely are outside endpoints of the port by what was seen of other ports. Those
	// of an address family by which no server answers are offered.
	Likely []netip.AddrPort
	// PathRTT is the round trip over which offers travel to the other end, so that
	// both begin at the same moment; zero: not known.
	PathRTT time.Duration
	Refuse  []netip.Prefix // in which neither end's addresses can be
	Budget  discovery.Allowance
	// Spread: a path is looked for by chance, see discovery.Spread; nil: as usual.
	Spread *Spread
	Seed   [32]byte // secret and random
}

// A Spread says what allows an attempt by chance ports.
type Spread struct {
	Seen   []netip.Addr            // where other members see the other end now
	Budget *discovery.SpreadBudget // of this node
}

// Ready is what the owner does next, in this order: ask, send, hand the offer over
// (to the other end when this one initiates; its answer comes by Answered or
// Refused), and call Tick no later than Deadline. With Verdict the attempt is over.
type Ready struct {
	Ask      []discovery.Query
	Send     []discovery.CheckPacket
	Offer    *discovery.Offer
	Deadline time.Time
	Verdict  *Verdict
}

// A Verdict is the end of an attempt.
type Verdict struct {
	Ours, Theirs discovery.Offer // as far as they are known
	// Proof is the path that works, if Err is nil.
	Proof discovery.Proof
	// First: this end begins WireGuard's handshake. It is the one that lets go of
	// its port last, so that the other has taken over when the handshake arrives.
	First bool
	// Hopeless: nothing that is known lets hope that another attempt does better.
	Hopeless bool
	Err      error // why there is no path, for people
}

type phase uint8

const (
	gathering phase = iota
	offering
	checking
	over
)

// An Attempt is one end of an attempt. One goroutine owns it.
type Attempt struct {
	cfg     Config
	phase   phase
	ours    discovery.Offer
	theirs  *discovery.Offer
	gather  *discovery.Gathering
	check   *discovery.Check
	end     time.Time           // of the attempt
	offered time.Time           // when our offer left
	early   []discovery.Arrival // checks of the other end before we know its offer
}

// New prepares an attempt; the first Tick starts it.
func New(now time.Time, cfg Config) *Attempt {
	cfg.Offer.Spread = cfg.Spread != nil
	return &Attempt{
		cfg: cfg, ours: cfg.Offer, theirs: cfg.Theirs, end: now.Add(MaxTime),
		gather: discovery.NewGathering(now, cfg.Servers, 1, derive(cfg.Seed, 1)),
	}
}

// derive makes an independent seed of a part.
func derive(seed [32]byte, part uint64) [32]byte {
	binary.BigEndian.PutUint64(seed[24:], binary.BigEndian.Uint64(seed[24:])^part)
	return seed
}

// Initiates reports whether this end began.
func (a *Attempt) Initiates() bool { return a.cfg.Theirs == nil }

// controls reports whether this end chooses the path: who began, or the easy end of a
// spread, which sees all that was found.
func (a *Attempt) controls() bool {
	if a.cfg.Spread != nil {
		return a.ours.NAT != discovery.NATSymmetric
	}
	return a.Initiates()
}

// Unreachable says that a STUN server cannot even be asked. Call Tick afterwards.
func (a *Attempt) Unreachable(server netip.AddrPort) { a.gather.Unreachable(server) }

// Received takes in a verified packet.
func (a *Attempt) Received(now time.Time, p discovery.CheckPacket) Ready {
	switch {
	case p.Kind == discovery.ServerResponse && a.phase == gathering:
		return a.gathered(now, a.gather.Answered(now, p.Peer, p.Tx, p.Mapped))
	case p.Kind == discovery.ServerResponse:
	case a.phase == checking:
		return a.checked(now, a.check.Receive(now, p))
	case len(a.early) < maxEarly:
		a.early = append(a.early, discovery.Arrival{At: now, Packet: p})
	}
	return a.Tick(now)
}

// Keys are what packets are verified and sent with by now.
func (a *Attempt) Keys() discovery.Keys {
	k := discovery.Keys{Controlling: a.controls(), Local: a.ours.Credentials}
	if a.theirs != nil {
		k.Peer = a.theirs.Credentials
	}
	return k
}

// Answered takes in the other end's answer to our offer.
func (a *Attempt) Answered(now time.Time, answer discovery.Offer) Ready {
	if a.phase != offering {
		return a.Tick(now)
	}
	if err := a.ours.ValidateAnswer(now, answer); err != nil {
		return a.fail(fmt.Errorf("offer link to %s: %w", a.ours.To, err), false)
	}
	a.theirs = &answer
	return a.begin(now, now)
}

// Refused takes in that our offer could not be brought, or was not accepted.
func (a *Attempt) Refused(now time.Time, err error) Ready {
	if a.phase != offering {
		return a.Tick(now)
	}
	return a.fail(fmt.Errorf("offer link to %s: %w", a.ours.To, err), false)
}

// Cancel ends the attempt.
func (a *Attempt) Cancel(cause error) Ready { return a.fail(cause, false) }

// Tick does what is due at now.
func (a *Attempt) Tick(now time.Time) Ready {
	if a.phase != over && !now.Before(a.end) {
		return a.fail(fmt.Errorf("no answer from %s within %s", a.ours.To, MaxTime), false)
	}
	switch a.phase {
	case gathering:
		return a.gathered(now, a.gather.Tick(now))
	case offering:
		if late := a.offered.Add(exchangeTime); !now.Before(late) {
			return a.fail(fmt.Errorf("offer link to %s: no answer within %s", a.ours.To, exchangeTime), false)
		} else if late.Before(a.end) {
			return Ready{Deadline: late}
		}
		return Ready{Deadline: a.end}
	case checking:
		return a.checked(now, a.check.Tick(now))
	}
	return Ready{}
}

func (a *Attempt) gathered(now time.Time, g discovery.GatherReady) Ready {
	if !g.Done {
		return Ready{Ask: g.Ask, Deadline: g.Deadline}
	}
	a.describe()
	offer := a.ours
	if a.Initiates() {
		a.ours.Delay = unknownDelay
		if a.cfg.PathRTT > 0 {
			a.ours.Delay = min(a.cfg.PathRTT+leastDelay, discovery.MaxOfferDelay).Truncate(time.Millisecond)
		}
		offer = a.ours
		a.phase, a.offered = offering, now
		return Ready{Offer: &offer, Deadline: now.Add(exchangeTime)}
	}
	delay := a.theirs.Delay
	if a.cfg.Spread != nil {
		delay = 0
	} else if a.ours.NAT == discovery.NATEasy { // the initiator's come in
		delay = discovery.MaxOfferDelay
	}
	ready := a.begin(now, now.Add(delay))
	if ready.Verdict == nil {
		ready.Offer = &offer
	}
	return ready
}

// describe puts what the servers said into our offer.
func (a *Attempt) describe() {
	list := slices.Clone(a.cfg.Own)
	mapped, answered := 0, a.believed()
	believed := slices.Clone(answered)
	for _, l := range a.cfg.Likely {
		if !slices.ContainsFunc(answered, func(b netip.AddrPort) bool { return b.Addr().Is4() == l.Addr().Is4() }) {
			believed = append(believed, l)
		}
	}
	for _, m := range believed {
		if mapped < maxReflexive {
			list = append(list, discovery.Candidate{Kind: discovery.CandidateReflexive, Addr: m})
			mapped++
		}
	}
	list = slices.DeleteFunc(list, func(c discovery.Candidate) bool { return a.refused(c.Addr) })
	a.ours.Candidates = discovery.Choose(list, discovery.MaxCandidates)
}

// believed are the outside endpoints that may be offered.
func (a *Attempt) believed() []netip.AddrPort {
	answers := a.gather.Answers()
	var list []netip.AddrPort
	for _, r := range answers {
		if slices.Contains(a.cfg.Outside, r.Mapped.Addr()) && !slices.Contains(list, r.Mapped) {
			list = append(list, r.Mapped)
		}
	}
	if len(list) > 0 {
		return list
	}
	return discovery.Agreed(answers)
}

func (a *Attempt) refused(e netip.AddrPort) bool {
	return discovery.Usable(e) != nil || slices.ContainsFunc(a.cfg.Refuse, func(p netip.Prefix) bool { return p.Contains(e.Addr()) })
}

// begin starts the check. The initiator's packets go at once. The responder's go when
// one of those has come, or, since its NAT may not let them in, when its answer has
// surely arrived: else they would surprise the initiator's. Before that goes one that
// only opens its own.
func (a *Attempt) begin(now, start time.Time) Ready {
	plan := discovery.CheckPlan{
		Controlling: a.controls(), Remote: a.theirs.Candidates,
		Seed: derive(a.cfg.Seed, 2), Start: start, Deadline: start.Add(discovery.CheckTime),
		Below: a.below(), Prime: !a.Initiates(), Refuse: a.cfg.Refuse, Budget: a.cfg.Budget,
	}
	if a.ours.Spread || a.theirs.Spread {
		s, err := a.spread(now)
		if err != nil {
			return a.fail(fmt.Errorf("no direct link to %s: %w", a.ours.To, err), true)
		}
		plan.Spread, plan.Prime, plan.Deadline = &s, false, start.Add(discovery.SpreadTime)
	}
	a.phase = checking
	a.check = discovery.NewCheck(plan)
	ready := a.check.Tick(now)
	for _, e := range a.early {
		more := a.check.Receive(now, e.Packet)
		more.Send = append(ready.Send, more.Send...)
		ready = more
	}
	a.early = nil
	return a.checked(now, ready)
}

// spread gives this end's part in a spread, if there may be one.
func (a *Attempt) spread(now time.Time) (discovery.Spread, error) {
	if a.ours.Spread != a.theirs.Spread {
		return discovery.Spread{}, fmt.Errorf("%w: one end does not want it", discovery.ErrSpread)
	}
	s, err := discovery.PlanSpread(a.ours, *a.theirs, a.cfg.Spread.Seen)
	switch to := s.Peer.Addr(); {
	case err != nil:
	case slices.ContainsFunc(a.cfg.Refuse, func(p netip.Prefix) bool { return p.Contains(to) }):
		err = fmt.Errorf("%w: %s is in the overlay", discovery.ErrSpread, to)
	case !a.cfg.Spread.Budget.Allow(now, to):
		err = fmt.Errorf("%w: enough were made to %s today", discovery.ErrSpread, to)
	}
	return s, err
}

// below is as the initiator wants it.
func (a *Attempt) below() discovery.PathClass {
	if a.Initiates() {
		return a.ours.Below
	}
	return a.theirs.Below
}

func (a *Attempt) checked(now time.Time, c discovery.CheckReady) Ready {
	if !c.Done {
		return Ready{Send: c.Send, Deadline: c.Deadline}
	}
	proof, err := a.check.Result()
	var ready Ready
	if err != nil {
		expected, why := discovery.Expect(a.kinds(*a.theirs), a.kinds(a.ours))
		if a.cfg.Spread == nil && why != "" && errors.Is(err, discovery.ErrNoPath) {
			err = fmt.Errorf("%w (%s)", err, why)
		}
		ready = a.fail(fmt.Errorf("no direct link to %s: %w", a.ours.To, err), expected != discovery.Direct)
	} else {
		a.phase = over
		ready = Ready{Verdict: &Verdict{Ours: a.ours, Theirs: *a.theirs, First: !a.controls()}}
	}
	ready.Verdict.Proof = proof
	ready.Send = c.Send
	return ready
}

// kinds gives what an offer says of its sender's uplink.
func (a *Attempt) kinds(o discovery.Offer) discovery.Uplink {
	u := discovery.Uplink{NAT: o.NAT, NAT6: o.NAT6}
	for _, c := range o.Candidates {
		switch c.Kind {
		case discovery.CandidateReflexive:
			u.Reflexive = append(u.Reflexive, c.Addr)
		case discovery.CandidateDeclared, discovery.CandidateMapped:
			u.Forwarded = append(u.Forwarded, c.Addr.Addr())
		}
	}
	return u
}

func (a *Attempt) fail(err error, hopeless bool) Ready {
	if a.phase == over {
		return Ready{}
	}
	a.phase = over
	v := &Verdict{Ours: a.ours, Hopeless: hopeless, Err: err}
	if a.theirs != nil {
		v.Theirs = *a.theirs
	}
	return Ready{Verdict: v}
}
