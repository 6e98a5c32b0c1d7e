package wire

import (
	"math"
	"strconv"
	"time"
)

// maxDelay is the most that Delay and Jitter can be: beyond any line, and far from the end of the clock's range.
const maxDelay = time.Hour

// Impairment says how bad one direction of a wire is. The zero value is a perfect cable. Values out of range count as
// the nearest one in range.
type Impairment struct {
	// Delay is what every frame takes at least.
	Delay time.Duration
	// Jitter is the most that is added to Delay, uniformly for each frame. It does not reorder.
	Jitter time.Duration
	// Loss is the share of frames that vanish, each independently, 0 to 1.
	Loss float64
	// Reorder is the share of frames that are held back 5 to 10 ms more while those behind pass, 0 to 1. Frames
	// further apart than that keep their order, as on a real path.
	Reorder float64
	// Duplicate is the share of frames that arrive twice, the copy right behind the original, 0 to 1.
	Duplicate float64
	// Rate is the bottleneck in bit/s, counting Ethernet frames without preamble and checksum; 0 is unlimited.
	// Its buffer holds 50 ms of traffic, or 64 kB if that is more; frames beyond it are dropped on arrival.
	Rate uint64
	// MTU is the largest network-layer packet that passes, in bytes without the Ethernet header and VLAN tag; 0 is any.
	// Larger ones vanish without an ICMP error: a black hole.
	MTU int
}

// Direction selects one or both directions of a wire. AtoB and BtoA are also the indices into [Wire.Stats].
type Direction int

// The directions.
const (
	AtoB Direction = iota
	BtoA
	Both
)

// String names the direction.
func (d Direction) String() string {
	switch d {
	case AtoB:
		return "a-to-b"
	case BtoA:
		return "b-to-a"
	case Both:
		return "both"
	}
	return "direction " + strconv.Itoa(int(d))
}

// Stats counts what happened to the frames of one direction since the wire was made.
// Frames + Duplicated = Delivered + Queued + all that was dropped.
type Stats struct {
	Frames     uint64 `json:"frames"`     // read from the sending device
	Bytes      uint64 `json:"bytes"`      // in them, with their Ethernet headers
	Delivered  uint64 `json:"delivered"`  // written to the receiving device, copies included
	Lost       uint64 `json:"lost"`       // dropped by Loss
	Overflowed uint64 `json:"overflowed"` // dropped because the bottleneck's buffer, or the line itself, was full
	TooLarge   uint64 `json:"too_large"`  // dropped by MTU
	Cut        uint64 `json:"cut"`        // dropped by a cut or without carrier, those in flight included
	Refused    uint64 `json:"refused"`    // the receiving device would not take them, usually because it is down
	Duplicated uint64 `json:"duplicated"` // copies made
	Reordered  uint64 `json:"reordered"`  // held back so that others pass
	Queued     int    `json:"queued"`     // on the way now
}

// sane returns i with every value in range.
func (i Impairment) sane() Impairment {
	i.Delay, i.Jitter = min(max(i.Delay, 0), maxDelay), min(max(i.Jitter, 0), maxDelay)
	i.Loss, i.Reorder, i.Duplicate = share(i.Loss), share(i.Reorder), share(i.Duplicate)
	i.MTU = max(i.MTU, 0)
	return i
}

func share(p float64) float64 {
	if math.IsNaN(p) {
		return 0
	}
	return min(max(p, 0), 1)
}
