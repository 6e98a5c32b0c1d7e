package dataplane

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

func TestControlSocketInput(t *testing.T) {
	s := spawn(t)
	conn, err := net.Dial("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	ask := func(line string) reply {
		t.Helper()
		if _, err := conn.Write([]byte(line + "\n")); err != nil {
			t.Fatal(err)
		}
		answer, err := answers.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		var r reply
		if err := json.Unmarshal(answer, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := ask("rubbish"); r.Code != "invalid" {
		t.Errorf("rubbish: %+v", r)
	}
	if r := ask(`{"op":"version"}`); r.Version != "test" {
		t.Errorf("version on the same connection: %+v", r)
	}
	if r := ask(strings.Repeat("x", maxLine+1)); r.Code != "invalid" {
		t.Errorf("long line: %+v", r)
	}
	if _, err := answers.ReadByte(); err == nil {
		t.Error("connection stays open after a line without end")
	}
}

func TestManyControlConnections(t *testing.T) {
	s := spawn(t)
	for range maxControl * 2 {
		conn, err := net.Dial("unix", s.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Client.Ensure(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("served beyond the limit: %v", err)
	}
}

// uapi sends one UAPI request and returns the error number.
func uapi(t testing.TB, name, request string) string {
	t.Helper()
	conn, err := net.Dial("unix", uapiPath(name))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, request+"\n\n"); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if n, ok := strings.CutPrefix(lines.Text(), "errno="); ok {
			return n
		}
	}
	t.Fatalf("no answer: %v", lines.Err())
	return ""
}
