// Package core is the node's mind: it joins the truth (store), the hints
// (discovery) and the measurements (probes) into decisions: which links to
// try, which to trust, what to tell the neighbours, and what the kernel should
// look like.
//
// It is pure: Step never blocks, reads no clock and starts no goroutine, and
// the same Config and the same sequence of (now, event) give the same sequence
// of Ready. The agent runs one; a simulator runs thousands.
package core
