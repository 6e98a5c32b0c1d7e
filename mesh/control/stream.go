package control

import (
	"cmp"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

// A position is where in the history of the mesh a state is. Its head is zero
// before version 3 of the mesh: then equal positions prove nothing.
type position struct {
	Generation uint64       `json:"generation,omitempty"`
	Index      uint64       `json:"index"`
	Head       store.Digest `json:"head,omitzero"`
}

func positionOf(s *store.State) position {
	generation, index, head := s.Head()
	return position{generation, index, head}
}

// compare orders positions of one mesh.
func (a position) compare(b position) int {
	return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Index, b.Index))
}

func (a position) query() url.Values {
	return url.Values{
		"generation": {strconv.FormatUint(a.Generation, 10)},
		"after":      {strconv.FormatUint(a.Index, 10)},
		"head":       {a.Head.String()},
	}
}

// parsePosition reads what query gave. What version 1 of the stream did not
// send is zero, as it is in a mesh of its time.
func parsePosition(q url.Values) (a position, err error) {
	if a.Index, err = strconv.ParseUint(q.Get("after"), 10, 64); err != nil {
		return a, newError(http.StatusBadRequest, CodeMalformed, "after must be an index")
	}
	if text := q.Get("generation"); text != "" {
		if a.Generation, err = strconv.ParseUint(text, 10, 64); err != nil {
			return a, newError(http.StatusBadRequest, CodeMalformed, "generation must be a number")
		}
	}
	if text := q.Get("head"); text != "" {
		if err := a.Head.UnmarshalText([]byte(text)); err != nil {
			return a, newError(http.StatusBadRequest, CodeMalformed, "head must be a SHA-256 sum")
		}
	}
	return a, nil
}

// A headAnswer says where a node stands, and how the caller stands to it.
type headAnswer struct {
	position
	Leader  mesh.NodeID       `json:"leader,omitzero"`  // zero: none is known
	Verdict raftstore.Verdict `json:"verdict,omitzero"` // of a voter about the caller's position, if it gave one
	Version int               `json:"version"`          // the newest of store that this node and all its followers read
	Time    time.Time         `json:"time"`             // the node's clock
	// Outdated are the followers of this node that do not read the version that
	// the caller asked about; a caller that asks about none knows no such field.
	Outdated []mesh.NodeID `json:"outdated,omitempty"`
}

// streams are the followers that this voter serves.
type streams struct {
	mu       sync.Mutex
	open     map[mesh.NodeID]int
	versions map[reader]int
	all      int
	mail     map[mesh.NodeID]*mailbox

	encoding sync.Mutex // guards the fields below; held while a state is encoded
	state    *store.State
	snapshot []byte // of state, as a frame
}

// A reader is a follower and the newest version of store that it reads.
type reader struct {
	id      mesh.NodeID
	version int
}

func (s *streams) init() {
	s.open, s.versions, s.mail = map[mesh.NodeID]int{}, map[reader]int{}, map[mesh.NodeID]*mailbox{}
}

func (s *streams) enter(id mesh.NodeID, version int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= maxFollowers {
		return false
	}
	s.open[id]++
	s.versions[reader{id, version}]++
	s.all++
	return true
}

func (s *streams) leave(id mesh.NodeID, version int) {
	s.mu.Lock()
	if s.open[id]--; s.open[id] == 0 {
		delete(s.open, id)
	}
	r := reader{id, version}
	if s.versions[r]--; s.versions[r] == 0 {
		delete(s.versions, r)
	}
	s.all--
	idle := s.all == 0
	s.mu.Unlock()
	if idle {
		s.encoding.Lock()
		defer s.encoding.Unlock()
		s.state, s.snapshot = nil, nil
	}
}

// version is the newest of store that all followers read.
func (s *streams) version() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := store.Version
	for r := range s.versions {
		oldest = min(oldest, r.version)
	}
	return oldest
}

// outdated are the followers that do not read a version.
func (s *streams) outdated(version int) (ids []mesh.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.versions {
		if r.version < version {
			ids = append(ids, r.id)
		}
	}
	return ids
}

// frame gives a snapshot for a follower at pos, and where it leads. When all
// followers come at once, after an outage, one is encoded for many of them: one
// that the next changes continue is as good as the newest.
func (s *streams) frame(log *raftstore.Store, pos position) (frame []byte, at position, err error) {
	s.encoding.Lock()
	defer s.encoding.Unlock()
	now := log.State()
	if s.state != nil && s.state != now {
		_, known := log.Since(s.state.Index, 0)
		if !known || s.state.Index+batch < now.Index || positionOf(s.state).compare(pos) <= 0 {
			s.state = nil
		}
	}
	if s.state == nil {
		b, err := store.Snapshot(now)
		if err != nil {
			return nil, pos, err
		}
		s.state, s.snapshot = now, appendFrame(nil, frameSnapshot, b)
	}
	return s.snapshot, positionOf(s.state), nil
}

// judge tells how a state at pos stands to the history in the log.
func judge(log *raftstore.Store, pos position) raftstore.Verdict {
	switch generation := log.State().Mesh.Generation; {
	case pos.Generation > generation:
		return raftstore.Ahead
	case pos.Generation < generation: // the mesh was recovered without it
		return raftstore.Unknown
	default:
		return log.Compare(pos.Index, pos.Head)
	}
}

// serveHead says where this node stands: it is no secret among members, and
// whoever compares states must reach those whose certificates are stale, too. A
// voter also says how the caller stands to it, who gives its position as to
// serveFollow.
func (p *Plane) serveHead(w http.ResponseWriter, r *http.Request) {
	log := p.voter.store()
	answer := headAnswer{position: positionOf(p.State()), Leader: p.following.saidLeader(), Version: p.streams.version(), Time: p.clock.now()}
	if log != nil {
		// A log that was out of service for a while may lag behind what other
		// voters have told since: nobody is shown less than before.
		if own := log.State(); own.Newer(p.State()) {
			answer.position = positionOf(own)
		}
		answer.Leader = log.Status().Leader
		q := r.URL.Query()
		if version, err := strconv.Atoi(q.Get("version")); err == nil {
			answer.Outdated = p.streams.outdated(version)
		}
		if q.Has("after") {
			pos, err := parsePosition(q)
			if err != nil {
				Fail(w, err)
				return
			}
			answer.Verdict = judge(log, pos)
		}
	}
	Reply(w, answer)
}

// serveFollow streams the changes that continue the follower's state, or a
// snapshot first where it cannot tell, or where the follower asks for one. A
// follower with another history, or further on than this voter, is told so
// and gets nothing: what it has may be right.
func (p *Plane) serveFollow(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	pos, err := parsePosition(q)
	if err != nil {
		Fail(w, err)
		return
	}
	log := p.voter.store()
	if log == nil {
		Fail(w, p.notVoter())
		return
	}
	own := positionOf(log.State())
	verdict, anew := judge(log, pos), q.Get("anew") != ""
	switch {
	case verdict == raftstore.Ahead:
		Fail(w, newError(http.StatusConflict, CodeBehind, "%s is at %d in generation %d, before the caller", p.name(p.id), own.Index, own.Generation))
		return
	case verdict == raftstore.Diverged && (!anew || own.compare(pos) <= 0):
		Fail(w, newError(http.StatusConflict, CodeDiverged, "%s has another history than the caller at %d", p.name(p.id), pos.Index))
		return
	}
	version := 2 // which did not say
	if n, err := strconv.Atoi(q.Get("version")); err == nil {
		version = n
	}
	caller := Caller(r.Context())
	if !p.streams.enter(caller, version) {
		Fail(w, newError(http.StatusServiceUnavailable, CodeBusy, "%s has %d followers; follow another voter", p.name(p.id), maxFollowers))
		return
	}
	defer p.streams.leave(caller, version)
	box := newMailbox()
	if q.Get("relay") != "" { // older followers know no such frames
		box = p.streams.attach(caller)
		defer p.streams.detach(caller, box)
	}
	if err := p.stream(w, r, log, pos, verdict != raftstore.Known || anew, box); err != nil {
		p.logger.Warn("follow stream ended", mesh.LogNode, p.name(caller), mesh.LogError, err)
	}
}

// stream sends what follows a position, anew with a snapshot first, and what comes
// into the box, until the follower goes or either end loses its right. nil: that is
// how it ended.
func (p *Plane) stream(w http.ResponseWriter, r *http.Request, log *raftstore.Store, pos position, anew bool, box *mailbox) error {
	changed, stop := log.Watch()
	defer stop()
	defer p.delivered.forget(r)
	out := http.NewResponseController(w)
	if err := out.SetReadDeadline(time.Time{}); err != nil { // the server's is for short calls
		return err
	}
	send := func(frames ...[]byte) bool { // false: the follower is gone and will come again
		if out.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
			return false
		}
		for _, f := range frames {
			if _, err := w.Write(f); err != nil {
				return false
			}
		}
		return out.Flush() == nil
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	due := true // a heartbeat: the first one tells the follower where this voter is
	for {
		if p.voter.store() != log {
			end, err := endFrame(p.notVoter())
			if err == nil {
				send(end)
			}
			return err
		}
		if _, member := p.State().Nodes[Caller(r.Context())]; !member {
			return nil // and its connections are cut
		}
		frames, at, err := p.frames(log, pos, anew)
		if err != nil {
			return err
		}
		if due {
			beat, err := beatFrame(log)
			if err != nil {
				return err
			}
			frames = append(frames, beat)
		}
		frames = append(frames, box.take(time.Now())...)
		if len(frames) > 0 && !send(frames...) {
			return nil
		}
		p.delivered.note(r, at)
		due = false
		if at != pos {
			pos, anew = at, false
			continue // there may be more
		}
		select {
		case <-changed:
		case <-box.ready:
		case <-beat.C:
			due = true
		case <-r.Context().Done():
			return nil
		}
	}
}

// frames gives what follows a position, and where it leads. Nothing waits in a
// queue for a slow follower: when it reads on it gets what it lacks, or a
// snapshot if that is too much.
func (p *Plane) frames(log *raftstore.Store, pos position, anew bool) (frames [][]byte, at position, err error) {
	if anew && positionOf(log.State()).compare(pos) <= 0 {
		return nil, pos, nil // nothing to give yet
	}
	if changes, known := log.Since(pos.Index, batch); known && !anew {
		var b []byte
		for _, c := range changes {
			b, pos.Index, pos.Head = changeFrame(b, c), c.Index, c.Head
		}
		if len(b) > 0 {
			frames = append(frames, b)
		}
		return frames, pos, nil
	}
	frame, at, err := p.streams.frame(log, pos)
	if err != nil {
		return nil, pos, err
	}
	return [][]byte{frame}, at, nil
}
