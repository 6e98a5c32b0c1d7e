package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"

	"guywire/mesh"
	"guywire/store"
)

// How long the leader waits for its voters, in looks at them; a look is taken
// every 4/3 of Timing.Heartbeat, with WAN every 2 s.
const (
	stableLooks = 5  // in good health before a node gets a vote (10 s)
	silentLooks = 5  // without an answer before it is in bad health (10 s)
	failedLooks = 30 // without an answer before it is replaced (60 s)
	barredLooks = 15 // before a node that could not be made a voter is tried again (30 s)

	shrinkLooks   = 30  // with the same voters before one that works is given up (60 s)
	respreadLooks = 300 // with the same voters before one gives way to a better place (10 min)
)

// teachTimeout is how long one node may need to be ready to take the log.
const teachTimeout = 15 * time.Second

// ErrNoHeir: the only voter has nobody to hand its vote to.
var ErrNoHeir = errors.New("this is the only voter and no other node can take over; open the control port of one that may vote, or remove the other nodes first")

// A Care is what a leader must know, and must have done for it, to care for who
// is a voter. Its functions are called on the leader only, from several
// goroutines.
type Care struct {
	// Members are the live members of the mesh, and how many voters it wants: 1,
	// 3 or 5, or 0 for as many as suit it. Voter, Learner, Healthy, Stable and
	// Failed of the candidates are filled in by the Store.
	Members func(*store.State) (list []Candidate, wanted int)
	// Status asks a voter or learner for its Status.
	Status func(context.Context, mesh.NodeID) (Status, error)
	// Teach makes a node ready to be given the log by the leader of term.
	Teach func(ctx context.Context, id mesh.NodeID, term uint64) error
	// Entrust gives a learner what only voters may have. The state names it as one
	// then, and it gets its vote afterwards.
	Entrust func(context.Context, mesh.NodeID) error
	// Propose writes a command of this voter into the log that it leads. A refusal
	// is an error.
	Propose func(context.Context, *Store, store.Command) error
}

// A Health is what the leader thinks of a voter or learner.
type Health struct {
	Node    mesh.NodeID `json:"node"`
	Healthy bool        `json:"healthy"` // answers, hears the leader, and has the log nearly to its end
	Since   time.Time   `json:"since"`   // of Healthy
	Last    uint64      `json:"last"`    // index of its last entry when it was asked last
}

// care is the part of a Store that keeps the voters as the mesh should have
// them, while it leads: autopilot judges their health, keeps the order of
// changes and makes them; Choose says which.
type care struct {
	*Care
	store *Store
	tasks sync.WaitGroup
	kick  chan struct{} // look at what to do now

	change sync.Mutex // held while the Raft configuration is changed, or compared with the state

	mu        sync.Mutex // guards the fields below
	abdicates bool       // this voter wants another leader
	teaching  map[mesh.NodeID]bool
	barred    map[mesh.NodeID]time.Time
	heard     map[mesh.NodeID]time.Time // last answer of a voter or learner in this leadership
	voters    []mesh.NodeID             // since settled
	settled   time.Time
	state     *autopilot.State
}

func (s *Store) look() time.Duration { return s.config.Timing.Heartbeat * 4 / 3 }

// run cares while this voter leads, until it is closed.
func (c *care) run() {
	defer c.tasks.Done()
	changed, stop := c.store.Watch()
	defer stop()
	for {
		if c.store.raft.State() == raft.Leader {
			c.lead(changed)
		}
		select {
		case <-changed:
		case <-c.store.failed:
			return
		}
	}
}

// lead cares for one leadership.
func (c *care) lead(changed <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	look := c.store.look()
	c.mu.Lock()
	c.heard, c.voters, c.settled = map[mesh.NodeID]time.Time{}, nil, time.Now()
	c.mu.Unlock()
	pilot := autopilot.New(configured{c.store.raft, c, ctx}, delegate{c},
		autopilot.WithPromoter(promoter{c}), autopilot.WithLogger(newLogger(c.store.config.Logger, c.store.failed)),
		autopilot.WithUpdateInterval(look), autopilot.WithReconcileInterval(look))
	pilot.Start(ctx)
	var teachers sync.WaitGroup
	defer func() {
		cancel()
		<-pilot.Stop()
		teachers.Wait()
		c.mu.Lock()
		c.state = nil
		c.mu.Unlock()
	}()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for c.store.raft.State() == raft.Leader {
		err := c.agree(ctx)
		select {
		case <-tick.C:
			err = errors.Join(err, c.tend(ctx, &teachers))
		case <-c.kick:
			err = errors.Join(err, c.tend(ctx, &teachers))
		case <-changed:
		case <-c.store.failed:
			return
		}
		if err != nil && !errors.Is(err, ErrNotLeader) {
			c.store.config.Logger.Warn("voters could not be changed", mesh.LogError, err)
		}
	}
}

// tend lets nodes have the log before they get a vote, and takes it from those
// that are not needed.
func (c *care) tend(ctx context.Context, teachers *sync.WaitGroup) error {
	in, known := c.input()
	if !known {
		return nil
	}
	changes := Choose(in)
	for _, id := range changes.Forget {
		if err := c.forget(ctx, id); err != nil {
			return err
		}
	}
	for _, id := range changes.Learn {
		c.mu.Lock()
		busy := c.teaching[id]
		c.teaching[id] = true
		c.mu.Unlock()
		if busy {
			continue
		}
		teachers.Go(func() {
			if err := c.learn(ctx, id); err != nil && ctx.Err() == nil {
				c.bar(id)
				c.store.config.Logger.Warn("node could not be given the log", mesh.LogNode, id, mesh.LogError, err)
			}
			c.mu.Lock()
			delete(c.teaching, id)
			c.mu.Unlock()
			c.wake()
		})
	}
	return nil
}

func (c *care) wake() {
	select {
	case c.kick <- struct{}{}:
	default: // one is waiting
	}
}

// agree brings the Raft configuration and the state together.
func (c *care) agree(ctx context.Context) error {
	c.change.Lock()
	defer c.change.Unlock()
	st, state := c.store.Status(), c.store.State()
	if state.Mesh.ID.IsZero() {
		return nil
	}
	for _, id := range slices.Concat(st.Voters, st.Learners) {
		if _, member := state.Nodes[id]; !member && id != c.store.config.ID {
			if err := c.store.RemoveServer(ctx, id); err != nil {
				return err
			}
		}
	}
	for id, n := range state.Nodes {
		if votes := slices.Contains(st.Voters, id); votes != n.Voter {
			if err := c.record(ctx, id, votes); err != nil {
				return err
			}
		}
	}
	return nil
}

// forget takes the log of a learner.
func (c *care) forget(ctx context.Context, id mesh.NodeID) error {
	c.change.Lock()
	defer c.change.Unlock()
	if slices.Contains(c.store.Status().Voters, id) {
		return nil // it got its vote meanwhile
	}
	return c.store.RemoveServer(ctx, id)
}

func (c *care) learn(ctx context.Context, id mesh.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, teachTimeout)
	defer cancel()
	if err := c.Teach(ctx, id, c.store.raft.CurrentTerm()); err != nil {
		return err
	}
	c.mu.Lock()
	c.heard[id] = time.Now() // an earlier silence ends
	c.mu.Unlock()
	c.change.Lock()
	defer c.change.Unlock()
	return c.store.AddLearner(ctx, id)
}

// bar keeps a node from becoming a voter for some time.
func (c *care) bar(id mesh.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.barred[id] = time.Now().Add(barredLooks * c.store.look())
}

// input is what Choose decides on; false: autopilot has not looked yet.
func (c *care) input() (Input, bool) {
	st := c.store.Status()
	list, wanted := c.Members(c.store.State())
	c.mu.Lock()
	defer c.mu.Unlock()
	now, state := time.Now(), c.state
	if state == nil {
		return Input{}, false
	}
	if !slices.Equal(c.voters, st.Voters) {
		c.voters, c.settled = st.Voters, now
	}
	stable := state.ServerStabilizationTime(c.conf(len(st.Voters)))
	in := Input{Self: c.store.config.ID, Candidates: slices.Clone(list), Wanted: wanted}
	in.Shrink, in.Respread = now.Sub(c.settled) >= shrinkLooks*c.store.look(), now.Sub(c.settled) >= respreadLooks*c.store.look()
	for i := range in.Candidates {
		n := &in.Candidates[i]
		n.Barred = n.Barred || now.Before(c.barred[n.ID])
		n.Drained = n.Drained || c.abdicates && n.ID == in.Self
		n.Voter, n.Learner = slices.Contains(st.Voters, n.ID), slices.Contains(st.Learners, n.ID)
		if server := state.Servers[serverID(n.ID)]; server != nil && (n.Voter || n.Learner) {
			n.Healthy, n.Stable = server.Health.Healthy, server.Health.IsStable(now, stable)
		}
		n.Failed = (n.Voter || n.Learner) && n.ID != c.store.config.ID && c.quietLocked(n.ID, now) >= failedLooks*c.store.look()
	}
	return in, true
}

// quietLocked is how long a node has not answered in this leadership.
func (c *care) quietLocked(id mesh.NodeID, now time.Time) time.Duration {
	last, asked := c.heard[id]
	if !asked { // from the first look on
		c.heard[id] = now
		return 0
	}
	return now.Sub(last)
}

// conf is autopilot's configuration. A mesh with one voter does not wait to get
// others.
func (c *care) conf(voters int) *autopilot.Config {
	look := c.store.look()
	conf := &autopilot.Config{
		LastContactThreshold: look, MaxTrailingLogs: trailingLogs, ServerStabilizationTime: stableLooks * look,
		// CleanupDeadServers is off: it would take the vote of a dead voter that
		// nobody replaces, and counts who left the mesh among those it must keep.
	}
	if voters <= 1 {
		conf.ServerStabilizationTime = 0
	}
	return conf
}

func (c *care) health() (list []Health) {
	c.mu.Lock()
	state := c.state
	c.mu.Unlock()
	if state == nil {
		return nil
	}
	for id, server := range state.Servers {
		if node, err := mesh.ParseNodeID(string(id)); err == nil {
			list = append(list, Health{Node: node, Healthy: server.Health.Healthy, Since: server.Health.StableSince, Last: server.Stats.LastIndex})
		}
	}
	slices.SortFunc(list, func(a, b Health) int { return a.Node.Compare(b.Node) })
	return list
}

// Dismiss takes the vote and the log of a node that is about to leave, provided
// that every other voter answers: then those that remain are a majority of
// themselves. It is not made a voter again for some time. Leader only.
func (s *Store) Dismiss(ctx context.Context, id mesh.NodeID) error {
	c := &s.care
	c.bar(id)
	c.change.Lock()
	defer c.change.Unlock()
	for _, other := range s.Status().Voters {
		if other == s.config.ID || other == id {
			continue
		}
		if _, err := c.Status(ctx, other); err != nil {
			return fmt.Errorf("take the vote of %s: %w", id, err)
		}
	}
	if err := s.RemoveServer(ctx, id); err != nil {
		return err
	}
	return c.record(ctx, id, false)
}

// Abdicate hands leadership to another voter, which is made first if there is
// none. It returns when this voter does not lead. Errors: ErrNoHeir, and what
// went wrong.
func (s *Store) Abdicate(ctx context.Context) error {
	if len(s.Status().Voters) > 1 {
		return s.Transfer(ctx, mesh.NodeID{})
	}
	c := &s.care
	list, _ := c.Members(s.State())
	if !slices.ContainsFunc(list, func(n Candidate) bool { return n.ID != s.config.ID && n.fit() }) {
		return ErrNoHeir
	}
	c.abdicate(true)
	defer c.abdicate(false)
	changed, stop := s.Watch()
	defer stop()
	for s.raft.State() == raft.Leader {
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("no other node could be made a voter: %w", ctx.Err())
		case <-s.failed:
			return ErrClosed
		}
	}
	return nil
}

func (c *care) abdicate(wanted bool) {
	c.mu.Lock()
	c.abdicates = wanted
	c.mu.Unlock()
	c.wake()
}

// promote gives a learner its vote.
func (c *care) promote(ctx context.Context, id mesh.NodeID) error {
	c.change.Lock()
	defer c.change.Unlock()
	if st := c.store.Status(); slices.Contains(st.Voters, id) {
		return nil
	} else if !slices.Contains(st.Learners, id) {
		return fmt.Errorf("%s has no log any more", id)
	}
	if err := c.record(ctx, id, true); err != nil {
		return err
	}
	if err := c.entrust(ctx, id); err != nil {
		c.bar(id)
		return fmt.Errorf("entrust %s: %w", id, err)
	}
	if err := c.store.AddVoter(ctx, id); err != nil {
		return err
	}
	c.store.config.Logger.Info("voter added", mesh.LogNode, id)
	return nil
}

func (c *care) entrust(ctx context.Context, id mesh.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, rpcTimeout)
	defer cancel()
	return c.Entrust(ctx, id)
}

// record writes into the state who is a voter: before the Raft configuration
// names one, and after it did, so that whoever reads either can tell.
func (c *care) record(ctx context.Context, id mesh.NodeID, vote bool) error {
	err := c.Propose(ctx, c.store, store.Command{SetVoter: &store.SetVoter{Node: id, Voter: vote}})
	if err != nil {
		return fmt.Errorf("record voter %s: %w", id, err)
	}
	return nil
}

// demote takes a voter's vote; what it has of the log goes with Choose's Forget.
func (c *care) demote(ctx context.Context, id mesh.NodeID) error {
	c.change.Lock()
	defer c.change.Unlock()
	if !slices.Contains(c.store.Status().Voters, id) || id == c.store.config.ID {
		return nil
	}
	if err := c.store.Demote(ctx, id); err != nil {
		return err
	}
	c.store.config.Logger.Info("voter dismissed", mesh.LogNode, id)
	return c.record(ctx, id, false)
}

// configured is the Raft that autopilot changes.
type configured struct {
	*raft.Raft
	care *care
	ctx  context.Context // of the leadership: autopilot's calls have none
}

var _ autopilot.Raft = configured{}

func (r configured) done(id raft.ServerID, change func(context.Context, mesh.NodeID) error) done {
	node, err := mesh.ParseNodeID(string(id))
	if err == nil {
		err = change(r.ctx, node)
	}
	return done{err}
}

// AddVoter implements autopilot.Raft.
func (r configured) AddVoter(id raft.ServerID, _ raft.ServerAddress, _ uint64, _ time.Duration) raft.IndexFuture {
	return r.done(id, r.care.promote)
}

// DemoteVoter implements autopilot.Raft.
func (r configured) DemoteVoter(id raft.ServerID, _ uint64, _ time.Duration) raft.IndexFuture {
	return r.done(id, r.care.demote)
}

// LeadershipTransferToServer implements autopilot.Raft.
func (r configured) LeadershipTransferToServer(id raft.ServerID, _ raft.ServerAddress) raft.Future {
	return r.done(id, r.care.store.Transfer)
}

// done is the future of what has happened already.
type done struct{ err error }

// Error implements raft.Future.
func (d done) Error() error { return d.err }

// Index implements raft.IndexFuture; nobody asks.
func (done) Index() uint64 { return 0 }

// delegate is what autopilot knows of the mesh.
type delegate struct{ *care }

var _ autopilot.ApplicationIntegration = delegate{}

// AutopilotConfig implements autopilot.ApplicationIntegration.
func (d delegate) AutopilotConfig() *autopilot.Config { return d.conf(len(d.store.Status().Voters)) }

// NotifyState implements autopilot.ApplicationIntegration.
func (d delegate) NotifyState(state *autopilot.State) {
	d.mu.Lock()
	d.state = state
	d.mu.Unlock()
	d.wake()
}

// KnownServers implements autopilot.ApplicationIntegration.
func (d delegate) KnownServers() map[raft.ServerID]*autopilot.Server {
	st, now := d.store.Status(), time.Now()
	known := map[raft.ServerID]*autopilot.Server{}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range slices.Concat(st.Voters, st.Learners) {
		server := &autopilot.Server{
			ID: serverID(id), Name: id.String(), Address: raft.ServerAddress(id.String()),
			NodeStatus: autopilot.NodeAlive, NodeType: autopilot.NodeVoter, IsLeader: id == d.store.config.ID,
		}
		if !server.IsLeader && d.quietLocked(id, now) >= silentLooks*d.store.look() {
			server.NodeStatus = autopilot.NodeFailed
		}
		known[server.ID] = server
	}
	return known
}

// FetchServerStats implements autopilot.ApplicationIntegration. It asks all
// side by side, over the connections of the control plane: what Raft hears of
// a voter and what the voter says of itself are two things.
func (d delegate) FetchServerStats(ctx context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	stats := make(map[raft.ServerID]*autopilot.ServerStats, len(servers))
	var mu sync.Mutex // guards stats
	var all sync.WaitGroup
	for id, server := range servers {
		node, err := mesh.ParseNodeID(server.Name)
		if err != nil {
			continue
		}
		all.Go(func() {
			st, err := d.store.Status(), error(nil)
			if node != d.store.config.ID {
				st, err = d.Status(ctx, node)
			}
			if err != nil {
				return // until it counts as silent, what was known of it goes on to count
			}
			now := time.Now()
			d.mu.Lock()
			d.heard[node] = now
			d.mu.Unlock()
			answer := &autopilot.ServerStats{LastTerm: st.LastTerm, LastIndex: st.Last}
			if !st.Leads() {
				answer.LastContact = max(0, st.Quiet)
			}
			mu.Lock()
			stats[id] = answer
			mu.Unlock()
		})
	}
	all.Wait()
	return stats
}

// RemoveFailedServer implements autopilot.ApplicationIntegration; Choose
// forgets learners that fail, and replaces voters.
func (delegate) RemoveFailedServer(*autopilot.Server) {}

// promoter is Choose as autopilot asks it.
type promoter struct{ *care }

var _ autopilot.Promoter = promoter{}

// CalculatePromotionsAndDemotions implements autopilot.Promoter. Autopilot
// takes one vote of a dead voter first where their number is odd, then gives
// votes, and takes the others in a later round.
func (p promoter) CalculatePromotionsAndDemotions(*autopilot.Config, *autopilot.State) (changes autopilot.RaftChanges) {
	in, known := p.input()
	if !known {
		return changes
	}
	choice := Choose(in)
	if !choice.Leader.IsZero() { // first: the next leader does the rest
		changes.Leader = serverID(choice.Leader)
		return changes
	}
	for _, id := range choice.Promote {
		changes.Promotions = append(changes.Promotions, serverID(id))
	}
	for _, id := range choice.Demote {
		changes.Demotions = append(changes.Demotions, serverID(id))
	}
	return changes
}

// GetServerExt implements autopilot.Promoter.
func (promoter) GetServerExt(*autopilot.Config, *autopilot.ServerState) any { return nil }

// GetStateExt implements autopilot.Promoter.
func (promoter) GetStateExt(*autopilot.Config, *autopilot.State) any { return nil }

// GetNodeTypes implements autopilot.Promoter.
func (promoter) GetNodeTypes(*autopilot.Config, *autopilot.State) map[raft.ServerID]autopilot.NodeType {
	return nil
}

// FilterFailedServerRemovals implements autopilot.Promoter.
func (promoter) FilterFailedServerRemovals(*autopilot.Config, *autopilot.State, *autopilot.FailedServers) *autopilot.FailedServers {
	return &autopilot.FailedServers{}
}

// IsPotentialVoter implements autopilot.Promoter.
func (promoter) IsPotentialVoter(kind autopilot.NodeType) bool { return kind == autopilot.NodeVoter }
