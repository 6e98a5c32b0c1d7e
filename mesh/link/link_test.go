package link

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/routing/wire"
)

func TestComesUpAndMeasures(t *testing.T) {
	for _, pace := range []Pace{Idle, Backup, Carrying} {
		p := newPair()
		p.pace(pace, false)
		p.run(time.Second)
		p.want(t, Up, Up)
		p.run(15 * time.Second)
		for i, l := range p.ends {
			if rtt := l.RTT(); rtt < 20*time.Millisecond || rtt > 21*time.Millisecond {
				t.Errorf("%s: end %d measures %s on a path of 20 ms", pace, i, rtt)
			}
			if !l.Usable() {
				t.Errorf("%s: end %d is not usable", pace, i)
			}
			if c := l.Cost(p.now); c < 9_500 || c > 11_000 {
				t.Errorf("%s: end %d costs %d µs on a path of 10 ms", pace, i, c)
			}
		}
	}
}

func TestSilentCutSuspectThenDown(t *testing.T) {
	p := newPair()
	p.run(2 * time.Second)
	p.cut()
	p.run(3*15*time.Millisecond + minRoom + p.delay)
	p.want(t, Suspect, Suspect)
	p.run(minDown - 3*15*time.Millisecond - 20*time.Millisecond)
	p.want(t, Suspect, Suspect)
	p.run(70 * time.Millisecond)
	p.want(t, Down, Down)
}

// An outage is no loss: the next one is seen as quickly as the first.
func TestOutagesDoNotSlowDetection(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	for range 5 {
		p.cut()
		p.run(time.Second)
		p.loss = [2]float64{}
		p.run(3 * time.Second)
		p.want(t, Up, Up)
	}
	for i, l := range p.ends {
		if n := l.downMisses(40 * time.Millisecond); n != minMisses {
			t.Errorf("end %d waits for %d misses on a path without loss", i, n)
		}
		if l.room > 2*minRoom {
			t.Errorf("end %d grants %s of room on a path without jitter", i, l.room)
		}
	}
}

func TestDownComesBackOnBothEnds(t *testing.T) {
	for _, away := range []time.Duration{time.Second, time.Minute, time.Hour} {
		p := newPair()
		p.run(time.Second)
		p.cut()
		p.run(away)
		p.want(t, Down, Down)
		p.loss = [2]float64{}
		p.run(hopeless + returnProbes*doubtPaces[0] + 4*p.delay)
		p.want(t, Up, Up)
	}
}

func TestOneWayCutTakesBothEndsDown(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	p.loss = [2]float64{1, 0}
	p.run(3*15*time.Millisecond + minRoom + 2*p.delay + 15*time.Millisecond)
	p.want(t, Suspect, Suspect) // end 0 hears that it is not heard
	if p.ends[0].Deaf(p.now) || !p.ends[1].Deaf(p.now) {
		t.Error("the wrong end is deaf")
	}
	p.run(time.Second)
	p.want(t, Down, Down)
	p.loss = [2]float64{}
	p.run(2 * time.Second)
	p.want(t, Up, Up)
}

// The far end's word over another link is believed at once, and taken back by
// probes that answer later ones of ours, not by those under way.
func TestTheOtherEndsWord(t *testing.T) {
	p := newPair()
	p.delay = 80 * time.Millisecond
	p.run(3 * time.Second)
	p.ends[0].Silent(p.now)
	p.want(t, Suspect, Up)
	p.run(2*p.delay + 2*15*time.Millisecond)
	p.want(t, Suspect, Up)
	p.run(returnTime + 4*15*time.Millisecond)
	p.want(t, Up, Up)
}

func TestDeadAgentIsHeadlessNotDown(t *testing.T) {
	for _, pace := range []Pace{Idle, Backup, Carrying} {
		p := newPair()
		p.pace(pace, false)
		p.run(5 * time.Second)
		p.agent[1] = false
		p.run(8 * time.Second)
		if p.ends[0].State() != Headless || !p.ends[0].Usable() {
			t.Fatalf("%s: %s, usable %t: its kernel forwards", pace, p.ends[0].State(), p.ends[0].Usable())
		}
		p.never(t, Down)
		before := p.ends[0].Cost(p.now)
		p.run(headlessPatience)
		if after := p.ends[0].Cost(p.now); after < before.Add(headlessPenalty) {
			t.Errorf("%s: cost %d: transit should avoid a node without agent", pace, after)
		}
		p.kernel[1] = false
		p.run(30 * time.Second)
		if p.ends[0].State() != Down {
			t.Errorf("%s: %s although nothing answers", pace, p.ends[0].State())
		}
	}
}

func TestDeadAgentNeverDownInBetween(t *testing.T) {
	p := newPair()
	p.delay = 80 * time.Millisecond
	p.run(3 * time.Second)
	p.forget()
	p.agent[1] = false
	p.run(3 * time.Second)
	p.never(t, Down)
	p.agent[1] = true
	p.run(3 * time.Second)
	p.never(t, Down)
	p.want(t, Up, Up)
}

// Traffic that goes on keeps a link without agent from going down before the far
// end's kernel has had time to answer, however long the path is, and whenever
// the counters happen to be read.
func TestDeadAgentBehindALongPathIsNotDown(t *testing.T) {
	for _, delay := range []time.Duration{40 * time.Millisecond, 90 * time.Millisecond, 200 * time.Millisecond} {
		for offset := range 10 {
			p := newPair()
			p.delay = delay
			p.flow = [2]uint64{50_000, 50_000}
			p.run(time.Duration(offset) * 10 * time.Millisecond)
			p.polls, p.polled = 100*time.Millisecond, p.now
			p.run(5 * time.Second)
			p.want(t, Up, Up)
			p.agent[1] = false
			p.run(30 * time.Second)
			p.never(t, Down)
			if p.ends[0].State() != Headless {
				t.Errorf("%s, %d: %s", delay, offset, p.ends[0].State())
			}
		}
	}
}

// The answers of a kernel whose agent is away are counted as traffic, too. That
// takes no patience from those that come a little late.
func TestDeadAgentAndASlowKernel(t *testing.T) {
	for _, flow := range [][2]uint64{{0, 0}, {1e6, 0}, {1e6, 1e6}} {
		for offset := range 20 {
			p := newPair()
			p.pace(Idle, false)
			p.polls = 50 * time.Millisecond
			p.run(5*time.Second + time.Duration(offset)*5*time.Millisecond)
			p.agent[1] = false
			p.flow = flow
			for range 20 {
				p.run(500 * time.Millisecond)
				p.flow, p.kernel[1] = [2]uint64{flow[0], 0}, false
				p.run(60 * time.Millisecond)
				p.flow, p.kernel[1] = flow, true
			}
			if p.never(t, Down); t.Failed() {
				t.Fatalf("flow %v, offset %d: %v", flow, offset, p.history)
			}
			p.cut()
			p.run(30 * time.Second)
			if s := p.ends[0].State(); s != Down {
				t.Fatalf("flow %v, offset %d: %s although nothing answers", flow, offset, s)
			}
		}
	}
}

// Deadlines keep the monotonic reading of the time that they are made from, so
// that a step of the wall clock moves none of them.
func TestDeadlinesKeepTheMonotonicClock(t *testing.T) {
	now := time.Now()
	l := New(now, true, time.Millisecond)
	for d := time.Duration(0); d < time.Second; d += 10 * time.Millisecond {
		l.Probe(now.Add(d), 0, wire.Header{})
		if next := l.Deadline(now.Add(d)); !strings.Contains(next.String(), "m=") {
			t.Fatalf("%s has lost its monotonic reading", next)
		}
	}
}

func TestDuplicatesAndOvertakenProbesChangeNothing(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	l := *p.ends[0]
	old := wire.Probe{Seq: l.rxSeq - 3, Flags: wire.HoldsDown, Interval: 40_000}
	p.ends[0].Receive(p.now, 7, old)
	if p.ends[0].State() != Up || p.ends[0].rxAt != l.rxAt || p.ends[0].heard != l.heard {
		t.Error("an old probe was heard")
	}
}

func TestRestartedFarEndKeepsTheVerdict(t *testing.T) {
	p := newPair()
	p.run(time.Second)
	p.ends[0].Receive(p.now, 8, wire.Probe{Seq: 1, Interval: 40_000})
	if p.ends[0].State() != Up || !p.ends[0].Usable() {
		t.Error("a new incarnation took the link down")
	}
}

// An agent that restarts finds its link carrying traffic and keeps it up.
func TestAdopted(t *testing.T) {
	for _, pace := range []Pace{Idle, Backup, Carrying} {
		p := newPair()
		p.pace(pace, false)
		p.run(10 * time.Second)
		p.forget()
		p.restart(pace)
		p.run(2 * p.delay)
		p.run(2 * time.Millisecond)
		if l := p.ends[0]; l.interval != p.ends[1].announced {
			t.Errorf("%s: a round trip after the start the promise of the other end is %s, in fact %s", pace, l.interval, p.ends[1].announced)
		}
		p.run(2 * time.Second)
		p.want(t, Up, Up)
		if len(p.history) > 0 {
			t.Errorf("%s: %v", pace, p.history)
		}
		if p.ends[0].RTT() == 0 {
			t.Errorf("%s: nothing measured after two seconds", pace)
		}
		p.cut()
		p.restart(pace)
		p.run(4 * time.Second)
		if s := p.ends[0].State(); s != Down {
			t.Errorf("%s: a dead link that was adopted is %s", pace, s)
		}
	}
}

// What a far end echoes of the agent before this one is no answer to it.
func TestEchoesOfTheLastAgent(t *testing.T) {
	l := Adopt(start, 0)
	l.SetPace(start, Carrying, false, 0)
	if _, due := l.Probe(start, 0, wire.Header{}); !due {
		t.Fatal("an adopted link is not asked at once")
	}
	l.Receive(start.Add(time.Millisecond), 7, wire.Probe{Seq: 900, Interval: 2_000_000, Flags: wire.Hears, EchoSeq: 5000, EchoSent: start.Add(-time.Second).UnixNano()})
	if l.askedSeq == 0 || l.RTT() != 0 {
		t.Errorf("the question counts as answered, RTT %s", l.RTT())
	}
}

// The end that is not first stays silent until it hears the other, so that the
// two ends never begin a handshake at the same moment.
func TestOnlyOneEndBegins(t *testing.T) {
	l := New(start, false, 0)
	l.SetPace(start, Carrying, false, 0)
	if _, due := l.Probe(start.Add(firstAfter+probingPace), 0, wire.Header{}); due {
		t.Error("the second end spoke first")
	}
	if _, due := l.Probe(start.Add(yieldFor), 0, wire.Header{}); !due {
		t.Error("the second end waits for ever")
	}
	l = New(start, false, 0)
	at := start.Add(100 * time.Millisecond)
	l.Receive(at, 1, wire.Probe{Seq: 1, Interval: 40_000})
	if _, due := l.Probe(at, 0, wire.Header{}); !due {
		t.Error("the second end does not answer")
	}
}

// Whatever a far end says, and whatever else happens, the next deadline is in
// the future, probes leave no faster than allowed, and the cost stays a cost.
func TestNothingAFarEndSaysBreaksTheJudge(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 6))
		l := New(start, true, time.Duration(r.Int64()))
		var g Guard
		now, incarnation, seq, sent := start, uint64(1), uint32(r.Uint64()), 0
		number := func(most uint64) uint64 {
			if r.IntN(3) == 0 {
				return r.Uint64()
			}
			return r.Uint64N(most)
		}
		for range 2000 {
			now = now.Add(time.Duration(r.ExpFloat64() * float64(20*time.Millisecond)))
			if r.IntN(500) == 0 {
				now = now.Add(time.Minute)
			}
			switch r.IntN(12) {
			case 0:
				l.SetPace(now, Pace(r.IntN(3)), r.IntN(2) == 0, time.Duration(number(uint64(time.Second))))
			case 1:
				l.Traffic(now, number(1e6), number(1e6))
			case 2:
				l.Silent(now)
			case 3:
				l.Echoed(now)
			case 4:
				l.SetMTU(int(number(10_000) % 70_000))
			case 5:
				if r.IntN(20) == 0 {
					incarnation++
				}
				if r.IntN(100) == 0 {
					l.Fail(now, "pulled")
				}
			default:
				if seq++; r.IntN(10) == 0 {
					seq += uint32(number(20))
				}
				l.Receive(now.Add(-time.Duration(number(1e7)%1e9)), incarnation, wire.Probe{
					Seq: seq, Sent: int64(number(1e12)), Interval: uint32(number(1e6)), Want: uint32(number(1e6)),
					Flags: wire.ProbeFlags(r.IntN(4)), EchoSeq: l.seq - uint32(number(4)), EchoSent: l.clock(now) - int64(number(1e8)),
					EchoDelay: uint32(number(1e5)), Loss: uint16(number(1000)), Pad: uint16(number(1400)), PadEcho: uint16(number(1400)),
				})
			}
			g.Watch(now, time.Duration(number(uint64(time.Millisecond))%uint64(time.Second)), []*Link{l})
			l.Tick(now)
			l.Echo(now)
			for range 3 {
				if p, due := l.Probe(now, 0, wire.Header{}); due {
					sent++
					if p.Pad == 0 && time.Duration(p.Interval)*time.Microsecond < fastest {
						t.Fatalf("seed %d: an interval of %d µs", seed, p.Interval)
					}
				}
			}
			if d := l.Deadline(now); !d.After(now) {
				t.Fatalf("seed %d: the deadline is %s ago", seed, now.Sub(d))
			}
			if c := l.Cost(now); c < costStep || c >= mesh.Infinite {
				t.Fatalf("seed %d: cost %d", seed, c)
			}
			if size, _ := l.MTU(); size < baseMTU || size > max(l.mtu.limit, baseMTU) {
				t.Fatalf("seed %d: MTU %d of %d", seed, size, l.mtu.limit)
			}
			if l.room < minRoom || l.room > maxRoom {
				t.Fatalf("seed %d: room %s", seed, l.room)
			}
		}
		if most := int(now.Sub(start)/fastest) * 2; sent > most {
			t.Fatalf("seed %d: %d probes in %s", seed, sent, now.Sub(start))
		}
	}
}
