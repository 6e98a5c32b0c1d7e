package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/core"
)

// gatewaysFile remembers what gateways were asked to let in, and by what secret: so
// that another life of this node can go on with it, or take it back.
const gatewaysFile = "gateways.json"

// A gateway is asked to let tunnels in by one uplink.
type gateway struct {
	PortMapper
	record gatewayRecord
	probed time.Time
	// outside is the address at which it lets packets in; invalid: not known.
	outside netip.Addr
	asked   map[uint16]time.Time // when a port was asked for last
}

// gatewayRecord is how a gateway is asked, and what it has mapped.
type gatewayRecord struct {
	Gateway netip.Addr `json:"gateway"`
	Local   netip.Addr `json:"local"`
	Mark    uint32     `json:"mark"`
	Ports   []uint16   `json:"ports"`
}

type gatewaysBlob struct {
	Secret   [32]byte        `json:"secret"`
	Gateways []gatewayRecord `json:"gateways"`
}

// mapPorts keeps the gateways letting tunnels in, if the operator wants that, or takes
// back what an earlier life had them do.
func (m *member) mapPorts(ctx context.Context) error {
	before := m.loadGateways()
	if !m.agent.config.NAT.PortMapping {
		m.takeBack(ctx, before)
		return nil
	}
	if before.Secret == ([32]byte{}) {
		_, _ = rand.Read(before.Secret[:]) // never fails
	}
	tick := time.NewTicker(gatewaysTick)
	defer tick.Stop()
	var saved []gatewayRecord
	renewed := time.Now()
	for {
		begun := time.Now()
		var records []core.Record
		if err := m.query(ctx, func(n *core.Node) { records = n.Records() }); err != nil {
			return nil
		}
		host := m.host.Load()
		for i := 0; host != nil && i < len(host.Uplinks); i++ {
			u := host.Uplinks[i]
			if g := m.gatewayOf(u, host.Attached, before.Secret); g != nil {
				if m.tend(ctx, g, u.Name, portsOf(records, u.Name), renewed) {
					m.seenAnew(u.Name, false)
				}
			}
		}
		renewed = begun
		if now := m.gatewayRecords(); !slices.EqualFunc(saved, now, func(a, b gatewayRecord) bool {
			return a.Gateway == b.Gateway && a.Local == b.Local && a.Mark == b.Mark && slices.Equal(a.Ports, b.Ports)
		}) {
			saved = now
			m.saveGateways(gatewaysBlob{before.Secret, now})
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// portsOf are those of the tunnels by an uplink.
func portsOf(records []core.Record, uplink string) (ports []uint16) {
	for _, r := range records {
		if r.Link.Local == uplink && r.Class != discovery.ClassCarrier {
			ports = append(ports, r.Port)
		}
	}
	return ports
}

// gatewayOf gives the gateway of an uplink that has one and needs it.
func (m *member) gatewayOf(u mesh.Uplink, attached []core.Attached, secret [32]byte) *gateway {
	local := facing(u, attached)
	if !u.Up || !u.Gateway4.Is4() || !local.IsValid() || discovery.Global(local) {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.gateways[u.Name]
	if g == nil || g.record.Gateway != u.Gateway4 || g.record.Local != local || g.record.Mark != u.Mark() {
		g = &gateway{
			PortMapper: m.agent.outside.PortMapper(u.Gateway4, local, u.Mark(), secret),
			record:     gatewayRecord{Gateway: u.Gateway4, Local: local, Mark: u.Mark()},
			asked:      map[uint16]time.Time{},
		}
		m.gateways[u.Name] = g
	}
	return g
}

// facing is an uplink's IPv4 address on its gateway's network.
func facing(u mesh.Uplink, attached []core.Attached) netip.Addr {
	for _, a := range attached {
		for _, addr := range u.Addrs {
			if a.Device == u.Interface && a.Prefix.Contains(addr) && a.Prefix.Contains(u.Gateway4) {
				return addr
			}
		}
	}
	if i := slices.IndexFunc(u.Addrs, netip.Addr.Is4); i >= 0 {
		return u.Addrs[i]
	}
	return netip.Addr{}
}

// tend does what is due at one gateway: ports are those of tunnels. What the gateway
// has may be gone when a link by it was lost since then. It reports whether the address
// at which packets are let in is another one.
func (m *member) tend(ctx context.Context, g *gateway, uplink string, ports []uint16, then time.Time) (changed bool) {
	if g.Protocol() == "" {
		if time.Since(g.probed) < gatewayRetry && !g.probed.IsZero() {
			return false
		}
		g.probed = time.Now()
		err := g.Probe(ctx)
		if err == nil {
			err = m.tryGateway(ctx, g, uplink)
		}
		if err != nil {
			m.log.Info("ports are not mapped", mesh.LogUplink, uplink, mesh.LogError, err)
			return false
		}
		changed = true
	}
	m.mu.Lock()
	doubted := m.doubted[uplink].After(then)
	var fresh []uint16 // not to be asked for, or released
	for port, at := range g.asked {
		if time.Since(at) < gatewayGrace {
			fresh = append(fresh, port)
		} else if !slices.Contains(ports, port) {
			delete(g.asked, port)
		}
	}
	m.mu.Unlock()
	var err error
	mapped := g.Mapped()
	for _, port := range ports {
		if _, ok := mapped[port]; !ok && !slices.Contains(fresh, port) {
			m.mu.Lock()
			g.asked[port] = time.Now()
			m.mu.Unlock()
			_, mapErr := g.Map(ctx, port)
			err = errors.Join(err, mapErr)
		}
	}
	for port := range mapped {
		if !slices.Contains(ports, port) && !slices.Contains(fresh, port) {
			err = errors.Join(err, g.Release(ctx, port))
		}
	}
	if err = errors.Join(err, g.Renew(ctx, doubted)); err != nil {
		m.log.Debug("mapping ports", mesh.LogUplink, uplink, mesh.LogError, err)
	}
	mapped = g.Mapped()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, at := range mapped {
		if at.Addr() == g.outside {
			return changed
		}
	}
	for _, at := range mapped {
		g.outside, changed = at.Addr(), true
	}
	return changed
}

// tryGateway finds out at which address a gateway lets packets in. Nothing listens on
// the port at that moment.
func (m *member) tryGateway(ctx context.Context, g *gateway, uplink string) error {
	port := m.agent.config.Ports.First
	at, err := g.Map(ctx, port)
	if err != nil {
		return err
	}
	m.log.Info("the gateway maps ports", mesh.LogUplink, uplink, "protocol", g.Protocol(), mesh.LogEndpoint, at.Addr().String())
	m.mu.Lock()
	g.outside = at.Addr()
	m.mu.Unlock()
	return g.Release(ctx, port)
}

// opened gives the address at which an uplink's gateway lets tunnels in; m.mu is held.
// One that others do not see is behind another NAT, or a lie; reflexive is what they
// see.
func (m *member) opened(uplink string, reflexive []netip.AddrPort) (netip.Addr, bool) {
	g := m.gateways[uplink]
	if g == nil || !g.outside.IsValid() || !discovery.Global(g.outside) {
		return netip.Addr{}, false
	}
	seen := slices.ContainsFunc(reflexive, func(r netip.AddrPort) bool { return r.Addr().Is4() })
	return g.outside, !seen || hasAddr(reflexive, g.outside)
}

// mapPort has the gateway of an uplink let in what arrives for the port of an attempt.
func (m *member) mapPort(ctx context.Context, uplink string, port uint16) (netip.AddrPort, bool) {
	m.mu.Lock()
	g := m.gateways[uplink]
	_, open := m.opened(uplink, m.outsideOf(uplink).Reflexive)
	if open {
		g.asked[port] = time.Now()
	}
	m.mu.Unlock()
	if !open {
		return netip.AddrPort{}, false
	}
	ctx, cancel := context.WithTimeout(ctx, gatewayPatience)
	defer cancel()
	at, err := g.Map(ctx, port)
	if err != nil {
		m.log.Debug("mapping a port", mesh.LogUplink, uplink, mesh.LogError, err)
		return netip.AddrPort{}, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	outside, ok := m.opened(uplink, m.outsideOf(uplink).Reflexive)
	return at, ok && outside == at.Addr()
}

// closeGateways takes back what the gateways let in, at the end of a membership.
func (m *member) closeGateways() {
	if !m.agent.config.NAT.PortMapping {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), gatewaysClose)
	defer cancel()
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.gateways))
	m.mu.Unlock()
	for _, g := range all {
		for port := range g.Mapped() {
			if err := g.Release(ctx, port); err != nil {
				m.log.Debug("a mapped port is left to expire", mesh.LogError, err)
			}
		}
	}
	if err := m.agent.dir.Remove(gatewaysFile); err != nil {
		m.log.Warn("what gateways were asked for cannot be forgotten", mesh.LogError, err)
	}
}

// takeBack releases what an earlier life had gateways let in.
func (m *member) takeBack(ctx context.Context, before gatewaysBlob) {
	if before.Secret == ([32]byte{}) {
		return
	}
	for _, r := range before.Gateways {
		g := m.agent.outside.PortMapper(r.Gateway, r.Local, r.Mark, before.Secret)
		if len(r.Ports) == 0 || g.Probe(ctx) != nil {
			continue // it expires by itself
		}
		for _, port := range r.Ports {
			if err := g.Release(ctx, port); err != nil {
				m.log.Debug("a mapped port is left to expire", mesh.LogError, err)
			}
		}
	}
	if ctx.Err() != nil {
		return
	}
	if err := m.agent.dir.Remove(gatewaysFile); err != nil {
		m.log.Warn("what gateways were asked for cannot be forgotten", mesh.LogError, err)
	}
}

func (m *member) gatewayRecords() (out []gatewayRecord) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.gateways)) {
		r := m.gateways[name].record
		r.Ports = slices.Sorted(maps.Keys(m.gateways[name].Mapped()))
		out = append(out, r)
	}
	return out
}

func (m *member) loadGateways() (b gatewaysBlob) {
	blob, err := m.agent.dir.Read(gatewaysFile, 256<<10)
	if err == nil {
		err = json.Unmarshal(blob, &b)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Warn("what gateways were asked for cannot be read", mesh.LogError, err)
		return gatewaysBlob{}
	}
	return b
}

func (m *member) saveGateways(b gatewaysBlob) {
	blob, err := json.Marshal(b)
	if err == nil {
		err = m.agent.dir.Write(gatewaysFile, blob)
	}
	if err != nil {
		m.log.Error("what gateways were asked for cannot be written", mesh.LogError, err)
	}
}
