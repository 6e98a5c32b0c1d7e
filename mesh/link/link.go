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
	// upProbes good probes make a new link up, returnProbes one that was down.
	upProbes     = 3
	returnProbes = 10
	// returnTime of good probes, but no fewer than upProbes and no more than
	// returnProbes, lift a suspicion.
	returnTime = 150 * time.Millisecond
	// firstAfter is how long the first end of a new tunnel waits, so that the
	// other has it, too; yieldFor is how long the other end waits for the first.
	firstAfter = 60 * time.Millisecond
	yieldFor   = 700 * time.Millisecond
	// headlessPatience is how long a far end without agent is no worse than one
	// with; afterwards its routes grow stale.
	headlessPatience = 10 * time.Second
)

// A Link is the judgement of one link. The zero value is not ready; use New.
type Link struct {
	state  State
	since  time.Time
	born   time.Time
	reason string
	everUp bool
	good   int // probes in a row since the last silence
	mutual int // of them, in a row, those that say that the far end hears us
	hears  bool
	flaps  flaps

	pacer
	silence
	mtu mtuSearch

	// receiving
	incarnation uint64
	rxSeq       uint32
	rxSent      int64
	rxAt        time.Time
	unheard     uint32 // our newest probe when the far end said that it hears none
	padSeen     uint16 // largest padding received lately,
	padEchoes   int    // and how many more probes say so

	rtt    window // round trips of about ten seconds, ns
	recent window // of about one second
	last   time.Duration
	jitter time.Duration // smoothed mean deviation (RFC 3550 6.4.1)
	loss   lossWindow    // of what the far end sent
	txLoss float64       // of what we sent, as the far end says, smoothed

	delay level // of the cost, µs
	lossy level // of the cost, in lost probes of the last 2 × lossFast
	cost  mesh.Cost
}

// New makes a link whose tunnel has just been made. One end is the first to
// send: when both ends begin a WireGuard handshake at the same moment, each
// drops the other's answer and they try again only after five seconds.
//
// Fast probes leave at multiples of their interval, shifted by phase, so that
// all links of a node send in one go and not one by one.
func New(now time.Time, first bool, phase time.Duration) *Link {
	l := &Link{since: now, born: now, reason: "waiting for the first answer"}
	l.pacer = newPacer(phase)
	l.silence = silence{interval: probingPace, room: minRoom}
	l.Moved()
	l.nextSend = now.Add(firstAfter)
	if !first {
		l.nextSend = now.Add(yieldFor)
	}
	return l
}

// Moved says that the tunnel takes another path from now on, which was proven a moment
// ago: the verdict stays, but what was measured is of the old one. Probes that were on
// their way are not the new one's loss.
func (l *Link) Moved() {
	l.rtt, l.recent = newWindow(10, time.Second), newWindow(8, time.Second/8)
	l.delay = level{calm: newWindow(calmBuckets, calmSpan)}
	l.lossy = level{calm: newWindow(calmBuckets, calmSpan)}
	l.loss, l.txLoss, l.last, l.jitter = lossWindow{}, 0, 0, 0
	l.rxSeq = 0
}

// Renew makes a new link after old, whose tunnel was moved to another path. The
// far end may have kept its judgement, so our numbers go on; so do what is
// asked of the link and the memory of its flaps.
func Renew(now time.Time, first bool, old *Link) *Link {
	l := New(now, first, old.phase)
	l.seq, l.demand, l.flaps = old.seq, old.demand, old.flaps
	l.mtu.setLimit(old.mtu.limit)
	return l
}

// Adopt makes a new link of a tunnel that was already carrying traffic when
// this agent started: it is trusted until it has had time to answer.
func Adopt(now time.Time, phase time.Duration) *Link {
	l := New(now, true, phase)
	l.nextSend = now
	l.everUp, l.hears = true, true
	l.good, l.mutual = returnProbes, returnProbes
	// What the far end promised to the last agent is not known; the first
	// probe asks.
	l.interval, l.wanted = slowest, slowest
	l.become(now, Up, "found carrying traffic at start")
	return l
}

// State is the verdict, Since when it holds, Reason why, for people.
func (l *Link) State() State     { return l.state }
func (l *Link) Since() time.Time { return l.since }
func (l *Link) Reason() string   { return l.reason }

// Usable reports whether the path is held to work: packets may go over it,
// though a suspected link should carry them only where nothing else does.
func (l *Link) Usable() bool { return l.state == Up || l.state == Suspect || l.state == Headless }

// EverUp reports whether the link has been up since it was made.
func (l *Link) EverUp() bool { return l.everUp }

// Damped reports whether a link that works has failed so often lately that it
// is better left alone while there is another path. See flaps.
func (l *Link) Damped(now time.Time) bool { return now.Before(l.flaps.until) }

// Deaf reports whether a usable link brings nothing from the far end: time to
// tell it so over other links.
func (l *Link) Deaf(now time.Time) bool {
	return l.Usable() && !l.heard.IsZero() && !now.Before(l.suspectAt())
}

// RTT is the smallest round trip of about the last ten seconds, 0 while none is
// known; Jitter the smoothed deviation of round trips.
func (l *Link) RTT() time.Duration    { return time.Duration(l.rtt.min()) }
func (l *Link) Jitter() time.Duration { return l.jitter }

// Loss is the share of probes lost lately, towards us and from us.
func (l *Link) Loss() (rx, tx float64) { return l.loss.slowShare(), l.txLoss }

// MTU is the largest inner packet, bytes with its IPv6 header, that is proven
// to pass, and whether the search has ended. Until then it may be too small.
func (l *Link) MTU() (size int, searched bool) { return l.mtu.result() }

// SetMTU sets the largest inner packet to try: the MTU of the tunnel's device.
func (l *Link) SetMTU(limit int) { l.mtu.setLimit(limit) }

// Receive takes a probe that arrived at the time at.
func (l *Link) Receive(at time.Time, incarnation uint64, p wire.Probe) {
	if incarnation != l.incarnation {
		// The far end's agent restarted: its numbers begin anew, and it does
		// not know what we promised. Its tunnel is the same, so the verdict
		// stays.
		l.incarnation, l.rxSeq = incarnation, 0
		l.loss = lossWindow{}
		l.confirmed, l.announcedSeq = false, l.seq
	}
	l.probeBytes += tunnelBytes(int(p.Pad))
	if p.Pad > 0 && (l.padEchoes == 0 || p.Pad >= l.padSeen) {
		// A padded copy has the number of the probe it follows and is dropped
		// below; that it came is what matters.
		l.padSeen, l.padEchoes = p.Pad, padEchoes
	}
	if l.rxSeq != 0 && int32(p.Seq-l.rxSeq) <= 0 {
		l.loss.found(l.rxSeq - p.Seq)
		return // a duplicate, or overtaken by a newer one
	}
	if step := p.Seq - l.rxSeq; l.rxSeq != 0 && step <= maxMisses {
		// What was missed in a row was an outage and is not the path's loss: it
		// must not make the next outage slower to see.
		l.loss.add(step)
		l.arrived(at.Sub(l.rxAt), step)
	}
	promised := l.interval
	l.rxSeq, l.rxSent, l.rxAt = p.Seq, p.Sent, at
	l.hear(at, max(time.Duration(p.Interval)*time.Microsecond, fastest/2))
	l.echoAsked = time.Time{}
	l.good++
	switch {
	case p.Flags&wire.Hears == 0:
		l.mutual = 0
	case l.unheard == 0 || int32(p.EchoSeq-l.unheard) > 0:
		l.mutual, l.unheard = l.mutual+1, 0
	}
	lost := l.hears && p.Flags&wire.Hears == 0 && p.EchoSeq != 0
	l.hears = p.Flags&wire.Hears != 0
	// What it echoes may be from before this agent started.
	if p.EchoSeq != 0 && l.spoke && int32(l.seq-p.EchoSeq) >= 0 {
		l.echoed(p.EchoSeq)
		l.mtu.heard(at, p.EchoSeq, p.PadEcho)
		rtt := time.Duration(l.clock(at)-p.EchoSent) - time.Duration(p.EchoDelay)*time.Microsecond
		if rtt > 0 && rtt < time.Minute {
			l.measure(at, rtt)
		}
	}
	tx := float64(p.Loss) / math.MaxUint16
	l.txLoss += (tx - l.txLoss) / 256
	l.appraise(at, tx)

	switch l.state {
	case Probing, Down:
		need := upProbes
		if l.everUp {
			need = returnProbes
		}
		if l.hears && l.good >= need && l.RTT() > 0 && p.Flags&wire.HoldsDown == 0 {
			l.everUp = true
			l.become(at, Up, "both ends hear each other")
		}
	case Up, Suspect, Headless:
		switch enough := l.enough(); {
		case p.Flags&wire.HoldsDown != 0:
			l.become(at, Down, "the other end holds it down")
		case l.state == Up && lost:
			l.become(at, Suspect, "the other end does not hear us")
		case l.state != Up && l.good >= enough && l.mutual >= enough:
			l.become(at, Up, "answers again")
		}
	}
	l.answer(at, p, l.interval != promised)
}

// enough is how many good probes lift a suspicion.
func (l *Link) enough() int {
	return min(max(int(returnTime/l.interval), upProbes), returnProbes)
}

// Silent takes the far end's word, said over another link, that it hears
// nothing from us on this one. Only probes that answer later ones of ours
// prove the contrary.
func (l *Link) Silent(now time.Time) {
	l.mutual, l.unheard = 0, l.seq
	if l.state == Up {
		l.become(now, Suspect, "the other end says that it hears nothing from us")
	}
	l.hurry(now)
}

// Fail takes the link down at once, on hard evidence.
func (l *Link) Fail(now time.Time, reason string) {
	l.good, l.mutual = 0, 0
	if l.state != Down {
		l.become(now, Down, reason)
	} else {
		l.reason = reason
	}
}

// Tick judges the silence until now.
func (l *Link) Tick(now time.Time) {
	if l.Usable() && l.heard.IsZero() {
		l.heard, l.agentAt = now, now // adopted: counted from the first look
	}
	if l.heard.IsZero() {
		return
	}
	switch lasting := now.Sub(l.heard).Round(time.Millisecond); {
	case l.Usable() && now.Before(l.downAt()) && l.heard.After(l.agentAt) && !now.Before(l.agentGoneAt()):
		l.good, l.mutual = 0, 0
		if l.state != Headless {
			l.become(now, Headless, "traffic arrives, but the far end's agent is silent")
		}
	case now.Before(l.suspectAt()):
	case !l.Usable():
		l.good, l.mutual = 0, 0
	case now.Before(l.downAt()):
		l.good, l.mutual = 0, 0
		if l.state == Up {
			l.become(now, Suspect, "nothing heard for "+lasting.String())
		}
	case now.Before(l.kernelAnswers(now)):
		if l.state != Headless {
			l.become(now, Headless, "the far end's kernel answers, its agent does not")
		}
	case !l.echoAsked.IsZero() && !now.Before(l.echoDue()):
		l.become(now, Down, "nothing heard for "+lasting.String())
	}
	l.hurry(now)
}

// Deadline is when, after now, Tick, Echo, Probe, Damped or Cost is due next.
func (l *Link) Deadline(now time.Time) time.Time {
	next := l.nextSend
	if l.padDue && l.padAt.Before(next) {
		next = l.padAt
	}
	if l.flaps.until.After(now) {
		next = earliest(next, l.flaps.until)
	}
	if l.heard.IsZero() {
		return next
	}
	soonest := func(t time.Time) {
		if t.After(now) {
			next = earliest(next, t)
		}
	}
	if l.state == Headless {
		soonest(l.since.Add(headlessPatience))
	}
	if !l.Usable() {
		if l.good > 0 {
			soonest(l.suspectAt())
		}
		return next
	}
	if l.heard.After(l.agentAt) {
		soonest(l.agentGoneAt())
	}
	doubt := l.doubtAt()
	if doubt.After(next) {
		return next // everything else comes later still
	}
	soonest(doubt)
	if suspect := l.suspectAt(); suspect.After(now) {
		soonest(suspect)
	} else {
		soonest(l.downAt())
		if !l.echoAsked.IsZero() {
			soonest(l.echoDue())
			soonest(l.kernelAnswers(now))
		}
	}
	if ask := l.echoFrom(); now.Before(ask) {
		soonest(ask)
	} else {
		soonest(l.echoSent.Add(l.echoPace(now)))
	}
	return next
}

// clock is the time in nanoseconds that probes carry and measurements go by: it
// begins as the wall clock and is not moved by steps of it.
func (l *Link) clock(now time.Time) int64 { return l.born.UnixNano() + int64(now.Sub(l.born)) }

func (l *Link) become(now time.Time, s State, reason string) {
	switch {
	case s == Down && l.state == Suspect:
		l.flaps.add(now, 1-suspicion) // the rest is counted
	case s == Down && l.Usable():
		l.flaps.add(now, 1)
	case s == Suspect:
		l.flaps.add(now, suspicion)
	case s == Up && l.state != Probing:
		l.flaps.hold(now)
	}
	l.state, l.since, l.reason = s, now, reason
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
