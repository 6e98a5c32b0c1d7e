// Package agent is the shell around the node's mind: it owns the goroutines,
// the queues and the clock, feeds mesh/core with events and carries out what
// it answers. One goroutine owns the core; everything else talks to it by
// bounded queues or by closures that run there.
//
// The agent imports no adapter of the kernel or the network: it declares the
// small interfaces it needs and cmd/meshd passes the real ones.
package agent
