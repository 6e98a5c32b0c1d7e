package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"guywire/mesh/dataplane"
)

// A tunnel is one end of what an operator would configure by hand: a WireGuard device with one peer, with addresses of its
// own, and routes into it.
type tunnel struct {
	Device   string         `json:"device"`
	Kernel   bool           `json:"kernel"` // made by the kernel, not by `meshd dataplane`
	MTU      int            `json:"mtu"`
	Port     int            `json:"port"`
	Private  wgtypes.Key    `json:"private"`
	Peer     wgtypes.Key    `json:"peer"`
	Endpoint netip.AddrPort `json:"endpoint"`
	Addrs    []netip.Prefix `json:"addrs"`
	Routes   []netip.Prefix `json:"routes"`
}

// tunnelsCommand makes the tunnels that it reads from standard input in the node where it runs, and lets the node forward.
func tunnelsCommand() *cobra.Command {
	return &cobra.Command{Use: "tunnels", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		var tunnels []tunnel
		if err := json.NewDecoder(c.InOrStdin()).Decode(&tunnels); err != nil {
			return fmt.Errorf("read the tunnels: %w", err)
		}
		wg, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer wg.Close()
		for _, t := range tunnels {
			if err := t.make(c.Context(), wg); err != nil {
				return err
			}
		}
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
	}}
}

func (t tunnel) make(ctx context.Context, wg *wgctrl.Client) error {
	if err := t.create(ctx); err != nil {
		return fmt.Errorf("create %s: %w", t.Device, err)
	}
	everything := []net.IPNet{{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}}
	if err := wg.ConfigureDevice(t.Device, wgtypes.Config{
		PrivateKey: &t.Private, ListenPort: &t.Port, ReplacePeers: true,
		Peers: []wgtypes.PeerConfig{{PublicKey: t.Peer, Endpoint: net.UDPAddrFromAddrPort(t.Endpoint), AllowedIPs: everything}},
	}); err != nil {
		return fmt.Errorf("configure %s: %w", t.Device, err)
	}
	link, err := netlink.LinkByName(t.Device)
	if err != nil {
		return err
	}
	for _, p := range t.Addrs {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // nobody else can have it
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("add %s to %s: %w", p, t.Device, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", t.Device, err)
	}
	for _, p := range t.Routes {
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(p)}); err != nil {
			return fmt.Errorf("add route %s: %w", p, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// create makes the device; the data plane may be just starting.
func (t tunnel) create(ctx context.Context) error {
	if t.Kernel {
		return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: t.Device, MTU: t.MTU}})
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		err := dataplane.Client{}.Create(ctx, t.Device, t.MTU)
		if !errors.Is(err, dataplane.ErrNotRunning) {
			return err
		}
		if Pause(ctx, 20*time.Millisecond) != nil {
			return err
		}
	}
}
