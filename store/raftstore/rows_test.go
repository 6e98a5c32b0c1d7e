package raftstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"guywire/mesh"
	"guywire/store"
)

// hashicorp/raft issue 503: a leader whose disk hangs goes on to send
// heartbeats, so nobody ever writes again.
func TestRaft503StalledLeader(t *testing.T) {
	inBubble(t, 3, func(b *bubble) {
		b.must(b.write())
		old := b.leader()
		old.disk.hang.Store(true)
		start := time.Now()
		lost := b.write()
		ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
		defer cancel()
		if _, err := old.Propose(ctx, b.sign(lost)); err == nil {
			b.t.Error("a write that never reached the disk was acknowledged")
		}
		if err := <-old.failed; !errors.Is(err, ErrDisk) {
			b.t.Errorf("the owner was told %v", err)
		}
		b.must(b.write())
		if took := time.Since(start); took > 10*time.Second {
			b.t.Errorf("another leader wrote after %s, want 10s at most", took)
		}
		time.Sleep(time.Minute)
		old.crash()
		b.settle()
	})
}

// hashicorp/raft issue 614: a voter that cannot write wins elections for ever.
func TestRaft614SickNodeWins(t *testing.T) {
	inBubble(t, 3, func(b *bubble) {
		sick := b.leader()
		sick.disk.broken.Store(true)
		took := b.must(b.write())
		if took > 10*time.Second {
			b.t.Errorf("another leader wrote after %s, want 10s at most", took)
		}
		if err := <-sick.failed; !errors.Is(err, ErrDisk) {
			b.t.Errorf("the owner was told %v", err)
		}
		for range 5 {
			time.Sleep(10 * time.Second)
			if led := b.leader(); led == sick {
				b.t.Error("the sick voter leads")
			}
			b.must(b.write())
		}
		sick.crash()
		b.settle()
	})
}

// hashicorp/raft issue 612: a follower whose connection stood still is never
// fed again, because of pipelining.
func TestRaft612StalledFollower(t *testing.T) {
	inBubble(t, 3, func(b *bubble) {
		b.must(b.write())
		slow := b.followers()[0]
		b.network.isolate(b, slow)
		for range 20 {
			b.must(b.write())
			time.Sleep(time.Second)
		}
		b.network.heal()
		led := b.leader()
		b.within("the follower has caught up", 5*time.Second, func() bool { return slow.State().Index == led.State().Index })
		b.settle()
	})
}

// hashicorp/raft issue 212: a follower that needs a snapshot, and then the log
// behind it.
func TestRaft212FarBehind(t *testing.T) {
	inBubble(t, 3, func(b *bubble) {
		led, far := b.leader(), b.followers()[0]
		far.crash()
		for range 2 {
			for range trailingLogs/2 + 100 {
				b.must(b.write())
			}
			if err := led.raft.Snapshot().Error(); err != nil {
				b.t.Fatal(err)
			}
		}
		if first, _ := led.disk.FirstIndex(); first < 10 {
			b.t.Fatalf("the log still begins at %d", first)
		}
		far.open()
		b.within("it caught up", time.Minute, func() bool { return far.State().Index == led.State().Index })
		b.must(b.write())
		far.crash()
		far.open() // its log has no gap
		b.settle()
	})
}

// hashicorp/raft issues 524 and 526: a voter that was cut off while it was
// removed comes back with a higher term and deposes the leader.
func TestRaft524PartitionedAndRemoved(t *testing.T) {
	inBubble(t, 3, func(b *bubble) {
		led, out := b.leader(), b.followers()[0]
		b.network.isolate(b, out)
		b.expel(out)
		time.Sleep(time.Minute)
		term := led.Status().Term
		b.network.heal()
		time.Sleep(time.Minute)
		b.must(b.write())
		if st := led.Status(); !st.Leads() || st.Term != term {
			b.t.Errorf("the removed voter disturbed the others: %+v, term was %d", st, term)
		}
	})
}

// hashicorp/raft issue 581: leadership handed over under load loses writes.
func TestRaft581TransferUnderLoad(t *testing.T) {
	inBubble(t, 3, func(b *bubble) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 300 {
				b.must(b.write())
			}
		}()
		moved := 0
		for range 100 {
			ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
			if err := b.leader().Transfer(ctx, mesh.NodeID{}); err == nil {
				moved++
			}
			cancel()
			time.Sleep(100 * time.Millisecond)
		}
		<-done
		if moved < 50 {
			b.t.Errorf("leadership moved %d times of 100", moved)
		}
		b.settle()
	})
}

// An entry that is damaged while the voter runs ends its part in the log, and
// nothing else: raft would panic.
func TestDamagedEntryEndsTheVoterOnly(t *testing.T) {
	inBubble(t, 3, func(b *bubble) {
		b.must(b.write())
		victim := b.followers()[0]
		led := b.leader()
		b.network.cut(led.id, victim.id) // it will have entries that it has not applied
		for range 3 {
			b.must(b.write())
		}
		last, err := victim.disk.LastIndex()
		if err != nil {
			b.t.Fatal(err)
		}
		victim.disk.spoil.Store(last + 1)
		b.network.heal()
		if err := <-victim.failed; !errors.Is(err, ErrDamaged) {
			b.t.Errorf("the owner was told %v, want ErrDamaged", err)
		}
		if _, err := victim.Propose(b.t.Context(), b.sign(b.write())); err == nil {
			b.t.Error("the damaged voter took a write")
		}
		b.must(b.write())
		victim.crash()
		victim.disk.spoil.Store(0)
		b.settle()
	})
}

// One hour of a mesh of five voters in which something happens all the time.
// What was acknowledged is never lost, and no two voters ever disagree.
func TestHourOfFaults(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	inBubble(t, 5, func(b *bubble) {
		random := rand.New(rand.NewPCG(seed, 4))
		any := func() *member { return b.all[random.IntN(len(b.all))] }
		end := time.Now().Add(time.Hour)
		faults := map[string]int{}
		for time.Now().Before(end) {
			switch kind := random.IntN(8); kind {
			case 0, 1:
				faults["isolate"]++
				b.network.isolate(b, any())
			case 2:
				faults["one way"]++
				b.network.cut(any().id, any().id)
			case 3:
				faults["halves"]++
				split := 1 + random.IntN(4)
				for _, x := range b.all[:split] {
					for _, y := range b.all[split:] {
						b.network.cut(x.id, y.id)
						b.network.cut(y.id, x.id)
					}
				}
			case 4:
				faults["crash"]++
				any().crash()
			case 5:
				faults["transfer"]++
				for _, m := range b.running() {
					ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Second)
					_ = m.Transfer(ctx, mesh.NodeID{}) // most do not lead
					cancel()
				}
			case 6:
				faults["snapshot"]++
				if m := any(); m.Store != nil {
					_ = m.raft.Snapshot().Error() // there may be nothing new
				}
			case 7:
				faults["store lost"]++
				b.settle()
				m := b.followers()[random.IntN(4)]
				m.crash()
				if err := b.leader().RemoveServer(b.t.Context(), m.id); err != nil {
					b.t.Fatal(err)
				}
				m.format()
				m.open()
				b.admit(m)
			}
			for range random.IntN(8) {
				ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Second)
				b.try(ctx, b.sign(b.write()))
				newest, m := b.newest(), any()
				if m.Store != nil {
					if index, err := m.ReadIndex(ctx); err == nil && index < newest {
						b.t.Errorf("a read at %d after the write at %d", index, newest)
					}
				}
				cancel()
				time.Sleep(time.Duration(random.IntN(6000)) * time.Millisecond)
			}
			if random.IntN(3) == 0 {
				b.network.heal()
				for _, m := range b.all {
					if m.Store == nil {
						m.open()
					}
				}
			}
		}
		b.settle()
		b.t.Logf("%v, %d writes acknowledged, %d terms with a leader", faults, len(b.acked), len(b.leaders))
		if len(b.acked) < 200 || len(b.leaders) < 20 {
			b.t.Errorf("too little happened: %d writes, %d leaders", len(b.acked), len(b.leaders))
		}
	})
}

// spoiled gives an entry with another bit, as a disk does that decays.
func spoiled(log *raft.Log) {
	log.Data = append([]byte(nil), log.Data...)
	log.Data[len(log.Data)/2] ^= 1
}

// A leader that was just elected answers no read before it knows what the one
// before acknowledged, and one that is cut off answers none.
func TestReadAfterElection(t *testing.T) {
	inBubble(t, 3, func(b *bubble) {
		for range 20 {
			b.must(b.write())
			old := b.leader()
			index, err := old.ReadIndex(b.t.Context())
			if err != nil || index < b.newest() {
				b.t.Fatalf("read at %d, %v; want %d", index, err, b.newest())
			}
			b.network.isolate(b, old)
			time.Sleep(delay) // answers that were on their way
			ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
			if index, err := old.ReadIndex(ctx); err == nil {
				b.t.Errorf("a leader that is cut off read at %d", index)
			}
			b.within("another answers", 30*time.Second, func() bool {
				for _, m := range b.all {
					index, err := m.ReadIndex(ctx)
					if err == nil && (index < b.newest() || m.State().Index < index) {
						b.t.Errorf("read at %d with the state at %d, want %d", index, m.State().Index, b.newest())
					}
					if err == nil {
						return true
					}
					if !errors.Is(err, ErrNotLeader) {
						b.t.Errorf("no leader said %v", err)
					}
				}
				return false
			})
			cancel()
			b.network.heal()
		}
		b.settle()
	})
}

// Those who read first in a leadership share the entry that it costs, and one
// who gives up leaves it to the others.
func TestFirstReadersShareOneEntry(t *testing.T) {
	inBubble(t, 3, func(b *bubble) {
		m := b.followers()[0]
		b.must(b.write())
		if err := b.leader().Transfer(b.t.Context(), m.id); err != nil {
			b.t.Fatal(err)
		}
		b.within("it leads and has written its first entry", 5*time.Second, func() bool {
			st := m.Status()
			return st.Leads() && st.Commit == st.Last && st.LastTerm == st.Term
		})
		before := m.Status().Last
		gone, cancel := context.WithCancel(b.t.Context())
		cancel()
		if _, err := m.ReadIndex(gone); !errors.Is(err, context.Canceled) {
			b.t.Errorf("read by one who has gone: %v", err)
		}
		var readers sync.WaitGroup
		for range 50 {
			readers.Go(func() {
				if index, err := m.ReadIndex(b.t.Context()); err != nil || index < b.newest() {
					b.t.Errorf("read at %d, %v; want %d", index, err, b.newest())
				}
			})
		}
		readers.Wait()
		if after := m.Status().Last; after != before+1 {
			b.t.Errorf("50 readers wrote %d entries, want 1", after-before)
		}
	})
}

// Leadership goes to whom it is given, a demoted voter keeps the log, and the
// leader knows who is silent.
func TestTransferDemoteAndSilence(t *testing.T) {
	inBubble(t, 3, func(b *bubble) {
		for _, m := range b.followers() {
			if err := b.leader().Transfer(b.t.Context(), m.id); err != nil {
				b.t.Fatal(err)
			}
			b.within("it leads", 5*time.Second, func() bool { return m.Status().Leads() })
		}
		led, out := b.leader(), b.followers()[0]
		if err := led.Demote(b.t.Context(), out.id); err != nil {
			b.t.Fatal(err)
		}
		if st := led.Status(); len(st.Voters) != 2 || len(st.Learners) != 1 || st.Learners[0] != out.id {
			b.t.Errorf("after the demotion: %+v", st)
		}
		b.must(b.write())
		b.within("the learner gets it", 5*time.Second, func() bool { return out.State().Index >= b.newest() })
		if st := led.Status(); len(st.Silent) != 0 {
			b.t.Errorf("silent: %+v", st.Silent)
		}
		at := time.Now()
		b.network.isolate(b, out)
		b.within("the leader notices", 10*time.Second, func() bool { return len(led.Status().Silent) == 1 })
		if s := led.Status().Silent[0]; s.Node != out.id || s.Since.Before(at.Add(-time.Second)) || s.Since.After(at.Add(time.Second)) {
			b.t.Errorf("silent: %+v, cut at %s", s, at)
		}
		b.network.heal()
		b.within("the leader hears it", 10*time.Second, func() bool { return len(led.Status().Silent) == 0 })
		if err := led.AddVoter(b.t.Context(), out.id); err != nil {
			b.t.Fatal(err)
		}
		b.settle()
	})
}

// Whoever follows is told apart by history, not by index alone.
func TestCompareTellsHistoriesApart(t *testing.T) {
	inBubble(t, 1, func(b *bubble) {
		m := b.all[0]
		heads := map[uint64]store.Digest{}
		for range 5 {
			b.must(b.write())
			_, index, head := m.State().Head()
			heads[index] = head
		}
		for index, head := range heads {
			if got := m.Compare(index, head); got != Known || head.IsZero() {
				b.t.Errorf("state %d with its own head: %s", index, got)
			}
			head[3] ^= 1
			if got := m.Compare(index, head); got != Diverged {
				b.t.Errorf("state %d with another head: %s", index, got)
			}
		}
		_, index, head := m.State().Head()
		if got := m.Compare(index+1, head); got != Ahead {
			b.t.Errorf("a state above: %s", got)
		}
		if got := m.Compare(1, head); got != Unknown {
			b.t.Errorf("a state before all: %s", got)
		}
		m.crash()
		m.open()
		b.within("it is back", time.Minute, func() bool { return m.State().Index == index })
		if got := m.Compare(index, head); got != Known {
			b.t.Errorf("after a restart: %s", got)
		}
	})
}
