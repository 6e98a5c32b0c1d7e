package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"guywire/mesh"
	"guywire/store"
)

// TestReachIsNotTheWordOfAMember: what an ordinary member answers to a node
// that asks where it is reached changes nothing in that node's record but what
// it says of itself.
func TestReachIsNotTheWordOfAMember(t *testing.T) {
	t.Parallel()
	one := founded(t)
	own := one.config.Advertise()
	elsewhere := netip.MustParseAddrPort("203.0.113.1:8686")
	noVote := TokenRequest{Roles: []store.NodeRole{store.NodeNoVote}}
	var asked atomic.Int32
	bad := newMachine(t)
	plane, err := Join(t.Context(), bad.config, one.token(noVote), JoinRequest{Name: "bad"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	plane.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/reach" {
			plane.mux.ServeHTTP(w, r)
			return
		}
		asked.Add(1)
		Reply(w, reachAnswer{Reached: append(slices.Clone(own), elsewhere)})
	})
	bad.run(plane, nil)
	eventually(t, "the member can be reached", func() bool { return len(one.State().Nodes[bad.ID()].Control) > 0 })
	var heard witness
	for range 2 {
		answer, _, err := one.askReach(0, &heard)
		if err != nil || !slices.Equal(answer.Reached, own) {
			t.Fatalf("reached at %v, %v; want %v", answer.Reached, err, own)
		}
	}
	if asked.Load() == 0 {
		t.Fatal("the member was not asked")
	}
	// Who can ask a voter asks nobody else.
	two := one.admitted("two", noVote)
	eventually(t, "the second can be reached", func() bool { return len(one.State().Nodes[two.ID()].Control) > 0 })
	for turn := range uint(20) {
		if answer, _, err := two.askReach(turn, &heard); err != nil || slices.Contains(answer.Reached, elsewhere) {
			t.Fatalf("reached at %v, %v", answer.Reached, err)
		}
	}
	if slices.Contains(one.State().Nodes[one.ID()].Control, elsewhere) {
		t.Error("it is in the state")
	}
}

// A town knows machines by addresses that are not their own.
type town struct {
	mu    sync.Mutex
	there map[string]string // address → listener
}

func (w *town) move(addr, listener string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.there == nil {
		w.there = map[string]string{}
	}
	w.there[addr] = listener
}

func (w *town) dial(ctx context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	if to := w.there[addr]; to != "" {
		addr = to
	}
	w.mu.Unlock()
	if !strings.HasPrefix(addr, "127.") {
		return nil, errors.New("nobody is there")
	}
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

// resident is a machine that lives at other addresses, which it names.
func (w *town) resident(t *testing.T, addrs ...string) *machine {
	m := newMachine(t)
	var list []netip.AddrPort
	for _, a := range addrs {
		list = append(list, netip.MustParseAddrPort(a))
		w.move(a, m.config.Listen)
	}
	m.config.Network = w.dial
	m.config.Advertise = func() []netip.AddrPort { return list }
	return m
}

func (m *machine) joins(through *machine, name string) *machine {
	m.t.Helper()
	return m.run(Join(m.t.Context(), m.config, through.token(TokenRequest{Roles: []store.NodeRole{store.NodeNoVote}}), JoinRequest{Name: name}, nil))
}

func (m *machine) reachedAt(of *machine, want ...string) {
	m.t.Helper()
	var got []string
	eventually(m.t, fmt.Sprintf("it is reached at %v", want), func() bool {
		got = nil
		for _, a := range m.State().Nodes[of.ID()].Control {
			got = append(got, a.String())
		}
		slices.Sort(got)
		slices.Sort(want)
		return slices.Equal(got, want)
	})
}

// TestReachIgnoresPrivate: a private address means another machine elsewhere, so
// who is reached from anywhere does not count that it reaches one.
func TestReachIgnoresPrivate(t *testing.T) {
	t.Parallel()
	for _, private := range []string{"10.0.0.2:8686", "[fd00::2]:8686", "100.64.0.2:8686"} {
		var w town
		one := w.resident(t, "192.168.0.1:1", "203.0.113.1:1")
		one.run(Init(t.Context(), one.config, initRequest))
		one.reachedAt(one, "203.0.113.1:1")
		two := w.resident(t, private, "203.0.113.2:1").joins(one, "two")
		one.reachedAt(two, "203.0.113.2:1")
		lonely := w.resident(t, strings.Replace(private, "2]", "3]", 1))
		lonely.joins(one, "lonely")
		answer, _, err := lonely.askReach(0, new(witness))
		if err != nil || len(answer.Reached) > 0 || len(answer.Unjudged) > 0 {
			t.Errorf("%s: %+v, %v", private, answer, err)
		}
	}
}

// A mesh may be all in private networks.
func TestReachWithinPrivate(t *testing.T) {
	t.Parallel()
	var w town
	one := w.resident(t, "192.168.0.1:1")
	one.run(Init(t.Context(), one.config, initRequest))
	one.reachedAt(one, "192.168.0.1:1")
	two := w.resident(t, "192.168.0.2:1").joins(one, "two")
	one.reachedAt(two, "192.168.0.2:1")
	// One that is reached from anywhere needs no other address.
	three := w.resident(t, "192.168.0.3:1", "203.0.113.3:1").joins(one, "three")
	one.reachedAt(three, "203.0.113.3:1")
}

// TestReachDoesNotFlap: servers of different families, and one that misses a node
// once, do not make it write to the log.
func TestReachDoesNotFlap(t *testing.T) {
	t.Parallel()
	var w town
	var noIPv6 atomic.Bool
	one := w.resident(t, "203.0.113.1:1")
	one.config.route = func(a netip.Addr) bool { return a.Is4() || !noIPv6.Load() }
	one.run(Init(t.Context(), one.config, initRequest))
	two := w.resident(t, "203.0.113.2:1", "[2001:db8::2]:1").joins(one, "two")
	one.reachedAt(two, "203.0.113.2:1", "[2001:db8::2]:1")

	r := reaching{plane: two.Plane, ports: memory{}, servers: memory{}}
	measure := func(settled bool) {
		t.Helper()
		if got, err := r.measure(); err != nil || got != settled {
			t.Fatalf("settled: %v, %v; want %v", got, err, settled)
		}
	}
	measure(true)
	before := one.State().Index
	noIPv6.Store(true)
	w.move("[2001:db8::2]:1", "nowhere")
	for range 2 * reachMisses {
		if _, err := r.measure(); err != nil {
			t.Fatal(err)
		}
	}
	noIPv6.Store(false)
	for range reachMisses - 1 {
		measure(false)
	}
	w.move("[2001:db8::2]:1", two.config.Listen)
	measure(true)
	if s := one.State(); s.Index != before {
		t.Errorf("%d writes; control at %v", s.Index-before, s.Nodes[two.ID()].Control)
	}
	// What is gone is given up, once.
	w.move("[2001:db8::2]:1", "nowhere")
	for range reachMisses - 1 {
		measure(false)
	}
	measure(true)
	one.reachedAt(two, "203.0.113.2:1")
}

// TestReachUDP: the STUN server of a node is where others get answers from it, and
// they ask only where the node itself was found.
func TestReachUDP(t *testing.T) {
	t.Parallel()
	var w town
	var mu sync.Mutex
	asked, silent := map[string]bool{}, "203.0.113.3:8686"
	one := w.resident(t, "203.0.113.1:1")
	one.config.AskSTUN = func(_ context.Context, servers []netip.AddrPort, key []byte) (out []netip.AddrPort, err error) {
		mu.Lock()
		defer mu.Unlock()
		if len(key) != store.SecretSize {
			t.Errorf("asked with %x", key)
		}
		for _, s := range servers {
			asked[s.String()] = true
			if s.String() != silent {
				out = append(out, s)
			}
		}
		return append(out, netip.MustParseAddrPort("198.51.100.1:8686")), nil // what it was not asked for
	}
	one.run(Init(t.Context(), one.config, initRequest))
	two := w.resident(t, "203.0.113.2:1", "203.0.113.2:2", "203.0.113.3:1", "203.0.113.9:1")
	w.move("203.0.113.9:1", "nowhere")
	two.joins(one, "two")
	eventually(t, "it is measured", func() bool { return two.STUN() != nil })
	if got := fmt.Sprint(two.STUN()); got != "[203.0.113.2:8686]" {
		t.Errorf("STUN at %s", got)
	}
	if one.STUN() != nil {
		t.Errorf("nobody can measure the first one, but: %v", one.STUN())
	}
	mu.Lock()
	defer mu.Unlock()
	if !asked[silent] || asked["203.0.113.9:8686"] {
		t.Errorf("asked: %v", asked)
	}
}

func TestWitness(t *testing.T) {
	t.Parallel()
	a, b := mesh.NodeID{1}, mesh.NodeID{2}
	own, x, y := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("203.0.113.1:1"), netip.MustParseAddrPort("203.0.113.2:1")
	var w witness
	for i, step := range []struct {
		from       mesh.NodeID
		said, want []netip.AddrPort
	}{
		{a, []netip.AddrPort{own, x}, []netip.AddrPort{own}},
		{a, []netip.AddrPort{own, x}, []netip.AddrPort{own}}, // the same one again proves nothing
		{b, []netip.AddrPort{y}, nil},
		{a, []netip.AddrPort{x, y}, []netip.AddrPort{y}},
		{b, []netip.AddrPort{x, own}, []netip.AddrPort{x, own}},
		{b, nil, nil},
		{a, []netip.AddrPort{x}, nil},
	} {
		if got := w.believe(step.from, step.said, []netip.AddrPort{own}); !slices.Equal(got, step.want) {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
}
