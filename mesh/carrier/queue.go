package carrier

import "time"

const (
	// QueueFrames bounds a Queue: with frames of the largest size, 128 KiB.
	QueueFrames = 64
	// MaxAge is how long a datagram may wait for the stream. It is time enough
	// to connect, so that the handshake with which a tunnel begins is not lost
	// (WireGuard repeats it after 5 s); what is older, its sender has repeated.
	MaxAge = 2 * time.Second
)

// A Queue holds the datagrams that wait for a stream. It never refuses the
// newest: when it is full, the oldest goes, so that the sender inside hears of
// the loss one queue earlier (Lakshman, Neidhardt, Ott, "The drop from front
// strategy in TCP and in TCP over ATM", INFOCOM 1996). The zero value is empty.
type Queue struct {
	waiting [QueueFrames]waiting
	first   int
	length  int
	dropped uint64
}

type waiting struct {
	since time.Time
	size  int
	data  [MaxDatagram]byte
}

// Push takes a copy of a datagram. One that no frame can hold counts as dropped.
func (q *Queue) Push(now time.Time, datagram []byte) {
	if !fits(datagram) {
		q.dropped++
		return
	}
	if q.length == QueueFrames {
		q.drop()
	}
	w := &q.waiting[(q.first+q.length)%QueueFrames]
	w.since, w.size = now, copy(w.data[:], datagram)
	q.length++
}

// AppendTo moves frames from the front of the queue to the end of dst, as many
// as its capacity holds: with a capacity of BatchSize at least one. What has
// waited for longer than MaxAge is dropped.
func (q *Queue) AppendTo(dst []byte, now time.Time) []byte {
	for q.length > 0 {
		w := &q.waiting[q.first]
		if now.Sub(w.since) > MaxAge {
			q.drop()
			continue
		}
		if header+w.size > cap(dst)-len(dst) {
			break
		}
		dst = AppendFrame(dst, w.data[:w.size])
		q.next()
	}
	return dst
}

// Dropped counts the datagrams that were pushed and will not come out.
func (q *Queue) Dropped() uint64 { return q.dropped }

func (q *Queue) drop() {
	q.dropped++
	q.next()
}

func (q *Queue) next() {
	q.first = (q.first + 1) % QueueFrames
	q.length--
}
