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
	local        bool // on the socket of the machine itself only
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
		call("GET", "/v1/version", Member, "Version of the daemon",
			func(*Server, context.Context, none) (VersionInfo, error) { return BuildVersion(), nil }),
		call("GET", "/v1/status", Read, "Health, identity, uplinks and counts of this node",
			func(s *Server, ctx context.Context, _ none) (Status, error) { return s.backend.Status(ctx) }),
		call("GET", "/v1/nodes", Read, "All members and how they are reached from here",
			func(s *Server, ctx context.Context, q NodesQuery) (Nodes, error) { return s.backend.Nodes(ctx, q) }),
		call("GET", "/v1/links", Read, "All links of this node, measured",
			func(s *Server, ctx context.Context, _ none) (Links, error) { return s.backend.Links(ctx) }),
		call("GET", "/v1/netcheck", Read, "What the networks of this node let through, and which direct links that allows",
			func(s *Server, ctx context.Context, _ none) (Netcheck, error) { return s.backend.Netcheck(ctx) }),
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
			func(s *Server, ctx context.Context, r InitRequest) (Enrolled, error) { return s.backend.Init(ctx, r) }).onlyHere(),
		stream("POST", "/v1/join", Change, "Join the mesh that made a token; the answer is the transcript",
			func(s *Server, ctx context.Context, r JoinRequest, emit func(JoinStep) error) error {
				j, err := s.startJoin(r)
				if err != nil {
					return err
				}
				return j.follow(ctx, 0, emit)
			}).onlyHere(),
		stream("GET", "/v1/join", Read, "The transcript of the join that runs, or of the last one",
			func(s *Server, ctx context.Context, q SinceQuery, emit func(JoinStep) error) error {
				j, err := s.lastJoin()
				if err != nil {
					return err
				}
				return j.follow(ctx, q.Since, emit)
			}).onlyHere(),
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
		call("POST", "/v1/node", Change, "Set transit, cap, tags, site and roles of a node",
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
			func(s *Server, ctx context.Context, _ none) (Done, error) { return s.backend.Leave(ctx) }).onlyHere(),
		call("POST", "/v1/teardown", Change, "Remove tunnels, routes and filter; the node stays a member",
			func(s *Server, ctx context.Context, _ none) (Done, error) { return s.backend.Teardown(ctx) }).onlyHere(),

		call("GET", "/v1/raft", Read, "Who keeps the log of the mesh, and how well",
			func(s *Server, ctx context.Context, _ none) (RaftStatus, error) { return s.backend.Raft(ctx) }),
		call("POST", "/v1/raft/recover", Change, "Plan how the mesh begins anew on this node, or carry a plan out",
			func(s *Server, ctx context.Context, r RecoverRequest) (RecoverPlan, error) {
				return s.backend.Recover(ctx, r)
			}).onlyHere(),
		stream("GET", "/v1/audit", Read, "The audit trail; what was given is proven when it ends without an error",
			func(s *Server, ctx context.Context, q AuditQuery, emit func(AuditRecord) error) error {
				return s.backend.Audit(ctx, q, emit)
			}),
		call("POST", "/v1/revoke", Change, "Remove a node for ever; nobody lets it in again",
			func(s *Server, ctx context.Context, r NodeQuery) (Done, error) { return s.backend.Revoke(ctx, r.Node) }),
		call("POST", "/v1/grant", Change, "Set the networks that a node may announce",
			func(s *Server, ctx context.Context, r GrantRequest) (Done, error) { return s.backend.Grant(ctx, r) }),
		call("GET", "/v1/reservations", Read, "The addresses that are kept for nodes to come",
			func(s *Server, ctx context.Context, _ none) (Reservations, error) { return s.backend.Reservations(ctx) }),
		call("POST", "/v1/reservations", Change, "Keep an address for a node to come",
			func(s *Server, ctx context.Context, r ReserveRequest) (Done, error) { return s.backend.Reserve(ctx, r) }),
		call("DELETE", "/v1/reservations/{name}", Change, "Give a kept address back",
			func(s *Server, ctx context.Context, q NameQuery) (Done, error) {
				return s.backend.Unreserve(ctx, q.Name)
			}),
		call("GET", "/v1/operators", Read, "Who may change the mesh, or look at it from elsewhere",
			func(s *Server, ctx context.Context, _ none) (Operators, error) { return s.backend.Operators(ctx) }),
		call("POST", "/v1/operators", Change, "Make somebody without a node an operator",
			func(s *Server, ctx context.Context, r OperatorRequest) (Done, error) {
				return s.backend.SetOperator(ctx, r)
			}),
		call("DELETE", "/v1/operators/{name}", Change, "End what an operator without a node may do",
			func(s *Server, ctx context.Context, q NameQuery) (Done, error) {
				return s.backend.RemoveOperator(ctx, q.Name)
			}),
		call("GET", "/v1/ca", Read, "The CAs that certificates are made with",
			func(s *Server, ctx context.Context, _ none) (Authorities, error) { return s.backend.Authorities(ctx) }),
		call("POST", "/v1/ca/rotate", Change, "Give the mesh another CA",
			func(s *Server, ctx context.Context, _ none) (Done, error) { return s.backend.RotateCA(ctx) }),
		call("GET", "/v1/settings", Read, "The settings of the mesh",
			func(s *Server, ctx context.Context, _ none) (Settings, error) { return s.backend.Settings(ctx) }),
		call("POST", "/v1/settings", Change, "Change settings of the mesh",
			func(s *Server, ctx context.Context, r SettingsRequest) (Settings, error) {
				return s.backend.SetSettings(ctx, r)
			}),

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
	return route{
		method: method, path: path, right: right, summary: summary,
		request: reflect.TypeFor[Q](), reply: reflect.TypeFor[R](), serve: serve,
	}
}

// onlyHere is the route when only the machine itself may ask for it: what it
// does is about that machine, or cannot be taken back.
func (r route) onlyHere() route {
	r.local = true
	return r
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
	return route{
		method: method, path: path, right: right, summary: summary, stream: true,
		request: reflect.TypeFor[Q](), reply: reflect.TypeFor[R](), serve: serve,
	}
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
