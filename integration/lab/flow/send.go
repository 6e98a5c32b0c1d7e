package flow

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SendConfig describes a UDP flow.
type SendConfig struct {
	To   netip.AddrPort
	From netip.Addr // source address; the zero Addr leaves the choice to the kernel
	Flow uint32     // number of the flow, unique at its receiver
	// PPS is the rate in packets per second, 1 to 1 000 000.
	PPS int
	// Size is the UDP payload in bytes, HeaderSize to 65 507.
	Size int
	// Duration fixes the number of packets: Duration × PPS. Zero sends until the context ends.
	Duration time.Duration
}

// SendUDP sends a flow at a constant rate until its duration is over or ctx ends, which is no error. Packet n is due n
// intervals after the first, however late those before it were; a sender that fell behind catches up at once.
// A send that the kernel refuses costs its packet and is counted; the flow goes on. Nothing is retried, and nothing
// blocks: a full socket buffer refuses the packet too.
func SendUDP(ctx context.Context, cfg SendConfig) (SendReport, error) {
	if cfg.PPS < 1 || cfg.PPS > 1_000_000 {
		return SendReport{}, fmt.Errorf("send at %d packets per second: give 1 to 1000000", cfg.PPS)
	}
	if cfg.Size < HeaderSize || cfg.Size > 65_507 {
		return SendReport{}, fmt.Errorf("send packets of %d bytes: give %d to 65507", cfg.Size, HeaderSize)
	}
	s, err := newSender(cfg.From, cfg.To)
	if err != nil {
		return SendReport{}, err
	}
	defer func() { _ = s.conn.Close() }()

	r := SendReport{
		Flow: cfg.Flow, To: cfg.To, Size: cfg.Size, Interval: time.Second / time.Duration(cfg.PPS),
		SendErrors: map[string]uint64{}, Failures: []SendFailure{},
		Start: time.Now().Round(0), StartMono: Monotonic(),
	}
	r.EndMono = r.StartMono
	packets := uint64(maxSeq)
	if cfg.Duration > 0 {
		packets = uint64((cfg.Duration + r.Interval - 1) / r.Interval)
	}
	buf := make([]byte, cfg.Size)
	for r.Sent < packets {
		due := r.StartMono + time.Duration(r.Sent)*r.Interval
		if err := sleepUntil(ctx, due); err != nil {
			if ctx.Err() != nil {
				err = nil
			}
			return r, err
		}
		r.EndMono = Monotonic()
		if late := r.EndMono - due; late > 0 {
			r.MaxLate = max(r.MaxLate, late)
			if late > r.Interval {
				r.Late++
			}
		}
		Packet{Kind: Data, Flow: cfg.Flow, Seq: r.Sent, Sent: r.EndMono, Interval: r.Interval}.Encode(buf)
		if err := s.send(buf); err != nil {
			r.fail(err)
		}
		r.Sent++
	}
	return r, nil
}

// fail books the refusal of the packet with number Sent.
func (r *SendReport) fail(err error) {
	r.Failed++
	cause := reason(err)
	countError(r.SendErrors, cause)
	if n := len(r.Failures); n > 0 {
		if last := &r.Failures[n-1]; last.Error == cause && last.FirstSeq+last.Count == r.Sent {
			last.Count++
			return
		}
	}
	if len(r.Failures) < maxFailures {
		r.Failures = append(r.Failures, SendFailure{r.Sent, 1, cause})
	}
}

// reason returns the text of an error without addresses, so that equal causes have equal texts.
func reason(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err.Error()
	}
	return err.Error()
}

// countError counts an error text; texts beyond the limit share one entry.
func countError(counts map[string]uint64, text string) {
	if _, known := counts[text]; !known && len(counts) >= maxErrors {
		text = "other"
	}
	counts[text]++
}

// sender sends datagrams without ever blocking. Its socket is not connected, because a connected one reports an ICMP
// error by refusing a later packet that it could have sent.
type sender struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	to   unix.Sockaddr
}

func newSender(from netip.Addr, to netip.AddrPort) (*sender, error) {
	if !to.IsValid() || to.Port() == 0 {
		return nil, fmt.Errorf("send to %v: give an address and a port, like 10.0.0.2:7000 or [fd00::2]:7000", to)
	}
	addr := to.Addr().Unmap()
	network, sockaddr, err := sockaddrOf(netip.AddrPortFrom(addr, to.Port()))
	if err != nil {
		return nil, err
	}
	var local *net.UDPAddr
	if from.IsValid() {
		local = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.Unmap(), 0))
	}
	conn, err := net.ListenUDP(network, local)
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &sender{conn, raw, sockaddr}, nil
}

func sockaddrOf(to netip.AddrPort) (network string, sa unix.Sockaddr, err error) {
	if to.Addr().Is4() {
		return "udp4", &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}, nil
	}
	sa6 := &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if zone := to.Addr().Zone(); zone != "" {
		dev, err := net.InterfaceByName(zone)
		if err != nil {
			return "", nil, fmt.Errorf("send to %v: interface %s: %w", to, zone, err)
		}
		sa6.ZoneId = uint32(dev.Index)
	}
	return "udp6", sa6, nil
}

func (s *sender) send(b []byte) error {
	var sendErr error
	err := s.raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, s.to)
		return true
	})
	if err != nil {
		return err
	}
	return sendErr
}
