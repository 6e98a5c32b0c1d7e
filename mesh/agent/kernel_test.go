package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"guywire/mesh"
	"guywire/mesh/core"
	"guywire/mesh/kernel"
	"guywire/mesh/reconcile"
	"guywire/store"
)

// TestRoutesSayWhatTheKernelLacks: a route is in the kernel only if all that it
// is made of is, as of the latest desired state.
func TestRoutesSayWhatTheKernelLacks(t *testing.T) {
	prefix := netip.MustParsePrefix("10.30.0.0/16")
	r := core.RouteView{
		Prefixes: []netip.Prefix{prefix}, Group: 0x5600, Origins: []mesh.NodeID{{2}},
		Carry: []core.LegView{{Link: mesh.LinkID{Peer: mesh.NodeID{2}}, Device: "gw-2a", Weight: 1, Share: 1, Sure: true}},
	}
	group := kernel.PutNextHop{NextHop: kernel.NextHop{ID: r.Group}}
	route := kernel.PutRoute{Route: kernel.Route{Table: mesh.RouteTable, Prefix: prefix, NextHop: r.Group}}
	object := func(op kernel.Op, err error, needs string) reconcile.Object {
		o := reconcile.Object{Name: kernel.Object(op), Op: fmt.Sprint(op), Needs: needs}
		if err != nil {
			o.Error = err.Error()
		}
		return o
	}
	other := object(kernel.SetSysctl{Sysctl: kernel.Sysctl{Path: "net/ipv4/ip_forward", Value: "1"}}, errors.New("read-only file system"), "")
	refused := errors.New("no space left on device")
	for _, tt := range []struct {
		name    string
		st      reconcile.Status
		worked  uint64
		carries bool
		want    string // part of why not; empty: it is there
	}{
		{"all is done", reconcile.Status{Wanted: 7}, 7, true, ""},
		{"something else fails", reconcile.Status{Wanted: 7, Pending: 1, Objects: []reconcile.Object{other}}, 7, true, ""},
		{"the route fails", reconcile.Status{Wanted: 7, Pending: 2, Objects: []reconcile.Object{other, object(route, refused, "")}}, 7, true, "no space left"},
		{"the group fails", reconcile.Status{Wanted: 7, Pending: 1, Objects: []reconcile.Object{object(group, refused, "")}}, 7, true, "no space left"},
		{"the route waits", reconcile.Status{Wanted: 7, Pending: 1, Objects: []reconcile.Object{object(route, nil, "tunnel gw-2a")}}, 7, true, "waits for tunnel gw-2a"},
		{"nothing was tried", reconcile.Status{Wanted: 7, Pending: 1, Objects: []reconcile.Object{object(route, nil, "")}}, 7, true, "not tried"},
		{"a newer state came", reconcile.Status{Wanted: 8}, 7, true, "revision 8 is not in the kernel"},
		{"too much is wrong", reconcile.Status{Wanted: 7, Pending: 3, Objects: []reconcile.Object{other}}, 7, true, "2 objects are not"},
		{"there is no way", reconcile.Status{Wanted: 7}, 7, false, "no neighbour is closer"},
	} {
		v, asked := view{state: store.New()}, r
		if !tt.carries {
			asked.Carry = nil
		}
		got := v.route(asked, prefix, func(objects ...string) string { return missing(tt.st, tt.worked, objects) })
		if got.Installed != (tt.want == "") || !strings.Contains(got.Why, tt.want) {
			t.Errorf("%s: installed %t, %q; want %q", tt.name, got.Installed, got.Why, tt.want)
		}
	}
}
