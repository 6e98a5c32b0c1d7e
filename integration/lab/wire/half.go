package wire

import (
	"errors"
	"os"
	"sync"
	"time"
)

const (
	// batching is the least time between two timed wake-ups of a direction: frames due within it leave together, late
	// rather than early. It caps the cost of a shaped stream at 20 000 wake-ups per second.
	batching = 50 * time.Microsecond

	// maxFrame is the largest frame a TAP device can hand over: the largest MTU, a header and a VLAN tag, rounded up.
	maxFrame = 64<<10 + 64

	// smallFrame is the size of pooled buffers; larger frames, rare, are allocated.
	smallFrame = 2048
)

// half moves the frames of one direction.
//
// Both its goroutines may deliver: the reader passes on what is due while it is at it, so that a busy direction does
// not depend on its timer. Writing under the lock is what keeps the order; a TAP write does not block.
type half struct {
	from, to *os.File
	timer    *timer

	mu        sync.Mutex // guards what follows, and the order of writes to to
	line      line
	queue     queue
	stats     Stats
	cut       bool
	unplugged bool
	closed    bool
	armed     time.Duration // when the timer fires; 0 if it does not
	broken    error         // why this direction stopped moving frames, if it did
}

// read moves frames from the sending device until that is closed or gone.
func (h *half) read() {
	buf := make([]byte, maxFrame)
	for {
		n, err := h.from.Read(buf)
		if err != nil {
			h.stop(err)
			return
		}
		h.accept(buf[:n])
	}
}

// release delivers frames when they are due until the timer is closed.
func (h *half) release() {
	for {
		if err := h.timer.wait(); err != nil {
			h.stop(err)
			return
		}
		h.mu.Lock()
		h.armed = 0
		h.deliver(monotonic())
		h.mu.Unlock()
	}
}

// stop notes why a goroutine ends, unless it was asked to.
func (h *half) stop(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed && h.broken == nil && !errors.Is(err, os.ErrClosed) {
		h.broken = err
	}
}

// accept takes a frame that arrived from the sending device; the bytes stay the caller's.
func (h *half) accept(frame []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stats.Frames++
	h.stats.Bytes += uint64(len(frame))
	if h.cut || h.unplugged {
		h.stats.Cut++
		return
	}
	now := monotonic()
	if h.queue.len() > 0 {
		h.deliver(now)
		if h.queue.full(len(frame)) {
			h.stats.Overflowed++
			return
		}
	}
	f := h.line.admit(now, len(frame), payloadSize(frame))
	switch f.outcome {
	case tooLarge:
		h.stats.TooLarge++
		return
	case overflowed:
		h.stats.Overflowed++
		return
	case lost:
		h.stats.Lost++
		return
	case delivered:
	}
	if f.reordered {
		h.stats.Reordered++
	}
	h.send(now, f.release, frame)
	if f.duplicate {
		h.stats.Duplicated++
		h.send(now, f.release, frame)
	}
	h.arm(now)
}

// send writes a frame that is due, and queues a copy of one that is not. What is still queued after deliver(now) leaves
// after now, so a frame that is due never overtakes one that keeps its order.
func (h *half) send(now, release time.Duration, frame []byte) {
	if release <= now {
		h.write(frame)
		return
	}
	h.queue.push(release, copyFrame(frame))
}

// deliver writes all that is due and arms the timer for the rest.
func (h *half) deliver(now time.Duration) {
	for h.queue.len() > 0 && h.queue.head() <= now {
		frame := h.queue.pop()
		h.write(frame)
		freeFrame(frame)
	}
	h.arm(now)
}

func (h *half) write(frame []byte) {
	if _, err := h.to.Write(frame); err != nil {
		h.stats.Refused++
		return
	}
	h.stats.Delivered++
}

// arm makes the timer fire for the head of the queue. A timer that is due earlier is left alone: it will find nothing,
// and look again.
func (h *half) arm(now time.Duration) {
	if h.queue.len() == 0 || h.closed {
		return
	}
	at := max(h.queue.head(), now+batching)
	if h.armed != 0 && h.armed <= at {
		return
	}
	if err := h.timer.arm(at); err != nil {
		h.broken = err
		return
	}
	h.armed = at
}

// set changes the impairment, of frames on the way too where that brings them forward.
func (h *half) set(imp Impairment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := monotonic()
	h.line.set(now, imp, &h.queue)
	h.deliver(now)
}

// block changes one of the reasons to pass nothing, and drops what is on the way if one holds.
func (h *half) block(reason *bool, on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*reason = on
	if on {
		h.stats.Cut += uint64(h.queue.len())
		h.flush()
	}
}

// flush forgets all that is on the way.
func (h *half) flush() {
	for h.queue.len() > 0 {
		freeFrame(h.queue.pop())
	}
	h.line.idle, h.line.last = 0, 0
}

func (h *half) snapshot() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.stats
	s.Queued = h.queue.len()
	return s
}

// retire stops the use of the timer, drops what is on the way, and returns what broke this direction, if anything.
func (h *half) retire() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.flush()
	return h.broken
}

var smallFrames = sync.Pool{New: func() any { return new([smallFrame]byte) }}

func copyFrame(frame []byte) []byte {
	if len(frame) > smallFrame {
		return append([]byte(nil), frame...)
	}
	return append(smallFrames.Get().(*[smallFrame]byte)[:0], frame...)
}

func freeFrame(frame []byte) {
	if cap(frame) == smallFrame {
		smallFrames.Put((*[smallFrame]byte)(frame[:smallFrame]))
	}
}
