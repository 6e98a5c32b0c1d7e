package fib

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"guywire/mesh/kernel"

	"golang.org/x/sys/unix"
)

// A legacy stands in for next-hop objects on kernels without them (before
// 5.3): it remembers them and writes their legs into the routes. A failover
// then costs one message for every route over the dead link, about 20 us each:
// 0.2 s for 10 000. IPv6 routes use the heaviest leg only, because legs without
// gateway form no IPv6 multipath. What an earlier run left is seen as routes
// that lead elsewhere, and so is written anew.
type legacy struct {
	hops   map[uint32]kernel.NextHop
	routes map[kernel.RouteKey]legacyRoute // with a next hop
}

// A legacyRoute is a route and what the kernel holds of it. Before the kernel
// has confirmed the legs they are nil, so that a change which failed halfway
// is finished by the next one.
type legacyRoute struct {
	kernel.Route
	legs []leg
}

func newLegacy() *legacy {
	return &legacy{map[uint32]kernel.NextHop{}, map[kernel.RouteKey]legacyRoute{}}
}

// doLegacy does the operations that differ without next-hop objects.
func (f *FIB) doLegacy(op kernel.Op) (done bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.legacy
	switch op := op.(type) {
	case kernel.PutNextHop:
		if op.NextHop.Device != "" {
			switch _, up, err := f.write.device(op.NextHop.Device); {
			case err != nil:
				return true, fmt.Errorf("%w: %w", kernel.ErrRefused, err)
			case !up:
				return true, fmt.Errorf("%w: %w", kernel.ErrRefused, unix.ENETDOWN)
			}
		}
		for _, leg := range op.NextHop.Members {
			if _, ok := l.hops[leg.ID]; !ok {
				return true, fmt.Errorf("%w: %w", kernel.ErrRefused, unix.ENOENT)
			}
		}
		l.hops[op.NextHop.ID] = op.NextHop
		return true, f.rewrite(l.routes)
	case kernel.DeleteNextHop:
		l.forget(op.ID)
		return true, f.rewrite(l.routes)
	case kernel.PutRoute:
		if op.Route.NextHop == 0 {
			delete(l.routes, op.Route.Key())
			return false, nil
		}
		if _, ok := l.hops[op.Route.NextHop]; !ok {
			return true, fmt.Errorf("%w: %w", kernel.ErrRefused, unix.ENOENT)
		}
		r := legacyRoute{Route: op.Route}
		l.routes[r.Key()] = r
		return true, f.rewrite(map[kernel.RouteKey]legacyRoute{r.Key(): r})
	case kernel.DeleteRoute:
		delete(l.routes, op.Route.Key())
	}
	return false, nil
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

// rewrite writes those of the routes whose legs are not those of their next
// hops. Without any they go.
func (f *FIB) rewrite(routes map[kernel.RouteKey]legacyRoute) error {
	l := f.legacy
	indexes := map[string]int{}
	legs := map[uint32][]leg{} // of the next hops, found out once each
	for k, r := range routes {
		goal, known := legs[r.NextHop]
		if !known {
			var err error
			if goal, err = l.legs(r.NextHop, func(device string) (int, error) { return f.index(indexes, device) }); err != nil {
				return err
			}
			legs[r.NextHop] = goal
		}
		if len(goal) > 0 && slices.Equal(effective(r.Route, goal), r.legs) {
			continue
		}
		if len(goal) == 0 {
			if err := f.write.deleteRoute(r.Route); err != nil {
				return fmt.Errorf("delete %s: %w", r, err)
			}
			delete(l.routes, k)
			continue
		}
		if err := f.write.putRoute(r.Route, goal); err != nil {
			return fmt.Errorf("%s: %w", r, err)
		}
		r.legs = effective(r.Route, goal)
		l.routes[k] = r
	}
	return nil
}

// index gives the index of a device; 0 if it carries nothing.
func (f *FIB) index(known map[string]int, device string) (int, error) {
	if index, ok := known[device]; ok {
		return index, nil
	}
	index, up, err := f.write.device(device)
	switch {
	case errors.Is(err, unix.ENODEV):
		index = 0
	case err != nil:
		return 0, err
	case !up:
		index = 0
	}
	known[device] = index
	return index, nil
}

// legs gives what a next hop means in legs; a device that carries nothing is
// none.
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
		if index != 0 {
			legs = append(legs, leg{index, m.Weight})
		}
	}
	return legs, nil
}

// observeLegacy adds next hops and routes to s. A next hop whose device is
// not up is forgotten, as a kernel that knew it would have done.
func (f *FIB) observeLegacy(s kernel.State) (kernel.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.legacy
	names, up, err := f.read.devices()
	if err != nil {
		return kernel.State{}, err
	}
	indexes := map[string]int{}
	for index, name := range names {
		indexes[name] = index
	}
	for id, n := range maps.Clone(l.hops) {
		if !n.IsGroup() && !up[n.Device] {
			l.forget(id)
		}
	}
	s.NextHops = slices.Collect(maps.Values(l.hops))
	found, err := f.routes(f.read)
	if err != nil {
		return kernel.State{}, err
	}
	routes := map[kernel.RouteKey]legacyRoute{}
	for _, r := range found {
		known, ok := l.routes[r.Key()]
		goal, err := l.legs(known.NextHop, func(name string) (int, error) { return indexes[name], nil })
		if err != nil {
			return kernel.State{}, err
		}
		if ok {
			known.legs = effective(r.Route, r.legs)
			routes[r.Key()] = known
		}
		if ok && len(goal) > 0 && slices.Equal(effective(r.Route, goal), known.legs) {
			r.NextHop, r.Device = known.NextHop, ""
		} else if r.Device == "" && len(r.legs) > 0 {
			r.Device = names[r.legs[0].index]
		}
		s.Routes = append(s.Routes, r.Route)
	}
	l.routes = routes // one that is gone must not come back with its next hop
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
