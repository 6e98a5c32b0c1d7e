package sim

import "time"

// An Impairment is what is wrong on the way from one node to another.
type Impairment struct {
	Cut  bool
	Loss float64       // 0 to 1
	More time.Duration // delay, on top
}

// faults is what is wrong with the internet now.
type faults struct {
	impaired map[[2]int]Impairment // by sender and receiver
	part     map[int]int           // on which side of a partition a node is; none: 0
}

func (f *faults) init() { f.impaired, f.part = map[[2]int]Impairment{}, map[int]int{} }

// Impair changes what is wrong on the way from one node to another, whatever
// the uplinks; the zero Impairment heals it.
func (w *World) Impair(from, to int, i Impairment) {
	if i == (Impairment{}) {
		delete(w.faults.impaired, [2]int{from, to})
		return
	}
	w.faults.impaired[[2]int{from, to}] = i
}

// Cut lets nothing pass between two nodes, in both directions, and says
// nothing; Heal ends that and every other impairment between them.
func (w *World) Cut(a, b int) {
	w.Impair(a, b, Impairment{Cut: true})
	w.Impair(b, a, Impairment{Cut: true})
}

// Heal lets everything pass between two nodes.
func (w *World) Heal(a, b int) {
	w.Impair(a, b, Impairment{})
	w.Impair(b, a, Impairment{})
}

// Flap cuts and heals the path between two nodes again and again, for a time.
func (w *World) Flap(a, b int, up, down, lasting time.Duration) {
	stop := w.now + lasting
	var fall func()
	fall = func() {
		if w.now >= stop {
			return
		}
		w.Cut(a, b)
		w.After(down, func() { w.Heal(a, b) })
		w.After(down+up, fall)
	}
	fall()
}

// Partition cuts the given nodes off from all others; without nodes it heals.
func (w *World) Partition(nodes ...int) {
	clear(w.faults.part)
	for _, n := range nodes {
		w.faults.part[n] = 1
	}
}

func (f *faults) parted(a, b int) bool { return len(f.part) > 0 && f.part[a] != f.part[b] }

// pass gives the additional delay on a way, and whether anything gets through.
func (f *faults) pass(from, to int) (time.Duration, bool) {
	if f.parted(from, to) {
		return 0, false
	}
	if len(f.impaired) == 0 {
		return 0, true
	}
	i := f.impaired[[2]int{from, to}]
	return i.More, !i.Cut
}

func (f *faults) loss(from, to int) float64 {
	if len(f.impaired) == 0 {
		return 0
	}
	return f.impaired[[2]int{from, to}].Loss
}
