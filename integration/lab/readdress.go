package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// readdress gives an uplink other addresses, and all routes that follow from it. Without addresses it takes the next free
// ones. It returns the new addresses.
func (f *fabric) readdress(link *linkPlan, want []netip.Prefix) ([]netip.Prefix, error) {
	if link.uplink == nil {
		return nil, fmt.Errorf("link %s is not an uplink; only addresses of uplinks change", link.name)
	}
	next := f.lo.net.clone()
	node := next.Nodes[link.ends[0].node]
	u := node.Uplinks[slices.IndexFunc(node.Uplinks, func(u *Uplink) bool { return u.Name == link.uplink.Name })]
	if len(want) > 0 {
		for _, p := range want {
			if p.Addr().Is6() {
				u.Address6 = p
			} else {
				u.Address = p
			}
		}
	} else if err := f.freshAddresses(next, u); err != nil {
		return nil, err
	}
	if err := next.Validate(); err != nil {
		if fe, ok := errors.AsType[*FileError](err); ok {
			return nil, errors.New(fe.Text)
		}
		return nil, err
	}
	lo, err := newLayout(next)
	if err != nil {
		return nil, err
	}
	if err := f.relay(lo); err != nil {
		return nil, err
	}
	return f.cables[link.name].plan.ends[0].addrs, nil
}

// freshAddresses gives the uplink addresses that nobody has.
func (f *fabric) freshAddresses(n *Network, u *Uplink) error {
	var taken []netip.Prefix
	for _, node := range n.Nodes {
		for _, other := range node.Uplinks {
			taken = append(taken, other.Address, other.Address6)
		}
	}
	to := n.Nodes[u.To]
	for _, a := range []struct {
		addr *netip.Prefix
		pool netip.Prefix
	}{{&u.Address, to.Subnet}, {&u.Address6, to.Subnet6}} {
		if !a.addr.IsValid() {
			continue
		}
		p, err := nextFree(a.pool, taken)
		if err != nil {
			return fmt.Errorf("%w; give the new address by hand", err)
		}
		*a.addr = p
	}
	return nil
}
