// Package sim runs thousands of cores in one goroutine on a virtual clock: a
// discrete-event simulation of tunnels, kernels, link attempts, the log and
// gossip around the very mesh/core that the agent runs.
//
// A World holds the nodes and the internet between them: who can connect to
// whom, with what delay, jitter and loss, and which faults there are now. What
// leaves a core is encoded, carried and decoded as on a wire. A kernel takes
// time to be written and forwards by what it holds, with an agent or without.
//
// An Oracle stands outside. It follows what all kernels together do with every
// packet: after each change of a kernel it looks for a forwarding loop, and
// from time to time for pairs that a path joins and that cannot talk. It knows
// the true state of the world and computes slowly what ought to be.
//
// A run is identical bit for bit from its seed.
package sim
