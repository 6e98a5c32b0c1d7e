package reconcile

import "time"

const (
	// resync is how often everything is looked at without any reason, so that
	// a lost notification costs no more than this.
	resync = 30 * time.Second
	// retryFirst and retryLast bound the wait after a failure; it doubles.
	retryFirst = 100 * time.Millisecond
	retryLast  = time.Minute
	// pace is the least time between two looks at the same part: a storm of
	// hints must not keep us from acting.
	pace = 50 * time.Millisecond
	// patience bounds one operation and one look.
	patience = 15 * time.Second
	// blind is how long own operations may spoil every look at a part, before
	// one is taken with operations at rest, which a cut then has to wait for.
	blind = time.Second
	// rounds bounds how often one pass plans again after its own operations.
	rounds = 8
	// listMax bounds the objects in a Status or Report; eventsMax the events
	// of one look.
	listMax   = 100
	eventsMax = 20
)
