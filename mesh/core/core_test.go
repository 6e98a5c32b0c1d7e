package core

import (
	"crypto/ed25519"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/kernel"
	"guywire/mesh/link"
	"guywire/routing"
	"guywire/routing/session"
	"guywire/routing/wire"
	"guywire/store"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func id(n byte) mesh.NodeID { return mesh.NodeID{n} }

// state is a mesh of n nodes; node i has 10.i.0.0/24. Nodes in reachable can
// be connected to.
func state(n int, reachable ...byte) *store.State {
	s := &store.State{Index: 1, Mesh: store.Settings{ID: mesh.MeshID{1}}, Nodes: map[mesh.NodeID]store.Node{}}
	for i := byte(1); int(i) <= n; i++ {
		node := store.Node{
			ID: id(i), Name: "n" + string('0'+rune(i)), Addr4: netip.AddrFrom4([4]byte{10, 86, 0, i}),
			Addr6: netip.MustParseAddr("fd00::" + string('0'+rune(i))), Keys: []store.Key{{Epoch: 1, Public: mesh.WireGuardKey{i}}},
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, i, 0, 0}), 24)},
		}
		if slices.Contains(reachable, i) {
			node.Control = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, i}), mesh.ControlPort)}
		}
		s.Nodes[id(i)] = node
	}
	return s
}

func node(s *store.State, records ...Record) *Node {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	n := New(start, Config{
		Self: id(1), Mesh: s.Mesh.ID, Incarnation: 1, Records: records,
		Sign: func(b []byte) []byte { return ed25519.Sign(key, b) }, Rand: rand.New(rand.NewPCG(1, 1)),
	})
	n.Step(start, StateChanged{State: s})
	n.Step(start, HostChanged{Host: Host{
		Uplinks: []mesh.Uplink{
			{Name: "isp1", Slot: 1, Interface: "eth0", Up: true, Default4: true, Gateway4: netip.MustParseAddr("198.18.0.254"), MTU: 1500},
			{Name: "isp2", Slot: 2, Interface: "eth1", Up: true, Default4: true, MTU: 1492},
		},
		Attached: []Attached{{"lan", netip.MustParsePrefix("10.1.0.0/24")}, {"eth0", netip.MustParsePrefix("198.18.0.0/24")}},
	}})
	return n
}

func facts(n byte, uplinks ...string) discovery.Facts {
	f := discovery.Facts{Mesh: mesh.MeshID{1}, Node: id(n), Serial: 1}
	for _, u := range uplinks {
		f.Uplinks = append(f.Uplinks, discovery.Uplink{Name: u})
	}
	return f
}

func attempts(r Ready) (out []string) {
	for _, a := range r.Attempt {
		out = append(out, a.Link.Local+">"+a.Link.Remote)
	}
	return out
}

func TestTriesEveryPairOfUplinks(t *testing.T) {
	n := node(state(2, 1, 2))
	r := n.Step(start, FactsChanged{Facts: facts(2, "a", "b")})
	if got := strings.Join(attempts(r), " "); got != "isp1>a isp1>b isp2>a isp2>b" {
		t.Errorf("attempts: %s", got)
	}
}

// Who cannot be reached begins; the other end steps in only later.
func TestTheEndThatCannotBeReachedBegins(t *testing.T) {
	n := node(state(2, 1)) // we can be reached, they cannot
	r := n.Step(start, FactsChanged{Facts: facts(2, "a")})
	if got := attempts(r); len(got) > 0 {
		t.Errorf("began at once: %v", got)
	}
	if got := attempts(n.Step(start.Add(deferFor+time.Second), Tick{})); len(got) != 2 {
		t.Errorf("never stepped in: %v", got)
	}
	n = node(state(2, 2)) // they can be reached, we cannot
	if got := attempts(n.Step(start, FactsChanged{Facts: facts(2, "a")})); len(got) != 2 {
		t.Errorf("waits for ever: %v", got)
	}
}

func TestFailedAttemptsBackOff(t *testing.T) {
	n := node(state(2, 1, 2))
	r := n.Step(start, FactsChanged{Facts: facts(2, "a")})
	link, now, tries := r.Attempt[0].Link, start, 1
	for now.Before(start.Add(10 * time.Minute)) {
		r = n.Step(now, AttemptDone{Link: link, Err: "no way"})
		for len(r.Attempt) == 0 {
			now = r.Deadline
			r = n.Step(now, Tick{})
		}
		tries++
	}
	if tries < 8 || tries > 25 {
		t.Errorf("%d tries in ten minutes", tries)
	}
}

func made(n *Node, peer byte) mesh.LinkID {
	link := mesh.LinkID{Peer: id(peer), Local: "isp1", Remote: "a"}
	n.Step(start, FactsChanged{Facts: facts(peer, "a")})
	n.Step(start, AttemptDone{Link: link, ID: 5, Port: 51900, Endpoint: netip.MustParseAddrPort("198.18.0.9:51901"), Peer: store.Key{Epoch: 1, Public: mesh.WireGuardKey{peer}}})
	return link
}

func TestDesiredTunnel(t *testing.T) {
	n := node(state(2, 1, 2))
	made(n, 2)
	want := n.Desired()
	if len(want.Tunnels) != 1 {
		t.Fatalf("%d tunnels", len(want.Tunnels))
	}
	tun := want.Tunnels[0]
	if tun.ListenPort != 51900 || tun.Mark != 0x8601 || tun.MTU != 1420 || tun.Epoch != 1 || tun.PublicKey != (mesh.WireGuardKey{1}) ||
		tun.Peer != (mesh.WireGuardKey{2}) || tun.LinkLocal != id(1).LinkLocal() || tun.Overlay4.String() != "10.86.0.1" || tun.Keepalive != 0 {
		t.Errorf("%+v", tun)
	}
	if !strings.HasPrefix(tun.Name, "gw-n2-") || len(tun.Name) > 15 || !OwnsAlias(tun.Alias) {
		t.Errorf("device %q alias %q", tun.Name, tun.Alias)
	}
	for _, l := range want.Filter.Links {
		if !l.Held {
			t.Errorf("%s is not held although nobody was heard on it", l.Device)
		}
	}
}

func TestNothingFallsThroughAnUplinkTable(t *testing.T) {
	want := node(state(1, 1)).Desired()
	for _, table := range []int{8601, 8602} {
		refused := map[bool]bool{}
		for _, r := range want.Routes {
			if r.Table == table && r.Kind == kernel.Unreachable && r.Prefix.Bits() == 0 {
				refused[r.Prefix.Addr().Is4()] = true
			}
		}
		if len(refused) != 2 {
			t.Errorf("table %d: a marked packet without a route would leave by another uplink", table)
		}
	}
}

// What belongs to the mesh and has no path is refused rather than sent in the
// clear; what this machine reaches itself is left to its own tables.
func TestRoutesWithoutPath(t *testing.T) {
	n := node(state(3, 1, 2, 3))
	n.Step(start.Add(settlePatience+time.Second), Tick{})
	want := n.Desired()
	if !want.Complete {
		t.Fatal("not settled")
	}
	kinds := map[string]kernel.RouteKind{}
	for _, r := range want.Routes {
		if r.Table == mesh.RouteTable {
			kinds[r.Prefix.String()] = r.Kind
		}
	}
	for p, kind := range map[string]kernel.RouteKind{"10.2.0.0/24": kernel.Unreachable, "10.86.0.3/32": kernel.Unreachable} {
		if got, ok := kinds[p]; !ok || got != kind {
			t.Errorf("%s: %v %v", p, got, ok)
		}
	}
	if _, ok := kinds["10.1.0.0/24"]; ok {
		t.Error("our own network is routed into the mesh")
	}
}

func TestLocallyConnectedPrefixWins(t *testing.T) {
	s := state(2, 1, 2)
	other := s.Nodes[id(2)]
	other.Prefixes = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	s.Nodes[id(2)] = other
	n := node(s)
	n.Step(start.Add(settlePatience+time.Second), Tick{})
	thrown := false
	for _, r := range n.Desired().Routes {
		thrown = thrown || r.Table == mesh.RouteTable && r.Prefix.String() == "10.1.0.0/24" && r.Kind == kernel.Throw
	}
	if !thrown {
		t.Error("10.1.0.0/24 is attached here and would be sent to the other site")
	}
}

func TestRemovedNodeLosesItsTunnelAndIsRevoked(t *testing.T) {
	n := node(state(3, 1, 2, 3))
	made(n, 2)
	gone := state(3, 1, 2, 3)
	gone.Index = 2
	keys := gone.Nodes[id(2)].Keys
	delete(gone.Nodes, id(2))
	gone.Removed = map[mesh.NodeID]store.Tombstone{id(2): {Name: "n2", Keys: keys}}
	r := n.Step(start, StateChanged{State: gone})
	want := n.Desired()
	if len(want.Tunnels) > 0 || !slices.Contains(want.Revoked, mesh.WireGuardKey{2}) || !r.Save || !r.Dirty {
		t.Errorf("tunnels %v, revoked %v, save %t, dirty %t", want.Tunnels, want.Revoked, r.Save, r.Dirty)
	}
	// What is still on its way about it changes nothing.
	n.Step(start, AttemptDone{Link: mesh.LinkID{Peer: id(2), Local: "isp1", Remote: "a"}, ID: 6, Port: 1})
	n.Step(start, FactsChanged{Facts: facts(2, "a")})
	if got := n.Records(); len(got) > 0 {
		t.Errorf("it came back: %+v", got)
	}
}

// A ban is a removal that the log does not know yet, and may be over again.
func TestBannedNodeIsCutOff(t *testing.T) {
	log := state(3, 1, 2, 3)
	cut := StateChanged{State: log.Without(id(2)), Banned: map[mesh.NodeID]string{id(2): "n3"}}
	said := func(r Ready) string {
		if len(r.Facts) == 0 {
			return ""
		}
		f := r.Facts[0]
		return string(f.Kind) + ": " + f.Sentence + ": " + f.Cause
	}
	confirmed := *log.Without(id(2))
	confirmed.Index = 2
	for what, end := range map[string]struct {
		event StateChanged
		says  string
		back  bool
	}{
		"confirmed": {StateChanged{State: &confirmed}, "node-removed: n2 is no member any more: the log confirms the word of n3", false},
		"lapsed":    {StateChanged{State: log}, "ban-ended: n2 is a member again: the log did not confirm the word of n3", true},
	} {
		n := node(log)
		made(n, 2)
		if got, want := said(n.Step(start, cut)), "node-banned: n2 is cut off: banned by word of n3, not yet in the log"; got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
		if want := n.Desired(); len(want.Tunnels) > 0 || !slices.Contains(want.Revoked, mesh.WireGuardKey{2}) {
			t.Errorf("%s: tunnels %v, revoked %v", what, want.Tunnels, want.Revoked)
		}
		if got := said(n.Step(start, cut)); got != "" {
			t.Errorf("%s: the same again says %q", what, got)
		}
		if got := said(n.Step(start, end.event)); got != end.says {
			t.Errorf("%s: %q, want %q", what, got, end.says)
		}
		if revoked := n.Desired().Revoked; slices.Contains(revoked, mesh.WireGuardKey{2}) == end.back {
			t.Errorf("%s: revoked are %v", what, revoked)
		}
	}
	if _, still := log.Nodes[id(2)]; !still || len(log.Removed) > 0 {
		t.Error("the state of the log was changed")
	}
}

func TestOlderStateIsIgnored(t *testing.T) {
	at := func(nodes int, generation, index uint64) *store.State {
		s := state(nodes, 1)
		s.Mesh.Generation, s.Index = generation, index
		return s
	}
	n := node(at(3, 1, 9))
	n.Step(start, StateChanged{State: at(2, 1, 8)})
	n.Step(start, StateChanged{State: at(2, 0, 99)}) // of what was lost before the mesh was recovered
	if len(n.state.Nodes) != 3 {
		t.Error("the state went back")
	}
	n.Step(start, StateChanged{State: at(2, 2, 3)})
	if len(n.state.Nodes) != 2 {
		t.Error("a later generation was not taken")
	}
}

func TestAdoptedTunnelsAreLeftAlone(t *testing.T) {
	rec := Record{
		Link: mesh.LinkID{Peer: id(2), Local: "isp1", Remote: "a"}, Device: "gw-n2-abcde", Slot: 3, Generation: 5,
		Port: 51900, Endpoint: netip.MustParseAddrPort("198.18.0.9:1"), Epoch: 1, Peer: mesh.WireGuardKey{2}, Alive: true,
	}
	n := node(state(2, 1, 2), rec)
	want := n.Desired()
	if want.Complete || len(want.Tunnels) != 1 || want.Tunnels[0].Name != rec.Device || len(want.Filter.Links) > 0 {
		t.Errorf("complete %t, %d tunnels, filter %v: an agent that has just started knows too little to change anything", want.Complete, len(want.Tunnels), want.Filter)
	}
	if r := n.Step(start.Add(100*time.Millisecond), Tick{}); len(r.Send) == 0 {
		t.Error("it does not speak on the tunnel that it found")
	}
}

// A metered uplink, at whichever end, carries traffic last.
func TestMeteredCostsMore(t *testing.T) {
	for name, meter := range map[string]func(n *Node){
		"here":  func(n *Node) { n.host.Uplinks[0].Metered = true },
		"there": func(n *Node) { f := facts(2, "a"); f.Uplinks[0].Metered = true; n.facts[id(2)] = f },
	} {
		n := node(state(2, 1, 2))
		e := n.entries[made(n, 2)]
		plain := n.legCost(e)
		meter(n)
		if got := n.legCost(e); got != plain.Add(meteredPenalty) {
			t.Errorf("%s: %d, without meter %d", name, got, plain)
		}
	}
}

func TestUsedPrefersSureLegsAndKeepsTheLast(t *testing.T) {
	up, suspect, down := link.Adopt(start, 0), link.Adopt(start, 0), link.Adopt(start, 0)
	suspect.Silent(start)
	down.Fail(start, "cut")
	if up.State() != link.Up || suspect.State() != link.Suspect {
		t.Fatalf("states %s %s", up.State(), suspect.State())
	}
	l := func(total mesh.Cost, judge *link.Link) leg { return leg{e: &entry{judge: judge}, total: total} }
	for name, c := range map[string]struct {
		legs         []leg
		carry, armed int
	}{
		"within 1.25":              {[]leg{l(100_000, up), l(125_000, up), l(125_001, up)}, 2, 1},
		"short paths are alike":    {[]leg{l(10_000, up), l(12_500, up), l(12_501, up)}, 2, 1},
		"suspects wait":            {[]leg{l(90_000, suspect), l(100_000, up)}, 1, 1},
		"only suspects: they must": {[]leg{l(90_000, suspect), l(100_000, suspect)}, 2, 0},
		"the dead are out":         {[]leg{l(90_000, down), l(100_000, up)}, 1, 0},
		"none":                     {nil, 0, 0},
	} {
		weigh(c.legs, noShare)
		carry, armed := used(c.legs)
		if len(carry) != c.carry || len(armed) != c.armed {
			t.Errorf("%s: %d carry, %d wait", name, len(carry), len(armed))
		}
		if len(carry) > 0 && carry[0].total > 100_000 {
			t.Errorf("%s: the best is not first", name)
		}
	}
}

func noShare(leg) uint8 { return 0 }

// P9: whatever carries traffic promises a path of at most v = 1.4 times the best
// that is up, or one that is as good as alike, and the best always carries.
func TestP9StretchBound(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	for range 2000 {
		links := map[mesh.NodeID][]leg{}
		var d routing.Destination
		shortest := mesh.Infinite
		for peer := byte(2); peer < 2+byte(rng.IntN(6)+1); peer++ {
			s := routing.Successor{Peer: id(peer), Rest: mesh.Cost(rng.IntN(50_000))}
			d.Successors = append(d.Successors, s)
			for port := range rng.IntN(3) + 1 {
				judge := link.Adopt(start, 0)
				if rng.IntN(5) == 0 {
					judge.Silent(start)
				}
				e := &entry{judge: judge, rec: Record{Link: mesh.LinkID{Peer: id(peer), Local: string(rune('a' + port))}}}
				c := mesh.Cost(250 + rng.IntN(50_000))
				links[s.Peer] = append(links[s.Peer], leg{e: e, total: c})
				if judge.State() == link.Up {
					shortest = min(shortest, c.Add(s.Rest))
				}
			}
		}
		legs := node(state(2, 1, 2)).legs(d, links)
		weigh(legs, func(leg) uint8 { return uint8(rng.IntN(3)) }) // whatever they had before
		carry, armed := used(legs)
		if len(carry) == 0 {
			t.Fatal("a destination with legs has none in use")
		}
		if shortest == mesh.Infinite {
			continue // only suspects: the best of them
		}
		if carry[0].total != shortest {
			t.Fatalf("the best leg of %d does not carry: %d", shortest, carry[0].total)
		}
		for _, l := range carry {
			if l.total*10 > shortest*14 && l.total > shortest+alike {
				t.Fatalf("a leg of %d carries beside one of %d", l.total, shortest)
			}
		}
		for _, l := range armed {
			if l.e.judge.State() == link.Up && l.total*100 <= legs[0].total*joinSpread {
				t.Fatalf("a leg of %d stands by while the best is %d", l.total, shortest)
			}
		}
	}
}

func TestGroupIDsAreStableAndDistinct(t *testing.T) {
	first := groupID("legs", map[uint32]bool{})
	if again := groupID("legs", map[uint32]bool{}); again != first {
		t.Error("the same legs got another id")
	}
	// Other legs have it, perhaps those of the plan before.
	taken := map[uint32]bool{first: true}
	if second := groupID("legs", taken); !taken[second] || second == first || second < groupBase || second >= mesh.NextHopEnd {
		t.Errorf("a collision gave %#x after %#x", second, first)
	}
}

// A leg comes to carry traffic well within v, and goes only beyond it.
func TestNoiseIsNoChangeOfShares(t *testing.T) {
	up := link.Adopt(start, 0)
	had := map[int]uint8{}
	for i, c := range []struct {
		cost mesh.Cost // of the second leg, hundreds; the first has 1000
		want uint8
	}{{1300, 0}, {1250, 1}, {1400, 1}, {1401, 0}, {1300, 0}, {1150, 2}, {1300, 2}, {1301, 1}, {1151, 1}, {1150, 2}} {
		c.cost *= 100
		legs := []leg{{e: &entry{judge: up}, total: 100_000}, {e: &entry{judge: up}, total: c.cost}}
		weigh(legs, func(l leg) uint8 { return had[int(l.total/100_001)] })
		had = map[int]uint8{0: legs[0].weight, 1: legs[1].weight}
		if legs[1].weight != c.want {
			t.Errorf("step %d: at %d its share is %d, want %d", i, c.cost, legs[1].weight, c.want)
		}
		if carry, _ := used(legs); len(carry) != 1+int(min(c.want, 1)) {
			t.Errorf("step %d: %d legs carry", i, len(carry))
		}
	}
}

// The far end of a link whose uplink went down learns it at once, by the other.
func TestALostUplinkIsToldOverTheOther(t *testing.T) {
	rec := func(uplink, device string, slot uint16) Record {
		return Record{
			Link: mesh.LinkID{Peer: id(2), Local: uplink, Remote: "a"}, Device: device, Slot: slot, Generation: 5,
			Port: 51900 + slot, Endpoint: netip.MustParseAddrPort("198.18.0.9:1"), Epoch: 1, Peer: mesh.WireGuardKey{2}, Alive: true,
		}
	}
	n := node(state(2, 1, 2), rec("isp1", "gw-n2-aaaaa", 1), rec("isp2", "gw-n2-bbbbb", 2))
	n.Step(start.Add(100*time.Millisecond), Tick{})
	host := n.host
	host.Uplinks = slices.Clone(host.Uplinks)
	host.Uplinks[0].Up = false
	told := func(r Ready) (devices []string) {
		for _, d := range r.Send {
			m, err := wire.Decode(d.Payload)
			if err != nil {
				t.Fatal(err)
			}
			if s, ok := m.Body.(wire.Silence); ok && s.Links[0] == (wire.LinkName{Local: "isp1", Remote: "a"}) {
				devices = append(devices, d.Device)
			}
		}
		return devices
	}
	if got := told(n.Step(start.Add(110*time.Millisecond), HostChanged{Host: host})); !slices.Equal(got, []string{"gw-n2-bbbbb"}) {
		t.Errorf("told over %v", got)
	}
	if got := told(n.Step(start.Add(120*time.Millisecond), HostChanged{Host: host})); len(got) > 0 {
		t.Errorf("told again over %v", got)
	}
}

// A machine that did not run for a moment is suspected over all its links at once:
// that is one false alarm, and slows no probes yet.
func TestFalseAlarmsOfOneMomentAreOne(t *testing.T) {
	n := node(state(2, 1))
	n.now = start
	for range 5 {
		n.falseAlarm()
	}
	if got := n.falseAlarms(); got != 1 {
		t.Errorf("%v alarms in one moment", got)
	}
	n.now = start.Add(alarmsApart)
	n.falseAlarm()
	if got := n.falseAlarms(); got <= 1.9 || got > 2 {
		t.Errorf("%v alarms in two moments", got)
	}
}

// Where the kinds of NAT rule a path out, nothing is tried, and it is said why; a
// change at either end lets hope anew.
func TestHopelessPairsRest(t *testing.T) {
	hard := discovery.Uplink{Name: "isp1", NAT: discovery.NATSymmetric, NAT6: discovery.NATAbsent}
	theirs := func(n discovery.NAT) Event {
		f := facts(2, "a")
		f.Serial = 10 - uint64(n) // a better kind is newer
		f.Uplinks[0].NAT, f.Uplinks[0].NAT6 = n, discovery.NATAbsent
		return FactsChanged{Facts: f}
	}
	tried := func(n *Node, ev Event, at time.Duration) []string {
		return slices.DeleteFunc(attempts(n.Step(start.Add(at), ev)), func(s string) bool { return s != "isp1>a" })
	}
	for what, end := range map[string]struct {
		event Event
		after time.Duration
	}{
		"we move":     {Surveyed{Uplink: discovery.Uplink{Name: "isp1", NAT: discovery.NATEasy, NAT6: discovery.NATAbsent}}, time.Minute},
		"they move":   {theirs(discovery.NATNone), time.Minute},
		"a long time": {Tick{}, restFor + time.Minute},
	} {
		n := node(state(2, 1, 2))
		n.Step(start, Surveyed{Uplink: hard})
		r := n.Step(start, theirs(discovery.NATSymmetric))
		if got := tried(n, Tick{}, 30*time.Second); len(got) > 0 || len(attempts(r)) > 1 {
			t.Errorf("tried: %v %v", attempts(r), got)
		}
		if !slices.ContainsFunc(r.Facts, func(f Fact) bool { return f.Kind == LinkFailed && strings.Contains(f.Cause, "symmetric") }) {
			t.Errorf("it is not said why: %+v", r.Facts)
		}
		if got := tried(n, end.event, end.after); len(got) != 1 {
			t.Errorf("%s: tried %v", what, got)
		}
	}
}

// An attempt without hope is not repeated soon, one that yielded is no failure.
func TestHowAttemptsEnd(t *testing.T) {
	link := mesh.LinkID{Peer: id(2), Local: "isp1", Remote: "a"}
	for _, c := range []struct {
		end     AttemptDone
		sooner  time.Duration // no attempt before
		already time.Duration // but one by then
	}{
		{AttemptDone{Link: link, Err: "no answer"}, retryFirst / 2, 2 * retryFirst},
		{AttemptDone{Link: link, Err: "symmetric", Hopeless: true}, restFor / 2, 2 * restFor},
		{AttemptDone{Link: link, Err: "theirs goes on", Yielded: true}, retryFirst / 2, 2 * retryFirst},
	} {
		n := node(state(2, 1, 2))
		n.Step(start, FactsChanged{Facts: facts(2, "a")})
		r := n.Step(start, c.end)
		if told := slices.ContainsFunc(r.Facts, func(f Fact) bool { return f.Kind == LinkFailed }); told == c.end.Yielded {
			t.Errorf("%s: told %v", c.end.Err, told)
		}
		for _, at := range []time.Duration{c.sooner, c.already} {
			got := attempts(n.Step(start.Add(at), Tick{}))
			if again := slices.Contains(got, "isp1>a"); again != (at == c.already) {
				t.Errorf("%s: after %s %v", c.end.Err, at, got)
			}
		}
	}
}

// The first survey of an agent's life does not give up tunnels that an earlier life
// made; a later one that differs does.
func TestFirstSurveyKeepsTunnels(t *testing.T) {
	n := node(state(2, 1, 2))
	n.Step(start, FactsChanged{Facts: facts(2, "a")})
	link := made(n, 2)
	n.outside = map[string]discovery.Uplink{} // as at the start of an agent
	for nat, want := range []bool{false, true} {
		kind := []discovery.NAT{discovery.NATEasy, discovery.NATSymmetric}[nat]
		r := n.Step(start.Add(time.Duration(nat+1)*time.Millisecond), Surveyed{Uplink: discovery.Uplink{Name: link.Local, NAT: kind}})
		if got := slices.ContainsFunc(r.Attempt, func(a Attempt) bool { return a.Link == link }); got != want {
			t.Errorf("survey %d: begun %v, want %v", nat+1, r.Attempt, want)
		}
	}
}

// A link that never comes up though its attempts succeed, as on a machine that is too busy, is tried less and less often.
func TestReseatsBackOff(t *testing.T) {
	n := node(state(2, 1, 2))
	n.Step(start, FactsChanged{Facts: facts(2, "a")})
	link, now := made(n, 2), start
	var gaps []time.Duration
	for r := n.Step(now, Tick{}); len(gaps) < 8; {
		now = r.Deadline
		if r = n.Step(now, Tick{}); len(r.Attempt) > 0 {
			gaps = append(gaps, now.Sub(start))
			r = n.Step(now, AttemptDone{Link: link, ID: uint64(len(gaps)) + 9, Port: 51900, Endpoint: netip.MustParseAddrPort("198.18.0.9:51901"), Peer: store.Key{Epoch: 1, Public: mesh.WireGuardKey{2}}})
		}
	}
	for i := len(gaps) - 1; i > 0; i-- {
		gaps[i] -= gaps[i-1]
	}
	if gaps[0] < reseatAfter || gaps[0] > 2*reseatAfter+deferFor || !slices.IsSorted(gaps) || gaps[7] < retryMost || gaps[7] > retryMost+reseatAfter+deferFor {
		t.Errorf("tried again after %s", gaps)
	}
}

// What attempts take is told with their link, whatever their end.
func TestEffortIsTold(t *testing.T) {
	link := mesh.LinkID{Peer: id(2), Local: "isp1", Remote: "a"}
	n := node(state(2, 1, 2))
	n.Step(start, FactsChanged{Facts: facts(2, "a")})
	n.Step(start, AttemptDone{Link: link, Err: "no answer", Effort: Effort{1, 20, 1900}})
	n.Step(start, AttemptDone{Link: link, Err: "theirs goes on", Yielded: true, Effort: Effort{1, 2, 200}})
	n.Step(start, AttemptDone{Link: link, ID: 6, Port: 1, Effort: Effort{0, 5, 480}})
	i := slices.IndexFunc(n.Links(), func(v LinkView) bool { return v.Record.Link == link })
	if i < 0 || n.Links()[i].Effort != (Effort{2, 27, 2580}) {
		t.Errorf("told %+v", n.Links())
	}
}

// An uplink whose network changed tries its lost links at once, whichever end
// would begin otherwise.
func TestNewsAreTriedAtOnce(t *testing.T) {
	n := node(state(2, 1)) // the other end begins
	n.Step(start, Surveyed{Uplink: discovery.Uplink{Name: "isp1", NAT: discovery.NATEasy}})
	n.Step(start, FactsChanged{Facts: facts(2, "a")})
	made(n, 2)
	now := start.Add(time.Minute)
	for at := start; at.Before(now); at = at.Add(50 * time.Millisecond) {
		for _, a := range n.Step(at, Tick{}).Attempt { // nothing is heard: the link is not up
			n.Step(at, AttemptDone{Link: a.Link, Err: "no answer"})
		}
	}
	n.entries[mesh.LinkID{Peer: id(2), Local: "isp1", Remote: "a"}].retry = now.Add(retryMost)
	r := n.Step(now, Surveyed{Uplink: discovery.Uplink{Name: "isp1", NAT: discovery.NATSymmetric}})
	if got := attempts(r); !slices.Contains(got, "isp1>a") {
		t.Errorf("attempts: %v", got)
	}
	if got := attempts(n.Step(now, Surveyed{Uplink: discovery.Uplink{Name: "isp1", NAT: discovery.NATSymmetric}})); len(got) > 0 {
		t.Errorf("no news: %v", got)
	}
}

// What was begun before the uplink was known to pass no UDP is ended, and begun
// anew as a stream at once.
func TestCarrierInPlaceOfHopelessAttempts(t *testing.T) {
	n := node(state(3, 2, 3))
	n.Step(start, HostChanged{Host: Host{Uplinks: n.host.Uplinks[:1]}})
	n.Step(start, FactsChanged{Facts: facts(2, "a")})
	n.Step(start, FactsChanged{Facts: facts(3, "a")})
	now := start.Add(deferFor)
	n.Step(now, Tick{})
	link := mesh.LinkID{Peer: id(2), Local: "isp1", Remote: "a"}
	if e := n.entries[link]; !e.attempting || e.carrying {
		t.Fatalf("entry %+v", e)
	}
	blocked := discovery.Uplink{Name: "isp1", NAT: discovery.NATBlocked, NAT6: discovery.NATAbsent}
	r := n.Step(now, Surveyed{Uplink: blocked})
	if len(r.Cancel) != 2 || !slices.Contains(r.Cancel, link) {
		t.Errorf("ended: %v", r.Cancel)
	}
	if got := n.Step(now, AttemptDone{Link: link, Err: "UDP does not pass"}).Attempt; len(got) != 1 || got[0].Link != link || !got[0].Carrier {
		t.Errorf("begun: %+v", got)
	}
	blocked.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.9")}
	if r := n.Step(now, Surveyed{Uplink: blocked}); slices.Contains(r.Cancel, link) {
		t.Error("a stream is ended")
	}
}

// A node through whose uplinks no UDP passes has some links carried in streams, to
// nodes that can be dialled, and only while nothing else works.
func TestCarrierOnlyWhenAlone(t *testing.T) {
	shut := discovery.Uplink{Name: "isp1", NAT: discovery.NATBlocked, NAT6: discovery.NATAbsent}
	begin := func() (*Node, []Attempt) {
		n := node(state(5, 2, 3, 4)) // of the others only 5 cannot be dialled
		n.Step(start, HostChanged{Host: Host{Uplinks: n.host.Uplinks[:1]}})
		n.Step(start, Surveyed{Uplink: shut})
		var made []Attempt
		for _, peer := range []byte{5, 2, 3, 4} {
			made = append(made, n.Step(start, FactsChanged{Facts: facts(peer, "a")}).Attempt...)
		}
		return n, made
	}
	n, made := begin()
	if len(made) != maxCarriers || !made[0].Carrier || !made[1].Carrier || made[0].Link.Peer == id(5) || made[1].Link.Peer == id(5) {
		t.Fatalf("attempts: %+v", made)
	}
	// One that fails is tried again, by stream again.
	r := n.Step(start, AttemptDone{Link: made[0].Link, Err: "connection refused", Hopeless: true})
	for at := r.Deadline; len(r.Attempt) == 0 && at.Before(start.Add(time.Minute)); at = r.Deadline {
		r = n.Step(at, Tick{})
	}
	if len(r.Attempt) != 1 || !r.Attempt[0].Carrier {
		t.Errorf("after a failure: %+v", r.Attempt)
	}
	// One that began before it was known that no UDP passes is followed by a stream at once.
	early := node(state(2, 2))
	early.Step(start, HostChanged{Host: Host{Uplinks: early.host.Uplinks[:1]}})
	r = early.Step(start, FactsChanged{Facts: facts(2, "a")})
	early.Step(start, Surveyed{Uplink: shut})
	if len(r.Attempt) != 1 || r.Attempt[0].Carrier {
		t.Fatalf("before the survey: %+v", r.Attempt)
	}
	if r = early.Step(start, AttemptDone{Link: r.Attempt[0].Link, Err: "nothing arrived", Hopeless: true}); len(r.Attempt) != 1 || !r.Attempt[0].Carrier {
		t.Errorf("after the survey: %+v", r.Attempt)
	}
	done := AttemptDone{
		Link: made[1].Link, ID: 7, Port: 51900, Endpoint: netip.MustParseAddrPort("127.0.0.1:4000"), Class: discovery.ClassCarrier,
		Carrier: discovery.AttemptID{7}, Peer: store.Key{Epoch: 1, Public: mesh.WireGuardKey{2}},
	}
	r = n.Step(start, done)
	if !slices.ContainsFunc(r.Facts, func(f Fact) bool { return f.Kind == LinkMade && strings.Contains(f.Sentence, "TLS") }) {
		t.Errorf("it is not said: %+v", r.Facts)
	}
	if rec := n.Records(); len(rec) != 1 || rec[0].Carrier != done.Carrier {
		t.Errorf("records %+v", rec)
	}
	// Where another uplink has a link, none is carried.
	n, _ = begin()
	e := n.entries[mesh.LinkID{Peer: id(2), Local: "isp1", Remote: "a"}]
	n.entries[mesh.LinkID{Peer: id(3), Local: "isp2", Remote: "a"}] = &entry{rec: Record{Class: discovery.ClassDirect}, judge: link.Adopt(start, 0)}
	if n.needsCarrier(e) {
		t.Error("a stream although a link works")
	}
	// Nor where UDP passes in one family, or nothing is known.
	for _, u := range []discovery.Uplink{{NAT: discovery.NATBlocked, NAT6: discovery.NATNone}, {}, {NAT: discovery.NATSymmetric, NAT6: discovery.NATAbsent}} {
		if blocked(u) {
			t.Errorf("%+v counts as blocked", u)
		}
	}
}

// Segments that wait together are answered once: a machine that is late does not make
// more packets of it.
func TestOneAnswerToWhatComesTogether(t *testing.T) {
	n := node(state(2, 1, 2))
	device := n.entries[made(n, 2)].rec.Device
	n.router.SetNeighbour(id(2), 1000, false, time.Millisecond)
	answers := func(sessions ...uint64) (count int) {
		var evs []Event
		for _, number := range sessions {
			hello := wire.Segment{Header: session.New(number).Header()}
			evs = append(evs, Received{Device: device, At: start, Message: wire.Message{Incarnation: 1, Body: hello}})
		}
		for _, d := range n.Step(start, evs...).Send {
			m, err := wire.Decode(d.Payload)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := m.Body.(wire.Segment); ok {
				count++
			}
		}
		return count
	}
	if got := answers(1); got != 1 {
		t.Fatalf("one segment is answered by %d", got)
	}
	if got := answers(2, 2, 2); got != 1 {
		t.Errorf("three segments are answered by %d", got)
	}
}
