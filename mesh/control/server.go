package control

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"time"

	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
)

// A Role is what a caller must be, by the state at the moment of the call.
type Role uint8

// Roles, each including the next ones.
const (
	Joiner Role = iota // anyone who can connect
	Hint               // a member, whose certificate may be stale: with every voter away nobody renews it
	Member             // a member
	Voter              // a member that the log names as voter
)

type callerKey struct{}

// Caller is the node whose request ctx belongs to; zero: a joiner.
func Caller(ctx context.Context) mesh.NodeID {
	id, _ := ctx.Value(callerKey{}).(mesh.NodeID)
	return id
}

// Handle adds a route of the node API, in the pattern language of
// http.ServeMux. The handler learns the caller by Caller; the body is bounded.
func (p *Plane) Handle(pattern string, role Role, handler http.Handler) {
	p.mux.Handle(pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := p.authorise(r, role)
		if err != nil {
			w.Header().Set("Connection", "close")
			Fail(w, err)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, id)))
	}))
}

// A route is one call between nodes, and who may make it.
type route struct {
	pattern string // of http.ServeMux
	role    Role
	handler http.HandlerFunc
}

func (p *Plane) routes() []route {
	return []route{
		{"POST /v1/join/begin", Joiner, p.serveJoinBegin},
		{"POST /v1/join/finish", Joiner, p.serveJoinFinish},
		{"POST /v1/cert", Hint, p.serveCertificate},
		{"GET /v1/head", Hint, p.serveHead},
		{"POST /v1/reach", Hint, p.serveReach},
		{"POST /v1/link/relay", Hint, p.serveRelay},
		{"POST /v1/boot", Hint, p.serveBoot},
		{"GET /v1/view", Hint, p.serveView},
		{"GET /v1/state", Hint, p.serveState},
		{"POST /v1/admit", Member, p.serveAdmit},
		{"POST /v1/propose", Member, p.servePropose},
		{"GET /v1/read", Member, p.serveRead},
		{"GET /v1/audit", Member, p.serveAudit},
		{"GET /v1/follow", Member, p.serveFollow},
		{"GET /v1/raft", Member, p.serveRaft},
		{"POST /v1/ca/rotate", Member, p.serveRotate},
		{"POST /v1/forward", Voter, p.serveForward},
		{"POST /v1/promote", Voter, p.servePromote},
		{"POST /v1/resign", Voter, p.serveResign},
		{"POST /v1/ca", Voter, p.serveAuthority},
		{"POST /v1/running", Voter, p.serveRunning},
		{"GET /v1/followers", Voter, p.serveFollowers},
		{"/", Joiner, func(w http.ResponseWriter, r *http.Request) {
			if Caller(r.Context()).IsZero() { // and takes a joiner's place
				w.Header().Set("Connection", "close")
			}
			Fail(w, newError(http.StatusNotFound, store.CodeNotFound, "there is no such call; run the same version of Guywire on both sides"))
		}},
	}
}

// authorise finds out who calls, from the key that the connection proved and
// the state, and whether that is enough.
func (p *Plane) authorise(r *http.Request, role Role) (mesh.NodeID, error) {
	peer, known := p.peerOf(r.Context())
	if !known {
		if role == Joiner {
			return mesh.NodeID{}, nil
		}
		return mesh.NodeID{}, newError(http.StatusUnauthorized, CodeNoCertificate, "this call needs the certificate of a member; join first: meshctl join TOKEN")
	}
	state := p.State()
	if !decided(state, peer.ID) { // admitted a moment ago, perhaps
		p.await(r.Context(), func(s *store.State) bool { return decided(s, peer.ID) })
		state = p.State()
	}
	if gone, removed := state.Removed[peer.ID]; removed {
		return mesh.NodeID{}, newError(http.StatusForbidden, CodeRemoved, "%s was removed from the mesh; to come back, empty its state directory and join with a new token", gone.Name)
	}
	if p.isBanned(peer.ID) {
		return mesh.NodeID{}, newError(http.StatusForbidden, CodeBanned, "%s is banned by the word of an operator, which the log does not have yet", nameIn(state, peer.ID))
	}
	node, member := state.Nodes[peer.ID]
	if !member || node.Identity != peer.Key {
		return mesh.NodeID{}, newError(http.StatusForbidden, CodeUnknownNode, "%s does not know the node %s; it may be behind: try again", nameIn(state, p.id), peer.ID)
	}
	if peer.Stale && role > Hint {
		return mesh.NodeID{}, newError(http.StatusForbidden, CodeExpired, "the certificate of this node has expired; it renews it by itself as soon as a voter answers")
	}
	if role == Voter && !node.Voter {
		return mesh.NodeID{}, newError(http.StatusForbidden, CodeNotVoter, "%s is not a voter", node.Name)
	}
	return peer.ID, nil
}

func decided(s *store.State, id mesh.NodeID) bool {
	_, member := s.Nodes[id]
	_, removed := s.Removed[id]
	return member || removed
}

func (p *Plane) newServer() *http.Server {
	return &http.Server{
		Handler:           p.mux,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(p.logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return p.life },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if a, ok := c.(apiConn); ok {
				return context.WithValue(ctx, connKey{}, &joining{conn: a.Conn})
			}
			return ctx
		},
	}
}

// An apiListener hides from net/http that its connections are TLS: it would
// close those whose protocol name it does not know.
type apiListener struct{ *transport.Stream }

type apiConn struct{ *tls.Conn }

// Accept implements net.Listener.
func (l apiListener) Accept() (net.Conn, error) {
	c, err := l.Stream.Accept()
	if err != nil {
		return nil, err
	}
	return apiConn{c.(*tls.Conn)}, nil
}

type connKey struct{}

// peerOf is who proved to be at the other end of the request's connection.
func (p *Plane) peerOf(ctx context.Context) (transport.Peer, bool) {
	c, ok := ctx.Value(connKey{}).(*joining)
	if !ok {
		return transport.Peer{}, false
	}
	state := c.conn.ConnectionState()
	return p.dialer.Trust.Peer(&state, time.Now())
}
