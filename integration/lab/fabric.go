package lab

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"guywire/integration/lab/wire"
)

const defaultMTU = 1500

// fabric is the network as it stands in the kernel: the layout plus the faults of the moment. It is not safe for
// concurrent use.
type fabric struct {
	lo     *layout
	spaces map[string]*space
	cables map[string]*cable // by link name
	off    map[string]bool   // nodes that are rebooting
}

// cable is a link in the kernel.
type cable struct {
	plan      *linkPlan
	wire      *wire.Wire    // nil for a veth pair
	props     [2]Properties // as they are now, by sending end
	cut       [2]bool       // silently, by sending end
	unplugged bool
}

// newFabric builds the whole network inside the namespaces.
func newFabric(lo *layout, spaces map[string]*space) (*fabric, error) {
	f := &fabric{lo: lo, spaces: spaces, cables: map[string]*cable{}, off: map[string]bool{}}
	for _, n := range lo.nodes {
		if err := f.prepare(n); err != nil {
			return nil, err
		}
	}
	for _, l := range lo.links {
		c := &cable{plan: l, props: [2]Properties{l.props, l.props}}
		lay := f.layVeth
		if l.props.NeedsWire() {
			lay = f.layWire
		}
		if err := lay(c); err != nil {
			return nil, err
		}
		f.cables[l.name] = c
	}
	for _, n := range lo.nodes {
		if err := f.configure(n); err != nil {
			return nil, err
		}
		if n.kind == NAT {
			if err := f.translate(n); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

// prepare sets what must be there before the first interface. Sites and hosts keep the kernel's defaults.
func (f *fabric) prepare(n *nodePlan) error {
	s := f.spaces[n.name]
	if err := s.setUp("lo", true); err != nil {
		return err
	}
	if n.kind != Router && n.kind != NAT {
		return nil
	}
	for _, kv := range [][2]string{
		{"net.ipv4.ip_forward", "1"},
		{"net.ipv6.conf.all.forwarding", "1"},
		{"net.ipv6.conf.default.forwarding", "1"},
		{"net.ipv4.conf.all.rp_filter", "0"},
		{"net.ipv4.conf.default.rp_filter", "0"},
		// Without a link-local address, which duplicate detection withholds for a second or two, a router cannot ask for
		// its neighbours and drops what it should forward.
		{"net.ipv6.conf.default.dad_transmits", "0"},
	} {
		if err := s.sysctl(kv[0], kv[1]); err != nil {
			return err
		}
	}
	return nil
}

func (l *linkPlan) mtu() int {
	if l.props.MTU != 0 {
		return l.props.MTU
	}
	return defaultMTU
}

// layVeth makes a veth pair with each end in its node from the start.
func (f *fabric) layVeth(c *cable) error {
	a, b := c.plan.ends[0], c.plan.ends[1]
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: a.iface, MTU: c.plan.mtu(), Namespace: netlink.NsFd(f.spaces[a.node].fd())},
		PeerName:  b.iface, PeerMTU: uint32(c.plan.mtu()), PeerNamespace: netlink.NsFd(f.spaces[b.node].fd()),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("lay link %s: %w", c.plan.name, err)
	}
	return nil
}

// layWire makes a TAP device in each node and joins them.
func (f *fabric) layWire(c *cable) error {
	var taps [2]*os.File
	for k, e := range c.plan.ends {
		s := f.spaces[e.node]
		err := s.do(func() (err error) {
			taps[k], err = wire.OpenTAP(e.iface)
			return err
		})
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: let root run `chmod 0666 /dev/net/tun`", err)
		}
		if err != nil {
			return fmt.Errorf("lay link %s: %w", c.plan.name, err)
		}
		link, err := s.nl.LinkByName(e.iface)
		if err != nil {
			return fmt.Errorf("find %s in %s: %w", e.iface, e.node, err)
		}
		if err := s.nl.LinkSetMTU(link, c.plan.mtu()); err != nil {
			return fmt.Errorf("set the MTU of %s in %s: %w", e.iface, e.node, err)
		}
	}
	c.wire = wire.New(taps[0], taps[1], c.plan.seed)
	c.impair()
	return nil
}

// impair hands the properties to the wire.
func (c *cable) impair() {
	for end, dir := range []wire.Direction{wire.AtoB, wire.BtoA} {
		p := c.props[end]
		c.wire.Set(dir, wire.Impairment{
			Delay: p.Delay, Jitter: p.Jitter, Loss: float64(p.Loss), Reorder: float64(p.Reorder),
			Duplicate: float64(p.Duplicate), Rate: uint64(p.Rate), MTU: p.BlackHole,
		})
	}
}

// configure brings the node's interfaces up as they should be now, and adds its addresses and routes. It may be repeated:
// an interface that was down has lost its routes and IPv6 addresses.
func (f *fabric) configure(n *nodePlan) error {
	if f.off[n.name] {
		return nil
	}
	s := f.spaces[n.name]
	up := map[string]bool{}
	for _, l := range f.lo.linksOf(n.name) {
		k := l.end(n.name)
		e := l.ends[k]
		up[e.iface] = f.cables[l.name].isUp(k)
		if err := s.setUp(e.iface, up[e.iface]); err != nil {
			return err
		}
		for _, p := range e.addrs {
			if err := s.addAddr(e.iface, p); err != nil {
				return err
			}
		}
	}
	for _, r := range n.routes {
		if !up[r.iface] {
			continue
		}
		if err := s.addRoute(r); err != nil {
			return err
		}
	}
	return nil
}

// isUp reports whether the end's interface is up by intent. A veth pair has no carrier of its own: the near end loses it
// while the far end is down, so unplugging a link takes down the router's end and leaves the site's settings alone.
func (c *cable) isUp(end int) bool { return !c.unplugged || c.wire != nil || end == 0 }

// plug makes carrier and interface state of the link what they should be, after a change.
func (f *fabric) plug(c *cable) error {
	if c.wire != nil {
		up := !c.unplugged && !f.off[c.plan.ends[0].node] && !f.off[c.plan.ends[1].node]
		if err := c.wire.Carrier(up); err != nil {
			return fmt.Errorf("set the carrier of %s: %w", c.plan.name, err)
		}
	}
	for k, e := range c.plan.ends {
		if f.off[e.node] {
			if err := f.spaces[e.node].setUp(e.iface, false); err != nil {
				return err
			}
			continue
		}
		if c.isUp(k) {
			if err := f.configure(f.lo.node(e.node)); err != nil {
				return err
			}
		} else if err := f.spaces[e.node].setUp(e.iface, false); err != nil {
			return err
		}
	}
	return nil
}

// carrier plugs or unplugs a link.
func (f *fabric) carrier(c *cable, up bool) error {
	c.unplugged = !up
	return f.plug(c)
}

// setCut makes what the end sends vanish, or arrive again. Nobody is told: carriers stay.
func (f *fabric) setCut(c *cable, end int, on bool) error {
	if c.cut[end] == on {
		return nil
	}
	if c.wire != nil {
		c.wire.Cut([]wire.Direction{wire.AtoB, wire.BtoA}[end], on)
	} else {
		far := c.plan.ends[1-end]
		if err := f.spaces[far.node].dropIngress(far.iface, on); err != nil {
			return err
		}
	}
	c.cut[end] = on
	return nil
}

// impair changes what the link does to packets sent by the ends.
func (f *fabric) impair(c *cable, ends []int, p Properties) error {
	if c.wire == nil {
		return fmt.Errorf("link %s is %w; add `wire: true` to it in the network file", c.plan.name, ErrNotWire)
	}
	if p.MTU != 0 {
		return errors.New("the MTU of interfaces is fixed while the lab runs; use a black hole to drop large packets")
	}
	if err := p.validate(c.plan.name); err != nil {
		return err
	}
	p.MTU, p.Wire = c.plan.props.MTU, c.plan.props.Wire
	for _, end := range ends {
		c.props[end] = p
	}
	c.impair()
	return nil
}

// heal undoes every fault of the link.
func (f *fabric) heal(c *cable) error {
	var errs []error
	for end := range c.cut {
		errs = append(errs, f.setCut(c, end, false))
	}
	if c.unplugged {
		errs = append(errs, f.carrier(c, true))
	}
	c.props = [2]Properties{c.plan.props, c.plan.props}
	if c.wire != nil {
		c.impair()
	}
	return errors.Join(errs...)
}

// partition cuts every link between nodes of different groups.
func (f *fabric) partition(groups [][]string) error {
	group := map[string]int{}
	for i, g := range groups {
		for _, name := range g {
			if f.lo.node(name) == nil {
				return fmt.Errorf("%w node %q; `meshlab status` lists the nodes", ErrUnknown, name)
			}
			if j, twice := group[name]; twice && j != i {
				return fmt.Errorf("%s is in two groups; name it once", name)
			}
			group[name] = i
		}
	}
	found := false
	for _, l := range f.lo.links {
		a, inA := group[l.ends[0].node]
		b, inB := group[l.ends[1].node]
		if !inA || !inB || a == b {
			continue
		}
		found = true
		for end := range 2 {
			if err := f.setCut(f.cables[l.name], end, true); err != nil {
				return err
			}
		}
	}
	if !found {
		return errors.New("no link leads from one group to another; name the routers between them too")
	}
	return nil
}

// power switches a router or NAT off or on. Off, its neighbours lose their carrier; on again, a NAT has forgotten all
// mappings.
func (f *fabric) power(n *nodePlan, on bool) error {
	if on {
		delete(f.off, n.name)
	} else {
		f.off[n.name] = true
		if n.kind == NAT {
			if err := f.forget(n); err != nil {
				delete(f.off, n.name)
				return err
			}
		}
	}
	for _, l := range f.lo.linksOf(n.name) {
		if err := f.plug(f.cables[l.name]); err != nil {
			return err
		}
	}
	return nil
}

// relay puts a new layout of the same nodes and links in place of the present one: addresses and routes change.
func (f *fabric) relay(lo *layout) error {
	old := f.lo
	wans := map[string]endPlan{}
	for _, n := range old.nodes {
		if n.kind == NAT {
			wans[n.name] = f.wan(n.name)
		}
	}
	f.lo = lo
	for i, l := range lo.links {
		f.cables[l.name].plan = l
		for k, e := range old.links[i].ends {
			for _, p := range e.addrs {
				if slices.Contains(l.ends[k].addrs, p) {
					continue
				}
				if err := f.spaces[e.node].delAddr(e.iface, p); err != nil {
					return err
				}
			}
		}
	}
	for i, n := range lo.nodes {
		for _, r := range old.nodes[i].routes {
			if slices.Contains(n.routes, r) {
				continue
			}
			if err := f.spaces[n.name].delRoute(r); err != nil {
				return err
			}
		}
		if err := f.configure(n); err != nil {
			return err
		}
		if n.kind == NAT && !slices.Equal(wans[n.name].addrs, f.wan(n.name).addrs) {
			// Mappings to an address that is no longer there are of no use.
			if err := f.forget(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// faults describes what is wrong with the link now, for people.
func (c *cable) faults() []string {
	var out []string
	a, b := c.plan.ends[0].node, c.plan.ends[1].node
	switch c.cut {
	case [2]bool{true, true}:
		out = append(out, "cut")
	case [2]bool{true, false}:
		out = append(out, "cut from "+a)
	case [2]bool{false, true}:
		out = append(out, "cut from "+b)
	}
	if c.unplugged {
		out = append(out, "no carrier")
	}
	if c.props != [2]Properties{c.plan.props, c.plan.props} {
		if c.props[0] == c.props[1] {
			out = append(out, "impaired: "+orNothing(c.props[0]))
		} else {
			out = append(out, "impaired from "+a+": "+orNothing(c.props[0]), "impaired from "+b+": "+orNothing(c.props[1]))
		}
	}
	return out
}

func orNothing(p Properties) string {
	if s := p.String(); s != "" {
		return s
	}
	return "nothing"
}

const (
	defaultDowntime = time.Second // how long a reboot takes
	// The kernel forgets masqueraded flows in the background once a link is down: a NAT that is back before would lose
	// new ones.
	minDowntime = 100 * time.Millisecond
)
