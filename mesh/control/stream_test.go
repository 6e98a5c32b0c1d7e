package control

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"guywire/store"
	"guywire/store/raftstore"
)

func TestFramesRoundTrip(t *testing.T) {
	t.Parallel()
	b := changeFrame(nil, raftstore.Change{Prev: 3, Index: 9, Command: []byte("hello")})
	b = appendFrame(b, frameHeartbeat, []byte(`{"index":7}`))
	r := bytes.NewReader(b)
	kind, payload, err := readFrame(r)
	if err != nil || kind != frameChange {
		t.Fatalf("%c %v", kind, err)
	}
	if c, err := parseChange(payload); err != nil || c.Prev != 3 || c.Index != 9 || string(c.Command) != "hello" {
		t.Errorf("change %+v, %v", c, err)
	}
	kind, payload, err = readFrame(r)
	if err != nil || kind != frameHeartbeat || string(payload) != `{"index":7}` {
		t.Errorf("%c %q %v", kind, payload, err)
	}
	for _, bad := range [][]byte{{}, {'X', 0, 0, 0, 0}, {'H', 0xff, 0xff, 0xff, 0xff}, {'C', 0, 0, 0, 9, 1}} {
		if _, _, err := readFrame(bytes.NewReader(bad)); err == nil {
			t.Errorf("frame % x was read", bad)
		}
	}
}

func TestChangesMustContinueTheState(t *testing.T) {
	t.Parallel()
	command, err := store.EncodeCommand(store.Command{Now: time.Unix(1e9, 0), RevokeToken: &store.RevokeToken{ID: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	state := store.New()
	change := func(prev, index uint64) []byte {
		return changeFrame(nil, raftstore.Change{Prev: prev, Index: index, Command: command})[frameHeader:]
	}
	state, _, err = next(state, frameChange, change(0, 4))
	if err != nil || state.Index != 4 {
		t.Fatalf("state at %d, %v", state.Index, err)
	}
	for _, c := range [][2]uint64{{0, 4}, {5, 6}, {4, 4}, {4, 3}} { // again, a gap, no progress, backwards
		after, _, err := next(state, frameChange, change(c[0], c[1]))
		if !errors.Is(err, errGap) || after != state {
			t.Errorf("change %d after %d: %v", c[1], c[0], err)
		}
	}
}

// FuzzStream: whatever a voter sends, the follower does not panic, take memory
// for what did not come, or go back.
func FuzzStream(f *testing.F) {
	snapshot, err := store.Snapshot(store.New())
	if err != nil {
		f.Fatal(err)
	}
	command, err := store.EncodeCommand(store.Command{Now: time.Unix(1e9, 0), RevokeToken: &store.RevokeToken{ID: "x"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(appendFrame(nil, frameSnapshot, snapshot))
	f.Add(changeFrame(appendFrame(nil, frameHeartbeat, []byte(`{"index":1}`)), raftstore.Change{Index: 2, Command: command}))
	f.Add([]byte("S\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		state := store.New()
		for {
			kind, payload, err := readFrame(r)
			if err != nil {
				return
			}
			after, _, err := next(state, kind, payload)
			if err != nil {
				return
			}
			if kind == frameChange && after.Index <= state.Index {
				t.Fatalf("a change led from %d to %d", state.Index, after.Index)
			}
			state = after
		}
	})
}

// FuzzBodies: no request body makes a decoder panic, and what is decoded is
// what encodes to the same meaning; unknown fields are refused.
func FuzzBodies(f *testing.F) {
	for _, s := range []string{
		`{"transcript":"","signature":"","proof":"","answer":""}`,
		`{"port":8686,"candidates":["203.0.113.1:8686","[2001:db8::1]:1"]}`,
		`{"version":1,"now":"2026-01-01T00:00:00Z","by":{},"join":{"token":"x"}}`,
		`{"authority":{"certificate":"","key":""},"term":3}`, `{} {}`, `[]`, `{"unknown":1}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, into := range []any{&joinRequest{}, &joinAnswer{}, &reachRequest{}, &promotion{}, &certificate{}, &store.Command{}, &store.Join{}, &pulse{}, &raftstore.Status{}} {
			r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(b))
			if err := Decode(r, into); err != nil {
				if _, ok := errors.AsType[*Error](err); !ok {
					t.Errorf("%T: %v is not fit to be answered", into, err)
				}
			}
		}
		var request promotion
		if unmarshal(b, &request) == nil {
			_, _ = request.Authority.authority()
		}
		_, _ = checkJoin(t.Context(), joinRequest{Transcript: b})
	})
}
