package lab

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	n := parse(t, `
name: all
seed: 7
nodes:
  r:
    kind: router
    subnet: 198.18.9.0/24
  box: {kind: nat, nat: eim-random-port, ports: 40000-40003, input_drop: false, mapping_timeout: 5s, hairpin: true, uplinks: [{to: r}]}
  s:
    kind: site
    lan: 10.1.0.0/24
    meshd: {dataplane: userspace, ports: [1, 2]}
    uplinks:
      - {to: box, name: dsl, delay: 5ms, jitter: 1ms, loss: 2%, reorder: 0.01, duplicate: "3%", rate: 1.5mbit, mtu: 1400, black_hole: 1300, wire: true}
  q: {kind: router}
links:
  - {ends: [r, q], a_addr: 203.0.113.1/30, b_addr: 203.0.113.2/30}
`)
	if n.Name != "all" || n.Seed != 7 || len(n.Nodes) != 4 {
		t.Errorf("got %+v", n)
	}
	want := Properties{
		Delay: 5 * time.Millisecond, Jitter: time.Millisecond, Loss: 0.02, Reorder: 0.01, Duplicate: 0.03,
		Rate: 1_500_000, MTU: 1400, BlackHole: 1300, Wire: true,
	}
	u := n.Nodes["s"].Uplinks[0]
	if u.Properties != want || u.Name != "dsl" {
		t.Errorf("uplink is %+v", u)
	}
	box := n.Nodes["box"].Translation
	if box.Mapping != EIMRandomPort || box.inputDrop() || box.MappingTimeout != 5*time.Second || !box.Hairpin {
		t.Errorf("nat is %+v", box)
	}
	if lo, hi, err := box.portRange(); lo != 40000 || hi != 40003 || err != nil {
		t.Errorf("ports are %d to %d, %v", lo, hi, err)
	}
	if got := n.Links[0].BAddr.String(); got != "203.0.113.2/30" {
		t.Errorf("link address is %s", got)
	}
	if c := n.clone(); !reflect.DeepEqual(c, n) {
		t.Errorf("the clone is %+v, want %+v", c, n)
	}
	if s := want.String(); s != "delay 5ms, jitter 1ms, loss 2%, reorder 1%, duplicate 3%, rate 1.5mbit, mtu 1400, black hole above 1300" {
		t.Errorf("properties read %q", s)
	}
}

func TestBuiltIn(t *testing.T) {
	for _, name := range BuiltIn() {
		n, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if n.Name != name {
			t.Errorf("the network in %s.yaml is called %s", name, n.Name)
		}
	}
	if _, err := Load("no-such-network"); err == nil || !strings.Contains(err.Error(), "demo") {
		t.Errorf("loading nothing: %v, want the built-in names", err)
	}
}

func TestParseErrors(t *testing.T) {
	// The bad part is on the line with the word BAD in a comment.
	const router = "nodes:\n  r: {kind: router}\n"
	for name, tt := range map[string]struct{ text, says string }{
		"empty":             {"", "no nodes"},
		"not YAML":          {"nodes: [", ""},
		"not a mapping":     {"- a #BAD\n", ""},
		"unknown key":       {"nodes:\n  r: {kind: router}\ncolour: red #BAD\n", "colour"},
		"unknown in node":   {"nodes:\n  r:\n    kind: router\n    colour: red #BAD\n", "colour"},
		"unknown in uplink": {router + "  s:\n    kind: site\n    uplinks:\n      - to: r\n        colour: red #BAD\n", "colour"},
		"double node":       {router + "  r: {kind: router} #BAD\n", ""},
		"two documents":     {router + "---\nname: x #BAD\n", "one YAML document"},
		"bad name":          {"name: Wrong! #BAD\n" + router, "not a name"},
		"bad node name":     {"nodes:\n  R_1: {kind: router} #BAD\n", "not a node name"},
		"long site name":    {router + "  long-site-na: {kind: site} #BAD\n", "too long"},
		"no kind":           {"nodes:\n  r: #BAD\n    subnet: 198.18.1.0/24\n", "no kind"},
		"bad kind":          {"nodes:\n  r:\n    kind: toaster #BAD\n", "toaster"},
		"empty node":        {"nodes:\n  r: #BAD\n", "empty"},
		"uplink nowhere":    {router + "  s:\n    kind: site\n    uplinks:\n      - delay: 1ms #BAD\n", "leads nowhere"},
		"uplink to nobody":  {router + "  s:\n    kind: site\n    uplinks:\n      - {to: r}\n      - to: nobody #BAD\n", "nobody"},
		"uplink to a site":  {"nodes:\n  a: {kind: site}\n  s:\n    kind: site\n    uplinks:\n      - to: a #BAD\n", "leads to a router or a nat"},
		"uplink of router":  {"nodes:\n  q: {kind: router}\n  r:\n    kind: router\n    uplinks: #BAD\n      - to: q\n", "router has no uplinks"},
		"interface twice":   {router + "  s:\n    kind: site\n    uplinks:\n      - {to: r, name: x}\n      - to: r\n        name: x #BAD\n", "taken"},
		"interface name":    {router + "  s:\n    kind: site\n    uplinks:\n      - to: r\n        name: a/b #BAD\n", "not an interface name"},
		"lan of a router":   {"nodes:\n  r:\n    kind: router\n    lan: 10.0.0.0/24 #BAD\n", "router has no lan"},
		"lan host bits":     {"nodes:\n  s:\n    kind: site\n    lan: 10.0.0.1/24 #BAD\n", "10.0.0.0/24"},
		"lan family":        {"nodes:\n  s:\n    kind: site\n    lan: fd00::/64 #BAD\n", "family"},
		"lan too small":     {"nodes:\n  s:\n    kind: site\n    lan: 10.0.0.0/30 #BAD\n", "wrong length"},
		"not a prefix":      {"nodes:\n  s:\n    kind: site\n    lan: ten #BAD\n", "ten"},
		"host name taken":   {"nodes:\n  s: {kind: site}\n  s-host: {kind: host} #BAD\n", "LAN host"},
		"nat of a site":     {"nodes:\n  s:\n    kind: site\n    nat: eim #BAD\n", "site has no nat"},
		"bad nat":           {router + "  n:\n    kind: nat\n    uplinks: [{to: r}]\n    nat: conical #BAD\n", "conical"},
		"nat without wan":   {"nodes:\n  n: {kind: nat} #BAD\n", "exactly one uplink"},
		"nat behind itself": {"nodes:\n  n:\n    kind: nat\n    uplinks: [{to: m}]\n  m:\n    kind: nat\n    uplinks: [{to: n}] #BAD\n", "behind itself"},
		"bad ports":         {router + "  n:\n    kind: nat\n    uplinks: [{to: r}]\n    nat: eim-random-port\n    ports: 9-1 #BAD\n", "not a range"},
		"ports of eim":      {router + "  n:\n    kind: nat\n    uplinks: [{to: r}]\n    ports: 1-9 #BAD\n", "eim-random-port"},
		"split second":      {router + "  n:\n    kind: nat\n    uplinks: [{to: r}]\n    mapping_timeout: 1500ms #BAD\n", "whole seconds"},
		"symmetric hairpin": {router + "  n:\n    kind: nat\n    uplinks: [{to: r}]\n    nat: symmetric\n    hairpin: true #BAD\n", "hairpin"},
		"udp twice":         {router + "  n:\n    kind: nat\n    uplinks: [{to: r}]\n    block_udp: true\n    udp_ports: [53] #BAD\n", "exclude"},
		"tcp of a site":     {"nodes:\n  s:\n    kind: site\n    tcp_ports: [443] #BAD\n", "site has no tcp_ports"},
		"nat without IPv4":  {router + "  n:\n    kind: nat\n    uplinks:\n      - to: r #BAD\n        no_ipv4: true\n", "nat: none"},
		"no family":         {router + "  s:\n    kind: site\n    uplinks:\n      - to: r #BAD\n        no_ipv4: true\n        no_ipv6: true\n", "neither"},
		"no family behind":  {router + "  n: {kind: nat, uplinks: [{to: r}]}\n  s:\n    kind: site\n    uplinks:\n      - to: n #BAD\n        no_ipv4: true\n", "ipv6: true"},
		"negative delay":    {router + "  s:\n    kind: site\n    uplinks:\n      - to: r\n        delay: -1ms #BAD\n", "not a time"},
		"delay of a number": {router + "  s:\n    kind: site\n    uplinks:\n      - to: r\n        delay: fast #BAD\n", "not a time"},
		"loss of 150%":      {router + "  s:\n    kind: site\n    uplinks:\n      - to: r\n        loss: 150% #BAD\n", "not a share"},
		"rate":              {router + "  s:\n    kind: site\n    uplinks:\n      - to: r\n        rate: 10 furlongs #BAD\n", "not a rate"},
		"mtu":               {router + "  s:\n    kind: site\n    uplinks:\n      - to: r\n        mtu: 576 #BAD\n", "not an MTU"},
		"black hole":        {router + "  s:\n    kind: site\n    uplinks:\n      - to: r\n        black_hole: 9 #BAD\n", "not a packet size"},
		"address family":    {router + "  s:\n    kind: site\n    uplinks:\n      - to: r\n        address: 2001:db8::2/64 #BAD\n", "family"},
		"address no room":   {router + "  s:\n    kind: site\n    uplinks:\n      - to: r\n        address: 203.0.113.1/32 #BAD\n", "no room"},
		"network address":   {router + "  s:\n    kind: site\n    uplinks:\n      - to: r\n        address: 203.0.113.0/30 #BAD\n", "network itself"},
		"same address":      {router + "  a: {kind: host, uplinks: [{to: r, address: 203.0.113.2/30}]}\n  b: {kind: host, uplinks: [{to: r, address: 203.0.113.2/30}]} #BAD\n", "overlap"},
		"foreign address":   {router + "  q: {kind: router, subnet: 203.0.113.0/24}\n  a: {kind: host, uplinks: [{to: r, address: 203.0.113.2/30}]} #BAD\n", "in the subnet of q"},
		"same subnet":       {"nodes:\n  q: {kind: router, subnet: 203.0.113.0/24}\n  r: {kind: router, subnet: 203.0.113.0/24} #BAD\n", "overlaps"},
		"subnet used up":    {"nodes:\n  r: {kind: router, subnet: 203.0.113.0/28}\n  s:\n    kind: site\n    uplinks:\n      - {to: r}\n      - {to: r}\n      - {to: r}\n      - {to: r}\n      - to: r #BAD\n", "used up"},
		"lan is the uplink": {"nodes:\n  r: {kind: router, subnet: 10.0.0.0/24}\n  s: {kind: site, lan: 10.0.0.0/24, uplinks: [{to: r}]}\n", "overlap"},
		"half a link":       {router + "links:\n  - ends: [r] #BAD\n", "two ends"},
		"link to itself":    {router + "links:\n  - ends: [r, r] #BAD\n", "two ends"},
		"link to nobody":    {router + "links:\n  - ends: [r, nobody] #BAD\n", "nobody"},
		"link of a nat":     {router + "  n: {kind: nat, uplinks: [{to: r}]}\nlinks:\n  - ends: [r, n] #BAD\n", "use an uplink"},
		"one link address":  {router + "  q: {kind: router}\nlinks:\n  - ends: [r, q] #BAD\n    a_addr: 203.0.113.1/30\n", "both be given"},
		"link name":         {router + "  q: {kind: router}\nlinks:\n  - ends: [r, q]\n    name: Über #BAD\n", "not a name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(strings.NewReader(tt.text))
			fe, ok := errors.AsType[*FileError](err)
			if !ok {
				t.Fatalf("got %v, want a FileError", err)
			}
			if !strings.Contains(fe.Error(), tt.says) || strings.Contains(fe.Error(), "\n") {
				t.Errorf("it says %q, want one line with %q", fe, tt.says)
			}
			if before, _, found := strings.Cut(tt.text, "#BAD"); found && fe.Line != strings.Count(before, "\n")+1 {
				t.Errorf("it names line %d, want %d: %s", fe.Line, strings.Count(before, "\n")+1, fe)
			}
		})
	}
	if _, err := Parse(strings.NewReader(strings.Repeat("#", maxFileBytes+1))); err == nil {
		t.Error("an endless file was accepted")
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range BuiltIn() {
		data, err := networks.ReadFile("networks/" + name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	f.Add(square)
	f.Add("links: ! ") // panics in the YAML library
	f.Add("nodes: {r: {kind: router, subnet: 0.0.0.0/8}, a: {kind: host, uplinks: [{to: r, address: 255.255.255.254/30}]}}")
	f.Add("nodes: {s: {kind: site, lan6: 'ffff::/16', meshd: {a: [1, {b: ~}]}}}")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := Parse(strings.NewReader(text))
		if err != nil {
			if _, ok := errors.AsType[*FileError](err); !ok {
				t.Errorf("%v is not a FileError", err)
			}
			return
		}
		// What was accepted survives the way to the supervisor, and lays out the same there.
		one, err := newLayout(n)
		if err != nil {
			t.Fatalf("valid, and then: %v", err)
		}
		two, err := newLayout(n.clone())
		if err != nil {
			t.Fatalf("valid, but not its clone: %v", err)
		}
		if one.String() != two.String() {
			t.Errorf("two layouts of one network:\n%s\n%s", one, two)
		}
		for _, l := range one.links {
			for _, e := range l.ends {
				if len(e.iface) > 15 || e.iface == "" {
					t.Errorf("%s is not an interface name", e.iface)
				}
			}
		}
	})
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(`{"op":"exec","node":"fra","argv":["sh"]}`))
	f.Add([]byte(`{"op":"readdress","link":"a:b","addresses":["10.0.0.1/24"]}`))
	f.Add([]byte(`{"op":"kill","signal":65}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRequest(data)
		if err == nil && (r.Signal < 0 || r.Signal > 64 || r.Duration < 0 || r.Op == opExec && len(r.Argv) == 0) {
			t.Errorf("accepted %+v", r)
		}
	})
}
