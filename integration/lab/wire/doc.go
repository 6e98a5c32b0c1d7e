// Package wire is a cable between two TAP devices that can be made bad: delay, jitter, loss, rate, reordering,
// duplication, MTU limits, cuts in one or both directions, and carrier loss, on kernels without netem.
//
// It promises:
//
//   - An unimpaired wire keeps the order of frames and adds no delay beyond the two system calls that move a frame.
//   - A frame is never delivered before its time. It may be late by what the machine takes to wake a thread, and by
//     at most [batching] more when frames follow each other closely.
//   - Delay is the least delay; Jitter only adds to it. Neither changes the order of frames: a frame that would overtake
//     waits for the one before it, so under traffic denser than the jitter the mean delay approaches Delay+Jitter.
//     Only Reorder and Duplicate show a receiver anything but the order sent.
//   - Every queue is bounded, and what does not fit is dropped from the tail and counted.
//   - What is dropped, held back or duplicated is a function of the seed, of the settings and of the frames' arrival.
//
// A frame meets, in this order: the cut, the MTU, the bottleneck's buffer (with Rate), the line's loss, duplication, and
// delay. So a frame that is lost has still used its share of the rate, and the copy of a duplicated one has not.
//
// The deciding part ([line], [queue]) is pure: time is an argument and randomness is seeded. The moving part costs four
// goroutines per wire, however much it carries: for each direction one that reads frames and one that waits for the next
// release, both asleep in the runtime's poller when nothing happens.
//
// Measured by this package's benchmarks on a 2-core virtual machine, sender included: 0.67 million frames/s of 64 bytes,
// or 4.2 Gbit/s of 1514 (2.7 with a delay); without impairment a frame takes 5 µs from socket to socket (p99 7 µs); a
// delayed one leaves 50 µs late (p99 0.1 to 0.3 ms).
package wire
