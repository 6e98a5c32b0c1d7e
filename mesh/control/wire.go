package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"guywire/mesh"
)

// unmarshal decodes one JSON value and nothing else: no unknown field, nothing
// after it. It is for what is asked of this node, whose meaning must not be
// guessed, and for its own files. What others tell is read by json.Unmarshal: a
// newer node may have more to tell.
func unmarshal(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the value")
	}
	return nil
}

// Decode reads the body of a request strictly. The error is an *Error and fit
// to be answered with Fail.
func Decode(r *http.Request, into any) error {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			return newError(http.StatusRequestEntityTooLarge, CodeMalformed, "the request is larger than %d bytes", maxBody)
		}
		return newError(http.StatusBadRequest, CodeMalformed, "the request could not be read")
	}
	if err := unmarshal(b, into); err != nil {
		return newError(http.StatusBadRequest, CodeMalformed, "the request is malformed; run the same version of Guywire on both sides: %s", err)
	}
	return nil
}

// Reply answers with a value as JSON.
func Reply(w http.ResponseWriter, v any) { reply(w, http.StatusOK, v) }

// Fail answers with an error: an *Error or *store.Refusal with its code and
// sentence, any other as an internal one.
func Fail(w http.ResponseWriter, err error) {
	e := answerTo(err)
	reply(w, e.Status, e)
}

func reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"code":"internal","message":"the answer could not be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // the caller is gone; there is nobody to tell
}

// Do calls another member: in is sent as JSON unless nil, the answer is
// decoded into out unless nil. What the other end refused is an *Error. The
// connection is made to whatever address of the node answers, and only if that
// node is behind it. It waits 10 s at most.
func (p *Plane) Do(ctx context.Context, node mesh.NodeID, method, path string, in, out any) error {
	return p.call(ctx, p.client, node, method, path, in, out)
}

func (p *Plane) call(ctx context.Context, client *http.Client, node mesh.NodeID, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, "https://"+node.String()+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	answer, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("call %s: %w", p.name(node), err)
	}
	defer answer.Body.Close()
	if err := readAnswer(answer, out); err != nil {
		return fmt.Errorf("call %s: %w", p.name(node), err)
	}
	return nil
}

// readAnswer decodes the answer of another node.
func readAnswer(r *http.Response, out any) error {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if len(b) > maxAnswer {
		return errors.New("the answer is too large")
	}
	if r.StatusCode != http.StatusOK {
		e := &Error{}
		if json.Unmarshal(b, e) != nil || e.Code == "" {
			e = newError(r.StatusCode, CodeInternal, "the server answered %s", r.Status)
		}
		e.Status = r.StatusCode
		return e
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the answer is malformed; run the same version of Guywire on both sides: %w", err)
	}
	return nil
}
