package wg

import (
	"testing"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"guywire/mesh/kernel"
)

func TestForeignDevice(t *testing.T) {
	s := newSite(t, Auto, 8)
	want := s.tunnelTo(&site{seed: 16}, "198.18.0.2")
	tun := func() netlink.Link {
		l := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: device}, Mode: netlink.TUNTAP_MODE_TUN}
		s.do(func() error { return netlink.LinkAdd(l) })
		for _, f := range l.Fds {
			f.Close()
		}
		return s.link(device)
	}
	for name, add := range map[string]func(){
		"tun":            func() { tun() },
		"tun with alias": func() { must(t, s.nl.LinkSetAlias(tun(), "vpn of someone")) },
		"bridge with our alias": func() {
			must(t, s.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: device}}))
			must(t, s.nl.LinkSetAlias(s.link(device), want.Alias))
		},
	} {
		t.Run(name, func(t *testing.T) {
			add()
			for _, call := range []string{"create", "update", "delete"} {
				if got := s.ask(ask{Call: call, Tunnel: want}); !got.Foreign {
					t.Errorf("%s: %+v", call, got)
				}
			}
			if got := s.observe(); len(got) != 0 {
				t.Errorf("observed %v", got)
			}
			must(t, s.nl.LinkDel(s.link(device)))
		})
	}
}

func TestUnservedDeviceOfOursIsMadeAnew(t *testing.T) {
	s := newSite(t, Auto, 8)
	want := s.tunnelTo(&site{seed: 16}, "198.18.0.2")
	l := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: device}, Mode: netlink.TUNTAP_MODE_TUN}
	s.do(func() error { return netlink.LinkAdd(l) })
	for _, f := range l.Fds {
		f.Close()
	}
	must(t, s.nl.LinkSetAlias(s.link(device), want.Alias))
	s.create(want)
	diff(t, s.observe(), []kernel.Tunnel{want})
}

func TestHalfMadeDevice(t *testing.T) {
	s := newSite(t, Userspace, 8)
	want := s.tunnelTo(&site{seed: 16}, "198.18.0.2")
	other := want
	other.Name, other.ListenPort = "gw-other", 51990
	s.create(other) // starts the data plane
	for _, finish := range []string{"create", "update", "delete"} {
		must(t, s.dataplane().Create(t.Context(), device, 1420))
		got := s.observe()
		if len(got) != 2 || got[1].Name != device || got[1].Alias != "" || !got[1].Peer.IsZero() || !got[1].PublicKey.IsZero() {
			t.Fatalf("observed %+v", got)
		}
		s.call(ask{Call: finish, Tunnel: want})
		if finish != "delete" {
			diff(t, s.observe(), []kernel.Tunnel{other, want})
			s.call(ask{Call: "delete", Tunnel: want})
		}
	}
	// Made, marked, and then nothing more.
	must(t, s.dataplane().Create(t.Context(), device, 1420))
	must(t, s.nl.LinkSetAlias(s.link(device), want.Alias))
	s.call(ask{Call: "update", Tunnel: want})
	diff(t, s.observe(), []kernel.Tunnel{other, want})
}

// TestKernelDevicesOfOthers: a WireGuard device of the kernel is not ours for
// its name. One with a key or a peer stays as it is; one with nothing in it is
// what an agent leaves that is killed over it.
func TestKernelDevicesOfOthers(t *testing.T) {
	s := newSite(t, Kernel, 8)
	want := s.tunnelTo(&site{seed: 16}, "198.18.0.2")
	key := privateKey(24, 1)
	add := func(alias string, config wgtypes.Config) {
		must(t, s.nl.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: device}}))
		if alias != "" {
			must(t, s.nl.LinkSetAlias(s.link(device), alias))
		}
		s.do(func() error {
			c, err := wgctrl.New()
			if err != nil {
				return err
			}
			defer c.Close()
			return c.ConfigureDevice(device, config)
		})
	}
	for name, foreign := range map[string]struct {
		alias  string
		config wgtypes.Config
	}{
		"key":   {"", wgtypes.Config{PrivateKey: &key}},
		"peer":  {"", wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: key.PublicKey()}}}},
		"alias": {"vpn of someone", wgtypes.Config{}},
	} {
		t.Run(name, func(t *testing.T) {
			add(foreign.alias, foreign.config)
			index := s.link(device).Attrs().Index
			for _, call := range []string{"create", "update", "delete"} {
				if got := s.ask(ask{Call: call, Tunnel: want}); !got.Foreign {
					t.Errorf("%s: %+v", call, got)
				}
			}
			if got := s.observe(); len(got) != 0 {
				t.Errorf("observed %v", got)
			}
			if s.link(device).Attrs().Index != index {
				t.Error("it was made anew")
			}
			must(t, s.nl.LinkDel(s.link(device)))
		})
	}
	for name, alias := range map[string]string{"blank": "", "blank but for our alias": want.Alias} {
		for _, finish := range []string{"create", "update"} {
			t.Run(name+", "+finish, func(t *testing.T) {
				add(alias, wgtypes.Config{})
				s.call(ask{Call: finish, Tunnel: want})
				diff(t, s.observe(), []kernel.Tunnel{want})
				s.call(ask{Call: "delete", Tunnel: want})
			})
		}
		t.Run(name+", delete", func(t *testing.T) {
			add(alias, wgtypes.Config{})
			s.call(ask{Call: "delete", Tunnel: want})
			if s.hasLink(device) {
				t.Error("it is still there")
			}
		})
	}
}
