package dataplane

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"guywire/mesh/carrier"
)

// The control protocol: one JSON object and a newline each way, any number of
// requests on a connection, answered in order.
type request struct {
	Op    op     `json:"op"`
	Name  string `json:"name,omitempty"`
	MTU   int    `json:"mtu,omitempty"`
	Force bool   `json:"force,omitempty"`
	// ID and Carrier are of carriers; all their fields are always there.
	ID      []byte       `json:"id,omitempty"`
	Carrier *wireCarrier `json:"carrier,omitempty"`
}

type op string

const (
	opCreate   op = "create"   // Name, MTU
	opDelete   op = "delete"   // Name
	opList     op = "list"     // answers Devices
	opVersion  op = "version"  // answers Version
	opShutdown op = "shutdown" // Force: with devices, too

	opPin          op = "pin"           // answers Pin
	opOpenCarrier  op = "open-carrier"  // Carrier; answers Local
	opCarriers     op = "carriers"      // answers Carriers
	opCloseCarrier op = "close-carrier" // ID
	opAccept       op = "accept"        // with a TCP connection (SCM_RIGHTS)
)

// A wireCarrier is a Carrier.
type wireCarrier struct {
	ID    []byte         `json:"id"`
	Addr  netip.AddrPort `json:"addr"`
	Mark  uint32         `json:"mark"`
	Pin   []byte         `json:"pin"`
	Token []byte         `json:"token"`
	Port  uint16         `json:"port"`
}

func wireOfCarrier(c Carrier) *wireCarrier {
	return &wireCarrier{ID: c.ID[:], Addr: c.Addr, Mark: c.Mark, Pin: c.PeerPin[:], Token: c.Token[:], Port: c.Port}
}

// carrier is the inverse of wireOfCarrier for what check accepts.
func (w *wireCarrier) carrier() Carrier {
	return Carrier{
		ID: [16]byte(w.ID), Addr: w.Addr, Mark: w.Mark, PeerPin: [32]byte(w.Pin),
		Token: [carrier.TokenSize]byte(w.Token), Port: w.Port,
	}
}

func (w *wireCarrier) check() error {
	switch {
	case w == nil:
		return fmt.Errorf("%w: no carrier", ErrInvalid)
	case len(w.ID) != 16 || len(w.Pin) != 32 || len(w.Token) != carrier.TokenSize:
		return fmt.Errorf("%w: a carrier has an ID of 16 bytes, a pin of 32 and a token of %d", ErrInvalid, carrier.TokenSize)
	case w.Port == 0 || w.Addr.IsValid() && w.Addr.Port() == 0:
		return fmt.Errorf("%w: a carrier has no port 0", ErrInvalid)
	}
	return nil
}

// A wireStatus is a CarrierStatus.
type wireStatus struct {
	ID        []byte         `json:"id"`
	Addr      netip.AddrPort `json:"addr"`
	Local     netip.AddrPort `json:"local"`
	Port      uint16         `json:"port"`
	Connected bool           `json:"connected"`
	Since     time.Time      `json:"since"`
	Sent      uint64         `json:"sent"`
	Received  uint64         `json:"received"`
	Dropped   uint64         `json:"dropped"`
	Error     string         `json:"error,omitempty"`
}

func wireOfStatus(s CarrierStatus) wireStatus {
	return wireStatus{
		ID: s.ID[:], Addr: s.Addr, Local: s.Local, Port: s.Port, Connected: s.Connected, Since: s.Since,
		Sent: s.Sent, Received: s.Received, Dropped: s.Dropped, Error: s.Error,
	}
}

// status is the inverse of wireOfStatus.
func (w wireStatus) status() (CarrierStatus, error) {
	if len(w.ID) != 16 {
		return CarrierStatus{}, fmt.Errorf("data plane's answer: a carrier's ID of %d bytes", len(w.ID))
	}
	return CarrierStatus{
		ID: [16]byte(w.ID), Addr: w.Addr, Local: w.Local, Port: w.Port, Connected: w.Connected, Since: w.Since,
		Sent: w.Sent, Received: w.Received, Dropped: w.Dropped, Error: w.Error,
	}, nil
}

// A reply without a code is a success.
type reply struct {
	Code    string   `json:"code,omitempty"`
	Error   string   `json:"error,omitempty"`
	Version string   `json:"version,omitempty"`
	Devices []string `json:"devices,omitempty"` // sorted

	Pin      []byte         `json:"pin,omitempty"`
	Local    netip.AddrPort `json:"local,omitzero"`
	Carriers []wireStatus   `json:"carriers,omitempty"` // sorted by ID
}

// codes are the errors with a name on the wire; all others are codeFailed.
var codes = []struct {
	code string
	err  error
}{
	{"exists", ErrExists},
	{"no-device", ErrNoDevice},
	{"no-carrier", ErrNoCarrier},
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
	case opOpenCarrier:
		return r, r.Carrier.check()
	case opCloseCarrier:
		if len(r.ID) != 16 {
			return request{}, fmt.Errorf("%w: a carrier's ID has 16 bytes, not %d", ErrInvalid, len(r.ID))
		}
		return r, nil
	case opList, opVersion, opShutdown, opPin, opCarriers, opAccept:
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
