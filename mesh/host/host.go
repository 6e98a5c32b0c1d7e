// Package host tells what this machine looks like to Guywire: its uplinks,
// found from the default routes, and the prefixes attached to it; and it
// keeps the kernel settings that Guywire needs, with what they were before.
//
// It looks at the main routing table only and leaves out everything of ours:
// gw- devices and routes of our protocol. It decides nothing.
package host

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"os"
	"slices"
	"strings"

	"guywire/mesh"
	"guywire/mesh/core"
)

// Observe looks at the machine, in the network namespace of the calling
// thread. Uplinks are the interfaces with a default route, best metric first;
// their Slot, Metered and Bias are left for the caller.
func Observe(ctx context.Context) (core.Host, error) {
	if err := ctx.Err(); err != nil {
		return core.Host{}, err
	}
	c, err := dial()
	if err != nil {
		return core.Host{}, err
	}
	defer c.close()
	links, err := c.links()
	if err != nil {
		return core.Host{}, err
	}
	if err := c.addrs(links); err != nil {
		return core.Host{}, err
	}
	routes, err := c.routes()
	if err != nil {
		return core.Host{}, err
	}
	h := core.Host{Uplinks: uplinks(links, routes), Attached: attached(links, routes)}
	for _, u := range h.Uplinks {
		if acceptsRA(u.Interface) {
			h.AcceptRA = append(h.AcceptRA, u.Interface)
		}
	}
	return h, nil
}

// acceptsRA reports whether the interface takes IPv6 router advertisements:
// by 1, while the machine does not forward; by 2, also when it does.
func acceptsRA(device string) bool {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + device + "/accept_ra")
	return err == nil && strings.TrimSpace(string(b)) != "0"
}

// A link is one interface that is not ours.
type link struct {
	name     string
	mtu      int
	up       bool // administratively
	carrier  bool
	loopback bool
	addrs    []netip.Addr
}

// A route is one leg of a unicast route of the main table.
type route struct {
	prefix  netip.Prefix
	metric  uint32
	index   int
	gateway netip.Addr // invalid: on link
}

// uplinks finds the interfaces with default routes. Of several default routes
// of one family over one interface, the one with the best metric counts.
func uplinks(links map[int]*link, routes []route) []mesh.Uplink {
	slices.SortStableFunc(routes, func(a, b route) int { return cmp.Compare(a.metric, b.metric) })
	found := map[int]*mesh.Uplink{}
	var order []int // of interfaces, as the metrics have it
	for _, r := range routes {
		l := links[r.index]
		if r.prefix.Bits() != 0 || l == nil || l.loopback {
			continue
		}
		u := found[r.index]
		if u == nil {
			u = &mesh.Uplink{Name: uplinkName(l.name), Interface: l.name, Up: l.up && l.carrier, Addrs: l.addrs, MTU: l.mtu}
			found[r.index] = u
			order = append(order, r.index)
		}
		switch {
		case r.prefix.Addr().Is4() && !u.Default4:
			u.Default4, u.Gateway4 = true, r.gateway
		case r.prefix.Addr().Is6() && !u.Default6:
			u.Default6, u.Gateway6 = true, r.gateway
		}
	}
	var out []mesh.Uplink
	for _, index := range order {
		out = append(out, *found[index])
	}
	nameApart(out)
	return out
}

// uplinkName makes an uplink's name, which is stricter than an interface's:
// "ppp0" stays, "enp3s0.100" becomes "enp3s0-100".
func uplinkName(device string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(device))
	return strings.Trim(name, "-")
}

// nameApart gives a name of its own to each uplink whose interface leaves none,
// or the same as another's: "enp3s0.100" beside "enp3s0-100" becomes
// "enp3s0-100-" and some digits of a hash of "enp3s0.100".
func nameApart(uplinks []mesh.Uplink) {
	count := map[string]int{}
	for _, u := range uplinks {
		count[u.Name]++
	}
	for i, u := range uplinks {
		if u.Name == u.Interface || u.Name != "" && count[u.Name] == 1 {
			continue
		}
		sum := sha256.Sum256([]byte(u.Interface))
		uplinks[i].Name = cmp.Or(u.Name, "uplink") + "-" + hex.EncodeToString(sum[:3])
	}
}

// attached finds the prefixes that lie on interfaces.
func attached(links map[int]*link, routes []route) []core.Attached {
	var out []core.Attached
	for _, r := range routes {
		l := links[r.index]
		if l == nil || l.loopback || !l.up || r.gateway.IsValid() || r.prefix.Bits() == 0 ||
			r.prefix.Addr().IsLinkLocalUnicast() || r.prefix.Addr().IsMulticast() {
			continue
		}
		out = append(out, core.Attached{Device: l.name, Prefix: r.prefix})
	}
	slices.SortFunc(out, func(a, b core.Attached) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), strings.Compare(a.Device, b.Device))
	})
	return slices.Compact(out)
}
