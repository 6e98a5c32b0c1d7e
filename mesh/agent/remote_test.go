package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/api/apitest"
	"guywire/mesh/control"
	"guywire/mesh/keyring"
	"guywire/mesh/transport"
	"guywire/store"
	"guywire/store/disk"
	"guywire/store/raftstore"
)

// patient is for how long a test waits for what happens at once on an idle machine.
const patient = 50 * time.Second

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patient); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("still not so: %s", what)
		}
	}
}

var testPorts atomic.Uint32

// planeConfig is of a machine of its own, on a loopback address of its own.
func planeConfig(t *testing.T) control.Config {
	t.Helper()
	state, err := disk.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Create(state)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Generate(1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(ring.Close(), state.Close()) })
	pid := os.Getpid()
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(1 + pid%250), byte(pid / 250), byte(100 + testPorts.Add(1))}), 21000)
	return control.Config{
		State: state, Ring: ring, Listen: at.String(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Advertise: func() []netip.AddrPort { return []netip.AddrPort{at} },
		Overlay:   func(store.Node) []netip.AddrPort { return nil },
		Timing:    raftstore.Timing{Heartbeat: 400 * time.Millisecond, Election: 400 * time.Millisecond, Lease: 300 * time.Millisecond, Commit: 20 * time.Millisecond},
	}
}

// runPlane runs what Init or Join made until the test ends.
func runPlane(t *testing.T, p *control.Plane, err error) *control.Plane {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = p.Run(ctx) // the revoked one ends with its reason
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return p
}

// joined adds a node with roles.
func joined(t *testing.T, through *control.Plane, name string, roles ...store.NodeRole) *control.Plane {
	t.Helper()
	text, _, err := through.CreateToken(t.Context(), control.TokenRequest{Name: name, Roles: roles})
	if err != nil {
		t.Fatal(err)
	}
	p, err := control.Join(t.Context(), planeConfig(t), text, control.JoinRequest{Name: name}, nil)
	return runPlane(t, p, err)
}

// TestB06EveryCallByEveryRole is the matrix of mesh/api with real connections:
// every call of the OpenAPI document, by mutual TLS, by everybody whom the log
// tells apart.
func TestB06EveryCallByEveryRole(t *testing.T) {
	founder, err := control.Init(t.Context(), planeConfig(t), control.InitRequest{
		Mesh: "lab", Name: "one", Pool4: netip.MustParsePrefix("10.86.0.0/16"), Pool6: netip.MustParsePrefix("fd12:3456:789a::/48"),
	})
	one := runPlane(t, founder, err)
	node, other, operator := joined(t, one, "node"), joined(t, one, "other"), joined(t, one, "operator", store.NodeOperator)
	gone := joined(t, one, "gone")

	// The one that is asked: the real server and the real right, before a backend that does nothing.
	m := &member{plane: one, self: one.ID()}
	server := api.NewServer(apitest.New(), slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { served <- server.ServeRemote(ctx, one.API(), m.access) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()

	address := one.State().Nodes[one.ID()].Control[0]
	dial := func(ctx context.Context, certificate *tls.Certificate) (net.Conn, error) {
		d := &transport.Dialer{Trust: transport.Trust{Certificate: func() *tls.Certificate { return certificate }, Pins: one.State().Pins}}
		return d.DialNode(ctx, address, one.ID(), transport.API)
	}
	person := func(name string, right store.Right, expires time.Time) func(context.Context) (net.Conn, error) {
		t.Helper()
		key, err := keyring.NewCredential(name, one.State().Mesh.ID, one.State().Pins(), []netip.AddrPort{address})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := one.Operate(t.Context(), store.Command{SetOperator: &store.SetOperator{Name: name, Operator: store.Operator{Key: key.Identity(), Right: right, Expires: expires}}}); err != nil {
			t.Fatal(err)
		}
		certificate, err := transport.SelfSigned(key.Signer(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return func(ctx context.Context) (net.Conn, error) { return dial(ctx, certificate) }
	}
	as := func(p *control.Plane) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) { return p.DialAPI(ctx, one.ID()) }
	}
	soon := time.Now().Add(2 * time.Second)
	callers := []struct {
		name  string
		dial  func(context.Context) (net.Conn, error)
		right api.Right
		code  int // of a refusal
	}{
		{"nobody", func(ctx context.Context) (net.Conn, error) { return dial(ctx, nil) }, api.NoRight, http.StatusUnauthorized},
		{"node", as(node), api.Member, http.StatusForbidden},
		{"other node", as(other), api.Member, http.StatusForbidden},
		{"node with the operator role", as(operator), api.Change, http.StatusForbidden},
		{"operator read", person("reader", store.RightRead, time.Time{}), api.Read, http.StatusForbidden},
		{"operator change", person("changer", store.RightChange, time.Time{}), api.Change, http.StatusForbidden},
		{"operator with time left", person("guest", store.RightChange, time.Now().Add(time.Hour)), api.Change, http.StatusForbidden},
		{"operator expired", person("late", store.RightChange, soon), api.NoRight, http.StatusForbidden},
		{"operator removed", person("former", store.RightChange, time.Time{}), api.NoRight, 0},
		{"revoked", as(gone), api.NoRight, 0},
	}
	// Their rights end while they have connections.
	var open []net.Conn
	for _, c := range callers {
		if c.code != 0 {
			continue
		}
		conn, err := c.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	if err := one.Revoke(t.Context(), gone.ID()); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Operate(t.Context(), store.Command{RemoveOperator: &store.RemoveOperator{Name: "former"}}); err != nil {
		t.Fatal(err)
	}
	for _, conn := range open {
		_ = conn.SetReadDeadline(time.Now().Add(patient))
		if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a connection outlives the right of who made it")
		}
		_ = conn.Close()
	}
	eventually(t, "the time of the late operator is over", func() bool { return time.Now().After(soon) })

	var document struct {
		Paths map[string]map[string]struct {
			Description string `json:"description"`
		} `json:"paths"`
	}
	b, err := json.Marshal(api.OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &document); err != nil {
		t.Fatal(err)
	}
	for _, c := range callers {
		client := &http.Client{Timeout: patient, Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		}}
		calls := 0
		for path, methods := range document.Paths {
			for method, call := range methods {
				calls++
				needs, local, allowed := strings.TrimPrefix(call.Description, "Right: "), false, false
				needs, local = strings.CutSuffix(needs, ", on the machine itself only")
				for right := api.Member; right <= c.right; right++ {
					allowed = allowed || right.String() == needs && !local
				}
				request, err := http.NewRequestWithContext(t.Context(), strings.ToUpper(method), "http://x"+strings.NewReplacer("{", "", "}", "").Replace(path), http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				answer, err := client.Do(request)
				if c.code == 0 { // who is cut off may be refused before the call
					if err == nil {
						if answer.StatusCode != http.StatusForbidden && answer.StatusCode != http.StatusUnauthorized {
							t.Errorf("%s %s by %s: status %d", method, path, c.name, answer.StatusCode)
						}
						_ = answer.Body.Close()
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s %s by %s: %v", method, path, c.name, err)
				}
				body, _ := io.ReadAll(answer.Body)
				_ = answer.Body.Close()
				refused := answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden
				if refused == allowed || refused && answer.StatusCode != c.code {
					t.Errorf("%s %s by %s: status %d, allowed is %v: %s", method, path, c.name, answer.StatusCode, allowed, body)
				}
			}
		}
		client.CloseIdleConnections()
		if calls < 30 {
			t.Errorf("the document has %d calls", calls)
		}
	}
}

// What the log and the clock say of a caller is what it may do.
func TestAccess(t *testing.T) {
	now := time.Now()
	id := mesh.NodeID{1}
	for _, tt := range []struct {
		name    string
		who     control.Principal
		right   api.Right
		refused bool
	}{
		{"nobody", control.Principal{}, api.NoRight, false},
		{"a key that the log does not know", control.Principal{ID: id}, api.NoRight, true},
		{"node", control.Principal{ID: id, Role: store.RoleNode}, api.Member, false},
		{"voter", control.Principal{ID: id, Role: store.RoleNode | store.RoleVoter}, api.Member, false},
		{"operator's node", control.Principal{ID: id, Role: store.RoleNode | store.RoleReader | store.RoleOperator}, api.Change, false},
		{"operator's node with an expired certificate", control.Principal{ID: id, Role: store.RoleNode | store.RoleReader | store.RoleOperator, Stale: true}, api.Member, false},
		{"reader", control.Principal{ID: id, Role: store.RoleReader}, api.Read, false},
		{"operator", control.Principal{ID: id, Role: store.RoleReader | store.RoleOperator, Expires: now.Add(time.Second)}, api.Change, false},
		{"expired", control.Principal{ID: id, Expires: now}, api.NoRight, true},
		{"revoked", control.Principal{ID: id, Role: store.RoleRevoked}, api.NoRight, true},
	} {
		a := accessOf(tt.who, now)
		if a.Right != tt.right || (a.Refused != nil) != tt.refused || !a.Until.Equal(tt.who.Expires) && a.Refused == nil {
			t.Errorf("%s: %+v", tt.name, a)
		}
	}
}
