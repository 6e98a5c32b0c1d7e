package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/core"
)

// A survey is what was found of an uplink, and when.
type survey struct {
	discovery.Uplink
	at      time.Time
	asked   []netip.AddrPort // STUN servers
	answers []discovery.Reflexion
}

// Netcheck implements api.Backend.
func (a *Agent) Netcheck(ctx context.Context) (api.Netcheck, error) {
	v, err := a.view(ctx)
	if err != nil {
		return api.Netcheck{}, err
	}
	out := api.Netcheck{Node: v.name(v.self), Control: v.state.Nodes[v.self].Control, Pairs: v.pairs()}
	v.mu.Lock()
	out.STUN = v.ownFacts.STUN
	v.mu.Unlock()
	for _, u := range v.uplinks() {
		out.Uplinks = append(out.Uplinks, v.checkUplink(u))
	}
	out.Advice = api.NewHealth(append(networkAdvice(out), a.names.findings()...)...).Findings
	return out, nil
}

func (v view) checkUplink(u api.Uplink) api.UplinkCheck {
	v.mu.Lock()
	s, known := v.surveys[u.Name]
	seen, mapping := v.outsideOf(u.Name), ""
	if g := v.gateways[u.Name]; g != nil {
		mapping = g.Protocol()
	}
	serves := map[netip.Addr]mesh.NodeID{}
	for _, f := range v.directory.All() {
		for _, a := range f.STUN {
			serves[a.Addr()] = f.Node
		}
	}
	v.mu.Unlock()
	out := api.UplinkCheck{Uplink: u, UDP: udpWord(s), Lifetime: seen.Lifetime.String(), Lifetime6: seen.Lifetime6.String(), Forwarded: seen.Forwarded, Mapping: mapping}
	if known {
		out.Checked = new(s.at)
	}
	for _, l := range v.links {
		if l.Tunnel && l.Record.Link.Local == u.Name && l.Record.Class == discovery.ClassCarrier {
			out.Carried++
		}
	}
	for _, server := range s.asked {
		c := api.ServerCheck{Server: server}
		if id, known := serves[server.Addr()]; known {
			c.Node = v.name(id)
		}
		for _, a := range s.answers {
			if a.Server == server {
				c.RTTMs, c.Seen = new(api.Millis(a.RTT)), a.Mapped
			}
		}
		out.Servers = append(out.Servers, c)
	}
	return out
}

// udpWord says whether UDP passes an uplink, by either address family.
func udpWord(s survey) string {
	switch {
	case len(s.answers) > 0:
		return "passes"
	case s.NAT == discovery.NATBlocked, s.NAT6 == discovery.NATBlocked:
		return "blocked"
	default:
		return "unknown"
	}
}

// pairs are the wanted links to neighbours to whom no link works.
func (v view) pairs() (out []api.PairCheck) {
	linked := map[mesh.NodeID]bool{}
	for _, l := range v.links {
		linked[l.Record.Link.Peer] = linked[l.Record.Link.Peer] || l.Usable
	}
	for _, l := range v.links {
		id := l.Record.Link
		if linked[id.Peer] {
			continue
		}
		p := api.PairCheck{Peer: v.name(id.Peer), PeerID: id.Peer, Local: id.Local, Remote: id.Remote, Reason: l.Reason}
		expected, why := v.expect(id)
		p.Expected, p.Why = expectWords[expected], why
		if via := v.transit(id.Peer); !via.IsZero() {
			p.Via = v.name(via)
		}
		if p.Reason == p.Why {
			p.Reason = "" // nothing was tried
		}
		if !l.NextTry.IsZero() {
			p.NextTry = new(l.NextTry)
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b api.PairCheck) int { return strings.Compare(a.Peer, b.Peer) })
	return out
}

var expectWords = map[discovery.Expectation]string{
	discovery.Never: api.ExpectNever, discovery.Perhaps: api.ExpectPerhaps, discovery.Direct: api.ExpectDirect,
}

// expect tells whether a link can be direct, by what both ends know of their
// uplinks.
func (v view) expect(id mesh.LinkID) (discovery.Expectation, string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	facts, _ := v.directory.Get(id.Peer)
	i := slices.IndexFunc(facts.Uplinks, func(u discovery.Uplink) bool { return u.Name == id.Remote })
	_, known := v.surveys[id.Local]
	if i < 0 || !known {
		return discovery.Perhaps, "too little is known of the two uplinks yet"
	}
	return discovery.Expect(v.outsideOf(id.Local), facts.Uplinks[i])
}

// transit is the neighbour by which another node is reached; zero: it is reached
// directly, or not at all.
func (v view) transit(peer mesh.NodeID) mesh.NodeID {
	i := slices.IndexFunc(v.routes, func(r core.RouteView) bool { return len(r.Origins) == 1 && r.Origins[0] == peer })
	if i < 0 || len(v.routes[i].Carry) == 0 || v.routes[i].Carry[0].Link.Peer == peer {
		return mesh.NodeID{}
	}
	return v.routes[i].Carry[0].Link.Peer
}

// noLink is why there is no tunnel: what stands in the way for good, or what the
// last attempt said.
func (v view) noLink(l core.LinkView) string {
	expected, why := v.expect(l.Record.Link)
	switch {
	case expected != discovery.Never:
		return l.Reason
	case v.transit(l.Record.Link.Peer).IsZero():
		return why
	default:
		return "transit: " + why
	}
}

// networkAdvice says what stands in the way of direct links, and what helps.
func networkAdvice(c api.Netcheck) (out []api.Finding) {
	add := func(level api.Level, next, format string, args ...any) {
		out = append(out, api.Finding{Level: level, Sentence: fmt.Sprintf(format, args...), Next: next})
	}
	if len(c.Control) > 0 && len(c.STUN) == 0 {
		add(api.Degraded, fmt.Sprintf("let UDP ports %d and %d in as well as TCP", mesh.StunPort, mesh.StunPortSecond),
			"Others reach the control port of this node, but get no answer from its STUN server")
	}
	for _, u := range c.Uplinks {
		name, answers := u.Uplink.Name, 0
		for _, s := range u.Servers {
			if s.RTTMs != nil {
				answers++
			}
		}
		symmetric := len(u.Forwarded) == 0 && (u.Uplink.NAT == discovery.NATSymmetric.String() || u.Uplink.NAT6 == discovery.NATSymmetric.String())
		switch {
		case !u.Uplink.Up:
			add(api.Degraded, "check the cable and the modem", "Uplink %s is down", name)
		case u.UDP == "blocked" && u.Carried > 0:
			add(api.Degraded, "let UDP out in the firewall of its network", "UDP does not pass uplink %s: its links go over TLS, which is slower", name)
		case u.UDP == "blocked":
			add(api.Degraded, "let UDP out in the firewall of its network", "UDP does not pass uplink %s, so it carries no direct link", name)
		case u.Checked != nil && len(u.Servers) == 0:
			add(api.OK, fmt.Sprintf("make a node public: let TCP and UDP port %d in to it", mesh.StunPort), "No public node can tell what uplink %s looks like from outside", name)
		case u.UDP == "unknown":
			add(api.OK, "meshctl netcheck in a few seconds", "Uplink %s has not been measured yet", name)
		case symmetric:
			add(api.OK, "ask its provider for IPv6 or a public address", "Uplink %s is behind a symmetric NAT: direct links by it are made to public nodes only", name)
		case answers == 1:
			add(api.OK, "make a second node public", "Only one public node answers uplink %s, so its word has to be believed", name)
		}
	}
	for _, p := range c.Pairs {
		if p.Expected == api.ExpectDirect && p.Reason != "" {
			add(api.Degraded, "let UDP out in the firewalls of both ends, and in what answers", "No direct link to %s (%s → %s), though nothing known is in the way: %s", p.Peer, p.Local, p.Remote, p.Reason)
		}
	}
	return out
}
