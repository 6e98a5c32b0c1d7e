package grid

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"guywire/integration/lab"
)

// A kind is a network that a site is behind.
type kind struct {
	says string // for people

	box    lab.Translation // between site and internet; no mapping: none
	home   bool            // another box, an ordinary home router, between site and box
	shared bool            // one box holds both sites
	only6  bool            // no IPv4
}

// kinds are those of expected.txt; order is theirs there.
var kinds = map[string]kind{
	"public":     {says: "public address"},
	"firewall":   {says: "public addresses behind a stateful firewall", box: lab.Translation{Mapping: lab.NoNAT}},
	"easy":       {says: "home router: endpoint-independent mapping, port kept, filter by address and port", box: lab.Translation{Mapping: lab.EIM}},
	"open":       {says: "Linux gateway that answers unasked packets: an early one spoils the port", box: lab.Translation{Mapping: lab.EIM, InputDrop: new(bool)}},
	"port":       {says: "as easy, port changed", box: lab.Translation{Mapping: lab.EIMRandomPort}},
	"restricted": {says: "as easy, filter by address", box: lab.Translation{Mapping: lab.ADF}},
	"cone":       {says: "full cone: no filter", box: lab.Translation{Mapping: lab.FullCone}},
	"symmetric":  {says: "another random port for each destination", box: lab.Translation{Mapping: lab.Symmetric}},
	"cgn":        {says: "home router behind a carrier-grade NAT", box: lab.Translation{Mapping: lab.EIM}, home: true},
	"blocked":    {says: "only TCP 443 passes", box: lab.Translation{Mapping: lab.EIM, BlockUDP: true, TCPPorts: []uint16{443}}},
	"six":        {says: "public IPv6 only", only6: true},
	"six-fw":     {says: "IPv6 only, stateful firewall", box: lab.Translation{Mapping: lab.NoNAT}, only6: true},

	"lan":       {says: "one LAN behind one home router", box: lab.Translation{Mapping: lab.EIM}, shared: true},
	"lan-pin":   {says: "one LAN behind one home router that hairpins", box: lab.Translation{Mapping: lab.EIM, Hairpin: true}, shared: true},
	"homes":     {says: "two homes behind one carrier-grade NAT", box: lab.Translation{Mapping: lab.EIM}, home: true, shared: true},
	"homes-pin": {says: "two homes behind one carrier-grade NAT that hairpins", box: lab.Translation{Mapping: lab.EIM, Hairpin: true}, home: true, shared: true},
}

// Names in the lab of a cell.
const (
	left, right = "left", "right"
	internet    = "net"
)

// helpers are public sites: they answer STUN, keep the log and forward what finds no direct way.
var helpers = []string{"one", "two"}

// wire is the way from each site to the internet: 40 ms from site to site and back.
var wire = lab.Properties{Delay: 10 * time.Millisecond}

// network is the internet of a cell.
func (c Cell) network() *lab.Network {
	return network(map[string]kind{left: kinds[c.Left], right: kinds[c.Right]})
}

// network is an internet with two helpers, and sites behind what their kinds say.
func network(sites map[string]kind) *lab.Network {
	n := &lab.Network{Name: "grid", Seed: 1, Nodes: map[string]*lab.Node{internet: {Kind: lab.Router}}}
	for _, h := range helpers {
		n.Nodes[h] = &lab.Node{Kind: lab.Site, Uplinks: []*lab.Uplink{{To: internet, Properties: wire}}}
	}
	for _, name := range slices.Sorted(maps.Keys(sites)) {
		sites[name].behind(n, name)
	}
	return n
}

// behind adds a site and its boxes.
func (k kind) behind(n *lab.Network, site string) {
	add := func(name, to string, node *lab.Node) {
		up := &lab.Uplink{To: to, NoIPv4: k.only6}
		if to == internet {
			up.Properties = wire
		}
		node.Uplinks = []*lab.Uplink{up}
		n.Nodes[name] = node
	}
	to := internet
	if k.box.Mapping != "" {
		name := boxOf(site)
		if k.shared {
			name = "box"
		}
		outer := &lab.Node{Kind: lab.NAT, Translation: k.box}
		if k.home {
			outer.Subnet = sharedSpace
		}
		add(name, internet, outer)
		to = name
	}
	if k.home {
		add(site+"-home", to, &lab.Node{Kind: lab.NAT, Translation: lab.Translation{Mapping: lab.EIM}})
		to = site + "-home"
	}
	add(site, to, &lab.Node{Kind: lab.Site})
}

// sharedSpace is what carriers give to homes, see RFC 6598; all give the same.
var sharedSpace = netip.MustParsePrefix("100.64.0.0/24")

// boxOf names a site's own box, the outer one of two.
func boxOf(site string) string { return site + "-box" }
