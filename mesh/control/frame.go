package control

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

// The follow stream is a sequence of frames: one byte for the kind, four for
// the length (big-endian), and the payload.
const (
	frameSnapshot  = 'S' // store.Snapshot; replaces what the follower has
	frameChange    = 'C' // index before and after (8 bytes each), store.EncodeCommand
	frameHeartbeat = 'H' // pulse as JSON
	frameEnd       = 'E' // Error as JSON: why the voter ends the stream
	frameRelayed   = 'R' // relayRequest.Offer, for a follower that asked for such

	frameHeader = 5
	maxPulse    = 1024
)

// A pulse says that the stream is alive and whether it is worth following. In
// a mesh before version 3 it is what it was in version 1 of the stream.
type pulse struct {
	position             // of the voter's state
	Leader   mesh.NodeID `json:"leader,omitzero"` // zero: the voter knows of none
}

func appendFrame(b []byte, kind byte, payload ...[]byte) []byte {
	size := 0
	for _, part := range payload {
		size += len(part)
	}
	b = binary.BigEndian.AppendUint32(append(b, kind), uint32(size))
	for _, part := range payload {
		b = append(b, part...)
	}
	return b
}

// readFrame reads one frame; its size is checked before memory is taken.
func readFrame(r io.Reader) (kind byte, payload []byte, err error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	size, limit := binary.BigEndian.Uint32(header[1:]), 0
	switch header[0] {
	case frameSnapshot:
		limit = store.MaxSnapshotBytes + maxPulse
	case frameChange:
		limit = 16 + store.MaxCommandBytes
	case frameHeartbeat, frameEnd:
		limit = maxPulse
	case frameRelayed:
		limit = maxRelayed
	default:
		return 0, nil, fmt.Errorf("unknown frame %q in the stream", header[0])
	}
	if int64(size) > int64(limit) {
		return 0, nil, fmt.Errorf("frame of %d bytes in the stream", size)
	}
	payload, err = io.ReadAll(io.LimitReader(r, int64(size))) // grows with what really comes
	if err == nil && len(payload) < int(size) {
		err = io.ErrUnexpectedEOF
	}
	return header[0], payload, err
}

func changeFrame(b []byte, c raftstore.Change) []byte {
	var index [16]byte
	binary.BigEndian.PutUint64(index[:], c.Prev)
	binary.BigEndian.PutUint64(index[8:], c.Index)
	return appendFrame(b, frameChange, index[:], c.Command)
}

func parseChange(b []byte) (c raftstore.Change, err error) {
	if len(b) < 16 {
		return c, io.ErrUnexpectedEOF
	}
	return raftstore.Change{Prev: binary.BigEndian.Uint64(b), Index: binary.BigEndian.Uint64(b[8:]), Command: b[16:]}, nil
}

func beatFrame(log *raftstore.Store) ([]byte, error) {
	j, err := json.Marshal(pulse{positionOf(log.State()), log.Status().Leader})
	if err != nil {
		return nil, fmt.Errorf("encode heartbeat: %w", err)
	}
	return appendFrame(nil, frameHeartbeat, j), nil
}

func endFrame(e *Error) ([]byte, error) {
	j, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode the end of a stream: %w", err)
	}
	return appendFrame(nil, frameEnd, j), nil
}

var (
	// errGap: a frame does not continue the state; the stream begins again.
	errGap = errors.New("the stream does not continue the state")
	// errDiverged: the voter has another history.
	errDiverged = errors.New("it has another history than this node")
)

// next gives the state after a frame, which is newer or the same: a frame
// that does not lead on is an error.
func next(s *store.State, kind byte, payload []byte) (*store.State, pulse, error) {
	switch kind {
	case frameSnapshot:
		newer, err := store.Restore(payload)
		if err != nil {
			return s, pulse{}, err
		}
		if !s.Mesh.ID.IsZero() && newer.Mesh.ID != s.Mesh.ID {
			return s, pulse{}, errors.New("the stream is of another mesh")
		}
		if !newer.Newer(s) {
			return s, pulse{}, fmt.Errorf("%w: a snapshot at %d, the state is at %d", errGap, newer.Index, s.Index)
		}
		return newer, pulse{}, nil
	case frameChange:
		c, err := parseChange(payload)
		if err != nil {
			return s, pulse{}, err
		}
		if c.Prev != s.Index || c.Index <= c.Prev {
			return s, pulse{}, fmt.Errorf("%w: change %d after %d, the state is at %d", errGap, c.Index, c.Prev, s.Index)
		}
		command, err := store.DecodeCommand(c.Command)
		if err != nil {
			return s, pulse{}, err
		}
		s, _ = store.Apply(s, c.Index, command)
		return s, pulse{}, nil
	case frameRelayed:
		return s, pulse{}, nil
	case frameEnd:
		var e Error
		if err := json.Unmarshal(payload, &e); err != nil {
			return s, pulse{}, err
		}
		return s, pulse{}, &e
	default:
		var beat pulse
		if err := json.Unmarshal(payload, &beat); err != nil {
			return s, pulse{}, err
		}
		if own := positionOf(s); beat.compare(own) == 0 && beat.Head != own.Head {
			return s, beat, errDiverged
		}
		return s, beat, nil
	}
}
