package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"
)

// maxNodes bounds a lab, LAN hosts included: each node is a process and some interfaces.
const maxNodes = 400

// nameRule keeps node names short enough to be part of an interface name, which has 15 bytes.
var nameRule = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

var ifaceRule = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$`)

// Validate checks the network as [Parse] does. Its errors are of type [FileError], with a path and no line.
func (n *Network) Validate() error {
	if n.Name != "" && !nameRule.MatchString(n.Name) {
		return fault("name", "%q is not a name; use small letters, digits and single dashes", n.Name)
	}
	if len(n.Nodes) == 0 {
		return fault("", "the network has no nodes; add at least one under nodes:")
	}
	if len(n.Nodes) > maxNodes {
		return fault("nodes", "%d nodes are too many; a lab has %d at most", len(n.Nodes), maxNodes)
	}
	for _, name := range n.names() {
		if err := n.validateNode(name, n.Nodes[name]); err != nil {
			return err
		}
	}
	for i, l := range n.Links {
		if err := n.validateLink(fmt.Sprintf("links[%d]", i), l); err != nil {
			return err
		}
	}
	// Whatever is left, overlaps and exhausted subnets, shows when the addresses are given out.
	_, err := newLayout(n)
	return err
}

func fault(path, format string, args ...any) error {
	return &FileError{Path: path, Text: fmt.Sprintf(format, args...)}
}

func (n *Network) validateNode(name string, node *Node) error {
	path := "nodes." + name
	if len(name) > 12 || !nameRule.MatchString(name) {
		return fault(path, "%q is not a node name; use up to 12 small letters, digits and single dashes, a letter first", name)
	}
	if node == nil {
		return fault(path, "the node is empty; give it a kind: site, router, nat or host")
	}
	if err := n.validateKind(path, name, node); err != nil {
		return err
	}
	if err := node.validateTranslation(path); err != nil {
		return err
	}
	seen := map[string]bool{"lan": true, "lo": true}
	for i, u := range node.Uplinks {
		path := fmt.Sprintf("%s.uplinks[%d]", path, i)
		if u == nil {
			return fault(path, "the uplink is empty; write to: and a router")
		}
		to := n.Nodes[u.To]
		switch {
		case u.To == "":
			return fault(path, "the uplink leads nowhere; write to: and a router")
		case to == nil:
			return fault(path+".to", "there is no node %q", u.To)
		case to.Kind != Router && to.Kind != NAT:
			return fault(path+".to", "%s is a %s; an uplink leads to a router or a nat", u.To, to.Kind)
		case u.Name != "" && !ifaceRule.MatchString(u.Name):
			return fault(path+".name", "%q is not an interface name; use up to 15 letters and digits", u.Name)
		case u.Name != "" && seen[u.Name]:
			return fault(path+".name", "the interface name %q is taken; choose another", u.Name)
		}
		seen[u.Name] = true
		if err := checkAddrs(path, []addrField{{"address", u.Address, false}, {"address6", u.Address6, true}}); err != nil {
			return err
		}
		if err := u.Properties.validate(path); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) validateKind(path, name string, node *Node) error {
	only := func(set bool, setting string, kinds ...Kind) error {
		if set && !slices.Contains(kinds, node.Kind) {
			return fault(path+"."+setting, "a %s has no %s", node.Kind, setting)
		}
		return nil
	}
	switch node.Kind {
	case Site:
		if len(name) > 10 {
			return fault(path, "the site name %q is too long; 10 bytes at most", name)
		}
		if _, taken := n.Nodes[name+"-host"]; taken {
			return fault("nodes."+name+"-host", "the name %s-host belongs to the LAN host of %s; choose another", name, name)
		}
	case NAT:
		if len(node.Uplinks) != 1 {
			return fault(path, "a nat has exactly one uplink, this one has %d", len(node.Uplinks))
		}
		seen := map[string]bool{name: true}
		for at := node; at != nil && at.Kind == NAT && len(at.Uplinks) == 1 && at.Uplinks[0] != nil; {
			to := at.Uplinks[0].To
			if seen[to] {
				return fault(path+".uplinks[0].to", "the nat is behind itself; lead its uplink to a router")
			}
			seen[to] = true
			at = n.Nodes[to]
		}
	case Router, Host:
	case "":
		return fault(path, "the node has no kind; write kind: site, router, nat or host")
	default:
		return fault(path+".kind", "%q is not a kind of node; use site, router, nat or host", node.Kind)
	}
	t := node.Translation
	return cmp.Or(
		only(len(node.Uplinks) > 0, "uplinks", Site, NAT, Host),
		only(node.Subnet.IsValid(), "subnet", Router, NAT), only(node.Subnet6.IsValid(), "subnet6", Router, NAT),
		only(node.LAN.IsValid(), "lan", Site), only(node.LAN6.IsValid(), "lan6", Site), only(len(node.Meshd) > 0, "meshd", Site),
		only(t.Mapping != "", "nat", NAT), only(t.InputDrop != nil, "input_drop", NAT), only(t.MappingTimeout != 0, "mapping_timeout", NAT),
		only(t.Ports != "", "ports", NAT), only(t.Hairpin, "hairpin", NAT), only(t.BlockUDP, "block_udp", NAT),
		only(len(t.UDPPorts) > 0, "udp_ports", NAT), only(len(t.TCPPorts) > 0, "tcp_ports", NAT), only(t.IPv6, "ipv6", NAT),
		checkNets(path, []addrField{{"subnet", node.Subnet, false}, {"subnet6", node.Subnet6, true}, {"lan", node.LAN, false}, {"lan6", node.LAN6, true}}))
}

func (t *Translation) validateTranslation(path string) error {
	switch t.Mapping {
	case "", EIM, EIMRandomPort, ADF, FullCone, Symmetric, NoNAT:
	default:
		return fault(path+".nat", "%q is not a kind of nat; use eim, eim-random-port, adf, full-cone, symmetric or none", t.Mapping)
	}
	if t.Ports != "" && t.Mapping != EIMRandomPort {
		return fault(path+".ports", "ports belong to nat: eim-random-port")
	}
	if _, _, err := t.portRange(); err != nil {
		return fault(path+".ports", "%v", err)
	}
	if t.MappingTimeout%time.Second != 0 || t.MappingTimeout < 0 {
		return fault(path+".mapping_timeout", "%v is not whole seconds, which is what conntrack counts", t.MappingTimeout)
	}
	if t.Hairpin && (t.Mapping == Symmetric || t.Mapping == NoNAT) {
		return fault(path+".hairpin", "a %s box cannot hairpin; use an endpoint-independent nat", t.Mapping)
	}
	if t.BlockUDP && len(t.UDPPorts) > 0 {
		return fault(path+".udp_ports", "block_udp and udp_ports exclude each other; keep one")
	}
	return nil
}

func (n *Network) validateLink(path string, l *Link) error {
	if l == nil || len(l.Ends) != 2 || l.Ends[0] == l.Ends[1] {
		return fault(path, "a link has two ends; write ends: [a, b]")
	}
	for i, end := range l.Ends {
		node := n.Nodes[end]
		switch {
		case node == nil:
			return fault(fmt.Sprintf("%s.ends[%d]", path, i), "there is no node %q", end)
		case node.Kind == NAT:
			return fault(fmt.Sprintf("%s.ends[%d]", path, i), "%s is a nat, which has its one uplink only; use an uplink", end)
		}
	}
	if l.Name != "" && (len(l.Name) > 40 || !nameRule.MatchString(l.Name)) {
		return fault(path+".name", "%q is not a name; use small letters, digits and single dashes", l.Name)
	}
	if err := checkAddrs(path, []addrField{{"a_addr", l.AAddr, false}, {"b_addr", l.BAddr, false}, {"a_addr6", l.AAddr6, true}, {"b_addr6", l.BAddr6, true}}); err != nil {
		return err
	}
	if !samePair(l.AAddr, l.BAddr) || !samePair(l.AAddr6, l.BAddr6) {
		return fault(path, "the two addresses of a family must both be given, differ, and lie in one subnet")
	}
	return l.Properties.validate(path)
}

// samePair reports whether a and b are both absent, or two addresses of one subnet.
func samePair(a, b netip.Prefix) bool {
	if !a.IsValid() && !b.IsValid() {
		return true
	}
	return a.IsValid() && b.IsValid() && a.Masked() == b.Masked() && a.Addr() != b.Addr()
}

func (p Properties) validate(path string) error {
	switch {
	case p.MTU != 0 && (p.MTU < 1280 || p.MTU > 9000):
		return fault(path+".mtu", "%d is not an MTU; use 1280 (the least that IPv6 permits) to 9000", p.MTU)
	case p.BlackHole != 0 && (p.BlackHole < 68 || p.BlackHole > 9000):
		return fault(path+".black_hole", "%d is not a packet size; use 68 to 9000", p.BlackHole)
	case p.Delay < 0 || p.Delay > time.Minute:
		return fault(path+".delay", "%v is not a delay; use up to 1m", p.Delay)
	case p.Jitter < 0 || p.Jitter > time.Minute:
		return fault(path+".jitter", "%v is not a jitter; use up to 1m", p.Jitter)
	}
	for name, r := range map[string]Ratio{"loss": p.Loss, "reorder": p.Reorder, "duplicate": p.Duplicate} {
		if !(r >= 0 && r <= 1) {
			return fault(path+"."+name, "%v is not a share of packets; use 0 to 1", float64(r))
		}
	}
	return nil
}

type addrField struct {
	name string
	p    netip.Prefix
	v6   bool
}

// checkAddrs wants host addresses with a length that leaves room for the other end.
func checkAddrs(path string, fields []addrField) error {
	for _, f := range fields {
		switch {
		case !f.p.IsValid():
		case f.p.Addr().Is6() != f.v6:
			return fault(path+"."+f.name, "%s is of the wrong family", f.p)
		case f.p.Bits() < 8 || f.p.Bits() > f.p.Addr().BitLen()-2:
			return fault(path+"."+f.name, "%s has no room for both ends; use a /%d or shorter", f.p, f.p.Addr().BitLen()-2)
		case f.p.Addr() == f.p.Masked().Addr():
			return fault(path+"."+f.name, "%s is the network itself; give the address of this end with its length", f.p)
		}
	}
	return nil
}

// checkNets wants networks: no host bits.
func checkNets(path string, fields []addrField) error {
	for _, f := range fields {
		least, most := 8, 28
		if f.v6 {
			least, most = 16, 64
		}
		switch {
		case !f.p.IsValid():
		case f.p.Addr().Is6() != f.v6:
			return fault(path+"."+f.name, "%s is of the wrong family", f.p)
		case f.p.Masked() != f.p:
			return fault(path+"."+f.name, "%s has bits set behind its length; write %s", f.p, f.p.Masked())
		case f.p.Bits() < least || f.p.Bits() > most:
			return fault(path+"."+f.name, "%s has the wrong length; use /%d to /%d", f.p, least, most)
		}
	}
	return nil
}
