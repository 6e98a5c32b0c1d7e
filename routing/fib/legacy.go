package fib

import (
	"fmt"
	"maps"
	"slices"

	"guywire/mesh/kernel"

	"golang.org/x/sys/unix"
)

// A legacy stands in for next-hop objects on kernels without them: it
// remembers them and writes their legs into the routes. A change then costs
// one message per route, and IPv6 routes use the heaviest leg only, because
// legs without gateway form no IPv6 multipath there. What an earlier run left
// is seen as routes that lead elsewhere, and so is written anew.
type legacy struct {
	hops   map[uint32]kernel.NextHop
	routes map[kernel.RouteKey]kernel.Route // with a next hop
}

func newLegacy() *legacy {
	return &legacy{map[uint32]kernel.NextHop{}, map[kernel.RouteKey]kernel.Route{}}
}

// doLegacy does the operations that differ without next-hop objects.
func (f *FIB) doLegacy(op kernel.Op) (done bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.legacy
	switch op := op.(type) {
	case kernel.PutNextHop:
		for _, leg := range op.NextHop.Members {
			if _, ok := l.hops[leg.ID]; !ok {
				return true, unix.ENOENT
			}
		}
		l.hops[op.NextHop.ID] = op.NextHop
		return true, f.rewrite(l.users(op.NextHop.ID))
	case kernel.DeleteNextHop:
		users := l.users(op.ID)
		l.forget(op.ID)
		return true, f.rewrite(users)
	case kernel.PutRoute:
		if op.Route.NextHop == 0 {
			delete(l.routes, op.Route.Key())
			return false, nil
		}
		if _, ok := l.hops[op.Route.NextHop]; !ok {
			return true, unix.ENOENT
		}
		l.routes[op.Route.Key()] = op.Route
		return true, f.rewrite([]kernel.Route{op.Route})
	case kernel.DeleteRoute:
		delete(l.routes, op.Route.Key())
	}
	return false, nil
}

// users gives the routes that lead over a next hop or over a group with it.
func (l *legacy) users(id uint32) []kernel.Route {
	var out []kernel.Route
	for _, r := range l.routes {
		if r.NextHop == id || slices.ContainsFunc(l.hops[r.NextHop].Members, func(m kernel.Member) bool { return m.ID == id }) {
			out = append(out, r)
		}
	}
	return out
}

// forget deletes a next hop as the kernel would: groups shrink, empty ones go.
func (l *legacy) forget(id uint32) {
	delete(l.hops, id)
	for gid, g := range l.hops {
		if !slices.ContainsFunc(g.Members, func(m kernel.Member) bool { return m.ID == id }) {
			continue
		}
		g.Members = slices.DeleteFunc(slices.Clone(g.Members), func(m kernel.Member) bool { return m.ID == id })
		l.hops[gid] = g
		if len(g.Members) == 0 {
			delete(l.hops, gid)
		}
	}
}

// rewrite brings routes in line with their next hops; without any they go.
func (f *FIB) rewrite(routes []kernel.Route) error {
	for _, r := range routes {
		legs, err := f.legacy.legs(r.NextHop, f.write.ifindex)
		if err != nil {
			return err
		}
		if len(legs) == 0 {
			delete(f.legacy.routes, r.Key())
			err = f.write.deleteRoute(r)
		} else {
			err = f.write.putRoute(r, legs)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r, err)
		}
	}
	return nil
}

// legs gives what a next hop means in legs.
func (l *legacy) legs(id uint32, ifindex func(string) (int, error)) ([]leg, error) {
	n, ok := l.hops[id]
	if !ok {
		return nil, nil
	}
	members := n.Members
	if !n.IsGroup() {
		members = []kernel.Member{{ID: id, Weight: 1}}
	}
	var legs []leg
	for _, m := range members {
		index, err := ifindex(l.hops[m.ID].Device)
		if err != nil {
			return nil, err
		}
		legs = append(legs, leg{index, m.Weight})
	}
	return legs, nil
}

// observeLegacy adds next hops and routes to s. A next hop whose device is
// not up is forgotten, as a kernel that knew it would have done.
func (f *FIB) observeLegacy(s kernel.State) (kernel.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names, up, err := f.read.devices()
	if err != nil {
		return kernel.State{}, err
	}
	indexes := map[string]int{}
	for index, name := range names {
		indexes[name] = index
	}
	for id, n := range maps.Clone(f.legacy.hops) {
		if !n.IsGroup() && !up[n.Device] {
			f.legacy.forget(id)
		}
	}
	s.NextHops = slices.Collect(maps.Values(f.legacy.hops))
	found, err := f.routes(f.read)
	if err != nil {
		return kernel.State{}, err
	}
	for _, r := range found {
		known, ok := f.legacy.routes[r.Key()]
		legs, err := f.legacy.legs(known.NextHop, func(name string) (int, error) { return indexes[name], nil })
		if ok && err == nil && slices.Equal(effective(r.Route, legs), effective(r.Route, r.legs)) {
			r.NextHop, r.Device = known.NextHop, ""
		} else if r.Device == "" && len(r.legs) > 0 {
			r.Device = names[r.legs[0].index]
		}
		s.Routes = append(s.Routes, r.Route)
	}
	s.Sort()
	return s, nil
}

// effective gives the legs that putRoute would write, in order.
func effective(r kernel.Route, legs []leg) []leg {
	if len(legs) == 0 {
		return nil
	}
	if r.Prefix.Addr().Is6() || len(legs) == 1 {
		return []leg{{heaviest(legs).index, 1}}
	}
	legs = slices.Clone(legs)
	slices.SortFunc(legs, func(a, b leg) int { return a.index - b.index })
	return legs
}

func heaviest(legs []leg) leg {
	best := legs[0]
	for _, l := range legs {
		if l.weight > best.weight {
			best = l
		}
	}
	return best
}
