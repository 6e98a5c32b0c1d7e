package session

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"guywire/routing/wire"
)

// maxSpans bounds the separate pieces kept out of order. A piece beyond is
// dropped; it will be sent again.
const maxSpans = window

// maxLength is the size of the length before the longest note.
const maxLength = 3

// A receiver puts the other end's stream together. It never keeps more than
// one note and one window.
type receiver struct {
	received uint64 // everything before has arrived
	base     uint64 // offset of buf[0]: the beginning of the first incomplete note
	buf      []byte // up to received, and beyond it where ahead says so
	ahead    []span // sorted, apart from each other, all beyond received
}

// A span is the part of the stream from one offset up to another.
type span struct{ from, to uint64 }

// store takes data, not empty, that begins at offset at. Arriving twice is no error;
// arriving differently is.
func (r *receiver) store(at uint64, data []byte) error {
	end := at + uint64(len(data))
	if end < at || end > r.received+windowBytes {
		return fmt.Errorf("data at offset %d is beyond the window at %d", at, r.received)
	}
	if end <= r.received {
		return nil
	}
	if at < r.received {
		data = data[r.received-at:]
		at = r.received
	}
	for _, s := range r.ahead {
		if from, to := max(s.from, at), min(s.to, end); from < to &&
			!bytes.Equal(r.buf[from-r.base:to-r.base], data[from-at:to-at]) {
			return fmt.Errorf("data at offset %d was different before", from)
		}
	}

	// The spans that the new one overlaps or touches become one with it.
	i := 0
	for i < len(r.ahead) && r.ahead[i].to < at {
		i++
	}
	j, whole := i, span{at, end}
	for ; j < len(r.ahead) && r.ahead[j].from <= end; j++ {
		whole = span{min(whole.from, r.ahead[j].from), max(whole.to, r.ahead[j].to)}
	}
	if i == j && len(r.ahead) == maxSpans && at > r.received {
		return nil
	}
	r.ahead = slices.Replace(r.ahead, i, j, whole)
	if missing := int(end-r.base) - len(r.buf); missing > 0 {
		r.buf = append(r.buf, make([]byte, missing)...)
	}
	copy(r.buf[at-r.base:], data)
	if r.ahead[0].from == r.received {
		r.received = r.ahead[0].to
		r.ahead = slices.Delete(r.ahead, 0, 1)
	}
	return nil
}

// notes takes the complete notes off the stream.
func (r *receiver) notes() (out []Note, err error) {
	for {
		b := r.buf[:r.received-r.base]
		length, n := binary.Uvarint(b)
		switch {
		case n == 0 && len(b) < maxLength:
			return out, nil
		case n <= 0 || n > 1 && b[n-1] == 0 || length == 0 || length > wire.MaxNote:
			return nil, fmt.Errorf("at offset %d there is no length of a note", r.base)
		case uint64(len(b)-n) < length:
			return out, nil
		}
		size := n + int(length)
		r.base += uint64(size)
		out = append(out, Note{Body: bytes.Clone(b[n:size]), Serial: r.base})
		if r.buf = r.buf[size:]; len(r.buf) == 0 {
			r.buf = nil
		}
	}
}
