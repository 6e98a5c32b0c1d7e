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
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"guywire/mesh"
	"guywire/mesh/kernel"
)

// The next hops of gw-a and gw-b, and the group of all.
const (
	hopa = mesh.NextHopBase + 0x61
	hopb = mesh.NextHopBase + 0x62

	groupID = mesh.NextHopBase + 0x1000
)

// site gives a node with the tunnels of the given letters, and routes over
// all of them.
func site(revision uint64, letters string) kernel.State {
	s := kernel.State{
		Revision: revision, Complete: true,
		Addrs:  []netip.Prefix{netip.MustParsePrefix("10.86.0.1/32")},
		Filter: kernel.Filter{Own: []netip.Prefix{netip.MustParsePrefix("10.86.0.1/32")}},
		Rules: []kernel.Rule{
			{Priority: mesh.RuleUplinkBase + 1, Mark: mesh.MarkBase + 1, Table: mesh.UplinkTableBase + 1},
			{Priority: mesh.RuleMesh, Table: mesh.RouteTable},
		},
		Sysctls: []kernel.Sysctl{{Path: "net/ipv4/ip_forward", Value: "1"}},
	}
	group := kernel.NextHop{ID: groupID}
	for _, c := range letters {
		device := "gw-" + string(c)
		id := mesh.NextHopBase + uint32(c)
		s.Tunnels = append(s.Tunnels, kernel.Tunnel{Name: device, Mark: mesh.MarkBase + 1, LinkLocal: netip.MustParseAddr("fe80::1")})
		s.NextHops = append(s.NextHops, kernel.NextHop{ID: id, Device: device})
		group.Members = append(group.Members, kernel.Member{ID: id, Weight: 1})
		s.Filter.Links = append(s.Filter.Links, kernel.FilterLink{Device: device})
	}
	if len(group.Members) > 0 {
		s.NextHops = append(s.NextHops, group)
		for i := range 5 {
			s.Routes = append(s.Routes, kernel.Route{
				Table: mesh.RouteTable, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16), NextHop: group.ID,
			})
		}
	}
	s.Sort()
	return s
}

// A rig runs a reconciler over one Fake in a synctest bubble.
type rig struct {
	t       *testing.T
	fake    *kernel.Fake
	r       *Reconciler
	reports []Report
	events  []Event

	mu     sync.Mutex
	before func(ctx context.Context, op kernel.Op) error
	slow   bool // looks at forwarding hand over two seconds after they read
	looks  int  // slow ones
}

// on sets what is called ahead of each operation, and with nil of each look.
func (g *rig) on(before func(ctx context.Context, op kernel.Op) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.before = before
}

func (g *rig) call(ctx context.Context, op kernel.Op) error {
	g.mu.Lock()
	before := g.before
	g.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(ctx, op)
}

// A slowObserver reads at once and may hand over later.
type slowObserver struct {
	*kernel.Fake
	g *rig
}

func (s slowObserver) Observe(ctx context.Context) (kernel.State, error) {
	state, err := s.Fake.Observe(ctx)
	s.g.mu.Lock()
	slow := s.g.slow
	if slow {
		s.g.looks++
	}
	s.g.mu.Unlock()
	if slow {
		time.Sleep(2 * time.Second)
	}
	return state, err
}

// setSlow makes looks at forwarding slow from now on.
func (g *rig) setSlow() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.slow = true
}

func bubble(t *testing.T, have kernel.State, test func(*rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g := &rig{t: t, fake: kernel.NewFake(have)}
		g.fake.Before = g.call
		g.r = New(Backends{g.fake, slowObserver{g.fake, g}, g.fake, g.fake}, Options{
			Report: g.report,
			Event:  func(e Event) { g.events = append(g.events, e) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- g.r.Run(ctx) }()
		test(g)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

func (g *rig) report(r Report) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reports = append(g.reports, r)
}

// last gives the latest report.
func (g *rig) last() Report {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.reports) == 0 {
		g.t.Fatal("no report")
	}
	return g.reports[len(g.reports)-1]
}

// settle waits until nothing moves without the clock.
func (g *rig) settle() { synctest.Wait() }

func (g *rig) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// mustBe checks what is in the kernel and what was reported.
func (g *rig) mustBe(want kernel.State) {
	g.t.Helper()
	if got := g.fake.String(); got != want.String() {
		g.t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if s := g.r.Status(); s.Done != want.Revision || s.Pending != 0 || !s.Safe && want.Complete {
		g.t.Errorf("status %+v", s)
	}
	if rep := g.last(); !rep.Done || rep.Revision != want.Revision {
		g.t.Errorf("last report %+v", rep)
	}
}

func ops(f *kernel.Fake) string {
	var texts []string
	for _, op := range f.Ops() {
		texts = append(texts, op.String())
	}
	return strings.Join(texts, "; ")
}

// TestCut: a failover is one operation, planned from what is known, before
// any look.
func TestCut(t *testing.T) {
	bubble(t, kernel.State{}, func(g *rig) {
		g.r.Set(site(1, "abc"))
		g.settle()
		g.mustBe(site(1, "abc"))
		g.fake.Ops()
		g.on(func(_ context.Context, op kernel.Op) error {
			if op == nil {
				t.Error("the kernel was looked at before the cut")
			}
			return nil
		})
		cut := site(2, "abc")
		cut.NextHops = slices.DeleteFunc(cut.NextHops, func(n kernel.NextHop) bool { return n.Device == "gw-b" })
		group := &cut.NextHops[slices.IndexFunc(cut.NextHops, kernel.NextHop.IsGroup)]
		group.Members = slices.DeleteFunc(group.Members, func(m kernel.Member) bool { return m.ID == hopb })
		g.r.Set(cut)
		g.settle()
		g.mustBe(cut)
		if got := ops(g.fake); got != "delete next hop 0x86000062" {
			t.Errorf("operations: %s", got)
		}
	})
}

// TestLatestWins: a newer state is worked on after the operation at hand, and
// the rest of the older plan is forgotten.
func TestLatestWins(t *testing.T) {
	bubble(t, kernel.State{}, func(g *rig) {
		g.on(func(_ context.Context, op kernel.Op) error {
			if create, ok := op.(kernel.CreateTunnel); ok && create.Tunnel.Name == "gw-a" {
				time.Sleep(time.Second)
			}
			return nil
		})
		g.r.Set(site(1, "abc"))
		g.settle()
		g.r.Set(site(2, "ab"))
		g.r.Set(site(3, "a"))
		g.pass(time.Second)
		g.mustBe(site(3, "a"))
		if got := ops(g.fake); strings.Contains(got, "create tunnel gw-b") {
			t.Errorf("the older plan was continued: %s", got)
		}
		for _, rep := range g.reports {
			if rep.Revision != 3 {
				t.Errorf("report of a superseded state: %+v", rep)
			}
		}
	})
}

// TestBackoff: what fails is tried less and less often, what depends on it
// waits, what does not goes on.
func TestBackoff(t *testing.T) {
	bubble(t, kernel.State{}, func(g *rig) {
		var tries []time.Time
		var broken atomic.Bool
		broken.Store(true)
		g.on(func(_ context.Context, op kernel.Op) error {
			if create, ok := op.(kernel.CreateTunnel); ok && create.Tunnel.Name == "gw-b" {
				g.mu.Lock()
				tries = append(tries, time.Now())
				g.mu.Unlock()
				if broken.Load() {
					return errors.New("no memory")
				}
			}
			return nil
		})
		want := site(1, "ab")
		want.NextHops = append(want.NextHops, kernel.NextHop{ID: groupID + 1, Members: []kernel.Member{{ID: hopa, Weight: 1}}})
		want.Routes = append(want.Routes, kernel.Route{Table: mesh.RouteTable, Prefix: netip.MustParsePrefix("10.99.0.0/16"), NextHop: groupID + 1})
		want.Sort()
		g.r.Set(want)
		g.pass(10 * time.Minute)

		g.mu.Lock()
		seen := slices.Clone(tries)
		g.mu.Unlock()
		for i := 1; i < len(seen); i++ {
			gap, expect := seen[i].Sub(seen[i-1]), min(retryFirst<<(i-1), retryLast)
			if gap != expect {
				t.Errorf("try %d came after %s, want %s", i, gap, expect)
			}
		}
		if len(seen) < 15 || len(seen) > 25 {
			t.Errorf("%d tries in 10 minutes", len(seen))
		}
		if got := g.fake.String(); !strings.Contains(got, "route 10.99.0.0/16") || !strings.Contains(got, "rule 8690") {
			t.Errorf("what does not depend on gw-b did not go on:\n%s", got)
		}
		s := g.r.Status()
		byName := map[string]Object{}
		for _, o := range s.Objects {
			byName[o.Name] = o
		}
		if o := byName["tunnel gw-b"]; !strings.Contains(o.Error, "no memory") || o.Retry.IsZero() || time.Since(o.Since) < 9*time.Minute {
			t.Errorf("the broken tunnel: %+v", o)
		}
		if o := byName["next hop 0x86000062"]; o.Needs != "tunnel gw-b" {
			t.Errorf("its next hop: %+v", o)
		}
		if o := byName["route 10.0.0.0/16 table 86"]; o.Needs == "" {
			t.Errorf("a route over it: %+v", o)
		}
		if s.Done != 0 || !s.Safe || s.Parts[kernel.PartTunnels].Failures != uint64(len(seen)) {
			t.Errorf("status %+v", s)
		}

		broken.Store(false)
		g.pass(retryLast)
		g.mustBe(want)
		if len(g.events) > 0 {
			t.Errorf("own failures were taken for others' doing: %+v", g.events)
		}
	})
}

// TestBackoffForgets: an operation that is another now need not wait.
func TestBackoffForgets(t *testing.T) {
	bubble(t, kernel.State{}, func(g *rig) {
		g.on(func(_ context.Context, op kernel.Op) error {
			if create, ok := op.(kernel.CreateTunnel); ok && create.Tunnel.MTU == 1 {
				return errors.New("bad MTU")
			}
			return nil
		})
		bad, good := site(1, "a"), site(2, "a")
		bad.Tunnels[0].MTU, good.Tunnels[0].MTU = 1, 1400
		g.r.Set(bad)
		g.pass(5 * time.Minute)
		g.r.Set(good)
		g.settle()
		g.mustBe(good)
	})
}

// TestStart: nothing is done before every part was seen, nothing is deleted
// before the first complete state, and what an earlier run left is taken over.
func TestStart(t *testing.T) {
	bubble(t, site(0, "abc"), func(g *rig) {
		var looks atomic.Int32
		var failing atomic.Bool
		failing.Store(true)
		g.on(func(_ context.Context, op kernel.Op) error {
			if op != nil {
				return nil
			}
			if n := looks.Add(1); n == 1 || failing.Load() && n > int32(kernel.Parts) {
				return errors.New("not yet there")
			}
			return nil
		})
		early := site(1, "")
		early.Complete = false
		early.Filter = kernel.Filter{}
		g.r.Set(early)
		g.pass(time.Minute)
		if got := ops(g.fake); got != "" {
			t.Errorf("blind operations: %s", got)
		}
		failing.Store(false)
		g.pass(time.Minute)
		g.mustBe(func() kernel.State { s := site(0, "abc"); s.Revision, s.Complete = 1, false; return s }())
		if got := ops(g.fake); got != "" {
			t.Errorf("operations for an incomplete state: %s", got)
		}
		g.r.Set(site(2, "abc"))
		g.settle()
		g.mustBe(site(2, "abc"))
		if got := ops(g.fake); got != "" {
			t.Errorf("operations to take over what is right: %s", got)
		}
		g.r.Set(kernel.State{Revision: 3, Complete: true})
		g.settle()
		g.mustBe(kernel.State{Revision: 3, Complete: true})
	})
}

// TestFilterFirst: before the first complete state a filter may be complete on
// its own. It is told to be in force although a tunnel cannot be made, and
// nothing that an earlier run left is touched.
func TestFilterFirst(t *testing.T) {
	bubble(t, site(0, "ab"), func(g *rig) {
		g.on(func(_ context.Context, op kernel.Op) error {
			if _, ok := op.(kernel.CreateTunnel); ok {
				return errors.New("no memory")
			}
			return nil
		})
		early := site(1, "ac")
		early.Complete, early.FilterComplete = false, true
		early.Routes, early.Rules = nil, nil
		early.NextHops = slices.DeleteFunc(early.NextHops, kernel.NextHop.IsGroup)
		for i := range early.Filter.Links {
			early.Filter.Links[i].Held = true
		}
		g.r.Set(early)
		g.settle()
		if last := g.last(); !last.Filtered || last.Safe || last.Done {
			t.Errorf("report %+v", last)
		}
		got := g.fake.String()
		for _, line := range []string{"tunnel gw-b", "next hop 0x86001000 0x86000061*1 0x86000062*1", "route 10.4.0.0/16", "filter gw-a from - held", "filter gw-c from - held"} {
			if !strings.Contains(got, line) {
				t.Errorf("no %s in\n%s", line, got)
			}
		}
		if strings.Contains(got, "filter gw-b") {
			t.Errorf("the filter was only widened:\n%s", got)
		}
	})
}

// TestRepair: what others break is repaired after a hint at once, without one
// after the slow timer, and told.
func TestRepair(t *testing.T) {
	bubble(t, kernel.State{}, func(g *rig) {
		want := site(1, "ab")
		g.r.Set(want)
		g.pass(time.Second)
		for _, kick := range []bool{true, false} {
			g.events = nil
			g.fake.SetDown("gw-a")
			if err := g.fake.Damage(kernel.DeleteRoute{Route: want.Routes[0]}); err != nil {
				t.Fatal(err)
			}
			if kick {
				g.r.Kick()
			} else {
				g.pass(resync)
			}
			g.pass(time.Second) // a next hop seen before its device may fail once
			g.mustBe(want)
			var objects []string
			for _, e := range g.events {
				objects = append(objects, e.Object)
			}
			slices.Sort(objects)
			if got := strings.Join(objects, ", "); got != "next hop 0x86000061, next hop 0x86001000, route 10.0.0.0/16 table 86, tunnel gw-a" {
				t.Errorf("kick %v: events for %s", kick, got)
			}
			g.pass(pace)
		}
		s := g.r.Status()
		if s.Parts[kernel.PartTunnels].Repairs != 2 || s.Parts[kernel.PartForwarding].Repairs != 6 {
			t.Errorf("repairs: %+v", s.Parts)
		}
	})
}

// TestManyEvents: a flushed table is one repair, not thousands of events.
func TestManyEvents(t *testing.T) {
	bubble(t, kernel.State{}, func(g *rig) {
		want := site(1, "a")
		for i := range 1000 {
			want.Routes = append(want.Routes, kernel.Route{
				Table: mesh.RouteTable, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}), 32), NextHop: hopa,
			})
		}
		want.Sort()
		g.r.Set(want)
		g.pass(time.Second)
		for _, r := range want.Routes {
			if err := g.fake.Damage(kernel.DeleteRoute{Route: r}); err != nil {
				t.Fatal(err)
			}
		}
		g.r.Kick(kernel.PartForwarding)
		g.settle()
		g.mustBe(want)
		total := 0
		for _, e := range g.events {
			total += 1 + e.More
		}
		if len(g.events) != eventsMax || total != len(want.Routes) {
			t.Errorf("%d events for %d objects", len(g.events), total)
		}
	})
}

// TestSlowLook: a cut does not wait for a long dump, and the dump that it
// overtook is not believed.
func TestSlowLook(t *testing.T) {
	bubble(t, kernel.State{}, func(g *rig) {
		g.r.Set(site(1, "abc"))
		g.pass(time.Second)
		g.setSlow()
		g.r.Kick(kernel.PartForwarding)
		g.pass(time.Second) // it has begun, and read
		begun := time.Now()
		g.r.Set(site(2, "ab"))
		g.settle()
		if time.Since(begun) != 0 {
			t.Errorf("the cut waited %s", time.Since(begun))
		}
		g.mustBe(site(2, "ab"))
		g.pass(time.Minute)
		g.mustBe(site(2, "ab"))
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.looks < 2 {
			t.Error("the spoilt look was not repeated")
		}
		if len(g.events) > 0 {
			t.Errorf("the spoilt look was believed: %+v", g.events)
		}
	})
}

// TestBusyPart: even if operations never rest, looks succeed in the end.
func TestBusyPart(t *testing.T) {
	bubble(t, kernel.State{}, func(g *rig) {
		g.r.Set(site(1, "ab"))
		g.pass(time.Second)
		g.setSlow()
		for i := range 300 {
			g.r.Set(site(uint64(2+i), []string{"ab", "abc"}[i%2]))
			g.pass(100 * time.Millisecond)
		}
		if age := time.Since(g.r.Status().Parts[kernel.PartForwarding].Observed); age > resync+10*time.Second {
			t.Errorf("last good look %s ago", age)
		}
	})
}

// TestHintStorm: hints without end do not become looks without end.
func TestHintStorm(t *testing.T) {
	bubble(t, kernel.State{}, func(g *rig) {
		g.r.Set(site(1, "ab"))
		g.pass(time.Second)
		var looks atomic.Int32
		g.on(func(_ context.Context, op kernel.Op) error {
			if op == nil {
				looks.Add(1)
			}
			return nil
		})
		for range 1000 {
			g.r.Kick(kernel.PartForwarding)
			g.pass(time.Millisecond)
		}
		if n := looks.Load(); n < 10 || n > 25 {
			t.Errorf("%d looks in a second of hints", n)
		}
	})
}

// TestRandom: random states, failures, delays, damage and hints; when they
// end, the last state stands and is reported.
func TestRandom(t *testing.T) {
	for seed := range uint64(60) {
		bubble(t, kernel.State{}, func(g *rig) {
			r := rand.New(rand.NewPCG(seed, 1))
			chaos := rand.New(rand.NewPCG(seed, 2)) // used under the lock below
			lock := make(chan struct{}, 1)
			quiet := false
			g.on(func(ctx context.Context, _ kernel.Op) error {
				lock <- struct{}{}
				calm, dice := quiet, chaos.IntN(10)
				<-lock
				switch {
				case calm:
				case dice == 0:
					return errors.New("injected")
				case dice < 3:
					select {
					case <-time.After(time.Duration(dice) * 40 * time.Millisecond):
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				return nil
			})
			letters := func() string {
				var s strings.Builder
				for _, c := range "abcdef" {
					if r.IntN(2) == 0 {
						s.WriteString(string(c))
					}
				}
				return s.String()
			}
			revision := uint64(0)
			for range 30 {
				switch r.IntN(4) {
				case 0:
					g.fake.SetDown("gw-" + string("abcdef"[r.IntN(6)]))
					g.r.Kick(kernel.PartTunnels, kernel.PartForwarding)
				case 1:
					_ = g.fake.Damage(kernel.DeleteNextHop{ID: groupID})
					_ = g.fake.Damage(kernel.ClearFilter{})
				case 2:
					revision++
					g.r.Set(site(revision, letters()))
				}
				g.pass(time.Duration(r.IntN(300)) * time.Millisecond)
			}
			lock <- struct{}{}
			quiet = true
			<-lock
			revision++
			want := site(revision, letters())
			g.r.Set(want)
			g.pass(5 * time.Minute)
			g.mustBe(want)
			if g.t.Failed() {
				g.t.Fatalf("seed %d", seed)
			}
		})
	}
}

func TestStatusIsCopy(t *testing.T) {
	bubble(t, kernel.State{}, func(g *rig) {
		g.on(func(_ context.Context, op kernel.Op) error {
			if op == nil {
				return nil
			}
			return fmt.Errorf("%s: refused", op)
		})
		g.r.Set(site(1, "ab"))
		g.settle()
		s := g.r.Status()
		if len(s.Objects) == 0 {
			t.Fatal("nothing pending")
		}
		s.Objects[0].Name = "changed"
		if g.r.Status().Objects[0].Name == "changed" {
			t.Error("the status is shared")
		}
	})
}
