package chaos

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"

	"guywire/mesh"
)

// viewsCommand prints a view of the node's kernel, as one line, for each line that it reads.
func viewsCommand() *cobra.Command {
	var to []string
	c := &cobra.Command{Use: "views", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		r := reader{tunnels: map[int]tunnel{}}
		for _, t := range to {
			addr, err := netip.ParseAddr(t)
			if err != nil {
				return err
			}
			r.to = append(r.to, addr)
		}
		var err error
		if r.wg, err = wgctrl.New(); err != nil {
			return err
		}
		defer r.wg.Close()
		out := json.NewEncoder(c.OutOrStdout())
		for lines := bufio.NewScanner(c.InOrStdin()); lines.Scan(); {
			v, err := r.view()
			if err != nil {
				return err
			}
			if err := out.Encode(v); err != nil {
				return err
			}
		}
		return nil
	}}
	c.Flags().StringSliceVar(&to, "to", nil, "destinations")
	return c
}

// A reader reads views. What it knows of tunnels by their numbers stays true: a device made anew has another.
type reader struct {
	to      []netip.Addr
	wg      *wgctrl.Client
	tunnels map[int]tunnel
}

// A tunnel is a device of WireGuard.
type tunnel struct{ name, self, peer string }

func (r *reader) view() (view, error) {
	v := view{Ways: map[netip.Addr][]string{}}
	var err error
	if v.Expired, err = readExpired(); err != nil {
		return v, err
	}
	if err := r.lookAtTunnels(); err != nil {
		return v, err
	}
	hear, err := heard()
	if err != nil {
		return v, err
	}
	deaf := map[string]bool{} // by key: all tunnels to it are
	for _, t := range r.tunnels {
		if !slices.Contains(v.Self, t.self) {
			v.Self = append(v.Self, t.self)
		}
		listens := hear == nil || hear[t.name]
		if was, seen := deaf[t.peer]; !seen || was {
			deaf[t.peer] = !listens
		}
	}
	for key, is := range deaf {
		if is {
			v.Deaf = append(v.Deaf, key)
		}
	}
	routes, err := meshRoutes()
	if err != nil {
		return v, err
	}
	for _, to := range r.to {
		for _, device := range longest(routes, to).devices {
			if t, known := r.tunnels[device]; known {
				v.Ways[to] = append(v.Ways[to], t.peer)
			}
		}
	}
	return v, nil
}

// lookAtTunnels brings r.tunnels up to date. A tunnel without a peer is not finished, and left out until it is.
func (r *reader) lookAtTunnels() error {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list devices: %w", err)
	}
	there := map[int]bool{}
	for _, l := range links {
		a := l.Attrs()
		if !strings.HasPrefix(a.Name, mesh.InterfacePrefix) {
			continue
		}
		there[a.Index] = true
		if _, known := r.tunnels[a.Index]; known {
			continue
		}
		d, err := r.wg.Device(a.Name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(d.Peers) == 0 {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at %s: %w", a.Name, err)
		}
		r.tunnels[a.Index] = tunnel{a.Name, d.PublicKey.String(), d.Peers[0].PublicKey.String()}
	}
	maps.DeleteFunc(r.tunnels, func(i int, _ tunnel) bool { return !there[i] })
	return nil
}

// heard returns the devices whose packets in transit pass the filter; nil: there is no filter, and all pass.
func heard() (map[string]bool, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	table := &nftables.Table{Name: mesh.FilterTable, Family: nftables.TableFamilyINet}
	devices := func(set string) (names []string, err error) {
		elements, err := c.GetSetElements(&nftables.Set{Table: table, Name: set})
		for _, e := range elements {
			names = append(names, strings.TrimRight(string(e.Key), "\x00"))
		}
		return names, err
	}
	listed, err := devices("listed")
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the filter: %w", err)
	}
	held, err := devices("held")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("read the filter: %w", err)
	}
	out := map[string]bool{}
	for _, name := range listed {
		out[name] = !slices.Contains(held, name)
	}
	return out, nil
}

// A route is one of the mesh's table.
type route struct {
	prefix  netip.Prefix
	devices []int // by which packets may leave; none: they are for this site, or refused
}

// longest returns the route that the kernel takes; the zero route if there is none.
func longest(routes []route, to netip.Addr) (best route) {
	for _, r := range routes {
		if r.prefix.Contains(to) && (!best.prefix.IsValid() || r.prefix.Bits() > best.prefix.Bits()) {
			best = r
		}
	}
	return best
}

// Attributes of rtnetlink that package unix does not have: see rtnetlink.h and nexthop.h.
const (
	rtaNhID  = 30
	nhmsgLen = 8
	nhaID    = 1
	nhaGroup = 2
	nhaOif   = 5
)

// meshRoutes reads the table of the mesh with its next hops resolved.
func meshRoutes() (out []route, err error) {
	hops, err := nextHops()
	if err != nil {
		return nil, err
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		head := make([]byte, unix.SizeofRtMsg)
		head[0] = family
		msgs, err := dump(unix.RTM_GETROUTE, head)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, m := range msgs {
			if len(m) < unix.SizeofRtMsg {
				return nil, errShort
			}
			head, attrs := nl.DeserializeRtMsg(m), attrsOf(m[unix.SizeofRtMsg:])
			table := uint32(head.Table)
			if t := attrs[unix.RTA_TABLE]; len(t) == 4 {
				table = binary.NativeEndian.Uint32(t)
			}
			if table != mesh.RouteTable || head.Flags&unix.RTM_F_CLONED != 0 {
				continue
			}
			dst := netip.IPv4Unspecified()
			if family == unix.AF_INET6 {
				dst = netip.IPv6Unspecified()
			}
			if a, ok := netip.AddrFromSlice(attrs[unix.RTA_DST]); ok {
				dst = a
			}
			r := route{prefix: netip.PrefixFrom(dst, int(head.Dst_len))}
			switch id, oif := u32(attrs[rtaNhID]), u32(attrs[unix.RTA_OIF]); {
			case head.Type != unix.RTN_UNICAST:
			case id != 0:
				r.devices = hops[id]
			case oif != 0:
				r.devices = []int{int(oif)}
			default:
				r.devices = legs(attrs[unix.RTA_MULTIPATH])
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// nextHops reads the devices of all next-hop objects, groups included; none on a kernel that has no such objects.
func nextHops() (map[uint32][]int, error) {
	msgs, err := dump(unix.RTM_GETNEXTHOP, make([]byte, nhmsgLen))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list next hops: %w", err)
	}
	hops, groups := map[uint32][]int{}, map[uint32][]uint32{}
	for _, m := range msgs {
		if len(m) < nhmsgLen {
			return nil, errShort
		}
		attrs := attrsOf(m[nhmsgLen:])
		id := u32(attrs[nhaID])
		if oif := u32(attrs[nhaOif]); oif != 0 {
			hops[id] = []int{int(oif)}
		}
		for g := attrs[nhaGroup]; len(g) >= 8; g = g[8:] { // struct nexthop_grp
			groups[id] = append(groups[id], binary.NativeEndian.Uint32(g))
		}
	}
	for id, members := range groups {
		for _, m := range members {
			hops[id] = append(hops[id], hops[m]...)
		}
	}
	return hops, nil
}

// legs reads the devices of a multipath attribute.
func legs(b []byte) (devices []int) {
	for len(b) >= unix.SizeofRtNexthop {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtNexthop {
			break
		}
		devices = append(devices, int(binary.NativeEndian.Uint32(b[4:])))
		b = b[min(len(b), (n+3)&^3):]
	}
	return devices
}

var errShort = errors.New("the kernel sent a message that is too short")

// dump asks rtnetlink for all objects of a kind. A dump that a change interrupted is asked for again.
func dump(kind int, header []byte) (msgs [][]byte, err error) {
	const tries = 10
	for range tries {
		req := nl.NewNetlinkRequest(kind, unix.NLM_F_DUMP)
		req.AddRawData(header)
		if msgs, err = req.Execute(unix.NETLINK_ROUTE, 0); !errors.Is(err, nl.ErrDumpInterrupted) {
			return msgs, err
		}
	}
	return msgs, nil // what is on the way of changing is looked at again by those who find it wrong
}

func attrsOf(b []byte) map[uint16][]byte {
	out := map[uint16][]byte{}
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			break
		}
		out[binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = b[unix.SizeofRtAttr:n]
		b = b[min(len(b), (n+3)&^3):]
	}
	return out
}

func u32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// readExpired reads the node's counters.
func readExpired() (e expired, err error) {
	four, err := os.ReadFile("/proc/self/net/snmp")
	if err != nil {
		return e, err
	}
	six, err := os.ReadFile("/proc/self/net/snmp6")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
		return e, err
	}
	return parseExpired(string(four), string(six))
}

// parseExpired reads /proc/net/snmp, whose lines come in pairs of names and values, and /proc/net/snmp6, one value a line.
func parseExpired(four, six string) (e expired, err error) {
	values := map[string]string{}
	var names []string
	for line := range strings.Lines(four) {
		group, rest, _ := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if len(names) == 0 || names[0] != group {
			names = append([]string{group}, fields...)
			continue
		}
		for i, f := range fields {
			if i+1 < len(names) {
				values[group+names[i+1]] = f
			}
		}
		names = nil
	}
	for line := range strings.Lines(six) {
		if f := strings.Fields(line); len(f) == 2 {
			values[f[0]] = f[1]
		}
	}
	for name, to := range map[string]*uint64{
		"IcmpOutTimeExcds": &e.Told4, "IpInHdrErrors": &e.Headers, "Icmp6OutTimeExcds": &e.Told6, "Ip6InHdrErrors": &e.Header6,
	} {
		text, found := values[name]
		if !found && six == "" && strings.Contains(name, "6") {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return e, fmt.Errorf("the kernel's counter %s is %q", name, text)
		}
		*to = n
	}
	return e, nil
}
