package core

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/link"
	"guywire/routing/wire"
	"guywire/store"
)

// A node that looks only at links that are due, or that something happened to,
// does the same as one that looks at all of them whenever anything happens.
func TestWhatIsNotLookedAtHasNothingToSay(t *testing.T) {
	for seed := range uint64(5) {
		lookOnly(t, seed)
	}
}

func lookOnly(t *testing.T, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 3))
	log := state(4, 1, 2, 3, 4)
	lazy, eager := node(log), node(log)
	now := start
	step := func(ev Event) Ready {
		eager.touch()
		a, b := lazy.Step(now, ev), eager.Step(now, ev)
		later := lazy.deadline.After(eager.deadline)
		a.Deadline, b.Deadline = time.Time{}, time.Time{}
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("seed %d, %v, %T:\n%+v\n%+v", seed, now.Sub(start), ev, a, b)
		}
		if later {
			t.Fatalf("seed %d, %v, %T: wants to be called after %v, not %v", seed, now.Sub(start), ev, lazy.deadline.Sub(now), eager.deadline.Sub(now))
		}
		return a
	}

	// The far ends of the links, and what happens on the way.
	type end struct {
		*link.Link
		cut bool
	}
	far := map[string]*end{}
	links := func() (out []*entry) { return slices.Clone(lazy.sorted()) }
	var take func(Ready)
	take = func(r Ready) {
		for _, a := range r.Attempt {
			ev := AttemptDone{Link: a.Link, ID: 5, Port: 51900, Endpoint: netip.MustParseAddrPort("198.18.0.9:1"), Peer: store.Key{Epoch: 1, Public: mesh.WireGuardKey{2}}}
			if rng.IntN(4) == 0 {
				ev.Err = "no way"
			}
			take(step(ev))
			if e := lazy.entries[a.Link]; ev.Err == "" {
				far[e.rec.Device] = &end{Link: link.New(now, true, 0)}
			}
		}
		for _, d := range r.Send {
			m, err := wire.Decode(d.Payload)
			if err != nil {
				t.Fatal(err)
			}
			if p, ok := m.Body.(wire.Probe); ok && far[d.Device] != nil && !far[d.Device].cut {
				far[d.Device].Receive(now, 1, p)
			}
		}
		for _, target := range r.Echo {
			if !far[target.Device].cut {
				take(step(Echoed{Device: target.Device, At: now}))
			}
		}
		if r.Dirty {
			if a, b := lazy.Desired(), eager.Desired(); a.Revision != b.Revision || len(a.Routes) != len(b.Routes) {
				t.Fatalf("seed %d, %v: other kernels", seed, now.Sub(start))
			}
			if rng.IntN(3) > 0 {
				take(step(KernelDone{Revision: lazy.revision}))
			}
		}
	}
	for i := byte(2); i <= 4; i++ {
		take(step(FactsChanged{Facts: facts(i, "a")}))
	}

	counts := map[string]Count{}
	disturb := func() {
		all := links()
		e := all[rng.IntN(len(all))]
		switch rng.IntN(7) {
		case 0, 1:
			if f := far[e.rec.Device]; f != nil {
				f.cut = !f.cut
			}
		case 2:
			for _, e := range all {
				c := counts[e.rec.Device]
				c.Received += uint64(rng.IntN(100_000))
				c.Sent += uint64(rng.IntN(100_000))
				counts[e.rec.Device] = c
			}
			take(step(Counted{Devices: counts}))
		case 3:
			s := *log
			s.Index++
			s.Nodes = maps.Clone(s.Nodes)
			self := s.Nodes[id(1)]
			self.Drains = nil
			if rng.IntN(2) == 0 {
				self.Drains = []store.Drain{{Uplink: e.rec.Link.Local, Peer: e.rec.Link.Peer, Remote: "a", By: id(1), Since: now}}
			}
			s.Nodes[id(1)] = self
			log = &s
			take(step(StateChanged{State: log}))
		case 4:
			h := lazy.host
			h.Uplinks = slices.Clone(h.Uplinks)
			h.Uplinks[rng.IntN(2)].Bias = mesh.Cost(rng.IntN(3) * 1000)
			h.Uplinks[rng.IntN(2)].Up = rng.IntN(4) > 0
			take(step(HostChanged{Host: h}))
		case 5:
			f := lazy.facts[e.rec.Link.Peer]
			f.Serial++
			f.Uplinks = slices.Clone(f.Uplinks)
			f.Uplinks[0].Metered = !f.Uplinks[0].Metered
			take(step(FactsChanged{Facts: f}))
		default:
			now = now.Add(time.Duration(rng.IntN(40)) * time.Millisecond) // it is called late
		}
	}
	next := start
	for now.Before(start.Add(40 * time.Second)) {
		if !now.Before(next) {
			next = now.Add(time.Duration(rng.IntN(1000)) * time.Millisecond)
			disturb()
		}
		soonest := earliest(lazy.deadline, next)
		for _, e := range links() {
			f := far[e.rec.Device]
			if f == nil {
				continue
			}
			f.Tick(now)
			if p, due := f.Probe(now, 0, wire.Header{}); due && !f.cut {
				take(step(Received{Device: e.rec.Device, Message: wire.Message{Incarnation: 1, Body: p}, At: now}))
			}
			soonest = earliest(soonest, f.Deadline(now))
		}
		if now = latest(now.Add(time.Microsecond), soonest); !now.Before(lazy.deadline) {
			take(step(Tick{}))
		}
	}
	if len(far) < 6 || lazy.Digest() != eager.Digest() {
		t.Fatalf("seed %d: %d links were made", seed, len(far))
	}
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
