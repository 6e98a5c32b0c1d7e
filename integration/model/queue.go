package model

import "time"

// A queue holds what is to happen, earliest first, and what is due together in
// the order in which it was put in.
type queue struct {
	heap  []event
	order uint64
}

type event struct {
	at    time.Duration
	order uint64
	run   func()
}

func (e event) before(f event) bool { return e.at < f.at || e.at == f.at && e.order < f.order }

func (q *queue) push(at time.Duration, run func()) {
	q.order++
	q.heap = append(q.heap, event{at, q.order, run})
	for i := len(q.heap) - 1; i > 0; {
		parent := (i - 1) / 2
		if !q.heap[i].before(q.heap[parent]) {
			break
		}
		q.heap[i], q.heap[parent] = q.heap[parent], q.heap[i]
		i = parent
	}
}

func (q *queue) pop() event {
	first, last := q.heap[0], len(q.heap)-1
	q.heap[0] = q.heap[last]
	q.heap[last] = event{}
	q.heap = q.heap[:last]
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < last; child++ {
			if q.heap[child].before(q.heap[least]) {
				least = child
			}
		}
		if least == i {
			return first
		}
		q.heap[i], q.heap[least] = q.heap[least], q.heap[i]
		i = least
	}
}
