package session

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"guywire/routing/wire"
)

// A pair names one stream: the numbers of its sender and its receiver.
type pair struct{ from, to uint64 }

// An end is a Session with an owner that keeps the contract, and the books of
// what it said and heard.
type end struct {
	s        *Session
	deadline time.Time
	heard    []uint64 // serials not yet committed
	mute     bool     // the owner has nothing to say
}

// A flight is a datagram under way.
type flight struct {
	at   time.Time
	to   int
	h    wire.Header
	seg  *wire.Segment
	late int // keeps the order of equal times
}

// A world is two ends and a path that loses, duplicates, delays and reorders.
type world struct {
	t       *testing.T
	rng     *rand.Rand
	now     time.Time
	ends    [2]*end
	flights []flight
	number  uint64
	count   int // datagrams ever sent
	data    int // bytes of streams in them

	said      map[pair][]uint64 // serials of all notes
	got       map[pair]int      // notes delivered
	committed map[pair]uint64

	loss, duplicates float64
	spread           time.Duration // of the delays
	cut              bool
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 3)), now: start,
		said: map[pair][]uint64{}, got: map[pair]int{}, committed: map[pair]uint64{},
	}
	for i := range w.ends {
		w.ends[i] = &end{}
		w.begin(i)
	}
	return w
}

// begin gives end i a new session.
func (w *world) begin(i int) {
	w.number++
	w.ends[i] = &end{s: New(w.number), mute: w.ends[i].mute}
	w.poll(i)
}

// say sends a note that names its stream and its place in it.
func (w *world) say(i int) {
	e := w.ends[i]
	p := pair{e.s.Local(), e.s.Remote()}
	note := fmt.Appendf(nil, "%d>%d:%d|", p.from, p.to, len(w.said[p]))
	switch w.rng.IntN(20) {
	case 0:
		note = append(note, make([]byte, w.rng.IntN(wire.MaxNote-len(note)+1))...)
	case 1, 2, 3, 4:
		note = append(note, make([]byte, w.rng.IntN(1500))...)
	}
	w.said[p] = append(w.said[p], e.s.Send(note))
}

func (w *world) poll(i int) {
	e := w.ends[i]
	segs, deadline := e.s.Poll(w.now, rtt)
	e.deadline = deadline
	for _, seg := range segs {
		w.carry(i, seg.Header, &seg)
	}
}

func (w *world) probe(i int) { w.carry(i, w.ends[i].s.Header(), nil) }

func (w *world) carry(from int, h wire.Header, seg *wire.Segment) {
	w.count++
	if seg != nil {
		w.data += len(seg.Data)
	}
	if w.cut || w.rng.Float64() < w.loss {
		return
	}
	for {
		delay := rtt / 2
		if w.spread > 0 {
			delay = time.Duration(w.rng.Int64N(int64(w.spread)))
			if w.rng.IntN(50) == 0 {
				delay *= 20 // long enough to meet another session
			}
		}
		w.flights = append(w.flights, flight{w.now.Add(delay), 1 - from, h, seg, w.count})
		if w.rng.Float64() >= w.duplicates {
			return
		}
	}
}

func (w *world) receive(f flight) {
	e := w.ends[f.to]
	in, err := e.s.Receive(w.now, f.h, f.seg)
	if err != nil {
		w.t.Fatalf("%+v: %v", f, err)
	}
	p := pair{e.s.Remote(), e.s.Local()}
	if in.Restarted {
		e.heard = nil
		if len(e.s.out.queue) > 0 {
			w.t.Fatal("a queue for nobody")
		}
	}
	for _, n := range in.Notes {
		i := w.got[p]
		if i >= len(w.said[p]) || n.Serial != w.said[p][i] || !bytes.HasPrefix(n.Body, fmt.Appendf(nil, "%d>%d:%d|", p.from, p.to, i)) {
			w.t.Fatalf("stream %v: note %d of %d is %.30q, serial %d", p, i, len(w.said[p]), n.Body, n.Serial)
		}
		w.got[p]++
		e.heard = append(e.heard, n.Serial)
	}
	if c := e.s.Committed(); c > w.committed[pair{p.to, p.from}] || in.Committed && c == 0 {
		w.t.Fatalf("%d of stream %v held for committed, the other end committed %d", c, pair{p.to, p.from}, w.committed[pair{p.to, p.from}])
	}
	if in.Restarted && !e.mute {
		for range w.rng.IntN(30) {
			w.say(f.to)
		}
	}
	w.poll(f.to)
}

// commit puts some of what end i has heard into its kernel.
func (w *world) commit(i, notes int) {
	e := w.ends[i]
	if notes = min(notes, len(e.heard)); notes > 0 {
		serial := e.heard[notes-1]
		e.heard = e.heard[notes:]
		w.committed[pair{e.s.Remote(), e.s.Local()}] = serial
		e.s.Commit(serial)
		w.poll(i)
	}
}

// step lets the next thing happen that happens by itself, until the time.
func (w *world) step(until time.Time) bool {
	next, what := until, -1
	for i, f := range w.flights {
		if what < 0 && !f.at.After(next) || f.at.Before(next) || what >= 0 && f.at.Equal(next) && f.late < w.flights[what].late {
			next, what = f.at, i
		}
	}
	timer := -1
	for i, e := range w.ends {
		if !e.deadline.IsZero() && e.deadline.Before(next) {
			next, timer = e.deadline, i
		}
	}
	if next.After(w.now) {
		w.now = next
	}
	switch {
	case timer >= 0:
		w.poll(timer)
	case what >= 0:
		f := w.flights[what]
		w.flights = slices.Delete(w.flights, what, what+1)
		w.receive(f)
	default:
		return false
	}
	return true
}

func (w *world) run(d time.Duration) {
	for until := w.now.Add(d); w.step(until); {
		if w.count > 1_000_000 {
			w.t.Fatal("a storm")
		}
	}
}

// Whatever the path does and whoever restarts: what is delivered is a stream's
// notes, each once, in order, and once the path is good everything arrives, is
// acknowledged, and both ends fall silent.
func TestChaos(t *testing.T) {
	seeds := uint64(100)
	if testing.Short() {
		seeds = 30
	}
	delivered := 0
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newWorld(t, seed)
			w.loss = []float64{0, 0.02, 0.3, 0.6}[w.rng.IntN(4)]
			w.duplicates = []float64{0, 0.1, 0.4}[w.rng.IntN(3)]
			w.spread = []time.Duration{0, 5 * time.Millisecond, 60 * time.Millisecond}[w.rng.IntN(3)]
			restarts := w.rng.IntN(8)
			for range 400 {
				w.run(time.Duration(w.rng.IntN(20)) * time.Millisecond)
				i := w.rng.IntN(2)
				switch e := w.ends[i]; w.rng.IntN(12) {
				case 0, 1, 2, 3, 4:
					if e.s.Room() {
						w.say(i)
						w.poll(i)
					}
				case 5, 6, 7:
					w.probe(i)
				case 8, 9:
					w.commit(i, 1+w.rng.IntN(5))
				case 10:
					if w.cut = !w.cut && w.rng.IntN(2) == 0; !w.cut {
						e.s.Nudge()
						w.poll(i)
					}
				case 11:
					if w.rng.IntN(40) < restarts {
						w.begin(i)
					}
				}
				bounded(t, &w.ends[i].s.in)
			}

			w.loss, w.duplicates, w.cut = 0, 0, false
			for _, e := range w.ends {
				e.mute = true
			}
			w.run(10 * time.Second)
			for i := range w.ends {
				w.commit(i, len(w.ends[i].heard))
				w.probe(i) // a lost word about commits is repaired by probes
			}
			w.run(10 * time.Second)

			for i, e := range w.ends {
				other := w.ends[1-i].s
				if !e.s.Open() || e.s.Remote() != other.Local() {
					t.Fatalf("end %d is not open", i)
				}
				p := pair{e.s.Local(), e.s.Remote()}
				if w.got[p] != len(w.said[p]) || e.s.Committed() != e.s.out.end() || e.s.out.outstanding() {
					t.Errorf("stream %v: %d of %d notes delivered, %d of %d bytes committed", p, w.got[p], len(w.said[p]), e.s.Committed(), e.s.out.end())
				}
				if !e.deadline.IsZero() || len(w.flights) > 0 {
					t.Error("no rest")
				}
			}
			for _, n := range w.got {
				delivered += n
			}
		})
	}
	if delivered < int(seeds)*50 {
		t.Errorf("only %d notes were delivered: the path was too bad to show anything", delivered)
	}
}

// What a note costs in datagrams, on good paths and on bad ones.
func TestNoStorm(t *testing.T) {
	const segments = 1000
	tests := map[string]struct {
		loss, duplicates float64
		spread           time.Duration
		most             float64 // datagrams per segment, acknowledgements included
		within           time.Duration
	}{
		"good":       {most: 2.1, within: 400 * time.Millisecond},
		"loss 1 %":   {loss: 0.01, most: 2.6, within: 4 * time.Second},
		"loss 10 %":  {loss: 0.1, most: 3.5, within: 8 * time.Second},
		"loss 40 %":  {loss: 0.4, most: 6, within: 60 * time.Second},
		"twice":      {duplicates: 0.5, most: 4, within: 4 * time.Second},
		"reordering": {spread: 2 * time.Millisecond, most: 2.6, within: 4 * time.Second},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.ends[0].mute, w.ends[1].mute = true, true
			w.run(time.Second)
			if w.count > 6 {
				t.Errorf("%d datagrams to open from both ends at once", w.count)
			}
			w.loss, w.duplicates, w.spread = test.loss, test.duplicates, test.spread
			e := w.ends[0]
			p := pair{e.s.Local(), e.s.Remote()}
			for i := range segments {
				note := make([]byte, wire.MaxSegmentData-2)
				copy(note, fmt.Sprintf("%d>%d:%d|", p.from, p.to, i))
				w.said[p] = append(w.said[p], e.s.Send(note))
			}
			began := w.now
			w.count = 0
			w.poll(0)
			for e.s.out.outstanding() && w.step(began.Add(time.Hour)) {
			}
			took := w.now.Sub(began)
			w.run(time.Hour)
			per := float64(w.count) / segments
			t.Logf("%.2f datagrams per segment, %v", per, took)
			if per > test.most || took > test.within || w.got[p] != segments {
				t.Errorf("%d of %d notes, %.2f datagrams per segment, %v", w.got[p], segments, per, took)
			}
		})
	}
}

// What nobody loses is sent once, though probes and answers of ends that open
// and commit come in the midst of it.
func TestNothingIsSentTwiceOnAGoodPath(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(t, seed)
		for range 200 {
			w.run(2 * time.Millisecond)
			i := w.rng.IntN(2)
			w.probe(i)
			w.commit(1-i, 1+w.rng.IntN(3))
			if e := w.ends[i]; e.s.Open() && w.rng.IntN(4) == 0 {
				w.say(i)
				w.poll(i)
			}
		}
		w.run(time.Second)
		said := w.ends[0].s.out.end() + w.ends[1].s.out.end()
		if uint64(w.data) != said || said < 10_000 {
			t.Errorf("seed %d: %d bytes of data for streams of %d", seed, w.data, said)
		}
	}
}

// An end that restarts again and again, on a path where everything arrives
// three times, costs a bounded number of datagrams: answers to answers would
// triple for ever.
func TestRestartsAreQuiet(t *testing.T) {
	w := newWorld(t, 5)
	w.ends[0].mute, w.ends[1].mute = true, true
	w.run(time.Second)
	for range 50 {
		w.duplicates = 0.67
		w.count = 0
		w.begin(w.rng.IntN(2))
		if w.rng.IntN(3) == 0 {
			w.begin(w.rng.IntN(2))
		}
		w.run(time.Second)
		if w.count > 150 || !w.ends[0].s.Open() || !w.ends[1].s.Open() {
			t.Fatalf("%d datagrams for a restart, open %v and %v", w.count, w.ends[0].s.Open(), w.ends[1].s.Open())
		}
		if w.run(time.Hour); len(w.flights) > 0 || !w.ends[0].deadline.IsZero() || !w.ends[1].deadline.IsZero() {
			t.Fatal("no rest")
		}
	}
}
