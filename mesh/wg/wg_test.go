package wg

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"guywire/mesh"
	"guywire/mesh/kernel"
)

func TestChooseMaker(t *testing.T) {
	yes, no := func() error { return nil }, func() error { return syscall.EOPNOTSUPP }
	for _, tt := range []struct {
		mode      Mode
		kernel    func() error
		dataplane bool
		want      Mode // empty: an error
	}{
		{Auto, yes, true, Kernel},
		{"", yes, true, Kernel},
		{Auto, no, true, Userspace},
		{Auto, no, false, ""},
		{Kernel, yes, false, Kernel},
		{Kernel, no, true, ""},
		{Userspace, yes, true, Userspace},
		{Userspace, yes, false, ""},
		{"fast", no, true, ""},
	} {
		opt := Options{Mode: tt.mode}
		if tt.dataplane {
			opt.Dataplane = struct{ Dataplane }{}
		}
		got, err := chooseMaker(opt, tt.kernel)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%+v: %q, %v", tt, got, err)
		}
	}
	if _, err := chooseMaker(Options{Mode: Kernel}, no); !errors.Is(err, ErrNoMaker) || !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("%v", err)
	}
}

func TestDifference(t *testing.T) {
	private, peer := privateKey(8, 1), privateKey(16, 1).PublicKey()
	want := kernel.Tunnel{
		ListenPort: 51800, Mark: 0x8601, Keepalive: 25,
		Peer:     mesh.WireGuardKey(peer),
		Endpoint: netip.MustParseAddrPort("198.18.0.2:51801"),
	}
	device := func(change func(*wgtypes.Device)) *wgtypes.Device {
		d := &wgtypes.Device{
			PrivateKey: private, ListenPort: 51800, FirewallMark: 0x8601,
			Peers: []wgtypes.Peer{{
				PublicKey:                   peer,
				Endpoint:                    &net.UDPAddr{IP: net.IPv4(198, 18, 0, 9), Port: 9}, // has roamed
				PersistentKeepaliveInterval: 25 * time.Second,
				AllowedIPs:                  everything,
			}},
		}
		change(d)
		return d
	}
	for name, tt := range map[string]struct {
		change func(*wgtypes.Device)
		reseat bool
		port   bool // set
		peers  int
		whole  bool // the peer is replaced
		seated bool // the endpoint is set
	}{
		"nothing":            {change: func(d *wgtypes.Device) {}},
		"port, not reseated": {change: func(d *wgtypes.Device) { d.ListenPort = 1 }},
		"port lost":          {change: func(d *wgtypes.Device) { d.ListenPort = 0 }, port: true},
		"port, reseated":     {change: func(d *wgtypes.Device) { d.ListenPort = 1 }, reseat: true, port: true, peers: 1, seated: true},
		"reseated":           {change: func(d *wgtypes.Device) {}, reseat: true, peers: 1, seated: true},
		"keepalive":          {change: func(d *wgtypes.Device) { d.Peers[0].PersistentKeepaliveInterval = 0 }, peers: 1},
		"allowed IPs":        {change: func(d *wgtypes.Device) { d.Peers[0].AllowedIPs = everything[:1] }, peers: 1},
		"no peer":            {change: func(d *wgtypes.Device) { d.Peers = nil; d.ListenPort = 1 }, port: true, peers: 1, whole: true, seated: true},
		"other peer":         {change: func(d *wgtypes.Device) { d.Peers[0].PublicKey[5]++ }, peers: 1, whole: true, seated: true},
		"second peer":        {change: func(d *wgtypes.Device) { d.Peers = append(d.Peers, wgtypes.Peer{}) }, peers: 1, whole: true, seated: true},
	} {
		c, needed := difference(device(tt.change), want, private, tt.reseat)
		if needed != (tt.port || tt.peers > 0) || (c.ListenPort != nil) != tt.port || len(c.Peers) != tt.peers || c.ReplacePeers != tt.whole {
			t.Errorf("%s: %v %+v", name, needed, c)
		}
		if tt.peers > 0 && ((c.Peers[0].Endpoint != nil) != tt.seated || c.Peers[0].UpdateOnly == tt.whole) {
			t.Errorf("%s: peer %+v", name, c.Peers[0])
		}
	}
	c, needed := difference(device(func(d *wgtypes.Device) { d.FirewallMark, d.PrivateKey = 0, wgtypes.Key{} }), want, private, false)
	if !needed || *c.FirewallMark != 0x8601 || *c.PrivateKey != private || len(c.Peers) != 0 {
		t.Errorf("key and mark: %v %+v", needed, c)
	}
}

func FuzzConfigError(f *testing.F) {
	for _, s := range []string{"read: wguser: errno=-98", "errno=-0", "errno=98", "errno=-", "errno=-99999999999", "other"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		in := errors.New(text)
		err := configError(in)
		if errno, ok := err.(syscall.Errno); ok {
			if errno == 0 {
				t.Fatalf("%q became success", text)
			}
		} else if err != in {
			t.Fatalf("%q became %v", text, err)
		}
	})
}

func TestConfigError(t *testing.T) {
	if err := configError(errors.New("read: wguser: errno=-98")); !errors.Is(err, syscall.EADDRINUSE) {
		t.Error(err)
	}
	if configError(nil) != nil {
		t.Error("no error became one")
	}
}
