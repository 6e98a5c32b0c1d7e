package flow

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"guywire/integration/lab/wire"
)

// inNamespace runs run on a thread with a network namespace of its own, which holds one TAP device with the address.
// It hands the device over before it calls run.
func inNamespace(addr string, tap chan<- *os.File, run func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread and its namespace end with the goroutine
		done <- func() error {
			defer close(tap)
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			file, err := wire.OpenTAP("tap")
			if err != nil {
				return err
			}
			link, err := netlink.LinkByName("tap")
			if err != nil {
				return err
			}
			ip, err := netlink.ParseAddr(addr)
			if err != nil {
				return err
			}
			if err := errors.Join(netlink.AddrAdd(link, ip), netlink.LinkSetUp(link)); err != nil {
				return err
			}
			tap <- file
			return run()
		}()
	}()
	return <-done
}

// TestFlowMeasuresACut: over a real wire of 5 ms that is cut for a while, the two reports say how long and what it cost.
func TestFlowMeasuresACut(t *testing.T) {
	taps := [2]chan *os.File{make(chan *os.File, 1), make(chan *os.File, 1)}
	ready, delayed := make(chan struct{}), make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	sendCtx, stopSending := context.WithCancel(ctx)
	defer stopSending()

	var r RecvReport
	var s SendReport
	errs := make(chan error, 2)
	go func() {
		errs <- inNamespace("198.18.0.2/24", taps[1], func() (err error) {
			r, err = RecvUDP(ctx, RecvConfig{Listen: ":7000", Listening: func(netip.AddrPort) { close(ready) }})
			return err
		})
	}()
	go func() {
		errs <- inNamespace("198.18.0.1/24", taps[0], func() (err error) {
			<-ready
			<-delayed
			s, err = SendUDP(sendCtx, SendConfig{To: netip.MustParseAddrPort("198.18.0.2:7000"), Flow: 9, PPS: 500, Size: 200})
			return err
		})
	}()
	a, okA := <-taps[0]
	b, okB := <-taps[1]
	if !okA || !okB {
		err := <-errs
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
			t.Skipf("needs network namespaces and /dev/net/tun: %v", err)
		}
		t.Fatal(err)
	}
	w := wire.New(a, b, 1)
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	const oneWay = 5 * ms
	w.Set(wire.Both, wire.Impairment{Delay: oneWay})
	close(delayed)
	await := func(what string, ok func(wire.Stats) bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(w.Stats()[wire.AtoB]); runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatalf("waiting for %s: %+v", what, w.Stats())
			}
		}
	}
	await("traffic", func(s wire.Stats) bool { return s.Delivered > 50 })
	w.Cut(wire.AtoB, true)
	cut := Monotonic() // nothing arrives from now on
	const lost = 40
	await("losses", func(s wire.Stats) bool { return s.Cut >= lost })
	healing := Monotonic()
	w.Cut(wire.AtoB, false)
	healed := Monotonic() // nothing is lost from now on
	before := w.Stats()[wire.AtoB].Delivered
	await("traffic again", func(s wire.Stats) bool { return s.Delivered > before+50 })
	stopSending()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	await("the wire to run empty", func(s wire.Stats) bool { return s.Queued == 0 })
	stop()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}

	m, err := Merge(s, r)
	if err != nil {
		t.Fatal(err)
	}
	// What the wire dropped is one run of packets, and perhaps an ARP frame; others may have waited in vain for the first ARP
	// answer. When each of them was due, and how long the last one before took to arrive, is up to the machine; that nothing
	// arrived or was lost at the wrong time is not.
	dropped := w.Stats()[wire.AtoB].Cut
	runs := slices.DeleteFunc(slices.Clone(m.Losses), func(l LossRun) bool { return l.FirstSeq <= 1 })
	if len(runs) != 1 || runs[0].Count > dropped || runs[0].Count < lost-5 {
		t.Fatalf("packets lost in runs %+v, wire dropped %d", m.Losses, dropped)
	}
	if late := m.Window(healed, s.EndMono+1); late.Lost > 0 {
		t.Errorf("%d packets were lost that were due after the cut", late.Lost)
	}
	run := runs[0]
	i := slices.IndexFunc(m.Gaps, func(g Gap) bool { return g.LastBefore+1 == run.FirstSeq && g.FirstAfter == run.end() })
	if i < 0 {
		t.Fatalf("no gap is where packets %d to %d are missing: %+v", run.FirstSeq, run.end()-1, m.Gaps)
	}
	const clocks = ms // arrivals are stamped by the wall clock
	gap := m.Gaps[i]
	if gap.Open || gap.Lost != run.Count || gap.StartMono > cut+clocks || gap.End() < healing-clocks || gap.SenderLate > gap.Length {
		t.Errorf("gap %+v of %d lost packets, cut from %v to %v", gap, run.Count, cut, healing)
	}
	if w := m.Window(cut, healing); w.Gaps < 1 || w.WorstGap.Length < gap.Length {
		t.Errorf("the window of the cut has %+v, and there is %+v", w, gap)
	}
	if m.Latency.Min < oneWay-clocks {
		t.Errorf("a packet took %v over a wire of %v", m.Latency.Min, oneWay)
	}
}
