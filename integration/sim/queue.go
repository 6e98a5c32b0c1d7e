package sim

import (
	"time"

	"guywire/mesh/core"
	"guywire/routing/wire"
)

// An event is something that happens later: a datagram arrives, an echo
// request or its answer does, or do is done.
type event struct {
	at      time.Duration // since Epoch
	order   uint64        // of events at one time
	to      *tunnel       // a datagram, a request or an answer arrives here
	message wire.Message
	size    uint64 // as the tunnel counts it, bytes
	echo    echo
	do      func()
}

type echo uint8

const (
	noEcho echo = iota
	echoRequest
	echoReply
)

// queue is a heap of events with four children a node: flatter than one of
// two, and its entries are moved, not boxed.
type queue struct{ list []event }

func (a *event) before(b *event) bool { return a.at < b.at || a.at == b.at && a.order < b.order }

func (q *queue) push(e event) {
	q.list = append(q.list, e)
	i := len(q.list) - 1
	for i > 0 {
		parent := (i - 1) / 4
		if !e.before(&q.list[parent]) {
			break
		}
		q.list[i] = q.list[parent]
		i = parent
	}
	q.list[i] = e
}

func (q *queue) pop() event {
	first, last := q.list[0], len(q.list)-1
	e := q.list[last]
	q.list[last] = event{}
	q.list = q.list[:last]
	if last == 0 {
		return first
	}
	i := 0
	for {
		child := 4*i + 1
		if child >= last {
			break
		}
		for c := child + 1; c < min(4*i+5, last); c++ {
			if q.list[c].before(&q.list[child]) {
				child = c
			}
		}
		if !q.list[child].before(&e) {
			break
		}
		q.list[i] = q.list[child]
		i = child
	}
	q.list[i] = e
	return first
}

// alarms is a heap of the nodes that want to be woken, each once.
type alarms struct{ list []*Node }

func (n *Node) sooner(m *Node) bool {
	return n.alarm < m.alarm || n.alarm == m.alarm && n.Index < m.Index
}

// set makes a node ring at a time, and no longer at another.
func (a *alarms) set(n *Node, at time.Duration) {
	if n.alarmed == 0 {
		a.list = append(a.list, n)
		n.alarmed = len(a.list)
		n.alarm = at
		a.up(n)
		return
	}
	earlier := at < n.alarm
	n.alarm = at
	if earlier {
		a.up(n)
	} else {
		a.down(n)
	}
}

// clear makes a node silent.
func (a *alarms) clear(n *Node) {
	if n.alarmed == 0 {
		return
	}
	last := a.list[len(a.list)-1]
	a.list = a.list[:len(a.list)-1]
	if last != n {
		a.put(last, n.alarmed-1)
		a.up(last)
		a.down(last)
	}
	n.alarmed = 0
}

func (a *alarms) put(n *Node, i int) { a.list[i], n.alarmed = n, i+1 }

func (a *alarms) up(n *Node) {
	i := n.alarmed - 1
	for i > 0 && n.sooner(a.list[(i-1)/2]) {
		a.put(a.list[(i-1)/2], i)
		i = (i - 1) / 2
	}
	a.put(n, i)
}

func (a *alarms) down(n *Node) {
	i := n.alarmed - 1
	for {
		child := 2*i + 1
		if child >= len(a.list) {
			break
		}
		if child+1 < len(a.list) && a.list[child+1].sooner(a.list[child]) {
			child++
		}
		if !a.list[child].sooner(n) {
			break
		}
		a.put(a.list[child], i)
		i = child
	}
	a.put(n, i)
}

// Run lets virtual time pass. What arrives at a moment is heard before a node
// is woken at it.
func (w *World) Run(d time.Duration) {
	stop := w.now + d
	for {
		event, alarm := len(w.queue.list) > 0, len(w.alarms.list) > 0
		if event && alarm {
			event = w.queue.list[0].at <= w.alarms.list[0].alarm
			alarm = !event
		}
		switch {
		case event && w.queue.list[0].at <= stop:
			e := w.queue.pop()
			w.set(e.at)
			w.happen(&e)
		case alarm && w.alarms.list[0].alarm <= stop:
			n := w.alarms.list[0]
			w.set(n.alarm)
			n.step(core.Tick{})
		default:
			w.set(stop)
			return
		}
		w.Events++
		if w.Check != nil && w.changed {
			w.Check(w)
		}
		w.changed = false
	}
}

func (w *World) set(now time.Duration) { w.now, w.Now = now, Epoch.Add(now) }

// After does something later.
func (w *World) After(d time.Duration, do func()) { w.push(d, event{do: do}) }

func (w *World) push(d time.Duration, e event) {
	w.order++
	e.at, e.order = w.now+d, w.order
	w.queue.push(e)
}

func (w *World) happen(e *event) {
	switch {
	case e.do != nil:
		e.do()
	case e.echo == noEcho:
		e.to.arrive(e.message, e.size)
	default:
		e.to.echoed(e.echo)
	}
}
