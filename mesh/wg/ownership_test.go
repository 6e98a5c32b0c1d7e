package wg

import (
	"testing"

	"github.com/vishvananda/netlink"

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
