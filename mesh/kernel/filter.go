package kernel

import (
	"slices"
	"strings"
)

// link gives the rules of one device.
func (f Filter) link(device string) (FilterLink, bool) {
	for _, l := range f.Links {
		if l.Device == device {
			return l, true
		}
	}
	return FilterLink{}, false
}

// holds reports whether f holds the device.
func (f Filter) holds(device string) bool {
	l, ok := f.link(device)
	return ok && l.Held
}

// holding gives f with all the holds of g on top.
func (f Filter) holding(g Filter) Filter {
	f.Links = slices.Clone(f.Links)
	for i, l := range f.Links {
		f.Links[i].Held = l.Held || g.holds(l.Device)
	}
	return f
}

// guarded reports whether every link that want holds is held, or not admitted
// at all.
func (f Filter) guarded(want Filter) bool { return f.holding(want).Equal(f) }

// lifts reports whether f holds a link that g lets in.
func (f Filter) lifts(g Filter) bool {
	return slices.ContainsFunc(g.Links, func(l FilterLink) bool { return !l.Held && f.holds(l.Device) })
}

// widened gives f with all that g allows on top; holds are those of g where
// g knows the link. An incomplete desired state must not take away what an
// earlier run admitted.
func (f Filter) widened(g Filter) Filter {
	out := Filter{Own: g.Own, Mesh: g.Mesh, Links: slices.Clone(g.Links)}
	if out.Own == nil {
		out.Own = f.Own
	}
	if out.Mesh == nil {
		out.Mesh = f.Mesh
	}
	for i, l := range out.Links {
		if old, ok := f.link(l.Device); ok {
			out.Links[i].Sources = Aggregate(append(slices.Clone(l.Sources), old.Sources...))
		}
	}
	for _, l := range f.Links {
		if _, ok := g.link(l.Device); !ok {
			out.Links = append(out.Links, l)
		}
	}
	slices.SortFunc(out.Links, func(a, b FilterLink) int { return strings.Compare(a.Device, b.Device) })
	return out
}

// filters are the tables that a change goes through; see the package comment.
type filters struct{ guard, admit, lift Filter }

// filters gives the stages from the table there is to the wanted one. A stage
// that equals the one before needs no operation.
func (m *Model) filters(want State) filters {
	have, goal := m.filter, want.Filter
	if goal.IsZero() || have.Equal(goal) {
		return filters{have, have, have}
	}
	if !want.Complete && !want.FilterComplete && !have.IsZero() {
		goal = have.widened(goal)
	}
	base := have
	if have.IsZero() || have.Foreign {
		// Nothing to build on: existing tunnels go on as wanted, new ones wait.
		base = goal
		base.Links = slices.DeleteFunc(slices.Clone(goal.Links), func(l FilterLink) bool {
			_, exists := m.tunnels[l.Device]
			return !exists
		})
		base = base.holding(have)
	}
	return filters{guard: base.holding(goal), admit: goal.holding(have), lift: goal}
}
