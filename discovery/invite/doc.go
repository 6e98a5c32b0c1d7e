// Package invite is the join token and the proofs of a join: what a token says
// and how it is written, what a joiner signs, and how each side checks it.
//
// A token carries a 128-bit secret that never travels. From it both the maker
// and the joiner derive one Ed25519 key pair; the log keeps the public half
// only, so nothing that a voter stores or sends can admit a node. The joiner
// proves three things about one Transcript, which is bound to its TLS channel:
// that it holds the token, that it holds the identity key, and that it holds
// the WireGuard key. What it gets is one Answer, sealed with the key of the CA
// that the token pins: whoever carried it can withhold it, but not change it.
//
// It is pure: randomness and time come in as arguments. Tokens and challenges
// never print their secrets through fmt, log/slog or encoding/json; Token.Text
// alone gives the text that admits a node.
package invite
