package api

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"testing"
)

// No body and no query of any route crashes the server or makes it answer with
// anything but JSON; what is refused is refused as the client's fault.
func FuzzRequest(f *testing.F) {
	table := routes()
	for _, body := range []string{
		"", "{}", "null", "[]", "{\"token\":\"t\"}", `{"mesh":"acme","pool4":"10.86.0.0/16","pool6":"fd00::/48"}`,
		`{"uses":-1}`, `{"ttl_ms":1e308}`, `{"prefixes":["10.0.0.0/8","10.0.0.0/8"]}`, `{"x":1}`, `{} {}`, `{"pool4":"::/0"}`,
		"to=a&from=b", "node=x&count=99999999999", "since=-1", "node=x&interval_ms=NaN", "follow=perhaps", "to=a&to=b", "%zz",
		`{"mode":"hub","hub":"x"}`, `{"pin":[{"a":"x","b":"y"}]}`, `{"node":"x","tags":null,"max_degree":-1}`, `{"target":"a:b/c","wait_ms":1}`, "target=a%2Fb",
		`{"node":"x","prefixes":["10.0.0.0/8"],"shared":["10.0.0.0/9"]}`, `{"name":"x","addr":"10.86.0.9"}`, `{"name":"x","right":"read","key":"AAAA"}`, `{"plan":"x"}`, `{"voters":2}`, `{"cache_max_age_ms":1e300}`, `{"voters":null}`, "from=18446744073709551616", "consistent=1",
	} {
		for i := range table {
			f.Add(uint8(i), []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, input []byte) {
		r := table[int(which)%len(table)]
		req := httptest.NewRequest(r.method, placed(r.path), bytes.NewReader(input))
		if r.method != http.MethodPost {
			req.URL.RawQuery = string(input)
		}
		s := NewServer(&countingBackend{}, slog.New(slog.DiscardHandler))
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, req.WithContext(withAccess(t.Context(), func() Access { return Access{Right: Change} })))
		s.work.Wait()
		switch w.Code {
		case http.StatusOK, http.StatusBadRequest, http.StatusNotFound:
		default:
			t.Fatalf("%s %s: status %d %s", r.method, r.path, w.Code, w.Body)
		}
		for line := range bytes.Lines(w.Body.Bytes()) {
			if !json.Valid(line) {
				t.Fatalf("%s %s: not JSON: %q", r.method, r.path, line)
			}
		}
	})
}

// What the client writes into a query, the server reads back.
func FuzzQueryRoundTrip(f *testing.F) {
	f.Add("paris-1", 3, 20.5, uint64(7))
	f.Add("a&b=c/%00", -1, 1e6, uint64(1<<63))
	f.Fuzz(func(t *testing.T, node string, count int, interval float64, since uint64) {
		if len(node) > maxText || interval != interval {
			return
		}
		want := PingQuery{Node: node, Count: count, IntervalMs: interval, Since: since}
		req := httptest.NewRequest("GET", "/v1/ping", nil)
		req.URL = &url.URL{Path: "/v1/ping", RawQuery: parameters(want).Encode()}
		var got PingQuery
		if err := decodeQuery(req, reflect.ValueOf(&got).Elem()); err != nil || got != want {
			t.Fatalf("%+v became %+v, %v", want, got, err)
		}
	})
}
