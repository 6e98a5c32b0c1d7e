// Package link judges one link: is it usable, how long is its path, how much
// does it lose. It is pure: probes and time come in, verdicts and the next
// deadline come out. It is the only place where a link goes up or down.
//
// Detection has two levels. Suspect, after a few silent intervals, is local
// and reversible: the link leaves the used set at once, nobody is told. Down,
// after as many misses as the measured loss demands, is announced to all.
//
// Probes are answered by the far end's agent, packets are forwarded by its
// kernel. So before a silent link is given up, its far end's kernel is asked
// (ICMPv6 echo): when it answers, the path is fine and only the agent is away,
// perhaps restarting. The link is then Headless: still used, because the data
// plane outlives the agent.
package link

import (
	"math"
	"time"

	"guywire/mesh"
	"guywire/routing/wire"
)

// State is a link's condition.
type State uint8

// States. Probing has a tunnel but no verdict yet.
const (
	Probing State = iota
	Up
	Suspect
	Headless
	Down
)

// String gives the state in words.
func (s State) String() string {
	return [...]string{"probing", "up", "suspect", "headless", "down"}[s]
}

const (
	// Interval is the time between probes.
	Interval = 40 * time.Millisecond
	// suspectMisses silent intervals make a link suspect.
	suspectMisses = 3
	// jitterRoom is granted on top of counted intervals, for timers and queues.
	jitterRoom = 15 * time.Millisecond
	// upProbes good probes make a new link up, returnProbes one that was down.
	upProbes     = 3
	returnProbes = 10
	// firstAfter is how long the first end of a new tunnel waits, so that the
	// other has it, too; yieldFor is how long the other end waits for the first.
	firstAfter = 60 * time.Millisecond
	yieldFor   = 700 * time.Millisecond
	// unknownRTT is how long an answer may take while no round trip is known.
	unknownRTT = time.Second
	// echoMisses silent intervals make us ask the far end's kernel.
	echoMisses = 2
	// headlessPenalty is added to the cost of a link whose far end has had no
	// agent for headlessPatience: its routes grow stale, so transit avoids it.
	headlessPenalty  mesh.Cost = 500_000
	headlessPatience           = 10 * time.Second
	// suspectReturn good probes lift a suspicion.
	suspectReturn = 3
	// minMisses and maxMisses bound the misses that make a link down.
	minMisses = 5
	maxMisses = 12
	// probesPerMonth sets the wanted number of false downs: one a month.
	probesPerMonth = float64(30*24*time.Hour) / float64(Interval)
)

// A Link is the judgement of one link. The zero value is not ready; use New.
type Link struct {
	state   State
	since   time.Time
	born    time.Time
	reason  string
	good    int // probes in a row since the last silence
	everUp  bool
	accepts bool // the far end's kernel admits our traffic
	hears   bool // the far end receives our probes

	// sending
	seq      uint32
	spoke    bool // since the tunnel was made
	nextSend time.Time
	phase    time.Duration // of our probes against multiples of Interval

	// receiving
	incarnation uint64
	rxSeq       uint32
	rxSent      int64
	rxAt        time.Time
	interval    time.Duration // the far end's

	echoAsked time.Time // first request of the present silence
	echoSent  time.Time // newest request
	echoAt    time.Time // newest answer

	rtt    minFilter
	last   time.Duration // newest RTT
	jitter time.Duration // smoothed mean deviation (RFC 3550 6.4.1)
	loss   lossWindow    // of what the far end sent
	txLoss float64       // of what we sent, as the far end says

	cost      mesh.Cost // as last announced
	costMoved time.Time // since when the measured cost differs from it
}

// New makes a link whose tunnel has just been made. One end is the first to
// send: when both ends begin a WireGuard handshake at the same moment, each
// drops the other's answer and they try again only after five seconds.
//
// Probes leave at multiples of Interval, shifted by phase, so that all links of
// a node send in one go and not one by one.
func New(now time.Time, first bool, phase time.Duration) *Link {
	l := &Link{since: now, born: now, interval: Interval, phase: phase, reason: "waiting for the first answer"}
	l.nextSend = now.Add(firstAfter)
	if !first {
		l.nextSend = now.Add(yieldFor)
	}
	return l
}

// State is the verdict, Since when it holds, Reason why, for people.
func (l *Link) State() State     { return l.state }
func (l *Link) Since() time.Time { return l.since }
func (l *Link) Reason() string   { return l.reason }

// Usable reports whether routing may count on the link: not down, both ends
// hear each other, and the far end's kernel admits our traffic.
func (l *Link) Usable() bool {
	return l.alive() && l.accepts
}

// alive reports whether the path is held to work.
func (l *Link) alive() bool { return l.state == Up || l.state == Suspect || l.state == Headless }

// EverUp reports whether the link has been up since it was made.
func (l *Link) EverUp() bool { return l.everUp }

// Admits reports whether transit from the far end is to be let in.
func (l *Link) Admits() bool { return l.alive() }

// RTT is the smallest round trip of the last ten seconds, Jitter the smoothed
// deviation; Loss the shares lost towards us and from us.
func (l *Link) RTT() time.Duration     { return l.rtt.min() }
func (l *Link) Jitter() time.Duration  { return l.jitter }
func (l *Link) Loss() (rx, tx float64) { return l.loss.share(), l.txLoss }

// Receive takes a probe that arrived at the time at.
func (l *Link) Receive(at time.Time, incarnation uint64, p wire.Probe) {
	if incarnation != l.incarnation {
		// The far end's agent restarted: its numbers begin anew. Its tunnel
		// did not, so the verdict stays.
		l.incarnation, l.rxSeq = incarnation, 0
		l.loss = lossWindow{}
	}
	if l.rxSeq != 0 && int32(p.Seq-l.rxSeq) <= 0 {
		return // a duplicate, or overtaken by a newer one
	}
	// What was missed in a row was an outage and is not the path's loss: it
	// must not make the next outage slower to see.
	if step := p.Seq - l.rxSeq; l.rxSeq != 0 && step <= maxMisses {
		l.loss.add(step)
	}
	l.rxSeq, l.rxSent, l.rxAt = p.Seq, p.Sent, at
	l.echoAsked = time.Time{}
	l.interval = min(max(time.Duration(p.Interval)*time.Microsecond, Interval/5), 10*time.Second)
	l.hears = p.Flags&wire.Hears != 0
	l.accepts = p.Flags&wire.Accepts != 0
	l.txLoss = float64(p.Loss) / math.MaxUint16
	l.good++
	if p.EchoSeq != 0 {
		rtt := time.Duration(l.clock(at)-p.EchoSent) - time.Duration(p.EchoDelay)*time.Microsecond
		if rtt > 0 && rtt < time.Minute {
			l.measure(at, rtt)
		}
	}

	switch l.state {
	case Probing, Down:
		if !l.spoke {
			l.nextSend = at // the tunnel stands: answer
		}
		need := upProbes
		if l.everUp {
			need = returnProbes
		}
		if l.hears && l.good >= need && l.rtt.min() > 0 && p.Flags&wire.HoldsDown == 0 {
			l.everUp = true
			l.become(at, Up, "both ends hear each other")
		}
	case Up, Suspect, Headless:
		switch {
		case p.Flags&wire.HoldsDown != 0:
			l.become(at, Down, "the other end holds it down")
		case l.state != Up && l.good >= suspectReturn:
			l.become(at, Up, "answers again")
		}
	}
}

// Echoed takes an answer of the far end's kernel.
func (l *Link) Echoed(at time.Time) { l.echoAt = at }

// Tick judges the silence until now.
func (l *Link) Tick(now time.Time) {
	if l.alive() && l.rxAt.IsZero() {
		l.rxAt = now // adopted: the silence is counted from the first look
	}
	if !l.alive() {
		if !l.rxAt.IsZero() && now.Sub(l.rxAt) > l.silence(suspectMisses) {
			l.good = 0
		}
		return
	}
	silent := now.Sub(l.rxAt)
	if silent <= l.silence(suspectMisses) {
		return
	}
	l.good = 0
	lasting := silent.Round(time.Millisecond).String()
	switch {
	case silent <= l.silence(l.downMisses()):
		if l.state == Up {
			l.become(now, Suspect, "nothing heard for "+lasting)
		}
	case l.kernelAnswers(now):
		if l.state != Headless {
			l.become(now, Headless, "the far end's kernel answers, its agent does not")
		}
	case l.state == Headless || l.echoHadTime(now):
		l.become(now, Down, "nothing heard for "+lasting)
	}
}

// kernelAnswers reports whether an echo came back recently enough.
func (l *Link) kernelAnswers(now time.Time) bool {
	return !l.echoAsked.IsZero() && l.echoAt.After(l.echoAsked) &&
		now.Sub(l.echoAt) <= l.silence(l.downMisses())
}

// echoHadTime reports whether an answer, if there were one, would be here.
func (l *Link) echoHadTime(now time.Time) bool {
	wait := l.rtt.min() + l.interval
	if l.rtt.min() == 0 {
		wait = unknownRTT
	}
	return !l.echoAsked.IsZero() && now.Sub(l.echoAsked) >= wait
}

// Echo reports whether to ask the far end's kernel now.
func (l *Link) Echo(now time.Time) bool {
	if !l.alive() || now.Sub(l.rxAt) <= l.silence(echoMisses) || now.Sub(l.echoSent) < Interval {
		return false
	}
	if l.echoAsked.IsZero() {
		l.echoAsked = now
	}
	l.echoSent = now
	return true
}

// clock is the time in nanoseconds that probes carry and measurements go by: it
// begins as the wall clock and is not moved by steps of it.
func (l *Link) clock(now time.Time) int64 { return l.born.UnixNano() + int64(now.Sub(l.born)) }

// Excuse grants the link the time that this node itself was not running: a
// starving agent must not blame its neighbours.
func (l *Link) Excuse(now time.Time, stall time.Duration) {
	if !l.rxAt.IsZero() {
		l.rxAt = earliest(l.rxAt.Add(stall), now)
	}
}

// Fail takes the link down at once, on hard evidence.
func (l *Link) Fail(now time.Time, reason string) {
	l.good = 0
	if l.state != Down {
		l.become(now, Down, reason)
	} else {
		l.reason = reason
	}
}

// Deadline is when, after now, Tick, Echo or Probe is due next.
func (l *Link) Deadline(now time.Time) time.Time {
	next := l.nextSend
	if !l.alive() {
		return next
	}
	for _, misses := range [...]int{echoMisses, suspectMisses, l.downMisses()} {
		if t := l.rxAt.Add(l.silence(misses) + time.Millisecond); t.After(now) {
			return earliest(next, t)
		}
	}
	return next // from here on the probes' own pace is fine enough
}

// Renew makes a new link after old, whose tunnel was moved to another path. The
// far end may have kept its judgement, so our numbers go on.
func Renew(now time.Time, first bool, old *Link) *Link {
	l := New(now, first, old.phase)
	l.seq, l.spoke = old.seq, false
	return l
}

// Adopt makes a new link of a tunnel that was already carrying traffic when
// this agent started: it is trusted until it has had time to answer.
func Adopt(now time.Time, phase time.Duration) *Link {
	l := New(now, true, phase)
	l.nextSend = now
	l.everUp, l.accepts, l.hears = true, true, true
	l.good = suspectReturn
	l.become(now, Up, "found carrying traffic at start")
	return l
}

// Probe gives the probe to send if one is due.
func (l *Link) Probe(now time.Time, accepts bool, digest uint64) (wire.Probe, bool) {
	if now.Before(l.nextSend) {
		return wire.Probe{}, false
	}
	// From the clock, not from the last time: when late, the pace is kept and
	// the debt forgotten.
	l.nextSend = now.Add(l.phase - time.Duration(l.clock(now))%Interval)
	if l.nextSend.Sub(now) < Interval/2 {
		l.nextSend = l.nextSend.Add(Interval)
	}
	l.seq++
	l.spoke = true
	p := wire.Probe{
		Seq: l.seq, Sent: l.clock(now), Interval: uint32(Interval / time.Microsecond),
		Loss: uint16(l.loss.share() * math.MaxUint16), Digest: digest,
	}
	if l.rxSeq != 0 {
		p.EchoSeq, p.EchoSent = l.rxSeq, l.rxSent
		p.EchoDelay = uint32(min(max(now.Sub(l.rxAt), 0)/time.Microsecond, math.MaxUint32))
		if now.Sub(l.rxAt) <= l.silence(suspectMisses) {
			p.Flags |= wire.Hears
		}
	}
	if accepts {
		p.Flags |= wire.Accepts
	}
	if l.state == Down && l.everUp && l.good < returnProbes {
		p.Flags |= wire.HoldsDown
	}
	return p, true
}

// silence is the time in which n probes of the far end must have come.
func (l *Link) silence(n int) time.Duration { return time.Duration(n)*l.interval + jitterRoom }

// downMisses is the smallest number of misses in a row that independent loss
// at the measured rate brings about less than once a month.
func (l *Link) downMisses() int {
	p := min(max(l.loss.share(), 0.001), 0.9)
	return min(max(int(math.Ceil(math.Log(1/probesPerMonth)/math.Log(p))), minMisses), maxMisses)
}

func (l *Link) become(now time.Time, s State, reason string) {
	l.state, l.since, l.reason = s, now, reason
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
