package api

import (
	"context"
	"net"
)

// A Backend answers the API; mesh/agent is one. Methods are called from many
// goroutines at once and must return soon after ctx ends. Values that they
// return or emit are not changed by the server and must not change later.
//
// Errors should be (or wrap) an *Error; any other is reported as internal.
// The context of a change (Init, Join, tokens, policy, Leave, Teardown) does not end
// when the client leaves, only by time or when the daemon stops, so that no
// change stays half done because someone pressed Ctrl-C.
type Backend interface {
	Status(ctx context.Context) (Status, error)
	Nodes(ctx context.Context, q NodesQuery) (Nodes, error)
	Links(ctx context.Context) (Links, error)
	// Netcheck says what was measured; it measures nothing.
	Netcheck(ctx context.Context) (Netcheck, error)
	Routes(ctx context.Context) (Routes, error)
	Path(ctx context.Context, q PathQuery) (Path, error)

	// Ping probes until q.Count probes have their outcome or ctx ends, and
	// emits each outcome in order. An error of emit ends it: the client left.
	Ping(ctx context.Context, q PingQuery, emit func(PingReply) error) error
	// Events emits what is remembered after q.Since, oldest first, then, with
	// q.Follow, what happens until ctx ends. When events after q.Since were
	// already forgotten it first emits one of kind "gap" that says how many.
	// A q.Since above the newest index means that the daemon has restarted
	// since: then all that is remembered is emitted.
	Events(ctx context.Context, q EventsQuery, emit func(Event) error) error

	Init(ctx context.Context, r InitRequest) (Enrolled, error)
	// Join reports each step as it happens and returns when the node is
	// enrolled and its data plane is up, or has failed and left nothing
	// behind. The server keeps the transcript, numbers it, and adds the last
	// step of kind "ready".
	Join(ctx context.Context, r JoinRequest, report func(JoinStep)) (Enrolled, error)
	CreateToken(ctx context.Context, r TokenRequest) (CreatedToken, error)
	Tokens(ctx context.Context) (Tokens, error)
	RevokeToken(ctx context.Context, id string) (Done, error)
	// Topology says who should have links to whom.
	Topology(ctx context.Context) (Topology, error)
	SetTopology(ctx context.Context, r TopologyRequest) (Done, error)
	SetPairs(ctx context.Context, r PairsRequest) (Done, error)
	SetNode(ctx context.Context, r NodeRequest) (Done, error)
	Drains(ctx context.Context) (Drains, error)
	// Drain returns when the request's wait is over, or the traffic has moved.
	Drain(ctx context.Context, r DrainRequest) (Drained, error)
	Undrain(ctx context.Context, target string) (Done, error)
	// Leave takes the node out of the mesh and removes all that Guywire made on this host.
	Leave(ctx context.Context) (Done, error)
	// Teardown removes tunnels, routes, rules and filter from the kernel; the
	// node stays a member and comes back with the next start of the daemon.
	Teardown(ctx context.Context) (Done, error)

	// Raft says who keeps the log of the mesh.
	Raft(ctx context.Context) (RaftStatus, error)
	Recover(ctx context.Context, r RecoverRequest) (RecoverPlan, error)
	// Audit emits the trail from q.From on. What it emitted is proven when it
	// returns nil; CodeCorrupt: the trail was changed, or something is missing.
	Audit(ctx context.Context, q AuditQuery, emit func(AuditRecord) error) error
	Revoke(ctx context.Context, node string) (Done, error)
	Grant(ctx context.Context, r GrantRequest) (Done, error)
	Reservations(ctx context.Context) (Reservations, error)
	Reserve(ctx context.Context, r ReserveRequest) (Done, error)
	Unreserve(ctx context.Context, name string) (Done, error)
	Operators(ctx context.Context) (Operators, error)
	SetOperator(ctx context.Context, r OperatorRequest) (Done, error)
	RemoveOperator(ctx context.Context, name string) (Done, error)
	Authorities(ctx context.Context) (Authorities, error)
	RotateCA(ctx context.Context) (Done, error)
	Settings(ctx context.Context) (Settings, error)
	SetSettings(ctx context.Context, r SettingsRequest) (Settings, error)

	// DialNode connects to the API of another node, by name or id, as this one.
	DialNode(ctx context.Context, node string) (net.Conn, error)
}
