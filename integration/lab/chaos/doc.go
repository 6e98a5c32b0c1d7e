// Package chaos breaks a mesh at random and looks for packets that go round in circles: `meshlab chaos`, and a short run of
// it as a test.
//
// It promises:
//
//   - The hard criterion is the kernels' own: no packet of any site ever dies of its hop limit. The flows that run all the
//     time have a small one, so that a circle of some milliseconds shows.
//   - Beside that, the kernels' real forwarding tables are read several times a second, by code that shares nothing with the
//     product, and the union of all next hops of all sites is searched for cycles, one destination after the other. A cycle
//     counts if all its edges are still there when its sites are read again: then they were there at one moment.
//   - A seed decides what breaks, when and for how long; the same seed breaks the same. What the mesh makes of it depends on
//     the machine, too, so that a failure may need several runs of its seed.
package chaos
