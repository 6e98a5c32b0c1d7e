package control

import (
	"maps"

	"guywire/mesh"
	"guywire/mesh/transport"
)

// Ban says with which members this node has nothing to do, by an operator's word
// that the log does not have yet; those of an earlier call that are left out are
// members as before. Their connections are closed and their calls refused.
//
// The log is kept with them until it removes them itself: the vote of a banned
// voter may be what it needs to do so. As a source and as the way to the leader
// a banned voter is what is tried last.
func (p *Plane) Ban(members ...mesh.NodeID) {
	banned := make(map[mesh.NodeID]bool, len(members))
	for _, id := range members {
		banned[id] = true
	}
	before := *p.banned.Load()
	if maps.Equal(before, banned) {
		return
	}
	p.banned.Store(&banned)
	for _, id := range members {
		if before[id] {
			continue
		}
		for _, alpn := range []string{transport.Control, transport.API} {
			p.listener.CutStream(alpn, id)
			p.dialer.CutStream(alpn, id)
		}
	}
}

func (p *Plane) isBanned(id mesh.NodeID) bool { return (*p.banned.Load())[id] }
