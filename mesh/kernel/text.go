package kernel

import (
	"fmt"
	"net/netip"
	"strings"
)

// String prints everything in s, one object a line, for tests and for people.
func (s State) String() string {
	var b strings.Builder
	for _, t := range s.Tunnels {
		fmt.Fprintf(&b, "tunnel %s %s\n", t.Name, t)
	}
	for _, a := range s.Addrs {
		fmt.Fprintf(&b, "address %s\n", a)
	}
	for _, n := range s.NextHops {
		fmt.Fprintf(&b, "next hop %s\n", n)
	}
	for _, r := range s.Routes {
		fmt.Fprintf(&b, "route %s\n", r)
	}
	for _, r := range s.Rules {
		fmt.Fprintf(&b, "rule %s\n", r)
	}
	if !s.Filter.IsZero() {
		fmt.Fprintf(&b, "filter own %s mesh %s", list(s.Filter.Own), list(s.Filter.Mesh))
		if s.Filter.Foreign {
			b.WriteString(" foreign")
		}
		b.WriteByte('\n')
	}
	for _, l := range s.Filter.Links {
		fmt.Fprintf(&b, "filter %s from %s", l.Device, list(l.Sources))
		if l.Held {
			b.WriteString(" held")
		}
		b.WriteByte('\n')
	}
	for _, c := range s.Sysctls {
		fmt.Fprintf(&b, "sysctl %s=%s\n", c.Path, c.Value)
	}
	return b.String()
}

// String gives what counts in the tunnel, on one line.
func (t Tunnel) String() string {
	return fmt.Sprintf("%q epoch %d port %d mark %#x mtu %d %s peer %s at %s keepalive %d",
		t.Alias, t.Epoch, t.ListenPort, t.Mark, t.MTU, t.LinkLocal, t.Peer, t.Endpoint, t.Keepalive)
}

// String gives the rule on one line.
func (r Rule) String() string {
	if r.Mark == 0 {
		return fmt.Sprintf("%d all table %d", r.Priority, r.Table)
	}
	return fmt.Sprintf("%d mark %#x table %d", r.Priority, r.Mark, r.Table)
}

func list(ps []netip.Prefix) string {
	if len(ps) == 0 {
		return "-"
	}
	texts := make([]string, len(ps))
	for i, p := range ps {
		texts[i] = p.String()
	}
	return strings.Join(texts, ",")
}
