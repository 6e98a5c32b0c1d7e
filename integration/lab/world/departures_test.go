package world

import (
	"testing"
	"time"
)

// TestDepartures: a flow of 500 packets/s moves from one device to another.
func TestDepartures(t *testing.T) {
	const ms = time.Millisecond
	d := departing{pps: 500, last: Departures{}}
	const moves = 300 * ms
	for at := time.Duration(0); at < 600*ms; at += departureEvery {
		sent := uint64(at / (2 * ms))
		before := min(sent, uint64(moves/(2*ms)))
		d.add(counters{at, map[string]tally{"old": {tx: before}, "new": {tx: sent - before}, "idle": {tx: uint64(at / (100 * ms))}}})
	}
	if got := d.last["old"]; got < moves-2*departureEvery || got > moves+2*departureEvery {
		t.Errorf("the flow left the old device at %v, want about %v", got, moves)
	}
	if got := d.last["new"]; got < 600*ms-departureWindow {
		t.Errorf("the flow left the new device at %v, and it is still there", got)
	}
	if _, there := d.last["idle"]; there {
		t.Error("an idle device carried the flow")
	}
}
