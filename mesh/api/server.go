package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"guywire/mesh"
)

// A Server serves one Backend. It owns the goroutine of a running join.
type Server struct {
	backend  Backend
	log      *slog.Logger
	handler  http.Handler
	readers  chan struct{} // one element per request under way
	changers chan struct{}

	// life ends when Serve does; changes and joins live that long, and not
	// only as long as the request that began them.
	life context.Context
	die  context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex // guards joining
	joining *journal   // of the last join; nil: none yet
}

// NewServer makes a server that answers from b. Serve must be called once.
func NewServer(b Backend, log *slog.Logger) *Server {
	s := &Server{
		backend: b, log: log,
		readers: make(chan struct{}, maxReaders), changers: make(chan struct{}, maxChangers),
	}
	s.life, s.die = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	for _, r := range routes() {
		mux.Handle(r.method+" "+r.path, s.guard(r))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, Errorf(CodeNotFound, "see /v1/openapi.json", "There is no call %s %.100s", r.Method, r.URL.Path))
	})
	s.handler = mux
	return s
}

// Serve answers on l until ctx ends; then it cuts streams, gives requests
// under way a moment to finish, and closes l. It returns nil after such a stop.
func (s *Server) Serve(ctx context.Context, l *Listener) error {
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if p, ok := c.(*peerConn); ok {
				ctx = withAccess(ctx, p.access)
			}
			return ctx
		},
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err := l.Close()
		s.die() // after Close, so that a client whose stream is cut finds no listener
		stopped <- errors.Join(err, srv.Shutdown(limit), srv.Close())
	})
	err := srv.Serve(l)
	if stop() { // the listener broke by itself
		err = errors.Join(err, srv.Close())
	} else {
		if err = <-stopped; errors.Is(err, context.DeadlineExceeded) {
			s.log.Warn("API requests were cut off at stop", mesh.LogError, err)
			err = nil
		}
	}
	s.die()
	s.work.Wait()
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// guard lets a request to its route when the peer has the right, and bounds
// how many run at a time. Readers have their own bound, so that they can not
// lock out those who may change things.
func (s *Server) guard(r route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		a := accessOf(req.Context())
		if a.right < r.right {
			s.fail(w, refusal(a, r))
			return
		}
		slots := s.readers
		if a.right == Change {
			slots = s.changers
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			s.fail(w, Errorf(CodeBusy, "try again, or end other meshctl commands", "meshd answers too many requests at this moment"))
			return
		}
		if r.method == http.MethodPost {
			control := http.NewResponseController(w)
			_ = control.SetReadDeadline(time.Now().Add(bodyTimeout))
			req.Body = &deadlineBody{http.MaxBytesReader(w, req.Body, maxBody), control}
		}
		if r.right == Change {
			s.log.Info("API change", "call", r.method+" "+r.path, "uid", a.peer.UID, "pid", a.peer.PID)
		}
		if err := r.serve(s, w, req); err != nil && req.Context().Err() == nil {
			s.fail(w, err)
		}
	})
}

// A deadlineBody lifts the read deadline when the body has been read, or the
// connection's next wait would be taken for a client that left.
type deadlineBody struct {
	io.ReadCloser
	control *http.ResponseController
}

func (b *deadlineBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// refusal says why a peer may not do something and who may.
func refusal(a access, r route) *Error {
	if r.right == Read {
		return Errorf(CodeForbidden, "run it as root, or have root add this user to group "+GroupName+"",
			"User id %d may not ask meshd", a.peer.UID)
	}
	return Errorf(CodeForbidden, "run it as root, or as the user that meshd runs as",
		"User id %d may not change this node", a.peer.UID)
}

// fail answers with an error.
func (s *Server) fail(w http.ResponseWriter, err error) {
	e := asError(err)
	if e.Status() == http.StatusInternalServerError {
		s.log.Warn("API call failed", mesh.LogError, err)
	}
	_ = writeJSON(w, e.Status(), e) // the client may be gone
}

// asError finds the Error in err, or makes one of it.
func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return Errorf(CodeTimeout, "see meshctl status", "meshd found no answer in time")
	}
	return Errorf(CodeInternal, "see the log of meshd", "meshd failed: %v", err)
}

// startJoin begins a join in a goroutine of the server, one at a time.
func (s *Server) startJoin(r JoinRequest) (*journal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.joining != nil && s.joining.running() {
		return nil, Errorf(CodeJoinRunning, "wait for it; meshctl status shows when it is done", "A join is already under way on this host")
	}
	j := newJournal()
	s.joining = j
	begun := time.Now()
	s.work.Go(func() {
		ctx, cancel := context.WithTimeout(s.life, joinLimit)
		defer cancel()
		joined, err := s.backend.Join(ctx, r, j.add)
		if err == nil {
			j.add(JoinStep{ElapsedMs: Millis(time.Since(begun)), Kind: "ready", Sentence: "ready", Result: &joined})
		}
		j.finish(err)
	})
	return j, nil
}

// lastJoin gives the transcript of the last join.
func (s *Server) lastJoin() (*journal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.joining == nil {
		return nil, Errorf(CodeNotFound, "begin one with meshctl join", "No join was tried since meshd started")
	}
	return s.joining, nil
}

// writeJSON answers with one document. An error means that the client left:
// the status is out, so no other answer is possible, and nil is returned
// unless the document itself cannot be encoded.
func writeJSON(w http.ResponseWriter, status int, document any) error {
	b, err := json.Marshal(document)
	if err != nil {
		return Errorf(CodeInternal, "", "The answer cannot be written as JSON: %v", err)
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
	return nil
}

// encode writes a record and its newline at once.
func encode(w io.Writer, record any) error {
	b, err := json.Marshal(record)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
