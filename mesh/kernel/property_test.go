package kernel

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"guywire/mesh"
)

var seeds = flag.Uint64("seeds", 300, "how many random cases each property is checked on")

// randomState gives a consistent state over a small world, so that two of
// them overlap much.
func randomState(r *rand.Rand) State {
	s := State{Revision: r.Uint64(), Complete: true}
	var singles []uint32
	shift := 0 // now and then ids stand for other devices than elsewhere
	if r.IntN(6) == 0 {
		shift = 1
	}
	for i := range 6 {
		if r.IntN(3) == 0 {
			continue
		}
		name := fmt.Sprintf("gw-%d", i)
		slot := 1 + i%2
		s.Tunnels = append(s.Tunnels, Tunnel{
			Name: name, Alias: fmt.Sprint(r.IntN(2)), Mark: mesh.MarkBase + uint32(slot), MTU: 1400 + 20*r.IntN(2),
			Peer: key(i + 1), ListenPort: uint16(1000 + i), LinkLocal: netip.MustParseAddr("fe80::1"),
		})
		if r.IntN(5) > 0 {
			id := uint32(1 + (i+shift)%6)
			s.NextHops = append(s.NextHops, NextHop{ID: id, Device: name})
			singles = append(singles, id)
			if r.IntN(4) == 0 { // a second object of the same device
				s.NextHops = append(s.NextHops, NextHop{ID: id + 10, Device: name})
				singles = append(singles, id+10)
			}
		}
		if r.IntN(4) > 0 {
			l := FilterLink{Device: name, Held: r.IntN(4) == 0}
			for n := range 4 {
				if r.IntN(2) == 0 {
					l.Sources = append(l.Sources, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(2 * n)}), 16))
				}
			}
			s.Filter.Links = append(s.Filter.Links, l)
		}
		if r.IntN(2) == 0 {
			s.Sysctls = append(s.Sysctls, Sysctl{"net/ipv4/conf/" + name + "/rp_filter", "0"})
		}
	}
	s.Sysctls = append(s.Sysctls, Sysctl{"net/ipv4/ip_forward", "1"})
	s.Filter.Own = prefixes("10.86.0.1/32")
	s.Addrs = prefixes("10.86.0.1/32,fd00::1/128")
	if r.IntN(4) == 0 {
		s.Addrs = s.Addrs[:1]
	}
	slices.Sort(singles)
	targets := slices.Clone(singles)
	for id := uint32(100); id < 108 && len(singles) > 0; id++ {
		if r.IntN(4) == 0 {
			continue
		}
		g := NextHop{ID: id}
		for _, leg := range singles {
			if r.IntN(2) == 0 {
				g.Members = append(g.Members, Member{leg, uint8(1 + r.IntN(2))})
			}
		}
		if len(g.Members) > 0 {
			s.NextHops = append(s.NextHops, g)
			targets = append(targets, id)
		}
	}
	for i := range 12 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16)
		if i%2 == 0 {
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(i)}), 32)
		}
		if i > 7 { // inside one of those before
			p = netip.PrefixFrom(p.Addr(), p.Bits()).Masked()
			bytes := p.Addr().AsSlice()
			bytes[1] -= 6
			a, _ := netip.AddrFromSlice(bytes)
			p = netip.PrefixFrom(a, p.Bits()+8)
		}
		route := Route{Table: mesh.RouteTable, Prefix: p, MTU: 1400 * r.IntN(2)}
		switch kind := r.IntN(6); {
		case kind == 0:
			continue
		case kind == 1:
			route.Kind = Unreachable
		case kind == 2 || len(targets) == 0:
			route.Kind = Throw
		default:
			route.NextHop = targets[r.IntN(len(targets))]
			if i%2 == 1 && r.IntN(2) == 0 {
				route.Source = s.Addrs[0].Addr()
			}
		}
		s.Routes = append(s.Routes, route)
	}
	for slot := 1; slot <= 2; slot++ {
		table := mesh.UplinkTableBase + slot
		s.Routes = append(s.Routes, Route{Table: table, Prefix: netip.MustParsePrefix("0.0.0.0/0"), Device: fmt.Sprintf("eth%d", r.IntN(2))},
			Route{Table: table, Prefix: netip.MustParsePrefix("0.0.0.0/0"), Metric: 4096, Kind: Unreachable})
		s.Rules = append(s.Rules, Rule{mesh.RuleUplinkBase + slot, mesh.MarkBase + uint32(slot), table})
	}
	if r.IntN(4) > 0 {
		s.Rules = append(s.Rules, Rule{Priority: mesh.RuleMesh, Table: mesh.RouteTable})
	}
	s.Sort()
	return s
}

func settled(s, want State) State {
	s.Revision, s.Complete, s.Revoked = want.Revision, want.Complete, want.Revoked
	// One setting is not taken back while others are wanted: only teardown restores.
	s.Sysctls = slices.DeleteFunc(slices.Clone(s.Sysctls), func(c Sysctl) bool {
		return !slices.ContainsFunc(want.Sysctls, func(w Sysctl) bool { return w.Path == c.Path })
	})
	s.Tunnels = slices.Clone(s.Tunnels)
	for i, t := range s.Tunnels {
		for _, w := range want.Tunnels {
			if t.Equal(w) {
				s.Tunnels[i] = w
			}
		}
	}
	return s
}

// TestPlanSteps checks the promises of the package comment at every step
// between random states.
func TestPlanSteps(t *testing.T) {
	for seed := range *seeds {
		r := rand.New(rand.NewPCG(seed, 1))
		have, want := randomState(r), randomState(r)
		if r.IntN(8) == 0 {
			have = State{}
		}
		if r.IntN(8) == 0 {
			want.Revoked = append(want.Revoked, key(1+r.IntN(6)))
			want.Tunnels = slices.DeleteFunc(want.Tunnels, func(t Tunnel) bool { return t.Peer == want.Revoked[0] })
			want.Sysctls = slices.DeleteFunc(want.Sysctls, func(c Sysctl) bool { return c.device() != "" && !want.hasTunnel(c.device()) })
			want.NextHops, want.Routes = nil, slices.DeleteFunc(want.Routes, func(r Route) bool { return r.NextHop != 0 })
		}
		checkSteps(t, seed, have, want)
		if t.Failed() {
			t.Logf("have\n%s\nwant\n%s", have, want)
			for _, op := range Plan(have, want) {
				t.Log(describe(op))
			}
			return
		}
	}
}

func checkSteps(t *testing.T, seed uint64, have, want State) {
	fake := NewFake(have)
	model := NewModel(have)
	before := model.State()
	for i, op := range Plan(have, want) {
		if why := model.Waits(want, op); why != "" {
			t.Errorf("seed %d: op %d %s waits for %s", seed, i, op, why)
		}
		if err := fake.Do(t.Context(), op); err != nil {
			t.Errorf("seed %d: op %d: %v", seed, i, err)
		}
		model.Apply(op)
		now := model.State()
		at := fmt.Sprintf("seed %d: after op %d %s", seed, i, describe(op))
		checkStep(t, at, have, want, before, now, model)
		checkExposed(t, at, want, before, op)
		before = now
	}
	got, _ := fake.Observe(t.Context())
	if g, w := settled(got, want), want; g.String() != w.String() {
		t.Errorf("seed %d: got\n%s\nwant\n%s", seed, g, w)
	}
	if more := Plan(got, want); len(more) > 0 {
		t.Errorf("seed %d: plan of a settled state: %v", seed, more)
	}
	if !model.Safe(want) {
		t.Errorf("seed %d: settled and not safe", seed)
	}
}

func checkStep(t *testing.T, at string, have, want, before, now State, m *Model) {
	checkPaths(t, at, have, want, now)
	if m.Safe(want) {
		checkSafe(t, at, want, now)
	}
	if len(now.Routes) > len(before.Routes) && !m.filter.guarded(want.Filter) && m.routesOf(mesh.RouteTable) > NewModel(before).routesOf(mesh.RouteTable) {
		t.Errorf("%s: a route was added before the guard", at)
	}
	for _, l := range have.Filter.Links {
		if _, listed := want.Filter.link(l.Device); !l.Held || !listed || m.filter.holds(l.Device) {
			continue
		}
		if !m.Safe(want) {
			t.Errorf("%s: hold of %s lifted early", at, l.Device)
		}
	}
	for name := range m.tunnels {
		if _, listed := m.filter.link(name); listed && !have.hasTunnel(name) {
			for _, r := range want.Routes {
				if _, ok := m.routes.get(r.Key()); !ok {
					t.Errorf("%s: %s admitted before %s", at, name, r.Key())
				}
			}
		}
		if m.filter.IsZero() && !have.hasTunnel(name) {
			t.Errorf("%s: %s is open before there is a filter", at, name)
		}
	}
	for _, tunnel := range m.tunnels {
		for _, rule := range slices.Concat(have.Rules, want.Rules) {
			if rule.marked() && rule.Mark == tunnel.Mark && m.rules[rule.Priority] != rule {
				t.Errorf("%s: %s is up without its mark rule", at, tunnel.Name)
			}
		}
	}
}

// hopsOf gives the single next hops that a route uses: the slow way, by State
// alone.
func hopsOf(s State, r Route) (out []NextHop) {
	for _, n := range s.NextHops {
		if r.Kind != Forward || n.ID != r.NextHop {
			continue
		}
		if n.Device != "" {
			out = append(out, n)
		}
		for _, leg := range n.Members {
			for _, single := range s.NextHops {
				if single.ID == leg.ID {
					out = append(out, single)
				}
			}
		}
	}
	return out
}

// leads reports whether a route leads to a device.
func leads(s State, r Route, device string) bool {
	return slices.ContainsFunc(hopsOf(s, r), func(n NextHop) bool { return n.Device == device })
}

// route gives the route with a key, the slow way.
func route(s State, k RouteKey) (Route, bool) {
	for _, r := range s.Routes {
		if r.Key() == k {
			return r, true
		}
	}
	return Route{}, false
}

// lookup gives the route of the mesh table that an address takes.
func lookup(s State, a netip.Addr) (best Route) {
	best.Kind = Unreachable
	bits := -1
	for _, r := range s.Routes {
		if r.Table == mesh.RouteTable && r.Prefix.Contains(a) && r.Prefix.Bits() > bits {
			best, bits = r, r.Prefix.Bits()
		}
	}
	return best
}

// checkPaths checks, for every wanted route, that it is there as long as it
// was, and leads to no device that it led to neither before nor is to; and
// that it never has dead legs only if at first it had others.
func checkPaths(t *testing.T, at string, have, want, now State) {
	t.Helper()
	stays := func(n NextHop) bool {
		goal, ok := want.nextHop(n.ID)
		return ok && n.Equal(goal) && (slices.ContainsFunc(want.NextHops, func(g NextHop) bool { return g.has(n.ID) }) ||
			slices.ContainsFunc(want.Routes, func(r Route) bool { return r.NextHop == n.ID }))
	}
	lives := func(n NextHop) bool {
		return slices.ContainsFunc(want.NextHops, func(goal NextHop) bool { return n.Device == goal.Device })
	}
	lossless := len(want.Revoked) == 0 && !displaces(have, want)
	for _, w := range want.Routes {
		if w.Table != mesh.RouteTable {
			continue
		}
		old, had := route(have, w.Key())
		r, has := route(now, w.Key())
		for _, n := range hopsOf(now, r) {
			if !leads(have, old, n.Device) && !leads(want, w, n.Device) {
				t.Errorf("%s: %s leads to %s", at, r, n.Device)
			}
		}
		switch {
		case !had || !lossless:
		case !has:
			t.Errorf("%s: %s is gone", at, w.Key())
		case r.Kind == Unreachable && grows(have, want, old.NextHop):
			// It stood in the way of others.
		case w.Kind == Forward && slices.ContainsFunc(hopsOf(have, old), stays) && !slices.ContainsFunc(hopsOf(now, r), lives):
			t.Errorf("%s: %s has dead legs only", at, r)
		}
	}
}

// checkExposed checks that a route that was not there before takes no packets
// of a narrower one that is missing to where these may not go.
func checkExposed(t *testing.T, at string, want, before State, op Op) {
	t.Helper()
	put, ok := op.(PutRoute)
	if !ok || put.Route.ofUplink() {
		return
	}
	if old, ok := route(before, put.Route.Key()); ok && old.Kind == Forward {
		return
	}
	for _, q := range want.Routes {
		if _, ok := route(before, q.Key()); ok || q.ofUplink() || q.Prefix.Bits() <= put.Route.Prefix.Bits() || !put.Route.Prefix.Contains(q.Prefix.Addr()) {
			continue
		}
		for _, n := range hopsOf(want, put.Route) {
			if !leads(want, q, n.Device) {
				t.Errorf("%s: packets of %s leave by %s", at, q, n.Device)
			}
		}
	}
}

// grows reports whether a group is to win a leg.
func grows(have, want State, id uint32) bool {
	old, _ := have.nextHop(id)
	n, ok := want.nextHop(id)
	return ok && !n.within(old)
}

// displaces reports whether an id of have stands for something else in want:
// then routes may be interrupted.
func displaces(have, want State) bool {
	return slices.ContainsFunc(have.NextHops, func(n NextHop) bool {
		goal, ok := want.nextHop(n.ID)
		return ok && !n.alike(goal)
	})
}

// checkSafe checks what Safe promises, packet by packet.
func checkSafe(t *testing.T, at string, want, now State) {
	t.Helper()
	for _, r := range slices.Concat(want.Routes, now.Routes) {
		if r.Table != mesh.RouteTable {
			continue
		}
		a := r.Prefix.Addr()
		for _, n := range hopsOf(now, lookup(now, a)) {
			if !leads(want, lookup(want, a), n.Device) {
				t.Errorf("%s: safe, but %s leaves by %s", at, a, n.Device)
			}
		}
	}
	if !now.Filter.Equal(want.Filter) {
		t.Errorf("%s: safe without the filter", at)
	}
}

func (m *Model) routesOf(table int) (n int) {
	for r := range m.routes.all() {
		if r.Table == table {
			n++
		}
	}
	return n
}

func (s State) hasTunnel(name string) bool {
	return slices.ContainsFunc(s.Tunnels, func(t Tunnel) bool { return t.Name == name })
}

// TestCutIsShort kills one or two random links, with every group that loses
// its last leg given a backup: the plan is one message for each such group and
// one for each dead link, and whatever weights change comes after these.
func TestCutIsShort(t *testing.T) {
	for seed := range *seeds {
		r := rand.New(rand.NewPCG(seed, 4))
		have := randomState(r)
		var singles []uint32
		for _, n := range have.NextHops {
			if !n.IsGroup() {
				singles = append(singles, n.ID)
			}
		}
		have.Routes = slices.DeleteFunc(have.Routes, func(r Route) bool { return slices.Contains(singles, r.NextHop) })
		dying := min(1+r.IntN(2), len(singles)-1)
		if dying <= 0 {
			continue
		}
		r.Shuffle(len(singles), func(i, j int) { singles[i], singles[j] = singles[j], singles[i] })
		dead := singles[:dying]
		want := have
		want.NextHops = nil
		emptied, weighted := 0, 0
		m := NewModel(have)
		for _, n := range have.NextHops {
			if slices.Contains(dead, n.ID) {
				continue
			}
			before := len(n.Members)
			n.Members = slices.DeleteFunc(slices.Clone(n.Members), func(leg Member) bool { return slices.Contains(dead, leg.ID) })
			switch used := m.routes.users[n.ID] > 0; {
			case before > 0 && len(n.Members) == 0:
				n.Members = []Member{{singles[dying], 1}}
				emptied++ // the kernel drops it if no route holds it, but it is wanted all the same
			case used && r.IntN(3) == 0 && before > len(n.Members):
				n.Members[0].Weight += 4
				weighted++
			}
			want.NextHops = append(want.NextHops, n)
		}
		ops := Plan(have, want)
		deletes, last := 0, -1
		for i, op := range ops {
			if _, ok := op.(DeleteNextHop); ok {
				deletes++
				last = i
			}
		}
		if deletes != dying || len(ops) != dying+emptied+weighted || last > dying+emptied-1 {
			t.Fatalf("seed %d: %d links died, %d groups lost all, %d changed weights: %v\n%s", seed, dying, emptied, weighted, ops, have)
		}
		checkSteps(t, seed, have, want)
		if t.Failed() {
			t.Fatalf("have\n%s\nwant\n%s", have, want)
		}
	}
}

// damage does something random to the kernel that no plan asked for.
func damage(r *rand.Rand, fake *Fake) {
	s, _ := fake.Observe(context.Background())
	switch r.IntN(8) {
	case 0:
		fake.SetDown(fmt.Sprintf("gw-%d", r.IntN(6)))
	case 1:
		_ = fake.Damage(DeleteTunnel{fmt.Sprintf("gw-%d", r.IntN(6))})
	case 2:
		id := uint32(1 + r.IntN(6))
		_ = fake.Damage(DeleteNextHop{id})
		if len(s.NextHops) > 0 { // the id comes back as the other kind
			_ = fake.Damage(PutNextHop{NextHop{ID: id, Members: []Member{{s.NextHops[0].ID, 1}}}})
		}
	case 3:
		_ = fake.Damage(DeleteNextHop{uint32(100 + r.IntN(8))})
	case 4:
		if len(s.Routes) > 0 {
			_ = fake.Damage(DeleteRoute{s.Routes[r.IntN(len(s.Routes))]})
		}
		_ = fake.Damage(PutRoute{Route{Table: mesh.RouteTable, Prefix: netip.MustParsePrefix("10.99.0.0/16"), Kind: Throw}})
	case 5:
		_ = fake.Damage(DeleteAddr{netip.MustParsePrefix("10.86.0.1/32")})
	case 6:
		_ = fake.Damage(ClearFilter{})
		_ = fake.Damage(SetSysctl{Sysctl{"net/ipv4/ip_forward", "0"}})
	case 7:
		for _, rule := range s.Rules {
			_ = fake.Damage(DeleteRule{rule})
		}
	}
}

// TestFailuresAndDamage lets random operations fail and others break things:
// what can go on goes on, nothing that waits is forced, and once the failures
// end a few rounds of looking and repairing give exactly the wanted state.
func TestFailuresAndDamage(t *testing.T) {
	for seed := range *seeds {
		r := rand.New(rand.NewPCG(seed, 2))
		have, want := randomState(r), randomState(r)
		fake := NewFake(have)
		for round := range 3 {
			m := observed(t, fake)
			for _, op := range m.Plan(want) {
				if m.Waits(want, op) != "" || r.IntN(4) == 0 {
					continue
				}
				if err := fake.Do(t.Context(), op); err != nil {
					t.Fatalf("seed %d round %d: %v\n%s", seed, round, err, want)
				}
				before, lifts := m.State(), m.filter
				m.Apply(op)
				at := fmt.Sprintf("seed %d round %d: after %s, and others failed", seed, round, describe(op))
				now := m.State()
				if round == 0 {
					checkPaths(t, at, have, want, now)
				}
				checkExposed(t, at, want, before, op)
				if lifts.lifts(m.filter) && !m.Safe(State{Complete: true, NextHops: want.NextHops, Routes: want.Routes}) {
					t.Errorf("%s: a hold was lifted early", at)
				}
				if m.Safe(want) {
					checkSafe(t, at, want, now)
				}
				if t.Failed() {
					t.Fatalf("have\n%s\nwant\n%s\nnow\n%s", have, want, now)
				}
			}
			for range r.IntN(4) {
				damage(r, fake)
			}
		}
		rounds := 0
		for ; ; rounds++ {
			m := observed(t, fake)
			ops := m.Plan(want)
			if len(ops) == 0 {
				break
			}
			if rounds == 4 {
				t.Fatalf("seed %d: not settled: %v\n%s\nwant\n%s", seed, ops, fake, want)
			}
			for _, op := range ops {
				if m.Waits(want, op) != "" {
					continue
				}
				if err := fake.Do(t.Context(), op); err != nil {
					t.Fatalf("seed %d: %v\n%s\nwant\n%s", seed, err, fake, want)
				}
				m.Apply(op)
			}
		}
		got, _ := fake.Observe(t.Context())
		if g := settled(got, want); g.String() != want.String() {
			t.Fatalf("seed %d: got\n%s\nwant\n%s", seed, g, want)
		}
	}
}

func observed(t *testing.T, fake *Fake) *Model {
	t.Helper()
	s, err := fake.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return NewModel(s)
}

// TestIncomplete checks that an incomplete desired state takes nothing away,
// but from the filter if that is complete.
func TestIncomplete(t *testing.T) {
	for seed := range *seeds {
		r := rand.New(rand.NewPCG(seed, 3))
		have, want := randomState(r), randomState(r)
		want.Complete, want.FilterComplete = false, r.IntN(2) == 0
		m := NewModel(have)
		for _, op := range m.Plan(want) {
			if why := m.Waits(want, op); why != "" {
				t.Fatalf("seed %d: %s waits for %s", seed, op, why)
			}
			switch op.(type) {
			case PutNextHop, PutRoute:
				if want.FilterComplete && !m.filter.guarded(want.Filter) {
					t.Fatalf("seed %d: %s before the holds", seed, op)
				}
			case DeleteTunnel, DeleteAddr, DeleteNextHop, DeleteRoute, DeleteRule, ClearFilter, RestoreSysctls:
				t.Fatalf("seed %d: %s", seed, op)
			}
			m.Apply(op)
		}
		for _, r := range have.Routes {
			if _, ok := m.routes.get(r.Key()); !ok {
				t.Fatalf("seed %d: lost %s", seed, r)
			}
		}
		if want.FilterComplete && !m.filter.Equal(want.Filter) || !m.Filtered(want) || m.Safe(want) {
			t.Fatalf("seed %d: filtered %t, safe %t\n%s", seed, m.Filtered(want), m.Safe(want), State{Filter: m.filter})
		}
		for _, l := range have.Filter.Links {
			if want.FilterComplete {
				break
			}
			now, ok := m.filter.link(l.Device)
			if !ok || slices.ContainsFunc(l.Sources, func(p netip.Prefix) bool {
				return !slices.ContainsFunc(now.Sources, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Overlaps(p) })
			}) {
				t.Fatalf("seed %d: %s lost sources: %v, now %v", seed, l.Device, l.Sources, now.Sources)
			}
		}
		if more := m.Plan(want); len(more) > 0 {
			t.Fatalf("seed %d: not settled: %v", seed, more)
		}
	}
}
