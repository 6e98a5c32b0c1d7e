package lfi

import (
	"iter"
	"maps"
	"math"
	"slices"

	"guywire/mesh"
	"guywire/routing/wire"
)

// unsent is the serial of a report that has not been sent yet.
const unsent = math.MaxUint64

// A Machine holds one node's invariants for all destinations. Steps number
// what the kernel should do: Step grows with every change of the successors,
// and Committed says up to which step the kernel follows.
type Machine struct {
	dests   []dest
	index   map[wire.Destination]int
	free    []int
	peers   map[mesh.NodeID]*peer
	order   []*peer // by id
	settled bool

	step, committed uint64
	pending         map[int]bool // destinations that wait for a commit or a confirmation
}

type dest struct {
	key wire.Destination
	// dist is the advice, rep what neighbours are told, fd the feasible
	// distance: fd ≤ rep always.
	dist, rep, fd mesh.Cost
	// shrunk is the step at which the kernel was last to give up successors
	// because fd fell.
	shrunk uint64
	used   bool // false: the slot is free
}

type peer struct {
	id        mesh.NodeID
	needed    bool // its confirmations count: the kernel may let its transit in
	usable    bool // it may be a successor
	connected bool // it is told reports
	rd        []mesh.Cost
	// need is, per destination, the serial whose confirmation says that the
	// neighbour's kernel uses the newest report.
	need []uint64
	due  map[int]bool // reports to be sent
	// waived are destinations that it delivers, for whose raise it was not
	// waited, with the feasible distance that it agreed to.
	waived    map[int]mesh.Cost
	defined   []bool // the neighbour knows the destination by our number
	base      uint64 // serial that ended the first table of the stream
	last      uint64 // serial of the last report sent
	confirmed uint64
}

// New makes a machine. A node whose kernel was found forwarding is not
// settled: until Settle it has no feasible distance of its own to go by.
func New(settled bool) *Machine {
	return &Machine{index: map[wire.Destination]int{}, peers: map[mesh.NodeID]*peer{}, pending: map[int]bool{}, settled: settled}
}

// Step numbers what the kernel should now do.
func (m *Machine) Step() uint64 { return m.step }

// InKernel is the newest step that the kernel is known to follow.
func (m *Machine) InKernel() uint64 { return m.committed }

// Touch makes a new step for a change that is not the machine's own.
func (m *Machine) Touch() uint64 {
	m.step++
	return m.step
}

// Settled reports whether the machine has feasible distances.
func (m *Machine) Settled() bool { return m.settled }

// AddPeer makes the machine know a neighbour, of which nothing is usable yet.
func (m *Machine) AddPeer(id mesh.NodeID) {
	if m.peers[id] != nil {
		return
	}
	p := &peer{id: id, due: map[int]bool{}, waived: map[int]mesh.Cost{}, base: unsent}
	p.grow(len(m.dests))
	m.peers[id] = p
	i, _ := slices.BinarySearchFunc(m.order, id, func(p *peer, id mesh.NodeID) int { return p.id.Compare(id) })
	m.order = slices.Insert(m.order, i, p)
}

// RemovePeer forgets a neighbour that is neither usable nor needed.
func (m *Machine) RemovePeer(id mesh.NodeID) {
	if p := m.peers[id]; p != nil && !p.usable && !p.needed {
		delete(m.peers, id)
		m.order = slices.DeleteFunc(m.order, func(o *peer) bool { return o == p })
	}
}

func (p *peer) grow(n int) {
	for len(p.rd) < n {
		p.rd = append(p.rd, mesh.Infinite)
		p.need = append(p.need, unsent)
		p.defined = append(p.defined, false)
	}
}

// SetNeeded says whether the neighbour's transit may get through our kernel.
func (m *Machine) SetNeeded(id mesh.NodeID, v bool) {
	p := m.peers[id]
	if p.needed == v {
		return
	}
	p.needed = v
	if !v {
		m.review()
	}
}

// SetUsable says whether the neighbour may be a successor at all.
func (m *Machine) SetUsable(id mesh.NodeID, v bool) {
	p := m.peers[id]
	if p.usable != v {
		p.usable = v
		m.step++
	}
}

// Connect begins a new stream of reports to the neighbour: everything is to be
// told again, and only what is confirmed in this stream counts.
func (m *Machine) Connect(id mesh.NodeID) {
	p := m.peers[id]
	p.connected, p.confirmed, p.last, p.base = true, 0, 0, unsent
	clear(p.due)
	clear(p.defined)
	for i := range m.dests {
		p.need[i] = unsent
		if m.dests[i].used && m.dests[i].rep < mesh.Infinite {
			p.due[i] = true
		}
	}
}

// SentComplete says that the note with that serial ended the first table of
// the stream: what was not told by then is told as unreachable.
func (m *Machine) SentComplete(id mesh.NodeID, serial uint64) {
	p := m.peers[id]
	p.base, p.last = serial, serial
	for i := range p.need {
		if p.need[i] == unsent && !p.due[i] {
			p.need[i] = serial
		}
	}
}

// Disconnect ends the stream: nothing can be told or confirmed.
func (m *Machine) Disconnect(id mesh.NodeID) {
	p := m.peers[id]
	p.connected, p.base = false, unsent
	clear(p.due)
	for i := range p.need {
		p.need[i] = unsent
	}
}

// Destination gives the number of a destination, making it when new.
func (m *Machine) Destination(key wire.Destination) int {
	if i, ok := m.index[key]; ok {
		return i
	}
	i := len(m.dests)
	if n := len(m.free); n > 0 {
		i, m.free = m.free[n-1], m.free[:n-1]
	} else {
		m.dests = append(m.dests, dest{})
		for _, p := range m.order {
			p.grow(len(m.dests))
		}
	}
	d := dest{key: key, dist: mesh.Infinite, rep: mesh.Infinite, fd: mesh.Infinite, used: true}
	if !m.settled {
		d.fd = 0
	}
	m.dests[i] = d
	m.index[key] = i
	for _, p := range m.order {
		p.rd[i], p.need[i], p.defined[i] = mesh.Infinite, p.base, false
		delete(p.waived, i)
	}
	return i
}

// Key gives the destination of a number.
func (m *Machine) Key(i int) wire.Destination { return m.dests[i].key }

// Lookup gives the number of a destination if there is one.
func (m *Machine) Lookup(key wire.Destination) (int, bool) {
	i, ok := m.index[key]
	return i, ok
}

// Advise sets the distance that the routes should go by. Infinite: none.
func (m *Machine) Advise(i int, dist mesh.Cost) {
	if m.dests[i].dist != dist {
		m.dests[i].dist = dist
		m.evaluate(i)
	}
}

// Hear takes a neighbour's reported distance.
func (m *Machine) Hear(id mesh.NodeID, key wire.Destination, distance mesh.Cost) {
	i := m.Destination(key)
	p, d := m.peers[id], &m.dests[i]
	old := p.rd[i]
	p.rd[i] = distance
	if fd, waived := p.waived[i]; waived && distance > 0 {
		// From now on it may send the destination to us, and not know how far we
		// are: back to what it agreed to, before it is told that we know.
		delete(p.waived, i)
		if p.owes(i) {
			m.setFeasible(i, min(d.fd, fd))
			m.pending[i] = true
		}
	}
	if p.usable && old < d.fd != (distance < d.fd) {
		m.step++
	}
}

// Reported is what a neighbour reports for a destination.
func (m *Machine) Reported(id mesh.NodeID, i int) mesh.Cost { return m.peers[id].rd[i] }

// RestsOn reports whether the neighbour is the only firm successor to a
// destination, and would be none at that distance.
func (m *Machine) RestsOn(id mesh.NodeID, i int, distance mesh.Cost, firm func(mesh.NodeID) bool) bool {
	p, fd := m.peers[id], m.dests[i].fd
	if !p.usable || p.rd[i] >= fd || distance < fd {
		return false
	}
	for other := range m.Successors(i) {
		if other != id && firm(other) {
			return false
		}
	}
	_, waived := p.waived[i]
	return !waived
}

// Reports are a neighbour's reported distances, as far as they are finite.
func (m *Machine) Reports(id mesh.NodeID) map[wire.Destination]mesh.Cost {
	out := map[wire.Destination]mesh.Cost{}
	for i, d := range m.peers[id].rd {
		if d < mesh.Infinite {
			out[m.dests[i].key] = d
		}
	}
	return out
}

// Forget makes all of a neighbour's reports infinite.
func (m *Machine) Forget(id mesh.NodeID) {
	p := m.peers[id]
	for i := range p.rd {
		p.rd[i] = mesh.Infinite
	}
	clear(p.waived)
	m.step++
}

// Due takes up to limit reports that are to be sent to the neighbour, in
// order, and the destinations behind them. After sending, call Sent.
func (m *Machine) Due(id mesh.NodeID, limit int) (entries []wire.Entry) {
	p := m.peers[id]
	if len(p.due) == 0 {
		return nil
	}
	due := slices.Sorted(maps.Keys(p.due))
	for _, i := range due[:min(len(due), limit)] {
		d := &m.dests[i]
		e := wire.Entry{Index: uint32(i), Distance: d.rep}
		if !p.defined[i] {
			e.Key = d.key
		}
		entries = append(entries, e)
	}
	return entries
}

// Sent says that entries left in the note with that serial.
func (m *Machine) Sent(id mesh.NodeID, entries []wire.Entry, serial uint64) {
	p := m.peers[id]
	for _, e := range entries {
		i := int(e.Index)
		delete(p.due, i)
		p.need[i], p.defined[i] = serial, true
	}
	p.last = serial
}

// Confirmed says that the neighbour's kernel uses every report up to serial.
func (m *Machine) Confirmed(id mesh.NodeID, serial uint64) {
	p := m.peers[id]
	if serial > p.confirmed {
		p.confirmed = serial
		m.review()
	}
}

// Clean reports whether the neighbour's kernel uses the newest report of
// every destination.
func (m *Machine) Clean(id mesh.NodeID) bool {
	p := m.peers[id]
	return p.connected && len(p.due) == 0 && p.last <= p.confirmed
}

// Committed says that the kernel follows step: successors that a later step
// does not have may still be there, others are not.
func (m *Machine) Committed(step uint64) {
	if step > m.committed {
		m.committed = step
		m.review()
	}
}

// Settle ends the time after a start in which the kernel still forwards by
// what an earlier run decided. The caller has made sure that every needed
// neighbour is Clean: what they use is what was told by this run.
func (m *Machine) Settle() {
	if m.settled {
		return
	}
	m.settled = true
	m.step++
	for i := range m.dests {
		if d := &m.dests[i]; d.used {
			d.fd, d.shrunk = d.rep, m.step
			m.evaluate(i)
		}
	}
}

// review looks again at whatever waits.
func (m *Machine) review() {
	for _, i := range slices.Sorted(maps.Keys(m.pending)) {
		m.evaluate(i)
	}
}

// acked reports whether every needed neighbour's kernel uses the newest report.
// One that delivers the destination itself sends it to nobody, so its word is not
// waited for: our ways there may all be gone, with that to itself. See Hear.
func (m *Machine) acked(i int) bool {
	for _, p := range m.order {
		if p.rd[i] > 0 && p.owes(i) {
			return false
		}
	}
	return true
}

// owes reports whether the neighbour's kernel may go by an older report.
func (p *peer) owes(i int) bool { return p.needed && p.need[i] > p.confirmed }

// waive notes who was not waited for when the feasible distance is raised.
func (m *Machine) waive(i int, fd mesh.Cost) {
	for _, p := range m.order {
		switch agreed, waived := p.waived[i]; {
		case !p.owes(i):
			delete(p.waived, i)
		case waived:
			p.waived[i] = min(agreed, fd)
		default:
			p.waived[i] = fd
		}
	}
}

// evaluate moves a destination as far towards its advice as it may go now.
func (m *Machine) evaluate(i int) {
	d := &m.dests[i]
	if !m.settled {
		// What we say now only raises what an earlier run said, until Settled.
		if d.rep != d.dist {
			d.rep = d.dist
			m.tell(i)
		}
		return
	}
	for {
		if d.dist > d.fd && d.rep > d.fd && !m.acked(i) {
			m.pending[i] = true // active: changes wait for the next round
			return
		}
		fd := min(d.rep, d.dist)
		if fd > d.fd {
			m.waive(i, d.fd)
		}
		m.setFeasible(i, fd)
		switch {
		case d.dist > d.rep:
			d.rep = d.dist
			m.tell(i)
			continue // perhaps nobody needs to confirm
		case d.dist < d.rep && d.shrunk > m.committed:
			m.pending[i] = true
			return
		case d.dist < d.rep:
			d.rep = d.dist
			m.tell(i)
		}
		delete(m.pending, i)
		return
	}
}

func (m *Machine) setFeasible(i int, fd mesh.Cost) {
	d := &m.dests[i]
	low, high := min(fd, d.fd), max(fd, d.fd)
	for _, p := range m.order {
		if p.usable && p.rd[i] >= low && p.rd[i] < high {
			m.step++
			break
		}
	}
	if fd < d.fd {
		// Even if no successor goes now: one that an earlier step took away
		// may still be in the kernel.
		d.shrunk = m.step
	}
	d.fd = fd
}

func (m *Machine) tell(i int) {
	for _, p := range m.order {
		if p.connected {
			p.due[i] = true
			p.need[i] = unsent
		}
	}
}

// Successors are the neighbours that may carry traffic to the destination,
// with what they report, in order of id.
func (m *Machine) Successors(i int) iter.Seq2[mesh.NodeID, mesh.Cost] {
	return func(yield func(mesh.NodeID, mesh.Cost) bool) {
		fd := m.dests[i].fd
		for _, p := range m.order {
			if p.usable && p.rd[i] < fd && !yield(p.id, p.rd[i]) {
				return
			}
		}
	}
}

// A View is one destination's state, for people and tests.
type View struct {
	Distance, Reported, Feasible mesh.Cost
	Active                       bool // a raise waits for confirmations
}

// View gives a destination's state.
func (m *Machine) View(i int) View {
	d := m.dests[i]
	return View{d.dist, d.rep, d.fd, d.rep > d.fd}
}

// WaitsFor reports whether a destination is without any successor because a
// raise waits for the neighbour's confirmation.
func (m *Machine) WaitsFor(id mesh.NodeID) bool {
	p := m.peers[id]
	if !p.needed {
		return false
	}
	for i := range m.pending {
		if d := &m.dests[i]; d.rep > d.fd && p.rd[i] > 0 && p.need[i] > p.confirmed && !m.forwards(i) {
			return true
		}
	}
	return false
}

// forwards reports whether a destination has a successor.
func (m *Machine) forwards(i int) bool {
	for range m.Successors(i) {
		return true
	}
	return false
}

// Collect frees destinations that nobody reaches, tells of or advises on.
// keep says which are still known.
func (m *Machine) Collect(keep func(wire.Destination) bool) {
	for i := range m.dests {
		d := &m.dests[i]
		if !d.used || d.rep < mesh.Infinite || d.fd < mesh.Infinite || m.pending[i] || keep(d.key) || m.heard(i) {
			continue
		}
		delete(m.index, d.key)
		*d = dest{}
		m.free = append(m.free, i)
	}
}

// heard reports whether any neighbour reports, or is still to be told of, i.
func (m *Machine) heard(i int) bool {
	for _, p := range m.order {
		if p.rd[i] < mesh.Infinite || p.due[i] || (p.connected || p.needed) && p.need[i] > p.confirmed {
			return true
		}
	}
	return false
}
