// Package attempt decides one attempt to make a link, at one of its two ends: ask
// how the outside sees the port, tell the other end, check which pair of addresses
// works, and end with one verdict.
//
//	initiator   gathering ─► offering ─► checking ─► verdict
//	responder   gathering ─► answer ───► checking ─► verdict
//
// It is pure: time, randomness and packets come in as arguments, and what is to be
// done comes out. Every attempt ends within MaxTime, whatever arrives or does not.
package attempt
