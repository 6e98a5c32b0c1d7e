package control

import (
	"maps"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/store/raftstore"
)

// Status is one look at the control plane from this node.
type Status struct {
	Role   string      `json:"role"`            // voter or follower
	Leader mesh.NodeID `json:"leader,omitzero"` // zero: none is known
	Source mesh.NodeID `json:"source,omitzero"` // the voter that a follower follows; zero: none
	Index  uint64      `json:"index"`           // of State
	Lag    uint64      `json:"lag"`             // entries behind the newest that is known of

	Generation uint64    `json:"generation,omitempty"` // of State: how often the mesh was recovered
	Confirmed  time.Time `json:"confirmed,omitzero"`   // when a voter last knew of nothing newer than State; zero: never
	Expired    bool      `json:"expired,omitempty"`    // State is older than the mesh allows: see Plane.Expired
	// Disputed are the voters that have another history than this node. Behind
	// are those that lack what it has: while it finds no other to follow, what
	// it knows more than they do may be lost to the mesh.
	Disputed []mesh.NodeID `json:"disputed,omitempty"`
	Behind   []mesh.NodeID `json:"behind,omitempty"`
	// Doubted is a later generation that a member told of and no voter or
	// operator of State: this node does not take it.
	Doubted uint64 `json:"doubted,omitempty"`
	// Outdated are, on the leader, the members that hold the mesh back at the
	// version that it has: they follow, or vote, and do not read the next one, or
	// are voters that do not answer.
	Outdated []mesh.NodeID `json:"outdated,omitempty"`

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
	st := Status{Role: "follower", Index: state.Index, Generation: state.Mesh.Generation, Expired: p.Expired(), Expires: p.expiry()}
	for _, id := range oldest(state) {
		if state.Nodes[id].Voter {
			st.Voters = append(st.Voters, id)
		}
	}
	p.following.mu.Lock()
	st.Source, st.Leader = p.following.voter, p.following.leader
	newest := p.following.newest
	st.Doubted = p.following.doubted
	st.Disputed = slices.SortedFunc(maps.Keys(p.following.disputed), mesh.NodeID.Compare)
	st.Behind = slices.SortedFunc(maps.Keys(p.following.behind), mesh.NodeID.Compare)
	p.following.mu.Unlock()
	if at := p.confirmed.Load(); at != 0 {
		st.Confirmed = time.Unix(at, 0).UTC()
	}
	p.voter.mu.Lock()
	log, problem := p.voter.log, p.voter.problem
	st.Doubled = p.voter.doubled
	p.voter.mu.Unlock()
	st.Problem = problem
	if log != nil {
		raft := log.Status()
		st.Role, st.Raft = "voter", &raft
		if outdated := p.outdated.Load(); outdated != nil && raft.Leads() {
			st.Outdated = slices.Clone(*outdated)
		}
		if at := positionOf(log.State()); at.compare(newest) > 0 {
			newest = at
		}
		if !raft.Leader.IsZero() {
			st.Leader = raft.Leader
		}
	}
	if newest.compare(positionOf(state)) > 0 {
		st.Lag = newest.Index - min(newest.Index, st.Index)
	}
	p.streams.mu.Lock()
	for id := range p.streams.open {
		st.Followers = append(st.Followers, id)
	}
	p.streams.mu.Unlock()
	slices.SortFunc(st.Followers, mesh.NodeID.Compare)
	return st
}
