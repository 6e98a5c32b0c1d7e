package host

import (
	"maps"
	"os"
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

// A file that is longer than the buffer is read whole, and again.
func TestCountersCanBeRead(t *testing.T) {
	c, err := OpenCounters()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	c.buf = c.buf[:16]
	for range 2 {
		if _, err := c.Read(); err != nil {
			t.Fatal(err)
		}
		if len(c.buf) <= len(want)/2 {
			t.Errorf("%d bytes of %d were read", len(c.buf), len(want))
		}
	}
}
