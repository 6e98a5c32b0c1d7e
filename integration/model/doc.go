// Package model checks the routing core against its promise: forwarding never
// loops, not while views differ, not while kernels are written.
//
// It runs the very routing.Router of the agent, with its sessions, database,
// shortest paths and loop-free invariants, many at a time on a virtual clock.
// Around them it models what they cannot see into: datagrams that are late,
// lost, doubled and out of order; detection that differs between the two ends
// of a link; agents that die and restart; logs that are followed late;
// kernels that are written late, in any order, in part, and not at all.
//
// After every event that may matter the union of what all kernels forward is
// searched for a cycle, per concrete address, by longest match, along every
// next hop in force whose owner's transit the receiver's filter lets in. The
// search starts where the event changed something, on bit sets, so that a
// state costs about a microsecond beside the core's own work.
//
// A run is repeatable bit for bit from its seed. A broken one prints the
// command that repeats it, with what happened before the loop.
//
// # What the driver owes the router
//
// The model of mesh/core and the reconciler is as free as a driver may be,
// and no freer. What it keeps to is what every driver must keep to:
//
//   - It installs a prefix of the Table even when it has no successors, so
//     that no shorter prefix is matched instead.
//   - Committed(step) comes after everything that the table and the
//     admissions of that step took away is gone from the kernel, and every
//     prefix they have is there. What is to be added may be there earlier,
//     later, or never; only a neighbour's admission is there when the step
//     that admits it is committed.
//   - A plan that was given up half-way is never reported.
//   - Before Settle it changes nothing but the filter: it refuses whom the
//     router does not admit, and reports that like any other step.
//   - A destination that the node itself announces is delivered, whatever the
//     table says, from before it is announced until it is announced no more.
package model
