package flow

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// receiveBuffer is what a UDP receiver asks the kernel for; an unprivileged one gets what the host allows.
	receiveBuffer = 8 << 20

	// drainTime is how long a receiver that was told to stop goes on, to take what waits in its socket.
	drainTime = 20 * time.Millisecond
)

// RecvConfig describes a UDP receiver.
type RecvConfig struct {
	// Listen is the address to receive at, like ":7000" (all, both families), "10.0.0.2:7000" or "[fd00::2]:7000".
	Listen string
	// GapIntervals says how many intervals of a flow a silence must exceed to be listed as a gap; 0 means 3.
	GapIntervals int
	// Listening, if set, is called once when packets will be received.
	Listening func(netip.AddrPort)
}

// RecvUDP receives any number of flows until ctx ends, which is no error, and reports what it saw of each. A flow is known by its
// number alone, so it may change its path and its source address.
func RecvUDP(ctx context.Context, cfg RecvConfig) (RecvReport, error) {
	conn, err := listenUDP(ctx, cfg.Listen)
	if err != nil {
		return RecvReport{}, err
	}
	defer func() { _ = conn.Close() }()
	// Let the kernel stamp arrivals and count what the socket's buffer could not hold.
	if err := setOptions(conn, unix.SO_TIMESTAMPNS, unix.SO_RXQ_OVFL); err != nil {
		return RecvReport{}, fmt.Errorf("receive at %s: %w", cfg.Listen, err)
	}
	if cfg.Listening != nil {
		cfg.Listening(localAddr(conn))
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now().Add(drainTime)) })()

	r := RecvReport{Listen: localAddr(conn), GapIntervals: cfg.GapIntervals}
	if r.GapIntervals <= 0 {
		r.GapIntervals = 3
	}
	flows := map[uint32]*account{}
	buf, oob := make([]byte, 64<<10), make([]byte, 128)
	for {
		var n, oobn int
		n, oobn, _, _, err = conn.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			break
		}
		at := r.arrival(oob[:oobn])
		p, parseErr := ParsePacket(buf[:n])
		if parseErr != nil || p.Kind != Data {
			r.Malformed++
			continue
		}
		a := flows[p.Flow]
		if a == nil {
			if len(flows) == maxFlows {
				r.Refused++
				continue
			}
			a = newAccount(p, r.GapIntervals)
			flows[p.Flow] = a
		}
		a.arrive(p, at)
	}
	r.StopMono = Monotonic()
	wall := wallZero()
	r.Flows = []FlowReport{}
	for _, a := range slices.SortedFunc(maps.Values(flows), func(a, b *account) int { return cmp.Compare(a.report.Flow, b.report.Flow) }) {
		r.Flows = append(r.Flows, a.result(wall))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return r, err
}

// arrival returns the monotonic time of a packet from its control messages, and books the socket's overflow count.
func (r *RecvReport) arrival(oob []byte) time.Duration {
	// The stamp is of the wall clock. Its age is not, unless that clock was set a moment ago.
	const oldest = 10 * time.Second
	at, wall := Monotonic(), read(unix.CLOCK_REALTIME)
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		oob = rest
		if h.Level != unix.SOL_SOCKET {
			continue
		}
		switch {
		case h.Type == unix.SCM_TIMESTAMPNS && len(data) >= 16:
			stamp := time.Duration(binary.NativeEndian.Uint64(data))*time.Second + time.Duration(binary.NativeEndian.Uint64(data[8:]))
			if age := wall - stamp; age > 0 && age < oldest {
				at -= age
			}
		case h.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
			r.Overflowed = uint64(binary.NativeEndian.Uint32(data))
		}
	}
	return at
}

func listenUDP(ctx context.Context, address string) (*net.UDPConn, error) {
	pc, err := new(net.ListenConfig).ListenPacket(ctx, "udp", address)
	if err != nil {
		return nil, err
	}
	conn := pc.(*net.UDPConn)
	if setOption(conn, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = conn.SetReadBuffer(receiveBuffer) // less is no error: Overflowed will tell
	}
	return conn, nil
}

func localAddr(conn *net.UDPConn) netip.AddrPort {
	a := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func setOptions(conn syscall.Conn, options ...int) error {
	for _, option := range options {
		if err := setOption(conn, option, 1); err != nil {
			return err
		}
	}
	return nil
}

func setOption(conn syscall.Conn, option, value int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, value) })
	if err != nil {
		return err
	}
	return optErr
}
