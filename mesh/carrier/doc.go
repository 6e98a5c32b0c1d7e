// Package carrier is how the datagrams of one tunnel travel in a TLS stream,
// for sites whose network passes nothing but TCP port 443: frames, the queue
// in front of a stream that is slower than what comes, the pause before the
// next attempt, and who makes room in a crowd.
//
// The stream carries frames of RFC 4571: two bytes of length, most significant
// first, and the datagram. The first frame each way is the carrier's token: the
// dialling end says which carrier it means, the other end that it agrees.
// WireGuard inside protects the data, so nothing else needs to be said.
//
// A reliable stream below a protocol that repeats what is lost makes every
// delay worse. So the queue never makes anybody wait: it is short, what is old
// is dropped, and what it drops is dropped at the front, where the end that
// sends too fast hears of it soonest.
package carrier
