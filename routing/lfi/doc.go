// Package lfi decides which neighbours may carry traffic to each destination,
// so that forwarding never loops: not while nodes' views differ, not between a
// decision and its arrival in the kernel, not with any next hop removed.
//
// The rule is a loop-free invariant (LFI; Vutukury and Garcia-Luna-Aceves, "A
// simple approximation to minimum-delay routing", SIGCOMM 1999, and MDVA,
// INFOCOM 2001). For each destination a node keeps a feasible distance and
// forwards only to neighbours whose reported distance is below it. What it
// reports itself is never below its feasible distance in any kernel state that
// may be in force:
//
//   - lowering: the feasible distance falls at once, the kernel follows, and
//     only when the kernel has it is the lower distance reported;
//   - raising: the higher distance is reported at once; the feasible distance
//     follows when every neighbour whose transit the kernel lets in has
//     confirmed that its own kernel uses the report.
//
// So along every edge that is used anywhere the feasible distance falls
// strictly, and the union of all next hops is acyclic at every instant, as is
// every subset of it. The distances that link-state routing computes are
// advice: they decide how good the routes are, never whether they loop.
package lfi
