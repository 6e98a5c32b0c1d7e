package reconcile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/kernel"
)

// peek marks a look by the test itself, which no fault meets.
type peek struct{}

// actual is what the kernel really holds.
func (g *rig) actual() *kernel.Model {
	s, err := g.fake.Observe(context.WithValue(g.t.Context(), peek{}, true))
	if err != nil {
		g.t.Fatal(err)
	}
	return kernel.NewModel(s)
}

// safe reports whether the latest report says that a revision is safe.
func (g *rig) safe(revision uint64) bool {
	last := g.last()
	return last.Revision == revision && last.Safe
}

// network gives a random state: groups over random links, by content, with
// routes over them, some within others, some refused, some links held.
func network(r *rand.Rand, revision uint64) kernel.State {
	var letters strings.Builder
	for _, c := range "abcd" {
		if r.IntN(4) > 0 {
			letters.WriteRune(c)
		}
	}
	s := site(revision, letters.String())
	s.NextHops = slices.DeleteFunc(s.NextHops, func(n kernel.NextHop) bool { return n.IsGroup() || r.IntN(5) == 0 })
	s.Routes = nil
	for i := range s.Filter.Links {
		s.Filter.Links[i].Held = r.IntN(4) == 0
		if r.IntN(2) == 0 {
			s.Filter.Links[i].Sources = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		}
	}
	singles := slices.Clone(s.NextHops)
	for i := range 8 {
		a := [4]byte{10, byte(i)}
		p := netip.PrefixFrom(netip.AddrFrom4(a), 16)
		if i >= 4 {
			a[1] -= 4
			p = netip.PrefixFrom(netip.AddrFrom4(a), 24)
		}
		route := kernel.Route{Table: mesh.RouteTable, Prefix: p, Kind: kernel.Unreachable}
		group := kernel.NextHop{ID: groupID}
		for bit, n := range singles {
			if r.IntN(2) == 0 {
				group.ID += 1 << bit
				group.Members = append(group.Members, kernel.Member{ID: n.ID, Weight: uint8(1 + r.IntN(2))})
			}
		}
		switch {
		case r.IntN(5) == 0:
			continue
		case len(group.Members) > 0 && r.IntN(5) > 0:
			if !slices.ContainsFunc(s.NextHops, func(n kernel.NextHop) bool { return n.ID == group.ID }) {
				s.NextHops = append(s.NextHops, group)
			}
			route.Kind, route.NextHop = kernel.Forward, group.ID
		}
		s.Routes = append(s.Routes, route)
	}
	s.Sort()
	return s
}

// TestP7SafeOnlyAfterCommit: a revision is safe only once the kernel is, so
// that no acknowledgement leaves before. Whenever a report says so, the kernel
// itself is asked, while operations are slow, fail, or are done without anybody
// being told.
func TestP7SafeOnlyAfterCommit(t *testing.T) {
	for seed := range uint64(40) {
		bubble(t, kernel.State{}, func(g *rig) {
			r, chaos := rand.New(rand.NewPCG(seed, 7)), rand.New(rand.NewPCG(seed, 8))
			var mu sync.Mutex
			calm := false
			wants := map[uint64]kernel.State{}
			g.on(func(ctx context.Context, op kernel.Op) error {
				if ctx.Value(peek{}) != nil {
					return nil
				}
				mu.Lock()
				quiet, dice, late := calm, chaos.IntN(12), time.Duration(1+chaos.IntN(150))*time.Millisecond
				mu.Unlock()
				switch {
				case quiet:
				case dice < 2:
					return errors.New("refused")
				case dice == 2 && op != nil:
					return errors.Join(g.fake.Damage(op), errors.New("the answer was lost"))
				case dice < 5:
					time.Sleep(late)
				}
				return nil
			})
			g.r.opts.Report = func(rep Report) {
				g.report(rep)
				mu.Lock()
				want := wants[rep.Revision]
				mu.Unlock()
				kernelSafe, filtered := g.actual().Safe(want), g.actual().Filtered(want)
				if rep.Safe && !kernelSafe || rep.Filtered && !filtered || rep.Safe && !rep.Filtered {
					t.Errorf("seed %d revision %d: reported safe %t filtered %t; the kernel: %t %t\n%s\nwant\n%s",
						seed, rep.Revision, rep.Safe, rep.Filtered, kernelSafe, filtered, g.fake, want)
				}
				if rep.Done && !rep.Safe {
					t.Errorf("seed %d revision %d: done, but not safe", seed, rep.Revision)
				}
			}
			last := kernel.State{}
			for revision := range uint64(30) {
				last = network(r, revision+1)
				mu.Lock()
				wants[last.Revision] = last
				mu.Unlock()
				g.r.Set(last)
				g.pass(time.Duration(r.IntN(300)) * time.Millisecond)
			}
			mu.Lock()
			calm = true
			mu.Unlock()
			g.pass(5 * time.Minute)
			g.mustBe(last)
			if !g.safe(last.Revision) {
				t.Errorf("seed %d: settled and not safe", seed)
			}
		})
		if t.Failed() {
			return
		}
	}
}

// TestP7SlowAndFailing goes through what a cut is made of, one operation at a
// time: as long as it is under way, or fails, the revision is not safe.
func TestP7SlowAndFailing(t *testing.T) {
	have := site(1, "ab")
	extra := kernel.Route{Table: mesh.RouteTable, Prefix: netip.MustParsePrefix("10.200.0.0/16"), NextHop: groupID}
	have.Routes = append(have.Routes, extra)
	have.Sort()

	cut := site(2, "a") // the leg goes while its tunnel stays, and the extra prefix goes
	cut.Tunnels, cut.Filter = have.Tunnels, have.Filter
	held := site(2, "ab")
	held.Routes = slices.Clone(have.Routes)
	held.Filter.Links = slices.Clone(held.Filter.Links)
	held.Filter.Links[1].Held = true
	refused := site(2, "ab")
	refused.Routes = slices.Clone(have.Routes)
	for i := range refused.Routes {
		refused.Routes[i].Kind, refused.Routes[i].NextHop = kernel.Unreachable, 0
	}

	for _, c := range []struct {
		name string
		want kernel.State
		op   string // what is slow, then fails
	}{
		{"leg", cut, "delete next hop 0x86000062"},
		{"route", cut, "delete route 10.200.0.0/16 table 86 nhid 0x86001000"},
		{"hold", held, "set filter of 2 links"},
		{"refusal", refused, "put route 10.3.0.0/16 table 86 unreachable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, kernel.State{}, func(g *rig) {
				g.r.Set(have)
				g.settle()
				g.mustBe(have)
				var mu sync.Mutex
				tries, broken := 0, true
				g.on(func(_ context.Context, op kernel.Op) error {
					if op == nil || op.String() != c.op {
						return nil
					}
					mu.Lock()
					tries++
					fails := broken
					mu.Unlock()
					time.Sleep(3 * time.Second)
					if fails {
						return errors.New("out of memory")
					}
					return nil
				})
				g.r.Set(c.want)
				g.pass(2 * time.Second)
				if g.safe(2) {
					t.Error("safe while the operation is under way")
				}
				g.pass(time.Minute)
				if g.safe(2) || g.r.Status().Safe {
					t.Error("safe although the operation fails")
				}
				mu.Lock()
				broken = false
				if tries < 3 {
					t.Errorf("tried %d times", tries)
				}
				mu.Unlock()
				g.pass(time.Minute + 3*time.Second)
				g.mustBe(c.want)
				if !g.safe(2) {
					t.Error("not safe in the end")
				}
			})
		})
	}
}

// TestP7Covered: a route that cannot be deleted stops being a danger when a
// later state has it refuse, or when its last leg is gone.
func TestP7Covered(t *testing.T) {
	bubble(t, kernel.State{}, func(g *rig) {
		have := site(1, "ab")
		g.r.Set(have)
		g.settle()
		g.on(func(_ context.Context, op kernel.Op) error {
			if _, ok := op.(kernel.DeleteRoute); ok {
				return errors.New("busy")
			}
			return nil
		})
		fewer := site(2, "ab")
		fewer.Routes = fewer.Routes[:4]
		g.r.Set(fewer)
		g.pass(time.Second)
		if g.safe(2) {
			t.Error("safe with a route that nobody wants")
		}
		refuse := site(3, "ab")
		refuse.Routes[4].Kind, refuse.Routes[4].NextHop = kernel.Unreachable, 0
		g.r.Set(refuse)
		g.settle()
		if !g.safe(3) {
			t.Errorf("not safe, though it refuses: %+v", g.last())
		}
		g.r.Set(kernel.State{Revision: 4, Complete: true, Filter: have.Filter})
		g.settle()
		if last := g.last(); last.Done || !last.Safe {
			t.Errorf("a route that refuses and cannot be deleted: %+v", last)
		}
	})
}

// TestP7LostAnswer: an operation failed, was done all the same, and the next
// state does not want it any more. By what was confirmed there is nothing to
// do; the kernel is asked before anything is promised.
func TestP7LostAnswer(t *testing.T) {
	bubble(t, kernel.State{}, func(g *rig) {
		g.r.Set(site(1, "ab"))
		g.pass(time.Second)
		wide := site(2, "abc")
		narrow := site(3, "abc")
		i := slices.IndexFunc(narrow.NextHops, kernel.NextHop.IsGroup)
		narrow.NextHops[i].Members = narrow.NextHops[i].Members[:2]
		g.on(func(ctx context.Context, op kernel.Op) error {
			put, ok := op.(kernel.PutNextHop)
			switch {
			case ok && len(put.NextHop.Members) == 3:
				return errors.Join(g.fake.Damage(op), errors.New("the answer was lost"))
			case op == nil && ctx.Value(peek{}) == nil:
				time.Sleep(time.Second)
			}
			return nil
		})
		g.r.Set(wide)
		g.settle()
		if g.safe(2) {
			t.Error("safe, though nobody knows what a failed operation did")
		}
		g.r.Set(narrow)
		g.settle()
		if last := g.last(); last.Safe || last.Done || len(last.Waiting) != 1 ||
			last.Waiting[0].Name != fmt.Sprintf("next hop %#x", groupID) || last.Waiting[0].Needs == "" || last.Waiting[0].Since.IsZero() {
			t.Errorf("before the look: %+v", last)
		}
		if g.actual().Safe(narrow) {
			t.Fatal("the test does not show anything")
		}
		g.pass(3 * time.Second)
		g.mustBe(narrow)
		if !g.safe(3) {
			t.Error("not safe after the look")
		}
	})
}
