// Package apitest has a double of the API's backend: a small mesh that never
// changes, for tests of the server, the client and meshctl.
package apitest

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
)

// Now is the time at which the documents were made.
var Now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var _ api.Backend = (*Backend)(nil)

// A Backend answers with what its fields hold. The zero value is not useful;
// New fills it. Fields may be changed before it serves.
type Backend struct {
	StatusDoc  api.Status
	NodesDoc   api.Nodes
	LinksDoc   api.Links
	CheckDoc   api.Netcheck
	RoutesDoc  api.Routes
	PathDoc    api.Path
	TokensDoc  api.Tokens
	Shape      api.Topology
	DrainsDoc  api.Drains
	DrainedDoc api.Drained // the answer to every drain
	RaftDoc    api.RaftStatus
	PlanDoc    api.RecoverPlan
	Records    []api.AuditRecord
	Reserved   api.Reservations
	People     api.Operators
	CADoc      api.Authorities
	SettingDoc api.Settings
	Replies    []api.PingReply
	EventsDoc  []api.Event
	Steps      []api.JoinStep
	EnrolledAs api.Enrolled

	Others map[string]string // sockets of other nodes, by name

	// Err, when set, is the answer to everything.
	Err error
	// AuditErr is what the audit trail ends with after Records.
	AuditErr error
	// JoinErr is what a join ends with after its steps.
	JoinErr error
	// Hold, when not nil, keeps Join (after its steps), following Events and
	// endless Ping waiting until it is closed or their context ends.
	Hold chan struct{}

	mu    sync.Mutex // guards calls
	calls []any
}

// Calls gives the requests that changes and queries were called with.
func (b *Backend) Calls() []any {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]any(nil), b.calls...)
}

func (b *Backend) called(request any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, request)
	return b.Err
}

func (b *Backend) wait(ctx context.Context) error {
	if b.Hold == nil {
		return nil
	}
	select {
	case <-b.Hold:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Status implements api.Backend.
func (b *Backend) Status(context.Context) (api.Status, error) { return b.StatusDoc, b.Err }

// Nodes implements api.Backend.
func (b *Backend) Nodes(context.Context, api.NodesQuery) (api.Nodes, error) { return b.NodesDoc, b.Err }

// Links implements api.Backend.
func (b *Backend) Links(context.Context) (api.Links, error) { return b.LinksDoc, b.Err }

// Netcheck implements api.Backend.
func (b *Backend) Netcheck(context.Context) (api.Netcheck, error) { return b.CheckDoc, b.Err }

// Routes implements api.Backend.
func (b *Backend) Routes(context.Context) (api.Routes, error) { return b.RoutesDoc, b.Err }

// Path implements api.Backend.
func (b *Backend) Path(_ context.Context, q api.PathQuery) (api.Path, error) {
	return b.PathDoc, b.called(q)
}

// Ping implements api.Backend: Replies in turn, from the one after q.Since.
func (b *Backend) Ping(ctx context.Context, q api.PingQuery, emit func(api.PingReply) error) error {
	if err := b.called(q); err != nil {
		return err
	}
	for i := range b.Replies {
		r := b.Replies[i]
		if r.Index <= q.Since {
			continue
		}
		if err := emit(r); err != nil {
			return err
		}
		if q.Count > 0 && r.Index >= q.Since+uint64(q.Count) {
			return nil
		}
	}
	return b.wait(ctx)
}

// Events implements api.Backend.
func (b *Backend) Events(ctx context.Context, q api.EventsQuery, emit func(api.Event) error) error {
	if err := b.called(q); err != nil {
		return err
	}
	for _, e := range b.EventsDoc {
		if e.Index <= q.Since {
			continue
		}
		if err := emit(e); err != nil {
			return err
		}
	}
	if q.Follow {
		return b.wait(ctx)
	}
	return nil
}

// Init implements api.Backend.
func (b *Backend) Init(_ context.Context, r api.InitRequest) (api.Enrolled, error) {
	e := b.EnrolledAs
	e.Neighbour, e.NeighbourMs = "", nil
	return e, b.called(r)
}

// Join implements api.Backend.
func (b *Backend) Join(ctx context.Context, r api.JoinRequest, report func(api.JoinStep)) (api.Enrolled, error) {
	if err := b.called(r); err != nil {
		return api.Enrolled{}, err
	}
	for _, s := range b.Steps {
		report(s)
	}
	if err := b.wait(ctx); err != nil {
		return api.Enrolled{}, err
	}
	return b.EnrolledAs, b.JoinErr
}

// CreateToken implements api.Backend.
func (b *Backend) CreateToken(_ context.Context, r api.TokenRequest) (api.CreatedToken, error) {
	t := api.Token{
		ID: "k7m2", Name: r.Name, Prefixes: r.Prefixes, AnyPrefix: r.AnyPrefix, Tags: r.Tags, Roles: r.Roles, Site: r.Site,
		Uses: max(1, r.Uses), Created: Now, Expires: Now.Add(api.DefaultTokenTTL),
	}
	if r.TTLMs != 0 {
		t.Expires = Now.Add(time.Duration(r.TTLMs * float64(time.Millisecond)))
	}
	return api.CreatedToken{Text: "gw1-not-a-real-token", Token: t}, b.called(r)
}

// Tokens implements api.Backend.
func (b *Backend) Tokens(context.Context) (api.Tokens, error) { return b.TokensDoc, b.Err }

// RevokeToken implements api.Backend.
func (b *Backend) RevokeToken(_ context.Context, id string) (api.Done, error) {
	if err := b.called(id); err != nil {
		return api.Done{}, err
	}
	for _, t := range b.TokensDoc.Tokens {
		if t.ID == id {
			return api.Done{Sentence: "token " + id + " is revoked"}, nil
		}
	}
	return api.Done{}, api.Errorf(api.CodeNotFound, "see meshctl token list", "There is no token %s", id)
}

// Topology implements api.Backend.
func (b *Backend) Topology(context.Context) (api.Topology, error) { return b.Shape, b.Err }

// SetTopology implements api.Backend.
func (b *Backend) SetTopology(_ context.Context, r api.TopologyRequest) (api.Done, error) {
	return api.Done{Sentence: "the topology is " + r.Mode}, b.called(r)
}

// SetPairs implements api.Backend.
func (b *Backend) SetPairs(_ context.Context, r api.PairsRequest) (api.Done, error) {
	return api.Done{Sentence: "paris-1 and rome-1 have another rule"}, b.called(r)
}

// SetNode implements api.Backend.
func (b *Backend) SetNode(_ context.Context, r api.NodeRequest) (api.Done, error) {
	return api.Done{Sentence: r.Node + " carries no traffic of others"}, b.called(r)
}

// Drains implements api.Backend.
func (b *Backend) Drains(context.Context) (api.Drains, error) { return b.DrainsDoc, b.Err }

// Drain implements api.Backend.
func (b *Backend) Drain(_ context.Context, r api.DrainRequest) (api.Drained, error) {
	return b.DrainedDoc, b.called(r)
}

// Undrain implements api.Backend.
func (b *Backend) Undrain(_ context.Context, target string) (api.Done, error) {
	return api.Done{Sentence: "berlin-1/lte is in use again"}, b.called(target)
}

// Leave implements api.Backend.
func (b *Backend) Leave(context.Context) (api.Done, error) {
	return api.Done{Sentence: "berlin-1 has left mesh acme; tunnels, routes and keys are removed"}, b.called("leave")
}

// Teardown implements api.Backend.
func (b *Backend) Teardown(context.Context) (api.Done, error) {
	return api.Done{Sentence: "3 tunnels and 5 routes are removed"}, b.called("teardown")
}

// Raft implements api.Backend.
func (b *Backend) Raft(context.Context) (api.RaftStatus, error) { return b.RaftDoc, b.Err }

// Recover implements api.Backend.
func (b *Backend) Recover(_ context.Context, r api.RecoverRequest) (api.RecoverPlan, error) {
	plan := b.PlanDoc
	plan.Done = r.Plan != ""
	return plan, b.called(r)
}

// Audit implements api.Backend: Records from q.From on, then AuditErr.
func (b *Backend) Audit(_ context.Context, q api.AuditQuery, emit func(api.AuditRecord) error) error {
	if err := b.called(q); err != nil {
		return err
	}
	for _, r := range b.Records {
		if r.N < q.From {
			continue
		}
		if err := emit(r); err != nil {
			return err
		}
	}
	return b.AuditErr
}

// Revoke implements api.Backend.
func (b *Backend) Revoke(_ context.Context, node string) (api.Done, error) {
	return api.Done{Sentence: node + " is revoked"}, b.called(node)
}

// Grant implements api.Backend.
func (b *Backend) Grant(_ context.Context, r api.GrantRequest) (api.Done, error) {
	return api.Done{Sentence: r.Node + " has other networks"}, b.called(r)
}

// Reservations implements api.Backend.
func (b *Backend) Reservations(context.Context) (api.Reservations, error) { return b.Reserved, b.Err }

// Reserve implements api.Backend.
func (b *Backend) Reserve(_ context.Context, r api.ReserveRequest) (api.Done, error) {
	return api.Done{Sentence: r.Addr.String() + " is kept for " + r.Name}, b.called(r)
}

// Unreserve implements api.Backend.
func (b *Backend) Unreserve(_ context.Context, name string) (api.Done, error) {
	return api.Done{Sentence: "nothing is kept for " + name + " any more"}, b.called(name)
}

// Operators implements api.Backend.
func (b *Backend) Operators(context.Context) (api.Operators, error) { return b.People, b.Err }

// SetOperator implements api.Backend.
func (b *Backend) SetOperator(_ context.Context, r api.OperatorRequest) (api.Done, error) {
	return api.Done{Sentence: r.Name + " may " + r.Right + " the mesh"}, b.called(r)
}

// RemoveOperator implements api.Backend.
func (b *Backend) RemoveOperator(_ context.Context, name string) (api.Done, error) {
	return api.Done{Sentence: name + " is no operator any more"}, b.called(name)
}

// Authorities implements api.Backend.
func (b *Backend) Authorities(context.Context) (api.Authorities, error) { return b.CADoc, b.Err }

// RotateCA implements api.Backend.
func (b *Backend) RotateCA(context.Context) (api.Done, error) {
	return api.Done{Sentence: "certificates are made by a new CA"}, b.called("rotate")
}

// Settings implements api.Backend.
func (b *Backend) Settings(context.Context) (api.Settings, error) { return b.SettingDoc, b.Err }

// SetSettings implements api.Backend.
func (b *Backend) SetSettings(_ context.Context, r api.SettingsRequest) (api.Settings, error) {
	return b.SettingDoc, b.called(r)
}

// DialNode implements api.Backend: by Others, the socket of each node that there is.
func (b *Backend) DialNode(ctx context.Context, node string) (net.Conn, error) {
	socket, ok := b.Others[node]
	if !ok {
		return nil, api.Errorf(api.CodeNotFound, "meshctl nodes lists them", "There is no node %q", node)
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", socket)
}

// Serve serves b on a socket of its own for the length of the test.
func Serve(t testing.TB, b api.Backend) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	ServeAt(t, b, socket)
	return socket
}

// ServeAt serves b on a socket until stop is called or the test ends.
func ServeAt(t testing.TB, b api.Backend, socket string) (stop func()) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	l, err := api.Listen(socket, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.NewServer(b, log).Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// ID gives a node id for a test.
func ID(n byte) mesh.NodeID { return mesh.NodeID{7: n} }

func addrs(s ...string) (l []netip.Addr) {
	for _, a := range s {
		l = append(l, netip.MustParseAddr(a))
	}
	return l
}

func prefixes(s ...string) (l []netip.Prefix) {
	for _, p := range s {
		l = append(l, netip.MustParsePrefix(p))
	}
	return l
}

func ago(d time.Duration) time.Time { return Now.Add(-d) }
