package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"guywire/mesh"
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

func TestSnapshotsMustLeadOn(t *testing.T) {
	t.Parallel()
	at := func(generation, index uint64) *store.State {
		s := store.New()
		s.Index, s.Mesh.Generation = index, generation
		return s
	}
	for _, tc := range []struct {
		have, got [2]uint64 // generation and index
		taken     bool
	}{
		{[2]uint64{0, 4}, [2]uint64{0, 5}, true},
		{[2]uint64{0, 4}, [2]uint64{0, 4}, false},
		{[2]uint64{0, 4}, [2]uint64{0, 3}, false},
		{[2]uint64{1, 4}, [2]uint64{2, 1}, true},
		{[2]uint64{1, 4}, [2]uint64{0, 9}, false},
	} {
		have, got := at(tc.have[0], tc.have[1]), at(tc.got[0], tc.got[1])
		if got.Newer(have) != tc.taken {
			t.Errorf("%v after %v", tc.got, tc.have)
		}
		if tc.got[0] > 0 {
			continue // such a state is of version 3 and needs a mesh
		}
		b, err := store.Snapshot(got)
		if err != nil {
			t.Fatal(err)
		}
		after, _, err := next(have, frameSnapshot, b)
		if (err == nil) != tc.taken || (after != have) != tc.taken {
			t.Errorf("snapshot %v over %v: at %d, %v", tc.got, tc.have, after.Index, err)
		}
	}
}

func TestPulsesOfOtherHistories(t *testing.T) {
	t.Parallel()
	s := store.New()
	s.Index, s.Mesh.Generation, s.Audit.Head = 7, 1, store.Digest{1}
	for _, tc := range []struct {
		at       position
		diverged bool
	}{
		{position{1, 7, store.Digest{1}}, false},
		{position{1, 7, store.Digest{2}}, true},
		{position{1, 7, store.Digest{}}, true},
		{position{1, 8, store.Digest{2}}, false}, // it cannot be told
		{position{0, 7, store.Digest{2}}, false},
	} {
		b, err := json.Marshal(pulse{position: tc.at})
		if err != nil {
			t.Fatal(err)
		}
		after, beat, err := next(s, frameHeartbeat, b)
		if errors.Is(err, errDiverged) != tc.diverged || after != s || beat.position != tc.at {
			t.Errorf("%+v: %v", tc.at, err)
		}
	}
}

// Nodes of the version before read the stream on, until the mesh is of a
// version that they do not know.
func TestStreamV1(t *testing.T) {
	t.Parallel()
	b, err := json.Marshal(pulse{position{Index: 7}, mesh.NodeID{1}})
	if err != nil || string(b) != `{"index":7,"leader":"0100000000000000"}` {
		t.Errorf("pulse %s, %v", b, err)
	}
	pos, err := parsePosition(url.Values{"after": {"7"}})
	if err != nil || pos != (position{Index: 7}) {
		t.Errorf("position %+v, %v", pos, err)
	}
}

func TestTheEndOfAStreamSaysWhy(t *testing.T) {
	t.Parallel()
	b, err := endFrame(newError(http.StatusConflict, CodeNotVoter, "one is not a voter"))
	if err != nil {
		t.Fatal(err)
	}
	kind, payload, err := readFrame(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := next(store.New(), kind, payload); !hasCode(err, CodeNotVoter) {
		t.Errorf("the end was %v", err)
	}
}

// FuzzStream: whatever a voter sends, the follower does not panic, take memory
// for what did not come, or go back.
func FuzzStream(f *testing.F) {
	newer := store.New()
	newer.Index = 5
	command, err := store.EncodeCommand(store.Command{Now: time.Unix(1e9, 0), RevokeToken: &store.RevokeToken{ID: "x"}})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []*store.State{store.New(), newer} {
		snapshot, err := store.Snapshot(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(appendFrame(nil, frameSnapshot, snapshot))
		f.Add(changeFrame(appendFrame(nil, frameSnapshot, snapshot), raftstore.Change{Prev: 5, Index: 6, Command: command}))
	}
	f.Add(changeFrame(appendFrame(nil, frameHeartbeat, []byte(`{"index":1}`)), raftstore.Change{Index: 2, Command: command}))
	f.Add(appendFrame(nil, frameHeartbeat, []byte(`{"generation":1,"index":0,"head":"`+strings.Repeat("0f", 32)+`"}`)))
	f.Add(appendFrame(nil, frameEnd, []byte(`{"code":"not-a-voter","message":"x"}`)))
	f.Add(appendFrame(nil, frameRelayed, []byte(`{"offer":"AA=="}`)))
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
				if after != state {
					t.Fatalf("a bad frame %c changed the state", kind)
				}
				return
			}
			if leads := kind == frameSnapshot || kind == frameChange; leads != after.Newer(state) || !leads && after != state {
				t.Fatalf("frame %c led from %+v to %+v", kind, positionOf(state), positionOf(after))
			}
			state = after
		}
	})
}

// FuzzPosition: what is read of a request means what it says.
func FuzzPosition(f *testing.F) {
	f.Add(position{3, 9, store.Digest{1, 2}}.query().Encode())
	f.Add("after=7")
	f.Add("after=-1&head=00&generation=x")
	f.Fuzz(func(t *testing.T, text string) {
		q, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		pos, err := parsePosition(q)
		if err != nil {
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatalf("%v is not fit to be answered", err)
			}
			return
		}
		if again, err := parsePosition(pos.query()); err != nil || again != pos {
			t.Fatalf("%+v became %+v, %v", pos, again, err)
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
		`{"certificate":"","key":"","next":{"certificate":"","key":""}}`, `{"term":3}`,
		`{"to":"0102030405060708","offer":{"offer":"AA==","facts":{}},"forwarded":true}`, `{} {}`, `[]`, `{"unknown":1}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, into := range []any{&joinRequest{}, &joinAnswer{}, &reachRequest{}, &relayRequest{}, &promotion{}, &certificate{}, &store.Command{}, &store.Join{}, &pulse{}, &headAnswer{}, &raftstore.Status{}} {
			r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(b))
			if err := Decode(r, into); err != nil {
				if _, ok := errors.AsType[*Error](err); !ok {
					t.Errorf("%T: %v is not fit to be answered", into, err)
				}
			}
		}
		var keys authorityKeys
		if unmarshal(b, &keys) == nil {
			_, _ = keys.authorities()
		}
		_, _ = checkJoin(t.Context(), joinRequest{Transcript: b})
	})
}
