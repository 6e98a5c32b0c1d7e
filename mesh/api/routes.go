package api

import (
	"context"
	"net/http"
	"reflect"
	"time"
)

// A route is one call of the API. The server, the OpenAPI document and the
// test of rights are all made from the table of them.
type route struct {
	method, path string
	right        Right
	summary      string
	stream       bool         // the answer is newline-delimited JSON
	request      reflect.Type // of body (POST) or of path and query
	reply        reflect.Type // of the document, or of one record
	serve        func(*Server, http.ResponseWriter, *http.Request) error
}

// none is the request of a call that takes nothing.
type none struct{}

// routes is the whole API.
func routes() []route {
	return []route{
		call("GET", "/v1/version", Read, "Version of the daemon",
			func(*Server, context.Context, none) (VersionInfo, error) { return BuildVersion(), nil }),
		call("GET", "/v1/status", Read, "Health, identity, uplinks and counts of this node",
			func(s *Server, ctx context.Context, _ none) (Status, error) { return s.backend.Status(ctx) }),
		call("GET", "/v1/nodes", Read, "All members and how they are reached from here",
			func(s *Server, ctx context.Context, _ none) (Nodes, error) { return s.backend.Nodes(ctx) }),
		call("GET", "/v1/links", Read, "All links of this node, measured",
			func(s *Server, ctx context.Context, _ none) (Links, error) { return s.backend.Links(ctx) }),
		call("GET", "/v1/routes", Read, "All prefixes with next hops, weights and runner-up",
			func(s *Server, ctx context.Context, _ none) (Routes, error) { return s.backend.Routes(ctx) }),
		call("GET", "/v1/path", Read, "The way of a packet between two nodes, hop by hop",
			func(s *Server, ctx context.Context, q PathQuery) (Path, error) { return s.backend.Path(ctx, q) }),
		stream("GET", "/v1/ping", Read, "Probe a node through the mesh",
			func(s *Server, ctx context.Context, q PingQuery, emit func(PingReply) error) error {
				return s.backend.Ping(ctx, q, emit)
			}),
		stream("GET", "/v1/events", Read, "What happened after an index, and what happens from now on",
			func(s *Server, ctx context.Context, q EventsQuery, emit func(Event) error) error {
				return s.backend.Events(ctx, q, emit)
			}),

		call("POST", "/v1/init", Change, "Make a mesh on this host",
			func(s *Server, ctx context.Context, r InitRequest) (Enrolled, error) { return s.backend.Init(ctx, r) }),
		stream("POST", "/v1/join", Change, "Join the mesh that made a token; the answer is the transcript",
			func(s *Server, ctx context.Context, r JoinRequest, emit func(JoinStep) error) error {
				j, err := s.startJoin(r)
				if err != nil {
					return err
				}
				return j.follow(ctx, 0, emit)
			}),
		stream("GET", "/v1/join", Read, "The transcript of the join that runs, or of the last one",
			func(s *Server, ctx context.Context, q SinceQuery, emit func(JoinStep) error) error {
				j, err := s.lastJoin()
				if err != nil {
					return err
				}
				return j.follow(ctx, q.Since, emit)
			}),
		call("GET", "/v1/tokens", Read, "The tokens that can still be used",
			func(s *Server, ctx context.Context, _ none) (Tokens, error) { return s.backend.Tokens(ctx) }),
		call("POST", "/v1/tokens", Change, "Make a token",
			func(s *Server, ctx context.Context, r TokenRequest) (CreatedToken, error) {
				return s.backend.CreateToken(ctx, r)
			}),
		call("DELETE", "/v1/tokens/{id}", Change, "Make a token unusable",
			func(s *Server, ctx context.Context, q TokenQuery) (Done, error) {
				return s.backend.RevokeToken(ctx, q.ID)
			}),
		call("GET", "/v1/topology", Read, "Which nodes should have links to each other, and why",
			func(s *Server, ctx context.Context, _ none) (Topology, error) { return s.backend.Topology(ctx) }),
		call("POST", "/v1/topology", Change, "Choose how neighbours are chosen",
			func(s *Server, ctx context.Context, r TopologyRequest) (Done, error) {
				return s.backend.SetTopology(ctx, r)
			}),
		call("POST", "/v1/topology/pairs", Change, "Pin pairs of nodes, forbid them, or take that back",
			func(s *Server, ctx context.Context, r PairsRequest) (Done, error) { return s.backend.SetPairs(ctx, r) }),
		call("POST", "/v1/node", Change, "Set transit, cap and tags of a node",
			func(s *Server, ctx context.Context, r NodeRequest) (Done, error) { return s.backend.SetNode(ctx, r) }),
		call("GET", "/v1/drains", Read, "What is drained, and what this node still sends over it",
			func(s *Server, ctx context.Context, _ none) (Drains, error) { return s.backend.Drains(ctx) }),
		call("POST", "/v1/drains", Change, "Take a node, an uplink or a link out of use; traffic moves first",
			func(s *Server, ctx context.Context, r DrainRequest) (Drained, error) { return s.backend.Drain(ctx, r) }),
		call("DELETE", "/v1/drains", Change, "Take what was drained back into use",
			func(s *Server, ctx context.Context, q UndrainQuery) (Done, error) {
				return s.backend.Undrain(ctx, q.Target)
			}),
		call("POST", "/v1/leave", Change, "Leave the mesh and remove all that was made here",
			func(s *Server, ctx context.Context, _ none) (Done, error) { return s.backend.Leave(ctx) }),
		call("POST", "/v1/teardown", Change, "Remove tunnels, routes and filter; the node stays a member",
			func(s *Server, ctx context.Context, _ none) (Done, error) { return s.backend.Teardown(ctx) }),

		call("GET", "/v1/openapi.json", Read, "This description",
			func(*Server, context.Context, none) (map[string]any, error) { return OpenAPI(), nil }),
	}
}

// call makes a route that answers with one document. A change outlives its
// client, within changeLimit.
func call[Q, R any](method, path string, right Right, summary string, f func(*Server, context.Context, Q) (R, error)) route {
	serve := func(s *Server, w http.ResponseWriter, r *http.Request) error {
		q, err := decode[Q](r)
		if err != nil {
			return err
		}
		ctx, limit := r.Context(), readLimit
		if right == Change {
			ctx, limit = s.life, changeLimit
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		reply, err := f(s, ctx, q)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, reply)
	}
	return route{method, path, right, summary, false, reflect.TypeFor[Q](), reflect.TypeFor[R](), serve}
}

// stream makes a route that answers with one record per line, for as long as
// the client listens and the daemon runs.
func stream[Q, R any](method, path string, right Right, summary string,
	f func(*Server, context.Context, Q, func(R) error) error,
) route {
	serve := func(s *Server, w http.ResponseWriter, r *http.Request) error {
		q, err := decode[Q](r)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(s.life, cancel)()
		out := &lineWriter{w: w, control: http.NewResponseController(w)}
		err = f(s, ctx, q, func(record R) error { return out.write(record) })
		if err != nil && s.life.Err() != nil {
			panic(http.ErrAbortHandler) // cut the stream in a way that tells the client to resume
		}
		return out.end(err)
	}
	return route{method, path, right, summary, true, reflect.TypeFor[Q](), reflect.TypeFor[R](), serve}
}

// A lineWriter writes a stream. The status is sent with the first record, so
// that an error before it is an ordinary answer.
type lineWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
	broken  bool
}

func (l *lineWriter) write(record any) error {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "application/x-ndjson")
	}
	// Writers without deadlines are the recorders of tests.
	_ = l.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := encode(l.w, record); err != nil {
		l.broken = true
		return err
	}
	if err := l.control.Flush(); err != nil {
		l.broken = true
		return err
	}
	return nil
}

// end finishes the stream with err: as an answer of its own when nothing was
// written yet, else as the last record {"error": …}.
func (l *lineWriter) end(err error) error {
	switch {
	case l.broken, err == nil && l.begun:
		return nil
	case err == nil:
		l.w.Header().Set("Content-Type", "application/x-ndjson")
		return nil
	case !l.begun:
		return err
	}
	_ = l.write(failure{asError(err)}) // the client may be gone; nothing more can be said
	return nil
}

// failure is the last record of a stream that failed.
type failure struct {
	Error *Error `json:"error"`
}
