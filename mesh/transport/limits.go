package transport

import "time"

// Bounds of the listener and the dialer. What exceeds one is closed; nothing
// waits in a queue for room.
const (
	// HandshakeTimeout bounds TCP accept to the end of the TLS handshake.
	HandshakeTimeout = 5 * time.Second
	// peekTime and maxHello bound how long and how far the beginning of a
	// connection is looked at before its handshake; the time is part of
	// HandshakeTimeout. A ClientHello has 2 KiB with a post-quantum key in it.
	peekTime = 3 * time.Second
	maxHello = 4096
	// maxPending bounds handshakes under way; maxPendingSource those of one
	// source. Beyond them the oldest is closed in favour of the newest: an
	// honest handshake takes milliseconds, so the oldest is the silent one.
	maxPending       = 256
	maxPendingSource = 64
	// maxAnonymous bounds connections of no live member (joiners, mostly), which
	// therefore can never use up the room of members; maxAnonymousSource those of
	// one source. Beyond them the oldest is closed in favour of the newest, too.
	maxAnonymous       = 256
	maxAnonymousSource = 64
	// maxMember bounds the connections of one member.
	maxMember = 64
	// backlog is how many accepted connections wait for their consumer's Accept.
	backlog = 64

	// dialTimeout bounds one attempt, TCP and TLS; stagger is the lead of each
	// address over the next one (RFC 8305 section 5 recommends 250 ms).
	dialTimeout = 5 * time.Second
	stagger     = 250 * time.Millisecond
	// maxAddresses bounds the attempts of one Dial.
	maxAddresses = 8

	// A connection whose other end is gone is noticed after
	// keepIdle + keepCount × keepInterval = 30 s.
	keepIdle     = 15 * time.Second
	keepInterval = 5 * time.Second
	keepCount    = 3

	// maxChain bounds the certificates that we look at in a handshake.
	maxChain = 4
)
