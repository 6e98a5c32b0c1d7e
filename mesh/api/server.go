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
	remote   chan struct{} // of those who call from elsewhere

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
		readers: make(chan struct{}, maxReaders), changers: make(chan struct{}, maxChangers), remote: make(chan struct{}, maxRemote),
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
	srv := s.newHTTP(func(c net.Conn) (ask func() Access) {
		if p, ok := c.(*peerConn); ok {
			return func() Access { return p.access }
		}
		return func() Access { return Access{Who: "nobody"} }
	})
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

// ServeRemote answers those who call from elsewhere, on connections that have
// proved who is at their other end; who says what that one may do at the
// moment. It ends with ctx, or when l is closed, and cuts what is under way.
func (s *Server) ServeRemote(ctx context.Context, l net.Listener, who func(net.Conn) Access) error {
	srv := s.newHTTP(func(c net.Conn) func() Access {
		return func() Access {
			a := who(c)
			a.remote = true
			return a
		}
	})
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	err := srv.Serve(l)
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Server) newHTTP(who func(net.Conn) func() Access) *http.Server {
	return &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return withAccess(ctx, who(c)) },
	}
}

// guard lets a request to its route when the peer has the right, and bounds
// how many run at a time. Readers have their own bound, so that they can not
// lock out those who may change things.
func (s *Server) guard(r route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		a := accessOf(req.Context())
		if err := refusal(a, r, req.Header.Get(onHeader)); err != nil {
			if a.remote {
				w.Header().Set("Connection", "close")
			}
			s.fail(w, err)
			return
		}
		client := req.Context()
		if !a.Until.IsZero() {
			ctx, cancel := context.WithDeadline(req.Context(), a.Until)
			defer cancel()
			req = req.WithContext(ctx)
		}
		slots := s.readers
		switch {
		case a.remote:
			slots = s.remote
		case a.Right == Change:
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
			s.log.Info("API change", "call", r.method+" "+r.path, "by", a.Who)
		}
		serve := r.serve
		if node := req.Header.Get(onHeader); node != "" {
			serve = func(s *Server, w http.ResponseWriter, req *http.Request) error { return s.pass(w, req, node) }
		}
		if err := serve(s, w, req); err != nil && client.Err() == nil {
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

// refusal says why somebody may not do something and who may; nil: they may.
func refusal(a Access, r route, on string) *Error {
	switch {
	case a.Refused != nil:
		return a.Refused
	case a.remote && a.Right == NoRight:
		return Errorf(CodeIdentity, "use the certificate of a node, or an operator's key", "This call needs to know who asks")
	case a.remote && on != "":
		return Errorf(CodeInvalid, "ask that node itself", "A call is passed on once only")
	case r.local && (a.remote || on != ""):
		return Errorf(CodeForbidden, "run meshctl on that machine", "This is done on the machine itself only")
	case a.Right >= r.right:
		return nil
	case a.remote && a.Right == Member:
		return Errorf(CodeForbidden, "let an operator give it the role: meshctl node set NODE --role operator", "%s is not an operator of the mesh", a.Who)
	case a.remote:
		return Errorf(CodeForbidden, "ask somebody who may: meshctl operator list", "%s may read, and not change anything", a.Who)
	case r.right == Change:
		return Errorf(CodeForbidden, "run it as root, or as the user that meshd runs as", "%s may not change this node", a.Who)
	default:
		return Errorf(CodeForbidden, "run it as root, or have root add this user to group "+GroupName, "%s may not ask meshd", a.Who)
	}
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
