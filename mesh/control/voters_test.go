package control

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
	"guywire/store/raftstore"
)

func leaderOf(t *testing.T, all []*machine) (leader *machine) {
	t.Helper()
	eventually(t, "somebody leads", func() bool {
		for _, m := range all {
			if log := m.voter.store(); log != nil && log.Status().Leads() {
				leader = m
				return true
			}
		}
		return false
	})
	return leader
}

// votersAre waits until exactly these machines are voters, by everything that says so.
func votersAre(t *testing.T, all []*machine, want ...*machine) {
	t.Helper()
	eventually(t, "the voters are as they should be", func() bool {
		for _, m := range all {
			st, is := m.Status(), slices.Contains(want, m)
			if m.State().Nodes[m.ID()].Voter != is || (m.voter.authority() != nil) != is || (st.Raft != nil) != is ||
				is && (len(st.Raft.Voters) != len(want) || len(st.Raft.Learners) > 0) || raftstore.Exists(m.files.raft()) != is {
				return false
			}
		}
		return true
	})
}

func TestDeadVoterIsReplaced(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	if err := all[1].shut(); err != nil {
		t.Fatal(err)
	}
	rest := []*machine{all[0], all[2], all[3]}
	votersAre(t, rest, rest...)
	all[1].run(Open(all[1].config))
	votersAre(t, all, rest...)
	r := all[1].propose(all[1].grant(1))
	sameState(t, all, r.Index)
}

// single is a mesh of version 3 whose founder is its only voter.
func single(t *testing.T, more ...string) []*machine {
	t.Helper()
	all := []*machine{founded(t)}
	one := 1
	all[0].propose(store.Command{SetSettings: &store.SetSettings{Voters: &one}})
	for _, name := range more {
		all = append(all, all[0].joined(name))
	}
	eventually(t, "all can be reached", func() bool {
		for _, n := range all[0].State().Nodes {
			if len(n.Control) == 0 {
				return false
			}
		}
		return true
	})
	votersAre(t, all, all[0])
	return all
}

// spared is a mesh of one voter with a learner, the last one, that is ready to
// replace it.
func spared(t *testing.T) (all []*machine, spare *machine) {
	t.Helper()
	all = single(t, "two", "three", "four", "five")
	all = append(all, all[0].joined("six"))
	eventually(t, "there is a learner", func() bool {
		st := all[0].voter.store().Status()
		i := slices.IndexFunc(all, func(m *machine) bool { return slices.Contains(st.Learners, m.ID()) })
		if i < 0 || all[i].voter.store() == nil || all[i].voter.store().State().Index < st.Applied {
			return false
		}
		spare = all[i]
		return true
	})
	return all, spare
}

// TestLearnerHasNoKey: a node that may become a voter has the log and not the
// key of the CA, which it gets with its vote: so the CA is changed when a node
// is revoked that knew the key.
func TestLearnerHasNoKey(t *testing.T) {
	t.Parallel()
	all, spare := spared(t)
	all[0].tend()
	if held := spare.voter.keys(); len(held) != 0 {
		t.Errorf("a learner holds %d CA keys", len(held))
	}
	if _, err := spare.config.State.Read(authorityFile, maxFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the key file of a learner: %v", err)
	}
	if spare.State().Nodes[spare.ID()].EverVoted {
		t.Error("a learner is said to have voted")
	}
	three := 3
	all[0].propose(store.Command{SetSettings: &store.SetSettings{Voters: &three}})
	eventually(t, "it is a voter with the key", func() bool { return spare.voter.authority() != nil })
	if !all[0].State().Nodes[spare.ID()].EverVoted {
		t.Error("who has the key is said never to have voted")
	}
}

// TestLearnerProposes: a learner has the log and no vote, so it asks a voter for
// what it wants, as all other members do.
func TestLearnerProposes(t *testing.T) {
	t.Parallel()
	_, spare := spared(t)
	spare.propose(spare.grant(1))
	if st := spare.Status(); st.Raft == nil || !slices.Contains(st.Raft.Learners, spare.ID()) {
		t.Errorf("it is no learner any more: %+v", st.Raft)
	}
}

// TestVoterWithAFailedLogProposes: a voter whose log fails, even while it leads
// and a change is under way, still gets it made: by the others.
func TestVoterWithAFailedLogProposes(t *testing.T) {
	t.Parallel()
	all := three(t)
	sick := leaderOf(t, all)
	sick.voter.change.Lock() // it does not open its log again
	defer sick.voter.change.Unlock()
	if err := sick.voter.store().Close(); err != nil {
		t.Fatal(err)
	}
	sick.propose(sick.grant(1)) // the log has failed, and nobody has noticed
	sick.voter.set(nil, "the disk failed")
	sick.propose(sick.grant(2))
}

func TestVotersSpreadOverSites(t *testing.T) {
	t.Parallel()
	all := single(t, "two", "three", "four", "five")
	for i, site := range []string{"a", "a", "a", "b", "c"} {
		all[0].propose(store.Command{SetNode: &store.SetNode{Node: all[i].ID(), Site: &site}})
	}
	any := 0
	all[0].propose(store.Command{SetSettings: &store.SetSettings{Voters: &any}})
	votersAre(t, all, all[0], all[3], all[4])
}

func TestNoVoteIsNeverPromoted(t *testing.T) {
	t.Parallel()
	all := single(t, "two", "three", "four")
	noVote := func(m *machine) {
		all[0].propose(store.Command{SetRoles: &store.SetRoles{Node: m.ID(), Roles: []store.NodeRole{store.NodeNoVote}}})
	}
	noVote(all[1])
	any := 0
	all[0].propose(store.Command{SetSettings: &store.SetSettings{Voters: &any}})
	votersAre(t, all, all[0], all[2], all[3])
	// The role takes a vote, too, though nobody is there for it.
	noVote(all[2])
	votersAre(t, all, leaderOf(t, []*machine{all[0], all[3]}))
}

func TestDrainMovesLeadershipAndVote(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	out := leaderOf(t, all)
	rest := slices.DeleteFunc(slices.Clone(all), func(m *machine) bool { return m == out })
	out.propose(store.Command{SetDrain: &store.SetDrain{Node: out.ID(), Drain: true}})
	votersAre(t, all, rest...)
	leaderOf(t, rest)
}

// copyState copies a state directory that nobody uses, as a backup does.
func copyState(t *testing.T, to, from string) {
	t.Helper()
	err := os.CopyFS(to, os.DirFS(from))
	if err == nil {
		err = filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
			mode := fs.FileMode(0o600)
			if err == nil && d.IsDir() {
				mode = 0o700
			}
			return errors.Join(err, os.Chmod(path, mode))
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// registered waits until the mesh knows which copy of its log each voter runs.
func registered(t *testing.T, all []*machine) {
	t.Helper()
	eventually(t, "the copies are known", func() bool {
		for _, m := range all {
			for _, by := range all {
				if log := m.voter.store(); log == nil || by.State().Nodes[m.ID()].Boot != log.Boot() {
					return false
				}
			}
		}
		return true
	})
}

func TestRestoredBackupIsRefused(t *testing.T) {
	t.Parallel()
	for name, of := range map[string]string{"an earlier run": "cold", "the last run": "hot"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := three(t)
			registered(t, all)
			led := leaderOf(t, all)
			old := all[slices.IndexFunc(all, func(m *machine) bool { return m != led && m != all[0] })]
			backup := filepath.Join(t.TempDir(), "backup")
			if of == "cold" {
				if err := old.shut(); err != nil {
					t.Fatal(err)
				}
			}
			copyState(t, backup, old.path)
			if of == "cold" {
				old.run(Open(old.config))
				registered(t, all)
			}
			r := all[0].propose(all[0].grant(1))
			sameState(t, all, r.Index)
			eventually(t, "the leader knows how far it was", func() bool {
				return slices.ContainsFunc(leaderOf(t, all).Status().Raft.Health, func(h raftstore.Health) bool { return h.Node == old.ID() && h.Last >= r.Index })
			})
			if err := old.shut(); err != nil {
				t.Fatal(err)
			}
			old.unload()
			if err := os.RemoveAll(old.path); err != nil {
				t.Fatal(err)
			}
			copyState(t, old.path, backup)
			old.load()
			old.run(Open(old.config))
			if st := old.Status(); st.Raft != nil || st.Problem == "" {
				t.Errorf("it uses the old log: %+v", st)
			}
			registered(t, all)
			votersAre(t, all, all...)
			if n := old.voter.store().Boot().N; n != 1 {
				t.Errorf("its log was opened %d times; it is not a new one", n)
			}
		})
	}
}

func TestCloneIsRefused(t *testing.T) {
	t.Parallel()
	all := three(t)
	registered(t, all)
	old := all[1]
	if err := old.shut(); err != nil {
		t.Fatal(err)
	}
	second := newMachine(t)
	second.unload()
	if err := os.RemoveAll(second.path); err != nil {
		t.Fatal(err)
	}
	copyState(t, second.path, old.path)
	old.run(Open(old.config))
	registered(t, all)
	second.load()
	for range 2 { // each try counts as one that was opened
		if p, err := Open(second.config); !errors.Is(err, ErrCloned) {
			if err == nil {
				p.Close()
			}
			t.Fatalf("open of the copy: %v", err)
		}
	}
	if old.Status().Doubled.IsZero() {
		t.Error("the first one does not know")
	}
	r := old.propose(old.drain())
	sameState(t, all, r.Index)
}

// drain is a command that every node may give: about itself.
func (m *machine) drain() store.Command {
	return store.Command{SetDrain: &store.SetDrain{Node: m.ID(), Drain: true}}
}

// issuedBy waits until all show certificates of the mesh's newest CA, which is
// not one of before.
func issuedBy(t *testing.T, all []*machine, before ...[32]byte) [32]byte {
	t.Helper()
	var pin [32]byte
	eventually(t, "all have certificates of the new CA", func() bool {
		pin, _ = current(all[0].State())
		for _, m := range all {
			shown := m.certificate.Load().Certificate
			if signer, err := transport.Pin(shown[len(shown)-1]); err != nil || signer != pin {
				return false
			}
		}
		return !slices.Contains(before, pin)
	})
	return pin
}

func TestRevokedVoterRotatesTheCA(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	before := issuedBy(t, all)
	all[0].propose(store.Command{RemoveNode: &store.RemoveNode{Node: all[1].ID(), Revoke: true}})
	if err := all[1].ended(); !errors.Is(err, ErrRemoved) {
		t.Errorf("run returned %v, want ErrRemoved", err)
	}
	rest := []*machine{all[0], all[2], all[3]}
	issuedBy(t, rest, before)
	eventually(t, "the old CA is not accepted", func() bool {
		return !slices.Contains(all[3].State().Pins(), before) && slices.Contains(all[3].State().Retired(), before)
	})
	votersAre(t, rest, rest...)
	all[0].joined("five")
}

// TestLostRotationBeginsAgain: the key of the next CA was with a leader that is
// gone, so the mesh drops that CA; who asked for another one still gets one.
func TestLostRotationBeginsAgain(t *testing.T) {
	t.Parallel()
	all := three(t)
	before := issuedBy(t, all)
	nobodys, err := transport.NewAuthority(all[0].State().Mesh.ID, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	all[0].propose(store.Command{RotateCA: &store.RotateCA{Step: store.CAAdd, Pin: nobodys.Pin(), Root: nobodys.Certificate()}})
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	if err := all[0].RotateCA(ctx); err != nil {
		t.Fatal(err)
	}
	if pin := issuedBy(t, all, before); pin == nobodys.Pin() {
		t.Error("certificates are issued with a key that nobody has")
	}
}

func TestB41TwoRotationsAway(t *testing.T) {
	t.Parallel()
	all := three(t)
	away := all[0].admitted("four", TokenRequest{})
	all = append(all, away)
	first := issuedBy(t, all)
	if err := away.shut(); err != nil {
		t.Fatal(err)
	}
	rest := all[:3]
	for epoch := range mesh.Epoch(2) {
		if err := all[0].RotateCA(t.Context()); err != nil {
			t.Fatal(err)
		}
		old := issuedBy(t, rest, first)
		public, err := all[1].config.Ring.Generate(epoch + 2)
		if err != nil {
			t.Fatal(err)
		}
		all[1].propose(store.Command{AddKey: &store.AddKey{Node: all[1].ID(), Key: store.Key{Epoch: epoch + 2, Public: public}}})
		all[1].propose(store.Command{DropKey: &store.DropKey{Node: all[1].ID(), Epoch: epoch + 1}})
		for _, ca := range all[0].State().Mesh.Authorities {
			if ca.State == store.CAPrevious {
				all[0].propose(store.Command{RotateCA: &store.RotateCA{Step: store.CARetire, Pin: ca.Pin}})
			}
		}
		if epoch == 0 {
			first = old
		}
	}
	away.run(Open(away.config))
	issuedBy(t, all, first)
	sameState(t, all, all[0].State().Index)
	if keys := away.State().Nodes[all[1].ID()].Keys; len(keys) != 1 || keys[0].Epoch != 3 {
		t.Errorf("keys: %+v", keys)
	}
	if err := away.RotateCA(t.Context()); err == nil {
		t.Error("a node that is no operator changed the CA")
	}
}

func TestRecoverRefusesWhileALeaderIsSeen(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	eventually(t, "it follows", func() bool { return !all[3].Status().Leader.IsZero() })
	for i, m := range all {
		if _, err := m.RecoverPlan(t.Context()); !errors.Is(err, ErrLeaderSeen) {
			t.Errorf("plan of node %d: %v, want ErrLeaderSeen", i, err)
		}
		if err := m.Recover(t.Context(), RecoverPlan{}); !errors.Is(err, ErrLeaderSeen) {
			t.Errorf("recovery on node %d: %v, want ErrLeaderSeen", i, err)
		}
	}
}

func (m *machine) plan() (plan RecoverPlan) {
	m.t.Helper()
	eventually(m.t, "no leader is seen", func() (seen bool) {
		var err error
		plan, err = m.RecoverPlan(m.t.Context())
		return err == nil
	})
	return plan
}

func TestRecoverFromAFollowersCache(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	eventually(t, "the follower can be reached", func() bool { return len(all[0].State().Nodes[all[3].ID()].Control) > 0 })
	r := all[0].propose(all[0].grant(1))
	sameState(t, all, r.Index)
	ca, _ := current(all[0].State())
	for _, m := range all[:3] {
		if err := m.shut(); err != nil {
			t.Fatal(err)
		}
	}
	last := all[3]
	plan := last.plan()
	if plan.Source != last.ID() || plan.Generation != 1 || plan.Index < r.Index || len(plan.LostVoters) != 3 || len(plan.Silent) != 3 || len(plan.Reached) != 1 || len(plan.Appear) != 0 {
		t.Errorf("plan: %+v", plan)
	}
	other := plan
	other.Index++
	if err := last.Recover(t.Context(), other); !errors.Is(err, ErrPlanChanged) {
		t.Errorf("recovery by another plan: %v", err)
	}
	if err := last.Recover(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	issuedBy(t, all[3:], ca)
	votersAre(t, all[3:], last)
	if s := last.State(); s.Mesh.Generation != 1 || len(s.Nodes[all[0].ID()].Prefixes) != 1 {
		t.Errorf("state: %+v", s)
	}
	last.joined("five")
}

func TestRaftRecoverListsWhatAppears(t *testing.T) {
	t.Parallel()
	all := three(t)
	last := leaderOf(t, all)
	done := make(chan error)
	for _, m := range all {
		if m != last {
			go func() { done <- m.shut() }()
		}
	}
	var command store.Command
	for n := 0; ; n++ { // until nobody else is there to confirm it
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		command = last.signed(last.State(), last.grant(n%200))
		_, err := last.voter.store().Propose(ctx, command)
		cancel()
		if err != nil {
			break
		}
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	plan := last.plan()
	if len(plan.Appear) != 1 || plan.Appear[0].Command.Grant == nil || plan.Appear[0].Command.Grant.Prefixes[0] != command.Grant.Prefixes[0] || plan.Appear[0].Index <= plan.Index {
		t.Fatalf("plan: %+v", plan)
	}
	if err := last.Recover(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	votersAre(t, []*machine{last}, last)
	if got := last.State().Nodes[last.ID()].Prefixes; !slices.Equal(got, command.Grant.Prefixes) {
		t.Errorf("prefixes: %v, want what appeared: %v", got, command.Grant.Prefixes)
	}
}

// TestFollowersFindARecoveredMesh: a member that no voter of its state serves
// finds the mesh that an operator recovered, and does not take one that any
// other member made.
func TestFollowersFindARecoveredMesh(t *testing.T) {
	t.Parallel()
	all := three(t)
	one, two := all[0], all[1]
	operator := one.joined("operator")
	plain, usurper := one.admitted("plain", TokenRequest{}), one.admitted("usurper", TokenRequest{})
	all = append(all, operator, plain, usurper)
	eventually(t, "all can be reached", func() bool {
		for _, m := range all {
			if len(one.State().Nodes[m.ID()].Control) == 0 {
				return false
			}
		}
		return true
	})
	sameState(t, all, one.State().Index)
	index := uint64(0)
	for _, m := range all[:3] {
		if err := m.shut(); err != nil {
			t.Fatal(err)
		}
		index = max(index, m.State().Index) // what the old mesh has at most
	}

	plan := usurper.plan()
	if plan.Trusted {
		t.Errorf("plan of a node without a role: %+v", plan)
	}
	if err := usurper.Recover(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*machine{plain, operator} {
		eventually(t, "it is told of", func() bool { return m.Status().Doubted == 1 })
		if s := m.State(); s.Mesh.Generation != 0 || s.Index > index {
			t.Errorf("it took generation %d at %d", s.Mesh.Generation, s.Index)
		}
	}
	if err := usurper.shut(); err != nil {
		t.Fatal(err)
	}

	plan = operator.plan()
	if !plan.Trusted {
		t.Errorf("plan of an operator: %+v", plan)
	}
	if err := operator.Recover(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	r := operator.propose(operator.grant(1))
	sameState(t, []*machine{operator, plain}, r.Index)
	if st := plain.Status(); st.Generation != 1 || st.Doubted != 0 {
		t.Errorf("it follows: %+v", st)
	}
	// A voter of the old mesh finds it, too, and gets a vote in the new one.
	two.run(Open(two.config))
	votersAre(t, []*machine{operator, plain, two}, operator, plain, two)
	r = two.propose(two.grant(2))
	sameState(t, []*machine{operator, plain, two}, r.Index)
}
