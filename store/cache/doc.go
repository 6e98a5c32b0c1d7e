// Package cache is the last that a node knew, on its own disk: the state of
// the mesh, its links, facts about other nodes. From it the data plane comes
// up at boot with no voter, no gossip and no DNS; the log corrects it later.
//
// Every file is signed with the node's identity key over what it is and whose
// it is, so a file of another node, mesh or kind is never taken, and is
// replaced whole or not at all. A file that cannot be used is set aside, not
// deleted, and the node starts from the log instead.
package cache
