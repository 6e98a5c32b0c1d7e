package flow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxStreams limits the streams of one TCP sender or receiver.
const maxStreams = 256

// TCPRecvConfig describes a TCP receiver.
type TCPRecvConfig struct {
	Listen   string        // like RecvConfig.Listen
	Interval time.Duration // of the throughput series; 0 means 100 ms
	// Streams ends the receiver when that many streams have ended; 0 receives until the context ends.
	Streams int
	// Listening, if set, is called once when streams will be accepted.
	Listening func(netip.AddrPort)
}

// TCPRecvReport is what a TCP receiver got, over all its streams together.
type TCPRecvReport struct {
	Listen  netip.AddrPort `json:"listen"`
	Streams int            `json:"streams"` // accepted
	Refused int            `json:"refused"` // beyond the limit of 256 at a time
	Bytes   uint64         `json:"bytes"`
	// Elapsed is from the first stream's opening to the last byte.
	Elapsed    time.Duration `json:"elapsed_ns"`
	Mbps       float64       `json:"mbit_per_s"` // Bytes over Elapsed
	Interval   time.Duration `json:"interval_ns"`
	StartMono  time.Duration `json:"start_mono_ns"` // when the series begins
	Start      time.Time     `json:"start"`
	Series     []uint64      `json:"interval_bytes"` // bytes received in each interval, at most 131072
	LongStall  time.Duration `json:"longest_stall_ns"`
	StallStart time.Duration `json:"longest_stall_start_mono_ns"`
	Resets     uint64        `json:"resets"`
	// Errors are the other reasons for which streams ended early, by error text.
	Errors map[string]uint64 `json:"errors"`
}

// tcpReceiver is the shared state of a receiver's streams.
type tcpReceiver struct {
	mu     sync.Mutex // guards all below
	meter  meter
	report TCPRecvReport
	conns  map[net.Conn]struct{}
	ended  int
}

// RecvTCP accepts streams and discards what they carry until ctx ends, which is no error, or all of cfg.Streams have ended.
func RecvTCP(ctx context.Context, cfg TCPRecvConfig) (TCPRecvReport, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // measure TCP
	ln, err := lc.Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return TCPRecvReport{}, err
	}
	if cfg.Interval <= 0 {
		cfg.Interval = 100 * time.Millisecond
	}
	addr := ln.Addr().(*net.TCPAddr).AddrPort()
	t := &tcpReceiver{
		meter: meter{interval: cfg.Interval},
		report: TCPRecvReport{
			Listen: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), Interval: cfg.Interval,
			Errors: map[string]uint64{},
		},
		conns: map[net.Conn]struct{}{},
	}
	if cfg.Listening != nil {
		cfg.Listening(t.report.Listen)
	}
	stop := context.AfterFunc(ctx, func() {
		_ = ln.Close()
		t.hurry()
	})
	defer stop()

	var streams sync.WaitGroup
	for {
		conn, acceptErr := ln.Accept()
		if acceptErr != nil {
			if ctx.Err() == nil {
				err = acceptErr
			}
			break
		}
		if !t.enter(conn) {
			_ = conn.Close()
			continue
		}
		if ctx.Err() != nil {
			t.hurry() // it came between the last hurry and the listener's end
		}
		streams.Go(func() {
			if ended := t.drain(conn); ended == cfg.Streams {
				cancel()
			}
		})
	}
	_ = ln.Close()
	if err != nil {
		t.hurry()
	}
	streams.Wait()
	return t.finish(), err
}

// hurry gives the open streams a last moment.
func (t *tcpReceiver) hurry() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for conn := range t.conns {
		_ = conn.SetReadDeadline(time.Now().Add(drainTime))
	}
}

func (t *tcpReceiver) enter(conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.conns) >= maxStreams {
		t.report.Refused++
		return false
	}
	t.conns[conn] = struct{}{}
	t.report.Streams++
	t.meter.opened(Monotonic())
	return true
}

// drain reads a stream to its end and returns how many have ended with it.
func (t *tcpReceiver) drain(conn net.Conn) int {
	buf := make([]byte, 256<<10)
	for {
		n, err := conn.Read(buf)
		t.mu.Lock()
		if n > 0 {
			t.meter.received(Monotonic(), n)
		}
		if err != nil {
			defer t.mu.Unlock()
			delete(t.conns, conn)
			_ = conn.Close()
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded): // told to stop: still open as far as the meter is concerned
				return t.ended
			case errors.Is(err, io.EOF):
			case errors.Is(err, syscall.ECONNRESET):
				t.report.Resets++
			default:
				countError(t.report.Errors, reason(err))
			}
			t.meter.closed(Monotonic())
			t.ended++
			return t.ended
		}
		t.mu.Unlock()
	}
}

func (t *tcpReceiver) finish() TCPRecvReport {
	t.mu.Lock()
	defer t.mu.Unlock()
	m, r := &t.meter, t.report
	m.finish(Monotonic())
	r.Series = append([]uint64{}, m.series...)
	r.LongStall, r.StallStart = m.stall, m.stallStart
	if r.Streams == 0 {
		return r
	}
	r.Bytes, r.StartMono, r.Start = m.bytes, m.first, wallZero().Add(m.first)
	r.Elapsed = max(m.lastData-m.first, 0)
	r.Mbps = megabits(r.Bytes, r.Elapsed)
	return r
}

func megabits(bytes uint64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(bytes) * 8 / 1e6 / d.Seconds()
}

// TCPSendConfig describes a TCP sender.
type TCPSendConfig struct {
	To      netip.AddrPort
	From    netip.Addr // source address; the zero Addr leaves the choice to the kernel
	Streams int        // parallel ones, 1 to 256; 0 means 1
	// Duration is how long to send; zero sends until the context ends.
	Duration time.Duration
}

// TCPSendReport is what a TCP sender did. Bytes are those the kernel took, so some may not have arrived.
type TCPSendReport struct {
	To        netip.AddrPort `json:"to"`
	Streams   int            `json:"streams"`
	Connected int            `json:"connected"`
	Bytes     uint64         `json:"bytes"`
	Elapsed   time.Duration  `json:"elapsed_ns"`
	Mbps      float64        `json:"mbit_per_s"`
	// Retransmits counts segments, from the kernel's own counters.
	Retransmits uint64 `json:"retransmits"`
	Resets      uint64 `json:"resets"`
	// Errors are the other reasons for which streams did not start or ended early, by error text.
	Errors    map[string]uint64 `json:"errors"`
	Start     time.Time         `json:"start"`
	StartMono time.Duration     `json:"start_mono_ns"`
}

// SendTCP sends on all streams as fast as they go until the duration is over or ctx ends, which is no error. A stream that
// breaks is not opened again.
func SendTCP(ctx context.Context, cfg TCPSendConfig) (TCPSendReport, error) {
	if cfg.Streams == 0 {
		cfg.Streams = 1
	}
	if cfg.Streams < 0 || cfg.Streams > maxStreams {
		return TCPSendReport{}, fmt.Errorf("send %d streams: give 1 to %d", cfg.Streams, maxStreams)
	}
	if cfg.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cfg.Duration)
		defer cancel()
	}
	r := TCPSendReport{
		To: cfg.To, Streams: cfg.Streams, Errors: map[string]uint64{},
		Start: time.Now().Round(0), StartMono: Monotonic(),
	}
	var mu sync.Mutex // guards r while streams run
	var streams sync.WaitGroup
	for range cfg.Streams {
		streams.Go(func() {
			s := sendStream(ctx, cfg)
			mu.Lock()
			defer mu.Unlock()
			r.Bytes += s.bytes
			r.Retransmits += s.retransmits
			if s.connected {
				r.Connected++
			}
			switch {
			case s.err == nil:
			case errors.Is(s.err, syscall.ECONNRESET), errors.Is(s.err, syscall.EPIPE):
				r.Resets++
			default:
				countError(r.Errors, reason(s.err))
			}
		})
	}
	streams.Wait()
	r.Elapsed = Monotonic() - r.StartMono
	r.Mbps = megabits(r.Bytes, r.Elapsed)
	return r, nil
}

// stream is what one stream of a sender did.
type stream struct {
	connected   bool
	bytes       uint64
	retransmits uint64
	err         error // nil if it went on until ctx ended
}

func sendStream(ctx context.Context, cfg TCPSendConfig) (s stream) {
	d := net.Dialer{}
	d.SetMultipathTCP(false)
	if cfg.From.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(cfg.From, 0))
	}
	conn, err := d.DialContext(ctx, "tcp", cfg.To.String())
	if err != nil {
		s.err = err
		return s
	}
	defer func() { _ = conn.Close() }()
	s.connected = true
	defer context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Now()) })()
	buf := make([]byte, 128<<10)
	for s.err == nil {
		var n int
		n, s.err = conn.Write(buf)
		s.bytes += uint64(n)
	}
	s.retransmits = retransmits(conn.(*net.TCPConn))
	if errors.Is(s.err, os.ErrDeadlineExceeded) {
		s.err = nil
	}
	return s
}

// retransmits returns how many segments the kernel has sent again on a connection, 0 if it does not say.
func retransmits(conn *net.TCPConn) (n uint64) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = uint64(info.Total_retrans)
		}
	})
	return n
}
