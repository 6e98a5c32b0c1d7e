package config

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"guywire/mesh"
)

// Parse reads a whole file. What it does not know is an error. The error
// holds all that is wrong, each a *Fault with line, column and the line
// itself; an error of r is returned as it is.
func Parse(r io.Reader) (Config, error) {
	src, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	if len(src) > MaxBytes {
		return Config{}, ErrTooLarge
	}
	d := &decoder{lines: strings.Split(string(src), "\n")}
	c := Default()
	d.file(d.root(src), &c)
	if err := joined(d.faults); err != nil {
		return Config{}, err
	}
	return c, nil
}

func (d *decoder) file(n ast.Node, c *Config) {
	d.mapping(
		n, "the file",
		field{"name", d.text(&c.Name, "name", mesh.CheckName)},
		field{"site", d.text(&c.Site, "site", mesh.CheckName)},
		field{"state", d.text(&c.State, "state", checkPath)},
		field{"socket", d.text(&c.Socket, "socket", checkSocket)},
		field{"dataplane", oneOf(d, &c.Dataplane, "dataplane", Auto, Kernel, Userspace)},
		field{"dataplane_socket", d.text(&c.DataplaneSocket, "dataplane_socket", checkSocket)},
		field{"control", func(n ast.Node) { d.control(n, &c.Control) }},
		field{"ports", func(n ast.Node) { d.ports(n, &c.Ports) }},
		field{"uplinks", func(n ast.Node) { c.Uplinks = d.uplinks(n) }},
		field{"prefixes", func(n ast.Node) { c.Prefixes = d.prefixes(n) }},
		field{"tags", func(n ast.Node) { c.Tags = d.tags(n) }},
		field{"mtu", d.mtu(&c.MTU)},
		field{"nat", func(n ast.Node) { d.nat(n, &c.NAT) }},
		field{"log_level", oneOf(d, &c.LogLevel, "log_level", Debug, Info, Warn, Error)},
	)
	for i := range c.Control.Advertise {
		if at := &c.Control.Advertise[i]; at.Port == 0 {
			at.Port = c.Control.Port
		}
	}
	c.Control.Also = slices.DeleteFunc(c.Control.Also, func(port uint16) bool { return port == c.Control.Port })
	if c.Socket == c.DataplaneSocket {
		d.faults = append(d.faults, &Fault{Message: "socket and dataplane_socket are the same file: give each its own"})
	}
}

// control leaves the port of what is advertised without one at 0.
func (d *decoder) control(n ast.Node, c *Control) {
	d.mapping(
		n, "control",
		field{"listen", func(n ast.Node) {
			s, ok := d.scalar(n, "control.listen")
			if !ok {
				return
			}
			addr, port, err := parseListen(s)
			if err != nil {
				d.fault(n, "control.listen: %v", err)
				return
			}
			c.Listen, c.Port = addr, port
		}},
		field{"also", func(n ast.Node) {
			c.Also = nil
			d.list(n, "control.also", maxAlso, func(n ast.Node) {
				var port uint16
				number(d, &port, "control.also", 1, 65535)(n)
				switch {
				case port == mesh.GossipPort:
					d.fault(n, "control.also: port %d is the gossip port: choose another", port)
				case port != 0:
					c.Also = append(c.Also, port)
				}
			})
			slices.Sort(c.Also)
			c.Also = slices.Compact(c.Also)
		}},
		field{"advertise", func(n ast.Node) {
			d.list(n, "control.advertise", 16, func(n ast.Node) {
				s, ok := d.scalar(n, "control.advertise")
				if !ok {
					return
				}
				e, err := parseEndpoint(s)
				if err != nil {
					d.fault(n, "control.advertise: %v", err)
					return
				}
				c.Advertise = append(c.Advertise, e)
			})
		}},
	)
}

func (d *decoder) nat(n ast.Node, to *NAT) {
	mapping := onOff("off")
	d.mapping(
		n, "nat",
		field{"port_mapping", oneOf(d, &mapping, "nat.port_mapping", "off", "on")},
		field{"spread", oneOf(d, &to.Spread, "nat.spread", SpreadLazy, SpreadOff, SpreadEager)},
	)
	to.PortMapping = mapping == "on"
}

// onOff is "on" or "off".
type onOff string

func parseListen(s string) (netip.Addr, uint16, error) {
	host, port, ok := strings.Cut(s, ":")
	if i := strings.LastIndexByte(s, ':'); ok {
		host, port = s[:i], s[i+1:]
	}
	p, err := parseNumber(port, 1, 65535)
	if !ok || err != nil {
		return netip.Addr{}, 0, fmt.Errorf("%q is not :port, address:port or [address]:port", s)
	}
	if p == mesh.GossipPort {
		return netip.Addr{}, 0, fmt.Errorf("port %d is the gossip port: choose another", p)
	}
	if host == "" {
		return netip.Addr{}, uint16(p), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.Addr{}, 0, fmt.Errorf("%q is not :port, address:port or [address]:port", s)
	}
	addr := ap.Addr().Unmap()
	if addr.IsUnspecified() {
		return netip.Addr{}, 0, fmt.Errorf("to listen on every address, write \":%d\"", p)
	}
	if addr.IsMulticast() {
		return netip.Addr{}, 0, fmt.Errorf("%s is a multicast address", addr)
	}
	return addr, uint16(p), nil
}

func (d *decoder) ports(n ast.Node, p *Ports) {
	d.mapping(
		n, "ports",
		field{"first", number(d, &p.First, "ports.first", 1024, 65535)},
		field{"last", number(d, &p.Last, "ports.last", 1024, 65535)},
	)
	switch {
	case p.Last < p.First:
		d.fault(n, "ports.last %d is below ports.first %d", p.Last, p.First)
	case int(p.Last)-int(p.First)+1 < MinPorts:
		d.fault(n, "ports %d to %d are too few: every link takes one, give at least %d", p.First, p.Last, MinPorts)
	case p.First <= mesh.StunPortSecond && p.Last >= mesh.StunPort:
		d.fault(n, "ports %d to %d hold %d to %d, which STUN, probes and gossip use: choose another range",
			p.First, p.Last, mesh.StunPort, mesh.StunPortSecond)
	}
}

func (d *decoder) uplinks(n ast.Node) (uplinks []Uplink) {
	names, interfaces := map[string]bool{}, map[string]bool{}
	d.list(n, "uplinks", mesh.MaxUplinks, func(n ast.Node) {
		var u Uplink
		before := len(d.faults)
		d.mapping(
			n, "an uplink",
			field{"name", d.text(&u.Name, "name", mesh.CheckName)},
			field{"interface", d.text(&u.Interface, "interface", checkInterface)},
			field{"metered", d.flag(&u.Metered, "metered")},
			field{"bias", d.bias(&u.Bias)},
			field{"disabled", d.flag(&u.Disabled, "disabled")},
			field{"endpoint", func(n ast.Node) {
				if s, ok := d.scalar(n, "endpoint"); ok {
					var err error
					if u.Endpoint, err = parseHost(s); err != nil {
						d.fault(n, "endpoint: %v", err)
					}
				}
			}},
			field{"probe_budget", d.rate(&u.ProbeBudget, "probe_budget", MinProbeBudget, MaxProbeBudget)},
		)
		if len(d.faults) > before {
			return
		}
		switch {
		case u.ProbeBudget != 0:
		case u.Metered:
			u.ProbeBudget = MeteredProbeBudget
		default:
			u.ProbeBudget = DefaultProbeBudget
		}
		if u.Interface == "" {
			d.fault(n, "an uplink needs its interface, such as \"interface: eth0\"")
			return
		}
		if u.Name == "" {
			if err := mesh.CheckName(u.Interface); err != nil {
				d.fault(n, "interface %q cannot serve as the uplink's name: give it a name of a-z, 0-9 and inner hyphens", u.Interface)
				return
			}
			u.Name = u.Interface
		}
		if names[u.Name] {
			d.fault(n, "two uplinks have the name %q", u.Name)
		}
		if interfaces[u.Interface] {
			d.fault(n, "interface %q is listed twice", u.Interface)
		}
		names[u.Name], interfaces[u.Interface] = true, true
		uplinks = append(uplinks, u)
	})
	return uplinks
}

// bias reads a delay such as 20ms. Above 10 s it could only be a slip.
func (d *decoder) bias(to *mesh.Cost) func(ast.Node) {
	return func(n ast.Node) {
		s, ok := d.scalar(n, "bias")
		if !ok {
			return
		}
		v, err := time.ParseDuration(s)
		if err != nil || v < 0 || v > maxBiasSecs*time.Second {
			d.fault(n, "bias %q is not a delay from 0s to %ds, such as 20ms", s, maxBiasSecs)
			return
		}
		*to = mesh.Cost(v.Microseconds())
	}
}

// rate reads bits per second, in the decimal units of network equipment.
func (d *decoder) rate(to *int, what string, low, high uint64) func(ast.Node) {
	return func(n ast.Node) {
		s, ok := d.scalar(n, what)
		if !ok {
			return
		}
		digits, factor := s, uint64(1)
		for _, unit := range []struct {
			name   string
			factor uint64
		}{{"kbit", 1000}, {"Mbit", 1000_000}, {"Gbit", 1000_000_000}} {
			if number, has := strings.CutSuffix(s, unit.name); has {
				digits, factor = number, unit.factor
			}
		}
		v, err := parseNumber(digits, 0, high/factor)
		if err != nil || v*factor < low {
			d.fault(n, "%s %q is not a rate from %s to %s, such as 16kbit or 1Mbit", what, s, bits(low), bits(high))
			return
		}
		*to = int(v * factor)
	}
}

// bits writes a rate as rate reads it.
func bits(v uint64) string {
	for _, unit := range []string{"", "kbit", "Mbit"} {
		if v%1000 != 0 || v == 0 {
			return strconv.FormatUint(v, 10) + unit
		}
		v /= 1000
	}
	return strconv.FormatUint(v, 10) + "Gbit"
}

func (d *decoder) prefixes(n ast.Node) (prefixes []netip.Prefix) {
	d.list(n, "prefixes", MaxPrefixes, func(n ast.Node) {
		s, ok := d.scalar(n, "prefixes")
		if !ok {
			return
		}
		p, err := parsePrefix(s)
		if err != nil {
			d.fault(n, "prefixes: %v", err)
			return
		}
		for _, q := range prefixes {
			if p.Overlaps(q) {
				d.fault(n, "prefixes: %s overlaps %s: list each network once", p, q)
				return
			}
		}
		prefixes = append(prefixes, p)
	})
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil {
			return netip.Prefix{}, fmt.Errorf("%q has no length: write %s/%d for the single address", s, a, a.BitLen())
		}
		return netip.Prefix{}, fmt.Errorf("%q is not a network such as 10.20.0.0/16", s)
	}
	a := p.Addr()
	switch {
	case a.Is4In6():
		return p, fmt.Errorf("%s is an IPv4 network in IPv6 form: write it as IPv4", p)
	case p != p.Masked():
		return p, fmt.Errorf("%s has bits beyond its length: did you mean %s?", p, p.Masked())
	case p.Bits() == 0:
		return p, fmt.Errorf("%s is the default route, which a site cannot announce", p)
	case a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast(), a.IsUnspecified():
		return p, fmt.Errorf("%s cannot be routed between sites", p)
	}
	return p, nil
}

func (d *decoder) tags(n ast.Node) (tags []string) {
	d.list(n, "tags", MaxTags, func(n ast.Node) {
		var tag string
		d.text(&tag, "tags", mesh.CheckName)(n)
		if tag != "" {
			tags = append(tags, tag)
		}
	})
	slices.Sort(tags)
	return slices.Compact(tags)
}

func (d *decoder) mtu(to *int) func(ast.Node) {
	return func(n ast.Node) {
		if s, ok := d.scalar(n, "mtu"); ok && s != "0" {
			number(d, to, "mtu", MinMTU, MaxMTU)(n)
		}
	}
}

// parseNumber accepts decimal digits only: YAML's octal, hexadecimal and
// underscored forms would be read differently by different people.
func parseNumber(s string, low, high uint64) (uint64, error) {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil || strconv.FormatUint(v, 10) != s || v < low || v > high {
		return 0, fmt.Errorf("%q is not a number from %d to %d", s, low, high)
	}
	return v, nil
}

func checkPath(s string) error {
	if !path.IsAbs(s) || path.Clean(s) != s || s == "/" || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("%q is not an absolute path such as /var/lib/guywire", s)
	}
	return nil
}

// checkSocket also holds the path to what fits a socket address (unix(7):
// 108 bytes with the final zero; one is kept for the name under which a new
// socket is made before it replaces an old one).
func checkSocket(s string) error {
	if err := checkPath(s); err != nil {
		return err
	}
	if len(s) > maxPath {
		return fmt.Errorf("the path has %d bytes, a socket's may have %d: choose a shorter one", len(s), maxPath)
	}
	return nil
}

// checkInterface follows the kernel's dev_valid_name.
func checkInterface(s string) error {
	bad := func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r == 0x7f }
	switch {
	case s == "" || len(s) > 15 || s == "." || s == ".." || strings.ContainsFunc(s, bad):
		return fmt.Errorf("%q cannot be the name of an interface", s)
	case strings.HasPrefix(s, mesh.InterfacePrefix):
		return errors.New("an interface of the mesh itself cannot be an uplink")
	}
	return nil
}
