// Package rendezvous runs link attempts: it takes a fresh UDP port on an
// uplink, learns how the outside sees it, exchanges offers with the other end,
// checks which pair of addresses works, and gives the port away with a proven
// endpoint for WireGuard to bind.
//
// At most one attempt per link runs at a time, at both ends the same one; the
// number of attempts and the offers answered per peer are bounded; every
// attempt ends within seconds, gives exactly one Result, and has closed its
// socket by then.
package rendezvous
