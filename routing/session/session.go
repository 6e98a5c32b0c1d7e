// Package session is the neighbour session: a reliable first-in-first-out
// channel for notes between two neighbours, in datagrams over any link that
// works. It is pure: time comes in as an argument, segments and the next
// deadline come out.
//
// Each direction is a byte stream in which notes stand one after the other,
// each behind its length (uvarint). Segments carry parts of it, much as TCP
// does (RFC 9293), and every segment and every probe carries the header, so
// acknowledgements are said again and again.
//
// A session is named by two numbers, one of each end. An end that begins
// anew takes a larger number; what carries a smaller one is late and ignored.
// Streams begin at offset 0 for every pair of numbers, and nothing is believed
// that does not name the pair. So a note is delivered once, in order, and only
// to the session that it was sent to.
//
//	A                                   B
//	│ From a, To 0 ────────────────────► │ knows a
//	│ ◄──────────────────── From b, To a │
//	│ knows b, open                      │
//	│ From a, To b, Open ──────────────► │ open
//
// Besides Received, which acknowledges arrival and rules retransmission, the
// header has Committed: how far the other end's notes are in this end's
// kernel. Loop-freedom rests on it, and it is the owner's to advance.
package session

import (
	"encoding/binary"
	"fmt"
	"time"

	"guywire/routing/wire"
)

const (
	// window bounds what is in flight, and what is kept out of order.
	window      = 64 // segments
	windowBytes = window * wire.MaxSegmentData

	// A lost segment is sent again after 2 RTT + timeoutRoom, then after twice
	// that and so on up to timeoutMax.
	timeoutRoom    = 10 * time.Millisecond
	timeoutUnknown = 250 * time.Millisecond // while no RTT is known
	timeoutMax     = time.Second

	// What arrived in order is acknowledged with the next segment that goes the
	// other way, but within ackDelay, which is well below timeoutRoom, and once
	// ackBytes are waiting for it (RFC 9293 3.8.6.3).
	ackDelay = timeoutRoom / 2
	ackBytes = 4 * wire.MaxSegmentData
)

// A Session is one end of a neighbour session. It is made by New.
type Session struct {
	local, remote uint64
	cold          bool // as our headers say
	open          bool
	err           error // set: broken, nothing more is taken or sent
	// answer: the other end must hear from us at once, by whatever segment.
	//
	// Two ends must not answer each other's answers for ever. Only data and
	// the headers of an end that is not open call for an answer. An open end's
	// header without data calls for none, and two headers each way open both.
	answer bool
	ackBy  time.Time // when the other end must hear from us; zero: need not
	acked  uint64    // of the other end's stream, as our newest segment said
	timer  timer     // of announcements until open, of retransmission from then on

	out       sender
	in        receiver
	committed uint64 // of the other end's stream, by us
	confirmed uint64 // of our stream, by the other end
}

// An Input is what a received header or segment brought.
type Input struct {
	// Restarted: the other end has a number that is new to us, be it the
	// first. The streams in both directions began anew at offset 0 and our
	// queue is empty: earlier serials mean nothing, everything that the other
	// end shall know has to be sent again.
	Restarted bool
	// Cold, with Restarted: the other end holds us down or has forgotten us.
	Cold bool
	// Opened: from now on our notes can flow.
	Opened bool
	// Notes are the other end's, in its order.
	Notes []Note
	// Committed: the other end has committed more of our stream.
	Committed bool
}

// A Note is a received note. Serial is the offset of its end in the other
// end's stream, the same that Send gave there.
type Note struct {
	Body   []byte
	Serial uint64
}

// New makes an end with nothing to say yet. Its number must be larger than
// that of every earlier session of this node with the same neighbour.
func New(local uint64) *Session {
	return &Session{local: local, out: sender{window: initialWindow}}
}

// Local is this end's number, Remote the other's; 0: not known yet.
func (s *Session) Local() uint64  { return s.local }
func (s *Session) Remote() uint64 { return s.remote }

// Open reports whether the other end has spoken to our number, so that our
// notes can flow.
func (s *Session) Open() bool { return s.open }

// Send appends a note of 1 to wire.MaxNote bytes to the stream and returns
// the offset of its end. It goes out with the next Poll once the session is
// open.
func (s *Session) Send(note []byte) (serial uint64) {
	if len(note) == 0 || len(note) > wire.MaxNote {
		panic(fmt.Sprintf("session: a note of %d bytes", len(note)))
	}
	s.out.queue = binary.AppendUvarint(s.out.queue, uint64(len(note)))
	s.out.queue = append(s.out.queue, note...)
	return s.out.end()
}

// Room reports whether less than a window is queued. Without room the owner
// should wait and combine what it has to say.
func (s *Session) Room() bool { return len(s.out.queue) < windowBytes }

// Commit says that all up to serial in the other end's stream is acted upon
// and in our kernel. It never goes back; a serial beyond what has arrived is
// of an earlier stream and ignored.
func (s *Session) Commit(serial uint64) {
	if serial > s.committed && serial <= s.in.received {
		s.committed = serial
		s.answer = true
	}
}

// Committed is how much of our stream the other end has committed.
func (s *Session) Committed() uint64 { return s.confirmed }

// SetCold says whether we hold the other end down or have forgotten it. The
// other end learns it with our number.
func (s *Session) SetCold(cold bool) { s.cold = cold }

// Header is for the next probe.
func (s *Session) Header() wire.Header {
	return wire.Header{
		From: s.local, To: s.remote, Received: s.in.received, Committed: s.committed,
		Cold: s.cold, Open: s.open, Gap: len(s.in.ahead) > 0,
	}
}

// Nudge says that the link used before died: what is outstanding is sent
// again at the next Poll.
func (s *Session) Nudge() {
	s.timer = timer{}
	s.out.rewind(initialWindow)
	s.answer = true // the last acknowledgement may be lost, too
}

// Receive takes a header, of a probe (seg nil) or of the segment seg. After an
// error the session is broken: it takes and sends nothing more, and the owner
// begins a new one.
func (s *Session) Receive(now time.Time, h wire.Header, seg *wire.Segment) (in Input, err error) {
	switch {
	case s.err != nil:
		return Input{}, s.err
	case h.From == 0 || h.From < s.remote:
		return Input{}, nil // late, from a session that is over
	case h.From > s.remote:
		*s = Session{local: s.local, remote: h.From, cold: s.cold, answer: true, out: sender{window: initialWindow}}
		in.Restarted, in.Cold = true, h.Cold
	}
	if h.To != s.local {
		// Once it has spoken to our number it knows it: then this one is late.
		s.answer = s.answer || !s.open
		return in, nil
	}
	if !s.open {
		s.open, in.Opened = true, true
		s.timer = timer{}
	}
	s.answer = s.answer || !h.Open
	if err := s.take(now, h, seg, &in); err != nil {
		s.err = fmt.Errorf("the neighbour session is broken, begin a new one: %w", err)
		return Input{}, s.err
	}
	return in, nil
}

// take believes a header that names both ends, and what comes with it.
func (s *Session) take(now time.Time, h wire.Header, seg *wire.Segment, in *Input) error {
	if h.Received > s.out.sent || h.Committed > h.Received {
		return fmt.Errorf("the other end acknowledges %d bytes and commits %d of the %d sent", h.Received, h.Committed, s.out.sent)
	}
	if h.Committed > s.confirmed {
		s.confirmed, in.Committed = h.Committed, true
	}
	switch {
	case h.Received > s.out.acked:
		s.out.acknowledge(h.Received)
		s.timer = timer{since: now}
	case h.Gap && h.Received == s.out.acked && seg != nil && len(seg.Data) == 0 && !in.Committed:
		// Answers without a gap tell of commits, of duplicates, of a session
		// that opens while data is on its way.
		s.out.repeat()
	}
	if seg == nil || len(seg.Data) == 0 {
		return nil
	}
	before := s.in.received
	if err := s.in.store(seg.Offset, seg.Data); err != nil {
		return err
	}
	switch {
	case len(s.in.ahead) > 0 || s.in.received == before || s.in.received-s.acked >= ackBytes:
		// Something is lost, or was repeated in vain: the other end must know.
		s.answer = true
	case s.ackBy.IsZero():
		s.ackBy = now.Add(ackDelay)
	}
	notes, err := s.in.notes()
	in.Notes = notes
	return err
}

// Poll gives the segments to send now, and when to ask again if nothing
// happens; zero: never. An rtt of 0 or less is unknown. The data of a segment
// is part of the queue: read it, never write to it.
func (s *Session) Poll(now time.Time, rtt time.Duration) (segs []wire.Segment, deadline time.Time) {
	if s.err != nil {
		return nil, time.Time{}
	}
	waiting := !s.open || s.out.outstanding()
	if waiting && s.timer.ranOut(now, rtt) {
		if s.open {
			s.out.rewind(lossWindow)
		} else {
			s.answer = true
		}
	}
	if s.open {
		idle := !s.out.outstanding()
		for {
			offset, data := s.out.part()
			if len(data) == 0 {
				break
			}
			segs = append(segs, wire.Segment{Header: s.Header(), Offset: offset, Data: data})
		}
		if idle {
			s.timer.since = now
		}
	}
	if len(segs) == 0 && (s.answer || !s.ackBy.IsZero() && !now.Before(s.ackBy)) {
		segs = append(segs, wire.Segment{Header: s.Header(), Offset: s.out.next})
	}
	s.answer = false
	if len(segs) > 0 {
		s.ackBy, s.acked = time.Time{}, s.in.received
	}
	deadline = s.ackBy
	if !s.open || s.out.outstanding() {
		if at := s.timer.deadline(rtt); deadline.IsZero() || at.Before(deadline) {
			deadline = at
		}
	}
	return segs, deadline
}

// A timer runs out at growing distances (RFC 6298 5.5).
type timer struct {
	since    time.Time // zero: never started, runs out at once
	expiries int
}

func (t *timer) deadline(rtt time.Duration) time.Time {
	wait := timeoutUnknown
	if rtt > 0 {
		wait = 2*rtt + timeoutRoom
	}
	most := max(wait, timeoutMax)
	for i := 0; i < t.expiries && wait < most; i++ {
		wait *= 2
	}
	return t.since.Add(min(wait, most))
}

// ranOut reports whether the timer ran out, and winds it up again.
func (t *timer) ranOut(now time.Time, rtt time.Duration) bool {
	switch {
	case t.since.IsZero():
	case now.Before(t.deadline(rtt)):
		return false
	default:
		t.expiries++
	}
	t.since = now
	return true
}
