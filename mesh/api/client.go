package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// A Client talks to the daemon on one socket. Its methods may be called from
// many goroutines; each returns an *Error when the daemon refused, is not
// running, or may not be asked.
type Client struct {
	socket string // empty: elsewhere
	on     string // node that the daemon is to ask in its place; empty: none
	http   *http.Client
}

// Dial makes a client for the socket. It connects with the first call.
func Dial(socket string) *Client {
	c := DialWith(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	})
	c.socket = socket
	return c
}

// DialWith makes a client for a daemon elsewhere, to which dial connects with
// the first call.
func DialWith(dial func(context.Context) (net.Conn, error)) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dial(ctx)
			if err != nil {
				err = &unreached{err}
			}
			return conn, err
		},
		DisableCompression: true,
	}}}
}

// An unreached is why no connection was made.
type unreached struct{ error }

func (u *unreached) Unwrap() error { return u.error }

// On makes the daemon pass every call on to another node, by name or id, where
// the daemon's node needs the right to it.
func (c *Client) On(node string) { c.on = node }

// Close frees idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Version asks for the daemon's build.
func (c *Client) Version(ctx context.Context) (VersionInfo, error) {
	return ask[VersionInfo](ctx, c, "GET", "/v1/version", nil)
}

// Status asks for health, identity, uplinks and counts.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, c, "GET", "/v1/status", nil)
}

// Nodes asks for all members.
func (c *Client) Nodes(ctx context.Context, q NodesQuery) (Nodes, error) {
	return ask[Nodes](ctx, c, "GET", "/v1/nodes?"+parameters(q).Encode(), nil)
}

// Links asks for all links of the node.
func (c *Client) Links(ctx context.Context) (Links, error) {
	return ask[Links](ctx, c, "GET", "/v1/links", nil)
}

// Netcheck asks what the node's networks let through.
func (c *Client) Netcheck(ctx context.Context) (Netcheck, error) {
	return ask[Netcheck](ctx, c, "GET", "/v1/netcheck", nil)
}

// Routes asks for all prefixes.
func (c *Client) Routes(ctx context.Context) (Routes, error) {
	return ask[Routes](ctx, c, "GET", "/v1/routes", nil)
}

// Path asks how a packet travels.
func (c *Client) Path(ctx context.Context, q PathQuery) (Path, error) {
	return ask[Path](ctx, c, "GET", "/v1/path?"+parameters(q).Encode(), nil)
}

// Init makes a mesh on the daemon's host.
func (c *Client) Init(ctx context.Context, r InitRequest) (Enrolled, error) {
	return ask[Enrolled](ctx, c, "POST", "/v1/init", r)
}

// CreateToken makes a token.
func (c *Client) CreateToken(ctx context.Context, r TokenRequest) (CreatedToken, error) {
	return ask[CreatedToken](ctx, c, "POST", "/v1/tokens", r)
}

// Tokens asks for the tokens that can still be used.
func (c *Client) Tokens(ctx context.Context) (Tokens, error) {
	return ask[Tokens](ctx, c, "GET", "/v1/tokens", nil)
}

// RevokeToken makes a token unusable.
func (c *Client) RevokeToken(ctx context.Context, id string) (Done, error) {
	return ask[Done](ctx, c, "DELETE", "/v1/tokens/"+url.PathEscape(id), nil)
}

// Topology asks who should have links to whom.
func (c *Client) Topology(ctx context.Context) (Topology, error) {
	return ask[Topology](ctx, c, "GET", "/v1/topology", nil)
}

// SetTopology chooses how neighbours are chosen.
func (c *Client) SetTopology(ctx context.Context, r TopologyRequest) (Done, error) {
	return ask[Done](ctx, c, "POST", "/v1/topology", r)
}

// SetPairs pins and forbids pairs of nodes.
func (c *Client) SetPairs(ctx context.Context, r PairsRequest) (Done, error) {
	return ask[Done](ctx, c, "POST", "/v1/topology/pairs", r)
}

// SetNode changes what operators decide about one node.
func (c *Client) SetNode(ctx context.Context, r NodeRequest) (Done, error) {
	return ask[Done](ctx, c, "POST", "/v1/node", r)
}

// Drains asks what is drained.
func (c *Client) Drains(ctx context.Context) (Drains, error) {
	return ask[Drains](ctx, c, "GET", "/v1/drains", nil)
}

// Drain takes something out of use and waits as long as r says.
func (c *Client) Drain(ctx context.Context, r DrainRequest) (Drained, error) {
	return ask[Drained](ctx, c, "POST", "/v1/drains", r)
}

// Undrain takes something back into use.
func (c *Client) Undrain(ctx context.Context, target string) (Done, error) {
	return ask[Done](ctx, c, "DELETE", "/v1/drains?"+parameters(UndrainQuery{target}).Encode(), nil)
}

// Leave takes the node out of the mesh.
func (c *Client) Leave(ctx context.Context) (Done, error) {
	return ask[Done](ctx, c, "POST", "/v1/leave", nil)
}

// Teardown removes what the daemon made in the kernel.
func (c *Client) Teardown(ctx context.Context) (Done, error) {
	return ask[Done](ctx, c, "POST", "/v1/teardown", nil)
}

// Raft asks who keeps the log of the mesh.
func (c *Client) Raft(ctx context.Context) (RaftStatus, error) {
	return ask[RaftStatus](ctx, c, "GET", "/v1/raft", nil)
}

// Recover plans a recovery, or carries a plan out.
func (c *Client) Recover(ctx context.Context, r RecoverRequest) (RecoverPlan, error) {
	return ask[RecoverPlan](ctx, c, "POST", "/v1/raft/recover", r)
}

// Audit gives each record of the audit trail to each. What was given is proven
// when it returns nil.
func (c *Client) Audit(ctx context.Context, q AuditQuery, each func(AuditRecord) error) error {
	return listen(ctx, c, "GET", "/v1/audit?"+parameters(q).Encode(), nil, each)
}

// Revoke removes a node for ever.
func (c *Client) Revoke(ctx context.Context, node string) (Done, error) {
	return ask[Done](ctx, c, "POST", "/v1/revoke", NodeQuery{node})
}

// Grant sets the networks of a node.
func (c *Client) Grant(ctx context.Context, r GrantRequest) (Done, error) {
	return ask[Done](ctx, c, "POST", "/v1/grant", r)
}

// Reservations asks for the addresses kept for nodes to come.
func (c *Client) Reservations(ctx context.Context) (Reservations, error) {
	return ask[Reservations](ctx, c, "GET", "/v1/reservations", nil)
}

// Reserve keeps an address for a node to come.
func (c *Client) Reserve(ctx context.Context, r ReserveRequest) (Done, error) {
	return ask[Done](ctx, c, "POST", "/v1/reservations", r)
}

// Unreserve gives a kept address back.
func (c *Client) Unreserve(ctx context.Context, name string) (Done, error) {
	return ask[Done](ctx, c, "DELETE", "/v1/reservations/"+url.PathEscape(name), nil)
}

// Operators asks who may change the mesh.
func (c *Client) Operators(ctx context.Context) (Operators, error) {
	return ask[Operators](ctx, c, "GET", "/v1/operators", nil)
}

// SetOperator makes somebody without a node an operator.
func (c *Client) SetOperator(ctx context.Context, r OperatorRequest) (Done, error) {
	return ask[Done](ctx, c, "POST", "/v1/operators", r)
}

// RemoveOperator ends what an operator without a node may do.
func (c *Client) RemoveOperator(ctx context.Context, name string) (Done, error) {
	return ask[Done](ctx, c, "DELETE", "/v1/operators/"+url.PathEscape(name), nil)
}

// Authorities asks for the CAs of the mesh.
func (c *Client) Authorities(ctx context.Context) (Authorities, error) {
	return ask[Authorities](ctx, c, "GET", "/v1/ca", nil)
}

// RotateCA gives the mesh another CA.
func (c *Client) RotateCA(ctx context.Context) (Done, error) {
	return ask[Done](ctx, c, "POST", "/v1/ca/rotate", nil)
}

// Settings asks for the settings of the mesh.
func (c *Client) Settings(ctx context.Context) (Settings, error) {
	return ask[Settings](ctx, c, "GET", "/v1/settings", nil)
}

// SetSettings changes settings of the mesh.
func (c *Client) SetSettings(ctx context.Context, r SettingsRequest) (Settings, error) {
	return ask[Settings](ctx, c, "POST", "/v1/settings", r)
}

// Ping gives each outcome to each, until the daemon has sent all, each returns
// an error, or ctx ends. ErrBroken: resume with Since of the last index.
func (c *Client) Ping(ctx context.Context, q PingQuery, each func(PingReply) error) error {
	return listen(ctx, c, "GET", "/v1/ping?"+parameters(q).Encode(), nil, each)
}

// Events gives each event to each, as Ping does.
func (c *Client) Events(ctx context.Context, q EventsQuery, each func(Event) error) error {
	return listen(ctx, c, "GET", "/v1/events?"+parameters(q).Encode(), nil, each)
}

// Join joins a mesh and gives each step of the transcript to each; the last
// one has Result. When the stream breaks off but the daemon lives, it resumes.
// When ctx ends, the join goes on in the daemon.
func (c *Client) Join(ctx context.Context, r JoinRequest, each func(JoinStep) error) error {
	var last uint64
	finished := false
	follow := func(s JoinStep) error {
		last, finished = s.Index, s.Result != nil
		return each(s)
	}
	err := listen(ctx, c, "POST", "/v1/join", r, follow)
	for tries := 0; errors.Is(err, ErrBroken) && !finished && tries < 3; tries++ {
		err = c.WatchJoin(ctx, last, follow)
	}
	if finished && errors.Is(err, ErrBroken) {
		return nil
	}
	return err
}

// WatchJoin gives the transcript of the current or last join after index since.
func (c *Client) WatchJoin(ctx context.Context, since uint64, each func(JoinStep) error) error {
	return listen(ctx, c, "GET", "/v1/join?"+parameters(SinceQuery{since}).Encode(), nil, each)
}

// ask makes a call that answers with one document.
func ask[R any](ctx context.Context, c *Client, method, path string, request any) (R, error) {
	var reply R
	limit := readLimit
	if method != http.MethodGet {
		limit = changeLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit+clientGrace)
	defer cancel()
	body, err := c.open(ctx, method, path, request)
	if err != nil {
		return reply, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxReply))
	if err != nil {
		return reply, c.explain(ctx, err)
	}
	if err := json.Unmarshal(b, &reply); err != nil {
		return reply, fmt.Errorf("read the answer of meshd: %w", err)
	}
	return reply, nil
}

// listen makes a call that answers with a stream.
func listen[R any](ctx context.Context, c *Client, method, path string, request any, each func(R) error) error {
	body, err := c.open(ctx, method, path, request)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxRecord)
	for lines.Scan() {
		var end failure
		if err := json.Unmarshal(lines.Bytes(), &end); err == nil && end.Error != nil {
			return end.Error
		}
		var record R
		if err := json.Unmarshal(lines.Bytes(), &record); err != nil {
			return fmt.Errorf("read the stream of meshd: %w", err)
		}
		if err := each(record); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return c.explain(ctx, err)
	}
	return nil
}

// open sends a request and gives the body of a good answer.
func (c *Client) open(ctx context.Context, method, path string, request any) (io.ReadCloser, error) {
	var body io.Reader
	if request != nil {
		b, err := json.Marshal(request)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://meshd"+path, body)
	if err != nil {
		return nil, err
	}
	if c.on != "" {
		req.Header.Set(onHeader, c.on)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var e Error
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRecord))
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if json.Unmarshal(b, &e) != nil || e.Code == "" {
		return nil, fmt.Errorf("what answers %s is not meshd: it says %s", c.where(), resp.Status)
	}
	return nil, &e
}

// where says where the daemon should be.
func (c *Client) where() string {
	if c.socket == "" {
		return "there"
	}
	return "on " + c.socket
}

// explain turns an error of the transport into one for people.
func (c *Client) explain(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Errorf(CodeTimeout, "see the log of meshd", "meshd did not answer in time")
	case ctx.Err() != nil:
		return ctx.Err()
	case c.socket == "":
		if why, ok := errors.AsType[*unreached](err); ok {
			return Errorf(CodeUnreachable, "name another node: --server HOST", "No node answers: %s", strings.ReplaceAll(why.Error(), "\n", "; "))
		}
		return errors.Join(Errorf(CodeUnreachable, "ask again, or name another node: --server HOST", "The connection to the node broke off"), ErrBroken)
	case errors.Is(err, fs.ErrNotExist):
		return Errorf(CodeNotRunning, "start it with: meshd --config /etc/guywire/meshd.yaml",
			"meshd is not running here (no socket %s)", c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return Errorf(CodeNotRunning, "start it with: meshd --config /etc/guywire/meshd.yaml",
			"meshd is not running here (nobody answers on %s)", c.socket)
	case errors.Is(err, fs.ErrPermission):
		return Errorf(CodeForbidden, "run it as root, or have root add you to group "+GroupName+"",
			"You may not open the socket %s", c.socket)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return ErrBroken
	default:
		return fmt.Errorf("ask meshd: %w", err)
	}
}

// clientGrace is what a client waits beyond the server's own limit, so that
// the server's sentence arrives and not the client's.
const clientGrace = 5 * time.Second
