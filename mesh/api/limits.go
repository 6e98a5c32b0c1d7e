package api

import "time"

// Bounds of the server. What happens at each is said where it is used.
const (
	maxBody       = 64 << 10         // bytes of a request's body: 400 above
	maxHeader     = 16 << 10         // bytes of a request's header
	maxText       = 256              // bytes of a name, id or address in a query
	maxList       = 1024             // entries of a list in a request
	maxReaders    = 32               // requests at a time by readers: 429 above
	maxChangers   = 128              // requests at a time by those who may change: 429 above
	maxRemote     = 64               // requests at a time from elsewhere: 429 above
	maxJoinSteps  = 1024             // of a transcript: the oldest are forgotten
	headerTimeout = 5 * time.Second  // to send the header
	bodyTimeout   = 5 * time.Second  // to send the body
	idleTimeout   = time.Minute      // of a kept connection
	writeTimeout  = 10 * time.Second // for one answer or one record; a client that does not read is dropped and may resume
	readLimit     = 30 * time.Second // for a backend to answer
	changeLimit   = 2 * time.Minute  // for a backend to make a change
	joinLimit     = 5 * time.Minute  // for a whole join
	stopTimeout   = 3 * time.Second  // for requests under way when the daemon stops
	probeTimeout  = 2 * time.Second  // to find out whether a socket is alive
	maxRecord     = 1 << 20          // bytes of one record that a client accepts
	maxReply      = 64 << 20         // bytes of one document that a client accepts
)
