// Package transport carries the control plane between nodes: one listener, on
// one TCP port or several, and one dialer, TLS 1.3 only, with certificates of
// the mesh's own CA.
//
// A node's certificate is for its Ed25519 identity key, so who is at the other
// end follows from the key that the handshake proved, never from a name or an
// address. Members believe the keys that their state names, with a certificate
// of whatever age and CA; one that is not valid now makes its bearer stale,
// which is enough for hints and for getting another. Who has no state, as a
// joiner, believes a set of CA pins (SHA-256 of the SubjectPublicKeyInfo). What
// a node may do is not in its certificate: callers ask the store at each call.
// A client without a certificate is let in as nobody, because a node that joins
// has none yet.
//
// A right that ends, ends at once: Cut closes what is open, either way.
//
// The listener promises to stay in service under silent, slow or many
// connections: handshakes have a deadline, everything has a bound, and a
// source that opens too many loses its own oldest ones. A connection that is
// for another process (ListenConfig.Divert) is under the same bounds until it
// is there.
package transport
