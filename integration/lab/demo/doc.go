// Package demo runs the whole product on networks of package lab and says what the traffic felt: [Main] is `meshlab demo`,
// [Bench] is `meshlab bench`. Real programs do everything: meshd and meshctl from the directory of the running program,
// and this program itself inside the nodes as a meter.
//
// It promises:
//
//   - What is printed was measured on real packets. Which way a flow goes is read from the packet counters of the
//     tunnels, not asked of the agents, so a wrong table cannot make a wrong row look right.
//   - Every wait has a condition, a limit, and an error that says what was last seen.
//   - When it returns, or its process ends in whatever way, nothing is left: no process, namespace, interface or mount.
//     Only Options.Keep leaves the lab, which `meshlab down` ends. A failure leaves the logs in Options.LogDir.
package demo
