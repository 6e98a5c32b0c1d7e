package wire

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

func TestPerfectWireKeepsEverythingInOrder(t *testing.T) {
	c := newCable(t, 1)
	for i := range uint32(2000) {
		from, to := c.a, c.b
		if i%2 == 1 {
			from, to = c.b, c.a
		}
		size := minFrame + int(i)*4
		from.send(t, i, size)
		if m, _ := to.receive(t); m.seq != i || m.size != size {
			t.Fatalf("sent frame %d of %d bytes, received %+v", i, size, m)
		}
	}
	if s := c.Stats(); s[AtoB].Delivered != 1000 || s[BtoA].Delivered != 1000 {
		t.Errorf("stats %+v, want 1000 delivered each way", s)
	}
}

func TestDelayIsALowerBoundAndKeepsOrder(t *testing.T) {
	c := newCable(t, 2)
	const delay, n = 20 * time.Millisecond, 200
	c.Set(AtoB, Impairment{Delay: delay, Jitter: delay / 2})
	for i := range uint32(n) {
		c.a.send(t, i, 100)
	}
	for i := range uint32(n) {
		m, at := c.b.receive(t)
		if m.seq != i {
			t.Fatalf("frame %d arrived in place of %d", m.seq, i)
		}
		if took := at - m.sent; took < delay {
			t.Fatalf("frame %d took %v, less than %v", i, took, delay)
		}
	}
	// The other direction was not asked for: one frame each way, and the undelayed one is there first.
	c.a.send(t, n, 100)
	c.b.send(t, n, 100)
	_, undelayed := c.a.receive(t)
	m, delayed := c.b.receive(t)
	if delayed < m.sent+delay || undelayed > delayed {
		t.Errorf("undelayed frame at %v, delayed one sent at %v received at %v", undelayed, m.sent, delayed)
	}
}

func TestLossShareAndSeed(t *testing.T) {
	const n, loss = 2000, 0.3
	run := func(seed uint64) []uint32 {
		c := newCable(t, seed)
		c.Set(Both, Impairment{Loss: loss})
		c.feed(t, n, 60)
		seqs := c.collect(t)
		if got := c.Stats()[AtoB].Lost; int(got) != n-len(seqs) {
			t.Errorf("counted %d lost, missed %d", got, n-len(seqs))
		}
		return seqs
	}
	one := run(4)
	if kept := float64(len(one)) / n; kept < 0.64 || kept > 0.76 { // 6 standard deviations
		t.Errorf("%v of the frames arrived, want 0.7", kept)
	}
	if again := run(4); fmt.Sprint(one) != fmt.Sprint(again) {
		t.Error("the same seed lost other frames")
	}
}

func TestDuplicates(t *testing.T) {
	c := newCable(t, 5)
	const n = 500
	for _, imp := range []Impairment{{Duplicate: 1}, {Duplicate: 1, Delay: time.Millisecond}} {
		c.Set(AtoB, imp)
		for i := range uint32(n) {
			c.a.send(t, i, 60)
			for copies := range 2 {
				if m, _ := c.b.receive(t); m.seq != i {
					t.Fatalf("copy %d of frame %d is frame %d", copies, i, m.seq)
				}
			}
		}
	}
	if s := c.Stats()[AtoB]; s.Duplicated != 2*n || s.Delivered != 4*n {
		t.Errorf("stats %+v", s)
	}
}

func TestReorderedFramesArriveLaterAndAll(t *testing.T) {
	c := newCable(t, 6)
	const n = 1000
	c.Set(AtoB, Impairment{Reorder: 0.1})
	c.feed(t, n, 60)
	seqs := c.collect(t)
	seen, backwards, highest := map[uint32]bool{}, 0, uint32(0)
	for _, s := range seqs {
		seen[s] = true
		if s < highest {
			backwards++
		}
		highest = max(highest, s)
	}
	if len(seen) != n || backwards == 0 {
		t.Errorf("%d of %d frames arrived, %d of them out of order", len(seen), n, backwards)
	}
}

func TestMTUIsABlackHole(t *testing.T) {
	c := newCable(t, 7)
	c.Set(AtoB, Impairment{MTU: 1400})
	c.a.send(t, 1, etherHeader+1401)
	c.a.send(t, 2, etherHeader+1400)
	if m, _ := c.b.receive(t); m.seq != 2 {
		t.Errorf("frame %d of %d bytes passed", m.seq, m.size)
	}
	c.b.send(t, 3, etherHeader+1401) // the other direction has no limit
	if m, _ := c.a.receive(t); m.seq != 3 {
		t.Errorf("frame %d came back", m.seq)
	}
	if s := c.Stats(); s[AtoB].TooLarge != 1 || s[BtoA].TooLarge != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestRateSpacesFramesAndOverflows(t *testing.T) {
	c := newCable(t, 8)
	c.Set(AtoB, Impairment{Rate: 8_000_000}) // a frame of 1000 bytes each millisecond, 65 of them buffered
	start := monotonic()
	c.feed(t, 300, 1000)
	seqs := c.collect(t)
	if took, least := monotonic()-start, time.Duration(len(seqs))*time.Millisecond; took < least {
		t.Errorf("%d frames took %v, less than %v", len(seqs), took, least)
	}
	if s := c.Stats()[AtoB]; s.Overflowed == 0 || s.Delivered < 65 {
		t.Errorf("stats %+v, want a full buffer delivered and the rest dropped", s)
	}
}

func TestCutIsPerDirectionSilentAndTakesWhatIsOnTheWay(t *testing.T) {
	c := newCable(t, 9)
	c.Set(AtoB, Impairment{Delay: time.Hour})
	c.a.send(t, 1, 60)
	c.await(t, AtoB, "a frame on the way", func(s Stats) bool { return s.Queued == 1 })
	c.Cut(AtoB, true)
	c.Set(AtoB, Impairment{})
	c.a.send(t, 2, 60)
	c.await(t, AtoB, "two frames cut", func(s Stats) bool { return s.Cut == 2 && s.Queued == 0 })
	c.b.send(t, 3, 60)
	if m, _ := c.a.receive(t); m.seq != 3 {
		t.Errorf("frame %d came through the open direction", m.seq)
	}
	if !c.a.carrier(t) || !c.b.carrier(t) {
		t.Error("a cut took the carrier")
	}
	c.Cut(Both, false)
	c.a.send(t, 4, 60)
	if m, _ := c.b.receive(t); m.seq != 4 {
		t.Errorf("after healing, frame %d arrived first", m.seq)
	}
}

func TestSetHealsWhatIsOnTheWay(t *testing.T) {
	c := newCable(t, 10)
	c.Set(AtoB, Impairment{Delay: time.Hour})
	c.feed(t, 100, 60)
	c.Set(Both, Impairment{})
	for i := range uint32(100) {
		if m, _ := c.b.receive(t); m.seq != i {
			t.Fatalf("frame %d arrived in place of %d", m.seq, i)
		}
	}
}

func TestCarrier(t *testing.T) {
	c := newCable(t, 11)
	if !c.a.carrier(t) || !c.b.carrier(t) {
		t.Fatal("a new wire has no carrier")
	}
	c.Set(AtoB, Impairment{Delay: time.Hour})
	c.a.send(t, 1, 60)
	c.await(t, AtoB, "a frame on the way", func(s Stats) bool { return s.Queued == 1 })
	if err := c.Carrier(false); err != nil {
		t.Fatal(err)
	}
	c.Set(AtoB, Impairment{})
	if c.a.carrier(t) || c.b.carrier(t) {
		t.Error("carrier is still there")
	}
	if s := c.Stats()[AtoB]; s.Cut != 1 || s.Queued != 0 {
		t.Errorf("the frame on the way survived: %+v", s)
	}
	if err := c.Carrier(true); err != nil {
		t.Fatal(err)
	}
	if !c.a.carrier(t) || !c.b.carrier(t) {
		t.Error("carrier did not come back")
	}
	// The kernel starts its queue again a moment after the carrier, so send until one is through.
	for deadline := time.Now().Add(patience); ; {
		c.a.send(t, 2, 60)
		m, _, err := c.b.receiveWithin(10 * time.Millisecond)
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(deadline) {
			continue
		}
		if err != nil || m.seq != 2 {
			t.Errorf("after the carrier came back: frame %d, %v", m.seq, err)
		}
		return
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	warm := newCable(t, 12) // so that what the first use opens for good is open
	if err := warm.Close(); err != nil {
		t.Fatal(err)
	}
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	a, b := newEnd(t, "left"), newEnd(t, "right")
	c := &cable{New(a.tap, b.tap, 13), a, b}
	c.Set(Both, Impairment{Delay: time.Hour})
	c.feed(t, 10, 60)
	for range 2 {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.kern.LinkByName("left"); err == nil {
		t.Error("the device is still there")
	}
	if err := c.Carrier(true); !errors.Is(err, ErrClosed) {
		t.Errorf("Carrier after Close: %v", err)
	}
	c.Set(Both, Impairment{}) // harmless
	for _, e := range []*end{a, b} {
		e.kern.Close()
		_ = e.sock.Close()
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > goroutines || openFiles(t) > files; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("goroutines %d, were %d; files %d, were %d", runtime.NumGoroutine(), goroutines, openFiles(t), files)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func TestCloseTellsOfADeviceThatWasRemoved(t *testing.T) {
	a, b := newEnd(t, "left"), newEnd(t, "right")
	w := New(a.tap, b.tap, 14)
	link, err := a.kern.LinkByName("left")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.kern.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	broken := func() bool {
		w.halves[AtoB].mu.Lock()
		defer w.halves[AtoB].mu.Unlock()
		return w.halves[AtoB].broken != nil
	}
	for deadline := time.Now().Add(patience); !broken(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("nobody noticed")
		}
	}
	if err := w.Close(); err == nil {
		t.Error("Close does not tell")
	}
}
