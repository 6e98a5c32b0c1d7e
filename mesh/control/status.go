package control

import (
	"slices"
	"time"

	"guywire/mesh"
	"guywire/store/raftstore"
)

// Status is one look at the control plane from this node.
type Status struct {
	Role      string            `json:"role"`              // voter or follower
	Leader    mesh.NodeID       `json:"leader,omitzero"`   // zero: none is known
	Source    mesh.NodeID       `json:"source,omitzero"`   // the voter that a follower follows; zero: none
	Index     uint64            `json:"index"`             // of State
	Lag       uint64            `json:"lag"`               // entries behind the newest that is known of
	Voters    []mesh.NodeID     `json:"voters"`            // by the state, oldest first
	Followers []mesh.NodeID     `json:"followers"`         // that this voter serves
	Expires   time.Time         `json:"expires"`           // this node's certificate
	Problem   string            `json:"problem,omitempty"` // why a voter's log is not open
	Doubled   time.Time         `json:"doubled,omitzero"`  // when another machine was last seen that runs as this node
	Raft      *raftstore.Status `json:"raft,omitempty"`    // voters only
}

// Status looks at the control plane.
func (p *Plane) Status() Status {
	state := p.State()
	st := Status{Role: "follower", Index: state.Index, Expires: p.expiry()}
	for _, id := range oldest(state) {
		if state.Nodes[id].Voter {
			st.Voters = append(st.Voters, id)
		}
	}
	p.following.mu.Lock()
	st.Source, st.Leader = p.following.voter, p.following.leader
	newest := p.following.newest
	p.following.mu.Unlock()
	p.voter.mu.Lock()
	log, problem := p.voter.log, p.voter.problem
	st.Doubled = p.voter.doubled
	p.voter.mu.Unlock()
	st.Problem = problem
	if log != nil {
		raft := log.Status()
		st.Role, st.Raft, newest = "voter", &raft, max(newest, log.State().Index)
		if !raft.Leader.IsZero() {
			st.Leader = raft.Leader
		}
	}
	st.Lag = max(newest, st.Index) - st.Index
	p.streams.mu.Lock()
	for id := range p.streams.open {
		st.Followers = append(st.Followers, id)
	}
	p.streams.mu.Unlock()
	slices.SortFunc(st.Followers, mesh.NodeID.Compare)
	return st
}
