package raftstore

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"guywire/mesh"
	"guywire/store"
)

func TestCheckBoot(t *testing.T) {
	t.Parallel()
	a, b := store.Nonce{1}, store.Nonce{2}
	for _, c := range []struct {
		own, registered store.Boot
		stale           bool
	}{
		{store.Boot{N: 1, Instance: a}, store.Boot{}, false},
		{store.Boot{N: 5, Instance: a}, store.Boot{N: 4, Instance: b}, false},
		{store.Boot{N: 5, Instance: a}, store.Boot{N: 5, Instance: a}, false},
		{store.Boot{N: 5, Instance: a}, store.Boot{N: 5, Instance: b}, true},
		{store.Boot{N: 5, Instance: a}, store.Boot{N: 6, Instance: b}, true},
	} {
		if err := CheckBoot(c.own, c.registered); errors.Is(err, ErrStaleCopy) != c.stale {
			t.Errorf("own %+v, registered %+v: %v", c.own, c.registered, err)
		}
	}
}

// Each run has a number above all before it, on disk before raft runs, even
// when the fence refuses it.
func TestBootsAreCounted(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	v := f.founded()
	first := v.Boot()
	if first.N != 1 || first.Instance.IsZero() {
		t.Errorf("the first run is %+v", first)
	}
	index := f.propose([]*voter{v}, f.write(1)).Index
	f.propose([]*voter{v}, f.write(2)) // tells that the one before is committed
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	refusal := errors.New("the others know better")
	config, _ := f.config(f.first())
	config.Fence = func(boot store.Boot, state *store.State, _ uint64) error {
		if boot.N != 2 || boot.Instance == first.Instance || state.Index != index {
			t.Errorf("the fence was asked about %+v at %d, want run 2 at %d", boot, state.Index, index)
		}
		return refusal
	}
	if _, err := Open(config); !errors.Is(err, refusal) {
		t.Errorf("open: %v, want what the fence said", err)
	}
	if v = f.open(f.first()); v.Boot().N != 3 {
		t.Errorf("the run after two is %+v", v.Boot())
	}
}

// register writes which copy of its log the first voter runs.
func (b *bubble) register(boot store.Boot) *store.Refusal {
	b.t.Helper()
	c := b.sign(store.Command{RegisterBoot: &store.RegisterBoot{Node: b.all[0].id, Boot: boot}})
	var refused *store.Refusal
	b.within("the boot is decided", time.Minute, func() bool {
		r, err := b.leader().Propose(b.t.Context(), c)
		refused = r.Refused
		return err == nil
	})
	return refused
}

// Two machines with one identity and copies of one log: the second is not let
// into the log, and both it and the others learn of it.
func TestB37CloneIsFound(t *testing.T) {
	inBubble(t, 3, func(b *bubble) {
		b.must(store.Command{SetVoter: &store.SetVoter{Node: b.all[0].id, Voter: true}})
		original := b.all[0]
		copied := original.disk.copy(b)
		snaps := original.snaps
		original.crash()
		original.open() // run 2 of the original
		if refused := b.register(original.Boot()); refused != nil {
			b.t.Fatal(refused)
		}
		b.within("all know the run", time.Minute, func() bool {
			for _, m := range b.all {
				if m.State().Nodes[original.id].Boot != original.Boot() {
					return false
				}
			}
			return true
		})
		// The clone takes the original's place in the network, with run 2 of its copy.
		other := &member{b: b, id: original.id, disk: copied, snaps: snaps}
		b.network.isolate(b, original)
		original.crash()
		other.open()
		b.all = append(b.all, other)
		b.network.heal()
		if other.Boot().N != 2 {
			b.t.Fatalf("the clone is run %d", other.Boot().N)
		}
		if err := CheckBoot(other.Boot(), b.all[1].State().Nodes[original.id].Boot); !errors.Is(err, ErrStaleCopy) {
			b.t.Errorf("the clone's fence would say %v", err)
		}
		if refused := b.register(other.Boot()); refused == nil || refused.Code != store.CodeStaleBoot {
			b.t.Errorf("the clone was registered: %v", refused)
		}
		b.within("the others say so", time.Minute, func() bool {
			for _, m := range b.all[1:3] {
				// It has to call somebody: cut off from the leader it campaigns.
				b.network.cut(b.leader().id, other.id)
				if len(m.Status().Doubled) == 1 && m.Status().Doubled[0] == other.id {
					return true
				}
			}
			return false
		})
		other.crash()
		b.all = b.all[:3]
		b.settle()
	})
}

// copy is another disk with the same content.
func (d *faultyDisk) copy(b *bubble) *faultyDisk {
	b.t.Helper()
	to := &faultyDisk{memory: memory{raft.NewInmemStore()}, heal: make(chan struct{})}
	first, _ := d.FirstIndex()
	last, _ := d.LastIndex()
	for i := first; i <= last; i++ {
		var log raft.Log
		if err := d.GetLog(i, &log); err != nil {
			b.t.Fatal(err)
		}
		if err := to.StoreLog(&log); err != nil {
			b.t.Fatal(err)
		}
	}
	for _, key := range append(stableKeys, string(sealedKey), string(bootsKey)) {
		value, err := d.Get([]byte(key))
		if isNotFound(err) {
			continue
		}
		if err != nil {
			b.t.Fatal(err)
		}
		if err := to.Set([]byte(key), value); err != nil {
			b.t.Fatal(err)
		}
	}
	return to
}

func TestPrefaceIsChecked(t *testing.T) {
	t.Parallel()
	id := mesh.NodeID{4}
	state := store.New()
	state.Mesh.ID, state.Mesh.Generation = mesh.MeshID{1}, 2
	state.Nodes[id] = store.Node{ID: id, Boot: store.Boot{N: 3, Instance: store.Nonce{9}}}
	good := preface{mesh: mesh.MeshID{1}, generation: 2, boot: store.Boot{N: 3, Instance: store.Nonce{9}}}
	for name, c := range map[string]struct {
		change func(*preface)
		ok     bool
	}{
		"the same":         {func(*preface) {}, true},
		"the next run":     {func(p *preface) { p.boot = store.Boot{N: 4, Instance: store.Nonce{1}} }, true},
		"without a state":  {func(p *preface) { p.mesh, p.generation = mesh.MeshID{}, 0 }, true},
		"another mesh":     {func(p *preface) { p.mesh[7] = 1 }, false},
		"older generation": {func(p *preface) { p.generation = 1 }, false},
		"newer generation": {func(p *preface) { p.generation = 3 }, false},
		"an older run":     {func(p *preface) { p.boot.N = 2 }, false},
		"another instance": {func(p *preface) { p.boot.Instance = store.Nonce{8} }, false},
	} {
		p := good
		c.change(&p)
		if err := p.check(id, state); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (preface{mesh: mesh.MeshID{5}}).check(id, store.New()); err != nil {
		t.Errorf("a voter without a state refused: %v", err)
	}
}

func TestPrefacedConnection(t *testing.T) {
	t.Parallel()
	want := preface{mesh: mesh.MeshID{1, 2}, generation: 3, boot: store.Boot{N: 4, Instance: store.Nonce{5}}}
	for name, accept := range map[string]error{"taken": nil, "refused": errors.New("no")} {
		near, far := net.Pipe()
		c := &prefaced{Conn: far, check: func(p preface) error {
			if p != want {
				t.Errorf("%s: got %+v", name, p)
			}
			return accept
		}}
		go func() {
			near.Write(append(want.encode(), "hello"...))
			near.Close()
		}()
		var b [16]byte
		n, err := c.Read(b[:])
		if accept == nil && (string(b[:n]) != "hello" || err != nil) {
			t.Errorf("read %q, %v", b[:n], err)
		}
		if accept != nil && (n != 0 || !errors.Is(err, accept)) {
			t.Errorf("refused, but read %q, %v", b[:n], err)
		}
		if _, again := c.Read(b[:]); accept != nil && !errors.Is(again, accept) {
			t.Errorf("the second read: %v", again)
		}
		c.Close()
	}
}

func FuzzPreface(f *testing.F) {
	f.Add(preface{mesh: mesh.MeshID{1}, generation: 2, boot: store.Boot{N: 3, Instance: store.Nonce{4}}}.encode())
	f.Add([]byte("GWR\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePreface(b)
		if err == nil && !bytes.Equal(p.encode(), b) {
			t.Errorf("%x is read and written as %x", b, p.encode())
		}
	})
}
