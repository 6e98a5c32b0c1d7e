package api

import (
	"cmp"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	testPolicy = policy{self: 1000, overflow: 65534, group: 86, hasGroup: true}
	peers      = []struct {
		name string
		peer Peer
		want Right
	}{
		{"root", Peer{UID: 0, GID: 0}, Change},
		{"owner", Peer{UID: 1000, GID: 1000}, Change},
		{"member by primary group", Peer{UID: 2000, GID: 86}, Read},
		{"member by supplementary group", Peer{UID: 2001, GID: 2001, Groups: []uint32{4, 86}}, Read},
		{"other", Peer{UID: 2002, GID: 2002, Groups: []uint32{4}}, NoRight},
		{"other in group root", Peer{UID: 2003, GID: 0, Groups: []uint32{0}}, NoRight},
		{"unmapped", Peer{UID: 65534, GID: 65534}, NoRight},
	}
)

func TestRightOfPeers(t *testing.T) {
	for _, p := range peers {
		if got := testPolicy.right(p.peer); got != p.want {
			t.Errorf("%s: %s, want %s", p.name, got, p.want)
		}
	}
	nogroup := policy{self: 1000, overflow: 65534}
	if got := nogroup.right(Peer{UID: 2000}); got != NoRight {
		t.Errorf("gid 0 stands for the missing group: %s", got)
	}
	nobody := policy{self: 65534, overflow: 65534}
	if got := nobody.right(Peer{UID: 65534}); got != NoRight {
		t.Errorf("an unmapped peer is taken for a daemon that runs as nobody: %s", got)
	}
}

// bodies are valid requests of the calls that do not take an empty one.
var bodies = map[string]string{
	"/v1/join":           `{"token":"t"}`,
	"/v1/topology":       `{"mode":"auto"}`,
	"/v1/topology/pairs": `{"pin":[{"a":"x","b":"y"}]}`,
	"/v1/node":           `{"node":"x"}`,
	"/v1/drains":         `{"target":"x"}`,
	"/v1/revoke":         `{"node":"x"}`,
	"/v1/grant":          `{"node":"x","prefixes":["10.9.0.0/16"]}`,
	"/v1/reservations":   `{"name":"x","addr":"10.86.0.9"}`,
	"/v1/operators":      `{"name":"x","key":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","right":"read"}`,
	"/v1/settings":       `{"voters":3}`,
}

// placed fills what a path holds.
func placed(path string) string {
	return strings.NewReplacer("{id}", "k7", "{name}", "k7").Replace(path)
}

// example makes a valid request of a route.
func (r route) example() *http.Request {
	target := placed(r.path)
	switch r.method + " " + r.path {
	case "GET /v1/path":
		target += "?to=x"
	case "DELETE /v1/drains":
		target += "?target=x"
	case "GET /v1/ping":
		target += "?node=x&count=1"
	}
	body := ""
	if r.method == http.MethodPost {
		body = cmp.Or(bodies[r.path], "{}")
	}
	return httptest.NewRequest(r.method, target, strings.NewReader(body))
}

// A caller is one kind of who may call, and what the calls of each kind answer.
type caller struct {
	name  string
	as    Access
	right Right // that counts for routes that are not local
	code  int   // of a refusal
}

// callers are all kinds: those on the machine by their credentials, and those
// from elsewhere by what the log says of their key.
func callers() (all []caller) {
	for _, p := range peers {
		all = append(all, caller{"on the socket: " + p.name, testPolicy.access(p.peer), p.want, http.StatusForbidden})
	}
	gone := Errorf(CodeRevoked, "", "it was removed")
	over := Errorf(CodeForbidden, "", "its time is over")
	return append(all,
		caller{"on the socket: no credentials", Access{Who: "nobody"}, NoRight, http.StatusForbidden},
		caller{"remote: nobody", Access{Who: "nobody", remote: true}, NoRight, http.StatusUnauthorized},
		caller{"remote: node", Access{Who: "paris-1", Right: Member, remote: true}, Member, http.StatusForbidden},
		caller{"remote: other node", Access{Who: "rome-1", Right: Member, remote: true}, Member, http.StatusForbidden},
		caller{"remote: operator read", Access{Who: "ann", Right: Read, remote: true}, Read, http.StatusForbidden},
		caller{"remote: operator change", Access{Who: "bob", Right: Change, remote: true}, Change, http.StatusForbidden},
		caller{"remote: operator until later", Access{Who: "bob", Right: Change, Until: time.Now().Add(time.Hour), remote: true}, Change, http.StatusForbidden},
		caller{"remote: operator expired", Access{Who: "old", Refused: over, remote: true}, NoRight, http.StatusForbidden},
		caller{"remote: revoked", Access{Who: "gone", Refused: gone, remote: true}, NoRight, http.StatusForbidden},
	)
}

// TestB06EveryCallByEveryRole is made from the table of routes: each is called
// by everybody, is answered or refused as the right says, and when it is refused
// the backend does not hear of it.
func TestB06EveryCallByEveryRole(t *testing.T) {
	for _, r := range routes() {
		switch {
		case r.right == NoRight:
			t.Errorf("%s %s needs no right", r.method, r.path)
		case r.right == Member && r.path != "/v1/version":
			t.Errorf("%s %s is for every node", r.method, r.path)
		case r.right <= Read && r.method != http.MethodGet:
			t.Errorf("%s %s may be used by readers", r.method, r.path)
		}
		for _, c := range callers() {
			for _, on := range []string{"", "paris-1"} {
				b := &countingBackend{}
				s := NewServer(b, slog.New(slog.DiscardHandler))
				req := r.example()
				if on != "" {
					req.Header.Set(onHeader, on)
				}
				w := httptest.NewRecorder()
				s.handler.ServeHTTP(w, req.WithContext(withAccess(t.Context(), func() Access { return c.as })))
				s.work.Wait()
				allowed := c.right >= r.right && !(r.local && (c.as.remote || on != ""))
				want := http.StatusOK
				switch {
				case !allowed && c.right >= r.right:
					want = http.StatusForbidden
				case !allowed:
					want = c.code
				case on != "":
					want = http.StatusBadGateway // nobody is there
				case r.path == "/v1/join" && r.method == http.MethodGet:
					want = http.StatusNotFound // none was tried
				}
				if c.as.remote && on != "" && c.right > NoRight {
					want, allowed = http.StatusBadRequest, false // no chains
				}
				if w.Code != want {
					t.Errorf("%s %s by %s, on %q: status %d, want %d: %s", r.method, r.path, c.name, on, w.Code, want, w.Body)
				} else if !allowed && b.calls.Load() > 0 {
					t.Errorf("%s %s by %s: refused, and yet the backend was asked", r.method, r.path, c.name)
				}
			}
		}
	}
}

// TestB07DestructiveCallsAreLocal: what ends or begins a membership, or the
// mesh, is done on the machine itself.
func TestB07DestructiveCallsAreLocal(t *testing.T) {
	want := []string{
		"GET /v1/join", "POST /v1/init", "POST /v1/join", "POST /v1/leave", "POST /v1/raft/recover", "POST /v1/teardown",
	}
	var local []string
	for _, r := range routes() {
		if r.local {
			local = append(local, r.method+" "+r.path)
		}
	}
	slices.Sort(local)
	if !slices.Equal(local, want) {
		t.Errorf("local are %q, want %q", local, want)
	}
}

// Every code has a row with a sane status and exit code.
func TestCodes(t *testing.T) {
	for code, c := range codes {
		e := Errorf(code, "", "x")
		if e.Status() != c.status || c.status < 400 || http.StatusText(c.status) == "" {
			t.Errorf("%s: status %d", code, e.Status())
		}
		if got := ExitCode(e); got < ExitUnexpected || got > ExitConflict || got == ExitDegraded && code != CodeCorrupt {
			t.Errorf("%s: exit code %d", code, got)
		}
	}
	if e := Errorf("never-heard-of", "", "x"); e.Status() != 500 || ExitCode(e) != ExitUnexpected {
		t.Error("an unknown code is not internal")
	}
}
