package host

import (
	"maps"
	"testing"

	"guywire/mesh/core"
)

func TestCountersOfOurTunnelsOnly(t *testing.T) {
	got := parseCounters([]byte(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1000      10    0    0    0     0          0         0     1000      10    0    0    0     0       0          0
gw-lon-ab12c: 123 4 0 0 0 0 0 0 18446744073709551615 7 0 0 0 0 0 0
gw-broken: 123 4
  eth0: 5 4 0 0 0 0 0 0 6 7 0 0 0 0 0 0
`))
	want := map[string]core.Count{"gw-lon-ab12c": {Received: 123, Sent: 1<<64 - 1}}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestCountersCanBeRead(t *testing.T) {
	if _, err := Counters(); err != nil {
		t.Fatal(err)
	}
}
