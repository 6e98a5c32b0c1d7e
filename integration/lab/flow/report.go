package flow

import (
	"net/netip"
	"time"
)

// Limits of the lists in reports.
const (
	maxFlows    = 1 << 10 // flows that one receiver serves
	maxGaps     = 1 << 14 // gaps listed per flow
	maxLosses   = 1 << 16 // runs of lost packets listed per flow
	maxFailures = 1 << 12 // runs of failed sends listed
	maxErrors   = 64      // different error texts counted
)

// SendReport is what a UDP sender did.
type SendReport struct {
	Flow     uint32         `json:"flow"`
	To       netip.AddrPort `json:"to"`
	Size     int            `json:"size"` // UDP payload in bytes
	Interval time.Duration  `json:"interval_ns"`
	// Sent counts the sequence numbers used, also those whose send failed.
	Sent uint64 `json:"sent"`
	// Failed counts the packets that this host's kernel refused; SendErrors says why, by error text.
	Failed     uint64            `json:"failed"`
	SendErrors map[string]uint64 `json:"send_errors"`
	// Failures lists them in order, the first maxFailures runs.
	Failures []SendFailure `json:"failures"`
	// Late counts the packets sent more than one interval after their time.
	Late      uint64        `json:"late"`
	MaxLate   time.Duration `json:"max_late_ns"`
	Start     time.Time     `json:"start"`
	StartMono time.Duration `json:"start_mono_ns"` // when packet 0 was due; packet n was due n intervals later
	EndMono   time.Duration `json:"end_mono_ns"`   // when the last packet was sent
}

// SendFailure is a run of consecutive packets refused for one reason.
type SendFailure struct {
	FirstSeq uint64 `json:"first_seq"`
	Count    uint64 `json:"count"`
	Error    string `json:"error"`
}

// RecvReport is what a UDP receiver saw.
type RecvReport struct {
	Listen       netip.AddrPort `json:"listen"`
	GapIntervals int            `json:"gap_intervals"` // silence longer than this many intervals is a gap
	StopMono     time.Duration  `json:"stop_mono_ns"`
	Flows        []FlowReport   `json:"flows"` // by flow number
	// Malformed counts datagrams that are not ours, Refused those of flows beyond the limit of 1024.
	Malformed uint64 `json:"malformed"`
	Refused   uint64 `json:"refused"`
	// Overflowed counts packets that reached this host but found the receiver's socket buffer full: loss that is not the
	// network's.
	Overflowed uint64 `json:"overflowed"`
}

// FlowReport is what a receiver saw of one flow. It knows of packets between the first and the last it received;
// [Merge] adds what the sender knows.
type FlowReport struct {
	Flow     uint32        `json:"flow"`
	Interval time.Duration `json:"interval_ns"`
	FirstSeq uint64        `json:"first_seq"` // lowest received
	LastSeq  uint64        `json:"last_seq"`  // highest received
	Received uint64        `json:"received"`  // different packets
	Lost     uint64        `json:"lost"`      // between FirstSeq and LastSeq
	// Duplicates counts further copies, Reordered packets that came after one with a higher number (RFC 4737).
	Duplicates       uint64        `json:"duplicates"`
	Reordered        uint64        `json:"reordered"`
	LongestGap       time.Duration `json:"longest_gap_ns"` // between two arrivals, however short
	Gaps             []Gap         `json:"gaps"`
	GapsOmitted      uint64        `json:"gaps_omitted"` // gaps beyond the first 16384
	Losses           []LossRun     `json:"losses"`
	LossesOmitted    uint64        `json:"losses_omitted"` // packets in the oldest runs; at least the last 49152 runs are listed
	Latency          Latency       `json:"latency"`        // one way
	FirstArrivalMono time.Duration `json:"first_arrival_mono_ns"`
	LastArrivalMono  time.Duration `json:"last_arrival_mono_ns"`
}

// Gap is a silence of a flow.
type Gap struct {
	Start     time.Time     `json:"start"`         // the last arrival before it
	StartMono time.Duration `json:"start_mono_ns"` // the same
	Length    time.Duration `json:"length_ns"`     // to the next arrival
	Lost      uint64        `json:"lost"`          // packets lost in it
	// SenderLate is the part of Length for which the sender is to blame: by how much the packet that ended the gap was
	// sent later than its number says.
	SenderLate time.Duration `json:"sender_late_ns"`
	LastBefore uint64        `json:"last_seq_before"`
	FirstAfter uint64        `json:"first_seq_after"`
	Open       bool          `json:"open"` // no packet ended it: it lasted to the end of the flow
}

// End returns when the gap ended.
func (g Gap) End() time.Duration { return g.StartMono + g.Length }

// LossRun is a run of consecutive packets of which none arrived.
type LossRun struct {
	FirstSeq uint64        `json:"first_seq"`
	Count    uint64        `json:"count"`
	SentMono time.Duration `json:"sent_mono_ns"` // when the first of them was due
}

// end returns the first sequence number behind the run.
func (l LossRun) end() uint64 { return l.FirstSeq + l.Count }
