package raftstore

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"guywire/mesh"
)

// Status is one look at the replicated log from this voter.
type Status struct {
	Role     string        `json:"role"` // leader, follower, candidate or shutdown
	Leader   mesh.NodeID   `json:"leader,omitzero"`
	Term     uint64        `json:"term"`
	Last     uint64        `json:"last"`      // index of the last entry on disk
	LastTerm uint64        `json:"last_term"` // of that entry
	Commit   uint64        `json:"commit"`
	Applied  uint64        `json:"applied"`
	Voters   []mesh.NodeID `json:"voters"`             // as far as this voter knows, sorted
	Learners []mesh.NodeID `json:"learners,omitempty"` // get the log and have no vote yet
	Contact  time.Time     `json:"contact,omitzero"`   // when the leader was last heard; zero on the leader
	Quiet    time.Duration `json:"quiet,omitempty"`    // since Contact, by this machine's clock
	Snapshot uint64        `json:"snapshot,omitempty"` // index of the newest snapshot on disk
	Failed   bool          `json:"failed,omitempty"`   // the disk stalled, failed or is damaged: this voter serves no more
	Silent   []Silence     `json:"silent,omitempty"`   // on the leader: who does not answer its heartbeats, sorted
	Health   []Health      `json:"health,omitempty"`   // on the leader: of all voters and learners, sorted
	Doubled  []mesh.NodeID `json:"doubled,omitempty"`  // voters of which an old or a second copy called lately
}

// A Silence is a voter or learner that does not answer the leader.
type Silence struct {
	Node  mesh.NodeID `json:"node"`
	Since time.Time   `json:"since"`
}

// Leads reports whether this voter is the leader.
func (s Status) Leads() bool { return s.Role == "leader" }

// Status looks at the log.
func (s *Store) Status() Status {
	st := Status{
		Role: roles[s.raft.State()], Leader: s.leader(), Term: s.raft.CurrentTerm(),
		Last: s.raft.LastIndex(), Commit: s.raft.CommitIndex(), Applied: s.raft.AppliedIndex(),
		Failed: s.log.failed.Load(), Doubled: s.stream.doubles(),
	}
	stats := s.raft.Stats() // raft tells these nowhere else
	st.Snapshot, _ = strconv.ParseUint(stats["last_snapshot_index"], 10, 64)
	st.LastTerm, _ = strconv.ParseUint(stats["last_log_term"], 10, 64)
	if st.Leads() {
		st.Silent, st.Health = s.silent.list(), s.care.health()
	} else {
		st.Contact = s.raft.LastContact()
		st.Quiet = time.Since(st.Contact)
	}
	for _, server := range s.raft.GetConfiguration().Configuration().Servers {
		node, err := mesh.ParseNodeID(string(server.ID))
		switch {
		case err != nil: // not written by us
		case server.Suffrage == raft.Voter:
			st.Voters = append(st.Voters, node)
		default:
			st.Learners = append(st.Learners, node)
		}
	}
	slices.SortFunc(st.Voters, mesh.NodeID.Compare)
	slices.SortFunc(st.Learners, mesh.NodeID.Compare)
	return st
}

// silences are the heartbeats that went unanswered since this voter leads.
type silences struct {
	mu    sync.Mutex // guards since
	since map[mesh.NodeID]time.Time
}

// observe takes in what raft tells of its heartbeats.
func (s *silences) observe(event any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e := event.(type) {
	case raft.FailedHeartbeatObservation:
		if id, err := mesh.ParseNodeID(string(e.PeerID)); err == nil {
			if s.since == nil {
				s.since = map[mesh.NodeID]time.Time{}
			}
			s.since[id] = e.LastContact
		}
	case raft.ResumedHeartbeatObservation:
		if id, err := mesh.ParseNodeID(string(e.PeerID)); err == nil {
			delete(s.since, id)
		}
	case raft.PeerObservation:
		if id, err := mesh.ParseNodeID(string(e.Peer.ID)); err == nil && e.Removed {
			delete(s.since, id)
		}
	case raft.RaftState:
		clear(s.since)
	}
}

func (s *silences) list() (list []Silence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, since := range s.since {
		list = append(list, Silence{id, since})
	}
	slices.SortFunc(list, func(a, b Silence) int { return a.Node.Compare(b.Node) })
	return list
}

var roles = map[raft.RaftState]string{
	raft.Leader: "leader", raft.Follower: "follower", raft.Candidate: "candidate", raft.Shutdown: "shutdown",
}

// AddLearner gives a node the log without a vote, so that it has caught up
// when it gets one and the majority never depends on an empty disk. Leader only.
func (s *Store) AddLearner(ctx context.Context, id mesh.NodeID) error {
	return s.change(ctx, "add learner", s.raft.AddNonvoter(serverID(id), raft.ServerAddress(id.String()), 0, enqueueTimeout))
}

// AddVoter gives a node its vote. Leader only.
func (s *Store) AddVoter(ctx context.Context, id mesh.NodeID) error {
	return s.change(ctx, "add voter", s.raft.AddVoter(serverID(id), raft.ServerAddress(id.String()), 0, enqueueTimeout))
}

// RemoveServer ends a node's vote and its copy of the log. Leader only.
func (s *Store) RemoveServer(ctx context.Context, id mesh.NodeID) error {
	return s.change(ctx, "remove voter", s.raft.RemoveServer(serverID(id), 0, enqueueTimeout))
}

func (s *Store) change(ctx context.Context, what string, future raft.Future) error {
	if err := s.wait(ctx, future); err != nil {
		return fmt.Errorf("%s: %w", what, s.explain(err))
	}
	return nil
}

// Demote takes a node's vote and goes on to give it the log. Leader only.
func (s *Store) Demote(ctx context.Context, id mesh.NodeID) error {
	return s.change(ctx, "demote voter", s.raft.DemoteVoter(serverID(id), 0, enqueueTimeout))
}

// Transfer hands leadership to another voter: to, or with zero any that is up
// to date. Leader only.
func (s *Store) Transfer(ctx context.Context, to mesh.NodeID) error {
	if to.IsZero() {
		return s.change(ctx, "hand over leadership", s.raft.LeadershipTransfer())
	}
	return s.change(ctx, "hand over leadership", s.raft.LeadershipTransferToServer(serverID(to), raft.ServerAddress(to.String())))
}

// Close hands leadership over if this voter leads others, stops and closes the
// files. With a hanging disk it gives up after a few seconds and says so; the
// files then stay locked until the process ends.
func (s *Store) Close() error {
	if st := s.Status(); st.Leads() && len(st.Voters) > 1 {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		if err := s.Transfer(ctx, mesh.NodeID{}); err != nil {
			s.config.Logger.Info("leadership could not be handed over", mesh.LogError, err)
		}
		cancel()
	}
	s.failOnce.Do(func() { close(s.failed) }) // a failure from now on is part of closing
	stopped := make(chan error, 1)
	go func() {
		s.care.tasks.Wait()
		err := s.stop().Error()
		s.transport.CloseStreams()
		if closeErr := s.log.disk.Close(); err == nil {
			err = closeErr
		}
		stopped <- err
	}()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case err := <-stopped:
		if err != nil {
			return fmt.Errorf("close replicated log: %w", err)
		}
		return nil
	case <-timer.C:
		return fmt.Errorf("close replicated log: %w", ErrDisk)
	}
}
