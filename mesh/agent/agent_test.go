package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/control"
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
	j := newJournal()
	collect := func(since uint64) (out []uint64) {
		_ = j.follow(t.Context(), since, false, func(e api.Event) error {
			out = append(out, e.Index)
			return nil
		})
		return out
	}
	if got := collect(0); len(got) > 0 {
		t.Errorf("an empty journal gives %v", got)
	}
	for range 3 {
		j.add(api.Event{Kind: "x"})
	}
	if got := fmt.Sprint(collect(1)); got != "[2 3]" {
		t.Errorf("after 1: %s", got)
	}
	if got := fmt.Sprint(collect(99)); got != "[1 2 3]" {
		t.Errorf("after an index of an earlier life: %s", got)
	}
	for range eventLog {
		j.add(api.Event{Kind: "x"})
	}
	first := api.Event{}
	_ = j.follow(t.Context(), 1, false, func(e api.Event) error {
		first = e
		return errors.New("enough")
	})
	if first.Kind != "gap" {
		t.Errorf("forgotten events are not told of: %+v", first)
	}
	if len(j.events) > eventLog {
		t.Errorf("%d events are kept", len(j.events))
	}
}

func TestJournalFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
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
