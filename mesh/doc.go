// Package mesh is Guywire's vocabulary: the names of things that every other
// package speaks about: nodes, uplinks, links, costs, and the fixed numbers by
// which Guywire recognises its own objects in the kernel and on the wire.
//
// It holds types, validation and text forms, imports the standard library
// only, and decides nothing.
package mesh
