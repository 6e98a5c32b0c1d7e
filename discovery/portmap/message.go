package portmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// gatewayPort is where gateways listen (UDP), for both protocols.
const gatewayPort = 5351

const (
	versionPMP = 0
	versionPCP = 2

	opAnnounce = 0 // PCP: only whether it is spoken
	opMap      = 1 // of both, UDP for NAT-PMP
	opAddress  = 0 // NAT-PMP: the outside address
	response   = 128

	protocolUDP = 17

	pcpHeader = 24
	pcpMap    = 60
	maxPCP    = 1100 // RFC 6887, section 7
)

var errMalformed = errors.New("not an answer of a gateway")

// A nonce ties the answers and renewals of a mapping to who made it (RFC 6887, 11.2).
type nonce [12]byte

// pcpRequest is the MAP request of a port, or without one an ANNOUNCE.
type pcpRequest struct {
	client   netip.Addr // IPv4
	port     uint16     // 0: ANNOUNCE
	nonce    nonce
	external netip.AddrPort // wanted; invalid: any
	lifetime uint32         // seconds; 0: the mapping is to go
}

func (q pcpRequest) encode() []byte {
	op := byte(opMap)
	if q.port == 0 {
		op = opAnnounce
	}
	b := []byte{versionPCP, op, 0, 0}
	b = binary.BigEndian.AppendUint32(b, q.lifetime)
	b = append(b, mapped(q.client)...)
	if op == opAnnounce {
		return b
	}
	b = append(b, q.nonce[:]...)
	b = append(b, protocolUDP, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, q.port)
	b = binary.BigEndian.AppendUint16(b, q.external.Port())
	return append(b, mapped(q.external.Addr())...)
}

// mapped gives an IPv4 address as PCP writes it; an invalid one is 0.0.0.0.
func mapped(a netip.Addr) []byte {
	if !a.IsValid() {
		a = netip.IPv4Unspecified()
	}
	b := a.As16()
	return b[:]
}

// pcpResponse is the answer to either request.
type pcpResponse struct {
	announce bool // the rest below epoch is empty
	result   uint8
	lifetime uint32
	epoch    uint32 // seconds since the gateway forgot what it knew
	nonce    nonce
	port     uint16
	external netip.AddrPort // IPv4
}

// decodePCP reads an answer; options behind it are none that we asked for.
func decodePCP(b []byte) (pcpResponse, error) {
	if len(b) < pcpHeader || len(b) > maxPCP || len(b)%4 != 0 || b[0] != versionPCP {
		return pcpResponse{}, errMalformed
	}
	r := pcpResponse{result: b[3], lifetime: binary.BigEndian.Uint32(b[4:]), epoch: binary.BigEndian.Uint32(b[8:])}
	switch {
	case b[1] == response|opAnnounce:
		r.announce = true
		return r, nil
	case b[1] != response|opMap, len(b) < pcpMap, b[36] != protocolUDP:
		return pcpResponse{}, errMalformed
	}
	r.nonce = nonce(b[24:36])
	r.port = binary.BigEndian.Uint16(b[40:])
	external := netip.AddrFrom16([16]byte(b[44:60])).Unmap()
	if r.port == 0 || r.result == 0 && !external.Is4() {
		return pcpResponse{}, errMalformed
	}
	r.external = netip.AddrPortFrom(external, binary.BigEndian.Uint16(b[42:]))
	return r, nil
}

// pmpRequest is the request to map a port, or without one that for the outside
// address.
type pmpRequest struct {
	port, external uint16
	lifetime       uint32
}

func (q pmpRequest) encode() []byte {
	if q.port == 0 {
		return []byte{versionPMP, opAddress}
	}
	b := []byte{versionPMP, opMap, 0, 0}
	b = binary.BigEndian.AppendUint16(b, q.port)
	b = binary.BigEndian.AppendUint16(b, q.external)
	return binary.BigEndian.AppendUint32(b, q.lifetime)
}

// pmpResponse is the answer to either request.
type pmpResponse struct {
	op       byte
	result   uint16
	epoch    uint32
	address  netip.Addr // of opAddress
	port     uint16     // of opMap, and the rest
	external uint16
	lifetime uint32
}

// decodePMP reads an answer. A gateway that refuses may leave out what follows the
// epoch.
func decodePMP(b []byte) (pmpResponse, error) {
	if len(b) < 8 || b[0] != versionPMP || b[1] < response {
		return pmpResponse{}, errMalformed
	}
	r := pmpResponse{op: b[1] - response, result: binary.BigEndian.Uint16(b[2:]), epoch: binary.BigEndian.Uint32(b[4:])}
	switch {
	case r.op == opAddress && len(b) == 12:
		r.address = netip.AddrFrom4([4]byte(b[8:12]))
	case r.op == opMap && len(b) == 16:
		r.port, r.external = binary.BigEndian.Uint16(b[8:]), binary.BigEndian.Uint16(b[10:])
		r.lifetime = binary.BigEndian.Uint32(b[12:])
	case r.result == 0:
		return pmpResponse{}, errMalformed
	}
	return r, nil
}

// Results that need words of their own.
var (
	pcpResults = map[uint8]string{
		1: "it does not speak this version", 2: "it does not allow it", 3: "it found the request malformed", 4: "it does not know how",
		7: "its network is down", 8: "it has no room for more", 9: "it does not map UDP", 10: "this host has too many mappings",
		11: "it cannot give that port", 12: "there is another NAT before it", 13: "it has too many remote peers",
	}
	pmpResults = map[uint16]string{
		1: "it does not speak this version", 2: "it does not allow it", 3: "its network is down", 4: "it has no room for more", 5: "it does not know how",
	}
)

func refusal[T uint8 | uint16](words map[T]string, result T) error {
	if w, ok := words[result]; ok {
		return fmt.Errorf("the gateway refuses: %s", w)
	}
	return fmt.Errorf("the gateway refuses with code %d", result)
}
