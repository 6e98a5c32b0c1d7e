package wg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"guywire/mesh"
	"guywire/mesh/kernel"
)

// minMTU is IPv6's smallest; below it the kernel takes IPv6 off the device.
const minMTU = 1280

func (b *Backend) create(ctx context.Context, t kernel.Tunnel) error {
	private, err := b.check(t)
	if err != nil {
		return err
	}
	link, err := b.find(t.Name)
	if err != nil {
		return err
	}
	if link != nil {
		if link, err = b.existing(ctx, link); err != nil {
			return err
		}
	}
	switch {
	case link == nil:
		link, err = b.make(ctx, t)
	case b.owns(link.Attrs().Alias):
		return b.update(ctx, t, link.Attrs().Alias != t.Alias)
	}
	if err != nil {
		return err
	}
	if err := b.build(link, t, private); err != nil {
		// The deadline may be what failed; the half-made device goes anyway.
		return errors.Join(err, b.remove(context.WithoutCancel(ctx), link))
	}
	return nil
}

// existing gives the device that is there if it can become a tunnel, nil if
// it was ours but nothing serves it, so that it had to be removed.
func (b *Backend) existing(ctx context.Context, link netlink.Link) (netlink.Link, error) {
	if err := b.mayTouch(ctx, link); err != nil {
		return nil, err
	}
	dev, err := b.device(link)
	if err != nil || dev != nil {
		return link, err
	}
	return nil, b.remove(ctx, link)
}

// mayTouch returns ErrForeign unless the device is ours or blank. A blank one
// is what an agent leaves that is killed between creating a device and marking
// it; nobody loses anything with it.
func (b *Backend) mayTouch(ctx context.Context, link netlink.Link) error {
	ours, err := b.ours(ctx, link)
	if err == nil && !ours {
		ours, err = b.blank(link)
	}
	if err == nil && !ours {
		err = fmt.Errorf("device %s %w", link.Attrs().Name, ErrForeign)
	}
	return err
}

// check reports what no device can be, and gives the private key.
func (b *Backend) check(t kernel.Tunnel) (wgtypes.Key, error) {
	switch {
	case !strings.HasPrefix(t.Name, mesh.InterfacePrefix) || len(t.Name) >= unix.IFNAMSIZ || strings.ContainsAny(t.Name, "/. "):
		return wgtypes.Key{}, fmt.Errorf("device name %q must begin with %s and have at most %d bytes", t.Name, mesh.InterfacePrefix, unix.IFNAMSIZ-1)
	case !b.owns(t.Alias):
		return wgtypes.Key{}, fmt.Errorf("alias %q is not one of ours", t.Alias)
	case t.MTU < minMTU:
		return wgtypes.Key{}, fmt.Errorf("MTU %d is less than %d", t.MTU, minMTU)
	case !t.LinkLocal.Is6() || !t.LinkLocal.IsLinkLocalUnicast():
		return wgtypes.Key{}, fmt.Errorf("%s is no IPv6 link-local address", t.LinkLocal)
	case t.Peer.IsZero():
		return wgtypes.Key{}, errors.New("tunnel without a peer")
	}
	raw, err := b.opt.Keys(t.Epoch)
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("private key of epoch %d: %w", t.Epoch, err)
	}
	private := wgtypes.Key(raw)
	if mesh.WireGuardKey(private.PublicKey()) != t.PublicKey {
		return wgtypes.Key{}, fmt.Errorf("private key of epoch %d does not belong to public key %s", t.Epoch, t.PublicKey)
	}
	return private, nil
}

// blank reports whether a link is a WireGuard device with nothing to lose.
func (b *Backend) blank(link netlink.Link) (bool, error) {
	if link.Attrs().Alias != "" || !isWireGuardKind(link) {
		return false, nil
	}
	dev, err := b.device(link)
	return dev != nil && dev.PrivateKey == (wgtypes.Key{}) && len(dev.Peers) == 0, err
}

func isWireGuardKind(link netlink.Link) bool {
	switch link.(type) {
	case *netlink.Wireguard, *netlink.Tuntap:
		return true
	}
	return false
}

// make creates a device that is nothing yet.
func (b *Backend) make(ctx context.Context, t kernel.Tunnel) (netlink.Link, error) {
	if b.maker == Kernel {
		device := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: t.Name, MTU: t.MTU}}
		if err := b.nl.LinkAdd(device); err != nil {
			return nil, fmt.Errorf("create kernel device %s: %w", t.Name, err)
		}
	} else {
		if err := b.opt.Dataplane.Ensure(ctx); err != nil {
			return nil, err
		}
		if err := b.opt.Dataplane.Create(ctx, t.Name, t.MTU); err != nil {
			return nil, fmt.Errorf("create device in the data plane: %w", err)
		}
	}
	link, err := b.find(t.Name)
	if err == nil && link == nil {
		err = fmt.Errorf("device %s is not where it was to be made; run the data plane in the agent's network namespace", t.Name)
		if b.maker == Userspace {
			err = errors.Join(err, b.opt.Dataplane.Delete(ctx, t.Name))
		}
	}
	return link, err
}

// build turns a blank device into the tunnel. The alias comes first, so that
// whatever happens next, the device is known as ours; the peer comes last, so
// that a device with a peer is complete.
func (b *Backend) build(link netlink.Link, t kernel.Tunnel, private wgtypes.Key) error {
	if err := b.setAlias(link, t); err != nil {
		return err
	}
	err := b.configure(t.Name, wgtypes.Config{PrivateKey: &private, FirewallMark: new(int(t.Mark))})
	if err != nil {
		return fmt.Errorf("configure %s: %w", t.Name, err)
	}
	if err := b.setLink(link, t); err != nil {
		return err
	}
	err = b.configure(t.Name, wgtypes.Config{
		ListenPort:   new(int(t.ListenPort)),
		ReplacePeers: true,
		Peers:        []wgtypes.PeerConfig{wholePeer(t)},
	})
	if err != nil {
		return portError(t.Name, t.ListenPort, err)
	}
	return nil
}

func (b *Backend) update(ctx context.Context, t kernel.Tunnel, reseat bool) error {
	private, err := b.check(t)
	if err != nil {
		return err
	}
	link, err := b.find(t.Name)
	if err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("device %s: %w", t.Name, fs.ErrNotExist)
	}
	if err := b.mayTouch(ctx, link); err != nil {
		return err
	}
	dev, err := b.device(link)
	if err != nil {
		return err
	}
	if dev == nil {
		return fmt.Errorf("device %s has lost its WireGuard side: %w", t.Name, fs.ErrNotExist)
	}
	if change, needed := difference(dev, t, private, reseat); needed {
		if err := b.configure(t.Name, change); err != nil {
			if change.ListenPort != nil && dev.ListenPort != 0 {
				// Userspace WireGuard has closed the old port by now.
				err = errors.Join(err, b.configure(t.Name, wgtypes.Config{ListenPort: &dev.ListenPort}))
			}
			return portError(t.Name, t.ListenPort, err)
		}
	}
	if err := b.setLink(link, t); err != nil {
		return err
	}
	// Last: it says that port and endpoint are set.
	return b.setAlias(link, t)
}

// difference is what has to be configured to make dev into t. Port and
// endpoint are part of it only if reseat is set, or if the peer is a new one,
// which has no endpoint yet; the port also if there is none, because another
// program had it when the link came up.
func difference(dev *wgtypes.Device, t kernel.Tunnel, private wgtypes.Key, reseat bool) (change wgtypes.Config, needed bool) {
	same := len(dev.Peers) == 1 && dev.Peers[0].PublicKey == wgtypes.Key(t.Peer)
	seat := reseat || !same
	if dev.PrivateKey != private {
		change.PrivateKey, needed = &private, true
	}
	if dev.FirewallMark != int(t.Mark) {
		change.FirewallMark, needed = new(int(t.Mark)), true
	}
	if (seat || dev.ListenPort == 0) && dev.ListenPort != int(t.ListenPort) {
		change.ListenPort, needed = new(int(t.ListenPort)), true
	}
	if !same {
		change.ReplacePeers = true
		change.Peers = []wgtypes.PeerConfig{wholePeer(t)}
		return change, true
	}
	peer := wgtypes.PeerConfig{PublicKey: wgtypes.Key(t.Peer), UpdateOnly: true}
	peerNeeded := false
	if seat && t.Endpoint.IsValid() {
		peer.Endpoint, peerNeeded = net.UDPAddrFromAddrPort(t.Endpoint), true
	}
	if keepalive := time.Duration(t.Keepalive) * time.Second; dev.Peers[0].PersistentKeepaliveInterval != keepalive {
		peer.PersistentKeepaliveInterval, peerNeeded = &keepalive, true
	}
	if !allowsAll(dev.Peers[0]) {
		peer.ReplaceAllowedIPs, peer.AllowedIPs, peerNeeded = true, everything, true
	}
	if peerNeeded {
		change.Peers = []wgtypes.PeerConfig{peer}
	}
	return change, needed || peerNeeded
}

func wholePeer(t kernel.Tunnel) wgtypes.PeerConfig {
	peer := wgtypes.PeerConfig{
		PublicKey:                   wgtypes.Key(t.Peer),
		PersistentKeepaliveInterval: new(time.Duration(t.Keepalive) * time.Second),
		ReplaceAllowedIPs:           true,
		AllowedIPs:                  everything,
	}
	if t.Endpoint.IsValid() {
		peer.Endpoint = net.UDPAddrFromAddrPort(t.Endpoint)
	}
	return peer
}

func (b *Backend) configure(name string, c wgtypes.Config) error {
	return configError(b.wg.ConfigureDevice(name, c))
}

func (b *Backend) delete(ctx context.Context, name string) error {
	link, err := b.find(name)
	if err != nil || link == nil {
		return err
	}
	if err := b.mayTouch(ctx, link); err != nil {
		return err
	}
	return b.remove(ctx, link)
}

// remove deletes a device, by the data plane if that has it: then its socket
// is gone on return, too.
func (b *Backend) remove(ctx context.Context, link netlink.Link) error {
	name := link.Attrs().Name
	if _, ok := link.(*netlink.Tuntap); ok && b.opt.Dataplane != nil {
		err := b.opt.Dataplane.Delete(ctx, name)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := b.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

func (b *Backend) setAlias(link netlink.Link, t kernel.Tunnel) error {
	if link.Attrs().Alias == t.Alias {
		return nil
	}
	if err := b.nl.LinkSetAlias(link, t.Alias); err != nil {
		return fmt.Errorf("set alias of %s: %w", t.Name, err)
	}
	return nil
}

// setLink sets all that is not WireGuard's own and brings the link up.
func (b *Backend) setLink(link netlink.Link, t kernel.Tunnel) error {
	if link.Attrs().MTU != t.MTU {
		if err := b.nl.LinkSetMTU(link, t.MTU); err != nil {
			return fmt.Errorf("set MTU %d of %s: %w", t.MTU, t.Name, err)
		}
	}
	if err := setSysctls(t.Name); err != nil {
		return err
	}
	if err := b.nl.LinkSetUp(link); err != nil {
		return portError(t.Name, t.ListenPort, fmt.Errorf("bring up: %w", err))
	}
	return b.setAddrs(link, t)
}

// setAddrs makes those of t the only link-local and the only IPv4 address of
// the link. They are valid at once (nodad): no other node shares a
// point-to-point device.
func (b *Backend) setAddrs(link netlink.Link, t kernel.Tunnel) error {
	addrs, err := dump(func() ([]netlink.Addr, error) { return b.nl.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", t.Name, err)
	}
	index := link.Attrs().Index
	return errors.Join(
		b.setAddr(link, linkLocals(index, addrs), t.LinkLocal),
		b.setAddr(link, overlays(index, addrs), t.Overlay4),
	)
}

// setAddr replaces the addresses that a link has of one kind by the wanted
// one, if there is one.
func (b *Backend) setAddr(link netlink.Link, has []netip.Addr, want netip.Addr) error {
	name := link.Attrs().Name
	for _, have := range has {
		if have == want {
			continue
		}
		if err := b.nl.AddrDel(link, linkAddr(have)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s from %s: %w", have, name, err)
		}
	}
	if !want.IsValid() || slices.Contains(has, want) {
		return nil
	}
	add := linkAddr(want)
	if want.Is6() {
		add.Flags = unix.IFA_F_NODAD
		add.Scope = unix.RT_SCOPE_LINK
	}
	if err := b.nl.AddrReplace(link, add); err != nil {
		return fmt.Errorf("add address %s to %s: %w", want, name, err)
	}
	return nil
}

func linkAddr(a netip.Addr) *netlink.Addr {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}}
}
