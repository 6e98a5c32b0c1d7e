package flow

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// asCommand makes the test binary behave as meshlab's flow verb, so that the commands are tested as processes.
const asCommand = "FLOW_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) == "" {
		os.Exit(m.Run())
	}
	root := &cobra.Command{Use: "flow"}
	root.AddCommand(Commands()...)
	if root.Execute() != nil {
		os.Exit(1)
	}
}

// families are the loopback addresses to test with.
func families(t *testing.T, test func(t *testing.T, loopback string)) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		t.Run(addr, func(t *testing.T) {
			ln, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
			if err != nil {
				t.Skipf("needs loopback address %s: %v", addr, err)
			}
			_ = ln.Close()
			test(t, net.JoinHostPort(addr, "0"))
		})
	}
}

// listen starts a receiver and returns its address, and a function that stops it and returns its report.
func listen[T any](t *testing.T, run func(ctx context.Context, listening func(netip.AddrPort)) (T, error)) (netip.AddrPort, func() T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	type result struct {
		report T
		err    error
	}
	at, done := make(chan netip.AddrPort, 1), make(chan result, 1)
	go func() {
		report, err := run(ctx, func(a netip.AddrPort) { at <- a })
		done <- result{report, err}
	}()
	wait := func() T {
		t.Helper()
		r := <-done
		if r.err != nil {
			t.Fatal(r.err)
		}
		return r.report
	}
	select {
	case a := <-at:
		return a, func() T { cancel(); return wait() }
	case r := <-done:
		cancel()
		t.Fatalf("did not listen: %+v", r)
		panic("unreachable")
	}
}

func TestUDPOnLoopback(t *testing.T) {
	families(t, func(t *testing.T, loopback string) {
		at, stop := listen(t, func(ctx context.Context, l func(netip.AddrPort)) (RecvReport, error) {
			return RecvUDP(ctx, RecvConfig{Listen: loopback, Listening: l})
		})
		sent := make(chan SendReport)
		for flow := range uint32(3) {
			go func() {
				s, err := SendUDP(t.Context(), SendConfig{To: at, Flow: flow, PPS: 1000, Size: 100, Duration: 200 * ms})
				if err != nil {
					t.Error(err)
				}
				sent <- s
			}()
		}
		reports := []SendReport{<-sent, <-sent, <-sent}
		stranger, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = stranger.Close() }()
		if _, err := stranger.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		r := stop()
		if len(r.Flows) != 3 || r.Malformed != 1 || r.Overflowed != 0 {
			t.Fatalf("receiver saw %+v", r)
		}
		for _, s := range reports {
			m, err := Merge(s, r)
			if err != nil {
				t.Fatal(err)
			}
			if m.Sent != 200 || m.Lost != 0 || m.Duplicates != 0 || m.Latency.Min < 0 || m.Latency.P50 > m.Latency.Max {
				t.Errorf("flow %d: %+v", s.Flow, m)
			}
			if s.EndMono < s.StartMono+199*ms {
				t.Errorf("200 packets at 1000 per second took %v", s.EndMono-s.StartMono)
			}
		}
	})
}

// pair returns a receiving socket with the options of RecvUDP and a sender to it.
func pair(t *testing.T) (*net.UDPConn, *sender) {
	t.Helper()
	conn, err := listenUDP(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := setOptions(conn, unix.SO_TIMESTAMPNS, unix.SO_RXQ_OVFL); err != nil {
		t.Fatal(err)
	}
	s, err := newSender(netip.Addr{}, localAddr(conn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.conn.Close() })
	return conn, s
}

// TestArrivalIsWhenTheKernelTookIt: a receiver that comes late to its socket sees no gap.
func TestArrivalIsWhenTheKernelTookIt(t *testing.T) {
	conn, s := pair(t)
	var r RecvReport
	buf, oob := make([]byte, 100), make([]byte, 128)
	// The kernel begins to stamp a moment after it was asked.
	for deadline := time.Now().Add(10 * time.Second); ; {
		before := Monotonic()
		if err := s.send(buf); err != nil {
			t.Fatal(err)
		}
		after := Monotonic()
		if err := sleepUntil(t.Context(), after+ms); err != nil {
			t.Fatal(err)
		}
		_, n, _, _, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			t.Fatal(err)
		}
		at := r.arrival(oob[:n])
		const slack = 100 * time.Microsecond // between the readings of two clocks
		if at >= before-slack && at <= after+slack {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("sent between %v and %v, arrived at %v", before, after, at)
		}
	}
}

// TestReceiverCountsItsOwnOverflow: what the receiver's socket could not hold is told apart from the network's loss.
func TestReceiverCountsItsOwnOverflow(t *testing.T) {
	conn, s := pair(t)
	if err := setOption(conn, unix.SO_RCVBUF, 1); err != nil {
		t.Fatal(err)
	}
	const flood = 100
	for range flood {
		if err := s.send(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	// The count rides on packets that were queued after the loss, so follow each read with a marker until one is read.
	var r RecvReport
	buf, oob := make([]byte, 1000), make([]byte, 128)
	for reads := uint64(1); ; reads++ {
		n, oobn, _, _, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			t.Fatal(err)
		}
		r.arrival(oob[:oobn])
		if n == 1 {
			if sent := flood + uint64(buf[0]); r.Overflowed == 0 || reads+r.Overflowed != sent {
				t.Errorf("%d sent, %d read, %d overflowed", sent, reads, r.Overflowed)
			}
			return
		}
		if err := s.send([]byte{byte(reads)}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSendErrorsAreLossWithACause sends from a namespace without any route.
func TestSendErrorsAreLossWithACause(t *testing.T) {
	type result struct {
		report SendReport
		err    error
	}
	done := make(chan result)
	for to, cause := range map[string]string{
		"203.0.113.1:7000":   "network is unreachable",
		"[2001:db8::1]:7000": "cannot assign requested address", // what IPv6 says when there is not even a source
	} {
		go func() {
			runtime.LockOSThread() // for good: the thread and its namespace end with the goroutine
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				done <- result{err: err}
				return
			}
			s, err := SendUDP(t.Context(), SendConfig{To: netip.MustParseAddrPort(to), PPS: 1000, Size: HeaderSize, Duration: 20 * ms})
			done <- result{s, err}
		}()
		r := <-done
		if errors.Is(r.err, fs.ErrPermission) {
			t.Skipf("needs a network namespace: %v", r.err)
		}
		if r.err != nil {
			t.Fatal(r.err)
		}
		s := r.report
		if s.Sent != 20 || s.Failed != 20 || s.SendErrors[cause] != 20 || len(s.Failures) != 1 {
			t.Errorf("to %s: %+v", to, s)
		}
		m, err := Merge(s, RecvReport{GapIntervals: 3})
		if err != nil {
			t.Fatal(err)
		}
		if w := m.Window(s.StartMono, s.EndMono+1); m.Lost != 20 || m.LostAtSend != 20 || w.SendErrors[cause] != 20 {
			t.Errorf("merged: %+v, window %+v", m, w)
		}
	}
}

func TestSendStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s, err := SendUDP(ctx, SendConfig{To: netip.MustParseAddrPort("127.0.0.1:9"), PPS: 1, Size: HeaderSize})
	if err != nil || s.Sent != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestSendRefusesNonsense(t *testing.T) {
	good := SendConfig{To: netip.MustParseAddrPort("127.0.0.1:9"), PPS: 1, Size: HeaderSize}
	for name, spoil := range map[string]func(*SendConfig){
		"no rate":        func(c *SendConfig) { c.PPS = 0 },
		"too fast":       func(c *SendConfig) { c.PPS = 2_000_000 },
		"too small":      func(c *SendConfig) { c.Size = HeaderSize - 1 },
		"too large":      func(c *SendConfig) { c.Size = 65_508 },
		"no address":     func(c *SendConfig) { c.To = netip.AddrPort{} },
		"no port":        func(c *SendConfig) { c.To = netip.AddrPortFrom(c.To.Addr(), 0) },
		"unknown zone":   func(c *SendConfig) { c.To = netip.MustParseAddrPort("[fe80::1%nowhere0]:9") },
		"mixed families": func(c *SendConfig) { c.From = netip.IPv6Loopback() },
	} {
		cfg := good
		spoil(&cfg)
		if _, err := SendUDP(t.Context(), cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTCPOnLoopback(t *testing.T) {
	families(t, func(t *testing.T, loopback string) {
		at, stop := listen(t, func(ctx context.Context, l func(netip.AddrPort)) (TCPRecvReport, error) {
			return RecvTCP(ctx, TCPRecvConfig{Listen: loopback, Interval: 10 * ms, Listening: l})
		})
		s, err := SendTCP(t.Context(), TCPSendConfig{To: at, Streams: 3, Duration: 200 * ms})
		if err != nil {
			t.Fatal(err)
		}
		r := stop()
		sum := uint64(0)
		for _, b := range r.Series {
			sum += b
		}
		if s.Connected != 3 || r.Streams != 3 || r.Bytes == 0 || sum != r.Bytes || r.Bytes > s.Bytes || r.Resets+s.Resets != 0 || len(s.Errors)+len(r.Errors) != 0 {
			t.Errorf("sent %+v, received %+v", s, r)
		}
		if r.Mbps <= 0 || r.Elapsed <= 0 {
			t.Errorf("%v Mbit/s in %v", r.Mbps, r.Elapsed)
		}
	})
}

func TestTCPReceiverEndsWithItsStreamsAndCountsResets(t *testing.T) {
	done := make(chan TCPRecvReport, 1)
	at := make(chan netip.AddrPort, 1)
	go func() {
		r, err := RecvTCP(t.Context(), TCPRecvConfig{Listen: "127.0.0.1:0", Streams: 2, Listening: func(a netip.AddrPort) { at <- a }})
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	to := <-at
	for _, linger := range []int{-1, 0} { // a proper end, and a reset
		conn, err := net.Dial("tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(conn.(*net.TCPConn).SetLinger(linger), conn.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if r := <-done; r.Streams != 2 || r.Resets != 1 {
		t.Errorf("%+v", r)
	}
}

func TestTCPSenderReportsRefusal(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	_ = ln.Close()
	s, err := SendTCP(t.Context(), TCPSendConfig{To: to, Streams: 2, Duration: time.Minute})
	if err != nil || s.Connected != 0 || s.Errors["connection refused"] != 2 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestPingOnLoopback(t *testing.T) {
	families(t, func(t *testing.T, loopback string) {
		at, stop := listen(t, func(ctx context.Context, l func(netip.AddrPort)) (EchoReport, error) {
			return Echo(ctx, EchoConfig{Listen: loopback, Listening: l})
		})
		closed, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at.Addr(), 0)))
		if err != nil {
			t.Fatal(err)
		}
		nobody := localAddr(closed).Port()
		_ = closed.Close()
		r, err := Ping(t.Context(), PingConfig{From: "here", Targets: []Target{
			{"server", at.Addr(), at.Port()}, {"nobody", at.Addr(), nobody}, {"kernel", at.Addr(), 0},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if echo := stop(); echo.Answered != 3 || echo.Malformed != 0 {
			t.Errorf("echo server: %+v", echo)
		}
		server, nobodys, kernel := r.Cells[0], r.Cells[1], r.Cells[2]
		if u := server.UDP; !server.Reached || u.Received != 3 || u.Error != "" || u.Min <= 0 || u.Mean < u.Min || u.Max < u.Mean {
			t.Errorf("server: %+v, %+v", server, u)
		}
		if u := nobodys.UDP; nobodys.Reached || u.Received != 0 || u.Error != "connection refused" {
			t.Errorf("nobody: %+v, %+v", nobodys, u)
		}
		if i := kernel.ICMP; kernel.UDP != nil || i.Forbidden == kernel.Reached || !i.Forbidden && i.Received != 3 {
			t.Errorf("kernel: %+v, %+v", kernel, i)
		}
	})
}

// TestEchoAnswersFromTheAddressAsked: a host has many addresses, and an answer from another one is no answer.
func TestEchoAnswersFromTheAddressAsked(t *testing.T) {
	for _, everywhere := range []string{"0.0.0.0:0", ":0"} {
		at, stop := listen(t, func(ctx context.Context, l func(netip.AddrPort)) (EchoReport, error) {
			return Echo(ctx, EchoConfig{Listen: everywhere, Listening: l})
		})
		r, err := Ping(t.Context(), PingConfig{NoICMP: true, Count: 1, Timeout: 10 * time.Second, Targets: []Target{
			{"odd", netip.MustParseAddr("127.0.0.2"), at.Port()},
		}})
		if err != nil || !r.Cells[0].Reached {
			t.Errorf("at %s: %+v, %v", everywhere, r.Cells[0].UDP, err)
		}
		stop()
	}
}

func TestPingTimesOut(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	at := silent.LocalAddr().(*net.UDPAddr).AddrPort()
	r, err := Ping(t.Context(), PingConfig{NoICMP: true, Count: 2, Timeout: 10 * ms, Targets: []Target{{"silent", at.Addr(), at.Port()}}})
	if err != nil {
		t.Fatal(err)
	}
	if u := r.Cells[0].UDP; u.Sent != 2 || u.Received != 0 || u.Error != errTimeout.Error() || r.Cells[0].Reached {
		t.Errorf("%+v", u)
	}
}
