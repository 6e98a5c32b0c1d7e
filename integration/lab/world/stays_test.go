package world

import (
	"testing"
	"time"
)

// TestStays: a flow of 500 packets/s moves from one device to another, and back for a while.
func TestStays(t *testing.T) {
	const ms = time.Millisecond
	s := staying{pps: 500, stays: Stays{}}
	const moves, returns, moves2, end = 1000 * ms, 2000 * ms, 2300 * ms, 4000 * ms
	var before, after uint64
	for at := time.Duration(0); at < end; at += stayEvery {
		s.add(counters{at, map[string]tally{"old": {tx: before}, "new": {tx: after}, "idle": {tx: uint64(at / (100 * ms))}}})
		sent := uint64((at+stayEvery)/(2*ms) - at/(2*ms))
		if at < moves || at >= returns && at < moves2 {
			before += sent
		} else {
			after += sent
		}
	}
	near := func(got, want time.Duration) bool { return got > want-4*stayEvery && got < want+4*stayEvery }
	if got, found := s.stays.Until("old", 500*ms); !found || !near(got, moves) {
		t.Errorf("the flow left the old device at %v, want about %v: %v", got, moves, s.stays)
	}
	if got, found := s.stays.Until("old", 2100*ms); !found || !near(got, moves2) {
		t.Errorf("the flow left the old device again at %v, want about %v: %v", got, moves2, s.stays)
	}
	// It was away from the new device for less than a stay needs to end.
	if got, found := s.stays.Until("new", 1500*ms); !found || got < end-stayWindow || len(s.stays["new"]) != 1 {
		t.Errorf("the flow left the new device at %v: %v", got, s.stays)
	}
	for device, at := range map[string]time.Duration{"old": 1700 * ms, "new": 500 * ms, "idle": 500 * ms} {
		if got, found := s.stays.Until(device, at); found {
			t.Errorf("at %v the flow stayed at %s until %v", at, device, got)
		}
	}
}
