package control

import (
	"time"

	"guywire/store"
)

var (
	joinsOfOne = rate{each: 10, burst: 20}
	joinsOfAll = rate{each: 100, burst: 100}

	// Commands of one member, and of all, that a voter takes to the log: so few
	// that who asks every voter does not turn over what the log remembers of
	// requests (store.Window) within changeTimeout.
	proposalsOfOne = rate{each: 20, burst: 200}
	proposalsOfAll = rate{each: 100, burst: 500}

	// Offers of one member, and of all, that a voter passes on.
	relaysOfOne = rate{each: 1, burst: 16}
	relaysOfAll = rate{each: 100, burst: 500}

	wrongProofs = rate{each: 5. / 60, burst: 5} // of one token that are answered with more than "busy"
)

// Bounds and patience of the control plane.
const (
	maxBody        = 1 << 20 // bytes of a request
	maxAnswer      = 96 << 20
	maxHeaderBytes = 16 << 10
	maxFollowers   = 2048 // streams served by one voter; more are sent to another

	headerTimeout = 5 * time.Second
	readTimeout   = 30 * time.Second
	writeTimeout  = 60 * time.Second
	idleTimeout   = 2 * time.Minute

	// callTimeout bounds one call to another node, changeTimeout a change with
	// all its retries: longer than an election.
	callTimeout   = 10 * time.Second
	changeTimeout = 20 * time.Second
	// Of the connections to a node, idleConns are kept for the next call, and
	// changeConns are the most for changes and reads: when the leader hangs, what
	// waits must not become a storm of handshakes.
	idleConns   = 2
	changeConns = 16
	// catchUp is how long a server waits to hear of a caller that the mesh
	// admitted a moment ago, and a proposer to see its own change.
	catchUp = 2 * time.Second

	retryMin = 100 * time.Millisecond // between attempts of one change
	retryMax = time.Second

	// A follow stream carries a heartbeat every heartbeat; a follower takes
	// another voter after silence, or when its voter has no leader or is behind
	// for patience.
	heartbeat = 3 * time.Second
	silence   = 10 * time.Second
	patience  = 12 * time.Second
	followMin = 200 * time.Millisecond // backoff between streams
	followMax = 15 * time.Second
	batch     = 64 // changes read from the log at once
	// checkEvery is how often a follower asks a second voter, about.
	checkEvery = 10 * time.Second
	// While the mesh limits the age of caches, it is kept at least every
	// confirmMax that a voter confirmed the state; looked at every confirmEvery.
	confirmEvery = store.MinCacheAge / 4
	confirmMax   = time.Hour

	saveEvery  = time.Second // the cache is at most this far behind
	auditEvery = time.Second // the files of the audit trail, too

	reopenMin = 10 * time.Second // after the log failed
	reopenMax = 5 * time.Minute

	voterEvery     = 2 * time.Second  // how often the leader looks at its voters
	leaveTimeout   = 50 * time.Second // for a leaving voter's substitute to take over
	leaderless     = 5 * time.Second  // a voter without leader follows others, too
	forgottenAfter = 15 * time.Second // a learner that no leader calls has no log any more
	recoverTimeout = 5 * time.Second  // for one member to say what it knows
	recoverCalls   = 64               // members asked at once
	fenceTimeout   = 3 * time.Second  // for other voters to say what they know of this one's log
	versionTimeout = 3 * time.Second  // for the voters to say which version of the state they read
	authorityAge   = 365 * 24 * time.Hour

	reachFirst    = 250 * time.Millisecond
	reachEvery    = 10 * time.Minute
	reachRetry    = 20 * time.Second // at most, from reachFirst, doubling
	reachMisses   = 3                // in a row, and one of each judge, before an address is given up
	reachDial     = 5 * time.Second  // for a node to answer the one that it asked
	reachSTUN     = 2500 * time.Millisecond
	maxCandidates = 8 // addresses with port
	maxPorts      = 4

	// What waits at a voter for a member: how much, for how long, and how large
	// each; and the patience of who passes it on.
	maxParcels   = 4
	parcelLife   = 20 * time.Second
	maxRelayed   = 8 << 10
	relayTimeout = 3 * time.Second

	// Joins begun by one source, and by all together, each second; refusals are
	// answered late and logged rarely.
	maxSources    = 4096
	refusalPause  = 100 * time.Millisecond
	refusalReport = time.Minute

	joinTimeout = 30 * time.Second // for all servers of a token together

	// A leader whose clock is further than maxClockOffset from the median of the
	// voters' does not write.
	maxClockOffset = 5 * time.Minute
	clockEvery     = time.Minute
	clockTimeout   = time.Second

	renewCheck = 2 * time.Second
	renewRetry = 30 * time.Second // at most, from renewFirst, doubling
	renewFirst = time.Second
)
