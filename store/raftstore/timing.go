package raftstore

import "time"

// Timing is how patient the voters are with each other.
type Timing struct {
	Heartbeat time.Duration // silence of the leader before a follower campaigns, looked for once in this to twice this
	Election  time.Duration // a campaign without majority is repeated after this, up to twice
	Lease     time.Duration // a leader without majority steps down
	Commit    time.Duration // an idle leader tells followers the commit index
}

// WAN is the timing of a mesh. A voter looks once in 1.2 to 2.4 s, at random,
// whether the leader has been silent for 1.2 s, so it notices a dead one after
// 1.2 to 3.6 s; and a pre-vote is refused by who has not noticed yet, so the later
// of those that make the majority counts. The campaign costs a round trip and a
// disk write, and a split vote another 1.2 to 2.4 s: writes are back within 5 s in
// all but the rarest case. Heartbeats go out every tenth of the timeout, so nine in
// a row must be lost, or the path must stand still for 1.2 s, before anyone
// campaigns over an intercontinental path; pre-vote makes a campaign against a
// living leader harmless. The lease is shorter than the heartbeat timeout, so an
// isolated leader has stepped down before another can be elected.
var WAN = Timing{
	Heartbeat: 1200 * time.Millisecond,
	Election:  1200 * time.Millisecond,
	Lease:     time.Second,
	Commit:    150 * time.Millisecond,
}

const (
	// stallAfter is how long a write to disk may take before this voter gives
	// up its vote: long enough for a slow disk, short enough that another
	// leader writes within 10 s.
	stallAfter = 3 * time.Second
	// rpcTimeout bounds one call between voters.
	rpcTimeout = 5 * time.Second
	// closeTimeout bounds waiting for raft's goroutines when the disk hangs.
	closeTimeout = 5 * time.Second
	// lockTimeout bounds waiting for another process to release the log.
	lockTimeout = time.Second
	// enqueueTimeout bounds waiting for a place in the leader's queue.
	enqueueTimeout = 5 * time.Second

	// doubledFor is how long Status names a voter of which a second copy called.
	doubledFor = 5 * time.Minute

	snapshotInterval  = time.Minute // to twice this: how often a snapshot is considered
	snapshotThreshold = 1024        // entries since the last one that make it worth while
	snapshotsKept     = 2
	trailingLogs      = 1024 // entries kept behind a snapshot, so that a short absence needs none
	connectionsKept   = 3    // idle connections per voter

	// Changes kept in memory for followers; one that is further behind gets a snapshot.
	maxChanges     = 2048
	maxChangeBytes = 4 << 20
)
