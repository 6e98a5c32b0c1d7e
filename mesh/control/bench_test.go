package control

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"guywire/discovery/invite"
	"guywire/mesh"
	"guywire/store"
)

// crowd lets n nodes that never run join m, each with a network.
func (m *machine) crowd(n int) {
	m.t.Helper()
	token, err := invite.Parse(m.token(TokenRequest{Uses: n, AnyPrefix: true}))
	if err != nil {
		m.t.Fatal(err)
	}
	m.concurrently(n, func(i int) error {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		t := invite.Transcript{
			Mesh: token.Mesh, Token: token.ID, Exporter: [32]byte{1}, Identity: mesh.IdentityKey(public),
			Epoch: 1, Key: mesh.WireGuardKey(key.PublicKey().Bytes()), Name: fmt.Sprintf("site-%d", i),
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + i/256), byte(i), 0}), 24)},
		}
		t.Request = requestID(token, t.Identity)
		text, err := t.Encode()
		if err != nil {
			return err
		}
		r, err := m.submit(m.t.Context(), store.Command{Join: &store.Join{
			Token: token.ID, Transcript: text, Signature: token.Sign(text),
			Proof: invite.ProveIdentity(func(b []byte) []byte { return ed25519.Sign(private, b) }, text),
			Name:  t.Name, Identity: t.Identity, Key: store.Key{Epoch: t.Epoch, Public: t.Key}, Prefixes: t.Prefixes, Request: t.Request,
		}})
		if err == nil && r.Refused != nil {
			err = r.Refused
		}
		return err
	})
}

// concurrently calls f for 0 to n-1, many at a time, so that writes share commits.
func (m *machine) concurrently(n int, f func(i int) error) {
	m.t.Helper()
	errs := make([]error, n)
	slots := make(chan struct{}, 64)
	var all sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(i)
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		m.t.Fatal(err)
	}
}

// BenchmarkFollower is what a follower of a mesh of 1 000 nodes costs, over
// TLS: catching up from nothing by a snapshot and by 1 000 changes, and the
// memory of its whole control plane.
func BenchmarkFollower(b *testing.B) {
	one := founded(b)
	two := one.admitted("two", TokenRequest{})
	eventually(b, "the second was measured", func() bool { return len(one.State().Nodes[two.ID()].Control) > 0 })
	one.crowd(998)
	base := one.State()
	if len(base.Nodes) != 1000 {
		b.Fatalf("%d nodes, want 1000", len(base.Nodes))
	}
	one.concurrently(1000, func(i int) error {
		_, err := one.Operate(b.Context(), one.grant(i%200))
		return err
	})
	index := one.State().Index
	catchUp := func(b *testing.B, from *store.State, snapshots int) {
		for b.Loop() {
			s := two.stream(one, positionOf(from))
			s.state = from
			s.to(b, index)
			if err := s.body.Close(); err != nil {
				b.Fatal(err)
			}
			if s.snapshots != snapshots {
				b.Fatalf("%d snapshots came, want %d", s.snapshots, snapshots)
			}
		}
	}
	b.Run("snapshot", func(b *testing.B) { catchUp(b, store.New(), 1) })
	b.Run("changes", func(b *testing.B) { catchUp(b, base, 0) })
	b.Run("memory", func(b *testing.B) {
		var held, rounds float64
		for b.Loop() {
			if err := two.shut(); err != nil {
				b.Fatal(err)
			}
			two.Plane = nil
			eventually(b, "nobody follows", func() bool { return len(one.Status().Followers) == 0 })
			before := heap()
			two.run(Open(two.config))
			eventually(b, "it follows", func() bool { return !two.Status().Source.IsZero() && two.State().Index >= index })
			held, rounds = held+heap()-before, rounds+1
		}
		b.ReportMetric(held/rounds, "heap-bytes")
		b.ReportMetric(0, "ns/op")
	})
}

// heap is what is in use after two collections: one frees what the first found
// to have a finalizer or to be pooled.
func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
