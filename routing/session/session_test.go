package session

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/routing/wire"
)

var start = time.Unix(1_000_000, 0)

const rtt = 20 * time.Millisecond

// exchange carries segments between two ends at once until both are silent and
// have no acknowledgement to wait for, keep deciding for each, and returns what
// happened, one line a datagram.
func exchange(t *testing.T, a, b *Session, keep func(i int, from *Session, seg wire.Segment) bool) (log []string) {
	t.Helper()
	names := map[*Session]string{a: "a", b: "b"}
	now := start
	for quiet := 0; quiet < 2; {
		if quiet++; quiet == 2 && !(a.ackBy.IsZero() && b.ackBy.IsZero()) {
			now, quiet = now.Add(ackDelay), 0
		}
		segs, _ := a.Poll(now, rtt)
		for _, seg := range segs {
			quiet = 0
			line := fmt.Sprintf("%s From=%d To=%d Open=%v %d+%d Received=%d Committed=%d", names[a], seg.From, seg.To, seg.Open, seg.Offset, len(seg.Data), seg.Received, seg.Committed)
			if keep != nil && !keep(len(log), a, seg) {
				log = append(log, line+" lost")
				continue
			}
			in, err := b.Receive(now, seg.Header, &seg)
			if err != nil {
				t.Fatal(err)
			}
			if in.Restarted {
				line += " restarted"
			}
			if in.Opened {
				line += " opened"
			}
			for _, n := range in.Notes {
				line += fmt.Sprintf(" %.20q@%d", n.Body, n.Serial)
			}
			if in.Committed {
				line += " committed"
			}
			log = append(log, line)
			if len(log) > 10_000 {
				t.Fatalf("no end:\n%s", strings.Join(log[:40], "\n"))
			}
		}
		a, b = b, a
	}
	return log
}

// open gives two ends that know each other.
func open(t *testing.T) (a, b *Session) {
	t.Helper()
	a, b = New(1), New(2)
	exchange(t, a, b, nil)
	if !a.Open() || !b.Open() {
		t.Fatal("not open")
	}
	return a, b
}

func check(t *testing.T, got []string, want string) {
	t.Helper()
	if g := strings.Join(got, "\n"); g != strings.TrimSpace(want) {
		t.Errorf("got:\n%s\nwant:\n%s", g, strings.TrimSpace(want))
	}
}

func TestDialogue(t *testing.T) {
	a, b := New(1), New(2)
	b.SetCold(true)
	check(t, exchange(t, a, b, nil), `
a From=1 To=0 Open=false 0+0 Received=0 Committed=0 restarted
b From=2 To=1 Open=false 0+0 Received=0 Committed=0 restarted opened
a From=1 To=2 Open=true 0+0 Received=0 Committed=0 opened`)

	if serial := a.Send([]byte("hello")); serial != 6 {
		t.Errorf("serial %d", serial)
	}
	a.Send([]byte("world"))
	b.Send([]byte("!"))
	check(t, exchange(t, a, b, nil), `
a From=1 To=2 Open=true 0+12 Received=0 Committed=0 "hello"@6 "world"@12
b From=2 To=1 Open=true 0+2 Received=12 Committed=0 "!"@2
a From=1 To=2 Open=true 12+0 Received=2 Committed=0`)

	b.Commit(6)
	b.Commit(12)
	check(t, exchange(t, a, b, nil), `
b From=2 To=1 Open=true 2+0 Received=12 Committed=12 committed`)
	if a.Committed() != 12 || b.Committed() != 0 {
		t.Errorf("committed %d and %d", a.Committed(), b.Committed())
	}

	check(t, exchange(t, New(7), b, nil), `
a From=7 To=0 Open=false 0+0 Received=0 Committed=0 restarted
b From=2 To=7 Open=false 0+0 Received=0 Committed=0 restarted opened
a From=7 To=2 Open=true 0+0 Received=0 Committed=0 opened`)
	if b.Committed() != 0 || b.Remote() != 7 {
		t.Error("the new session knows something of the old one")
	}
}

// Whatever is lost at the beginning, both ends open, by their timers alone.
func TestOpensThroughLoss(t *testing.T) {
	const first = 8
	for lost := range 1 << first {
		ends := [2]*Session{New(1), New(2)}
		now, sent := start, 0
		for !ends[0].Open() || !ends[1].Open() {
			next := now.Add(time.Hour)
			for i, s := range ends {
				segs, deadline := s.Poll(now, rtt)
				for _, seg := range segs {
					sent++
					if sent <= first && lost>>(sent-1)&1 != 0 {
						continue
					}
					if _, err := ends[1-i].Receive(now, seg.Header, &seg); err != nil {
						t.Fatal(err)
					}
					next = now
				}
				if !deadline.IsZero() && deadline.Before(next) {
					next = deadline
				}
			}
			if now = next; now.Sub(start) > 10*time.Second || sent > first+10 {
				t.Fatalf("pattern %b: not open after %v and %d datagrams", lost, now.Sub(start), sent)
			}
		}
	}
}

// An end that is told of its own open session by a probe opens as well.
func TestOpensByProbes(t *testing.T) {
	a, b := New(1), New(2)
	var opened int
	for range 2 {
		in, err := b.Receive(start, a.Header(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if in.Opened {
			opened++
		}
		if in, err = a.Receive(start, b.Header(), nil); err != nil {
			t.Fatal(err)
		}
		if in.Opened {
			opened++
		}
	}
	if opened != 2 || !a.Open() || !b.Open() {
		t.Errorf("opened %d times", opened)
	}
}

// Who does not know our number is told at once, though not by an end that
// knows it to be known: then the header is late.
func TestAnswersWhoDoesNotKnowUs(t *testing.T) {
	a := New(2)
	for _, to := range []uint64{0, 1, 1} {
		if _, err := a.Receive(start, wire.Header{From: 5, To: to}, nil); err != nil {
			t.Fatal(err)
		}
		if segs, _ := a.Poll(start, rtt); len(segs) != 1 || segs[0].To != 5 || segs[0].From != 2 {
			t.Errorf("to a header for %d: %+v", to, segs)
		}
	}
	if _, err := a.Receive(start, wire.Header{From: 5, To: 2, Open: true}, nil); err != nil {
		t.Fatal(err)
	}
	for _, h := range []wire.Header{{From: 5, To: 2, Open: true}, {From: 5, To: 1}, {From: 5}, {From: 4, To: 2}, {From: 0, To: 2}} {
		in, err := a.Receive(start, h, nil)
		if segs, deadline := a.Poll(start, rtt); len(segs) != 0 || !deadline.IsZero() || err != nil || in.Restarted || in.Opened {
			t.Errorf("to %+v: %+v %v %+v", h, in, err, segs)
		}
	}
}

func TestCold(t *testing.T) {
	for _, cold := range []bool{false, true} {
		a, b := New(1), New(2)
		a.SetCold(cold)
		in, err := b.Receive(start, a.Header(), nil)
		if err != nil || !in.Restarted || in.Cold != cold {
			t.Errorf("%+v, %v", in, err)
		}
		exchange(t, a, b, nil)
		if a.Header().Cold != cold {
			t.Error("the other end's number changed what we hold of it")
		}
	}
}

// What a session before this pair said changes nothing at all.
func TestStaleIsIgnored(t *testing.T) {
	a, b := open(t)
	a.Send([]byte("for the old b"))
	old, _ := a.Poll(start, rtt)

	newA, newB := New(3), New(4)
	in, err := newB.Receive(start, old[0].Header, &old[0])
	if err != nil || len(in.Notes) > 0 || newB.Open() {
		t.Errorf("words for the session before: %+v %v", in, err)
	}
	exchange(t, newA, newB, nil)
	exchange(t, New(5), b, nil)
	for name, s := range map[string]*Session{"a later session": newB, "the same session, with a later one": b} {
		before := *s
		in, err := s.Receive(start, old[0].Header, &old[0])
		if !reflect.DeepEqual(in, Input{}) || err != nil || !reflect.DeepEqual(before, *s) {
			t.Errorf("%s took %+v, %v", name, in, err)
		}
	}
}

func TestNoteSizes(t *testing.T) {
	a, b := open(t)
	var got []int
	var want []int
	for _, n := range []int{1, 2, 126, 127, 128, 1098, 1099, 1100, 1101, 16_383, 16_384, wire.MaxNote} {
		a.Send(bytes.Repeat([]byte{byte(n)}, n))
		want = append(want, n)
	}
	for range 100 {
		segs, _ := a.Poll(start, rtt)
		for _, seg := range segs {
			in, err := b.Receive(start, seg.Header, &seg)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range in.Notes {
				got = append(got, len(n.Body))
				if bytes.Count(n.Body, []byte{byte(len(n.Body))}) != len(n.Body) {
					t.Errorf("the note of %d bytes has changed", len(n.Body))
				}
			}
		}
		if _, err := a.Receive(start, b.Header(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("notes of %v bytes became %v", want, got)
	}
	for _, n := range []int{0, wire.MaxNote + 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a note of %d bytes is taken", n)
				}
			}()
			a.Send(make([]byte, n))
		}()
	}
}

func TestWindowAndRoom(t *testing.T) {
	a, b := open(t)
	note := make([]byte, 1000)
	for a.Room() {
		a.Send(note)
	}
	if n := len(a.out.queue); n < windowBytes || n > windowBytes+1002 {
		t.Errorf("%d bytes queued", n)
	}
	for range 100 {
		a.Send(note)
	}
	var most uint64
	exchange(t, a, b, func(_ int, from *Session, _ wire.Segment) bool {
		most = max(most, a.out.next-a.out.acked)
		return true
	})
	if most > windowBytes || most < windowBytes/2 {
		t.Errorf("up to %d bytes in flight", most)
	}
	if !a.Room() || a.out.queue != nil {
		t.Error("no room although all is acknowledged")
	}
}

// Nobody answers: announcements and segments repeat at growing distances.
func TestBackOff(t *testing.T) {
	const ms = time.Millisecond
	tests := map[string]struct {
		rtt  time.Duration
		want []time.Duration
	}{
		"known":   {20 * ms, []time.Duration{50 * ms, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1000 * ms, 1000 * ms}},
		"unknown": {0, []time.Duration{250 * ms, 500 * ms, 1000 * ms, 1000 * ms}},
		"far":     {2000 * ms, []time.Duration{4010 * ms, 4010 * ms}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			announcing := New(1)
			sending, _ := open(t)
			sending.Send([]byte("lost"))
			for _, s := range []*Session{announcing, sending} {
				now := start
				for i, want := range test.want {
					segs, deadline := s.Poll(now, test.rtt)
					if len(segs) != 1 || deadline.Sub(now) != want {
						t.Errorf("round %d: %d datagrams, next in %v, want %v", i, len(segs), deadline.Sub(now), want)
					}
					if segs, again := s.Poll(deadline.Add(-1), test.rtt); len(segs) > 0 || again != deadline {
						t.Errorf("round %d: spoke before its time", i)
					}
					now = deadline
				}
			}
		})
	}
}

// One lost segment among many is sent again before its time is out.
func TestFirstHoleIsMended(t *testing.T) {
	for lost := range initialWindow - repeatsForLoss {
		a, b := open(t)
		for range initialWindow {
			a.Send(make([]byte, wire.MaxSegmentData-2))
		}
		sent := 0
		log := exchange(t, a, b, func(_ int, from *Session, seg wire.Segment) bool {
			if from != a || len(seg.Data) == 0 {
				return true
			}
			sent++
			return sent != lost+1
		})
		// exchange hands over a batch before the other end answers: let it
		// answer each segment of the next one.
		for range repeatsForLoss {
			h := b.Header()
			if _, err := a.Receive(start, h, &wire.Segment{Header: h}); err != nil {
				t.Fatal(err)
			}
		}
		log = append(log, exchange(t, a, b, nil)...)
		if b.in.received != initialWindow*wire.MaxSegmentData || sent > initialWindow+1 {
			t.Errorf("segment %d lost: %d bytes arrived, %d segments sent\n%s", lost, b.in.received, sent, strings.Join(log, "\n"))
		}
	}
}

// Commits come in segments without data, too, and are no sign of loss.
func TestCommitsAreNotRepeats(t *testing.T) {
	a, b := open(t)
	var serials []uint64
	for range 2 * repeatsForLoss {
		serials = append(serials, a.Send([]byte("arrives")))
	}
	exchange(t, a, b, nil)
	a.Send([]byte("is under way"))
	a.Poll(start, rtt)
	for _, serial := range serials {
		b.Commit(serial)
		segs, _ := b.Poll(start, rtt)
		if _, err := a.Receive(start, segs[0].Header, &segs[0]); err != nil {
			t.Fatal(err)
		}
		if segs, _ := a.Poll(start, rtt); len(segs) > 0 {
			t.Fatalf("sends %+v", segs)
		}
	}
}

// What the sender sends next, in segments of full size, after what it is told:
// "ack N", "repeat" or "rewind".
func TestSender(t *testing.T) {
	tests := []struct {
		name, told string
		want       []uint64 // the first parts after it
	}{
		{"two repeats", "repeat repeat", nil},
		{"three repeats", "repeat repeat repeat", []uint64{0}},
		{"seven repeats", "repeat repeat repeat repeat repeat repeat repeat", []uint64{0}},
		{"repeats apart", "repeat repeat ack1 repeat", []uint64{10, 11}},
		{"next hole", "repeat repeat repeat ack4", []uint64{4, 10, 11, 12}},
		{"mended", "repeat repeat repeat ack10", []uint64{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24}},
		{"repeats while mending", "repeat repeat repeat ack4 part repeat repeat repeat", []uint64{10, 11, 12}},
		{"rewind", "rewind", []uint64{0, 1, 2, 3}},
		{"rewind while mending", "repeat repeat repeat rewind", []uint64{0, 1, 2, 3}},
		{"acknowledged after rewind", "repeat repeat repeat rewind part part ack1", []uint64{2, 3, 4, 5}},
		{"acknowledged beyond a rewind", "rewind part ack8", []uint64{8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			const full = wire.MaxSegmentData
			q := sender{window: initialWindow, queue: make([]byte, 100*full)}
			parts := func() (out []uint64) {
				for {
					offset, data := q.part()
					if len(data) == 0 {
						return out
					}
					out = append(out, offset/full)
				}
			}
			if got := len(parts()); got != initialWindow {
				t.Fatalf("%d segments at first", got)
			}
			for word := range strings.FieldsSeq(test.told) {
				var n uint64
				switch {
				case word == "repeat":
					q.repeat()
				case word == "rewind":
					q.rewind(lossWindow)
				case word == "part":
					q.part()
				default:
					fmt.Sscanf(word, "ack%d", &n)
					q.acknowledge(n * full)
				}
			}
			if got := parts(); !slices.Equal(got, test.want) {
				t.Errorf("sends %v, want %v", got, test.want)
			}
		})
	}
}

func TestNudge(t *testing.T) {
	a, b := open(t)
	for range 5 {
		a.Send(make([]byte, 1000))
	}
	lost, _ := a.Poll(start, rtt)
	if segs, _ := a.Poll(start, rtt); len(segs) != 0 {
		t.Fatal("sends twice")
	}
	a.Nudge()
	again, _ := a.Poll(start, rtt)
	if len(again) != len(lost) || !reflect.DeepEqual(again, lost) {
		t.Errorf("%d segments were outstanding, %d are sent again", len(lost), len(again))
	}
	for _, seg := range again {
		if _, err := b.Receive(start, seg.Header, &seg); err != nil {
			t.Fatal(err)
		}
	}
	exchange(t, a, b, nil)
	if a.out.outstanding() {
		t.Error("not acknowledged")
	}

	b.Nudge()
	if segs, _ := b.Poll(start, rtt); len(segs) != 1 || segs[0].Received != a.out.end() {
		t.Errorf("the last acknowledgement may be lost and is not said again: %+v", segs)
	}

	c := New(9)
	for _, s := range []*Session{a, c} {
		if s == a {
			s.Send([]byte("for the next link"))
		}
		now := start
		for range 4 {
			_, now = s.Poll(now, rtt)
		}
		s.Nudge()
		if segs, deadline := s.Poll(start, rtt); len(segs) != 1 || deadline.Sub(start) != 2*rtt+timeoutRoom {
			t.Errorf("open %v: the next link begins with %d datagrams and a wait of %v", s.Open(), len(segs), deadline.Sub(start))
		}
	}
}

// Long silence before the session opened does not make it slow later.
func TestOpeningEndsBackOff(t *testing.T) {
	a := New(1)
	now := start
	for range 6 {
		_, now = a.Poll(now, rtt)
	}
	if _, err := a.Receive(now, wire.Header{From: 2}, nil); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		_, now = a.Poll(now, rtt)
	}
	if _, err := a.Receive(now, wire.Header{From: 2, To: 1, Open: true}, nil); err != nil {
		t.Fatal(err)
	}
	a.Send([]byte("lost"))
	if _, deadline := a.Poll(now, rtt); deadline.Sub(now) != 2*rtt+timeoutRoom {
		t.Errorf("waits %v", deadline.Sub(now))
	}
}

func TestCommitIsMonotonic(t *testing.T) {
	a, b := open(t)
	first, second := a.Send([]byte("one")), a.Send([]byte("two"))
	exchange(t, a, b, nil)
	for _, step := range []struct{ commit, want uint64 }{{second + 1, 0}, {first, first}, {first, first}, {0, first}, {second, second}, {first, second}} {
		b.Commit(step.commit)
		log := exchange(t, a, b, nil)
		if a.Committed() != step.want || b.Header().Committed != step.want || len(log) != 0 && step.commit != step.want {
			t.Errorf("after Commit(%d): %d, want %d\n%s", step.commit, a.Committed(), step.want, strings.Join(log, "\n"))
		}
	}
}

func TestBrokenStreams(t *testing.T) {
	long := func(n uint64) []byte { return binary.AppendUvarint(nil, n) }
	tests := map[string]struct {
		header func(*wire.Header)
		segs   []wire.Segment
	}{
		"acknowledges what was never sent": {header: func(h *wire.Header) { h.Received = 5 }},
		"commits what has not arrived":     {header: func(h *wire.Header) { h.Received, h.Committed = 3, 4 }},
		"beyond the window":                {segs: []wire.Segment{{Offset: windowBytes, Data: []byte{1}}}},
		"beyond all numbers":               {segs: []wire.Segment{{Offset: math.MaxUint64, Data: []byte{1, 2}}}},
		"a note without content":           {segs: []wire.Segment{{Data: []byte{0}}}},
		"a note too long":                  {segs: []wire.Segment{{Data: long(wire.MaxNote + 1)}}},
		"a length in its long form":        {segs: []wire.Segment{{Data: []byte{0x81, 0, 7}}}},
		"a length without end":             {segs: []wire.Segment{{Data: []byte{0x80, 0x80, 0x80}}}},
		"other bytes at the same place": {segs: []wire.Segment{
			{Offset: 10, Data: []byte{1, 2, 3}}, {Offset: 8, Data: []byte{9, 9, 1, 2, 4}},
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a, b := open(t)
			b.Send([]byte("abc"))
			b.Poll(start, rtt)
			h := a.Header()
			if test.header != nil {
				test.header(&h)
			}
			_, err := b.Receive(start, h, nil)
			for _, seg := range test.segs {
				if err != nil {
					t.Fatal("refused too early")
				}
				_, err = b.Receive(start, h, &seg)
			}
			if err == nil {
				t.Fatal("accepted")
			}
			if in, again := b.Receive(start, a.Header(), nil); again == nil || !reflect.DeepEqual(in, Input{}) {
				t.Error("goes on after an error")
			}
			b.Send([]byte("x"))
			b.Nudge()
			if segs, deadline := b.Poll(start.Add(time.Hour), rtt); len(segs) > 0 || !deadline.IsZero() {
				t.Error("speaks after an error")
			}

			fresh := New(3) // what the owner is told to do
			fresh.Send([]byte("again"))
			exchange(t, fresh, a, nil)
			fresh.Send([]byte("again"))
			exchange(t, fresh, a, nil)
			if a.Remote() != 3 || a.in.received != 6 {
				t.Error("a new session does not help")
			}
		})
	}
}

// The receiver against a map of bytes: pieces of one stream in any order.
func TestReceiverAgainstModel(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		stream, notes := randomStream(rng, 1+rng.IntN(3*windowBytes))
		var r receiver
		var got []Note
		have := make([]bool, len(stream)+1)
		held := 0
		for steps := 0; held < len(stream); steps++ {
			if steps > 200_000 {
				t.Fatalf("seed %d: stuck at %d of %d", seed, held, len(stream))
			}
			at := held - 500 + rng.IntN(1000)
			if rng.IntN(2) == 0 {
				at = held + rng.IntN(windowBytes)
			}
			at = min(max(at, 0), len(stream))
			end := min(at+rng.IntN(2*wire.MaxSegmentData), len(stream), held+windowBytes)
			if end <= at {
				continue
			}
			full := len(r.ahead) == maxSpans && at > held && !slices.Contains(have[max(at-1, 0):end+1], true)
			if err := r.store(uint64(at), stream[at:end]); err != nil {
				t.Fatal(err)
			}
			if !full {
				for i := at; i < end; i++ {
					have[i] = true
				}
			}
			for held < len(stream) && have[held] {
				held++
			}
			more, err := r.notes()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, more...)
			if r.received != uint64(held) {
				t.Fatalf("seed %d: received %d, the model has %d", seed, r.received, held)
			}
			bounded(t, &r)
		}
		if !reflect.DeepEqual(got, notes) {
			t.Fatalf("seed %d: %d notes became %d, or others", seed, len(notes), len(got))
		}
	}
}

// More pieces than the bound are dropped, and taken when they come again.
func TestPiecesAreBounded(t *testing.T) {
	stream, notes := randomStream(rand.New(rand.NewPCG(1, 1)), 4*maxSpans)
	var r receiver
	for _, step := range []int{2, 1} {
		for at := step - 1; at < len(stream); at += step {
			if err := r.store(uint64(at), stream[at:at+1]); err != nil {
				t.Fatal(err)
			}
			bounded(t, &r)
		}
		if step == 2 && len(r.ahead) != maxSpans {
			t.Errorf("%d pieces are kept", len(r.ahead))
		}
	}
	if got, err := r.notes(); err != nil || !reflect.DeepEqual(got, notes) {
		t.Errorf("%d notes became %d, %v", len(notes), len(got), err)
	}
}

func bounded(t *testing.T, r *receiver) {
	t.Helper()
	if len(r.buf) > windowBytes+wire.MaxNote+maxLength || len(r.ahead) > maxSpans {
		t.Fatalf("keeps %d bytes in %d pieces", len(r.buf), len(r.ahead))
	}
	last := r.received
	for _, s := range r.ahead {
		if s.from <= last || s.to <= s.from || s.to-r.base > uint64(len(r.buf)) {
			t.Fatalf("received %d, base %d, %d bytes, ahead %v", r.received, r.base, len(r.buf), r.ahead)
		}
		last = s.to
	}
}

// randomStream gives a stream of at least size bytes and its notes.
func randomStream(rng *rand.Rand, size int) (stream []byte, notes []Note) {
	var q sender
	s := Session{out: q}
	for len(s.out.queue) < size {
		n := 1 + rng.IntN(100)
		if rng.IntN(20) == 0 {
			n = 1 + rng.IntN(wire.MaxNote)
		}
		body := make([]byte, n)
		for i := range body {
			body[i] = byte(rng.Uint32())
		}
		notes = append(notes, Note{body, s.Send(body)})
	}
	return s.out.queue, notes
}

// A stream of known content, cut as the input says, comes out as it went in
// or not at all.
func FuzzPieces(f *testing.F) {
	f.Add(uint64(1), []byte{0, 0, 200, 10, 1, 40, 0, 0, 255, 9, 9, 9})
	f.Add(uint64(2), bytes.Repeat([]byte{1, 1, 1, 0, 0, 255}, 40))
	f.Fuzz(func(t *testing.T, seed uint64, cuts []byte) {
		stream, notes := randomStream(rand.New(rand.NewPCG(seed, 2)), 3000)
		var r receiver
		for len(cuts) >= 3 {
			at := min(int(r.received)+int(int16(binary.BigEndian.Uint16(cuts))), len(stream))
			at = max(at, 0)
			end := min(at+8*int(cuts[2]), len(stream))
			cuts = cuts[3:]
			if at == end {
				continue // Receive does not store nothing
			}
			if err := r.store(uint64(at), stream[at:end]); err != nil {
				t.Fatal(err)
			}
			got, err := r.notes()
			if err != nil || len(got) > len(notes) || len(got) > 0 && !reflect.DeepEqual(got, notes[:len(got)]) {
				t.Fatalf("%d notes, %v", len(got), err)
			}
			notes = notes[len(got):]
			bounded(t, &r)
		}
	})
}

// Anything at all in headers and segments: never a panic, never more memory
// than the bounds, never notes of another session. The numbers are small, so
// that many fit together, and the largest there are.
func FuzzReceive(f *testing.F) {
	hello := []byte{0, 2, 0, 0, 0, 0, 0, 0}
	opened := []byte{1, 2, 1, 2, 0, 0, 0, 0}
	note := []byte{0, 2, 1, 2, 0, 0, 0, 3, 2, 7, 7}
	ack := []byte{4, 2, 1, 2, 3, 2, 3, 0}
	f.Add(slices.Concat(hello, opened, note, ack))
	f.Add(slices.Concat(opened, note, []byte{0, 9, 1, 3, 0, 0, 0, 0}, note))
	f.Add(slices.Concat(opened, []byte{2, 2, 1, 2, 0, 0, 200, 1, 1}, ack, []byte{8, 2, 1, 2, 255, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, input []byte) {
		number := func(b byte) uint64 {
			if b == 255 {
				return math.MaxUint64
			}
			return uint64(b)
		}
		s := New(1)
		now := start
		for len(input) >= 8 {
			act, b := input[0], input[1:8]
			input = input[8:]
			h := wire.Header{
				From: number(b[0]), To: number(b[1]), Open: b[2]&1 != 0, Cold: b[2]&2 != 0,
				Received: number(b[3]), Committed: number(b[4]),
			}
			var seg *wire.Segment
			if b[2]&4 == 0 {
				n := min(int(b[6]), len(input))
				seg = &wire.Segment{Header: h, Offset: number(b[5]), Data: input[:n]}
				input = input[n:]
			}
			if act&1 != 0 && s.Room() {
				s.Send([]byte{act, act})
			}
			if act&2 != 0 {
				s.Nudge()
			}
			if act&4 != 0 {
				s.Commit(uint64(act))
			}

			remote, broken := s.remote, s.err != nil
			in, err := s.Receive(now, h, seg)
			if broken && err == nil || s.remote < remote || err == nil && in.Restarted != (s.remote > remote) {
				t.Fatalf("%+v %v", in, err)
			}
			if (len(in.Notes) > 0 || in.Opened || in.Committed) && (h.From != s.remote || h.To != s.local || !s.open) {
				t.Fatalf("believes %+v: %+v", h, in)
			}
			bounded(t, &s.in)
			segs, deadline := s.Poll(now, rtt)
			if len(segs) > window+1 || len(segs) > 0 && s.err != nil {
				t.Fatalf("%d segments for one", len(segs))
			}
			if q := &s.out; q.acked > q.next || q.next > q.sent || q.sent > q.end() || q.window < lossWindow || q.window > window || s.confirmed > q.acked || s.committed > s.in.received {
				t.Fatalf("%+v", s)
			}
			if !deadline.IsZero() && act&8 != 0 {
				now = deadline
			}
		}
	})
}

// What arrives in order is acknowledged with what goes the other way, or a
// little later; what shows a loss, and what fills the sender's window, at once.
func TestAcknowledgements(t *testing.T) {
	arrive := func(t *testing.T, from, to *Session, bytes int) {
		t.Helper()
		from.Send(make([]byte, bytes))
		segs, _ := from.Poll(start, rtt)
		for _, seg := range segs {
			if _, err := to.Receive(start, seg.Header, &seg); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("later", func(t *testing.T) {
		a, b := open(t)
		arrive(t, a, b, 10)
		segs, deadline := b.Poll(start, rtt)
		if len(segs) > 0 || deadline.Sub(start) != ackDelay {
			t.Fatalf("%d segments at once, then after %v", len(segs), deadline.Sub(start))
		}
		arrive(t, a, b, 10) // puts nothing off
		if segs, deadline = b.Poll(deadline, rtt); len(segs) != 1 || len(segs[0].Data) > 0 || segs[0].Received != a.out.end() || !deadline.IsZero() {
			t.Fatalf("%+v", segs)
		}
	})
	t.Run("with data", func(t *testing.T) {
		a, b := open(t)
		arrive(t, a, b, 10)
		b.Send([]byte("!"))
		if segs, _ := b.Poll(start, rtt); len(segs) != 1 || segs[0].Received != a.out.end() {
			t.Fatalf("%+v", segs)
		}
		if segs, _ := b.Poll(start.Add(ackDelay), rtt); len(segs) > 0 {
			t.Fatalf("again: %+v", segs)
		}
	})
	t.Run("much", func(t *testing.T) {
		a, b := open(t)
		arrive(t, a, b, ackBytes)
		if segs, _ := b.Poll(start, rtt); len(segs) != 1 {
			t.Fatalf("%d segments", len(segs))
		}
	})
	t.Run("repeated", func(t *testing.T) {
		a, b := open(t)
		a.Send([]byte("hello"))
		segs, _ := a.Poll(start, rtt)
		for range 2 {
			if _, err := b.Receive(start, segs[0].Header, &segs[0]); err != nil {
				t.Fatal(err)
			}
		}
		if segs, _ := b.Poll(start, rtt); len(segs) != 1 {
			t.Fatalf("%d segments", len(segs))
		}
	})
	t.Run("gap", func(t *testing.T) {
		a, b := open(t)
		a.Send([]byte("lost"))
		a.Poll(start, rtt)
		arrive(t, a, b, 10)
		if segs, _ := b.Poll(start, rtt); len(segs) != 1 || !segs[0].Gap {
			t.Fatalf("%+v", segs)
		}
	})
}
