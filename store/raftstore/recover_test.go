package raftstore

import (
	"errors"
	"os"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/store"
)

func TestInspect(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	v := f.founded()
	for n := range 4 {
		f.propose([]*voter{v}, f.write(n+1))
	}
	if err := v.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	at := v.State().Index
	for n := range 3 {
		f.propose([]*voter{v}, f.write(n+10))
	}
	last := v.State().Index
	if _, err := Inspect(v.config.Dir); !errors.Is(err, ErrInUse) {
		t.Errorf("inspected while it runs: %v, want ErrInUse", err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it changes nothing
		in, err := Inspect(v.config.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if in.Snapshot != at || in.Last != last || in.Committed < last-1 || in.State.Index > in.Committed || in.State.Index < last-1 ||
			in.Boots != 1 || in.Term == 0 || len(in.Voters) != 1 || in.Voters[0] != f.first() {
			t.Errorf("inspected %+v; the snapshot is at %d, the log ends at %d", in, at, last)
		}
		if n := int(last - in.Committed); len(in.Uncommitted) != n || n > 0 && (in.Uncommitted[0].Index != last || in.Uncommitted[0].Command.SetControl == nil) {
			t.Errorf("uncommitted %+v above %d of %d", in.Uncommitted, in.Committed, last)
		}
	}
	if _, err := Inspect(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("inspected an empty folder: %v", err)
	}
}

// hashicorp/raft before 1.4.0: after a recovery, voters that were added got a
// configuration that was not committed.
func TestRaft140RecoverThenAddVoter(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	voters := f.three()
	var last store.Result
	for n := range 10 {
		last = f.propose(voters, f.write(n+1))
	}
	f.agree(voters, last.Index)
	for _, v := range voters {
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
	left := voters[0] // the others are lost
	before, err := Inspect(left.config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	command, err := store.SignCommand(store.Command{
		Author: f.key, Request: store.Nonce{1}, Recover: &store.Recover{Node: f.first(), Generation: 1},
	}, before.State.Mesh.ID, f.sign)
	if err != nil {
		t.Fatal(err)
	}
	command.Version, command.Now = store.Version, time.Now()
	state, result := store.Recovered(before.State, command)
	if result.Refused != nil {
		t.Fatal(result.Refused)
	}
	if err := Recover(left.config.Dir, mesh.NodeID{2}, state); err == nil {
		t.Error("a node that the state does not name was made the only voter")
	}
	for range 2 { // it may be done again
		if err := Recover(left.config.Dir, f.first(), state); err != nil {
			t.Fatal(err)
		}
	}
	alone := f.open(f.first())
	if alone.State().Mesh.Generation != 1 || alone.State().Index != state.Index {
		t.Errorf("opened at %d of generation %d, want %d of 1", alone.State().Index, alone.State().Mesh.Generation, state.Index)
	}
	if alone.Boot().N != before.Boots+1 || alone.Status().Term <= before.Term {
		t.Errorf("run %d in term %d after run %d in term %d", alone.Boot().N, alone.Status().Term, before.Boots, before.Term)
	}
	// One that comes back with the lost log is not let in.
	old := f.open(voters[1].config.ID)
	id := mesh.NodeID{9}
	fresh := f.open(id)
	f.eventually("it leads", func() bool { return alone.Status().Leads() })
	if err := alone.AddLearner(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r := f.signed([]*voter{alone}, 20)
	f.eventually("the learner has it", func() bool { return fresh.State().Index >= r.Index })
	if err := alone.AddVoter(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r = f.signed([]*voter{alone, fresh}, 21)
	f.agree([]*voter{alone, fresh}, r.Index)
	if old.State().Mesh.Generation != 0 {
		t.Error("the lost log was fed with the new one")
	}
	if err := fresh.Close(); err != nil {
		t.Fatal(err)
	}
	fresh = f.open(id)
	f.agree([]*voter{alone, fresh}, r.Index)
	if st := fresh.Status(); len(st.Voters) != 2 {
		t.Errorf("voters after the restart: %+v", st.Voters)
	}
}

// signed writes as write and propose do, in a mesh of version 3.
func (f *fleet) signed(voters []*voter, n int) store.Result {
	f.t.Helper()
	c := f.write(n)
	c.By, c.Author, c.Request, c.After = store.Authority{}, f.key, store.Nonce{byte(n)}, voters[0].State().Index
	c, err := store.SignCommand(c, voters[0].State().Mesh.ID, f.sign)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.propose(voters, c)
}
