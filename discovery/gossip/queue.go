package gossip

import (
	"cmp"
	"math"
	"slices"
	"sync"

	"guywire/discovery"
)

// A queue holds statements that are still to be passed on: each so many times,
// which grows with the logarithm of the members (Demers et al., 1987), those that
// went out least often first. Memberlist's own queue numbers its messages anew
// when it is empty for a moment, and then takes two of one length for one.
type queue struct {
	mu      sync.Mutex
	waiting []*waiting
	counter uint64
}

type waiting struct {
	about   discovery.Subject
	message []byte
	sent    int
	order   uint64 // of arrival
}

// put replaces what waits of the same subject.
func (q *queue) put(about discovery.Subject, message []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.remove(about)
	q.counter++
	q.waiting = append(q.waiting, &waiting{about: about, message: message, order: q.counter})
}

func (q *queue) drop(about discovery.Subject) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.remove(about)
}

func (q *queue) remove(about discovery.Subject) {
	q.waiting = slices.DeleteFunc(q.waiting, func(w *waiting) bool { return w.about == about })
}

// take gives messages for one packet: each costs its length and overhead, all of
// them limit at most. members are all who are to hear of them.
func (q *queue) take(overhead, limit, members int) (messages [][]byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	slices.SortFunc(q.waiting, func(a, b *waiting) int {
		return cmp.Or(cmp.Compare(a.sent, b.sent), cmp.Compare(b.order, a.order))
	})
	times := retransmits * (1 + int(math.Ceil(math.Log10(float64(members+1)))))
	q.waiting = slices.DeleteFunc(q.waiting, func(w *waiting) bool {
		if limit < overhead+len(w.message) {
			return false
		}
		limit -= overhead + len(w.message)
		messages = append(messages, w.message)
		w.sent++
		return w.sent >= times
	})
	return messages
}
