package link

import (
	"math"
	"time"
)

const (
	// suspectMisses probes in a row, when missing, make a link suspect;
	// deafMisses do while the counters say that traffic leaves and none comes.
	suspectMisses = 3
	deafMisses    = 2
	// echoMisses make us ask the far end's kernel, at most every echoPause.
	echoMisses = 2
	echoPause  = 20 * time.Millisecond
	// minMisses and maxMisses bound the misses that make a link down, minDown
	// their time: at a fast pace it takes more of them.
	minMisses = 5
	maxMisses = 12
	minDown   = 150 * time.Millisecond
	// month is the time in which one false down is tolerated.
	month = 30 * 24 * time.Hour
	// leastLoss is assumed of every path, however clean it looks.
	leastLoss = 0.001
	// minRoom and maxRoom bound what is granted on top of counted intervals.
	minRoom = 5 * time.Millisecond
	maxRoom = 250 * time.Millisecond
	// roomMemory is the time in which room shrinks by a factor of e.
	roomMemory = 8 * time.Second
	// unknownRTT is how long an answer may take while no round trip is known.
	unknownRTT = time.Second
)

// silence is what is known about hearing nothing.
type silence struct {
	heard    time.Time     // newest sign of life of the path; silence is counted from here
	agentAt  time.Time     // newest probe; both move when this node was not running
	interval time.Duration // between the far end's probes, as it says
	room     time.Duration // granted for jitter of the path and of the far end's timers
	grace    time.Duration // granted for this node's own troubles; see Guard

	askedSeq uint32    // first of our probes that asked for a faster pace and has no answer yet; 0: none
	askedAt  time.Time // when it left
	oneWay   time.Time // since when the counters say that traffic leaves and none comes

	echoAsked time.Time // first request of the present silence
	echoSent  time.Time // newest request
	echoAt    time.Time // newest answer
}

// hear notes a probe that came at a time and promises the next.
func (l *Link) hear(at time.Time, promised time.Duration) {
	l.heard, l.agentAt = latest(l.heard, at), latest(l.agentAt, at)
	l.interval = min(promised, 2*slowest)
	l.oneWay = time.Time{}
}

// arrived adapts the room to how much later than promised a probe came, after
// gap and step-1 missing ones. Room follows lateness up fast and down slowly,
// so that about one probe in a hundred comes later than it allows.
func (s *silence) arrived(gap time.Duration, step uint32) {
	gap = max(gap, 0) // the wall clock of time stamps may be set
	late := min(gap-time.Duration(step)*s.interval, 2*maxRoom)
	if late > s.room {
		s.room += (late - s.room) / 4
	} else {
		s.room -= time.Duration(float64(s.room-minRoom) * min(float64(gap)/float64(roomMemory), 1))
	}
	s.room = min(max(s.room, minRoom), maxRoom)
}

// missed is when, with nothing heard until then, count misses in a row are
// complete: by what the far end promised, or by what we asked in vain.
func (l *Link) missed(count func(interval time.Duration) int) time.Time {
	window := time.Duration(count(l.interval))*l.interval + l.room
	if l.askedSeq != 0 {
		pace := max(l.wanted, l.every)
		asked := l.askedAt.Sub(l.heard) + l.answerTime() + time.Duration(count(pace)-1)*pace + l.room
		window = min(window, asked)
	}
	return l.heard.Add(window + min(l.grace, max(window, 0)))
}

func times(n int) func(time.Duration) int { return func(time.Duration) int { return n } }

// suspectAt and downAt are when the present silence, if it lasts, makes the
// link suspect or down; echoFrom when the far end's kernel is asked; doubtAt
// when a probe is overdue.
func (l *Link) suspectAt() time.Time {
	if !l.oneWay.IsZero() {
		return l.missed(times(deafMisses))
	}
	return l.missed(times(suspectMisses))
}

func (l *Link) downAt() time.Time   { return l.missed(l.downMisses) }
func (l *Link) echoFrom() time.Time { return l.missed(times(echoMisses)) }
func (l *Link) doubtAt() time.Time  { return l.missed(times(1)) }

// agentGoneAt is when the far end's agent is held to be away although traffic
// arrives.
func (l *Link) agentGoneAt() time.Time {
	window := time.Duration(l.downMisses(l.interval))*l.interval + l.room
	return l.agentAt.Add(window + min(l.grace, window))
}

// answerTime is how long the far end's agent or kernel may take to answer.
func (l *Link) answerTime() time.Duration {
	if l.RTT() == 0 {
		return unknownRTT
	}
	return max(l.RTT(), l.last) + 4*l.jitter
}

// downMisses is the smallest number of misses in a row that loss as measured
// brings about less than once a month at a pace, in the model of Gilbert
// (1960): a burst begins with a probe's chance share/burst and goes on with
// chance 1-1/burst; with independent loss that is the loss itself.
func (l *Link) downMisses(pace time.Duration) int {
	share, burst := l.loss.shape()
	share = min(max(share, leastLoss), 0.9)
	goesOn := min(max(share, 1-1/burst), 0.9)
	begins := float64(month) / float64(pace) * share * (1 - goesOn)
	k := 1 + int(math.Ceil(math.Log(1/max(begins, 1))/math.Log(goesOn)))
	return min(max(k, minMisses, int((minDown+pace-1)/pace)), maxMisses)
}

// Echo reports whether to ask the far end's kernel now.
func (l *Link) Echo(now time.Time) bool {
	if !l.Usable() || l.heard.IsZero() || now.Before(l.echoFrom()) || now.Sub(l.echoSent) < l.echoPace(now) {
		return false
	}
	if l.echoAsked.IsZero() {
		l.echoAsked = now
	}
	l.echoSent = now
	return true
}

// echoPace is the time between questions to the far end's kernel: while its
// agent is away they stand in for the probes.
func (l *Link) echoPace(now time.Time) time.Duration { return max(l.need(now), echoPause) }

// Echoed takes an answer of the far end's kernel.
func (l *Link) Echoed(at time.Time) { l.echoAt = at }

// kernelAnswers is until when the far end's kernel is held to forward without its
// agent: while an echo came back recently enough. Once that is known, every sign of
// life counts; what is read as traffic may be the answers themselves. Zero: never.
func (l *Link) kernelAnswers(now time.Time) time.Time {
	proof := l.echoAt
	switch {
	case l.state == Headless:
		proof = latest(proof, l.heard)
	case l.echoAsked.IsZero() || !proof.After(l.echoAsked):
		return time.Time{}
	}
	pace := l.echoPace(now)
	window := time.Duration(l.downMisses(pace))*pace + l.room
	return proof.Add(window + min(l.grace, window))
}

// echoDue is when an answer to the first request of the present silence, if
// there is one, is here.
func (l *Link) echoDue() time.Time { return l.echoAsked.Add(l.answerTime() + max(l.room, echoPause)) }

// excuse grants the link the time that this node itself was not running: a
// starving agent must not blame its neighbours.
func (l *Link) excuse(now time.Time, stall time.Duration) {
	if l.heard.IsZero() {
		return
	}
	l.heard, l.agentAt = earliest(l.heard.Add(stall), now), earliest(l.agentAt.Add(stall), now)
	if l.askedSeq != 0 {
		l.askedAt = earliest(l.askedAt.Add(stall), now)
	}
	if !l.echoAsked.IsZero() {
		l.echoAsked = earliest(l.echoAsked.Add(stall), now)
	}
}
