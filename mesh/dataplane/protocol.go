package dataplane

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The control protocol: one JSON object and a newline each way, any number of
// requests on a connection, answered in order.
type request struct {
	Op    op     `json:"op"`
	Name  string `json:"name,omitempty"`
	MTU   int    `json:"mtu,omitempty"`
	Force bool   `json:"force,omitempty"`
}

type op string

const (
	opCreate   op = "create"   // Name, MTU
	opDelete   op = "delete"   // Name
	opList     op = "list"     // answers Devices
	opVersion  op = "version"  // answers Version
	opShutdown op = "shutdown" // Force: with devices, too
)

// A reply without a code is a success.
type reply struct {
	Code    string   `json:"code,omitempty"`
	Error   string   `json:"error,omitempty"`
	Version string   `json:"version,omitempty"`
	Devices []string `json:"devices,omitempty"` // sorted
}

// codes are the errors with a name on the wire; all others are codeFailed.
var codes = []struct {
	code string
	err  error
}{
	{"exists", ErrExists},
	{"no-device", ErrNoDevice},
	{"busy", ErrBusy},
	{"invalid", ErrInvalid},
	{"unsupported", ErrUnsupported},
}

const codeFailed = "failed"

// decodeRequest reads one line. It accepts nothing that it does not know: a
// field of a later version may mean that doing less would be wrong.
func decodeRequest(line []byte) (request, error) {
	var r request
	if err := decodeStrict(line, &r); err != nil {
		return request{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	switch r.Op {
	case opCreate:
		if r.MTU < minMTU || r.MTU > maxMTU {
			return request{}, fmt.Errorf("%w: MTU %d is not between %d and %d", ErrInvalid, r.MTU, minMTU, maxMTU)
		}
		return r, checkName(r.Name)
	case opDelete:
		return r, checkName(r.Name)
	case opList, opVersion, opShutdown:
		return r, nil
	}
	return request{}, fmt.Errorf("%w: %q", ErrUnsupported, r.Op)
}

func decodeStrict(line []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one object on the line")
	}
	return nil
}

// decodeReply reads one line. Unknown fields are those of a later version and
// are passed over.
func decodeReply(line []byte) (reply, error) {
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		return reply{}, fmt.Errorf("data plane's answer: %w", err)
	}
	return r, nil
}

// checkName reports why a device cannot have the name. The name becomes a
// file name and a path under /proc/sys, hence the narrow alphabet.
func checkName(name string) error {
	rest, ok := strings.CutPrefix(name, namePrefix)
	if !ok || rest == "" || len(name) > maxName {
		return fmt.Errorf("%w: device name %q must begin with %s and have at most %d bytes", ErrInvalid, name, namePrefix, maxName)
	}
	for _, c := range []byte(rest) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return fmt.Errorf("%w: device name %q may hold only letters, digits, - and _", ErrInvalid, name)
		}
	}
	return nil
}

// failure is the reply that says err.
func failure(err error) reply {
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return reply{Code: c.code, Error: err.Error()}
		}
	}
	return reply{Code: codeFailed, Error: err.Error()}
}

// err is the inverse of failure: the same text, the same errors.Is.
func (r reply) err() error {
	if r.Code == "" {
		return nil
	}
	remote := &remoteError{text: r.Error}
	for _, c := range codes {
		if r.Code == c.code {
			remote.is = c.err
		}
	}
	return remote
}

// A remoteError is an error of the data plane as its client sees it.
type remoteError struct {
	text string
	is   error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }
