package peers

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/world"
)

// A node is a site as a routing daemon sees it.
type node struct {
	name  string
	dir   string     // of its files
	exe   string     // the program that has the verb inside
	id    netip.Addr // router id
	lan   netip.Prefix
	ports []port
}

// A port is one end of a tunnel.
type port struct {
	device string
	cost   int // one-way delay in tenths of a millisecond, at least 1
}

// lanDevice is where every site of a lab has its LAN.
const lanDevice = "lan"

// nodes describes the sites of a world with a tunnel between each two.
func nodes(w *world.World) (out []node) {
	for i, s := range w.Sites {
		n := node{
			name: s.Name, dir: filepath.Join(w.Lab.Dir(), "nodes", s.Name), exe: w.Exe,
			id: netip.AddrFrom4([4]byte{10, 99, 255, byte(i + 1)}),
		}
		for _, p := range s.LAN {
			if p.Addr().Is4() {
				n.lan = p
			}
		}
		for _, other := range w.Sites {
			if other != s {
				delay := uplinkDelay(w.Status, s) + uplinkDelay(w.Status, other)
				n.ports = append(n.ports, port{world.HandDevice(other), max(int(delay/(100*time.Microsecond)), 1)})
			}
		}
		out = append(out, n)
	}
	return out
}

// uplinkDelay returns the delay of a site's first uplink.
func uplinkDelay(status *lab.Status, s *world.Site) time.Duration {
	for _, l := range status.Links {
		if l.Name == s.Name+":"+s.WAN[0] {
			return l.Properties.Delay
		}
	}
	return 0
}

// text builds settings line by line.
type text struct{ strings.Builder }

func (t *text) line(format string, args ...any) { fmt.Fprintf(t, format+"\n", args...) }
