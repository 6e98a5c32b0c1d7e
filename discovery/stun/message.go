package stun

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/pion/stun/v3"

	"guywire/discovery"
)

// maxMessage bounds what is read; ours are below 150 bytes.
const maxMessage = 512

// attrPadding is PADDING (RFC 5780, section 7.6). With it a request to a
// server is longer than the longest answer, which has an IPv6 address.
const (
	attrPadding   stun.AttrType = 0x0026
	paddingLength int           = 32
)

// message is one verified message, or one to be sent.
type message struct {
	class       stun.MessageClass
	tx          discovery.Tx
	username    string
	mapped      netip.AddrPort
	nominate    bool
	controlling bool // meaningful in requests of checks
	check       bool // carries a role
	padded      bool
	reply       uint16 // port that the answer goes to; 0: the sender's
}

// encode writes m with MESSAGE-INTEGRITY of key and FINGERPRINT, in this order
// and at the end.
func (m message) encode(key []byte) []byte {
	raw := stun.New()
	raw.SetType(stun.NewType(stun.MethodBinding, m.class))
	raw.TransactionID = m.tx
	raw.WriteHeader()
	if m.username != "" {
		raw.Add(stun.AttrUsername, []byte(m.username))
	}
	if m.mapped.IsValid() {
		raw.Add(stun.AttrXORMappedAddress, xorAddr(m.mapped, m.tx))
	}
	if m.check {
		role := stun.AttrICEControlled
		if m.controlling {
			role = stun.AttrICEControlling
		}
		raw.Add(role, m.tx[:8])
	}
	if m.nominate {
		raw.Add(stun.AttrUseCandidate, nil)
	}
	if m.reply != 0 {
		raw.Add(stun.AttrResponsePort, binary.BigEndian.AppendUint16(nil, m.reply))
	}
	if m.padded {
		raw.Add(attrPadding, make([]byte, paddingLength))
	}
	// Neither can fail: no fingerprint is there yet, and both only append.
	_ = stun.MessageIntegrity(key).AddTo(raw)
	_ = stun.Fingerprint.AddTo(raw)
	return raw.Raw
}

// decode reads a binding message whose last two attributes are integrity and
// fingerprint, so that nothing unprotected can ride behind them. key chooses
// the key by what the message claims to be; nil refuses it.
func decode(b []byte, key func(message) []byte) (message, error) {
	if len(b) > maxMessage || !stun.IsMessage(b) {
		return message{}, errNotOurs
	}
	var raw stun.Message
	if err := stun.Decode(b, &raw); err != nil || raw.Type.Method != stun.MethodBinding || len(b) != int(raw.Length)+20 {
		return message{}, errNotOurs
	}
	n := len(raw.Attributes)
	if n < 2 || raw.Attributes[n-1].Type != stun.AttrFingerprint || raw.Attributes[n-2].Type != stun.AttrMessageIntegrity ||
		slices.ContainsFunc(raw.Attributes[:n-2], func(a stun.RawAttribute) bool {
			return a.Type == stun.AttrFingerprint || a.Type == stun.AttrMessageIntegrity
		}) {
		return message{}, errNotOurs
	}
	m := message{class: raw.Type.Class, tx: raw.TransactionID}
	for _, a := range raw.Attributes[:n-2] {
		switch a.Type {
		case stun.AttrUsername:
			m.username = string(a.Value)
		case stun.AttrXORMappedAddress:
			m.mapped = parseXORAddr(a.Value, m.tx)
			if !m.mapped.IsValid() {
				return message{}, errNotOurs
			}
		case stun.AttrICEControlling, stun.AttrICEControlled:
			m.check, m.controlling = true, a.Type == stun.AttrICEControlling
		case stun.AttrUseCandidate:
			m.nominate = true
		case stun.AttrResponsePort:
			if len(a.Value) != 2 || binary.BigEndian.Uint16(a.Value) == 0 {
				return message{}, errNotOurs
			}
			m.reply = binary.BigEndian.Uint16(a.Value)
		case attrPadding:
			m.padded = true
		}
	}
	k := key(m)
	if k == nil || stun.Fingerprint.Check(&raw) != nil || stun.MessageIntegrity(k).Check(&raw) != nil {
		return message{}, errNotOurs
	}
	return m, nil
}

const magicCookie = 0x2112A442

// xorAddr is the value of XOR-MAPPED-ADDRESS (RFC 8489, section 14.2). Written
// here because pion's goes through net.IP and accepts values of any length.
func xorAddr(a netip.AddrPort, tx discovery.Tx) []byte {
	family := byte(1)
	if a.Addr().Is6() {
		family = 2
	}
	v := []byte{0, family}
	v = binary.BigEndian.AppendUint16(v, a.Port()^magicCookie>>16)
	return append(v, xorIP(a.Addr().AsSlice(), tx)...)
}

func parseXORAddr(v []byte, tx discovery.Tx) netip.AddrPort {
	if len(v) != 8 && len(v) != 20 || v[0] != 0 || (v[1] == 1) != (len(v) == 8) || v[1] != 1 && v[1] != 2 {
		return netip.AddrPort{}
	}
	ip, _ := netip.AddrFromSlice(xorIP(v[4:], tx))
	return netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(v[2:])^magicCookie>>16)
}

func xorIP(ip []byte, tx discovery.Tx) []byte {
	mask := append(binary.BigEndian.AppendUint32(nil, magicCookie), tx[:]...)
	out := make([]byte, len(ip))
	for i := range ip {
		out[i] = ip[i] ^ mask[i]
	}
	return out
}
