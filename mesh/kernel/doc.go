// Package kernel says what Guywire wants the kernel to look like, as a value,
// and in which order to get there.
//
// It is pure: a State is desired (from mesh/core) or observed (from a
// Backend), Plan is the only place that knows the order of changes, Fake is a
// kernel that enforces the real one's rules and prints itself, for tests.
//
// # The total order
//
//	guard    the filter as it is, plus the holds that are new
//	cut      tunnels of revoked peers; dead next hops; groups that only lose legs
//	uplinks  uplink tables, then the rules that lead marked packets there
//	tunnels  sysctls, create, update, sysctls of the new devices
//	address  overlay addresses
//	forward  next hops, groups, routes (throw and unreachable before forward)
//	rules    the rule that leads all packets to the mesh table
//	filter   the wanted filter, but with the holds that are to be lifted
//	release  rule, routes, groups, next hops that are no longer wanted
//	retire   lift holds; addresses, tunnels, mark rules, uplink routes, filter, sysctls
//
// What this promises at every step in between, also when a later step fails:
//
//   - A route that is in both states never disappears, unless its only next
//     hop is a revoked peer's. Replace, never delete and add; a next hop is
//     deleted only when the kernel takes no wanted route along.
//   - A hold is in place before anything is added, and lifted only after all
//     that is unwanted is gone (routing.md 5.4, rule 7). So one change may
//     need up to three filters, each a single transaction; the usual ones,
//     only holding or only lifting, need one.
//   - A tunnel that the filter does not list is cut off both ways into the
//     node: a new link is admitted only after the routes are there. Without
//     a table, the guard first writes one that knows the existing tunnels
//     only, so a new device is never open before it is listed.
//   - A packet of a tunnel never leaves by another uplink: mark rules and
//     uplink tables come before the tunnels and go after them.
//   - A connected prefix is never covered by a mesh route: its throw route
//     comes first and goes last.
//
// The cut asks for no one's consent because any subset of a loop-free set of
// next hops is loop-free. It is made of as few messages as possible: deleting
// one next hop shrinks all its groups at once, whatever the number of routes.
package kernel
