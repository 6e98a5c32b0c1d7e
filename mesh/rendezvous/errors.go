package rendezvous

import "errors"

var (
	// ErrBusy: as many attempts run as may, or the peer asks too often. Try later.
	ErrBusy = errors.New("too many link attempts at once")
	// ErrRunning: an attempt for this link is under way.
	ErrRunning = errors.New("an attempt for this link is already running")
	// ErrYielded: both ends began at once and the other end's attempt goes on
	// instead, or a newer one of the peer replaced it. Its result follows.
	ErrYielded = errors.New("the other end's attempt goes on instead")
	// ErrReplayed: the offer was answered before and its attempt is over.
	ErrReplayed = errors.New("the offer was answered before; its attempt is over")
	// ErrUplink: the uplink is unknown here or down.
	ErrUplink = errors.New("uplink is not available")
	// ErrClosed: the attempter has been closed.
	ErrClosed = errors.New("link attempts have ended")
)
