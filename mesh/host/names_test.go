package host

import (
	"net/netip"
	"testing"

	"guywire/mesh"
)

// TestB18UplinkNames: whatever interfaces are called, their uplinks have names,
// each its own, and the same in any order.
func TestB18UplinkNames(t *testing.T) {
	devices := []string{"eth0", "ETH0", "enp3s0.100", "enp3s0-100", "enp3s0:100", "__", "日本", "a'b\"", "-", "wan;id", "x.....y", "ppp0"}
	named := func(order []int) map[string]string {
		links, routes := map[int]*link{}, []route{}
		for _, i := range order {
			links[i] = &link{name: devices[i], up: true, carrier: true}
			routes = append(routes, route{prefix: netip.MustParsePrefix("0.0.0.0/0"), index: i, metric: uint32(len(routes))})
		}
		names, taken := map[string]string{}, map[string]bool{}
		for _, u := range uplinks(links, routes) {
			if err := mesh.CheckName(u.Name); err != nil || taken[u.Name] {
				t.Errorf("%q is called %q, which another is: %t; %v", u.Interface, u.Name, taken[u.Name], err)
			}
			names[u.Interface], taken[u.Name] = u.Name, true
		}
		return names
	}
	var there, back []int
	for i := range devices {
		there, back = append(there, i), append([]int{i}, back...)
	}
	one, two := named(there), named(back)
	for device, name := range one {
		if two[device] != name {
			t.Errorf("%s is called %s, or %s", device, name, two[device])
		}
	}
	for device, want := range map[string]string{"eth0": "eth0", "ppp0": "ppp0", "enp3s0-100": "enp3s0-100", "wan;id": "wan-id"} {
		if one[device] != want {
			t.Errorf("%s is called %s, want %s", device, one[device], want)
		}
	}
}
