// Package control is this node's side of the control plane: how it becomes a
// member, how it learns what the mesh agreed on, and how it asks for changes.
// It composes the transport, the replicated log, the cache and the invitations.
//
// It promises:
//   - State is never older than it was before, and a node that is a member
//     starts with the last state it knew, whoever is up or down;
//   - a change is applied at most once, whichever node it is asked of and
//     however often the answer was lost;
//   - a change is signed by the node that asks for it, and the log decides who
//     may: no node that carries it, not even a voter, can make one in
//     another's name;
//   - what a caller may do is decided at each call from the state, by the key
//     that its connection proved; a node that was removed is cut off;
//   - a token is sent to nobody: its secret signs, and only to a server whose
//     CA the token pins; what a newcomer gets is believed when a voter sealed
//     it, whoever carried it; and who only guesses writes nothing.
//
// Voters are made, replaced and dismissed by the leader. All other nodes
// follow the committed changes as a stream from any voter.
package control
