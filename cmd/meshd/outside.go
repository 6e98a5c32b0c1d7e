package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"guywire/discovery"
	"guywire/discovery/gossip"
	"guywire/discovery/portmap"
	"guywire/discovery/stun"
	"guywire/mesh"
	"guywire/mesh/agent"
	"guywire/mesh/config"
	"guywire/mesh/core"
	"guywire/mesh/dataplane"
	"guywire/mesh/host"
	"guywire/mesh/icmp"
	"guywire/mesh/kernel"
	"guywire/mesh/probe"
	"guywire/mesh/rendezvous"
	"guywire/mesh/wg"
	"guywire/routing/fib"
	"guywire/routing/firewall"
)

// outside gives the agent the real machine.
func outside(c config.Config, log *slog.Logger) agent.Outside {
	return agent.Outside{
		Check:   func() error { return check(c) },
		Observe: host.Observe,
		Watch:   host.Watch,
		Kernel:  func(k agent.KernelConfig) (agent.Kernel, error) { return openKernel(c, k) },
		Probes: func(source netip.Addr) (agent.Probes, error) {
			conn, err := probe.Open(source)
			if err != nil {
				return nil, err
			}
			return probes{conn}, nil
		},
		Echoes: func(answer func(int, time.Time)) (agent.Echoes, error) {
			conn, err := icmp.Open(func(a icmp.Answer) { answer(a.Interface, a.At) })
			if err != nil {
				return nil, err // a nil *icmp.Conn would not be a nil interface
			}
			return conn, nil
		},
		Gossip: func(g agent.GossipConfig) (agent.Gossip, error) { return openGossip(g, log) },
		Stun: func(addrs []netip.AddrPort, keys func() [][]byte) (func(context.Context) error, error) {
			server, err := stun.Listen(addrs, keys)
			if err != nil {
				return nil, err
			}
			return server.Run, nil
		},
		Socket: func(mark uint32, first, last uint16, key []byte) (rendezvous.Socket, error) {
			s, err := stun.Open(stun.OpenConfig{Mark: mark, First: first, Last: last, Key: key})
			if err != nil {
				return nil, err // a nil *stun.Socket would not be a nil interface
			}
			return s, nil
		},
		Lookup: func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name+".") // the dot keeps search domains out
		},
		PortMapper: func(gateway, local netip.Addr, mark uint32, secret [32]byte) agent.PortMapper {
			return portmap.New(portmap.Config{Gateway: gateway, Local: local, Mark: mark, Secret: secret})
		},
		HandOver: dataplane.Client{Socket: c.DataplaneSocket}.HandOver,
		Devices: func() (map[string]int, error) {
			all, err := net.Interfaces()
			out := make(map[string]int, len(all))
			for _, i := range all {
				out[i.Name] = i.Index
			}
			return out, err
		},
	}
}

// check says why this process cannot run a mesh here.
func check(c config.Config) error {
	if err := host.Privileges(context.Background()); err != nil {
		return err
	}
	tunnels, err := wg.New(wg.Options{Mode: wg.Mode(c.Dataplane), Dataplane: dataplane.Client{Socket: c.DataplaneSocket}})
	if err != nil {
		return err
	}
	defer tunnels.Close()
	// A node that is admitted and then cannot speak would be half a member.
	probes, err := net.ListenPacket("udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), mesh.ProbePort).String())
	switch {
	case err == nil:
		_ = probes.Close()
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("UDP port %d, over which nodes speak inside the tunnels, is in use; stop the program that holds it (%w)", mesh.ProbePort, syscall.EADDRINUSE)
	}
	if tunnels.Maker() == wg.Userspace && !host.HasTun() {
		return errors.New("the kernel has no WireGuard and /dev/net/tun cannot be opened, so no tunnel can be made: load one of the modules (modprobe wireguard, modprobe tun), or give this user access to /dev/net/tun (chmod 0666 /dev/net/tun)")
	}
	return nil
}

// openKernel opens the adapters of the reconciler.
func openKernel(c config.Config, k agent.KernelConfig) (agent.Kernel, error) {
	output, err := os.OpenFile(filepath.Join(filepath.Dir(c.DataplaneSocket), "dataplane.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return agent.Kernel{}, fmt.Errorf("open the log of the data plane: %w", err)
	}
	spawner := dataplane.Spawner{
		Client: dataplane.Client{Socket: c.DataplaneSocket},
		Exe:    "/proc/self/exe", Args: []string{"dataplane", "--detach", "--socket", c.DataplaneSocket},
		Output: output,
	}
	tunnels, err := wg.New(wg.Options{
		Mode: wg.Mode(c.Dataplane),
		Keys: k.Ring.Private,
		Epochs: func() map[mesh.Epoch]mesh.WireGuardKey {
			out := map[mesh.Epoch]mesh.WireGuardKey{}
			for _, e := range k.Ring.Epochs() {
				if key, err := k.Ring.Public(e); err == nil {
					out[e] = key
				}
			}
			return out
		},
		Owns:      core.OwnsAlias,
		Dataplane: spawner,
	})
	if err != nil {
		return agent.Kernel{}, errors.Join(err, output.Close())
	}
	routes, err := fib.New(k.Pools)
	if err != nil {
		return agent.Kernel{}, errors.Join(err, tunnels.Close(), output.Close())
	}
	filter, err := firewall.New()
	if err != nil {
		return agent.Kernel{}, errors.Join(err, routes.Close(), tunnels.Close(), output.Close())
	}
	sysctls, err := host.NewSysctls(c.State)
	if err != nil {
		return agent.Kernel{}, errors.Join(err, filter.Close(), routes.Close(), tunnels.Close(), output.Close())
	}
	counters, err := host.OpenCounters()
	if err != nil {
		return agent.Kernel{}, errors.Join(err, sysctls.Close(), filter.Close(), routes.Close(), tunnels.Close(), output.Close())
	}
	return agent.Kernel{
		Backends: [kernel.Parts]kernel.Backend{
			kernel.PartTunnels: tunnels, kernel.PartForwarding: routes, kernel.PartFilter: filter, kernel.PartSysctls: sysctls,
		},
		Kind:     func() string { return string(tunnels.Maker()) },
		Carriers: carriers{spawner},
		Counters: counters.Read,
		Stats: func(ctx context.Context) (map[string]core.Traffic, error) {
			stats, err := tunnels.Stats(ctx)
			out := make(map[string]core.Traffic, len(stats))
			for name, s := range stats {
				out[name] = core.Traffic{Received: s.Received, Sent: s.Sent, Endpoint: s.Endpoint, Handshake: s.LastHandshake}
			}
			return out, err
		},
		Lookup: func(_ context.Context, to netip.Addr) (agent.Lookup, error) {
			l, err := fib.Ask(to)
			return agent.Lookup{Device: l.Device, Text: l.Text, Local: l.Local}, err
		},
		Watch: func(ctx context.Context, changed func(...kernel.Part)) error {
			tasks, ctx := errgroup.WithContext(ctx)
			tasks.Go(func() error { return routes.Watch(ctx, func() { changed(kernel.PartTunnels, kernel.PartForwarding) }) })
			tasks.Go(func() error { return filter.Watch(ctx, func() { changed(kernel.PartFilter) }) })
			tasks.Go(func() error { return every(ctx, settingsEvery, func() { changed(kernel.PartSysctls) }) })
			return tasks.Wait()
		},
		Close: func() error {
			return errors.Join(counters.Close(), sysctls.Close(), filter.Close(), routes.Close(), tunnels.Close(), output.Close())
		},
		Shutdown: func(ctx context.Context) error {
			err := shutdown(ctx, spawner.Client)
			if errors.Is(err, dataplane.ErrNotRunning) {
				return nil
			}
			return err
		},
	}, nil
}

// shutdown ends the data plane. Its devices went with the tunnels; carriers are
// nobody's any more.
func shutdown(ctx context.Context, c dataplane.Client) error {
	carriers, err := c.Carriers(ctx)
	if err != nil && !errors.Is(err, dataplane.ErrUnsupported) { // an older one has none
		return err
	}
	for _, s := range carriers {
		if err := c.CloseCarrier(ctx, s.ID); err != nil && !errors.Is(err, dataplane.ErrNoCarrier) {
			return err
		}
	}
	return c.Shutdown(ctx, false)
}

// settingsEvery is how often the kernel's settings are looked at: nothing tells
// when others change them, and without forwarding a site is cut off.
const settingsEvery = 2 * time.Second

func every(ctx context.Context, pause time.Duration, do func()) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			do()
		case <-ctx.Done():
			return nil
		}
	}
}

// probes is probe.Conn as the agent sees it.
type probes struct{ *probe.Conn }

func (p probes) Run(ctx context.Context, handle func(ifindex int, payload []byte, at time.Time)) error {
	return p.Receive(ctx, func(ifindex int, _ netip.Addr, payload []byte, at time.Time) { handle(ifindex, payload, at) }, func(probe.Hint) {
		// An ICMP error came through the tunnel, so the tunnel works; that
		// nobody listens at its end is for the echo requests to find out.
	})
}

// Hard takes as evidence what says that the device itself is gone or down. A
// tunnel without a session yet, or a full queue, is none.
func (p probes) Hard(err error) (reason string, hard bool) {
	hint, ok := errors.AsType[*probe.Hint](err)
	if !ok || hint.Reason != probe.DeviceGone && hint.Reason != probe.DeviceDown {
		return "", false
	}
	return hint.Reason.String(), true
}

// gossiper is gossip.Gossip as the agent sees it.
type gossiper struct {
	*gossip.Gossip
	facts   func(discovery.Signed)
	learned func([][]byte)
}

func openGossip(g agent.GossipConfig, log *slog.Logger) (agent.Gossip, error) {
	member, err := gossip.New(gossip.Config{
		Name: g.Self, Bind: g.Bind, Label: g.Mesh, Logger: log,
		Seeds: func() []gossip.Member {
			var out []gossip.Member
			for id, addr := range g.Seeds() {
				out = append(out, gossip.Member{Node: id, Addr: netip.AddrPortFrom(addr, mesh.GossipPort)})
			}
			return out
		},
		Admit: g.Admit, Announcements: g.Announcements, Keys: gossip.Keys(g.Keys),
	})
	if err != nil {
		return nil, err
	}
	return gossiper{member, g.Facts, g.Learned}, nil
}

// SetKeys implements agent.Gossip.
func (g gossiper) SetKeys(keys agent.GossipKeys) error { return g.Gossip.SetKeys(gossip.Keys(keys)) }

func (g gossiper) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return g.Gossip.Run(ctx) })
	tasks.Go(func() error {
		for {
			select {
			case ev := <-g.Events():
				for _, s := range ev.Facts {
					g.facts(s)
				}
				if len(ev.Announcements) > 0 {
					g.learned(ev.Announcements)
				}
			case <-ctx.Done():
				return nil
			}
		}
	})
	return tasks.Wait()
}
