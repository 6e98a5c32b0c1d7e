package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/core"
)

// A lifetime is for how long an uplink let packets in when it looked like that.
type lifetime struct {
	of        discovery.Uplink
	four, six discovery.Lifetime
	partial   bool // it is to be tried again
}

// outsideOf gives what is known of how an uplink looks from outside; m.mu is held. A
// survey that could not be repeated for long says no more where that is.
func (m *member) outsideOf(name string) discovery.Uplink {
	s := m.surveys[name]
	out := s.Uplink
	out.Name = name
	if l, ok := m.lifetimes[name]; ok && l.of.SameOutside(s.Uplink) {
		out.Lifetime, out.Lifetime6 = l.four, l.six
	}
	answers := s.answers
	if time.Since(s.at) > candidateLife {
		out.Reflexive, answers = nil, nil
	}
	out.Reflexive = withSights(out.Reflexive, answers, m.freshSights(name))
	out.Forwarded = slices.Clone(m.declared(name))
	if at, ok := m.opened(name, out.Reflexive); ok && len(out.Forwarded) < discovery.MaxForwarded && !slices.Contains(out.Forwarded, at) {
		out.Forwarded = append(out.Forwarded, at)
	}
	return out
}

// declared gives the addresses at which the operator says that an uplink's tunnel
// ports are reached.
func (m *member) declared(name string) []netip.Addr {
	u, ok := m.uplink(name)
	if !ok {
		return nil
	}
	return m.agent.names.of(m.agent.config.Uplink(u.Interface).Endpoint)
}

// declare tells the others and the core where uplinks are reached by what the
// operator says.
func (m *member) declare() {
	host := m.host.Load()
	if host == nil {
		return
	}
	m.publish()
	for _, u := range host.Uplinks {
		m.mu.Lock()
		_, known := m.surveys[u.Name]
		m.mu.Unlock()
		if known {
			m.post(core.Surveyed{Uplink: m.surveyOf(u.Name)})
		}
	}
}

// seenAnew tells the others and the core what is known of how an uplink looks.
func (m *member) seenAnew(name string, resumed bool) {
	m.publish()
	m.post(core.Surveyed{Uplink: m.surveyOf(name), Resumed: resumed})
}

// measureLifetimes measures in the background for how long each uplink lets packets
// in: when a survey found it to be another one, and on metered uplinks no more.
func (m *member) measureLifetimes(ctx context.Context) error {
	begun := map[string]time.Time{}
	tick := time.NewTicker(lifetimeTick)
	defer tick.Stop()
	for {
		host := m.host.Load()
		for i := 0; host != nil && i < len(host.Uplinks); i++ {
			if u := host.Uplinks[i]; m.lifetimeDue(u, begun[u.Name]) {
				begun[u.Name] = time.Now()
				m.measureLifetime(ctx, u)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// lifetimeDue reports whether an uplink is to be measured, which began last then.
func (m *member) lifetimeDue(u mesh.Uplink, then time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, known := m.surveys[u.Name]
	if !u.Up || !known || len(s.answers) == 0 || time.Since(s.at) < lifetimeAfter || !slices.Equal(s.Addrs, u.Addrs) {
		return false
	}
	l, measured := m.lifetimes[u.Name]
	measured = measured && l.of.SameOutside(s.Uplink)
	rest := lifetimeRest
	if u.Metered {
		rest = lifetimeRestMetered
	}
	return (!measured || l.partial && !u.Metered) && (then.IsZero() || time.Since(then) > rest)
}

// measureLifetime takes some minutes.
func (m *member) measureLifetime(ctx context.Context, u mesh.Uplink) {
	m.mu.Lock()
	s := m.surveys[u.Name]
	m.mu.Unlock()
	l := lifetime{of: s.Uplink}
	for _, family := range []struct {
		to   *discovery.Lifetime
		kind discovery.NAT
		is   func(netip.Addr) bool
	}{{&l.four, s.NAT, netip.Addr.Is4}, {&l.six, s.NAT6, netip.Addr.Is6}} {
		server, ok := nearest(s.answers, family.is)
		if !ok {
			continue
		}
		found, err := m.attempts.Lifetime(ctx, u, server, family.kind)
		if err != nil {
			m.log.Debug("for how long an uplink lets packets in cannot be measured", mesh.LogUplink, u.Name, mesh.LogError, err)
		}
		if ctx.Err() != nil {
			return
		}
		*family.to = found
		l.partial = l.partial || found == discovery.LifetimeUnknown
	}
	m.mu.Lock()
	m.lifetimes[u.Name] = l
	m.mu.Unlock()
	m.seenAnew(u.Name, false)
}

// nearest gives the server of an address family that answered first.
func nearest(answers []discovery.Reflexion, family func(netip.Addr) bool) (server netip.AddrPort, ok bool) {
	var best time.Duration
	for _, a := range answers {
		if family(a.Server.Addr()) && (!ok || a.RTT < best) {
			server, best, ok = a.Server, a.RTT, true
		}
	}
	return server, ok
}
