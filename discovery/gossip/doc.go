// Package gossip spreads the nodes' signed facts through the mesh and tells
// who is there, by hashicorp/memberlist on overlay addresses.
//
// It carries hints only. What it delivers is unverified, whoever holds the
// gossip key can say anything: the owner verifies facts with the keys that the
// log names and gives back through Publish what it believes, and only that is
// passed on. A member that is up here need not be reachable by any link, and
// one that is down may be.
//
// Everything said is encrypted with a key that all members share, and that
// changes while they speak: see Keys.
//
// Memberlist's callbacks copy and enqueue, nothing else. When the owner does
// not keep up, events are dropped and counted; Members and the next exchange
// of full state repair what was missed.
package gossip
