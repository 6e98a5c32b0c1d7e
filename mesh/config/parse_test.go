package config_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"guywire/mesh"
	"guywire/mesh/config"
)

var netipTypes = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

func endpoint(s string) config.Endpoint {
	at := netip.MustParseAddrPort(s)
	return config.Endpoint{Host: config.Host{Addr: at.Addr()}, Port: at.Port()}
}

func TestEmptyFilesAreTheDefaults(t *testing.T) {
	for _, src := range []string{"", "\n\n", "# only a comment\n", "---\n", "---\n# comment\n...\n", "uplinks:\nname:\ncontrol:\n", "{}"} {
		c, err := config.Parse(strings.NewReader(src))
		if err != nil {
			t.Errorf("%q: %v", src, err)
		}
		if d := cmp.Diff(config.Default(), c, netipTypes); d != "" {
			t.Errorf("%q: -default +got\n%s", src, d)
		}
	}
}

func TestDefault(t *testing.T) {
	want := config.Config{
		State: "/var/lib/guywire", Socket: "/run/guywire/meshd.sock",
		Dataplane: "auto", DataplaneSocket: "/run/guywire/dataplane.sock",
		Control: config.Control{Port: 8686, Also: []uint16{443}}, Ports: config.Ports{First: 51800, Last: 52799}, NAT: config.NAT{Spread: "lazy"}, LogLevel: "info",
	}
	if d := cmp.Diff(want, config.Default(), netipTypes); d != "" {
		t.Error(d)
	}
}

// The example parses as it is, and with every commented setting switched on.
func TestExample(t *testing.T) {
	c, err := config.Parse(strings.NewReader(config.Example()))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(config.Default(), c, netipTypes); d != "" {
		t.Errorf("the example changes a default: %s", d)
	}
	var on strings.Builder
	for line := range strings.Lines(config.Example()) {
		setting, ok := strings.CutPrefix(line, "# ")
		if ok && (strings.HasPrefix(setting, " ") || strings.Contains(strings.SplitN(setting, " ", 2)[0], ":")) {
			on.WriteString(setting)
		}
	}
	c, err = config.Parse(strings.NewReader(on.String()))
	if err != nil {
		t.Fatalf("%v in\n%s", err, on.String())
	}
	if len(c.Uplinks) != 2 || len(c.Prefixes) != 1 || c.Name == "" || len(c.Control.Advertise) != 1 {
		t.Errorf("settings are missing: %+v from\n%s", c, on.String())
	}
}

func TestReference(t *testing.T) {
	src, err := os.ReadFile("testdata/reference.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := config.Parse(bytes.NewReader(src))
	if err != nil {
		t.Fatal(err)
	}
	want := config.Config{
		Name: "berlin-1", Site: "berlin", State: "/srv/guywire", Socket: "/run/guywire/berlin.sock",
		Dataplane: config.Userspace, DataplaneSocket: "/run/guywire/berlin-dataplane.sock",
		Control: config.Control{
			Listen: netip.MustParseAddr("198.18.0.10"), Port: 8700, Also: []uint16{993, 8443},
			Advertise: []config.Endpoint{
				endpoint("203.0.113.7:8700"), endpoint("203.0.113.8:9000"), endpoint("[2001:db8::7]:9000"), endpoint("[2001:db8::8]:8700"),
				{Host: config.Host{Name: "gw.example.net"}, Port: 8700},
				{Host: config.Host{Name: "gw.example.net"}, Port: 9001},
			},
		},
		Ports: config.Ports{First: 40000, Last: 40999},
		Uplinks: []config.Uplink{
			{Name: "fibre", Interface: "eth0", ProbeBudget: 1_000_000, Endpoint: config.Host{Name: "fibre.example.net"}},
			{Name: "lte", Interface: "wwan0", Metered: true, Bias: mesh.Cost(20_000), ProbeBudget: 64_000},
			{Name: "eth9", Interface: "eth9", Disabled: true, ProbeBudget: 1_000_000},
		},
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("2001:db8:20::/48")},
		Tags:     []string{"hub", "office"}, MTU: 1380, NAT: config.NAT{PortMapping: true, Spread: config.SpreadEager}, LogLevel: config.Debug,
	}
	if d := cmp.Diff(want, got, netipTypes); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	// Each setting differs from its default, so none is missing from the file.
	def := config.Default()
	for name, same := range map[string]bool{
		"state": got.State == def.State, "socket": got.Socket == def.Socket, "dataplane": got.Dataplane == def.Dataplane,
		"dataplane_socket": got.DataplaneSocket == def.DataplaneSocket, "control": got.Control.Port == def.Control.Port,
		"control.also": slices.Equal(got.Control.Also, def.Control.Also),
		"ports":        got.Ports == def.Ports, "mtu": got.MTU == def.MTU, "nat": got.NAT == def.NAT, "log_level": got.LogLevel == def.LogLevel,
	} {
		if same {
			t.Errorf("the reference file does not change %s", name)
		}
	}
}

func TestFaults(t *testing.T) {
	tests := []struct {
		name, src, want string // want: the whole error
	}{
		{
			"unknown setting", "nmae: x", "line 1, column 1: unknown setting \"nmae\" in the file; there are: name, site, state, socket, " +
				"dataplane, dataplane_socket, control, ports, uplinks, prefixes, tags, mtu, nat, log_level\n    nmae: x\n    ^",
		},
		{
			"position in a list", "prefixes:\n  - 10.1.0.0/16\n  - 10.1.2.0/24\n",
			"line 3, column 5: prefixes: 10.1.2.0/24 overlaps 10.1.0.0/16: list each network once\n      - 10.1.2.0/24\n        ^",
		},
		{
			"two faults", "mtu: -1\nname: Berlin",
			"line 1, column 6: mtu \"-1\" is not a number from 1280 to 65535\n    mtu: -1\n         ^\n" +
				"line 2, column 7: name: name \"Berlin\" may hold only a-z, 0-9 and inner hyphens\n    name: Berlin\n          ^",
		},
		{
			"block mapping", "uplinks:\n  - name: a\n    metered: true\n",
			"line 2, column 5: an uplink needs its interface, such as \"interface: eth0\"\n      - name: a\n        ^",
		},
		{
			"long line", "prefixes: [" + strings.Repeat("10.1.0.0/16, ", 1) + strings.Repeat(" ", 100) + "10.1.0.0/17]" + strings.Repeat(" ", 100),
			"line 1, column 125: prefixes: 10.1.0.0/17 overlaps 10.1.0.0/16: list each network once\n    " +
				strings.Repeat(" ", 45) + "10.1.0.0/17]" + strings.Repeat(" ", 33) + "\n    " + strings.Repeat(" ", 45) + "^",
		},
		{"same sockets", "socket: /run/a\ndataplane_socket: /run/a", "socket and dataplane_socket are the same file: give each its own"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Parse(strings.NewReader(tt.src))
			if err == nil || err.Error() != tt.want {
				t.Errorf("got\n%v\nwant\n%s", err, tt.want)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	tests := []struct{ src, want string }{
		{"name: [a]", "single value"},
		{"name: a\nname: b", `"name"`},
		{"name: -x", "inner hyphens"},
		{"name: " + strings.Repeat("a", 33), "1 to 32"},
		{"[a, b]", "must be settings"},
		{"just words", "must be settings"},
		{"name: a\n---\nname: b", "second document"},
		{"name: &x a", "anchors"},
		{"state: relative/dir", "absolute path"},
		{"state: /", "absolute path"},
		{"state: /a/../b", "absolute path"},
		{"state: \"/a\\nb\"", "absolute path"},
		{"socket: /" + strings.Repeat("s", 107), "socket's may have"},
		{"dataplane: magic", "one of auto, kernel, userspace"},
		{"log_level: trace", "one of debug"},
		{"control: 8686", "must be settings"},
		{"control: {listen: 8686}", "not :port"},
		{"control: {listen: \":0\"}", "not :port"},
		{"control: {listen: \":65536\"}", "not :port"},
		{"control: {listen: \":8688\"}", "gossip port"},
		{"control: {listen: \"0.0.0.0:8686\"}", "\":8686\""},
		{"control: {listen: \"[ff02::1]:8686\"}", "multicast"},
		{"control: {listen: \"example.net:8686\"}", "not :port"},
		{"control: {also: 443}", "must be a list"},
		{"control: {also: [0]}", "from 1 to 65535"},
		{"control: {also: [\":443\"]}", "from 1 to 65535"},
		{"control: {also: [8688]}", "gossip port"},
		{"control: {also: [1, 2, 3, 4, 5]}", "4 entries"},
		{"control: {advertise: [example]}", "full DNS name"},
		{"control: {advertise: [\"-a.example.net\"]}", "full DNS name"},
		{"control: {advertise: [\"a b.example.net:80\"]}", "full DNS name"},
		{"control: {advertise: [\"a..net:80\"]}", "full DNS name"},
		{"control: {advertise: [203.0.113.300]}", "full DNS name"},
		{"control: {advertise: [\"2001:db8::1:zz\"]}", "[2001:db8::1]:8686"},
		{"control: {advertise: [\"gw.example.net:0\"]}", "port of"},
		{"control: {advertise: [\"203.0.113.1:0\"]}", "port of"},
		{"uplinks: [{interface: eth0, endpoint: fibre}]", "full DNS name"},
		{"uplinks: [{interface: eth0, endpoint: \"gw.example.net:80\"}]", "full DNS name"},
		{"uplinks: [{interface: eth0, endpoint: 127.0.0.1}]", "cannot be reached"},
		{"nat: {port_mapping: yes}", "off, on"},
		{"nat: {spread: on}", "lazy, off, eager"},
		{"nat: {upnp: on}", "unknown setting"},
		{"control: {advertise: [127.0.0.1]}", "cannot be reached"},
		{"control: {advertise: [\"fe80::1\"]}", "cannot be reached"},
		{"control: {advertise: 203.0.113.1}", "must be a list"},
		{"ports: {first: 0}", "from 1024 to 65535"},
		{"ports: {first: 70000}", "from 1024 to 65535"},
		{"ports: {first: -5}", "from 1024 to 65535"},
		{"ports: {first: 99999999999999999999999}", "from 1024 to 65535"},
		{"ports: {first: 0x5000}", "from 1024 to 65535"},
		{"ports: {first: 1e4}", "from 1024 to 65535"},
		{"ports: {first: 52000, last: 51000}", "below"},
		{"ports: {first: 60000}", "below"},
		{"ports: {first: 50000, last: 50001}", "too few"},
		{"ports: {first: 8000, last: 9000}", "8686 to 8689"},
		{"uplinks: eth0", "must be a list"},
		{"uplinks: [eth0]", "must be settings"},
		{"uplinks: [{name: a}]", "needs its interface"},
		{"uplinks: [{interface: eth0}, {interface: eth0, name: b}]", "listed twice"},
		{"uplinks: [{interface: eth0, name: a}, {interface: eth1, name: a}]", "two uplinks"},
		{"uplinks: [{interface: eth0.7}]", "give it a name"},
		{"uplinks: [{interface: \"a/b\"}]", "name of an interface"},
		{"uplinks: [{interface: sixteen-bytes-xx}]", "name of an interface"},
		{"uplinks: [{interface: gw-1}]", "mesh itself"},
		{"uplinks: [{interface: eth0, metered: maybe}]", "true or false"},
		{"uplinks: [{interface: eth0, metered: 1}]", "true or false"},
		{"uplinks: [{interface: eth0, bias: 5}]", "not a delay"},
		{"uplinks: [{interface: eth0, bias: -5ms}]", "not a delay"},
		{"uplinks: [{interface: eth0, bias: 2h}]", "not a delay"},
		{"uplinks: [{interface: eth0, probe_budget: 0}]", "not a rate from 1kbit to 1Gbit"},
		{"uplinks: [{interface: eth0, probe_budget: -1}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: 0kbit}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: 999}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: 1000000001}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: 2Gbit}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: 18446744073709551615}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: 18446744073709551Mbit}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: 99999999999999999999kbit}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: 1mbit}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: 1.5Mbit}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: 016kbit}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: 16 kbit}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: kbit}]", "not a rate"},
		{"uplinks: [{interface: eth0, probe_budget: [1]}]", "single value"},
		{"uplinks: [" + strings.Repeat("{interface: e},", 31) + "{interface: f}]", "31 entries"},
		{"prefixes: [10.0.0.1/8]", "did you mean 10.0.0.0/8"},
		{"prefixes: [10.0.0.1]", "write 10.0.0.1/32"},
		{"prefixes: [\"2001:db8::1\"]", "write 2001:db8::1/128"},
		{"prefixes: [0.0.0.0/0]", "default route"},
		{"prefixes: [\"::/0\"]", "default route"},
		{"prefixes: [127.0.0.0/8]", "cannot be routed"},
		{"prefixes: [169.254.0.0/16]", "cannot be routed"},
		{"prefixes: [224.0.0.0/4]", "cannot be routed"},
		{"prefixes: [\"::ffff:10.0.0.0/104\"]", "IPv6 form"},
		{"prefixes: [10.0.0.0/33]", "not a network"},
		{"prefixes: [10.0.0.0/8, 10.0.0.0/8]", "overlaps"},
		{"tags: [a b]", "may hold only"},
		{"tags: [[a]]", "single value"},
		{"mtu: 1279", "from 1280 to 65535"},
		{"mtu: 65536", "from 1280 to 65535"},
		{"mtu: 1_400", "from 1280 to 65535"},
		{"mtu: 01400", "from 1280 to 65535"},
		{"a: [", "not YAML"},
		{"a: 'b", "not YAML"},
		{"\ta: b", "not YAML"},
	}
	for _, tt := range tests {
		_, err := config.Parse(strings.NewReader(tt.src))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want an error with %q", tt.src, err, tt.want)
		}
	}
}

func TestAccepted(t *testing.T) {
	for _, src := range []string{
		"name: 86", "mtu: 0", "mtu: 1280", "control: {listen: \":1\"}", "control: {listen: \"[2001:db8::1]:99\"}",
		"uplinks: [{interface: eth0.7, name: vlan7}]", "ports: {first: 1024, last: 1039}", "prefixes: [10.0.0.1/32]",
		"uplinks: [{interface: e, bias: 0s}]", "tags: [a, a]", "name: \"a\"\r\nmtu: 1400\r\n", "control:\n  listen: :8686\n",
	} {
		if _, err := config.Parse(strings.NewReader(src)); err != nil {
			t.Errorf("%q: %v", src, err)
		}
	}
}

func TestAlso(t *testing.T) {
	for settings, want := range map[string][]uint16{
		"":                              {443},
		"also:":                         {443},
		"also: []":                      nil,
		"also: [8443, 443, 8443]":       {443, 8443},
		"also: [443, 8686]":             {443},
		"also: [1], listen: \":443\"":   {1},
		"listen: \":443\"":              nil,
		"listen: \":443\", also: [443]": nil,
	} {
		c, err := config.Parse(strings.NewReader("control: {" + settings + "}"))
		if err != nil {
			t.Errorf("%s: %v", settings, err)
		}
		if !slices.Equal(c.Control.Also, want) {
			t.Errorf("%s: %v, want %v", settings, c.Control.Also, want)
		}
	}
}

func TestProbeBudget(t *testing.T) {
	for settings, want := range map[string]int{
		"":                                      config.DefaultProbeBudget,
		"metered: true":                         config.MeteredProbeBudget,
		"metered: true, probe_budget: 1Mbit":    1_000_000,
		"probe_budget: 1kbit":                   1000,
		"probe_budget: 1000":                    1000,
		"probe_budget: 1Gbit":                   1_000_000_000,
		"probe_budget: 1000000000":              1_000_000_000,
		"probe_budget: 12345":                   12345,
		"probe_budget: \"64kbit\", bias: 1ms":   64_000,
		"probe_budget: , metered: true":         config.MeteredProbeBudget,
		"disabled: true, probe_budget: 999kbit": 999_000,
	} {
		c, err := config.Parse(strings.NewReader("uplinks: [{interface: wwan0, name: lte, " + settings + "}]"))
		if err != nil {
			t.Errorf("%s: %v", settings, err)
			continue
		}
		if got := c.Uplink("wwan0"); got.ProbeBudget != want || got.Name != "lte" {
			t.Errorf("%s: %+v, want %d", settings, got, want)
		}
		if got := c.Uplink("eth0"); got != (config.Uplink{Name: "eth0", Interface: "eth0", ProbeBudget: config.DefaultProbeBudget}) {
			t.Errorf("an interface that is not listed has %+v", got)
		}
	}
}

func TestManyFaultsAreCut(t *testing.T) {
	_, err := config.Parse(strings.NewReader("prefixes: [" + strings.Repeat("x,", 25) + "]"))
	if err == nil || !strings.HasSuffix(err.Error(), "and 15 more") {
		t.Errorf("got %v", err)
	}
}

func TestReaderErrors(t *testing.T) {
	broken := errors.New("broken disk")
	if _, err := config.Parse(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := config.Parse(io.LimitReader(zeros{}, config.MaxBytes+1)); !errors.Is(err, config.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '#'
	}
	return len(p), nil
}

// Deep nesting and alias bombs must neither crash nor take long.
func TestHostileFiles(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("a: &a [x,x,x,x,x,x,x,x,x]\n")
	for c := 'b'; c <= 'z'; c++ {
		bomb.WriteString(string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+string(c-1)+",", 9) + "]\n")
	}
	for _, src := range []string{
		strings.Repeat("[", 10000), strings.Repeat("{a: ", 5000), strings.Repeat("- ", 10000), bomb.String(),
		"prefixes: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), strings.Repeat("? ", 5000),
	} {
		if _, err := config.Parse(strings.NewReader(src)); err == nil {
			t.Errorf("%.20q… was accepted", src)
		}
	}
}

func FuzzParse(f *testing.F) {
	reference, err := os.ReadFile("testdata/reference.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(reference)
	for _, s := range []string{
		"", config.Example(), "name: a\n---\n", "ports: {first: 1, last: 99999}", "uplinks: [{interface: eth0, bias: 1e9s}]",
		"prefixes: [10.0.0.0/8, ::/0]", "control: {advertise: [\"[::1]:1\", \"a.b:9\", \"A.B.:9\", \"1::2:3\"]}", "uplinks: [{interface: a, endpoint: x.y}]", "a: &a *a", "? x\n: y", "<<: {name: b}", "name: !!str x", "mtu: |\n  1400\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		c, err := config.Parse(bytes.NewReader(src))
		if err != nil {
			if _, ok := errors.AsType[*config.Fault](err); !ok && !errors.Is(err, config.ErrTooLarge) {
				t.Fatalf("an error without a fault: %v", err)
			}
			return
		}
		// What Parse accepts is usable without another look.
		if int(c.Ports.Last)-int(c.Ports.First)+1 < config.MinPorts || c.Control.Port == 0 || c.State == "" || c.Socket == c.DataplaneSocket {
			t.Fatalf("accepted %+v", c)
		}
		if c.MTU != 0 && (c.MTU < config.MinMTU || c.MTU > config.MaxMTU) {
			t.Fatalf("accepted mtu %d", c.MTU)
		}
		for i, p := range c.Prefixes {
			if !p.IsValid() || p != p.Masked() || p.Bits() == 0 || i > 0 && p.Overlaps(c.Prefixes[i-1]) {
				t.Fatalf("accepted %v", c.Prefixes)
			}
		}
		for _, e := range c.Control.Advertise {
			if e.Port == 0 || e.Addr.IsValid() == (e.Name != "") || e.Name != strings.ToLower(e.Name) || strings.HasSuffix(e.Name, ".") {
				t.Fatalf("accepted %+v", e)
			}
		}
		for _, u := range c.Uplinks {
			if u.Endpoint.Addr.IsValid() && u.Endpoint.Name != "" {
				t.Fatalf("accepted %+v", u.Endpoint)
			}
			if u.Interface == "" || mesh.CheckName(u.Name) != nil || u.Bias >= mesh.Infinite ||
				u.ProbeBudget < config.MinProbeBudget || u.ProbeBudget > config.MaxProbeBudget {
				t.Fatalf("accepted %+v", u)
			}
		}
	})
}
