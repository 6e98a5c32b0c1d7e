package session

import "guywire/routing/wire"

const (
	// initialWindow is how many segments go out on a path of unknown capacity
	// (RFC 6928). The full window at once would stand in a thin uplink's queue
	// before the probes, and look like a dead link.
	initialWindow = 10
	// lossWindow is how many are tried again when a whole flight went
	// unanswered: most of what is said fits and is repaired in one round.
	lossWindow = 4
	// repeatsForLoss acknowledgements that repeat the one before mean that a
	// segment is lost and not just overtaken (RFC 5681 3.2).
	repeatsForLoss = 3
)

// A sender is our stream towards the other end: which part of it is
// acknowledged, in flight, waiting. Bytes in queue never change once they are
// there.
type sender struct {
	queue   []byte // the stream from acked on
	acked   uint64 // acked ≤ next ≤ sent ≤ end()
	next    uint64 // the first byte to send next
	sent    uint64 // what was ever sent ends here
	window  int    // segments that may be in flight, lossWindow to window
	repeats int    // acknowledgements in a row that said acked
	mend    uint64 // up to here everything was in flight when the last loss was seen
	hole    bool   // the segment at acked is lost
}

func (q *sender) end() uint64       { return q.acked + uint64(len(q.queue)) }
func (q *sender) outstanding() bool { return q.next > q.acked }

// part gives the next segment's worth of the stream, empty if there is none
// or the window has no place for all of it (RFC 9293 3.8.6.2.1: no crumbs).
func (q *sender) part() (offset uint64, data []byte) {
	offset = q.next
	if q.hole {
		offset, q.hole = q.acked, false
	}
	end := min(offset+wire.MaxSegmentData, q.end())
	if end == offset || end > q.acked+uint64(q.window)*wire.MaxSegmentData {
		return offset, nil
	}
	q.next = max(q.next, end)
	q.sent = max(q.sent, q.next)
	return offset, q.queue[offset-q.acked : end-q.acked : end-q.acked]
}

// acknowledge takes that everything up to received, beyond acked, has arrived.
func (q *sender) acknowledge(received uint64) {
	n := received - q.acked
	if q.queue = q.queue[n:]; len(q.queue) == 0 {
		q.queue = nil
	}
	q.acked = received
	q.next = max(q.next, received)
	q.repeats = 0
	q.window = min(q.window+int((n+wire.MaxSegmentData-1)/wire.MaxSegmentData), window)
	// What was in flight at the time of a loss and is still not acknowledged
	// begins with the next loss (RFC 6582 3.2).
	q.hole = received < q.mend
}

// repeat takes an acknowledgement that said nothing new.
func (q *sender) repeat() {
	if q.repeats++; q.repeats == repeatsForLoss && q.outstanding() && q.acked >= q.mend {
		q.mend = q.next
		q.hole = true
		q.window = max(q.window/2, lossWindow)
	}
}

// rewind begins again at the first byte that is not acknowledged.
func (q *sender) rewind(window int) {
	q.next = q.acked
	q.mend = q.acked
	q.repeats = 0
	q.window = window
}
