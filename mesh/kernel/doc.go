// Package kernel says what Guywire wants the kernel to look like, as a value,
// and in which order to get there.
//
// It is pure: a State is desired (from mesh/core) or observed (from a
// Backend), Plan is the only place that knows the order of changes, Fake is a
// kernel that enforces the real one's rules and prints itself, for tests.
//
// # The total order
//
//	cut      tunnels of revoked peers; dead next hops that no group depends on
//	guard    the filter as it is, plus the holds that are new
//	heal     backups for groups that only have dead next hops, and routes off
//	         groups that get none, then these go; groups that only lose legs
//	forward  next hops, groups, routes, as far as the devices for them exist
//	uplinks  uplink tables, then the rules that lead marked packets there
//	tunnels  sysctls, create, update, sysctls of the new devices
//	address  overlay addresses
//	forward  the other next hops, groups and routes
//	rules    the rule that leads all packets to the mesh table
//	filter   the wanted filter, but with the holds that are to be lifted
//	release  rule, routes, groups, next hops that are no longer wanted
//	retire   lift holds; addresses, tunnels, mark rules, uplink routes, filter, sysctls
//
// What this promises at every step in between, also when a later step fails:
//
//   - A route that is in both states never disappears, and is not left with
//     dead legs while it has others; unless its only next hop is a revoked
//     peer's. Replace, never delete and add; a next hop is deleted only when
//     the kernel takes no wanted route along.
//   - No route is ever given a leg that it has in neither state. A group wins
//     a leg only when the routes that are to leave it have left.
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
//     comes first and goes last. Nor does a new wide route take the packets
//     of a narrower one that is still to come.
//
// The promises about routes have one price: ids must keep their meaning. An id
// that comes to stand for another device is deleted first, and a route may
// have to refuse while two groups change roles. So an id should always stand
// for the same device, or for legs out of one and the same set.
//
// # The cut
//
// It asks for no one's consent because any subset of a loop-free set of next
// hops is loop-free. It is made of as few messages as possible: deleting one
// next hop shrinks all its groups at once, whatever the number of routes.
// Only groups that would be left without a leg need a message of their own
// before, and only those whose weights change need one after. For this the
// wanted state must be without that next hop, though its tunnel may stay. A
// leg that some route is to keep, as its last and doubtful path, should
// therefore be a next hop of its own over the same device: else the other
// groups have to be reshaped one by one.
//
// A state that shares its list of routes with the one before is planned in a
// time that does not depend on how many there are.
package kernel
