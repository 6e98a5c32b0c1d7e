package api

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
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
}

// Every route, for every kind of peer: refused exactly when the peer lacks the
// right, and then before the backend hears of it.
func TestRightsMatrix(t *testing.T) {
	for _, r := range routes() {
		if r.right == NoRight {
			t.Errorf("%s %s needs no right", r.method, r.path)
		}
		if r.right == Read && r.method != http.MethodGet {
			t.Errorf("%s %s may be used by readers", r.method, r.path)
		}
		for _, p := range append(peers, struct {
			name string
			peer Peer
			want Right
		}{"no credentials", Peer{}, NoRight}) {
			b := &countingBackend{}
			s := NewServer(b, slog.New(slog.DiscardHandler))
			body := ""
			if r.method == http.MethodPost {
				body = `{}`
			}
			if b, needs := bodies[r.path]; needs && r.method == http.MethodPost {
				body = b
			}
			target := strings.ReplaceAll(r.path, "{id}", "k7")
			switch r.path {
			case "/v1/path":
				target += "?to=x"
			case "/v1/drains":
				if r.method == http.MethodDelete {
					target += "?target=x"
				}
			case "/v1/ping":
				target += "?node=x&count=1"
			}
			req := httptest.NewRequest(r.method, target, strings.NewReader(body))
			if p.name != "no credentials" {
				req = req.WithContext(withAccess(t.Context(), access{p.peer, testPolicy.right(p.peer)}))
			}
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, req)
			s.work.Wait()
			if allowed := p.want >= r.right; allowed != (w.Code != http.StatusForbidden) {
				t.Errorf("%s %s by %s: status %d %s", r.method, r.path, p.name, w.Code, w.Body)
			} else if !allowed && b.calls.Load() > 0 {
				t.Errorf("%s %s by %s: refused, and yet the backend was asked", r.method, r.path, p.name)
			} else if allowed && w.Code != http.StatusOK && !(r.path == "/v1/join" && r.method == "GET" && w.Code == http.StatusNotFound) {
				t.Errorf("%s %s by %s: status %d %s", r.method, r.path, p.name, w.Code, w.Body)
			}
		}
	}
}

// Every code has a row with a sane status and exit code.
func TestCodes(t *testing.T) {
	for code, c := range codes {
		e := Errorf(code, "", "x")
		if e.Status() != c.status || c.status < 400 || http.StatusText(c.status) == "" {
			t.Errorf("%s: status %d", code, e.Status())
		}
		if got := ExitCode(e); got < ExitUnexpected || got > ExitConflict || got == ExitDegraded {
			t.Errorf("%s: exit code %d", code, got)
		}
	}
	if e := Errorf("never-heard-of", "", "x"); e.Status() != 500 || ExitCode(e) != ExitUnexpected {
		t.Error("an unknown code is not internal")
	}
}
