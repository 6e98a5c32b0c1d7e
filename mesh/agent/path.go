package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/control"
	"guywire/mesh/core"
	"guywire/store"
)

// hopAnswer is one node's part of a path.
type hopAnswer struct {
	Hop  api.Hop     `json:"hop"`
	Next mesh.NodeID `json:"next,omitzero"` // zero: the packet leaves the mesh here
	Here bool        `json:"here"`          // it is delivered at this node's site

	link mesh.LinkID // to Next; not told to others
}

// Path implements api.Backend: it asks node by node what the real kernel tables do.
func (a *Agent) Path(ctx context.Context, q api.PathQuery) (api.Path, error) {
	m, err := a.member()
	if err != nil {
		return api.Path{}, err
	}
	state := m.plane.State()
	at := m.self
	if q.From != "" {
		from, err := resolve(state, q.From)
		if err != nil {
			return api.Path{}, err
		}
		at = from.node
	}
	to, err := resolve(state, q.To)
	if err != nil {
		return api.Path{}, err
	}
	path := api.Path{From: nodeName(state, at), To: q.To}
	visited := map[mesh.NodeID]bool{}
	for range maxHops {
		if visited[at] {
			path.Why = "the tables lead back to " + nodeName(state, at)
			return path, nil
		}
		visited[at] = true
		hop, err := m.askHop(ctx, at, to.addr)
		if err != nil {
			path.Why = fmt.Sprintf("%s does not answer: %v", nodeName(state, at), err)
			return path, nil
		}
		path.Hops = append(path.Hops, hop.Hop)
		switch {
		case hop.Here:
			path.Reached = true
			return path, nil
		case hop.Next.IsZero():
			path.Why = fmt.Sprintf("%s has no way on: %s", hop.Hop.Node, hop.Hop.Kernel)
			return path, nil
		}
		at = hop.Next
	}
	path.Why = fmt.Sprintf("more than %d hops", maxHops)
	return path, nil
}

func (m *member) askHop(ctx context.Context, node mesh.NodeID, to netip.Addr) (hopAnswer, error) {
	if node == m.self {
		return m.hop(ctx, to)
	}
	var out hopAnswer
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := m.plane.Do(ctx, node, http.MethodGet, "/v1/hop?to="+url.QueryEscape(to.String()), nil, &out)
	return out, err
}

func (m *member) serveHop(w http.ResponseWriter, r *http.Request) {
	to, err := netip.ParseAddr(r.URL.Query().Get("to"))
	if err != nil {
		control.Fail(w, err)
		return
	}
	hop, err := m.hop(r.Context(), to)
	if err != nil {
		control.Fail(w, err)
		return
	}
	control.Reply(w, hop)
}

// hop says what this node does with a packet to an address: what the kernel
// answers, and whether that is what was computed.
func (m *member) hop(ctx context.Context, to netip.Addr) (hopAnswer, error) {
	state := m.plane.State()
	out := hopAnswer{Hop: api.Hop{Node: nodeName(state, m.self)}}
	kernel, err := m.kernel.Lookup(ctx, to)
	if err != nil {
		return out, err
	}
	out.Hop.Kernel = kernel.Text
	self := state.Nodes[m.self]
	if kernel.Local || slices.ContainsFunc(self.Prefixes, func(p netip.Prefix) bool { return p.Contains(to) }) {
		out.Here = true
		return out, nil
	}
	var links []core.LinkView
	var routes []core.RouteView
	err = m.query(ctx, func(n *core.Node) { links, routes = n.Links(), n.Routes() })
	if err != nil {
		return out, err
	}
	v := view{running: &running{member: m}, state: state}
	for _, l := range links {
		if l.Tunnel && l.Record.Device == kernel.Device {
			out.link = l.Record.Link
			out.Next = out.link.Peer
			out.Hop.Peer, out.Hop.Device = v.name(out.Next), kernel.Device
			if l.RTT > 0 {
				out.Hop.RTTMs = new(api.Millis(l.RTT))
			}
		}
	}
	for _, r := range routes {
		for _, p := range r.Prefixes {
			if !p.Contains(to) || out.Hop.Prefix != nil && out.Hop.Prefix.Bits() >= p.Bits() {
				continue
			}
			out.Hop.Prefix = new(p)
			out.Hop.Agrees = new(slices.ContainsFunc(r.Carry, func(l core.LegView) bool { return l.Device == kernel.Device }))
			out.Hop.Alternatives = nil
			for _, l := range append(slices.Clone(r.Carry), r.Armed...) {
				if l.Device != kernel.Device {
					alternative := v.alternative(l)
					if slices.ContainsFunc(r.Carry, func(c core.LegView) bool { return c.Device == l.Device }) {
						alternative.Why = "carries other flows"
					}
					out.Hop.Alternatives = append(out.Hop.Alternatives, alternative)
				}
			}
		}
	}
	return out, nil
}

// target is a node and one of the addresses behind it.
type target struct {
	node mesh.NodeID
	addr netip.Addr
}

// resolve finds what people name: a node by name or id, or an address in the mesh.
func resolve(s *store.State, what string) (target, error) {
	if n, ok := s.NodeByName(strings.ToLower(what)); ok {
		return target{n.ID, n.Addr4}, nil
	}
	if id, err := mesh.ParseNodeID(what); err == nil {
		if n, ok := s.Nodes[id]; ok {
			return target{id, n.Addr4}, nil
		}
	}
	if addr, err := netip.ParseAddr(what); err == nil {
		if n, ok := s.Owner(addr); ok {
			return target{n.ID, addr}, nil
		}
		return target{}, api.Errorf(api.CodeNotFound, "meshctl routes lists what the mesh reaches", "No node of the mesh has the address %s", addr)
	}
	return target{}, api.Errorf(api.CodeNotFound, "meshctl nodes lists them", "There is no node %q", what)
}

// Ping implements api.Backend.
func (a *Agent) Ping(ctx context.Context, q api.PingQuery, emit func(api.PingReply) error) error {
	m, err := a.member()
	if err != nil {
		return err
	}
	to, err := resolve(m.plane.State(), q.Node)
	if err != nil {
		return err
	}
	interval := milliseconds(q.IntervalMs, time.Second)
	timeout := milliseconds(q.TimeoutMs, time.Second)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for i := 1; ; i++ {
		reply := api.PingReply{Index: q.Since + uint64(i), Node: nodeName(m.plane.State(), to.node), Addr: to.addr, Path: m.describePath(ctx, to.addr)}
		probe, cancel := context.WithTimeout(ctx, timeout)
		rtt, err := m.echoes.Ping(probe, to.addr, 56)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			reply.Answered, reply.RTTMs = true, new(api.Millis(rtt))
		case errors.Is(err, context.DeadlineExceeded):
			reply.Reason = fmt.Sprintf("no answer in %g s", timeout.Seconds())
		default:
			reply.Reason = err.Error()
		}
		if err := emit(reply); err != nil {
			return nil // the client left
		}
		if i == q.Count {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		case <-m.done:
			return errStopped
		}
	}
}

// describePath says in words how a packet to an address would leave.
func (m *member) describePath(ctx context.Context, to netip.Addr) string {
	hop, err := m.hop(ctx, to)
	if err != nil {
		return ""
	}
	owner, _ := m.plane.State().Owner(to)
	return hop.words(owner.ID)
}

// words say how a packet to a node would leave.
func (h hopAnswer) words(to mesh.NodeID) string {
	switch {
	case h.Here:
		return "this node"
	case h.Next.IsZero():
		return "no path"
	case h.Next == to:
		return "direct, " + flow(h.link)
	}
	return "via " + h.Hop.Peer + ", " + flow(h.link)
}

func milliseconds(ms float64, otherwise time.Duration) time.Duration {
	if ms == 0 {
		return otherwise
	}
	return time.Duration(ms * float64(time.Millisecond))
}
