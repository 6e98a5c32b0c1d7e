package agent

import (
	"context"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/core"
	"guywire/routing/wire"
)

// loop owns the core: events, queries and one timer come together here.
func (m *member) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case ev := <-m.events:
			m.step(ev)
		case q := <-m.queries:
			q(m.node)
		case <-timer.C:
			m.step()
		case <-ctx.Done():
			return nil
		}
		if m.dirty {
			m.dirty = false
			m.reconcile()
		}
		timer.Reset(max(min(time.Until(m.deadline), time.Until(m.countAt)), 0))
	}
}

// count reads the devices' counters if it is nearly time to: when something else
// is due, because to wake up costs more than to read.
func (m *member) count() []core.Event {
	now := time.Now()
	if now.Before(m.countAt.Add(-m.countEvery / 4)) {
		return nil
	}
	m.countAt = now.Add(m.countEvery)
	devices, err := m.kernel.Counters()
	if err != nil {
		return nil
	}
	return []core.Event{core.Counted{Devices: devices}}
}

// step feeds the core some events and those that are queued behind them, up to a batch,
// and hands out what it wants. What has already arrived is heard before time is judged.
func (m *member) step(evs ...core.Event) {
	woken := len(evs) == 0 // by the timer
	for len(evs) < batch {
		select {
		case ev := <-m.events:
			evs = append(evs, ev)
			continue
		default:
		}
		break
	}
	if woken {
		evs = append(evs, m.count()...)
	}
	r := m.node.Step(time.Now(), evs...)
	for _, d := range r.Send {
		m.send(d.Target, d.Payload)
	}
	for _, t := range r.Echo {
		m.send(t, nil)
	}
	for _, a := range r.Attempt {
		m.startAttempt(a)
	}
	for _, link := range r.Cancel {
		m.attempts.Cancel(link, errBlocked)
	}
	for _, f := range r.Facts {
		m.record(f)
		if f.Kind == core.LinkDown || f.Kind == core.LinkFailed {
			m.doubt(f.Link.Local)
		}
	}
	for _, s := range r.Sights {
		m.sighted(s)
	}
	if r.Distances != nil {
		m.mu.Lock()
		m.distances = *r.Distances
		m.mu.Unlock()
		m.publish()
	}
	if r.Save {
		m.records.Store(new(m.node.Records()))
		signal(m.save)
	}
	m.dirty = m.dirty || r.Dirty
	m.countAt = m.countAt.Add(r.CountEvery - m.countEvery)
	m.countEvery = r.CountEvery
	m.deadline = r.Deadline
	if r.Deadline.IsZero() {
		m.deadline = time.Now().Add(time.Minute)
	}
}

// reconcile hands the desired state to the reconciler.
func (m *member) reconcile() {
	want := m.node.Desired()
	m.wanted.Store(want.Revision)
	if want.Complete {
		m.completeAt.CompareAndSwap(0, want.Revision)
	}
	m.noteSteering(want)
	m.reconciler.Set(want)
}

// send hands a datagram, or an echo request when it has no payload, to the
// kernel. The sockets do not block: what does not fit is lost, as on any wire.
func (m *member) send(t core.Target, payload []byte) {
	index, err := m.devices.number(t.Device)
	if err != nil {
		return // not made yet, or gone: the reconciler's matter
	}
	if payload == nil {
		err = m.echoes.Ask(index, t.To)
	} else {
		err = m.probes.Send(index, t.To, payload)
	}
	if reason, hard := m.probes.Hard(err); hard {
		m.devices.look()
		m.offer(core.TunnelFailed{Device: t.Device, Reason: reason})
	}
}

// receive feeds datagrams from the tunnels.
func (m *member) receive(ctx context.Context) error {
	return m.probes.Run(ctx, func(ifindex int, payload []byte, at time.Time) {
		message, err := wire.Decode(payload)
		if err != nil {
			m.malformed.Add(1)
			return
		}
		device, err := m.devices.device(ifindex)
		if err != nil {
			return
		}
		m.offer(core.Received{Device: device, Message: message, At: at})
	})
}

// echoed feeds an answer of a far kernel.
func (m *member) echoed(ifindex int, at time.Time) {
	if device, err := m.devices.device(ifindex); err == nil {
		m.offer(core.Echoed{Device: device, At: at})
	}
}

// offer queues an event that may be lost.
func (m *member) offer(ev core.Event) {
	select {
	case m.events <- ev:
	default:
		m.dropped.Add(1)
	}
}

// post queues an event that must not be lost.
func (m *member) post(ev core.Event) {
	select {
	case m.events <- ev:
	case <-m.done:
	}
}

// query runs f on the owner's goroutine and waits for it.
func (m *member) query(ctx context.Context, f func(*core.Node)) error {
	finished := make(chan struct{})
	select {
	case m.queries <- func(n *core.Node) { f(n); close(finished) }:
	case <-ctx.Done():
		return ctx.Err()
	case <-m.done:
		return errStopped
	}
	select {
	case <-finished:
		return nil
	case <-m.done:
		return errStopped
	}
}

// record keeps a fact for people.
func (m *member) record(f core.Fact) {
	m.agent.journal.add(api.Event{
		Time: f.At, Kind: string(f.Kind), Sentence: f.Sentence, Cause: f.Cause, From: f.From, To: f.To,
	})
	m.log.Info(f.Sentence, "kind", string(f.Kind), mesh.LogReason, f.Cause)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
