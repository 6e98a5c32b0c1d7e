package world

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"guywire/mesh"
	"guywire/mesh/api"
)

// firstHandPort is the UDP port of the first tunnel made by hand.
const firstHandPort = 51820

// HandDevice names a site's device of the tunnel that was made by hand to another site; the data plane wants the mesh's
// prefix.
func HandDevice(peer *Site) string { return mesh.InterfacePrefix + peer.Name }

// ConnectByHand joins each pair of sites by a WireGuard tunnel between their first uplinks, one device at both ends, which
// has a /31, a /127 and a link-local address. kind is that of [api.Status].Dataplane. With routes, the LANs of a pair are
// routed into their tunnel.
func (w *World) ConnectByHand(ctx context.Context, kind string, mtu int, routes bool, pairs ...[2]*Site) error {
	ends := map[*Site][]tunnel{}
	for i, pair := range pairs {
		var keys [2]wgtypes.Key
		var at [2]netip.AddrPort
		for k, s := range pair {
			n, _ := w.Status.Node(s.Name)
			addr, found := n.Addr(s.WAN[0], false)
			if !found {
				return fmt.Errorf("%s has no IPv4 address on %s", s.Name, s.WAN[0])
			}
			at[k] = netip.AddrPortFrom(addr, uint16(firstHandPort+i))
			var err error
			if keys[k], err = wgtypes.GeneratePrivateKey(); err != nil {
				return err
			}
		}
		for k, s := range pair {
			other := pair[1-k]
			t := tunnel{
				Device: HandDevice(other), Kernel: kind == "kernel", MTU: mtu, Port: int(at[k].Port()), Private: keys[k],
				Peer: keys[1-k].PublicKey(), Endpoint: at[1-k], Addrs: []netip.Prefix{
					netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(i), byte(k)}), 31),
					netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x99, 13: byte(i), 15: byte(k)}), 127),
					netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfe, 0x80, 13: byte(i), 15: byte(k) + 1}), 64),
				},
			}
			if routes {
				t.Routes = other.LAN
			}
			ends[s] = append(ends[s], t)
			w.Links[s.Name] = append(w.Links[s.Name], api.Link{
				Peer: other.Name, Local: s.WAN[0], Remote: other.WAN[0], State: api.LinkUp, Device: t.Device, MTU: mtu,
			})
		}
	}
	return w.Each(w.Sites, func(s *Site) error {
		if len(ends[s]) == 0 {
			return nil
		}
		if kind != "kernel" {
			if _, err := w.Nodes.Start(ctx, s.Name, "dataplane", []string{"meshd", "dataplane"}); err != nil {
				return err
			}
		}
		config, err := json.Marshal(ends[s])
		if err != nil {
			return err
		}
		_, err = w.Run(ctx, s.Name, string(config), w.Exe, InsideVerb, "tunnels")
		return err
	})
}

// AllPairs returns each two sites once.
func (w *World) AllPairs() (pairs [][2]*Site) {
	for i, a := range w.Sites {
		for _, b := range w.Sites[i+1:] {
			pairs = append(pairs, [2]*Site{a, b})
		}
	}
	return pairs
}

// UntilRouted waits until the kernel of every site sends to the hosts of all others through some tunnel.
func (w *World) UntilRouted(ctx context.Context) error {
	return w.Until(ctx, "routes to all sites", TalkLimit, func(ctx context.Context) (string, error) {
		missing := make([]string, len(w.Sites))
		err := w.Each(w.Sites, func(s *Site) error {
			ways, err := w.lookup(ctx, s)
			for _, to := range w.Sites {
				if to != s && !strings.HasPrefix(ways[to.Host4], mesh.InterfacePrefix) {
					missing[slices.Index(w.Sites, s)] = s.Name + " has none to " + to.Name
				}
			}
			return err
		})
		return strings.Join(slices.DeleteFunc(missing, func(m string) bool { return m == "" }), ", "), err
	})
}
