package fib

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"guywire/mesh/kernel"
	"guywire/mesh/reconcile"
)

// TestReconciled runs the reconciler on the real kernel: a device goes down,
// which silently takes its next hop along, and all routes of its own; when it
// is back, hints alone are enough to have all as before.
func TestReconciled(t *testing.T) {
	modes(t, func(t *testing.T, f *FIB) {
		tun(t, "gw-a")
		tun(t, "gw-b")
		hints := watch(t, f)
		want := twoLegs()
		want.Revision, want.Complete = 7, true
		want.Routes = append(want.Routes, kernel.Route{Table: want.Routes[0].Table, Prefix: pfx("10.2.0.0/16"), NextHop: hopA})
		want.Sort()
		for _, device := range []string{"gw-a", "gw-b"} {
			want.Tunnels = append(want.Tunnels, kernel.Tunnel{Name: device})
		}
		rest := kernel.NewFake(kernel.State{Tunnels: want.Tunnels})
		reports := make(chan reconcile.Report, 100)
		r := reconcile.New(reconcile.Backends{rest, f, rest, rest}, reconcile.Options{Report: func(rep reconcile.Report) { reports <- rep }})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}()
		// until passes hints on until a report is as asked for.
		until := func(what string, is func(reconcile.Report) bool) {
			t.Helper()
			for deadline := time.After(20 * time.Second); ; {
				select {
				case <-hints:
					r.Kick(kernel.PartForwarding)
				case rep := <-reports:
					if is(rep) {
						return
					}
				case <-deadline:
					t.Fatalf("never %s:\n%s\n%+v", what, observe(t, f), r.Status())
				}
			}
		}
		r.Set(want)
		until("done", func(rep reconcile.Report) bool { return rep.Done && rep.Revision == 7 })

		down(t, "gw-a")
		until("seen", func(rep reconcile.Report) bool {
			return !rep.Done && slices.ContainsFunc(rep.Waiting, func(o reconcile.Object) bool { return o.Name == "next hop 0x86000001" && o.Error != "" })
		})
		if !r.Status().Safe {
			t.Error("lost legs make the state unsafe")
		}
		up(t, "gw-a")
		until("repaired", func(rep reconcile.Report) bool { return rep.Done })
		want.Tunnels, want.Revision, want.Complete = nil, 0, false
		if got := observe(t, f); got.String() != want.String() {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		if r.Status().Parts[kernel.PartForwarding].Repairs == 0 {
			t.Error("no repair was counted")
		}
	})
}
