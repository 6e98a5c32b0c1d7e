// Package lab builds whole networks on one machine out of Linux namespaces: sites, ISP routers, NAT boxes of every kind
// and LAN hosts, joined by links that can be cut, delayed and made lossy. It is the engine of meshlab.
//
// What it promises:
//
//   - The kernel is reached through netlink and nftables messages only; no iproute2, no nft, no shell. It works as root
//     and, inside a user namespace of its own, as a plain user (wires then need a /dev/net/tun that the user may open).
//   - Nothing of the host is touched. A lab is one process tree under a supervisor that is process 1 of a PID namespace
//     and owns anonymous network and mount namespaces: when the supervisor ends, for whatever reason, the kernel removes
//     every process, interface, route, rule and mount with it. What can stay behind is one directory, which [Down] removes.
//   - Labs are independent of each other: two of them may use the same addresses, names and network file.
//   - The same network file gives the same addresses, interface names, routes and impairment seeds each time.
//
// # Links
//
// A link without impairments is a veth pair and runs at memory speed. A link with a delay, jitter, loss, rate, reordering
// or duplication, with a black hole, or marked `wire: true`, is a pair of TAP devices joined by the userspace wire of
// package wire. The wire is used on every kernel, also where netem exists: it is seeded, so a run repeats the same losses,
// and a test means the same on all machines. Only wires can be impaired while the lab runs.
//
// # Faults
//
// Each of them is a method of [Lab] and a verb of meshlab, and is undone by Heal and `meshlab heal`:
//
//	cut        packets on a link vanish, in both directions or one
//	cut --carrier, impair, partition    the plug, the wire, groups of links
//	stall      fsync of a node's programs waits, or fails with EIO or ENOSPC; see package disk
//	clock      the wall clock of a node's agent is elsewhere; see package clock
//	pause      a process stands still
//	suspend    all processes of a node do, as on a machine that sleeps
//
// Disks and clocks fail only in labs with Options.Faults. There fsync is slower, and clocks need agents that package clock
// has built; figures are not measured in such labs.
//
// # Programs that start labs
//
// The supervisor and the nodes are the calling program, run again under another name. So a program that calls [Up] must
// call [Init] first thing in main, or in TestMain.
package lab
