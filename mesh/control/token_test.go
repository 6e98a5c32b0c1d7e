package control

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestTokenServers(t *testing.T) {
	t.Parallel()
	state, ids := nodes(5, 0)
	control := func(i int, voter bool, addrs ...string) {
		n := state.Nodes[ids[i]]
		n.Voter = voter
		for _, a := range addrs {
			n.Control = append(n.Control, netip.MustParseAddrPort(a))
		}
		state.Nodes[ids[i]] = n
	}
	control(1, false, "203.0.113.1:1")
	control(2, true, "203.0.113.2:1", "203.0.113.2:2")
	control(4, false, "203.0.113.4:1", "203.0.113.4:2")
	if got := fmt.Sprint(tokenServers(state, ids[4])); got != "[203.0.113.4:1 203.0.113.2:1 203.0.113.1:1]" {
		t.Errorf("servers: %s", got)
	}
	state, ids = nodes(1, 0)
	control(0, true, "203.0.113.2:1", "203.0.113.2:2")
	if got := fmt.Sprint(tokenServers(state, ids[0])); got != "[203.0.113.2:1 203.0.113.2:2]" {
		t.Errorf("servers of a single node: %s", got)
	}
}

// TestTokenServersServeAll: whoever could reach any member can join by a token.
func TestTokenServersServeAll(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		control [][]string // of each member, the oldest first; all are voters
		want    string
	}{
		{[][]string{{"192.0.2.1:1"}, {"192.0.2.2:1"}, {"192.0.2.3:1", "[2001:db8::3]:1"}}, "[192.0.2.1:1 192.0.2.2:1 [2001:db8::3]:1]"},
		{[][]string{{"[2001:db8::1]:1"}, {"[2001:db8::2]:1"}, {"[2001:db8::3]:1"}, {"192.0.2.4:1"}}, "[[2001:db8::1]:1 [2001:db8::2]:1 192.0.2.4:1]"},
		{[][]string{{"192.0.2.1:1"}, {"[2001:db8::2]:1"}, {"192.0.2.3:1"}, {"192.0.2.4:1", "192.0.2.4:443"}}, "[192.0.2.1:1 [2001:db8::2]:1 192.0.2.4:443]"},
		{[][]string{{"192.0.2.1:1"}, {"192.0.2.2:1"}, {"192.0.2.3:1"}, {"[2001:db8::4]:1", "192.0.2.4:443"}}, "[192.0.2.1:1 [2001:db8::4]:1 192.0.2.4:443]"},
		{[][]string{{"192.0.2.1:1"}, {"192.0.2.2:443"}, {"192.0.2.3:1"}, {"[2001:db8::4]:1"}}, "[192.0.2.1:1 192.0.2.2:443 [2001:db8::4]:1]"},
		{[][]string{{"192.0.2.1:1"}, {"192.0.2.2:1"}, {"192.0.2.3:1"}, {"192.0.2.4:1"}}, "[192.0.2.1:1 192.0.2.2:1 192.0.2.3:1]"},
		{[][]string{{}, {}}, "[]"},
	} {
		state, ids := nodes(len(c.control), len(c.control))
		for i, addrs := range c.control {
			n := state.Nodes[ids[i]]
			n.Control, n.Joined = nil, time.Unix(int64(i), 0)
			for _, a := range addrs {
				n.Control = append(n.Control, netip.MustParseAddrPort(a))
			}
			state.Nodes[ids[i]] = n
		}
		if got := fmt.Sprint(tokenServers(state, ids[0])); got != c.want {
			t.Errorf("%v: %s, want %s", c.control, got, c.want)
		}
	}
}
