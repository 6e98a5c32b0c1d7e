package link

import (
	"time"

	"guywire/routing/wire"
)

const (
	// innerHeaders is what IPv6 (40) and UDP (8) add to a probe inside the
	// tunnel. Sizes are those of inner packets with them.
	innerHeaders = 48
	// baseMTU is taken to pass everywhere: IPv6 demands it (RFC 8200 5).
	baseMTU = 1280
	// mtuStep is how exactly the size is searched.
	mtuStep = 8
	// mtuTries copies must be lost for a size to be too large, blackTries for
	// one that passed before: a lossy path is no black hole.
	mtuTries   = 3
	blackTries = 6
	// confirmEvery probes the size in use is tried again: 3 % more bytes.
	confirmEvery = 256
	// raiseEvery a larger size is tried again (RFC 8899 PMTU_RAISE_TIMER).
	raiseEvery = 10 * time.Minute
)

// mtuSearch finds the largest packet that passes, by padded probes: datagram
// packetisation layer path MTU discovery (RFC 8899). It tries the limit first,
// which most paths carry, then halves the rest. A size is too large when three
// padded copies are lost while later, small probes arrive; when that befalls
// the size in use, the path has become a black hole for it and the search
// begins again from the base. It does not see a path that fragments the
// tunnel's own datagrams, for there every size passes.
type mtuSearch struct {
	limit    int
	proven   int // largest size known to pass; 0: base
	tooBig   int // smallest size known not to pass; beyond limit: none
	searched bool

	size  int // under trial; 0: none
	tries int
	seq   uint32    // of the newest padded copy; 0: none sent yet
	left  int       // probes until the size in use is confirmed
	raise time.Time // when a larger size is tried
}

func (m *mtuSearch) setLimit(limit int) {
	if limit != m.limit {
		*m = mtuSearch{limit: limit}
		m.restart()
	}
}

// restart begins the search again from the base.
func (m *mtuSearch) restart() {
	m.proven, m.tooBig = baseMTU, m.limit+mtuStep
	if m.limit <= baseMTU {
		m.searched = true
		return
	}
	m.try(m.limit)
}

func (m *mtuSearch) try(size int) { m.size, m.tries, m.seq = size, 0, 0 }

// result is what is known to pass, and whether that is the final word.
func (m *mtuSearch) result() (size int, searched bool) { return max(m.proven, baseMTU), m.searched }

// wants reports whether a padded copy is to follow the probe just sent.
func (m *mtuSearch) wants(now time.Time) bool {
	if m.size == 0 && m.proven > baseMTU {
		if m.left--; m.left <= 0 {
			m.try(m.proven)
		}
	}
	if m.size == 0 && m.proven < m.limit && !now.Before(m.raise) {
		m.tooBig = m.limit + mtuStep
		m.try(min(m.proven+mtuStep, m.limit))
	}
	return m.size != 0 && m.seq == 0
}

// pad is the padding of the copy of probe seq.
func (m *mtuSearch) pad(seq uint32) uint16 {
	m.seq = seq
	return uint16(min(m.size-innerHeaders-wire.ProbeLen, wire.MaxPad))
}

// heard takes what the far end says: its newest probe of ours, and the largest
// padding that came lately.
func (m *mtuSearch) heard(at time.Time, seq uint32, padding uint16) {
	switch {
	case m.size == 0 || m.seq == 0:
		return
	case int(padding)+innerHeaders+wire.ProbeLen >= m.size:
		m.proven = max(m.proven, m.size)
	case int32(seq-m.seq) <= 0:
		return // nothing later has come either
	default:
		m.seq = 0
		m.tries++
		switch {
		case m.size <= m.proven && m.tries >= blackTries:
			m.restart()
			return
		case m.size <= m.proven || m.tries < mtuTries:
			return
		}
		m.tooBig = m.size
	}
	if m.tooBig-m.proven > mtuStep {
		m.try(min(m.proven+max((m.tooBig-m.proven)/2/mtuStep, 1)*mtuStep, m.limit))
		return
	}
	m.try(0)
	m.searched, m.left = true, confirmEvery
	if !at.Before(m.raise) {
		m.raise = at.Add(raiseEvery)
	}
}
