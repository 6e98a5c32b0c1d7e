package wg

import (
	"fmt"
	"os"
	"strings"
)

// sysctls are the settings of each device, in the order of writing. They go
// with the device, so nothing has to be restored.
var sysctls = []struct{ path, value string }{
	// Before IPv6 is on or the link up: the only link-local address is ours.
	{"net/ipv6/conf/%s/addr_gen_mode", "1"},
	{"net/ipv6/conf/%s/disable_ipv6", "0"},
	// A neighbour is no router advertising to us.
	{"net/ipv6/conf/%s/accept_ra", "0"},
	// Loose: paths are asymmetric. The kernel takes the larger of this and
	// the setting for all devices, so 2 softens a strict 1 there, and 0 would not.
	{"net/ipv4/conf/%s/rp_filter", "2"},
}

func setSysctls(device string) error {
	for _, s := range sysctls {
		path := "/proc/sys/" + fmt.Sprintf(s.path, device)
		// Where /proc/sys is read-only, what is right already is good enough.
		if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == s.value {
			continue
		}
		if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
			return fmt.Errorf("set %s of %s: %w", s.path[strings.LastIndexByte(s.path, '/')+1:], device, err)
		}
	}
	return nil
}
