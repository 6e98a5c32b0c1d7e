package agent

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/core"
)

// A sight is where a neighbour sees one of our tunnels.
type sight struct {
	discovery.Reflexion              // as of a server at the neighbour's address
	port                uint16       // of the tunnel here
	addrs               []netip.Addr // that the uplink had
	at                  time.Time
}

// sighted takes a neighbour's word on where a tunnel of ours is. The loop calls it, so
// it does not wait for the loop.
func (m *member) sighted(s core.Sight) {
	if m.noteSight(s) {
		go m.seenAnew(s.Link.Local, false)
	}
}

// noteSight reports whether an uplink looks different from outside now.
func (m *member) noteSight(s core.Sight) bool {
	if !discovery.Global(s.Endpoint.Addr()) || !discovery.Global(s.Witness.Addr()) {
		return false // of a network that both are in
	}
	name, now := s.Link.Local, time.Now()
	m.mu.Lock()
	before := m.outsideOf(name)
	if m.sights[name] == nil {
		m.sights[name] = map[mesh.LinkID]sight{}
	}
	maps.DeleteFunc(m.sights[name], func(_ mesh.LinkID, old sight) bool { return now.Sub(old.at) > candidateLife })
	u, _ := m.uplink(name)
	m.sights[name][s.Link] = sight{discovery.Reflexion{Server: s.Witness, Mapped: s.Endpoint}, s.Port, u.Addrs, now}
	after := m.outsideOf(name)
	survey, surveyed := m.surveys[name]
	m.mu.Unlock()
	family := func(r netip.AddrPort) bool { return r.Addr().Is4() == s.Endpoint.Addr().Is4() }
	if surveyed && slices.ContainsFunc(survey.Reflexive, family) && !hasAddr(survey.Reflexive, s.Endpoint.Addr()) {
		m.doubt(name) // the network may be another one by now
	}
	return !before.SameOutside(after)
}

// freshSights gives what neighbours said lately of an uplink as it is, in the order of
// the links; m.mu is held.
func (m *member) freshSights(name string) (list []sight) {
	u, up := m.uplink(name)
	if !up {
		return nil
	}
	for _, id := range slices.SortedFunc(maps.Keys(m.sights[name]), mesh.LinkID.Compare) {
		if s := m.sights[name][id]; time.Since(s.at) <= candidateLife && slices.Equal(s.addrs, u.Addrs) {
			list = append(list, s)
		}
	}
	return list
}

// withSights adds to the outside addresses that servers saw those that neighbours see,
// as far as they may be believed by the rule for servers. What servers agree on stays.
func withSights(reflexive []netip.AddrPort, answers []discovery.Reflexion, sights []sight) []netip.AddrPort {
	all := slices.Clone(answers)
	for _, s := range sights {
		all = append(all, s.Reflexion)
	}
	out := slices.Clone(reflexive)
	for _, e := range discovery.Agreed(all) {
		if len(out) < discovery.MaxReflexive && !hasAddr(out, e.Addr()) {
			out = append(out, e)
		}
	}
	return out
}

func hasAddr(list []netip.AddrPort, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(e netip.AddrPort) bool { return e.Addr() == a })
}

// portsKept gives the believed outside addresses at which neighbours see tunnels of
// an uplink with the port numbers that they have here: another port will do the same.
func (m *member) portsKept(name string) (out []netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	believed := m.outsideOf(name).Reflexive
	for _, s := range m.freshSights(name) {
		a := s.Mapped.Addr()
		if s.Mapped.Port() == s.port && hasAddr(believed, a) && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}
