package dataplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"
)

func TestDecodeRequest(t *testing.T) {
	for _, tt := range []struct {
		line string
		want error // nil: accepted
	}{
		{`{"op":"create","name":"gw-a","mtu":1420}`, nil},
		{`{"op":"delete","name":"gw-a"}`, nil},
		{`{"op":"shutdown","force":true}`, nil},
		{`{"op":"list"} `, nil},
		{`{"op":"create","name":"gw-a"}`, ErrInvalid},
		{`{"op":"create","name":"gw-a","mtu":1279}`, ErrInvalid},
		{`{"op":"create","name":"gw-a","mtu":65500}`, ErrInvalid},
		{`{"op":"create","name":"eth0","mtu":1420}`, ErrInvalid},
		{`{"op":"delete","name":"gw-"}`, ErrInvalid},
		{`{"op":"delete","name":"gw-../x"}`, ErrInvalid},
		{`{"op":"delete","name":"gw-34567890123456"}`, ErrInvalid},
		{`{"op":"delete","name":"gw-a%d"}`, ErrInvalid},
		{`{"op":"list"}{"op":"list"}`, ErrInvalid},
		{`{"op":"list","speed":1}`, ErrInvalid},
		{`list`, ErrInvalid},
		{``, ErrInvalid},
		{`{"op":"upgrade"}`, ErrUnsupported},
	} {
		if _, err := decodeRequest([]byte(tt.line)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.line, err, tt.want)
		}
	}
}

func TestErrorsCrossTheSocket(t *testing.T) {
	for _, c := range codes {
		err := fmt.Errorf("gw-a: %w", c.err)
		back := failure(err).err()
		if !errors.Is(back, c.err) || back.Error() != err.Error() {
			t.Errorf("%v came back as %v", err, back)
		}
	}
	if err := failure(errors.New("odd")).err(); err == nil || err.Error() != "odd" {
		t.Errorf("odd came back as %v", err)
	}
	if !errors.Is(reply{Code: "exists", Error: "x"}.err(), fs.ErrExist) || !errors.Is(ErrNoDevice, fs.ErrNotExist) {
		t.Error("not compatible with io/fs")
	}
	if (reply{}).err() != nil {
		t.Error("success is an error")
	}
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{`{"op":"create","name":"gw-a","mtu":1420}`, `{"op":"delete","name":"gw-a"}`, `{"op":"shutdown","force":true}`, `{"op":"list"}`, `{}`, `[`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		req, err := decodeRequest(line)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("%q: unclassified error %v", line, err)
			}
			return
		}
		if req.Op == opCreate || req.Op == opDelete {
			if !strings.HasPrefix(req.Name, namePrefix) || len(req.Name) > maxName || strings.ContainsAny(req.Name, "/%. \x00\n") {
				t.Fatalf("name %q accepted", req.Name)
			}
		}
		b, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decodeRequest(b); err != nil || again != req {
			t.Fatalf("%q → %+v → %s → %+v, %v", line, req, b, again, err)
		}
	})
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{`{}`, `{"code":"busy","error":"2 devices"}`, `{"devices":["gw-a","gw-b"]}`, `{"version":"v1","new":1}`, `{"code":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := decodeReply(line)
		if err != nil {
			return
		}
		if (r.err() == nil) != (r.Code == "") {
			t.Fatalf("%q: code %q, error %v", line, r.Code, r.err())
		}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeReply(b)
		if len(r.Devices) == 0 {
			r.Devices = nil // an empty list is left out
		}
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%q → %+v → %s → %+v, %v", line, r, b, again, err)
		}
	})
}
