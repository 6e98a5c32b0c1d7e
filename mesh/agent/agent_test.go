package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/carrier"
	"guywire/mesh/config"
	"guywire/mesh/control"
	"guywire/mesh/core"
	"guywire/store"
)

func uplinks(names ...string) []mesh.Uplink {
	var out []mesh.Uplink
	for _, n := range names {
		out = append(out, mesh.Uplink{Name: n, Interface: n, Up: true, Default4: true})
	}
	return out
}

func slots(list []mesh.Uplink) string {
	var s strings.Builder
	for _, u := range list {
		s.WriteString(fmt.Sprintf("%s=%d", u.Name, u.Slot))
		if !u.Up {
			s.WriteString("!")
		}
		s.WriteString(" ")
	}
	return s.String()
}

func TestUplinksKeepTheirSlots(t *testing.T) {
	first := remember(uplinks("eth0", "eth1"), nil)
	second := remember(uplinks("wwan0", "eth1"), first)
	third := remember(uplinks("eth1", "eth0", "wwan0"), second)
	for i, c := range []struct {
		got  []mesh.Uplink
		want string
	}{
		{first, "eth0=1 eth1=2 "},
		{second, "eth0=1! eth1=2 wwan0=3 "},
		{third, "eth0=1 eth1=2 wwan0=3 "},
	} {
		if s := slots(c.got); s != c.want {
			t.Errorf("step %d: %q, want %q", i+1, s, c.want)
		}
	}
	var many []string
	for i := range mesh.MaxUplinks + 5 {
		many = append(many, fmt.Sprintf("eth%02d", i))
	}
	seen := map[uint8]bool{}
	full := remember(uplinks(many...), nil)
	for _, u := range full {
		if u.Slot < 1 || u.Slot > mesh.MaxUplinks || seen[u.Slot] {
			t.Errorf("%s has slot %d", u.Name, u.Slot)
		}
		seen[u.Slot] = true
	}
	if len(full) != mesh.MaxUplinks {
		t.Errorf("%d uplinks have a slot", len(full))
	}
}

func TestJournal(t *testing.T) {
	began := time.UnixMilli(1000)
	j := newJournal(began)
	collect := func(j *journal, since uint64) (out []uint64) {
		_ = j.follow(t.Context(), since, false, func(e api.Event) error {
			out = append(out, e.Index)
			return nil
		})
		return out
	}
	if got := collect(j, 0); len(got) > 0 {
		t.Errorf("an empty journal gives %v", got)
	}
	for range 3 {
		j.add(api.Event{Kind: "x"})
	}
	for since, want := range map[uint64]string{
		0: "[1001 1002 1003]", 41: "[1001 1002 1003]", 1000: "[1001 1002 1003]", 1001: "[1002 1003]", 1003: "[]",
		9999: "[1001 1002 1003]", // of a life whose clock was ahead
	} {
		if got := fmt.Sprint(collect(j, since)); got != want {
			t.Errorf("after %d: %s, want %s", since, got, want)
		}
	}

	// A follower of this life misses nothing of the next, which has more events by then.
	next := newJournal(began.Add(time.Second))
	for range 5 {
		next.add(api.Event{Kind: "x"})
	}
	if got := collect(next, 1003); fmt.Sprint(got) != "[2001 2002 2003 2004 2005]" {
		t.Errorf("after a restart: %v", got)
	}

	for range eventLog {
		j.add(api.Event{Kind: "x"})
	}
	kept := uint64(len(j.events))
	if kept > eventLog {
		t.Errorf("%d events are kept", kept)
	}
	for since, seen := range map[uint64]uint64{0: 0, 999: 0, 1002: 2} {
		first := api.Event{}
		_ = j.follow(t.Context(), since, false, func(e api.Event) error {
			first = e
			return errors.New("enough")
		})
		want := fmt.Sprintf("%d earlier events are forgotten", eventLog+3-kept-seen)
		if first.Kind != "gap" || first.Sentence != want || first.Index != j.last-kept {
			t.Errorf("after %d: %+v, want %q", since, first, want)
		}
	}
}

func TestJournalFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal(time.UnixMilli(0))
		ctx, cancel := context.WithCancel(t.Context())
		var got []uint64
		ended := make(chan error, 1)
		go func() {
			ended <- j.follow(ctx, 0, true, func(e api.Event) error {
				got = append(got, e.Index)
				return nil
			})
		}()
		for range 3 {
			synctest.Wait()
			j.add(api.Event{})
		}
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil || fmt.Sprint(got) != "[1 2 3]" {
			t.Errorf("%v %v", got, err)
		}
	})
}

func TestDevicesLookOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		known := map[string]int{"gw-a": 7}
		d := newDevices(func() (map[string]int, error) { looks++; return maps.Clone(known), nil })
		for range 3 {
			if n, err := d.number("gw-a"); n != 7 || err != nil {
				t.Fatal(n, err)
			}
			if s, err := d.device(7); s != "gw-a" || err != nil {
				t.Fatal(s, err)
			}
			if _, err := d.number("gw-b"); !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		if looks != 1 {
			t.Errorf("looked %d times", looks)
		}
		known["gw-b"] = 8
		time.Sleep(relook)
		if n, err := d.number("gw-b"); n != 8 || err != nil {
			t.Errorf("a new device is not found: %d %v", n, err)
		}
	})
}

func TestErrorsKeepTheirCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want api.Code
	}{
		{&store.Refusal{Code: store.CodeTokenUsed, Message: "used"}, api.CodeTokenUsed},
		{fmt.Errorf("server x refuses: %w", &control.Error{Code: store.CodeNameTaken, Message: "taken"}), api.CodeNameTaken},
		{fmt.Errorf("dial: %w", control.ErrUntrusted), api.CodeServerKey},
		{control.ErrNoVoter, api.CodeNoLeader},
		{api.Errorf(api.CodeBusy, "", "busy"), api.CodeBusy},
		{errors.New("surprise"), api.CodeInternal},
	} {
		e, ok := errors.AsType[*api.Error](convert(c.err))
		if !ok || e.Code != c.want {
			t.Errorf("%v became %+v, want code %s", c.err, e, c.want)
		}
	}
}

// The next step of a refusal is told as such, and nothing else is cut.
func TestErrorsKeepTheirAdvice(t *testing.T) {
	used := &control.Error{Code: store.CodeTokenUsed, Message: "token k7m2 has been used; ask for a new one: meshctl token create"}
	for _, c := range []struct {
		err                error
		sentence, nextStep string
	}{
		{&store.Refusal{Code: store.CodeNameTaken, Message: "the name a is taken; choose another with --name, or revoke it"}, "the name a is taken", "choose another with --name, or revoke it"},
		{&store.Refusal{Code: store.CodeForbidden, Message: "no"}, "no", ""},
		{fmt.Errorf("server x refuses: %w", used), "server x refuses: token k7m2 has been used", "ask for a new one: meshctl token create"},
		{errors.Join(errors.New("server x is silent"), used), "server x is silent; token k7m2 has been used", "ask for a new one: meshctl token create"},
		{errors.Join(used, errors.New("server x is silent")), "token k7m2 has been used; ask for a new one: meshctl token create; server x is silent", ""},
		{fmt.Errorf("read: %w", control.ErrLeaderSeen), "read: the mesh has a leader and needs no recovery", "see meshctl raft status"},
		{fmt.Errorf("remove it: %w; left are: a", context.DeadlineExceeded), "remove it: context deadline exceeded; left are: a", ""},
		{errors.New("surprise; and more"), "surprise; and more", ""},
	} {
		e, ok := errors.AsType[*api.Error](convert(c.err))
		if !ok || e.Message != c.sentence || e.Next != c.nextStep {
			t.Errorf("%v became %+v", c.err, e)
		}
	}
}

func TestResolve(t *testing.T) {
	id := mesh.NodeID{1}
	s := &store.State{Nodes: map[mesh.NodeID]store.Node{id: {
		ID: id, Name: "fra", Addr4: netip.MustParseAddr("10.86.0.1"), Addr6: netip.MustParseAddr("fd00::1"),
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")},
	}}}
	for what, want := range map[string]string{
		"fra": "10.86.0.1", "FRA": "10.86.0.1", id.String(): "10.86.0.1", "fd00::1": "fd00::1", "10.1.0.9": "10.1.0.9",
	} {
		if got, err := resolve(s, what); err != nil || got.addr.String() != want || got.node != id {
			t.Errorf("%s: %+v %v", what, got, err)
		}
	}
	for _, what := range []string{"", "lon", "192.0.2.1"} {
		if got, err := resolve(s, what); err == nil {
			t.Errorf("%q: %+v", what, got)
		}
	}
}

// The control plane listens at the configured ports of one address, and what
// wants a carrier goes to the data plane, if there is one to take it.
func TestControlPorts(t *testing.T) {
	for listen, want := range map[string][]string{
		"": {":8700", ":443", ":993"}, "192.0.2.1": {"192.0.2.1:8700", "192.0.2.1:443", "192.0.2.1:993"},
		"2001:db8::1": {"[2001:db8::1]:8700", "[2001:db8::1]:443", "[2001:db8::1]:993"},
	} {
		a := &Agent{log: slog.New(slog.DiscardHandler)}
		a.config.Control = config.Control{Port: 8700, Also: []uint16{443, 993}}
		if listen != "" {
			a.config.Control.Listen = netip.MustParseAddr(listen)
		}
		c := a.control()
		if got := append([]string{c.Listen}, c.Also...); !slices.Equal(got, want) || c.Divert != nil {
			t.Errorf("%q: %v, %d diverted; want %v", listen, got, len(c.Divert), want)
		}
		var handed *net.TCPConn
		a.outside.HandOver = func(_ context.Context, conn *net.TCPConn) error {
			handed = conn
			return nil
		}
		conn := new(net.TCPConn)
		a.control().Divert[carrier.ALPN](t.Context(), conn)
		if handed != conn {
			t.Error("the connection did not get to the data plane")
		}
	}
}

// TestAlive: only a loop that comes around makes a member alive.
func TestAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, done := &Agent{}, make(chan struct{})
		if err := a.Alive(t.Context()); err != nil {
			t.Errorf("in no mesh: %v", err)
		}
		m := &member{queries: make(chan func(*core.Node)), done: done}
		a.current = &running{member: m}
		within, stop := context.WithTimeout(t.Context(), time.Hour)
		defer stop()
		if err := a.Alive(within); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("alive although the loop does not come around: %v", err)
		}
		go func() { (<-m.queries)(nil) }()
		if err := a.Alive(t.Context()); err != nil {
			t.Errorf("the loop comes around: %v", err)
		}
		close(done)
		if err := a.Alive(t.Context()); err != nil {
			t.Errorf("the member ends: %v", err)
		}
	})
}
