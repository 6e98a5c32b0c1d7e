package model

import (
	"encoding/binary"
	"fmt"
	"strings"

	"guywire/mesh"
	"guywire/routing/wire"
)

// A stream is what one session of a node says to one session of another, as
// it was put on the wire.
type stream struct {
	data      []byte
	read      int // notes up to here are in told
	names     map[uint32]wire.Destination
	told      []told
	committed uint64
	acked     map[wire.Destination]mesh.Cost // as of committed
	complete  bool                           // the first table is committed
}

// told is what one note says.
type told struct {
	end      uint64
	entries  []wire.Entry // with keys
	complete bool
}

func (w *World) stream(from, to *node, session, other uint64) *stream {
	key := [4]uint64{uint64(from.i), uint64(to.i), session, other}
	s := w.streams[key]
	if s == nil {
		s = &stream{names: map[uint32]wire.Destination{}, acked: map[wire.Destination]mesh.Cost{}}
		w.streams[key] = s
	}
	return s
}

// observe looks at a header that leaves, with the segment that it is on: what
// it confirms must be in force in the sender's kernel, what the segment
// promises as well.
func (e *end) observe(h wire.Header, seg *wire.Segment) {
	w := e.node.w
	if !w.labels || w.opt.Broken != Sound || h.From == 0 || h.To == 0 {
		return
	}
	if seg != nil && len(seg.Data) > 0 {
		e.listen(w.stream(e.node, e.peer, h.From, h.To), seg)
	}
	s := w.stream(e.peer, e.node, h.To, h.From)
	if h.Committed <= s.committed {
		return
	}
	s.committed = h.Committed
	least := map[wire.Destination]mesh.Cost{} // told after what is committed
	for _, t := range s.told {
		switch {
		case t.end <= h.Committed:
			for _, entry := range t.entries {
				s.acked[entry.Key] = entry.Distance
			}
			s.complete = s.complete || t.complete
		case t.end <= h.Received:
			for _, entry := range t.entries {
				if d, ok := least[entry.Key]; !ok || entry.Distance < d {
					least[entry.Key] = entry.Distance
				}
			}
		}
	}
	k := &e.node.kernel
	for p, key := range w.space.keys {
		bound, ok := s.acked[key]
		if !ok {
			if !s.complete {
				continue
			}
			bound = mesh.Infinite
		}
		if d, ok := least[key]; ok {
			bound = min(bound, d)
		}
		if !k.legs[p].has(e.peer.i) || k.rd[p][e.peer.i] >= bound {
			continue
		}
		if f, _ := e.node.router.Feasibility(key); bound < f.Feasible {
			// It was told more in the same datagram, which it does not
			// confirm: as far as it does, the next hop is approved.
			k.rd[p][e.peer.i] = bound
		} else {
			w.fail("%s confirms that %s told it %d for %v, and its kernel still goes by %d", e.node, e.peer, bound, w.space.prefixes[p], k.rd[p][e.peer.i])
		}
	}
}

// listen puts a segment to what its stream has said, and checks promises.
func (e *end) listen(s *stream, seg *wire.Segment) {
	w := e.node.w
	if from, end := seg.Offset, seg.Offset+uint64(len(seg.Data)); end > uint64(len(s.data)) {
		if from > uint64(len(s.data)) {
			w.fail("%s leaves a gap in what it tells %s", e.node, e.peer)
			return
		}
		s.data = append(s.data, seg.Data[uint64(len(s.data))-from:]...)
	}
	for {
		length, n := binary.Uvarint(s.data[s.read:])
		if n <= 0 || uint64(len(s.data)-s.read-n) < length {
			return
		}
		body := s.data[s.read+n : s.read+n+int(length)]
		s.read += n + int(length)
		note, err := wire.DecodeNote(body)
		if err != nil {
			w.fail("%s tells %s what does not decode: %v", e.node, e.peer, err)
			return
		}
		t := told{end: uint64(s.read)}
		switch note := note.(type) {
		case wire.Distances:
			for _, entry := range note.Entries {
				if entry.Key == (wire.Destination{}) {
					entry.Key = s.names[entry.Index]
				}
				s.names[entry.Index] = entry.Key
				t.entries = append(t.entries, entry)
			}
		case wire.Complete:
			t.complete = true
		case wire.Welcome:
			if !e.node.kernel.admits.has(e.peer.i) {
				w.fail("%s welcomes %s, whom its filter refuses", e.node, e.peer)
			}
		case wire.Settled:
			if !e.node.settled {
				w.fail("%s tells %s that it is settled, and its kernel is not written", e.node, e.peer)
			}
		}
		s.told = append(s.told, t)
		if w.opt.Trace != nil {
			w.trace("%s tells %s %T%s", e.node, e.peer, note, w.words(t.entries))
		}
	}
}

func (w *World) words(list []wire.Entry) string {
	var b strings.Builder
	for _, e := range list {
		if i, ok := w.number[e.Key.Node]; ok {
			fmt.Fprintf(&b, " n%d=%d", i, e.Distance)
		} else {
			fmt.Fprintf(&b, " %v=%d", e.Key, e.Distance)
		}
	}
	return b.String()
}
