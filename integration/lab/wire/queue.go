package wire

import (
	"cmp"
	"slices"
	"time"
)

// What may be on the way in one direction, beyond the bottleneck's own buffer: enough for 1 Gbit/s of full frames over
// 130 ms. Frames that arrive when it is full are dropped, as a tail drop.
const (
	maxQueuedFrames = 16 << 10
	maxQueuedBytes  = 16 << 20
)

// item is a frame on its way. The queue owns the bytes.
type item struct {
	release time.Duration
	order   uint64 // equal times leave in this order
	frame   []byte
}

func (a *item) compare(b *item) int {
	if c := cmp.Compare(a.release, b.release); c != 0 {
		return c
	}
	return cmp.Compare(a.order, b.order)
}

// queue is a binary heap by time of release. Nearly all pushes are at the far end and cost one comparison.
type queue struct {
	items []item
	bytes int
	next  uint64
}

func (q *queue) len() int { return len(q.items) }

// full reports whether size bytes more would pass a limit.
func (q *queue) full(size int) bool {
	return len(q.items) >= maxQueuedFrames || q.bytes+size > maxQueuedBytes
}

// head returns when the first frame leaves; the queue must not be empty.
func (q *queue) head() time.Duration { return q.items[0].release }

func (q *queue) push(release time.Duration, frame []byte) {
	q.items = append(q.items, item{release, q.next, frame})
	q.next++
	q.bytes += len(frame)
	for i := len(q.items) - 1; i > 0; {
		parent := (i - 1) / 2
		if q.items[parent].compare(&q.items[i]) <= 0 {
			return
		}
		q.items[parent], q.items[i] = q.items[i], q.items[parent]
		i = parent
	}
}

// pop removes the frame that leaves first and hands it over; the queue must not be empty.
func (q *queue) pop() []byte {
	frame := q.items[0].frame
	q.bytes -= len(frame)
	n := len(q.items) - 1
	q.items[0], q.items[n] = q.items[n], item{}
	q.items = q.items[:n]
	for i := 0; ; {
		child := 2*i + 1
		if child >= n {
			return frame
		}
		if right := child + 1; right < n && q.items[right].compare(&q.items[child]) < 0 {
			child = right
		}
		if q.items[i].compare(&q.items[child]) <= 0 {
			return frame
		}
		q.items[i], q.items[child] = q.items[child], q.items[i]
		i = child
	}
}

// sort puts the items into the order in which they leave, and makes that the order for equal times. A sorted slice is a
// valid heap, and stays one while releases change without changing that order.
func (q *queue) sort() {
	slices.SortFunc(q.items, func(a, b item) int { return a.compare(&b) })
	for i := range q.items {
		q.items[i].order = q.next
		q.next++
	}
}
