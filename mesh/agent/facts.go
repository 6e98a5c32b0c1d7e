package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/control"
	"guywire/mesh/core"
	"guywire/routing/wire"
	"guywire/store"
	"guywire/store/cache"
)

// maxDirectory bounds the nodes of which facts are kept.
const maxDirectory = 4096

// factsBody is what two nodes tell each other: facts about themselves and those
// they know, and operators' bans.
type factsBody struct {
	Facts []discovery.Signed `json:"facts"`
}

// heard takes a statement from anywhere: gossip, a call, an offer.
func (m *member) heard(s discovery.Signed) {
	about, serial, err := s.Claimed()
	if err != nil {
		return
	}
	node := about.Node
	switch {
	case about.Ban:
		m.heardBan(s)
		return
	case node == m.self:
		m.outdo(s, serial)
		return
	}
	m.mu.Lock()
	member, ok := m.standing.Load().state.Nodes[node] // under the lock, or it may come back after renew
	if !ok {
		m.mu.Unlock()
		return // not, or not yet, in the log: it will be said again
	}
	changed, err := m.directory.Merge(time.Now(), s, member.Identity)
	facts, _ := m.directory.Get(node)
	m.newFacts = m.newFacts || changed
	m.mu.Unlock()
	if err != nil {
		m.log.Debug("facts refused", mesh.LogNode, member.Name, mesh.LogError, err)
	}
	if changed {
		m.spread(s)
		m.post(core.FactsChanged{Facts: facts})
	}
}

// renew forgets who is gone from one state to another, and gives what is known
// of those who came: the core keeps facts about the rest.
func (m *member) renew(before, now *store.State) (came []discovery.Facts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range now.Removed {
		if _, long := before.Removed[id]; !long {
			m.directory.Remove(id)
			m.forget(discovery.Subject{Node: id})
		}
	}
	for id := range now.Nodes {
		if _, was := before.Nodes[id]; was {
			continue
		}
		if f, known := m.directory.Get(id); known {
			came = append(came, f)
		}
	}
	return came
}

// outdo speaks newer than our own words from a life in which the clock was
// ahead, as the router does for its announcements (RFC 2328 13.4).
func (m *member) outdo(s discovery.Signed, serial uint64) {
	m.mu.Lock()
	ahead := serial > m.ownFacts.Serial
	if ahead {
		if _, err := s.Open(m.plane.State().Nodes[m.self].Identity); err != nil {
			ahead = false
		}
	}
	if ahead {
		m.ownFacts = discovery.Facts{Serial: serial}
	}
	m.mu.Unlock()
	if ahead {
		m.publish()
	}
}

// publish says anew what this node is, if that has changed.
func (m *member) publish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	host := m.host.Load() // under the lock, so that the newest look is said last
	if host == nil {
		return
	}
	state := m.plane.State()
	self := state.Nodes[m.self]
	f := discovery.Facts{Mesh: state.Mesh.ID, Node: m.self, Version: m.agent.version, Control: self.Control, Distances: m.distances}
	f.STUN = servesSTUN(self.Control, m.plane.STUN(), m.servedSTUN)
	for _, u := range host.Uplinks {
		out := discovery.Uplink{Name: u.Name, Addrs: u.Addrs, Metered: u.Metered}
		s, surveyed := m.surveys[u.Name]
		if seen := m.outsideOf(u.Name); !surveyed || slices.Equal(s.Addrs, u.Addrs) {
			out.Reflexive, out.NAT, out.NAT6 = seen.Reflexive, seen.NAT, seen.NAT6
			out.Lifetime, out.Lifetime6 = seen.Lifetime, seen.Lifetime6
		}
		out.Forwarded = m.outsideOf(u.Name).Forwarded
		out.Addrs = out.Addrs[:min(len(out.Addrs), discovery.MaxUplinkAddrs)]
		f.Uplinks = append(f.Uplinks, out)
	}
	f.Serial = m.ownFacts.Serial
	if reflect.DeepEqual(f, m.ownFacts) {
		return
	}
	f.Serial = discovery.NextSerial(f.Serial, uint64(time.Now().UnixMicro()))
	signed, err := f.Sign(m.agent.ring.Sign)
	if err != nil {
		m.log.Error("own facts cannot be stated", mesh.LogError, err)
		return
	}
	m.own, m.ownFacts, m.newFacts = signed, f, true
	m.spread(signed)
}

// servesSTUN is where others may ask a node for their outside address: where one of
// them got an answer from it. Before anybody has measured that, it is where they
// got one in an earlier life, or where the control port is reached; nil stands for
// what is not known.
func servesSTUN(control, measured, before []netip.AddrPort) (out []netip.AddrPort) {
	if measured == nil {
		measured = before
	}
	for _, c := range control {
		s := netip.AddrPortFrom(c.Addr(), mesh.StunPort)
		if (measured == nil || slices.Contains(measured, s)) && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// spread hands a verified statement to gossip.
func (m *member) spread(s discovery.Signed) {
	if m.gossip == nil {
		return
	}
	if err := m.gossip.Publish(s); err != nil {
		m.log.Warn("facts cannot be spread", mesh.LogError, err)
	}
}

// known is everything this node knows, itself first.
func (m *member) known() factsBody {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := factsBody{Facts: append(m.directory.Signed(), m.bans.Signed()...)}
	if len(m.own.Body) > 0 {
		b.Facts = append([]discovery.Signed{m.own}, b.Facts...)
	}
	return b
}

// spreadFacts exchanges facts by direct calls with members that can be
// reached and of whom nothing is known yet: before the first link there is no
// gossip.
func (m *member) spreadFacts(ctx context.Context) error {
	m.publish()
	tick := time.NewTicker(factsEvery)
	defer tick.Stop()
	for {
		for id, node := range m.standing.Load().state.Nodes {
			m.mu.Lock()
			_, known := m.directory.Get(id)
			m.mu.Unlock()
			if id == m.self || known || len(node.Control) == 0 {
				continue
			}
			var theirs factsBody
			if err := m.plane.Do(ctx, id, http.MethodPost, "/v1/facts", m.known(), &theirs); err != nil {
				m.log.Debug("no facts", mesh.LogNode, node.Name, mesh.LogError, err)
				continue
			}
			for _, s := range theirs.Facts {
				m.heard(s)
			}
		}
		m.saveFacts()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// saveFacts keeps what is known for a start without anybody.
func (m *member) saveFacts() {
	m.saving.Lock()
	defer m.saving.Unlock()
	m.mu.Lock()
	changed := m.newFacts
	m.newFacts = false
	m.mu.Unlock()
	if !changed {
		return
	}
	blob, err := json.Marshal(m.known())
	if err == nil {
		err = m.plane.Cache().SaveBlob(cache.Facts, blob)
	}
	if err != nil {
		m.log.Warn("facts cannot be written", mesh.LogError, err)
	}
}

func (m *member) loadFacts() {
	blob, err := m.plane.Cache().LoadBlob(cache.Facts)
	if err != nil {
		if !errors.Is(err, cache.ErrEmpty) {
			m.log.Warn("facts of the last run cannot be used", mesh.LogError, err)
		}
		return
	}
	var b factsBody
	if err := json.Unmarshal(blob, &b); err != nil {
		return
	}
	state := m.plane.State()
	for _, s := range b.Facts {
		about, _, err := s.Claimed()
		if err != nil {
			continue
		}
		id := about.Node
		node, ok := state.Nodes[id]
		switch {
		case !ok:
		case about.Ban:
			_, _ = m.bans.Merge(time.Now(), s, state)
		case id != m.self:
			_, _ = m.directory.Merge(time.Now(), s, node.Identity)
		default:
			// Where this node lies, is reached, and what its uplinks do it need not
			// find out anew.
			if own, err := s.Open(node.Identity); err == nil {
				m.distances, m.servedSTUN, m.ownFacts.Serial = own.Distances, append([]netip.AddrPort{}, own.STUN...), own.Serial
				for _, u := range own.Uplinks {
					u.Forwarded = nil // it is not of the survey
					if u.Lifetime != discovery.LifetimeUnknown || u.Lifetime6 != discovery.LifetimeUnknown {
						m.lifetimes[u.Name] = lifetime{of: u, four: u.Lifetime, six: u.Lifetime6}
					}
				}
			}
		}
	}
}

// handleNodes mounts what other nodes may ask of this one: hints, which must not
// end with a certificate.
func (m *member) handleNodes() {
	m.plane.Handle("POST /v1/facts", control.Hint, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var theirs factsBody
		if err := control.Decode(r, &theirs); err != nil {
			control.Fail(w, err)
			return
		}
		for _, s := range theirs.Facts {
			m.heard(s)
		}
		control.Reply(w, m.known())
	}))
	m.plane.Handle("POST /v1/link/offer", control.Hint, http.HandlerFunc(m.serveOffer))
	m.plane.Handle("GET /v1/link/seen", control.Hint, http.HandlerFunc(m.serveSeen))
	m.plane.Handle("GET /v1/hop", control.Hint, http.HandlerFunc(m.serveHop))
}

// keepAnnouncements keeps at hand what gossip passes on.
func (m *member) keepAnnouncements(ctx context.Context) error {
	tick := time.NewTicker(announcementsEvery)
	defer tick.Stop()
	var digest uint64
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		var list [][]byte
		err := m.query(ctx, func(n *core.Node) {
			if d := n.Digest(); d != digest {
				digest = d
				for _, a := range n.Announcements() {
					list = append(list, wire.EncodeNote(wire.Flood{SignedLSA: a}))
				}
			}
		})
		if err == nil && list != nil {
			m.flooded.Store(&list)
		}
	}
}

func (m *member) announcements() [][]byte {
	if list := m.flooded.Load(); list != nil {
		return *list
	}
	return nil
}

// learned feeds announcements that gossip brought.
func (m *member) learned(list [][]byte) {
	var out []wire.SignedLSA
	for _, b := range list {
		if note, err := wire.DecodeNote(b); err == nil {
			if f, ok := note.(wire.Flood); ok {
				out = append(out, f.SignedLSA)
				continue
			}
		}
		m.malformed.Add(1)
	}
	m.offer(core.Learned{Announcements: out})
}

// gossipKeys are what the log says that gossip is encrypted with.
func (m *member) gossipKeys() GossipKeys {
	shared := m.plane.Shared()
	return GossipKeys{Use: shared.Key, Accept: shared.Keys, Clear: shared.Clear}
}

// seeds are the overlay addresses of all other members.
func (m *member) seeds() map[mesh.NodeID]netip.Addr {
	out := map[mesh.NodeID]netip.Addr{}
	for id, n := range m.standing.Load().state.Nodes {
		if id != m.self && n.Addr6.IsValid() {
			out[id] = n.Addr6
		}
	}
	return out
}

// admit reports whether a gossiping node at its address is a member.
func (m *member) admit(node mesh.NodeID, addr netip.Addr) bool {
	n, ok := m.standing.Load().state.Nodes[node]
	return ok && n.Addr6 == addr
}

// stunServers are where this node may ask for its outside address: endpoints that
// their nodes name, at addresses where the log says that they are reached. So no
// member can have others ask a stranger.
func (m *member) stunServers() []netip.AddrPort {
	state := m.standing.Load().state
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []netip.AddrPort
	for _, f := range m.directory.All() {
		for _, s := range f.STUN {
			if slices.ContainsFunc(state.Nodes[f.Node].Control, func(c netip.AddrPort) bool { return c.Addr() == s.Addr() }) {
				out = append(out, s)
			}
		}
	}
	return out
}

// nodeName is what people call a node.
func nodeName(s *store.State, id mesh.NodeID) string {
	if n, ok := s.Nodes[id]; ok {
		return n.Name
	}
	return id.String()
}
