// Package grid holds the mesh to what two sites should get: for every pair of kinds of network that sites are behind, a direct
// link, the carrier, or transit through others. It builds a lab per pair, with real meshd and real NAT boxes, joins the second
// site, and measures the seconds to the first ping and to the verdict.
//
// It promises:
//
//   - A direct link is seen, not believed: the links of both sites say so, and the sites between them forward none of the
//     packets that one sends to the other.
//   - What is expected is one file, expected.txt, for tests and tools.
//   - A cell is a lab of its own. It does not depend on its neighbours and can be measured alone again.
//
// The program must have the hidden verbs of package world, [InsideCommands] among them.
package grid
