package gossip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/memberlist"

	"guywire/discovery"
)

// An EventKind says what an Event is about.
type EventKind uint8

const (
	// FactsReceived: Facts arrived, unverified, and differ from what was
	// published here.
	FactsReceived EventKind = iota + 1
	// AnnouncementsReceived: Announcements arrived with a full state.
	AnnouncementsReceived
	// MemberUp: Member is there.
	MemberUp
	// MemberDown: Member left or was given up.
	MemberDown
)

// An Event is something that gossip brought.
type Event struct {
	Kind   EventKind
	Member Member             // of MemberUp and MemberDown
	Facts  []discovery.Signed // of FactsReceived; the receiver owns them
	// Announcements are of AnnouncementsReceived, unread; the receiver owns them.
	Announcements [][]byte
}

// facts are the statements that the owner believes and we pass on.
type facts struct {
	mu      sync.Mutex
	held    map[discovery.Subject]held
	queue   queue
	dropped atomic.Uint64
}

type held struct {
	serial uint64
	signed discovery.Signed
}

// stale reports whether s says nothing newer than what is held, or nothing
// that can be read.
func (f *facts) stale(s discovery.Signed) bool {
	about, serial, err := s.Claimed()
	if err != nil {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	h, ok := f.held[about]
	return ok && serial <= h.serial
}

// Publish spreads statements: our own, and those of others that the owner has
// verified. A statement older than what is held of its subject is ignored. The
// caller does not change s afterwards. Statements too large for one packet
// travel only with the exchange of full state, about every minute.
func (g *Gossip) Publish(statements ...discovery.Signed) error {
	var errs []error
	for _, s := range statements {
		about, serial, err := s.Claimed()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		g.facts.mu.Lock()
		h, ok := g.facts.held[about]
		switch {
		case ok && serial <= h.serial:
		case !ok && len(g.facts.held) >= maxStatements:
			errs = append(errs, fmt.Errorf("publish %s: %d statements are the limit", about, maxStatements))
		default:
			g.facts.held[about] = held{serial, s}
			g.facts.queue.put(about, discovery.AppendSigned(nil, s)) // under the lock: the newest last
		}
		g.facts.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Forget stops passing on what was said of a subject, because its node is no
// member any more, or the statement has no effect any more.
func (g *Gossip) Forget(about discovery.Subject) {
	g.facts.mu.Lock()
	defer g.facts.mu.Unlock()
	delete(g.facts.held, about)
	g.facts.queue.drop(about)
}

// Dropped counts the events that the owner was too slow for.
func (g *Gossip) Dropped() uint64 { return g.facts.dropped.Load() }

func (g *Gossip) emit(ev Event) {
	select {
	case g.events <- ev:
	default:
		g.facts.dropped.Add(1)
	}
}

// delegate is what memberlist calls, on its receive path and under its locks.
type delegate struct{ g *Gossip }

var (
	_ memberlist.Delegate      = (*delegate)(nil)
	_ memberlist.EventDelegate = (*delegate)(nil)
	_ memberlist.AliveDelegate = (*delegate)(nil)
)

func (d *delegate) NodeMeta(int) []byte { return nil }

func (d *delegate) NotifyMsg(b []byte) {
	d.deliver(b, 1)
}

func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.g.facts.queue.take(overhead, limit, int(max(d.g.present.count(), d.g.size.Load())))
}

func (d *delegate) LocalState(bool) []byte {
	f := &d.g.facts
	f.mu.Lock()
	defer f.mu.Unlock()
	var b []byte
	for _, about := range slices.SortedFunc(maps.Keys(f.held), discovery.Subject.Compare) {
		b = discovery.AppendSigned(b, f.held[about].signed)
	}
	if d.g.cfg.Announcements == nil {
		return b
	}
	b = append(b, 0, 0) // no statement has no length: what follows is something else
	for _, a := range d.g.cfg.Announcements() {
		b = binary.BigEndian.AppendUint16(b, uint16(len(a)))
		b = append(b, a...)
	}
	return b
}

func (d *delegate) MergeRemoteState(b []byte, _ bool) {
	rest := d.deliver(b, maxStatements)
	if len(rest) < 2 || rest[0] != 0 || rest[1] != 0 {
		return
	}
	var list [][]byte
	for rest = rest[2:]; len(rest) >= 2 && len(list) < maxAnnouncements; {
		n := int(binary.BigEndian.Uint16(rest))
		if rest = rest[2:]; n == 0 || n > maxAnnouncement || n > len(rest) {
			break
		}
		list = append(list, bytes.Clone(rest[:n]))
		rest = rest[n:]
	}
	if len(list) > 0 {
		d.g.emit(Event{Kind: AnnouncementsReceived, Announcements: list})
	}
}

// deliver hands the statements in b that are news to the owner, and gives what
// follows them; b is copied. What cannot be read ends the statements: there is
// no telling where the next one would begin.
func (d *delegate) deliver(b []byte, limit int) (rest []byte) {
	var news []discovery.Signed
	for ; len(b) > 0 && limit > 0; limit-- {
		s, rest, err := discovery.CutSigned(b)
		if err != nil {
			break
		}
		if !d.g.facts.stale(s) {
			news = append(news, discovery.Signed{Body: bytes.Clone(s.Body), Signature: bytes.Clone(s.Signature)})
		}
		b = rest
	}
	if len(news) > 0 {
		d.g.emit(Event{Kind: FactsReceived, Facts: news})
	}
	return b
}

func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	m, ok := member(n)
	if !ok {
		return fmt.Errorf("member %q is no node", n.Name)
	}
	if d.g.cfg.Admit != nil && m.Node != d.g.cfg.Name && !d.g.cfg.Admit(m.Node, m.Addr.Addr()) {
		return fmt.Errorf("no node %s at %s in the log", m.Node, m.Addr)
	}
	return nil
}

// NotifyJoin also repeats what we say of ourselves, because the newcomer may
// have been cut off when we said it.
func (d *delegate) NotifyJoin(n *memberlist.Node) {
	d.g.came.Add(1)
	d.notify(MemberUp, n)
	f := &d.g.facts
	f.mu.Lock()
	defer f.mu.Unlock()
	about := discovery.Subject{Node: d.g.cfg.Name}
	if own, ok := f.held[about]; ok {
		f.queue.put(about, discovery.AppendSigned(nil, own.signed))
	}
}

func (d *delegate) NotifyLeave(n *memberlist.Node) {
	d.notify(MemberDown, n)
}

func (d *delegate) NotifyUpdate(n *memberlist.Node) {
	if m, ok := member(n); ok && m.Node != d.g.cfg.Name {
		d.g.present.put(m)
	}
}

func (d *delegate) notify(kind EventKind, n *memberlist.Node) {
	if m, ok := member(n); ok && m.Node != d.g.cfg.Name {
		if kind == MemberUp {
			d.g.present.put(m)
		} else {
			d.g.present.remove(m)
		}
		d.g.emit(Event{Kind: kind, Member: m})
	}
}
