package spf

import "math/bits"

// An item of the queue is a distance in the high bits, a node in the low ones.
const (
	distBits = 40
	nodeBits = 64 - distBits
	nodeMask = 1<<nodeBits - 1
)

// A queue gives nodes in the order of their distances, as long as nothing is
// pushed that is nearer than what was popped last. It is the one-level radix
// heap of Ahuja, Mehlhorn, Orlin and Tarjan, "Faster Algorithms for the
// Shortest Path Problem", J. ACM 37 (1990): an item waits in the bucket of the
// highest bit in which its distance differs from the last one popped, and
// moves to a lower bucket at most once per bit. A binary heap spends most of
// its time in branches that no processor can predict; this has few.
//
// Nothing is taken out of the middle: an item whose distance is not its node's
// any more is dropped when it is next looked at.
type queue struct {
	bucket [distBits + 1][]uint64
	filled uint64 // bit i: bucket i is not empty
	last   uint64 // the distance that bucket 0 holds
}

// reset empties the queue and lets distances begin at 0 again.
func (q *queue) reset() {
	for ; q.filled != 0; q.filled &= q.filled - 1 {
		i := bits.TrailingZeros64(q.filled)
		q.bucket[i] = q.bucket[i][:0]
	}
	q.last = 0
}

func (q *queue) push(dist uint64, node uint32) {
	i := bits.Len64(dist ^ q.last)
	q.bucket[i] = append(q.bucket[i], dist<<nodeBits|uint64(node))
	q.filled |= 1 << i
}

// pop takes a nearest node, by the distances of all nodes; false: there is
// none left. A node comes as often as it was pushed with the distance it has.
func (q *queue) pop(dist []uint64) (uint32, bool) {
	for q.filled != 0 {
		if q.filled&1 == 0 {
			q.refill(dist)
			continue
		}
		items := q.bucket[0]
		item := items[len(items)-1]
		q.bucket[0] = items[:len(items)-1]
		if len(items) == 1 {
			q.filled &^= 1
		}
		if node := uint32(item & nodeMask); dist[node] == q.last {
			return node, true
		}
	}
	return 0, false
}

// refill spreads the lowest bucket over those below it.
func (q *queue) refill(dist []uint64) {
	i := bits.TrailingZeros64(q.filled)
	items := q.bucket[i]
	q.bucket[i] = items[:0]
	q.filled &= q.filled - 1

	least := items[0]
	for _, item := range items[1:] {
		least = min(least, item)
	}
	q.last = least >> nodeBits
	for _, item := range items {
		if d, node := item>>nodeBits, uint32(item&nodeMask); dist[node] == d {
			q.push(d, node)
		}
	}
}
