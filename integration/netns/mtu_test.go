package netns

import (
	"fmt"
	"testing"
	"time"

	"guywire/mesh/api"
)

// bottleneck describes two sites whose ISPs are joined by a link with
// properties that neither site sees at its own uplink.
func bottleneck(properties string) string {
	return `
nodes:
  isp1: {kind: router}
  isp2: {kind: router}
  a: {kind: site, lan: 10.1.0.0/24, lan6: "fd86:0:0:1::/64", uplinks: [{to: isp1}]}
  b: {kind: site, lan: 10.2.0.0/24, lan6: "fd86:0:0:2::/64", uplinks: [{to: isp2}]}
links:
  - {ends: [isp1, isp2], ` + properties + `}
`
}

// TestMTU: the MTU of a path is found by probes, and datagrams of every size
// pass, whether routers on the way make fragments of what is too large, or it
// vanishes without a word.
func TestMTU(t *testing.T) {
	for _, tt := range []struct {
		name, properties string
		most             int // of a link's MTU
	}{
		{"fragments", "mtu: 1400", 1420},
		// 1400 bytes less 20 IPv4 + 8 UDP + 16 header + 16 tag of WireGuard (its
		// padding to 16 bytes never exceeds the tunnel's MTU).
		{"black hole", "black_hole: 1400", 1400 - 60},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := build(t, bottleneck(tt.properties))
			w.mesh("a", "b")
			w.talk("a", "b")
			for _, site := range []string{"a", "b"} {
				w.until("the MTU of the path is known to "+site, func() string {
					for _, l := range ask[api.Links](w, site, "links").Links {
						if l.State == api.LinkUp && l.MTU > 1280 && l.MTU <= tt.most {
							return ""
						}
						if l.MTU > tt.most {
							t.Fatalf("%s takes the MTU of the link to %s for %d", site, l.Peer, l.MTU)
						}
					}
					return "no link with an MTU above the least"
				})
			}
			for _, size := range []int{200, 1300, 1380, 4000} { // of UDP payload, from host to host
				s := w.streamOf("a", "b", size)
				s.flows(time.Second)
				if r := s.stop(); r.Sent == 0 || r.Lost > r.LostAtReceiver+r.LostAtSend {
					t.Errorf("of %d datagrams of %d bytes, %d are lost: %+v", r.Sent, size, r.Lost, r.Losses)
				}
			}
			var links string
			for _, l := range ask[api.Links](w, "a", "links").Links {
				links += fmt.Sprintf(" %s %s %d", l.Peer, l.State, l.MTU)
			}
			t.Logf("MTU of the links of a:%s", links)
		})
	}
}
