package lfi

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"guywire/mesh"
	"guywire/routing/wire"
)

func node(b byte) mesh.NodeID    { return mesh.NodeID{b} }
func to(b byte) wire.Destination { return wire.Destination{Node: node(b)} }
func (m *Machine) next(i int) []string { // successors, in words
	out := []string{}
	for id, d := range m.Successors(i) {
		out = append(out, fmt.Sprintf("%d@%d", id[0], d))
	}
	return out
}

// deliver sends what is due to a neighbour and gives the serial.
func deliver(m *Machine, id mesh.NodeID, serial uint64) []wire.Entry {
	entries := m.Due(id, 100)
	if len(entries) > 0 {
		m.Sent(id, entries, serial)
	}
	return entries
}

// joined is a settled machine with two usable neighbours that confirm up to
// serial 1, and one destination at distance 10.
func joined(t *testing.T) (*Machine, int) {
	t.Helper()
	m := New(true)
	for _, b := range []byte{1, 2} {
		m.AddPeer(node(b))
		m.SetUsable(node(b), true)
		m.SetNeeded(node(b), true)
		m.Connect(node(b))
		m.SentComplete(node(b), 1)
		m.Confirmed(node(b), 1)
	}
	i := m.Destination(to(9))
	m.Hear(node(1), to(9), 5)
	m.Hear(node(2), to(9), 12)
	m.Committed(m.Step())
	m.Advise(i, 10)
	m.Committed(m.Step())
	for _, b := range []byte{1, 2} {
		if e := deliver(m, node(b), 2); len(e) != 1 || e[0].Distance != 10 || e[0].Key != to(9) {
			t.Fatalf("told %+v", e)
		}
		m.Confirmed(node(b), 2)
	}
	return m, i
}

func TestOnlyNeighboursBelowTheFeasibleDistance(t *testing.T) {
	m, i := joined(t)
	if got := fmt.Sprint(m.next(i)); got != "[1@5]" {
		t.Errorf("successors %s", got)
	}
	m.SetUsable(node(1), false)
	if got := m.next(i); len(got) != 0 {
		t.Errorf("an unusable neighbour is a successor: %v", got)
	}
}

// Lowering is told only once the kernel has given up what no longer fits.
func TestLowerDistanceIsToldAfterTheCommit(t *testing.T) {
	m, i := joined(t)
	m.Advise(i, 4)
	if got := m.next(i); len(got) != 0 {
		t.Errorf("still forwards to %v", got)
	}
	if due := m.Due(node(1), 9); len(due) > 0 {
		t.Errorf("told %+v before the kernel followed", due)
	}
	m.Committed(m.Step() - 1)
	if due := m.Due(node(1), 9); len(due) > 0 {
		t.Errorf("told %+v after an older commit", due)
	}
	m.Committed(m.Step())
	if due := m.Due(node(1), 9); len(due) != 1 || due[0].Distance != 4 {
		t.Errorf("then told %+v", due)
	}
}

// Also when the successor that does not fit was taken away by an earlier step
// that the kernel has not seen either.
func TestLowerDistanceWaitsForEarlierSteps(t *testing.T) {
	m, i := joined(t)
	m.Hear(node(1), to(9), 11) // its confirmation waits for this step
	m.Advise(i, 4)
	if due := m.Due(node(2), 9); len(due) > 0 {
		t.Errorf("told %+v while the kernel may forward to 1", due)
	}
}

// Raising is told at once and takes effect when all have confirmed.
func TestHigherDistanceWaitsForConfirmations(t *testing.T) {
	m, i := joined(t)
	m.Hear(node(1), to(9), mesh.Infinite)
	m.Advise(i, 20)
	if v := m.View(i); !v.Active || v.Feasible != 10 || v.Reported != 20 {
		t.Fatalf("%+v", v)
	}
	deliver(m, node(1), 3)
	deliver(m, node(2), 3)
	m.Confirmed(node(1), 3)
	if got := m.next(i); len(got) != 0 {
		t.Errorf("uses %v before the second confirmed", got)
	}
	if !m.WaitsFor(node(2)) || m.WaitsFor(node(1)) {
		t.Error("waits for the wrong one")
	}
	m.Advise(i, 30) // has to wait for the next round
	if v := m.View(i); v.Reported != 20 {
		t.Errorf("told anew while active: %+v", v)
	}
	m.Confirmed(node(2), 3)
	if v := m.View(i); v.Feasible != 20 || v.Reported != 30 || !v.Active {
		t.Errorf("after the first round %+v", v)
	}
	if got := fmt.Sprint(m.next(i)); got != "[2@12]" {
		t.Errorf("successors %s", got)
	}
}

func TestUnneededNeighboursAreNotWaitedFor(t *testing.T) {
	m, i := joined(t)
	m.Advise(i, 20)
	deliver(m, node(1), 3)
	m.Confirmed(node(1), 3)
	if m.View(i).Feasible != 10 {
		t.Fatal("did not wait for 2")
	}
	m.SetNeeded(node(2), false)
	if m.View(i).Feasible != 20 {
		t.Error("still waits for a neighbour whose transit is refused")
	}
}

// A confirmation of an earlier stream says nothing about this one.
func TestNewStreamNeedsNewConfirmations(t *testing.T) {
	m, i := joined(t)
	m.Advise(i, 20)
	m.Connect(node(2))
	m.Confirmed(node(2), 0)
	deliver(m, node(1), 3)
	m.Confirmed(node(1), 3)
	m.SentComplete(node(2), 1)
	m.Confirmed(node(2), 1)
	if m.View(i).Feasible != 10 {
		t.Error("took the end of a table for the report that came after it")
	}
	if e := deliver(m, node(2), 2); len(e) != 1 || e[0].Key != to(9) {
		t.Fatalf("a new stream must name its destinations: %+v", e)
	}
	m.Confirmed(node(2), 2)
	if m.View(i).Feasible != 20 || !m.Clean(node(2)) {
		t.Error("did not go on")
	}
}

func TestUnsettledMachineForwardsNothingOfItsOwn(t *testing.T) {
	m := New(false)
	m.AddPeer(node(1))
	m.SetUsable(node(1), true)
	m.SetNeeded(node(1), true)
	i := m.Destination(to(9))
	m.Hear(node(1), to(9), 1)
	m.Advise(i, 10)
	if len(m.next(i)) != 0 {
		t.Error("forwards before it is settled")
	}
	m.Connect(node(1))
	deliver(m, node(1), 1)
	m.SentComplete(node(1), 2)
	m.Advise(i, 8)
	m.Advise(i, 10)
	deliver(m, node(1), 3)
	m.Confirmed(node(1), 3)
	m.Settle()
	if got := fmt.Sprint(m.next(i)); got != "[1@1]" {
		t.Errorf("successors %s", got)
	}
}

func TestSlotsAreUsedAgainOnlyWhenNobodyRemembers(t *testing.T) {
	m, i := joined(t)
	m.Advise(i, mesh.Infinite)
	m.Hear(node(1), to(9), mesh.Infinite)
	m.Hear(node(2), to(9), mesh.Infinite)
	none := func(wire.Destination) bool { return false }
	m.Collect(none)
	if _, ok := m.Lookup(to(9)); !ok {
		t.Fatal("freed while neighbours may use the old report")
	}
	for _, b := range []byte{1, 2} {
		deliver(m, node(b), 3)
		m.Confirmed(node(b), 3)
	}
	m.Collect(none)
	if _, ok := m.Lookup(to(9)); ok {
		t.Fatal("not freed")
	}
	if j := m.Destination(to(8)); j != i {
		t.Errorf("slot %d, not %d", j, i)
	}
	m.Advise(i, 3)
	m.Committed(m.Step())
	if e := m.Due(node(1), 9); len(e) != 1 || e[0].Key != to(8) {
		t.Errorf("a used slot must be named anew: %+v", e)
	}
}

// A pair of machines joined by FIFO queues whose ends act at random moments
// never point at each other. (The whole protocol is checked in
// integration/model; this is the smallest case of it.)
func TestTwoNodesNeverPointAtEachOther(t *testing.T) {
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var m [2]*Machine
		type report struct {
			entries []wire.Entry
			serial  uint64
		}
		var flying [2][]report // on the way to i
		var acks [2][]struct { // of i's reports, waiting for the other's kernel
			step, serial uint64
		}
		var kernel [2]bool // whether i's kernel forwards to the other
		var serial [2]uint64
		for i := range m {
			other := node(byte(1 - i))
			m[i] = New(true)
			m[i].AddPeer(other)
			m[i].SetUsable(other, true)
			m[i].SetNeeded(other, true)
			m[i].Connect(other)
			m[i].SentComplete(other, 0)
			m[i].Destination(to(9))
		}
		for range 400 {
			i := rng.IntN(2)
			other := node(byte(1 - i))
			switch rng.IntN(5) {
			case 0:
				m[i].Advise(0, []mesh.Cost{1, 2, 3, 5, 8, mesh.Infinite}[rng.IntN(6)])
			case 1:
				if e := m[i].Due(other, 9); len(e) > 0 {
					serial[i]++
					m[i].Sent(other, e, serial[i])
					flying[1-i] = append(flying[1-i], report{e, serial[i]})
				}
			case 2:
				if len(flying[i]) > 0 {
					r := flying[i][0]
					flying[i] = flying[i][1:]
					m[i].Hear(other, to(9), r.entries[0].Distance)
					acks[1-i] = append(acks[1-i], struct{ step, serial uint64 }{m[i].Step(), r.serial})
				}
			case 3:
				kernel[i] = len(m[i].next(0)) > 0
				m[i].Committed(m[i].Step())
			case 4:
				for len(acks[i]) > 0 && acks[i][0].step <= m[1-i].InKernel() {
					m[i].Confirmed(other, acks[i][0].serial)
					acks[i] = acks[i][1:]
				}
			}
			if kernel[0] && kernel[1] {
				t.Fatalf("seed %d: a loop", seed)
			}
		}
	}
}

func TestViewIsOrdered(t *testing.T) {
	m, i := joined(t)
	m.Hear(node(2), to(9), 1)
	if got := m.next(i); !slices.Equal(got, []string{"1@5", "2@1"}) {
		t.Errorf("successors %v", got)
	}
}

// A raise does not wait for a neighbour that delivers the destination itself; but
// when it ceases to, what it did not agree to is taken back before it is answered.
func TestARaiseDoesNotWaitForWhoDelivers(t *testing.T) {
	m, i := joined(t)
	m.Hear(node(1), to(9), 0)
	m.Advise(i, 15)
	if got := fmt.Sprint(m.next(i)); got != "[1@0]" {
		t.Fatalf("successors %s before anybody agreed", got)
	}
	deliver(m, node(1), 3) // never confirmed: every link to it may be cut
	deliver(m, node(2), 3)
	m.Confirmed(node(2), 3)
	if got := fmt.Sprint(m.next(i)); got != "[1@0 2@12]" {
		t.Fatalf("successors %s, want also the one that the raise was for", got)
	}
	m.Committed(m.Step())
	before := m.Step()
	m.Hear(node(1), to(9), 4)
	if got := fmt.Sprint(m.next(i)); got != "[1@4]" {
		t.Errorf("successors %s although it may count on 10", got)
	}
	if m.Step() == before {
		t.Error("the kernel need not follow before the neighbour is answered")
	}
	m.Confirmed(node(1), 3)
	if got := fmt.Sprint(m.next(i)); got != "[1@4 2@12]" {
		t.Errorf("successors %s after it agreed", got)
	}
}
