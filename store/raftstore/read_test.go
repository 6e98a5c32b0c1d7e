package raftstore

import (
	"testing"
	"time"
)

func TestPulse(t *testing.T) {
	t.Parallel()
	var p pulse
	start, limit := time.Unix(1e9, 0), 500*time.Millisecond
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for ms := 0; ms <= 1000; ms += 125 {
		p.beat(at(ms), limit)
	}
	for _, c := range []struct {
		ms   int
		beat bool // before it is asked
		want bool
	}{
		{1100, false, false},
		{1500, false, false},
		{1501, false, true}, // nobody has noticed yet
		{31000, true, true}, // it went on
		{31400, true, true},
		{31800, true, true},
	} {
		if c.beat {
			p.beat(at(c.ms), limit)
		}
		if got := p.missed(at(c.ms), limit); got != c.want {
			t.Errorf("at %d ms: %v, want %v", c.ms, got, c.want)
		}
	}
	for ms := 32000; ms <= 31000+int(rpcTimeout/time.Millisecond); ms += 125 {
		p.beat(at(ms), limit)
	}
	if end := 31000 + int(rpcTimeout/time.Millisecond); p.missed(at(end), limit) {
		t.Error("it is not trusted again")
	}
}
