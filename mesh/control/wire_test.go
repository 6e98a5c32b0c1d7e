package control

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"guywire/store"
	"guywire/store/raftstore"
)

// TestNewerFields: what a newer node tells is read without what is new in it;
// what it asks for is not.
func TestNewerFields(t *testing.T) {
	t.Parallel()
	const text = `{"index":7,"tomorrow":{"a":[1]}}`
	answer := func(text string) *http.Response {
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(text))}
	}
	var head headAnswer
	if err := readAnswer(answer(text), &head); err != nil || head.Index != 7 {
		t.Errorf("an answer: %+v, %v", head, err)
	}
	var status raftstore.Status
	if err := readAnswer(answer(`{"term":3,"tomorrow":1}`), &status); err != nil || status.Term != 3 {
		t.Errorf("the status of a voter: %+v, %v", status, err)
	}
	for _, bad := range []string{"", "{", `{"index":"x"}`, text + text} {
		if err := readAnswer(answer(bad), &head); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if _, beat, err := next(store.New(), frameHeartbeat, []byte(text)); err != nil || beat.Index != 7 {
		t.Errorf("a pulse: %+v, %v", beat, err)
	}
	if _, _, err := next(store.New(), frameEnd, []byte(`{"code":"busy","message":"m","tomorrow":1}`)); !hasCode(err, CodeBusy) {
		t.Errorf("the end of a stream: %v", err)
	}
	if err := Decode(httptest.NewRequest(http.MethodPost, "/", strings.NewReader(text)), &head); !hasCode(err, CodeMalformed) {
		t.Errorf("a request: %v", err)
	}
}
