package link

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/routing/wire"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// A pair is the two ends of one link and the path between them, on a virtual
// clock that jumps from event to event.
type pair struct {
	now  time.Time
	ends [2]*Link
	path
	guards  [2]*Guard  // nil: judged without
	others  [2][]*Link // of the same node
	stalls  [2]stall
	due     [2]time.Time
	rng     *rand.Rand
	flight  []packet // by time of arrival
	polls   time.Duration
	polled  time.Time
	counts  [2]struct{ rx, tx uint64 }
	flow    [2]uint64 // bytes/s that end i sends besides probes
	started [2]uint64 // incarnations
	history []string
	entered [2]map[State]int
	sent    [2]int
	bytes   [2]int
}

// A path is what happens to datagrams, by the end that sends them.
type path struct {
	delay  time.Duration
	jitter func(*rand.Rand) time.Duration // on top, each way
	loss   [2]float64
	hold   [2]time.Duration // every first, all packets wait until second has passed
	mtu    int
	agent  [2]bool // end i's agent runs
	kernel [2]bool // end i's kernel answers echoes
}

// A stall is a time in which an agent gets no CPU.
type stall struct {
	mean, most time.Duration // pause between stalls; longest
	from, to   time.Time
}

type packet struct {
	at   time.Time
	sent int // end
	deed func(*Link, time.Time)
}

func newPair() *pair {
	p := &pair{now: start, rng: rand.New(rand.NewPCG(1, 1)), polled: start}
	p.path = path{delay: 10 * time.Millisecond, mtu: 9000, agent: [2]bool{true, true}, kernel: [2]bool{true, true}}
	for i := range p.ends {
		p.ends[i] = New(start, i == 0, time.Duration(i)*7*time.Millisecond)
		p.ends[i].SetPace(start, Carrying, false, 0)
		p.started[i] = 7
		p.entered[i] = map[State]int{}
	}
	return p
}

func (p *pair) pace(pace Pace, metered bool) {
	for _, l := range p.ends {
		l.SetPace(p.now, pace, metered, 0)
	}
}

func (p *pair) send(from int, extra time.Duration, deed func(*Link, time.Time)) {
	if p.rng.Float64() < p.loss[from] {
		return
	}
	d := p.delay + extra
	if p.jitter != nil {
		d += p.jitter(p.rng)
	}
	if p.hold[0] > 0 {
		d += max(p.hold[1]-p.now.Sub(start)%p.hold[0], 0)
	}
	at := p.now.Add(d)
	i := len(p.flight)
	for i > 0 && p.flight[i-1].at.After(at) {
		i--
	}
	p.flight = slices.Insert(p.flight, i, packet{at, from, deed})
}

// run lets time pass.
func (p *pair) run(d time.Duration) {
	end := p.now.Add(d)
	for {
		next := end
		for i, l := range p.ends {
			if p.agent[i] {
				due := l.Deadline(p.now)
				if !p.due[i].IsZero() {
					due = earliest(due, p.due[i]) // as promised
				}
				next = earliest(next, latest(due, p.awake(i)))
			}
		}
		for _, f := range p.flight {
			if t := latest(f.at, p.awake(1-f.sent)); t.Before(next) {
				next = t
			}
			if f.at.After(next) {
				break
			}
		}
		if p.polls > 0 {
			next = earliest(next, p.polled.Add(p.polls))
		}
		p.now = latest(next, p.now)
		if !p.now.Before(end) {
			p.now = end
			return
		}
		p.step()
	}
}

// awake is when an agent that is stalled goes on.
func (p *pair) awake(i int) time.Time {
	s := &p.stalls[i]
	if s.mean == 0 {
		return time.Time{}
	}
	for !p.now.Before(s.to) {
		s.from = latest(s.to, p.now).Add(time.Duration(p.rng.ExpFloat64() * float64(s.mean)))
		s.to = s.from.Add(time.Duration(p.rng.Int64N(int64(s.most))))
	}
	if p.now.Before(s.from) {
		return time.Time{}
	}
	return s.to
}

func (p *pair) step() {
	if p.polls > 0 && !p.now.Before(p.polled.Add(p.polls)) {
		p.poll()
	}
	before := [2]State{p.ends[0].State(), p.ends[1].State()}
	var late [2]time.Duration
	kept := p.flight[:0]
	for n, f := range p.flight {
		to := 1 - f.sent
		if f.at.After(p.now) {
			kept = append(kept, p.flight[n:]...)
			break
		}
		switch {
		case p.awake(to).After(p.now):
			kept = append(kept, f)
		case p.agent[to]:
			late[to] = max(late[to], p.now.Sub(f.at))
			f.deed(p.ends[to], f.at)
		}
	}
	p.flight = kept
	for i, l := range p.ends {
		if !p.agent[i] || p.awake(i).After(p.now) {
			continue
		}
		if p.guards[i] != nil {
			if !p.due[i].IsZero() {
				late[i] = max(late[i], p.now.Sub(p.due[i]))
			}
			p.guards[i].Watch(p.now, late[i], append(p.others[i], l))
		}
		l.Tick(p.now)
		if l.Echo(p.now) && p.kernel[1-i] && p.rng.Float64() >= p.loss[i] {
			p.send(1-i, p.delay, func(l *Link, at time.Time) {
				p.counts[i].rx += echoBytes
				l.Echoed(at)
			})
		}
		for {
			probe, due := l.Probe(p.now, 0, wire.Header{})
			if !due {
				break
			}
			size := innerHeaders + wire.ProbeLen + int(probe.Pad)
			p.sent[i]++
			p.bytes[i] += ProbeBytes + int(probe.Pad)
			p.counts[i].tx += tunnelBytes(int(probe.Pad))
			if size > p.mtu {
				continue
			}
			started := p.started[i]
			p.send(i, 0, func(l *Link, at time.Time) {
				p.counts[1-i].rx += tunnelBytes(int(probe.Pad))
				l.Receive(at, started, probe)
			})
		}
		if l.State() != before[i] {
			p.entered[i][l.State()]++
			p.history = append(p.history, fmt.Sprintf("%s end %d: %s (%s)", p.now.Sub(start), i, l.State(), l.Reason()))
		}
		if p.due[i] = l.Deadline(p.now); !p.due[i].After(p.now) {
			panic(fmt.Sprintf("a deadline that is not in the future: %s", p.now.Sub(p.due[i])))
		}
	}
}

// poll moves the counters by the flows and lets both ends read them.
func (p *pair) poll() {
	gap := p.now.Sub(p.polled)
	p.polled = p.now
	for i, rate := range p.flow {
		bytes := rate * uint64(gap) / uint64(time.Second)
		p.counts[i].tx += bytes
		if p.loss[i] < 1 {
			p.counts[1-i].rx += bytes
		}
	}
	for i, l := range p.ends {
		if p.agent[i] {
			l.Traffic(p.now, p.counts[i].rx, p.counts[i].tx)
		}
	}
}

// restart gives end 0 a new agent, which finds its tunnel.
func (p *pair) restart(pace Pace) {
	p.ends[0] = Adopt(p.now, 0)
	p.ends[0].SetPace(p.now, pace, false, 0)
	p.started[0]++
	p.due[0] = time.Time{}
}

// echoBytes is what a device counts of the answer of a kernel.
const echoBytes = 64

func (p *pair) cut() { p.loss = [2]float64{1, 1} }

func (p *pair) forget() {
	p.history = nil
	for i := range p.entered {
		clear(p.entered[i])
		p.sent[i], p.bytes[i] = 0, 0
	}
}

func (p *pair) want(t *testing.T, a, b State) {
	t.Helper()
	if p.ends[0].State() != a || p.ends[1].State() != b {
		t.Fatalf("ends are %s and %s, want %s and %s\n%s", p.ends[0].State(), p.ends[1].State(), a, b, strings.Join(p.history, "\n"))
	}
}

func (p *pair) never(t *testing.T, s State) {
	t.Helper()
	for _, h := range p.history {
		if strings.Contains(h, ": "+s.String()+" (") {
			t.Error(h)
		}
	}
}
