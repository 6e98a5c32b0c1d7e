// Package discovery knows where nodes might be reachable: what each node says
// about its uplinks (Facts), what of it is believed (Directory), which kind of
// address translation an uplink is behind (Classify), what two nodes tell each
// other before they try a link (Offer), and how they try it (Check). By the same
// way comes what operators say of nodes that are to be cut off before the log
// can say so (Ban), and which of it counts (Bans).
//
// It is pure and deterministic: time, randomness and keys come in as
// arguments. Everything it holds is a hint. Who is a member and with which
// keys is the log's to say, and a lying node can spoil only links to itself.
package discovery
