package wire

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// Wire forwards Ethernet frames between two TAP devices. Its methods may be called from any goroutine; none blocks
// longer than the delivery of what is due.
type Wire struct {
	halves [2]*half
	run    sync.WaitGroup

	mu      sync.Mutex // guards closing and the order of carrier changes
	closed  bool
	carrier bool
}

// New starts forwarding between two files of [OpenTAP], with no impairment. It owns the files from now on.
// Wires with the same seed and settings treat the same frames alike. Without a descriptor left for its two timers it
// panics: the limit on open files is a matter of the process, and no wire can work under it.
func New(a, b *os.File, seed uint64) *Wire {
	w := &Wire{carrier: true}
	ends := [2]*os.File{a, b}
	for _, dir := range []Direction{AtoB, BtoA} {
		t, err := newTimer()
		if err != nil {
			panic(fmt.Sprintf("wire: %v; raise the limit on open files", err))
		}
		h := &half{from: ends[dir], to: ends[1-dir], timer: t, line: newLine(seed, dir)}
		w.halves[dir] = h
		w.run.Go(h.read)
		w.run.Go(h.release)
	}
	return w
}

// Set replaces the impairment of the directions. Frames on the way are never delayed by it; if the new settings would
// have brought them earlier they come earlier, so that a healed wire is healed at once.
func (w *Wire) Set(dir Direction, imp Impairment) {
	for _, h := range w.each(dir) {
		h.set(imp)
	}
}

// Cut stops, or with false restores, the directions. Nobody is told: the carrier stays up. What is on the way is lost
// too, so that nothing arrives after Cut has returned.
func (w *Wire) Cut(dir Direction, on bool) {
	for _, h := range w.each(dir) {
		h.block(&h.cut, on)
	}
}

// Carrier plugs or unplugs the cable: both devices see their carrier come or go, and without it nothing passes and what
// is on the way is lost. Cuts and impairments stay as they were set.
func (w *Wire) Carrier(up bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return ErrClosed
	}
	// The kernel takes frames written to a device without carrier, so refuse them here.
	if !up {
		w.unplug(true)
	}
	var errs []error
	for _, h := range w.halves {
		errs = append(errs, setCarrier(h.from, up))
	}
	if err := errors.Join(errs...); err != nil {
		w.unplug(!w.carrier)
		return err
	}
	w.carrier = up
	w.unplug(!up)
	return nil
}

func (w *Wire) unplug(on bool) {
	for _, h := range w.halves {
		h.block(&h.unplugged, on)
	}
}

// Stats returns the counters, indexed by [AtoB] and [BtoA]. They stay readable after Close.
func (w *Wire) Stats() [2]Stats {
	return [2]Stats{w.halves[AtoB].snapshot(), w.halves[BtoA].snapshot()}
}

// Close stops forwarding, drops what is on the way and closes the files, which removes the devices. It returns when all
// goroutines have ended, with the reason if a direction had stopped moving frames before, for instance because its
// device was removed. Closing twice is harmless.
func (w *Wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	var errs []error
	for _, h := range w.halves {
		if err := h.retire(); err != nil {
			errs = append(errs, fmt.Errorf("wire %s to %s stopped: %w", h.from.Name(), h.to.Name(), err))
		}
	}
	for _, h := range w.halves {
		errs = append(errs, h.timer.close(), h.from.Close())
	}
	w.run.Wait()
	return errors.Join(errs...)
}

func (w *Wire) each(dir Direction) []*half {
	switch dir {
	case AtoB, BtoA:
		return w.halves[dir : dir+1]
	case Both:
		return w.halves[:]
	}
	panic("wire: no such direction: " + dir.String())
}
