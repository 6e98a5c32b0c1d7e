package lab

import (
	"net/netip"
	"time"

	"guywire/integration/lab/wire"
)

// Status is a lab as it is now.
type Status struct {
	Name  string       `json:"name"`
	Dir   string       `json:"dir"` // sockets, logs and agents' state
	Nodes []NodeStatus `json:"nodes"`
	Links []LinkStatus `json:"links"`
}

// NodeStatus is one node.
type NodeStatus struct {
	Name       string      `json:"name"`
	Kind       Kind        `json:"kind"`
	State      string      `json:"state"` // up, rebooting, or dead when its process is gone
	Interfaces []Interface `json:"interfaces"`
	Processes  []Process   `json:"processes"`
	Faults     []string    `json:"faults,omitempty"` // of the node itself: its disk, its clock, paused processes
}

// Interface is an end of a link.
type Interface struct {
	Name      string         `json:"name"`
	Link      string         `json:"link"`
	Addresses []netip.Prefix `json:"addresses"`
}

// Process is a program that [Lab.Start] started. Its PID counts inside the lab.
type Process struct {
	Name    string    `json:"name"`
	PID     int       `json:"pid"`
	Argv    []string  `json:"argv"`
	Log     string    `json:"log"`
	Started time.Time `json:"started"`
	Running bool      `json:"running"`
	Exit    int       `json:"exit"` // once it has ended; 128 + signal when killed
}

// LinkStatus is one link.
type LinkStatus struct {
	Name       string         `json:"name"`
	Ends       [2]string      `json:"ends"`       // as NODE:INTERFACE
	Medium     string         `json:"medium"`     // veth or wire
	Properties Properties     `json:"properties"` // as in the network file
	Faults     []string       `json:"faults"`
	Wire       *[2]wire.Stats `json:"wire,omitempty"` // counters by sending end
}

// Node returns the node's status.
func (s *Status) Node(name string) (NodeStatus, bool) {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return NodeStatus{}, false
}

// Addr returns the node's first address of the family on the interface, or on any but lan when iface is empty.
func (n NodeStatus) Addr(iface string, v6 bool) (netip.Addr, bool) {
	for _, i := range n.Interfaces {
		if i.Name != iface && (iface != "" || i.Name == "lan") {
			continue
		}
		for _, p := range i.Addresses {
			if p.Addr().Is6() == v6 {
				return p.Addr(), true
			}
		}
	}
	return netip.Addr{}, false
}

// status describes nodes and links; the processes are added by the supervisor.
func (f *fabric) status() *Status {
	st := f.lo.status()
	for i := range st.Nodes {
		if f.off[st.Nodes[i].Name] {
			st.Nodes[i].State = "rebooting"
		}
	}
	for i := range st.Links {
		l := &st.Links[i]
		c := f.cables[l.Name]
		l.Faults = c.faults()
		if c.wire != nil {
			stats := c.wire.Stats()
			l.Medium, l.Wire = "wire", &stats
		}
	}
	return st
}

// Describe returns the lab that would be made of the network, without processes and faults.
func (n *Network) Describe() (*Status, error) {
	lo, err := newLayout(n)
	if err != nil {
		return nil, err
	}
	return lo.status(), nil
}

// status describes nodes and links that have no faults.
func (lo *layout) status() *Status {
	st := &Status{}
	for _, n := range lo.nodes {
		ns := NodeStatus{Name: n.name, Kind: n.kind, State: "up"}
		for _, l := range lo.linksOf(n.name) {
			e := l.ends[l.end(n.name)]
			ns.Interfaces = append(ns.Interfaces, Interface{Name: e.iface, Link: l.name, Addresses: e.addrs})
		}
		st.Nodes = append(st.Nodes, ns)
	}
	for _, l := range lo.links {
		ls := LinkStatus{Name: l.name, Medium: "veth", Properties: l.props}
		for k, e := range l.ends {
			ls.Ends[k] = e.node + ":" + e.iface
		}
		st.Links = append(st.Links, ls)
	}
	return st
}
