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
		{`{"op":"pin"}`, nil},
		{`{"op":"carriers"}`, nil},
		{`{"op":"accept"}`, nil},
		{carrierLine(sixteen, `192.0.2.1:443`, thirtyTwo, sixteen, 9), nil},
		{carrierLine(sixteen, ``, thirtyTwo, sixteen, 9), nil},
		{`{"op":"close-carrier","id":"` + sixteen + `"}`, nil},
		{carrierLine(sixteen, `192.0.2.1:0`, thirtyTwo, sixteen, 9), ErrInvalid},
		{carrierLine(sixteen, `192.0.2.1:443`, thirtyTwo, sixteen, 0), ErrInvalid},
		{carrierLine(sixteen, `fra:443`, thirtyTwo, sixteen, 9), ErrInvalid},
		{carrierLine(thirtyTwo, ``, thirtyTwo, sixteen, 9), ErrInvalid},
		{carrierLine(sixteen, ``, sixteen, sixteen, 9), ErrInvalid},
		{carrierLine(sixteen, ``, thirtyTwo, thirtyTwo, 9), ErrInvalid},
		{`{"op":"open-carrier"}`, ErrInvalid},
		{`{"op":"close-carrier"}`, ErrInvalid},
		{`{"op":"close-carrier","id":"AAAA"}`, ErrInvalid},
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

// Base64 of so many bytes.
const (
	sixteen   = "AQAAAAAAAAAAAAAAAAAAAA=="
	thirtyTwo = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
)

func carrierLine(id, addr, pin, token string, port int) string {
	return fmt.Sprintf(`{"op":"open-carrier","carrier":{"id":%q,"addr":%q,"mark":34304,"pin":%q,"token":%q,"port":%d}}`, id, addr, pin, token, port)
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
	for _, s := range []string{`{"op":"create","name":"gw-a","mtu":1420}`, `{"op":"delete","name":"gw-a"}`, `{"op":"shutdown","force":true}`, `{"op":"list"}`, `{}`, `[`, carrierLine(sixteen, "192.0.2.1:443", thirtyTwo, sixteen, 9), `{"op":"close-carrier","id":"` + sixteen + `"}`} {
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
		if req.Op == opOpenCarrier {
			if c := req.Carrier.carrier(); !reflect.DeepEqual(wireOfCarrier(c), req.Carrier) {
				t.Fatalf("%q is the carrier %+v", line, c)
			}
		}
		b, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		if len(req.ID) == 0 {
			req.ID = nil // what is empty is left out
		}
		if again, err := decodeRequest(b); err != nil || !reflect.DeepEqual(again, req) {
			t.Fatalf("%q → %+v → %s → %+v, %v", line, req, b, again, err)
		}
	})
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{`{}`, `{"code":"busy","error":"2 devices"}`, `{"devices":["gw-a","gw-b"]}`, `{"version":"v1","new":1}`, `{"pin":"` + thirtyTwo + `","local":"127.0.0.1:9","carriers":[{"id":"` + sixteen + `","since":"2026-11-22T00:00:00Z","sent":1}]}`, `{"code":1}`} {
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
		if len(r.Carriers) == 0 {
			r.Carriers = nil
		}
		if len(r.Pin) == 0 {
			r.Pin = nil
		}
		for _, w := range r.Carriers {
			if s, err := w.status(); err == nil && !reflect.DeepEqual(wireOfStatus(s), w) {
				t.Fatalf("%q: the status %+v", line, s)
			}
		}
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%q → %+v → %s → %+v, %v", line, r, b, again, err)
		}
	})
}
