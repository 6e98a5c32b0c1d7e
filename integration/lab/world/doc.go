// Package world is a lab with the whole product in it: real meshd and meshctl in every site, this program itself inside
// the nodes as a meter, flows between LAN hosts, and events whose effect on the flows is measured. The demo, the benchmarks
// and the chaos run stand on it.
//
// It promises:
//
//   - What it reports was measured on real packets. Which way a flow goes is read from the packet counters of the tunnels,
//     not asked of the agents, so a wrong table cannot make a wrong row look right.
//   - Every wait has a condition, a limit, and an error that says what was last seen.
//   - A world is its lab: when that is closed, or the process ends in whatever way, nothing is left.
//
// The program must have the hidden verbs [InsideVerb], with [InsideCommand], and flow, with the commands of package flow.
package world
