package netns

import (
	"testing"
	"time"

	"guywire/mesh/api"
)

// TestFragments: two sites whose ISPs are joined by a link with a smaller MTU
// than either sees at its uplink. Routers there make fragments of what is too
// large, or say so; datagrams of every size pass through the mesh.
func TestFragments(t *testing.T) {
	w := build(t, `
nodes:
  isp1: {kind: router}
  isp2: {kind: router}
  a: {kind: site, lan: 10.1.0.0/24, lan6: "fd86:0:0:1::/64", uplinks: [{to: isp1}]}
  b: {kind: site, lan: 10.2.0.0/24, lan6: "fd86:0:0:2::/64", uplinks: [{to: isp2}]}
links:
  - {ends: [isp1, isp2], mtu: 1400}
`)
	w.mesh("a", "b")
	w.talk("a", "b")
	// Until the search has found more, the routes have IPv6's 1280.
	mtu := 1420
	for _, site := range []string{"a", "b"} {
		w.until("it is found what the tunnel of "+site+" takes", func() string {
			for _, l := range ask[api.Links](w, site, "links").Links {
				if l.State == api.LinkUp && l.MTU > 1280 && l.MTU <= 1420 {
					mtu = min(mtu, l.MTU)
					return ""
				}
			}
			return "no link is up with more than 1280"
		})
	}
	const headers = 20 + 8 // IPv4, UDP

	for _, size := range []int{200, 1300, 1380, 4000} { // of UDP payload, from host to host
		s := w.streamOf("a", "b", size)
		s.flows(time.Second)
		r := s.stop()
		lost := r.Lost
		if size+headers > mtu && len(r.Losses) > 0 && r.Losses[0].FirstSeq == 0 && r.Losses[0].Count == 1 {
			lost-- // the first that is too large is answered: its sender learns the MTU from that
		}
		if r.Sent == 0 || lost > r.LostAtReceiver+r.LostAtSend {
			t.Errorf("of %d datagrams of %d bytes, %d are lost: %+v", r.Sent, size, r.Lost, r.Losses)
		}
	}
}
