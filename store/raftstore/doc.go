// Package raftstore keeps the mesh's truth agreed between the voters and on
// disk: hashicorp/raft over raft-boltdb, with store.Apply as its state machine.
//
// It promises: a command that Propose reported as applied is never lost while
// a majority of the voters' disks lives, and ReadIndex sees it; a voter
// restarted alone has the state it knew to be committed; a voter whose disk
// hangs, fails or gives back what was not written stops being one at once and
// tells its owner, so that another leads; only voters are let in, and no second
// copy of one; and nothing it writes can be read by others.
//
// It knows nodes by id only. Who is at the other end of a connection and where
// a node is reached are the business of the functions in Config.
package raftstore
