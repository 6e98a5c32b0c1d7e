package netns

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"guywire/mesh"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// snapshotCommand prints everything in this network namespace that Guywire
// could have touched, one sorted line per object.
func snapshotCommand() *cobra.Command {
	return &cobra.Command{Use: "snapshot", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		lines, err := snapshot()
		if err != nil {
			return err
		}
		return json.NewEncoder(c.OutOrStdout()).Encode(lines)
	}}
}

func snapshot() ([]string, error) {
	var lines []string
	var failures error
	for _, look := range []func() ([]string, error){links, routes, rules, nextHops, filters, sysctls, processes, sockets} {
		found, err := look()
		lines = append(lines, found...)
		failures = errors.Join(failures, err)
	}
	slices.Sort(lines)
	return lines, failures
}

// links gives interfaces with their addresses.
func links() (lines []string, err error) {
	found, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range found {
		a := l.Attrs()
		lines = append(lines, fmt.Sprintf("link %s %s mtu %d flags %v alias %q", a.Name, l.Type(), a.MTU, a.Flags, a.Alias))
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		for _, addr := range addrs {
			lines = append(lines, fmt.Sprintf("addr %s on %s", addr.IPNet, a.Name))
		}
	}
	return lines, nil
}

// devices maps interface numbers to names, which do not change when an
// interface is made anew.
func devices() (map[uint32]string, error) {
	found, err := netlink.LinkList()
	out := map[uint32]string{}
	for _, l := range found {
		out[uint32(l.Attrs().Index)] = l.Attrs().Name
	}
	return out, err
}

// dump asks rtnetlink for all objects of a kind.
func dump(kind int, header []byte) ([][]byte, error) {
	req := nl.NewNetlinkRequest(kind, unix.NLM_F_DUMP)
	req.AddRawData(header)
	return req.Execute(unix.NETLINK_ROUTE, 0)
}

const (
	rtaNhID    = 30    // RTA_NH_ID
	rtmFCloned = 0x200 // RTM_F_CLONED
	nhSize     = 8     // struct nhmsg
	nhaID      = 1     // NHA_ID and so on
	nhaGroup   = 2
	nhaOif     = 5
	nhaGateway = 6
)

func attrsOf(data []byte) (map[uint16][]byte, error) {
	parsed, err := nl.ParseRouteAttr(data)
	out := map[uint16][]byte{}
	for _, a := range parsed {
		out[a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = a.Value
	}
	return out, err
}

func u32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func addrText(b []byte) string {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return "-"
	}
	return a.String()
}

// routes gives all routes but those of table local, which follow from the
// addresses.
func routes() (lines []string, err error) {
	names, err := devices()
	if err != nil {
		return nil, err
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		header := make([]byte, unix.SizeofRtMsg)
		header[0] = family
		msgs, err := dump(unix.RTM_GETROUTE, header)
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			head := nl.DeserializeRtMsg(m)
			attrs, err := attrsOf(m[unix.SizeofRtMsg:])
			if err != nil {
				return nil, err
			}
			table := cmp.Or(u32(attrs[unix.RTA_TABLE]), uint32(head.Table))
			if table == unix.RT_TABLE_LOCAL || head.Flags&rtmFCloned != 0 {
				continue
			}
			line := fmt.Sprintf("route %s/%d family %d table %d protocol %d type %d metric %d",
				addrText(attrs[unix.RTA_DST]), head.Dst_len, family, table, head.Protocol, head.Type, u32(attrs[unix.RTA_PRIORITY]))
			if id := u32(attrs[rtaNhID]); id != 0 {
				line += fmt.Sprintf(" nhid %#x", id)
			} else {
				line += fmt.Sprintf(" dev %q via %s", names[u32(attrs[unix.RTA_OIF])], addrText(attrs[unix.RTA_GATEWAY]))
				if legs := attrs[unix.RTA_MULTIPATH]; legs != nil {
					line += fmt.Sprintf(" legs %x", legs)
				}
			}
			lines = append(lines, line+fmt.Sprintf(" src %s metrics %x", addrText(attrs[unix.RTA_PREFSRC]), attrs[unix.RTA_METRICS]))
		}
	}
	return lines, nil
}

func rules() (lines []string, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		found, err := netlink.RuleList(family)
		if err != nil {
			return nil, err
		}
		for _, r := range found {
			lines = append(lines, fmt.Sprintf("rule %d family %d mark %#x table %d protocol %d src %v dst %v", r.Priority, family, r.Mark, r.Table, r.Protocol, r.Src, r.Dst))
		}
	}
	return lines, nil
}

func nextHops() (lines []string, err error) {
	names, err := devices()
	if err != nil {
		return nil, err
	}
	msgs, err := dump(unix.RTM_GETNEXTHOP, make([]byte, nhSize))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // a kernel without next-hop objects
	}
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		attrs, err := attrsOf(m[nhSize:])
		if err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("nexthop %#x family %d protocol %d dev %q via %s group %x",
			u32(attrs[nhaID]), m[0], m[2], names[u32(attrs[nhaOif])], addrText(attrs[nhaGateway]), attrs[nhaGroup]))
	}
	return lines, nil
}

// filters gives the nft tables, their chains with the content of all rules but
// the counters, and their sets.
func filters() (lines []string, err error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, err
	}
	defer conn.CloseLasting()
	tables, err := conn.ListTables()
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		name := fmt.Sprintf("nft %d %s", t.Family, t.Name)
		lines = append(lines, name)
		sets, err := conn.GetSets(t)
		if err != nil {
			return nil, err
		}
		for _, s := range sets {
			if s.Anonymous {
				continue // its number is anew with each transaction
			}
			elements, err := conn.GetSetElements(s)
			if err != nil {
				return nil, err
			}
			var keys []string
			for _, e := range elements {
				keys = append(keys, fmt.Sprintf("%x-%x:%x", e.Key, e.KeyEnd, e.Val))
			}
			slices.Sort(keys)
			lines = append(lines, fmt.Sprintf("%s set %s %v", name, s.Name, keys))
		}
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		// It tells of the handles of all else, which are new after every repair.
		if c.Table.Name == mesh.FilterTable && strings.HasPrefix(c.Name, "mark-") {
			continue
		}
		found, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, err
		}
		sum := sha256.New()
		for _, r := range found {
			for _, e := range r.Exprs {
				switch e := e.(type) {
				case *expr.Counter:
				case *expr.Lookup:
					fmt.Fprintf(sum, "lookup %d %v", e.SourceRegister, e.Invert)
				default:
					content, err := expr.Marshal(byte(c.Table.Family), e)
					if err != nil {
						return nil, err
					}
					sum.Write(content)
				}
			}
		}
		lines = append(lines, fmt.Sprintf("nft %d %s chain %s with %d rules %.8x", c.Table.Family, c.Table.Name, c.Name, len(found), sum.Sum(nil)))
	}
	return lines, nil
}

// sysctls gives the settings of IPv4 and IPv6, all that can be read.
func sysctls() (lines []string, err error) {
	for _, root := range []string{"/proc/sys/net/ipv4", "/proc/sys/net/ipv6"} {
		err = errors.Join(err, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && (d.Name() == "neigh" || d.Name() == "route"):
				return fs.SkipDir // nothing that anybody sets, in hundreds
			case d.IsDir():
				return nil
			}
			if value, err := os.ReadFile(path); err == nil { // some can only be written
				lines = append(lines, "sysctl "+strings.TrimPrefix(path, "/proc/sys/")+" "+strings.Join(strings.Fields(string(value)), " "))
			}
			return nil
		}))
	}
	return lines, err
}

// processes gives the command lines of all programs of ours.
func processes() (lines []string, err error) {
	found, err := programs()
	for _, line := range found {
		lines = append(lines, "process "+line)
	}
	return lines, err
}

// programs gives the meshd processes in this network namespace, agents and
// data planes, by their ids.
func programs() (map[int]string, error) {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	out := map[int]string{}
	for _, e := range entries {
		pid, notOne := strconv.Atoi(e.Name())
		if notOne != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		// One that ends meanwhile is none.
		ns, _ := os.Readlink(filepath.Join(dir, "ns/net"))
		exe, _ := os.Readlink(filepath.Join(dir, "exe"))
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if ns == own && filepath.Base(exe) == "meshd" {
			out[pid] = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return out, err
}

// sockets gives the unix sockets below /run.
func sockets() (lines []string, err error) {
	err = filepath.WalkDir("/run", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type() == fs.ModeSocket && !strings.Contains(path, "guywire-lab-") {
			lines = append(lines, "socket "+path)
		}
		return nil
	})
	return lines, err
}
