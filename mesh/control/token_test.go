package control

import (
	"fmt"
	"net/netip"
	"testing"
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
