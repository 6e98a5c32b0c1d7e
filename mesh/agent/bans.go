package agent

import (
	"context"
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/core"
	"guywire/store"
)

// standing is whom this node deals with: the members by the log, without those
// that an operator banned ahead of it.
type standing struct {
	state *store.State
	bans  []discovery.Ban
	names map[mesh.NodeID]string // who banned whom
}

func (s *standing) event() core.StateChanged {
	return core.StateChanged{State: s.state, Banned: s.names}
}

// ban is the word against a node.
func (s *standing) ban(node mesh.NodeID) (discovery.Ban, bool) {
	i := slices.IndexFunc(s.bans, func(b discovery.Ban) bool { return b.Node == node })
	if i < 0 {
		return discovery.Ban{}, false
	}
	return s.bans[i], true
}

// weigh holds what operators said against the newest state: what has no effect
// any more is dropped, and who is banned is cut off. A node does not cut off
// itself: that is for the log. It is for one goroutine at a time.
func (m *member) weigh() *standing {
	state := m.plane.State()
	m.mu.Lock()
	for _, b := range m.bans.Prune(time.Now(), state) {
		m.forget(discovery.Subject{Node: b.Node, Ban: true})
		m.newFacts = true
	}
	now := &standing{state: state, bans: m.bans.All(), names: map[mesh.NodeID]string{}}
	m.mu.Unlock()
	var banned []mesh.NodeID
	for _, b := range now.bans {
		if b.Node != m.self {
			banned = append(banned, b.Node)
			now.names[b.Node] = authorName(state, b.Author)
		}
	}
	if len(banned) > 0 {
		now.state = state.Without(banned...)
	}
	m.standing.Store(now)
	m.plane.Ban(banned...)
	return now
}

// forget stops passing on what was said of a subject.
func (m *member) forget(about discovery.Subject) {
	if m.gossip != nil {
		m.gossip.Forget(about)
	}
}

// heardBan takes an operator's word from anywhere, also from here.
func (m *member) heardBan(s discovery.Signed) {
	m.mu.Lock()
	changed, err := m.bans.Merge(time.Now(), s, m.plane.State())
	m.newFacts = m.newFacts || changed
	m.mu.Unlock()
	if err != nil {
		m.log.Debug("ban refused", mesh.LogError, err)
	}
	if changed {
		m.spread(s)
		signal(m.words)
	}
}

// ban cuts a node off ahead of the log, by the word of the operator here, if the
// log would let him remove it. It reports whether it is cut off; if not, why is
// for the log to say.
func (m *member) ban(node mesh.NodeID) bool {
	state := m.plane.State()
	if _, member := state.Nodes[node]; !member || m.plane.Check(removal(node)) != nil {
		return false
	}
	ban := discovery.NewBan(time.Now(), state, node, m.agent.ring.Identity())
	signed, err := ban.Sign(m.agent.ring.Sign)
	if err != nil {
		m.log.Error("a ban cannot be stated", mesh.LogError, err)
		return false
	}
	m.heardBan(signed)
	m.saveFacts() // a restart before the log has it must not let the node in again
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(m.bans.All(), func(b discovery.Ban) bool { return b.Node == node })
}

// removal is what the log is asked for when a node is revoked.
func removal(node mesh.NodeID) store.Command {
	return store.Command{RemoveNode: &store.RemoveNode{Node: node, Revoke: true}}
}

// insist brings into the log what the operator here said while no majority of
// the voters could be reached.
func (m *member) insist(ctx context.Context) error {
	tick := time.NewTicker(insistEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		for _, b := range m.standing.Load().bans {
			if b.Author != m.agent.ring.Identity() || m.revoking.Load() > 0 || m.plane.Status().Leader.IsZero() {
				continue
			}
			if _, err := m.plane.Operate(ctx, removal(b.Node)); err != nil {
				m.log.Warn("a ban is not in the log yet", mesh.LogNode, nodeName(m.plane.State(), b.Node), mesh.LogError, err)
			}
		}
	}
}
