package api

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// TestB23RequestsAreNotLogged: whatever is sent to whatever call, in the right
// place or a wrong one, does not come into the log at debug level.
func TestB23RequestsAreNotLogged(t *testing.T) {
	const secret = "gw1canarycanarycanarycanarycanary"
	var log bytes.Buffer
	s := NewServer(&countingBackend{}, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	asked := 0
	ask := func(r route, path, body string) {
		req := httptest.NewRequest(r.method, path, strings.NewReader(body))
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, req.WithContext(withAccess(t.Context(), func() Access { return Access{Who: "root", Right: Change} })))
		_, _ = io.Copy(io.Discard, w.Body)
		asked++
	}
	for _, r := range routes() {
		path := placed(r.path)
		if r.method != http.MethodPost {
			for _, field := range []string{"node", "id", "to", "since", "token"} {
				ask(r, path+"?"+url.Values{field: {secret}}.Encode(), "")
			}
			continue
		}
		for _, field := range []string{"token", "name", "node", "id", "plan", "mesh"} {
			body, err := json.Marshal(map[string]any{field: secret})
			if err != nil {
				t.Fatal(err)
			}
			ask(r, path, string(body))
		}
		ask(r, path, secret)
		ask(r, path, `{"token":["`+secret+`"]}`)
		ask(r, path, `{"token":"`+secret)
		ask(r, path+"?token="+secret, "{}")
	}
	s.work.Wait()
	switch {
	case asked < 100:
		t.Errorf("only %d calls were made", asked)
	case !strings.Contains(log.String(), "/v1/join"):
		t.Error("nothing is logged at all")
	case strings.Contains(log.String(), "canary"):
		t.Errorf("a secret is in the log:\n%s", log.String())
	}
}
