package control

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

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

	frameHeader = 5
	maxPulse    = 1024
)

// A pulse says that the stream is alive and whether it is worth following.
type pulse struct {
	Index  uint64      `json:"index"`           // of the voter's state
	Leader mesh.NodeID `json:"leader,omitzero"` // zero: the voter knows of none
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
	case frameHeartbeat:
		limit = maxPulse
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

// errGap: a frame does not continue the state; the stream begins again.
var errGap = errors.New("the stream does not continue the state")

// next gives the state after a frame. Frames that are older than the state
// change nothing.
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
	default:
		var beat pulse
		if err := unmarshal(payload, &beat); err != nil {
			return s, pulse{}, err
		}
		return s, beat, nil
	}
}

// streams are the followers that this voter serves.
type streams struct {
	mu   sync.Mutex
	open map[mesh.NodeID]int
	all  int
}

func (s *streams) init() { s.open = map[mesh.NodeID]int{} }

func (s *streams) enter(id mesh.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= maxFollowers {
		return false
	}
	s.open[id]++
	s.all++
	return true
}

func (s *streams) leave(id mesh.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[id]--; s.open[id] == 0 {
		delete(s.open, id)
	}
	s.all--
}

// serveFollow streams the changes after an index that the follower has, or a
// snapshot first where those are not known any more. A follower that is ahead
// of this voter waits for it.
func (p *Plane) serveFollow(w http.ResponseWriter, r *http.Request) {
	after, err := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
	if err != nil {
		Fail(w, newError(http.StatusBadRequest, CodeMalformed, "after must be an index"))
		return
	}
	log := p.voter.store()
	if log == nil {
		Fail(w, newError(http.StatusConflict, CodeNotVoter, "%s is not a voter", p.name(p.id)))
		return
	}
	caller := Caller(r.Context())
	if !p.streams.enter(caller) {
		Fail(w, newError(http.StatusServiceUnavailable, CodeBusy, "%s has %d followers; follow another voter", p.name(p.id), maxFollowers))
		return
	}
	defer p.streams.leave(caller)
	changed, stop := log.Watch()
	defer stop()
	out := http.NewResponseController(w)
	if out.SetReadDeadline(time.Time{}) != nil { // the server's is for short calls
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	due := true // a heartbeat: the first one tells the follower where this voter is
	for {
		frames, at, err := p.frames(log, after, due)
		if err != nil {
			p.logger.Warn("follow stream ended", mesh.LogNode, p.name(caller), mesh.LogError, err)
			return
		}
		if len(frames) > 0 {
			if out.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
				return
			}
			if _, err := w.Write(frames); err != nil || out.Flush() != nil {
				return // the follower is gone and will come again
			}
		}
		due = false
		if at != after {
			after = at
			continue // there may be more
		}
		select {
		case <-changed:
		case <-beat.C:
			due = true
			if _, member := p.State().Nodes[caller]; !member || p.voter.store() != log {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// frames gives what follows the index, and the index after it.
func (p *Plane) frames(log *raftstore.Store, after uint64, due bool) (b []byte, at uint64, err error) {
	changes, known := log.Since(after, batch)
	state := log.State()
	switch {
	case known:
		for _, c := range changes {
			b, after = changeFrame(b, c), c.Index
		}
	case state.Index > after:
		snapshot, err := store.Snapshot(state)
		if err != nil {
			return nil, after, err
		}
		b, after = appendFrame(b, frameSnapshot, snapshot), state.Index
	}
	if due {
		j, err := json.Marshal(pulse{Index: state.Index, Leader: log.Status().Leader})
		if err != nil {
			return nil, after, fmt.Errorf("encode heartbeat: %w", err)
		}
		b = appendFrame(b, frameHeartbeat, j)
	}
	return b, after, nil
}
