package link

import (
	"testing"
	"time"
)

// The hold-down after a fall doubles with each, is bounded and is forgotten.
func TestFlapsAreDamped(t *testing.T) {
	p := newPair()
	p.run(time.Minute)
	if p.ends[0].Damped(p.now) {
		t.Fatal("a link that never fell is damped")
	}
	flap := func() (held time.Duration) {
		p.cut()
		p.run(300 * time.Millisecond)
		p.want(t, Down, Down)
		p.loss = [2]float64{}
		for p.ends[0].State() != Up {
			p.run(time.Millisecond)
		}
		at := p.now
		for p.ends[0].Damped(p.now) {
			if p.now.Sub(at) > 2*mostHold {
				t.Fatal("damped for ever")
			}
			p.run(10 * time.Millisecond)
		}
		if state := p.ends[0].State(); state != Up {
			t.Fatalf("%s while damped", state)
		}
		return p.now.Sub(at)
	}
	last := time.Duration(0)
	for n := range 8 {
		held := flap()
		t.Logf("flap %d: held for %s", n+1, held)
		if n == 0 && (held < firstHold || held > 6*firstHold/5) {
			t.Errorf("the first hold is %s", held)
		}
		if held < last || held > mostHold+time.Second {
			t.Errorf("hold %s after %s", held, last)
		}
		last = held
	}
	if last < 15*time.Second {
		t.Errorf("after eight falls in a row the hold is %s", last)
	}
	p.pace(Idle, false)
	p.run(20 * time.Minute)
	p.pace(Carrying, false)
	p.run(time.Second)
	if held := flap(); held > 6*firstHold/5 {
		t.Errorf("after twenty calm minutes a fall holds for %s", held)
	}
}

// A moved tunnel does not wash the link clean; a single suspicion is nothing.
func TestDampingRemembers(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	p.ends[0].Silent(p.now)
	p.run(time.Second)
	p.want(t, Up, Up)
	if p.ends[0].Damped(p.now) {
		t.Error("one suspicion damps")
	}
	for range 3 {
		p.ends[0].Fail(p.now, "pulled")
		p.run(time.Second)
	}
	old := p.ends[0]
	p.ends[0] = Renew(p.now, true, old)
	p.run(time.Second)
	p.want(t, Up, Up)
	if !p.ends[0].Damped(p.now) {
		t.Error("a renewed link has forgotten that it flapped")
	}
	if d := p.ends[0].Deadline(p.now); d.After(p.ends[0].flaps.until) {
		t.Error("nothing wakes the caller when the damping ends")
	}
}
