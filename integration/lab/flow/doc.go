// Package flow makes and measures traffic inside the namespaces of a lab: UDP at a constant rate with exact accounting
// of every packet, TCP streams, and pings. It runs as hidden subcommands of meshlab ([Commands]), each of which prints
// one JSON document when it stops, and as functions.
//
// It promises:
//
//   - All moments are CLOCK_MONOTONIC, which namespaces of one machine share, so one-way times and gaps need no
//     synchronised clocks. Wall-clock times stand beside them for people.
//   - In JSON, durations and monotonic moments are integer nanoseconds and their names end in _ns; wall-clock times are
//     RFC 3339. Field names do not change.
//   - A UDP packet's arrival is the moment the kernel took it, so a receiver that waits for a processor sees no gap that
//     the network did not have; a sender that was late is named in the gap it caused.
//   - Lost means sent and not received, whatever the reason. Packets that the sender's own kernel refused are among them,
//     with the cause.
//   - Memory is bounded: lists have limits and say what they left out.
package flow
