// Package coordinate places nodes in a space where distance predicts the round
// trip time between two that never measured it, and decides what a node tells
// the others about distances.
//
// The coordinates are Vivaldi's (Dabek, Cox, Kaashoek, Morris: Vivaldi, a
// decentralized network coordinate system, SIGCOMM 2004) with height vectors,
// and with the adjustment term and the gravity of Ledlie, Gardner, Seltzer
// (Network coordinates in the wild, NSDI 2007), constants as in Serf.
//
// Two things differ from Serf, because links are built on what is published. A
// Publisher changes its word rarely: a coordinate that trembles would move
// tunnels. And it listens to the published words of others only, so that all
// live in the one frame that everybody knows. It also publishes what it has
// measured, and remembers it: a link that was given up for being long would
// else be wanted again as soon as its length is but predicted.
//
// It is pure: time and randomness come in as arguments.
package coordinate
