package lab

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata")

// String draws the layout as text.
func (lo *layout) String() string {
	b := &strings.Builder{}
	for _, n := range lo.nodes {
		fmt.Fprintf(b, "%s %s\n", n.kind, n.name)
		for _, l := range lo.linksOf(n.name) {
			e, far := l.ends[l.end(n.name)], l.ends[1-l.end(n.name)]
			fmt.Fprintf(b, "  %s %v to %s (%s)\n", e.iface, e.addrs, far.node, l.name)
		}
		for _, r := range n.routes {
			fmt.Fprintf(b, "  route %s via %s dev %s metric %d\n", r.dst, r.via, r.iface, r.metric)
		}
	}
	return b.String()
}

// TestLayout compares whole layouts with files; -update rewrites them.
func TestLayout(t *testing.T) {
	for _, name := range BuiltIn() {
		n, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		lo, err := newLayout(n)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", name+".layout")
		if *update {
			if err := os.WriteFile(file, []byte(lo.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := lo.String(); got != string(want) {
			t.Errorf("the layout of %s is\n%s\nwant\n%s", name, got, want)
		}
	}
}

// TestReachable walks the static routes of the built-in networks: every address of the internet is reached from every
// node that should, in both families, without a loop.
func TestReachable(t *testing.T) {
	for _, name := range BuiltIn() {
		n, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		lo, err := newLayout(n)
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range lo.nodes {
			for _, l := range lo.links {
				for _, e := range l.ends {
					for _, p := range e.addrs {
						v6 := p.Addr().Is6()
						if l.realm != "" && !v6 || strings.HasSuffix(l.name, ":lan") || !hasFamily(lo, from.name, v6) {
							continue
						}
						if err := walk(lo, from.name, e.node, p.Addr()); err != nil {
							t.Errorf("%s: %s to %s of %s: %v", name, from.name, p.Addr(), e.node, err)
						}
					}
				}
			}
		}
	}
}

// hasFamily reports whether the node takes part in the internet of the family: LAN hosts do not, sites behind a NAT may
// lack IPv6.
func hasFamily(lo *layout, node string, v6 bool) bool {
	for _, l := range lo.linksOf(node) {
		if _, ok := l.ends[l.end(node)].addr(v6); ok && !strings.HasSuffix(l.name, ":lan") {
			return true
		}
	}
	return false
}

func walk(lo *layout, at, to string, dst netip.Addr) error {
	path := []string{at}
	for at != to {
		next := ""
		for _, l := range lo.linksOf(at) { // connected
			if p, ok := l.ends[l.end(at)].addr(dst.Is6()); ok && p.Contains(dst) {
				next = l.ends[1-l.end(at)].node
			}
		}
		best := routePlan{dst: netip.PrefixFrom(dst, 0)}
		for _, r := range lo.node(at).routes {
			longer := best.iface == "" || r.dst.Bits() > best.dst.Bits() || r.dst.Bits() == best.dst.Bits() && r.metric < best.metric
			if r.dst.Contains(dst) && longer {
				best = r
			}
		}
		for _, l := range lo.linksOf(at) {
			if next == "" && l.ends[l.end(at)].iface == best.iface {
				next = l.ends[1-l.end(at)].node
			}
		}
		path = append(path, next)
		if next == "" || len(path) > len(lo.nodes) {
			return fmt.Errorf("the way is %v", path)
		}
		at = next
	}
	return nil
}
