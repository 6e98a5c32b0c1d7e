package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/core"
	"guywire/mesh/kernel"
	"guywire/mesh/reconcile"
	"guywire/store"
	"guywire/store/cache"
)

// newReconciler makes the reconciler of a running member.
func (m *member) newReconciler() *reconcile.Reconciler {
	return reconcile.New(reconcile.Backends(m.kernel.Backends), reconcile.Options{
		Report: func(r reconcile.Report) {
			m.devices.look()
			m.worked.Store(r.Revision)
			signal(m.carriedOut)
			if r.Done {
				m.applied.Store(r.Revision)
			}
			first := m.completeAt.Load()
			if r.Safe || r.Filtered && (first == 0 || r.Revision < first) {
				m.post(core.KernelDone{Revision: r.Revision})
			}
		},
		Event: func(e reconcile.Event) {
			more := ""
			if e.More > 0 {
				more = fmt.Sprintf(" and %d more", e.More)
			}
			m.agent.journal.add(api.Event{
				Time: e.Time, Kind: string(core.KernelChanged), Sentence: "repairing " + e.Object + more, Cause: "somebody else changed it", To: e.Repair,
			})
		},
		Log: m.log,
	})
}

// revision compares what is wanted with what is in the kernel.
func (m *member) revision() api.Revision {
	st := m.reconciler.Status()
	out := api.Revision{Wanted: st.Wanted, Applied: st.Wanted}
	if st.Pending == 0 {
		return out
	}
	out.Applied = st.Done
	for _, o := range st.Objects {
		if out.Since == nil || o.Since.Before(*out.Since) {
			out.Since = new(o.Since)
		}
		if o.Error != "" && out.Error == "" {
			out.Error = o.Op + ": " + o.Error
		}
	}
	return out
}

// settledInKernel reports whether a complete desired state has been reached.
func (m *member) settledInKernel() bool {
	return m.applied.Load() > 0 && m.applied.Load() >= m.completeAt.Load() && m.completeAt.Load() > 0
}

// noteSteering notes which uplinks' packets a desired state steers.
func (m *member) noteSteering(want kernel.State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	steering := map[uint32]uint64{}
	for _, r := range want.Rules {
		if r.Mark == 0 {
			continue
		}
		steering[r.Mark] = want.Revision
		if since, ok := m.steering[r.Mark]; ok {
			steering[r.Mark] = since
		}
	}
	m.steering = steering
}

// steers reports whether packets with an uplink's mark leave by it: before its
// rule was worked on they take another's way, and would be seen as coming from there.
func (m *member) steers(u mesh.Uplink) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	since, ok := m.steering[u.Mark()]
	return ok && m.worked.Load() >= since
}

// missing says why something of the desired state is not in the kernel as wanted,
// by the kernel.Object names of all that it is made of; "": it is there.
func (m *member) missing() func(objects ...string) string {
	worked := m.worked.Load() // before the status, which may be newer then and not older
	st, first := m.reconciler.Status(), m.completeAt.Load()
	return func(objects ...string) string {
		if first == 0 || worked < first {
			return "the first complete set of routes is not in the kernel yet"
		}
		return missing(st, worked, objects)
	}
}

// missing is for a status of which revision worked is the newest that was worked on.
func missing(st reconcile.Status, worked uint64, objects []string) string {
	for _, o := range st.Objects {
		if !slices.Contains(objects, o.Name) {
			continue
		}
		switch {
		case o.Error != "":
			return o.Op + ": " + o.Error
		case o.Needs != "":
			return o.Op + ": it waits for " + o.Needs
		}
		return o.Op + ": it was not tried yet"
	}
	switch unlisted := st.Pending - len(st.Objects); {
	case worked < st.Wanted:
		return fmt.Sprintf("revision %d is not in the kernel yet", st.Wanted)
	case unlisted > 0:
		return fmt.Sprintf("%d objects are not in the kernel yet, and it may be among them", unlisted)
	}
	return ""
}

// Unload removes everything of ours from the kernel and ends the data plane.
// No member may be running. The state is the last one of the mesh, whose pools
// tell our addresses from others'; nil: the cached one.
func (a *Agent) Unload(ctx context.Context, state *store.State) error {
	ctx, cancel := context.WithTimeout(ctx, teardownPatience)
	defer cancel()
	if a.ring == nil {
		return nil // never was a member: there is nothing of ours
	}
	config := KernelConfig{State: a.dir, Ring: a.ring}
	if state == nil {
		state = a.lastState()
	}
	if state != nil {
		config.Pools = []netip.Prefix{state.Mesh.Pool4, state.Mesh.Pool6}
	}
	k, err := a.outside.Kernel(config)
	if err != nil {
		return err
	}
	done := make(chan struct{}, 1)
	r := reconcile.New(reconcile.Backends(k.Backends), reconcile.Options{
		Report: func(r reconcile.Report) {
			if r.Done {
				signal(done)
			}
		},
		Log: a.log,
	})
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(running) }()
	r.Set(kernel.State{Revision: 1, Complete: true})
	select {
	case <-done:
		err = k.Backends[kernel.PartSysctls].Do(ctx, kernel.RestoreSysctls{})
	case <-ctx.Done():
		err = fmt.Errorf("remove what is ours from the kernel: %w; %s", ctx.Err(), waiting(r.Status()))
	}
	stop()
	<-ended
	return errors.Join(err, k.Shutdown(context.WithoutCancel(ctx)), k.Close())
}

// lastState is the cached state of the mesh; nil: there is none.
func (a *Agent) lastState() *store.State {
	kept, err := cache.Open(a.dir, a.ring)
	if err != nil {
		return nil
	}
	defer kept.Close()
	state, _, _ := kept.LoadState(time.Now()) // the errors say what is wrong with it, or that there is none
	return state
}

// waiting names what a reconciler could not do.
func waiting(st reconcile.Status) string {
	var s strings.Builder
	s.WriteString("left are:")
	for _, o := range st.Objects {
		s.WriteString(" " + o.Name + " (" + o.Error + ")")
	}
	return s.String()
}

func wildcards(port uint16) []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), port), netip.AddrPortFrom(netip.IPv6Unspecified(), port)}
}
