package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"guywire/mesh/dataplane"
)

// A tunnel is what an operator would configure by hand: one WireGuard device with one peer, and routes into it. It is the
// peer of the mesh in the throughput benchmark.
type tunnel struct {
	Device   string         `json:"device"`
	Kernel   bool           `json:"kernel"` // made by the kernel, not by `meshd dataplane`
	MTU      int            `json:"mtu"`
	Port     int            `json:"port"`
	Private  wgtypes.Key    `json:"private"`
	Peer     wgtypes.Key    `json:"peer"`
	Endpoint netip.AddrPort `json:"endpoint"`
	Routes   []netip.Prefix `json:"routes"`
}

// tunnelCommand makes the tunnel that it reads from standard input in the node where it runs.
func tunnelCommand() *cobra.Command {
	return &cobra.Command{Use: "tunnel", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		data, err := io.ReadAll(c.InOrStdin())
		if err != nil {
			return err
		}
		var t tunnel
		if err := json.Unmarshal(data, &t); err != nil {
			return fmt.Errorf("read the tunnel: %w", err)
		}
		return t.make(c.Context())
	}}
}

func (t tunnel) make(ctx context.Context) error {
	if err := t.create(ctx); err != nil {
		return fmt.Errorf("create %s: %w", t.Device, err)
	}
	wg, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer wg.Close()
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
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", t.Device, err)
	}
	for _, p := range t.Routes {
		dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}); err != nil {
			return fmt.Errorf("add route %s: %w", p, err)
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
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
		if pause(ctx, 20*time.Millisecond) != nil {
			return err
		}
	}
}
