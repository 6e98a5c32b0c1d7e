package kernel

import (
	"context"
	"fmt"
	"slices"
)

// A Fake is a kernel in memory: a Backend for every part that refuses what
// the real kernel refuses and loses what it loses. It is safe for concurrent
// use.
type Fake struct {
	// Before, if set, is called ahead of every operation and, with nil, of
	// every observation. It may block, and what it returns is returned
	// instead of doing anything. Set it before the Fake is used.
	Before func(ctx context.Context, op Op) error

	gate chan struct{} // holds one token: a lock that a pure package may have
	m    *Model
	down map[string]bool
	log  []Op
}

var _ Backend = (*Fake)(nil)

// NewFake gives a kernel that holds s.
func NewFake(s State) *Fake {
	f := &Fake{gate: make(chan struct{}, 1), m: NewModel(s), down: map[string]bool{}}
	return f
}

func (f *Fake) lock() func() {
	f.gate <- struct{}{}
	return func() { <-f.gate }
}

func (f *Fake) before(ctx context.Context, op Op) error {
	if f.Before == nil {
		return nil
	}
	return f.Before(ctx, op)
}

// Observe gives everything that the Fake holds.
func (f *Fake) Observe(ctx context.Context) (State, error) {
	if err := f.before(ctx, nil); err != nil {
		return State{}, err
	}
	defer f.lock()()
	s := f.m.State()
	for i, t := range s.Tunnels {
		if f.down[t.Name] {
			s.Tunnels[i].LinkLocal = Tunnel{}.LinkLocal
		}
	}
	return s, nil
}

// Do does op if the kernel would.
func (f *Fake) Do(ctx context.Context, op Op) error {
	if err := f.before(ctx, op); err != nil {
		return err
	}
	defer f.lock()()
	if err := f.check(op); err != nil {
		return fmt.Errorf("%s: %w: %w", op, ErrRefused, err)
	}
	switch op := op.(type) {
	case CreateTunnel:
		delete(f.down, op.Tunnel.Name)
	case UpdateTunnel:
		delete(f.down, op.Tunnel.Name)
	case DeleteTunnel:
		delete(f.down, op.Name)
	}
	f.m.Apply(op)
	f.log = append(f.log, op)
	return nil
}

// Damage changes the kernel behind everyone's back, by the same rules but
// without a trace in Ops.
func (f *Fake) Damage(op Op) error {
	defer f.lock()()
	if err := f.check(op); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	f.m.Apply(op)
	return nil
}

// SetDown takes a device down, which silently deletes its next hops and what
// hangs on them. Creating or updating the tunnel brings it up again.
func (f *Fake) SetDown(device string) {
	defer f.lock()()
	f.down[device] = true
	f.m.flushDevice(device)
}

// Ops gives the operations done since the last call of Ops.
func (f *Fake) Ops() []Op {
	defer f.lock()()
	log := f.log
	f.log = nil
	return log
}

// String prints all that the Fake holds.
func (f *Fake) String() string {
	defer f.lock()()
	return f.m.State().String()
}

func (f *Fake) check(op Op) error {
	switch op := op.(type) {
	case UpdateTunnel:
		if !f.m.hasTunnel(op.Tunnel.Name) {
			return ErrNoDevice
		}
	case PutNextHop:
		return f.checkHop(op.NextHop)
	case PutRoute:
		return f.checkRoute(op.Route)
	case SetSysctl:
		if name := op.Sysctl.device(); name != "" && !f.m.hasTunnel(name) {
			return ErrNoDevice
		}
	}
	return nil
}

func (f *Fake) checkHop(n NextHop) error {
	if old, ok := f.m.hops[n.ID]; ok && old.IsGroup() != n.IsGroup() {
		return ErrKind
	}
	if n.ID == 0 || n.Device != "" && len(n.Members) > 0 || n.Device == "" && len(n.Members) == 0 {
		return ErrInvalid
	}
	if !n.IsGroup() {
		switch {
		case !f.m.hasTunnel(n.Device):
			return ErrNoDevice
		case f.down[n.Device]:
			return ErrDown
		}
		return nil
	}
	for i, leg := range n.Members {
		have, ok := f.m.hops[leg.ID]
		switch {
		case !ok:
			return ErrNoHop
		case have.IsGroup(), leg.Weight == 0, slices.ContainsFunc(n.Members[:i], func(m Member) bool { return m.ID == leg.ID }):
			return ErrInvalid
		}
	}
	return nil
}

func (f *Fake) checkRoute(r Route) error {
	if r.NextHop != 0 {
		if _, ok := f.m.hops[r.NextHop]; !ok {
			return ErrNoHop
		}
	}
	if !r.Source.IsValid() {
		return nil
	}
	for a := range f.m.addrs {
		if a.Addr() == r.Source {
			return nil
		}
	}
	return fmt.Errorf("%w: preferred source is not ours", ErrInvalid)
}
