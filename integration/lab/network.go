package lab

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// Network is a whole lab as its file describes it. The zero value of each field means its documented default.
type Network struct {
	Name  string           `yaml:"name" json:"name,omitempty"` // names the lab; default "lab"
	Seed  uint64           `yaml:"seed" json:"seed,omitempty"` // of all randomness on wires
	Nodes map[string]*Node `yaml:"nodes" json:"nodes,omitempty"`
	Links []*Link          `yaml:"links" json:"links,omitempty"` // between routers, or private lines between sites
}

// Kind says what a node is.
type Kind string

// The kinds of node.
const (
	Site   Kind = "site"   // runs meshd; has uplinks and a LAN
	Router Kind = "router" // forwards; belongs to the internet
	NAT    Kind = "nat"    // a CPE, carrier NAT or firewall: one uplink, anything behind it
	Host   Kind = "host"   // a machine without meshd: a server on the internet, or something behind a NAT
)

// Node is one machine of the lab: a network, mount and UTS namespace.
type Node struct {
	Kind Kind `yaml:"kind" json:"kind"`

	// Uplinks lead towards the internet; each gives a default route, in order of preference. A NAT has exactly one.
	Uplinks []*Uplink `yaml:"uplinks" json:"uplinks,omitempty"`

	// Subnet and Subnet6 are what a router or NAT gives addresses from to the machines below it, a /30 and a /64 each.
	// Default: the next free 198.18.N.0/24 and 2001:db8:N::/48 for routers, 10.200.0.0/16 by /24 behind NATs.
	Subnet  netip.Prefix `yaml:"subnet" json:"subnet,omitzero"`
	Subnet6 netip.Prefix `yaml:"subnet6" json:"subnet6,omitzero"`

	// LAN and LAN6 are the networks behind a site: the site has their first address, the host NAME-host the tenth.
	LAN  netip.Prefix `yaml:"lan" json:"lan,omitzero"`
	LAN6 netip.Prefix `yaml:"lan6" json:"lan6,omitzero"`

	Meshd Settings `yaml:"meshd" json:"meshd,omitempty"` // further settings for a site's meshd file

	Translation `yaml:",inline"`
}

// Settings are passed on to a program's own file as they are.
type Settings map[string]any

// MarshalJSON writes the settings as YAML in a string: JSON alone would turn their whole numbers into fractions.
func (s Settings) MarshalJSON() ([]byte, error) {
	text, err := yaml.Marshal(map[string]any(s))
	if err != nil {
		return nil, err
	}
	return json.Marshal(string(text))
}

// UnmarshalJSON reads what MarshalJSON has written.
func (s *Settings) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	return yaml.Unmarshal([]byte(text), (*map[string]any)(s))
}

// Mapping is how a NAT chooses the outer port, and who may answer.
type Mapping string

// The kinds of NAT. RFC 4787 words: mapping is endpoint-independent (EIM) or per destination (APDM); filtering is
// endpoint-independent (EIF), by address (ADF) or by address and port (APDF).
const (
	EIM           Mapping = "eim"             // EIM, APDF, port kept: the ordinary home router
	EIMRandomPort Mapping = "eim-random-port" // EIM, APDF, port changed
	ADF           Mapping = "adf"             // EIM, ADF, port kept: address-restricted
	FullCone      Mapping = "full-cone"       // EIM, EIF, port kept
	Symmetric     Mapping = "symmetric"       // APDM, APDF, a random port per destination
	NoNAT         Mapping = "none"            // a stateful firewall; the addresses behind it are public
)

// Translation is what a NAT box does. It is meaningful on nodes of kind [NAT] only.
type Translation struct {
	Mapping        Mapping       `yaml:"nat" json:"nat,omitempty"`                         // default eim
	InputDrop      *bool         `yaml:"input_drop" json:"input_drop,omitempty"`           // default true: unasked packets to the box itself leave no conntrack entry
	MappingTimeout time.Duration `yaml:"mapping_timeout" json:"mapping_timeout,omitempty"` // of UDP, whole seconds; default the kernel's 30 s, and 120 s once both ways were seen
	Ports          string        `yaml:"ports" json:"ports,omitempty"`                     // outer ports of eim-random-port; default 30000-40000
	Hairpin        bool          `yaml:"hairpin" json:"hairpin,omitempty"`                 // inside hosts reach each other by their outer addresses
	BlockUDP       bool          `yaml:"block_udp" json:"block_udp,omitempty"`             // no UDP through the box
	UDPPorts       []uint16      `yaml:"udp_ports" json:"udp_ports,omitempty"`             // only these destination ports pass outwards
	TCPPorts       []uint16      `yaml:"tcp_ports" json:"tcp_ports,omitempty"`             // of TCP, likewise
	IPv6           bool          `yaml:"ipv6" json:"ipv6,omitempty"`                       // public IPv6 behind the box, through a stateful firewall
}

// Uplink joins a node to a router or NAT.
type Uplink struct {
	To         string       `yaml:"to" json:"to"`
	Name       string       `yaml:"name" json:"name,omitempty"`        // the interface; default isp1, isp2… in sites, wan in NATs, eth0… in hosts
	Address    netip.Prefix `yaml:"address" json:"address,omitzero"`   // default: the next /30 of the subnet of To
	Address6   netip.Prefix `yaml:"address6" json:"address6,omitzero"` // default: the next /64 of its subnet6
	NoIPv4     bool         `yaml:"no_ipv4" json:"no_ipv4,omitempty"`  // an uplink without IPv4; a firewall with one has none for those behind it either
	NoIPv6     bool         `yaml:"no_ipv6" json:"no_ipv6,omitempty"`  // an uplink without IPv6
	Properties `yaml:",inline"`
}

// Link joins two nodes that are not above each other: two routers, or two sites by a private line (no route leads there).
type Link struct {
	Ends       []string     `yaml:"ends" json:"ends"`
	Name       string       `yaml:"name" json:"name,omitempty"` // default "A-B"
	AAddr      netip.Prefix `yaml:"a_addr" json:"a_addr,omitzero"`
	AAddr6     netip.Prefix `yaml:"a_addr6" json:"a_addr6,omitzero"`
	BAddr      netip.Prefix `yaml:"b_addr" json:"b_addr,omitzero"`
	BAddr6     netip.Prefix `yaml:"b_addr6" json:"b_addr6,omitzero"`
	Properties `yaml:",inline"`
}

// Properties are what a link does to packets, in each direction alike. All but MTU make it a wire.
type Properties struct {
	Delay     time.Duration `yaml:"delay" json:"delay,omitempty"`         // one way
	Jitter    time.Duration `yaml:"jitter" json:"jitter,omitempty"`       // added to Delay, random per packet
	Loss      Ratio         `yaml:"loss" json:"loss,omitempty"`           // share of packets
	Reorder   Ratio         `yaml:"reorder" json:"reorder,omitempty"`     // share of packets sent ahead of others
	Duplicate Ratio         `yaml:"duplicate" json:"duplicate,omitempty"` // share of packets sent twice
	Rate      Rate          `yaml:"rate" json:"rate,omitempty"`
	MTU       int           `yaml:"mtu" json:"mtu,omitempty"`               // of both interfaces; default 1500
	BlackHole int           `yaml:"black_hole" json:"black_hole,omitempty"` // larger IP packets vanish without an ICMP error; 0 = none
	Wire      bool          `yaml:"wire" json:"wire,omitempty"`             // make it a wire, to impair later
}

// NeedsWire reports whether a veth pair cannot do this.
func (p Properties) NeedsWire() bool {
	p.MTU = 0
	return p != Properties{}
}

func (p Properties) String() string {
	var s []string
	add := func(set bool, format string, v any) {
		if set {
			s = append(s, fmt.Sprintf(format, v))
		}
	}
	add(p.Delay > 0, "delay %v", p.Delay)
	add(p.Jitter > 0, "jitter %v", p.Jitter)
	add(p.Loss > 0, "loss %v", p.Loss)
	add(p.Reorder > 0, "reorder %v", p.Reorder)
	add(p.Duplicate > 0, "duplicate %v", p.Duplicate)
	add(p.Rate > 0, "rate %v", p.Rate)
	add(p.MTU > 0, "mtu %d", p.MTU)
	add(p.BlackHole > 0, "black hole above %d", p.BlackHole)
	return strings.Join(s, ", ")
}

// Ratio is a share between 0 and 1, written 0.02 or 2%.
type Ratio float64

// ParseRatio reads "0.02" or "2%".
func ParseRatio(s string) (Ratio, error) {
	digits, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if percent {
		v /= 100
	}
	if err != nil || !(v >= 0 && v <= 1) {
		return 0, fmt.Errorf("%q is not a share of packets; write one like 2%% or 0.02", s)
	}
	return Ratio(v), nil
}

func (r Ratio) String() string { return strconv.FormatFloat(float64(r)*100, 'g', 4, 64) + "%" }

// Rate is a speed in bit/s, written like 100mbit; 0 is unlimited.
type Rate uint64

var rateUnits = []struct {
	suffix string
	factor float64
}{{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}}

// ParseRate reads "100mbit", "1.5gbit", "64kbit" or "9600bit".
func ParseRate(s string) (Rate, error) {
	for _, u := range rateUnits {
		digits, ok := strings.CutSuffix(strings.ToLower(strings.TrimSpace(s)), u.suffix)
		if !ok {
			continue
		}
		if v, err := strconv.ParseFloat(strings.TrimSpace(digits), 64); err == nil && v*u.factor >= 1 && v*u.factor <= 1e12 {
			return Rate(v * u.factor), nil
		}
		break
	}
	return 0, fmt.Errorf("%q is not a rate; write one like 64kbit, 100mbit or 1gbit", s)
}

func (r Rate) String() string {
	for _, u := range rateUnits {
		if float64(r) >= u.factor {
			return strconv.FormatFloat(float64(r)/u.factor, 'g', 6, 64) + u.suffix
		}
	}
	return "0bit"
}

// inputDrop reports whether the box drops what arrives unasked.
func (t *Translation) inputDrop() bool { return t.InputDrop == nil || *t.InputDrop }

// portRange returns the outer ports of eim-random-port.
func (t *Translation) portRange() (lo, hi uint16, err error) {
	if t.Ports == "" {
		return 30000, 40000, nil
	}
	a, b, ok := strings.Cut(t.Ports, "-")
	l, err1 := strconv.ParseUint(a, 10, 16)
	h, err2 := strconv.ParseUint(b, 10, 16)
	if !ok || err1 != nil || err2 != nil || l == 0 || h < l {
		return 0, 0, fmt.Errorf("%q is not a range of ports; write one like 40000-40003", t.Ports)
	}
	return uint16(l), uint16(h), nil
}

// names returns the names of the nodes in order, so that everything derived from the network is the same each time.
func (n *Network) names() []string { return slices.Sorted(maps.Keys(n.Nodes)) }

// clone returns a deep copy.
func (n *Network) clone() *Network {
	data, err := json.Marshal(n)
	if err != nil {
		panic("lab: a network must encode: " + err.Error())
	}
	out := new(Network)
	if err := json.Unmarshal(data, out); err != nil {
		panic("lab: a network must decode: " + err.Error())
	}
	return out
}
