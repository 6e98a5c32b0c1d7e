package stun

import (
	"strings"

	"github.com/pion/stun/v3"

	"guywire/discovery"
)

// encodeCheck writes a packet for the other end: requests and indications are
// made out to it, answers are ours (RFC 8445, section 7.2.2).
func encodeCheck(p discovery.CheckPacket, k discovery.Keys) []byte {
	m := message{tx: p.Tx, check: true, controlling: k.Controlling}
	switch p.Kind {
	case discovery.CheckRequest, discovery.CheckNominate:
		m.class, m.nominate = stun.ClassRequest, p.Kind == discovery.CheckNominate
	case discovery.CheckDone:
		m.class = stun.ClassIndication
	default:
		return message{class: stun.ClassSuccessResponse, tx: p.Tx, mapped: p.Mapped}.encode([]byte(k.Local.Password))
	}
	m.username = k.Peer.Ufrag + ":" + k.Local.Ufrag
	return m.encode([]byte(k.Peer.Password))
}

// verify reads a packet that one of the keys protects.
func (s *Socket) verify(b []byte) (discovery.CheckPacket, bool) {
	m, err := decode(b, func(m message) []byte {
		if m.class == stun.ClassSuccessResponse && m.mapped.IsValid() {
			return s.key
		}
		return nil
	})
	if err == nil {
		return discovery.CheckPacket{Kind: discovery.ServerResponse, Tx: m.tx, Mapped: m.mapped}, true
	}
	if k := s.keys.Load(); k != nil {
		return decodeCheck(b, *k)
	}
	return discovery.CheckPacket{}, false
}

// decodeCheck verifies a packet of the other end. Before its credentials are known
// its requests are: they are protected by ours.
func decodeCheck(b []byte, k discovery.Keys) (discovery.CheckPacket, bool) {
	m, err := decode(b, func(m message) []byte {
		to, from, _ := strings.Cut(m.username, ":")
		switch {
		case m.class == stun.ClassSuccessResponse && m.mapped.IsValid() && k.Peer.Password != "":
			return []byte(k.Peer.Password)
		case (m.class == stun.ClassRequest || m.class == stun.ClassIndication) && m.check &&
			m.controlling != k.Controlling && to == k.Local.Ufrag && (k.Peer.Ufrag == "" || from == k.Peer.Ufrag):
			return []byte(k.Local.Password)
		}
		return nil
	})
	if err != nil {
		return discovery.CheckPacket{}, false
	}
	in := discovery.CheckPacket{Tx: m.tx, Mapped: m.mapped}
	switch {
	case m.class == stun.ClassSuccessResponse:
		in.Kind = discovery.CheckResponse
	case m.class == stun.ClassIndication:
		in.Kind = discovery.CheckDone
	case m.nominate:
		in.Kind = discovery.CheckNominate
	default:
		in.Kind = discovery.CheckRequest
	}
	return in, true
}
