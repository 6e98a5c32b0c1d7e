package grid

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// InsideCommands are what the package does inside nodes; see world.InsideCommand.
func InsideCommands() []*cobra.Command {
	return []*cobra.Command{
		count("forwarded", "Count the IPv4 packets that the node has forwarded", func() (uint64, error) { return counted("Ip", "ForwDatagrams") }),
		count("unasked", "Count the UDP packets over IPv4 that came for nobody", func() (uint64, error) { return counted("Udp", "NoPorts") }),
		count("mappings", "Count the UDP flows over IPv4 that the node's connection tracking knows", func() (uint64, error) {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
			flows = slices.DeleteFunc(flows, func(f *netlink.ConntrackFlow) bool { return f.Forward.Protocol != unix.IPPROTO_UDP })
			return uint64(len(flows)), err
		}),
	}
}

func count(use, short string, read func() (uint64, error)) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		n, err := read()
		if err == nil {
			_, err = fmt.Fprintln(c.OutOrStdout(), n)
		}
		return err
	}}
}

// counted reads a counter of RFC 1213, such as ForwDatagrams of Ip.
func counted(group, counter string) (uint64, error) {
	data, err := os.ReadFile("/proc/self/net/snmp")
	if err != nil {
		return 0, err
	}
	return countedIn(string(data), group, counter)
}

// countedIn finds a counter in /proc/net/snmp, which names those of a group in one line and gives them in the next.
func countedIn(snmp, group, counter string) (n uint64, err error) {
	var names []string
	for line := range strings.Lines(snmp) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != group+":" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		if i := slices.Index(names, counter); i > 0 && i < len(f) {
			_, err = fmt.Sscan(f[i], &n)
			return n, err
		}
		break
	}
	return 0, fmt.Errorf("/proc/net/snmp has no %s of %s", counter, group)
}
