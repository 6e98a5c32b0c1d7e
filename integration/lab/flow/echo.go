package flow

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// EchoConfig describes a UDP echo server.
type EchoConfig struct {
	Listen    string // like RecvConfig.Listen
	Listening func(netip.AddrPort)
}

// EchoReport is what an echo server did.
type EchoReport struct {
	Listen     netip.AddrPort    `json:"listen"`
	Answered   uint64            `json:"answered"`
	Malformed  uint64            `json:"malformed"`
	SendErrors map[string]uint64 `json:"send_errors"`
}

// Echo answers the echo requests of [Ping], each with as many bytes as it had, until ctx ends, which is no error.
func Echo(ctx context.Context, cfg EchoConfig) (EchoReport, error) {
	conn, err := listenUDP(ctx, cfg.Listen)
	if err != nil {
		return EchoReport{}, err
	}
	defer func() { _ = conn.Close() }()
	r := EchoReport{Listen: localAddr(conn), SendErrors: map[string]uint64{}}
	if err := askDestination(conn); err != nil {
		return r, fmt.Errorf("echo at %s: %w", cfg.Listen, err)
	}
	if cfg.Listening != nil {
		cfg.Listening(r.Listen)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })()
	buf, oob := make([]byte, 64<<10), make([]byte, 128)
	for {
		n, oobn, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return r, nil
		}
		if err != nil {
			return r, err
		}
		p, err := ParsePacket(buf[:n])
		if err != nil || p.Kind != EchoRequest {
			r.Malformed++
			continue
		}
		p.Kind = EchoReply
		p.Encode(buf)
		if _, _, err := conn.WriteMsgUDPAddrPort(buf[:n], asSource(oob[:oobn], from), from); err != nil {
			countError(r.SendErrors, reason(err))
			continue
		}
		r.Answered++
	}
}

// askDestination makes the kernel say to which of this host's addresses a packet was sent. An answer from another one,
// which the kernel may prefer, would be none to who asked.
func askDestination(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		switch {
		case err != nil:
			optErr = err
		case domain == unix.AF_INET6: // says it for IPv4 too, as a mapped address
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		default:
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	if err != nil {
		return err
	}
	return optErr
}

// asSource turns the control message that names the destination of a packet into one that makes it the source of the
// answer. The interface is left to the routes, except where the address means nothing without it.
func asSource(oob []byte, peer netip.AddrPort) []byte {
	h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	switch {
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		if !peer.Addr().IsLinkLocalUnicast() {
			clear(data[16:20]) // struct in6_pktinfo: address, interface
		}
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		clear(data[:4]) // struct in_pktinfo: interface, address to answer from, destination
	default:
		return nil
	}
	return oob[:len(oob)-len(rest)]
}
