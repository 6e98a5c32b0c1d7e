package link

import (
	"math"
	"time"

	"guywire/routing/wire"
)

// Pace says what a link is used for, and so how fast it is probed.
type Pace uint8

// Paces.
const (
	// Idle: it neither carries traffic nor backs up a link that does.
	Idle Pace = iota
	// Backup: it is ready to take over.
	Backup
	// Carrying: routes in use go over it.
	Carrying
)

// String gives the pace in words.
func (p Pace) String() string { return [...]string{"idle", "backup", "carrying"}[p] }

// paces are the intervals of probes, by cost of the link and pace. An idle
// link takes 1.6 kbit/s in both directions together, 0.7 kbit/s if metered.
var paces = [2][3]time.Duration{
	{Idle: 2 * time.Second, Backup: 60 * time.Millisecond, Carrying: 15 * time.Millisecond},
	{Idle: 5 * time.Second, Backup: 500 * time.Millisecond, Carrying: 100 * time.Millisecond},
}

// doubtPaces are the longest intervals while there is doubt, probingPace the
// shortest while nothing was ever heard.
var doubtPaces = [2]time.Duration{40 * time.Millisecond, 200 * time.Millisecond}

const (
	probingPace = 40 * time.Millisecond
	// fastest and slowest bound our own pace, whoever wishes what.
	fastest = 10 * time.Millisecond
	slowest = 5 * time.Second
	// hopeless is the longest interval towards a far end that is silent.
	hopeless = time.Second
	// gridMost is the longest interval that is aligned to the node's grid.
	gridMost = 100 * time.Millisecond
	// busyRate of traffic, bytes/s in both directions together, makes an idle link
	// fast for busyFor: more than gossip and the log, less than a call. It has to
	// last for busySettle, which an exchange of gossip's full state does not; a
	// pause of busyPause ends it.
	busyRate   = 8192
	busySettle = 500 * time.Millisecond
	busyPause  = time.Second
	// busyBurst is how many bytes more than that are no traffic yet, readLag how
	// long a datagram may wait to be read.
	busyBurst = 2048
	readLag   = 300 * time.Millisecond
	busyFor   = 2 * time.Second
	// denseRate of traffic in either direction, bytes/s, replaces probes of a
	// metered link, of which only every stretch-th is sent.
	denseRate = 16384
	stretch   = 4
	// steadyShare of the last readings that showed traffic arriving, about
	// steadyMemory of them, make its absence soon a sign; otherwise it is one
	// after unsteady.
	steadyShare  = 0.75
	steadyMemory = 32
	unsteady     = 100 * time.Millisecond
	// stalePoll is the longest time between two readings of the counters that
	// are compared.
	stalePoll = 3 * time.Second
	// idleCount is how often the counters of an idle link are read.
	idleCount = 100 * time.Millisecond
	// padAfter is how long a padded copy follows its probe, padEchoes how many
	// probes tell of one received.
	padAfter  = 5 * time.Millisecond
	padEchoes = 3
)

// ProbeBytes is what one probe takes on the wire of an uplink, over IPv4: with
// padding to 16, WireGuard's 32 bytes, UDP and IP.
const ProbeBytes = (innerHeaders+wire.ProbeLen+15)/16*16 + 32 + 28

// Floor gives the shortest interval at which the probes of so many links fit
// into a budget in bytes per second, one way; 0 without a budget.
func Floor(links, budget int) time.Duration {
	if budget <= 0 {
		return 0
	}
	return time.Duration(links) * ProbeBytes * time.Second / time.Duration(budget)
}

// tunnelBytes is what WireGuard counts for a probe with padding.
func tunnelBytes(pad int) uint64 {
	return uint64((innerHeaders+wire.ProbeLen+pad+15)/16*16 + 32)
}

// demand is what the node wants of a link.
type demand struct {
	pace    Pace
	metered bool
	floor   time.Duration
}

// pacer is what is known about sending.
type pacer struct {
	demand
	seq      uint32
	spoke    bool // since the tunnel was made
	lastSent time.Time
	nextSend time.Time
	phase    time.Duration
	padDue   bool // a padded copy of the last probe is to follow,
	padAt    time.Time

	announced    time.Duration // the interval that our probes announce,
	announcedSeq uint32        // the first that did,
	confirmed    bool          // and whether the far end knows
	every        time.Duration // at which they leave: the shortest that it may count on
	wanted       time.Duration // what our probes ask of the far end
	farWant      time.Duration // what the far end asks of us

	polledAt       time.Time // newest reading of the tunnel's counters
	received, sent uint64
	movedAt        time.Time // newest reading that showed traffic arriving
	probeBytes     uint64    // of probes since then, both ways
	ahead          int64     // bytes of the counters beyond our own datagrams and busyRate
	busySince      time.Time // first reading of traffic that has not paused yet,
	busyAt         time.Time // and the newest
	busyUntil      time.Time
	dense          bool
	steady         float64 // share of the last readings that showed traffic arriving
}

func newPacer(phase time.Duration) pacer {
	return pacer{phase: phase, every: probingPace, wanted: probingPace, farWant: slowest}
}

// SetPace says what the link is used for, whether an uplink at either end of
// it is metered, and the shortest interval that the budgets allow.
func (l *Link) SetPace(now time.Time, pace Pace, metered bool, floor time.Duration) {
	l.demand = demand{pace, metered, floor}
	l.hurry(now)
}

func (d demand) class() int {
	if d.metered {
		return 1
	}
	return 0
}

// pace is the interval for what the link is used for.
func (l *Link) pace() time.Duration { return paces[l.class()][l.demand.pace] }

// need is the interval at which this end needs probes in both directions.
func (l *Link) need(now time.Time) time.Duration {
	use, doubt := l.pace(), doubtPaces[l.class()]
	if now.Before(l.busyUntil) {
		use = min(use, paces[l.class()][Carrying])
	}
	switch l.state {
	case Probing, Down:
		if l.good > 0 {
			return min(use, doubt/2) // on its way up
		}
		return min(max(now.Sub(l.since)/16, probingPace, doubt), hopeless)
	case Suspect:
		return min(use, doubt)
	case Headless:
		if now.Sub(l.since) >= headlessPatience {
			return max(use, doubt)
		}
		return min(use, doubt)
	}
	if !l.oneWay.IsZero() || !l.heard.IsZero() && !now.Before(l.doubtAt()) {
		return min(use, doubt)
	}
	if l.dense && l.metered {
		return use * stretch
	}
	return use
}

// target is the interval at which to send: what this end needs or the other
// wishes, as far as the budget goes.
func (l *Link) target(now time.Time) time.Duration {
	t := l.need(now)
	if l.good > 0 {
		t = min(t, l.farWant)
	}
	return min(max(t, l.floor, fastest), slowest)
}

// hurry lets a probe leave at once if the pace is to be faster.
func (l *Link) hurry(now time.Time) {
	if l.spoke && l.target(now) < l.every {
		l.sendBy(now)
	}
}

// sendBy lets the next probe leave at once, but not too soon after the last.
func (l *Link) sendBy(now time.Time) {
	l.nextSend = earliest(l.nextSend, latest(now, l.lastSent.Add(fastest)))
}

// answer takes what a probe says about the far end's wishes; news is whether
// it announces another interval than the one before.
func (l *Link) answer(at time.Time, p wire.Probe, news bool) {
	l.farWant = slowest
	if p.Want > 0 {
		l.farWant = time.Duration(p.Want) * time.Microsecond
	}
	switch {
	case !l.spoke:
		l.nextSend = at // the tunnel stands: answer
	case news, !l.confirmed && int32(l.seq-l.announcedSeq) >= 0:
		// It waits to hear that we know its pace, or does not know ours:
		// perhaps the news was lost.
		l.sendBy(at)
	default:
		l.hurry(at)
	}
}

// echoed takes the number of our newest probe that the far end has.
func (l *Link) echoed(seq uint32) {
	if !l.confirmed && int32(seq-l.announcedSeq) >= 0 {
		l.confirmed, l.every = true, l.announced
	}
	if l.askedSeq != 0 && int32(seq-l.askedSeq) >= 0 {
		l.askedSeq = 0
	}
}

// Probe gives the probe to send if one is due: digest is that of the node's
// link-state database, session the header of the neighbour's session.
func (l *Link) Probe(now time.Time, digest uint64, session wire.Header) (wire.Probe, bool) {
	var pad uint16
	switch {
	case !now.Before(l.nextSend):
		l.advance(now)
		if l.padDue = l.state == Up && l.mtu.wants(now); l.padDue {
			l.padAt = now.Add(padAfter)
		}
	case l.padDue && !now.Before(l.padAt):
		// The copy has its original's number, so that a size that does not fit
		// is no lost probe.
		l.padDue = false
		pad = l.mtu.pad(l.seq)
	default:
		return wire.Probe{}, false
	}
	l.probeBytes += tunnelBytes(int(pad))
	p := wire.Probe{
		Seq: l.seq, Sent: l.clock(now), Pad: pad, Digest: digest, Session: session,
		Interval: uint32(l.announced / time.Microsecond), Want: uint32(l.wanted / time.Microsecond),
		Loss: uint16(l.loss.share() * math.MaxUint16),
	}
	if l.rxSeq != 0 {
		p.EchoSeq, p.EchoSent = l.rxSeq, l.rxSent
		p.EchoDelay = uint32(min(max(now.Sub(l.rxAt), 0)/time.Microsecond, math.MaxUint32))
		if now.Before(l.suspectAt()) {
			p.Flags |= wire.Hears
		}
	}
	if l.padEchoes > 0 {
		p.PadEcho = l.padSeen
		l.padEchoes--
	}
	if l.state == Down && l.everUp && l.good < returnProbes {
		p.Flags |= wire.HoldsDown
	}
	return p, true
}

// advance begins the next probe: its number, what it announces and asks, and
// when its successor leaves.
func (l *Link) advance(now time.Time) {
	l.seq++
	l.spoke, l.lastSent = true, now
	if t := l.target(now); t != l.announced {
		l.announced, l.announcedSeq, l.confirmed = t, l.seq, false
		l.every = min(l.every, t)
	}
	if l.good == 0 && !l.Usable() {
		l.every = l.announced // there is nobody to frighten
	}
	want := min(max(l.need(now), l.floor), slowest)
	if want < l.wanted {
		if l.askedSeq == 0 && 2*want <= l.interval {
			l.askedSeq, l.askedAt = l.seq, now
		}
	} else if want > l.wanted {
		l.askedSeq = 0
	}
	l.wanted = want

	l.nextSend = now.Add(l.every)
	if l.every <= gridMost {
		// From the clock, not from the last time: when late, the pace is kept
		// and the debt forgotten.
		wait := (l.phase%l.every - time.Duration(l.clock(now))%l.every + l.every) % l.every
		if wait < l.every/4 {
			wait += l.every
		}
		l.nextSend = now.Add(wait)
	}
}

// CountEvery is how often the counters should be read: as often as probes come,
// but no more often than an idle link's need to be to see that it is used.
func (l *Link) CountEvery() time.Duration { return min(l.pace(), idleCount) }

// Traffic takes the tunnel's counters, in bytes. Read at least as often as
// probes come, they are proof of life, and show at once traffic that leaves
// while none arrives; read at any rate, they show an idle link that is used.
func (l *Link) Traffic(now time.Time, received, sent uint64) {
	gap := now.Sub(l.polledAt)
	came, left, probes := received-l.received, sent-l.sent, l.probeBytes
	fresh := !l.polledAt.IsZero() && gap > 0 && gap <= stalePoll && received >= l.received && sent >= l.sent
	before := l.polledAt
	l.polledAt, l.received, l.sent, l.probeBytes = now, received, sent, 0
	if !fresh {
		l.movedAt, l.dense, l.ahead, l.steady = now, false, 0, 0
		return
	}
	flows := 0.0
	if came > probes {
		flows = 1
	}
	enough := min(l.pace(), l.interval) + l.room
	if l.steady < steadyShare {
		enough = max(enough, unsteady)
	}
	l.steady += (flows - l.steady) / steadyMemory
	beyond := func(bytes, rate uint64) bool { return bytes > probes+rate*uint64(gap)/uint64(time.Second) }
	if l.surplus(int64(came+left)-int64(probes)-int64(busyRate*gap/time.Second)) > 0 {
		if now.Sub(l.busyAt) > busyPause {
			l.busySince = now
		}
		l.busyAt = now
		if now.Sub(l.busySince) >= busySettle {
			l.busyUntil = now.Add(busyFor)
		}
	}
	if came > 0 {
		l.movedAt = now
		l.oneWay, l.echoAsked = time.Time{}, time.Time{}
		if l.Usable() {
			// Something came since the last reading; no more is known of when.
			l.heard = latest(l.heard, before)
		}
	} else if left > probes && now.Sub(l.movedAt) >= enough && l.oneWay.IsZero() && l.Usable() {
		l.oneWay = now
	}
	l.dense = gap <= l.pace() && beyond(min(came, left), denseRate)
	l.hurry(now)
}

// surplus adds to what the counters are ahead of our own datagrams, and gives
// how much that is beyond what may merely wait to be read: on a starved machine
// the counters know of probes long before we do.
func (l *Link) surplus(bytes int64) int64 {
	unread := busyBurst + int64(tunnelBytes(0))*int64(readLag/l.every+readLag/l.interval)
	l.ahead = min(max(l.ahead+bytes, -busyBurst), unread+busyBurst)
	return l.ahead - unread
}

// Control takes the size in bytes of a datagram of ours, other than a probe,
// that went through the tunnel in either direction: it is no traffic.
func (l *Link) Control(size int) {
	l.probeBytes += uint64((innerHeaders+size+15)/16*16 + 32)
}

// Busy reports whether the link has carried more than probes and gossip lately.
func (l *Link) Busy(now time.Time) bool { return now.Before(l.busyUntil) }
