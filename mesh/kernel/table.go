package kernel

import (
	"iter"
	"slices"
)

// A table holds the routes of a Model: a sorted list that it shares with a
// desired or an observed state, and the few keys at which it differs from
// that. So ten thousand routes are taken over without a copy, and compared
// with the next desired state without looking at one of them, as long as that
// shares the list.
type table struct {
	base  []Route            // sorted by key, no two of one key; never written to
	over  map[RouteKey]Route // what stands at a key instead; a zero Route: nothing
	users map[uint32]int     // next hop → how many routes use it directly
}

// newTable takes over routes, which nobody may change any more.
func newTable(routes []Route) table {
	t := table{base: ordered(routes), over: map[RouteKey]Route{}, users: map[uint32]int{}}
	for i := 0; i < len(t.base); {
		// Neighbours in the list often share a next hop: one map access each.
		id, n := t.base[i].NextHop, 0
		for ; i < len(t.base) && t.base[i].NextHop == id; i++ {
			n++
		}
		t.users[id] += n
	}
	return t
}

// ordered gives routes themselves if they are in strict order, else a copy
// that is. Others may add a route beside ours with the same key (by another
// type of service, say): the last one counts.
func ordered(routes []Route) []Route {
	strict := true
	for i := 1; i < len(routes) && strict; i++ {
		strict = compareRoutes(routes[i-1], routes[i]) < 0
	}
	if strict {
		return routes
	}
	sorted := slices.Clone(routes)
	slices.SortStableFunc(sorted, compareRoutes)
	out := sorted[:0]
	for i, r := range sorted {
		if i+1 == len(sorted) || sorted[i+1].Key() != r.Key() {
			out = append(out, r)
		}
	}
	return out
}

// find gives the route with a key in a sorted list.
func find(routes []Route, k RouteKey) (Route, bool) {
	i, ok := search(routes, k)
	if !ok {
		return Route{}, false
	}
	return routes[i], true
}

// search gives the place of a key in a sorted list, and whether it is there.
func search(routes []Route, k RouteKey) (int, bool) {
	return slices.BinarySearchFunc(routes, k, func(r Route, k RouteKey) int { return r.Key().Compare(k) })
}

func (r Route) isZero() bool { return r == Route{} }

func (t *table) get(k RouteKey) (Route, bool) {
	if r, ok := t.over[k]; ok {
		return r, !r.isZero()
	}
	return find(t.base, k)
}

func (t *table) put(r Route) {
	t.set(r.Key(), r)
}

func (t *table) delete(k RouteKey) {
	t.set(k, Route{})
}

func (t *table) set(k RouteKey, r Route) {
	if old, ok := t.get(k); ok {
		t.users[old.NextHop]--
	}
	if !r.isZero() {
		t.users[r.NextHop]++
	}
	if b, _ := find(t.base, k); b == r {
		delete(t.over, k)
	} else {
		t.over[k] = r
	}
}

// all gives every route, in no order.
func (t *table) all() iter.Seq[Route] {
	return func(yield func(Route) bool) {
		for _, r := range t.over {
			if !r.isZero() && !yield(r) {
				return
			}
		}
		for _, r := range t.base {
			if _, changed := t.over[r.Key()]; !changed && !yield(r) {
				return
			}
		}
	}
}

// sameList reports whether two lists are one and the same, which is what
// successive desired states without a change of routes share.
func sameList[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// rebase says the same as before with another list as base, so that what
// differs from that list is in over.
func (t *table) rebase(list []Route) {
	if sameList(t.base, list) {
		return
	}
	over := map[RouteKey]Route{}
	note := func(k RouteKey, was Route) {
		if _, changed := t.over[k]; !changed {
			over[k] = was
		}
	}
	old, wanted := t.base, list
	for len(old) > 0 && len(wanted) > 0 {
		if old[0] == wanted[0] {
			old, wanted = old[1:], wanted[1:]
			continue
		}
		switch order := compareRoutes(old[0], wanted[0]); {
		case order < 0:
			note(old[0].Key(), old[0])
			old = old[1:]
		case order > 0:
			note(wanted[0].Key(), Route{})
			wanted = wanted[1:]
		default:
			note(old[0].Key(), old[0])
			old, wanted = old[1:], wanted[1:]
		}
	}
	for _, r := range old {
		note(r.Key(), r)
	}
	for _, r := range wanted {
		note(r.Key(), Route{})
	}
	for k, r := range t.over {
		if b, _ := find(list, k); b != r {
			over[k] = r
		}
	}
	t.base, t.over = list, over
}

// A difference is a key at which a table and its base disagree; a zero Route:
// there is none.
type difference struct{ have, want Route }

// differences gives those that the base has a route for, and those for which
// it has none, each in the order of keys.
func (t *table) differences() (put, gone []difference) {
	if len(t.over) > len(t.base)/8 { // a walk is cheaper than that many searches
		put = make([]difference, 0, len(t.over))
		for _, want := range t.base {
			if have, ok := t.over[want.Key()]; ok {
				put = append(put, difference{have, want})
			}
		}
	}
	if len(put) == len(t.over) {
		return put, nil
	}
	put = nil
	for k, have := range t.over {
		if want, ok := find(t.base, k); ok {
			put = append(put, difference{have, want})
		} else {
			gone = append(gone, difference{have: have})
		}
	}
	slices.SortFunc(put, func(a, b difference) int { return compareRoutes(a.want, b.want) })
	slices.SortFunc(gone, func(a, b difference) int { return compareRoutes(a.have, b.have) })
	return put, gone
}

// leaves reports whether the route is to leave its next hop.
func (d difference) leaves() bool {
	return d.have.NextHop != 0 && d.have.NextHop != d.want.NextHop
}
