package wire

import (
	"encoding/binary"
	"math/rand/v2"
	"time"
)

const (
	// The bottleneck's buffer: as long as this, or as large as that, whichever holds more.
	bufferTime  = 50 * time.Millisecond
	bufferBytes = 64 << 10

	// What a reordered frame waits beyond its time: at least holdBack, less than twice that.
	holdBack = 5 * time.Millisecond

	etherHeader = 14
	vlanTag     = 4
)

// outcome is what becomes of a frame.
type outcome int

const (
	delivered outcome = iota
	lost
	overflowed
	tooLarge
)

// fate is the decision about one frame. The fields after outcome mean something only if it is delivered.
type fate struct {
	outcome   outcome
	release   time.Duration // when it leaves the wire, on the clock of the caller
	duplicate bool          // it leaves twice
	reordered bool          // it is held back, so that later frames may leave before it
}

// line decides the fate of the frames of one direction. Callers pass a now that never decreases.
type line struct {
	imp  Impairment
	rng  *rand.Rand
	idle time.Duration // when the bottleneck has sent all it accepted
	last time.Duration // when the last frame that keeps its order leaves
}

func newLine(seed uint64, dir Direction) line {
	return line{rng: rand.New(rand.NewPCG(seed, uint64(dir)))}
}

// admit decides about a frame of size bytes that arrives now and whose network-layer part is payload bytes.
func (l *line) admit(now time.Duration, size, payload int) fate {
	if l.imp.MTU > 0 && payload > l.imp.MTU {
		return fate{outcome: tooLarge}
	}
	sent := now
	if l.imp.Rate > 0 {
		start := max(now, l.idle)
		sent = start + serialize(size, l.imp.Rate)
		if start > now && sent-now > buffer(l.imp.Rate) {
			return fate{outcome: overflowed}
		}
		l.idle = sent
	}
	if l.happens(l.imp.Loss) {
		return fate{outcome: lost}
	}
	f := fate{duplicate: l.happens(l.imp.Duplicate), reordered: l.happens(l.imp.Reorder)}
	f.release = sent + l.imp.Delay + l.upTo(l.imp.Jitter)
	if f.reordered {
		f.release = max(f.release, l.last) + holdBack + l.upTo(holdBack)
		return f
	}
	f.release = max(f.release, l.last)
	l.last = f.release
	return f
}

// set changes the impairment and lets what is on the way profit from it: a frame in q leaves when the new settings would
// let it leave if it arrived now, or at its old time if that is earlier. So a healed line is healed at once, and the
// order of frames does not change.
func (l *line) set(now time.Duration, imp Impairment, q *queue) {
	l.imp = imp.sane()
	sent := now
	inOrder := now
	q.sort()
	for i := range q.items {
		it := &q.items[i]
		sent += serialize(len(it.frame), l.imp.Rate)
		it.release = min(it.release, sent+l.imp.Delay+l.imp.Jitter)
		inOrder = max(inOrder, it.release)
	}
	l.idle = min(l.idle, sent)
	l.last = min(l.last, inOrder)
}

func (l *line) happens(p float64) bool { return p > 0 && l.rng.Float64() < p }

func (l *line) upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(l.rng.Int64N(int64(d)))
}

// serialize returns how long size bytes occupy a bottleneck of rate bit/s, rounded up.
func serialize(size int, rate uint64) time.Duration {
	if rate == 0 || size == 0 {
		return 0
	}
	bitns := uint64(size) * 8 * uint64(time.Second)
	return time.Duration((bitns-1)/rate + 1)
}

// buffer returns how much waiting, own sending included, the buffer before a bottleneck of rate bit/s holds.
func buffer(rate uint64) time.Duration {
	return max(bufferTime, serialize(bufferBytes, rate))
}

// payloadSize returns the bytes of an Ethernet frame behind its header and, if present, one VLAN tag.
func payloadSize(frame []byte) int {
	n := len(frame) - etherHeader
	if n >= vlanTag {
		switch binary.BigEndian.Uint16(frame[12:]) {
		case 0x8100, 0x88a8: // 802.1Q, 802.1ad
			n -= vlanTag
		}
	}
	return max(n, 0)
}
