package carrier_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"guywire/mesh/carrier"
)

// split is the slow oracle: all frames of a whole stream, and whether an error
// ends it.
func split(stream []byte) (datagrams [][]byte, bad bool) {
	for len(stream) >= 2 {
		size := int(binary.BigEndian.Uint16(stream))
		if size == 0 || size > 2048 {
			return datagrams, true
		}
		if len(stream) < 2+size {
			break
		}
		datagrams = append(datagrams, stream[2:2+size])
		stream = stream[2+size:]
	}
	return datagrams, false
}

// FuzzFrames: however a stream is cut into reads, its frames are those of the
// whole, and a frame has one encoding.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x00\x03abc\x00\x01d"), uint64(1))
	f.Add([]byte("\x00\x00"), uint64(2))
	f.Add([]byte("\x08\x01"+string(make([]byte, 2049))), uint64(3))
	f.Add(append([]byte("\x08\x00"), make([]byte, 4000)...), uint64(4))
	f.Add(bytes.Repeat([]byte("\x00\x02xy"), 9000), uint64(5))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		want, bad := split(stream)
		r := rand.New(rand.NewPCG(seed, 0))
		var s carrier.Splitter
		var got [][]byte
		var again []byte
		rest := stream
		var err error
		for len(rest) > 0 && err == nil {
			room := s.Room()
			if len(room) == 0 {
				t.Fatal("no room")
			}
			n := copy(room[:1+r.IntN(len(room))], rest)
			rest = rest[n:]
			s.Filled(n)
			for {
				var d []byte
				if d, err = s.Next(); d == nil || err != nil {
					break
				}
				got = append(got, bytes.Clone(d))
				again = carrier.AppendFrame(again, d)
			}
		}
		if (err != nil) != bad || !slices.EqualFunc(got, want, bytes.Equal) {
			t.Fatalf("%d datagrams, error %v; want %d, error %v", len(got), err, len(want), bad)
		}
		if !bytes.HasPrefix(stream, again) {
			t.Fatal("the frames do not encode to the stream they came from")
		}
	})
}

func TestFrameSizes(t *testing.T) {
	for _, size := range []int{1, carrier.MaxDatagram} {
		if got := carrier.AppendFrame([]byte{9}, make([]byte, size)); len(got) != 1+2+size {
			t.Errorf("a frame of %d bytes has %d", size, len(got)-1)
		}
	}
	for _, size := range []int{0, carrier.MaxDatagram + 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a datagram of %d bytes was framed", size)
				}
			}()
			carrier.AppendFrame(nil, make([]byte, size))
		}()
	}
}

// The queue against a plain list, by random steps.
func TestQueue(t *testing.T) {
	type item struct {
		since time.Time
		data  []byte
	}
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var q carrier.Queue
		var model []item
		dropped := uint64(0)
		now := time.Unix(1_000_000, 0)
		for range 400 {
			now = now.Add(time.Duration(r.IntN(100)) * time.Millisecond)
			if r.IntN(3) > 0 {
				d := make([]byte, r.IntN(carrier.MaxDatagram+100))
				for i := range d {
					d[i] = byte(r.Uint32())
				}
				q.Push(now, d)
				if len(d) == 0 || len(d) > carrier.MaxDatagram {
					dropped++
				} else {
					model = append(model, item{now, bytes.Clone(d)})
				}
				if len(model) > carrier.QueueFrames {
					model = model[1:]
					dropped++
				}
				clear(d) // the queue has a copy
				continue
			}
			dst := make([]byte, r.IntN(10), 10+r.IntN(carrier.BatchSize))
			want := bytes.Clone(dst)
			for len(model) > 0 {
				if now.Sub(model[0].since) > carrier.MaxAge {
					dropped++
				} else if len(want)+2+len(model[0].data) > cap(dst) {
					break
				} else {
					want = carrier.AppendFrame(want, model[0].data)
				}
				model = model[1:]
			}
			if got := q.AppendTo(dst, now); !bytes.Equal(got, want) || cap(got) != cap(dst) {
				t.Fatalf("seed %d: %d bytes came out, want %d", seed, len(got), len(want))
			}
			if q.Dropped() != dropped {
				t.Fatalf("seed %d: %d dropped, want %d", seed, q.Dropped(), dropped)
			}
		}
	}
}

// A batch holds any frame, so that the queue always empties.
func TestBatchHoldsTheLargest(t *testing.T) {
	var q carrier.Queue
	now := time.Unix(0, 0)
	q.Push(now, make([]byte, carrier.MaxDatagram))
	if got := q.AppendTo(make([]byte, 0, carrier.BatchSize), now); len(got) != 2+carrier.MaxDatagram {
		t.Errorf("%d bytes came out", len(got))
	}
}

func TestPause(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for failures, nominal := range []time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 6: 30 * time.Second, 1000: 30 * time.Second} {
		if nominal == 0 {
			continue
		}
		low, high := time.Hour, time.Duration(0)
		for range 2000 {
			p := carrier.Pause(failures, r)
			low, high = min(low, p), max(high, p)
		}
		if low < nominal*3/4 || low > nominal*4/5 || high > nominal*5/4 || high < nominal*6/5 {
			t.Errorf("after %d failures: %s to %s, want %s ± 25 %%", failures, low, high, nominal)
		}
	}
}

// With one source that floods, an honest connection is never the victim while
// the flood has more than any other.
func TestVictim(t *testing.T) {
	addr := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, n}) }
	if got := carrier.Victim([]netip.Addr{addr(1), addr(2), addr(2), addr(1)}); got != 0 {
		t.Errorf("of equals %d goes, want the oldest", got)
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		sources := make([]netip.Addr, 1+r.IntN(20))
		count := map[netip.Addr]int{}
		for i := range sources {
			sources[i] = addr(byte(r.IntN(4)))
			count[sources[i]]++
		}
		v := carrier.Victim(sources)
		for _, n := range count {
			if n > count[sources[v]] {
				t.Fatalf("%v: %d is of a source with %d, another has %d", sources, v, count[sources[v]], n)
			}
		}
		if slices.Index(sources, sources[v]) != v {
			t.Fatalf("%v: %d is not the oldest of its source", sources, v)
		}
	}
}
