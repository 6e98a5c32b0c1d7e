// Package link judges one link: is it usable, how long is its path, how much
// does it lose, how large a packet fits. It is pure: probes, counters and time
// come in, verdicts, probes and the next deadline come out. It is the only
// place where a link goes up or down.
//
// # Two verdicts
//
// Suspect is local and reversible: three probes in a row are missing, or the
// far end says that it hears nothing from us. The link leaves the used set at
// once, nobody is told. Down takes as many misses as the measured loss demands
// for less than one false alarm a month, and at least 150 ms; it is announced
// to all.
//
// Probes are answered by the far end's agent, packets are forwarded by its
// kernel. So before a silent link is given up, its far end's kernel is asked
// (ICMPv6 echo): when it answers, or when traffic still arrives, the path is
// fine and only the agent is away, perhaps restarting. The link is then
// Headless: still used, because the data plane outlives the agent.
//
// # Pace
//
// Each end says when its next probe comes (Interval) and how often it wishes to
// be probed (Want); a sender takes the shorter of its own need and the other's
// wish, and not less than its budget allows. As in BFD (RFC 5880 6.8.3) a
// faster pace counts at once, with a probe that leaves immediately; a slower
// one only after the other end has shown that it knows. A link that is probed
// slowly is still judged quickly: when a probe is overdue, this end asks for a
// fast pace, and each question without answer is a miss.
//
// # Blame
//
// A node that is starved of CPU sees silence everywhere. Guard widens all
// windows by what the node's own timers are late, and holds judgement when
// every link falls silent at once.
package link
