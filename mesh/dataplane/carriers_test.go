package dataplane

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"guywire/mesh/carrier"
)

// A wireguard stands in for a tunnel: a UDP socket that sends to its endpoint.
type wireguard struct {
	*net.UDPConn
	t testing.TB
}

func newWireguard(t testing.TB) wireguard {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return wireguard{conn, t}
}

func (w wireguard) port() uint16 { return w.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

func (w wireguard) send(to netip.AddrPort, text string) {
	w.t.Helper()
	if _, err := w.WriteToUDPAddrPort([]byte(text), to); err != nil {
		w.t.Fatal(err)
	}
}

// next is the next datagram, and whether one came in time.
func (w wireguard) next(limit time.Duration) (text string, from netip.AddrPort, came bool) {
	buf := make([]byte, 65535)
	if err := w.SetReadDeadline(time.Now().Add(limit)); err != nil {
		w.t.Fatal(err)
	}
	n, from, err := w.ReadFromUDPAddrPort(buf)
	return string(buf[:n]), from, err == nil
}

// talk sends text from one end of a carrier until it comes out at the other.
func talk(t testing.TB, from, to wireguard, endpoint, farEndpoint netip.AddrPort, text string) {
	t.Helper()
	eventually(t, text+" arrives", func() bool {
		from.send(endpoint, text)
		got, source, came := to.next(100 * time.Millisecond)
		for came && got != text { // what was said before
			got, source, came = to.next(100 * time.Millisecond)
		}
		if came && source != farEndpoint {
			t.Fatalf("%s came from %s, not from the endpoint %s", text, source, farEndpoint)
		}
		return came
	})
}

// An end is a process's carriers, in this process, with a door: a TCP listener
// in front of accept.
type end struct {
	*carriers
	t    testing.TB
	wg   wireguard
	door net.Listener
}

func newEnd(t testing.TB) *end {
	t.Helper()
	c, err := newCarriers(slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.closeAll)
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { door.Close() })
	go func() {
		for {
			conn, err := door.Accept()
			if err != nil {
				return
			}
			_ = c.accept(conn.(*net.TCPConn)) // refused: the far end hears of it
		}
	}()
	return &end{c, t, newWireguard(t), door}
}

func (e *end) addr() netip.AddrPort { return e.door.Addr().(*net.TCPAddr).AddrPort() }

// accepting is the spec of a carrier that e accepts from the other end, and
// dialling the same carrier there.
func (e *end) accepting(from *end, id byte) Carrier {
	return Carrier{ID: [16]byte{id}, PeerPin: from.pin, Token: [16]byte{0xfe, id}, Port: e.wg.port()}
}

func (e *end) dialling(to *end, id byte) Carrier {
	return Carrier{ID: [16]byte{id}, Addr: to.addr(), PeerPin: to.pin, Token: [16]byte{0xfe, id}, Port: e.wg.port()}
}

func (e *end) mustOpen(spec Carrier) netip.AddrPort {
	e.t.Helper()
	local, err := e.open(spec)
	if err != nil {
		e.t.Fatal(err)
	}
	return local
}

func (e *end) status(id byte) CarrierStatus {
	for _, s := range e.list() {
		if s.ID == [16]byte{id} {
			return s
		}
	}
	return CarrierStatus{}
}

func TestCarrierCarries(t *testing.T) {
	t.Parallel()
	a, b := newEnd(t), newEnd(t)
	atB := b.mustOpen(b.accepting(a, 1))
	atA := a.mustOpen(a.dialling(b, 1))
	talk(t, a.wg, b.wg, atA, atB, "from a")
	talk(t, b.wg, a.wg, atB, atA, "from b")
	for _, size := range []int{1, carrier.MaxDatagram} {
		talk(t, a.wg, b.wg, atA, atB, strings.Repeat("x", size))
	}
	before := a.status(1).Dropped
	a.wg.send(atA, strings.Repeat("y", carrier.MaxDatagram+1))
	eventually(t, "what is too long is dropped", func() bool { return a.status(1).Dropped == before+1 })
	for _, e := range []*end{a, b} {
		if s := e.status(1); !s.Connected || s.Sent < 2 || s.Received < 2 {
			t.Errorf("%+v", s)
		}
	}

	// Others of this machine can neither listen nor speak.
	stranger := newWireguard(t)
	stranger.send(atA, "stranger")
	talk(t, a.wg, b.wg, atA, atB, "after the stranger")
	talk(t, b.wg, a.wg, atB, atA, "to a still")
	if text, _, came := stranger.next(time.Millisecond); came {
		t.Errorf("a stranger heard %q", text)
	}

	// WireGuard moves: the carrier stays.
	moved := newWireguard(t)
	spec := a.dialling(b, 1)
	spec.Port = moved.port()
	if again := a.mustOpen(spec); again != atA {
		t.Errorf("opened again at %s, was %s", again, atA)
	}
	talk(t, b.wg, moved, atB, atA, "to the new port")
	talk(t, moved, b.wg, atA, atB, "from the new port")
	spec.Token[0]++
	if _, err := a.open(spec); !errors.Is(err, ErrExists) {
		t.Errorf("another carrier of the same ID: %v", err)
	}
	other := b.accepting(a, 2)
	other.Token = b.accepting(a, 1).Token
	if _, err := b.open(other); !errors.Is(err, ErrExists) {
		t.Errorf("another carrier of the same token: %v", err)
	}
}

// The first handshake of a tunnel is sent before there is a connection.
func TestCarrierKeepsTheFirstDatagram(t *testing.T) {
	t.Parallel()
	a, b := newEnd(t), newEnd(t)
	b.mustOpen(b.accepting(a, 1))
	r, err := openRelay(a.dialling(b, 1), a.log)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	r.tasks.Go(r.fromWireGuard)
	a.wg.send(r.local, "hello")
	<-r.wake
	r.wake <- struct{}{}
	r.tasks.Go(func() { r.dial(a.clientTLS(b.pin)) })
	if text, _, came := b.wg.next(20 * time.Second); !came || text != "hello" {
		t.Errorf("%q, %v", text, came)
	}
}

// What a carrier needs of its socket, on both ends.
func TestCarrierSocketOptions(t *testing.T) {
	t.Parallel()
	a, b := newEnd(t), newEnd(t)
	b.mustOpen(b.accepting(a, 1))
	spec := a.dialling(b, 1)
	spec.Mark = 0x8603
	needMark(t)
	a.mustOpen(spec)
	for _, e := range []*end{a, b} {
		eventually(t, "connected", func() bool { return e.status(1).Connected })
		r := e.relays[spec.ID]
		r.mu.Lock()
		raw, err := r.conn.NetConn().(*net.TCPConn).SyscallConn()
		r.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		mark := 0
		if e == a {
			mark = 0x8603
		}
		for _, o := range []struct{ level, option, want int }{
			{unix.SOL_SOCKET, unix.SO_MARK, mark},
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 10_000},
			{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 64 << 10},
		} {
			if err := control(raw, func(fd int) error {
				got, err := unix.GetsockoptInt(fd, o.level, o.option)
				if got != o.want {
					t.Errorf("option %d of level %d is %d, want %d", o.option, o.level, got, o.want)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		udp, err := r.udp.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := control(udp, func(fd int) error {
			got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
			if got != 0 {
				t.Errorf("the socket to WireGuard has the mark %#x", got)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// needMark skips where a mark cannot be set.
func needMark(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 1); err != nil {
		t.Skip("needs CAP_NET_ADMIN for marks:", err)
	}
}

func TestCarrierRedials(t *testing.T) {
	t.Parallel()
	a, b := newEnd(t), newEnd(t)
	atA := a.mustOpen(a.dialling(b, 1)) // nobody accepts yet
	eventually(t, "the failure is told", func() bool { return a.status(1).Error != "" })
	atB := b.mustOpen(b.accepting(a, 1))
	talk(t, a.wg, b.wg, atA, atB, "first")
	if err := b.close([16]byte{1}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end is told", func() bool { return !a.status(1).Connected })
	if err := b.close([16]byte{1}); !errors.Is(err, ErrNoCarrier) {
		t.Errorf("closed twice: %v", err)
	}
	atB = b.mustOpen(b.accepting(a, 1))
	talk(t, a.wg, b.wg, atA, atB, "second")

	// The far end dials again while this end believes in the old connection.
	r := a.relays[[16]byte{1}]
	old := b.relays[[16]byte{1}]
	old.mu.Lock()
	before := old.conn
	old.mu.Unlock()
	conn, split, err := r.connect(a.clientTLS(b.pin))
	if err != nil {
		t.Fatal(err)
	}
	go r.use(conn, split)
	eventually(t, "the newer connection is used", func() bool {
		old.mu.Lock()
		defer old.mu.Unlock()
		return old.conn != nil && old.conn != before
	})
	talk(t, b.wg, a.wg, atB, atA, "third")
}

// A deaf is a far end that agrees and then reads only when told.
type deaf struct {
	conns chan *tls.Conn
	addr  netip.AddrPort
}

func newDeaf(t *testing.T, of *end, spec Carrier) deaf {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	d := deaf{make(chan *tls.Conn, 1), ln.Addr().(*net.TCPAddr).AddrPort()}
	go func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			config := of.tls(func([32]byte) bool { return true })
			config.ClientAuth = tls.RequireAnyClientCert
			conn := tls.Server(raw, config)
			token, err := readToken(conn, new(carrier.Splitter))
			if err != nil || string(token) != string(spec.Token[:]) {
				t.Errorf("token %x, %v", token, err)
				return
			}
			conn.Write(carrier.AppendFrame(nil, token))
			d.conns <- conn
		}
	}()
	return d
}

// A far end that does not read costs datagrams, never time: nothing waits but
// 64 of them, and the newest arrive.
func TestCarrierDropsWhenFull(t *testing.T) {
	t.Parallel()
	a, far := newEnd(t), newEnd(t)
	spec := a.dialling(far, 1)
	d := newDeaf(t, far, spec)
	spec.Addr = d.addr
	atA := a.mustOpen(spec)
	conn := <-d.conns
	defer conn.Close()

	number := uint32(0)
	datagram := make([]byte, 1400)
	push := func() {
		binary.BigEndian.PutUint32(datagram, number)
		number++
		if _, err := a.wg.WriteToUDPAddrPort(datagram, atA); err != nil {
			t.Fatal(err)
		}
	}
	for limit := 200_000; a.status(1).Dropped < 1000; limit-- {
		if limit == 0 {
			t.Fatal("nothing was dropped")
		}
		push()
	}
	if sent := a.status(1).Sent; sent > uint64(number)*1402 {
		t.Errorf("%d bytes sent of %d datagrams", sent, number)
	}
	// It reads again: the old ones from the kernel's buffers, then new ones.
	mark := number
	seen := make(chan struct{})
	go func() {
		defer close(seen)
		split := new(carrier.Splitter)
		last := int64(-1)
		for {
			n, err := conn.Read(split.Room())
			split.Filled(n)
			for {
				got, bad := split.Next()
				if bad != nil {
					t.Error(bad)
					return
				}
				if got == nil {
					break
				}
				if now := int64(binary.BigEndian.Uint32(got)); now <= last {
					t.Errorf("%d after %d", now, last)
					return
				} else if last = now; now >= int64(mark) {
					return
				}
			}
			if err != nil {
				t.Errorf("the connection ended: %v", err)
				return
			}
		}
	}()
	eventually(t, "new datagrams arrive", func() bool {
		push()
		select {
		case <-seen:
			return true
		default:
			return false
		}
	})
}

// Who has not the agreed key or token is told nothing, sent nothing and heard
// by nobody.
func TestCarrierWrongPin(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, want string
		spoil      func(dial, accept *Carrier)
	}{
		{"the far end's key", "agreed", func(dial, _ *Carrier) { dial.PeerPin[5]++ }},
		{"the dialler's key", "carrier", func(_, accept *Carrier) { accept.PeerPin[5]++ }},
		{"token", "no such carrier", func(dial, _ *Carrier) { dial.Token[5]++ }},
		// Another member's carrier: its token does not help without its key.
		{"token of another", "no such carrier", func(dial, _ *Carrier) { dial.Token = [16]byte{9} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a, b, third := newEnd(t), newEnd(t), newEnd(t)
			dial, accept := a.dialling(b, 1), b.accepting(a, 1)
			other := b.accepting(third, 2)
			other.Token = [16]byte{9}
			tt.spoil(&dial, &accept)
			b.mustOpen(accept)
			b.mustOpen(other)
			atA := a.mustOpen(dial)
			eventually(t, "the failure is told", func() bool {
				a.wg.send(atA, "secret")
				return a.status(1).Error != ""
			})
			s := a.status(1)
			if !strings.Contains(s.Error, tt.want) || s.Connected || s.Sent != 0 {
				t.Errorf("%+v, want an error with %q", s, tt.want)
			}
			for id := range byte(2) {
				if s := b.status(id + 1); s.Connected || s.Received != 0 {
					t.Errorf("at the other end: %+v", s)
				}
			}
			if text, _, came := b.wg.next(time.Millisecond); came {
				t.Errorf("%q came through", text)
			}
		})
	}
}

// What costs the one who connects nothing costs no carrier its place: silent
// connections, and such as say a byte now and then.
func TestCarrierSilentAndSlow(t *testing.T) {
	t.Parallel()
	a, b := newEnd(t), newEnd(t)
	if conn, err := net.Dial("tcp", b.addr().String()); err != nil {
		t.Fatal(err)
	} else if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a connection that nothing waits for was kept")
	}
	atB := b.mustOpen(b.accepting(a, 1))
	stop := make(chan struct{})
	var slow sync.WaitGroup
	defer slow.Wait()
	defer close(stop)
	ended := make(chan time.Duration, 4*maxPending)
	// From another source than the honest one, which so keeps its place.
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for i := range 3 * maxPending {
		conn, err := from.DialContext(t.Context(), "tcp4", b.addr().String())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		slow.Go(func() {
			defer conn.Close()
			if i%2 == 0 {
				if _, err := conn.Write([]byte("\x16\x03\x01\x02\x00\x01")); err != nil {
					return
				}
			}
			go func() { <-stop; conn.Close() }()
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for range tick.C {
				if i%2 == 0 {
					if _, err := conn.Write([]byte{0}); err != nil {
						break
					}
				}
				if conn.SetReadDeadline(time.Now().Add(time.Millisecond)) != nil {
					return // stopped
				}
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
			}
			ended <- time.Since(began)
		})
	}
	b.mu.Lock()
	waiting := len(b.pending)
	b.mu.Unlock()
	if waiting > maxPending {
		t.Errorf("%d connections wait, bound is %d", waiting, maxPending)
	}
	atA := a.mustOpen(a.dialling(b, 1))
	talk(t, a.wg, b.wg, atA, atB, "through the crowd")
	eventually(t, "all of the crowd are sent away", func() bool { return len(ended) == 3*maxPending })
	b.mu.Lock()
	waiting = len(b.pending)
	b.mu.Unlock()
	if waiting != 0 {
		t.Errorf("%d connections wait still", waiting)
	}
	talk(t, b.wg, a.wg, atB, atA, "after the crowd")
}

// A carrier of the longest names in the longest list has room in an answer.
func TestCarriersFitAReply(t *testing.T) {
	t.Parallel()
	var r reply
	for range maxCarriers {
		r.Carriers = append(r.Carriers, wireOfStatus(CarrierStatus{
			Addr: netip.MustParseAddrPort("[2001:db80:1111:2222:3333:4444:5555:6666]:65535"), Local: netip.MustParseAddrPort("127.0.0.1:65535"),
			Port: 65535, Since: time.Now(), Sent: 1 << 63, Received: 1 << 63, Dropped: 1 << 63, Error: strings.Repeat("\"", maxFailure),
		}))
	}
	b, err := json.Marshal(r)
	if err != nil || len(b) >= maxReply {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestCarrierBounds(t *testing.T) {
	t.Parallel()
	a := newEnd(t)
	for i := range maxCarriers {
		a.mustOpen(Carrier{ID: [16]byte{byte(i), 1}, Token: [16]byte{byte(i)}, Port: 1})
	}
	if _, err := a.open(Carrier{ID: [16]byte{0, 2}, Token: [16]byte{0, 2}, Port: 1}); err == nil {
		t.Error("one more was opened")
	}
}

func TestCarriersLeakNothing(t *testing.T) {
	a, b := newEnd(t), newEnd(t)
	round := 0
	cycle := func(n int) {
		for range n {
			round++
			atB := b.mustOpen(b.accepting(a, 1))
			atA := a.mustOpen(a.dialling(b, 1))
			talk(t, a.wg, b.wg, atA, atB, fmt.Sprint("round ", round))
			for _, e := range []*end{a, b} {
				if err := e.close([16]byte{1}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	cycle(3)
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	cycle(20)
	eventually(t, "all goroutines of 20 carriers have ended", func() bool { return runtime.NumGoroutine() <= goroutines })
	eventually(t, "all descriptors of 20 carriers are closed", func() bool { return openFiles(t) <= files })
}

// doorman starts a process in front of a data plane, as the agent is one.
func doorman(t *testing.T, c Client) (*exec.Cmd, netip.AddrPort) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "run-doorman", c.Socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, netip.MustParseAddrPort(strings.TrimSpace(line))
}

// Two data-plane processes, and agents that are killed: the carrier goes on, and
// the next agent finds it.
func TestCarrierSurvivesAgent(t *testing.T) {
	if os.Getenv(inside) == "" {
		t.Skip("needs to make network and mount namespaces")
	}
	near, far := spawner(t, "run-dataplane"), spawner(t, "run-dataplane")
	for _, s := range []Spawner{near, far} {
		if err := s.Ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Shutdown(context.Background(), true) })
	}
	agent, addr := doorman(t, far.Client)
	pins := [2][32]byte{}
	for i, s := range []Spawner{near, far} {
		var err error
		if pins[i], err = s.Pin(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if pins[0] == pins[1] {
		t.Fatal("two processes have one key")
	}
	a, b := newWireguard(t), newWireguard(t)
	id, token := [16]byte{7}, [16]byte{8}
	specA := Carrier{ID: id, Addr: addr, PeerPin: pins[1], Token: token, Port: a.port()}
	specB := Carrier{ID: id, PeerPin: pins[0], Token: token, Port: b.port()}
	atB, err := far.OpenCarrier(t.Context(), specB)
	if err != nil {
		t.Fatal(err)
	}
	atA, err := near.OpenCarrier(t.Context(), specA)
	if err != nil {
		t.Fatal(err)
	}
	talk(t, a, b, atA, atB, "before")
	since := mustStatus(t, near.Client).Since

	signalTo(t, agent.Process.Pid, unix.SIGKILL)
	agent.Wait()
	talk(t, a, b, atA, atB, "without an agent")
	talk(t, b, a, atB, atA, "and back")

	// The next agent: the same carrier at the same endpoint, not a new one.
	found := mustStatus(t, near.Client)
	if found.ID != id || found.Local != atA || found.Addr != addr || found.Port != a.port() || !found.Connected || !found.Since.Equal(since) {
		t.Errorf("%+v", found)
	}
	if again, err := near.OpenCarrier(t.Context(), specA); err != nil || again != atA {
		t.Errorf("opened again: %s, %v", again, err)
	}
	if err := near.Shutdown(t.Context(), false); !errors.Is(err, ErrBusy) {
		t.Errorf("shutdown with a carrier: %v", err)
	}
	if err := near.CloseCarrier(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if list, err := near.Carriers(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("after close: %v, %v", list, err)
	}
	if err := near.CloseCarrier(t.Context(), id); !errors.Is(err, ErrNoCarrier) {
		t.Errorf("closed again: %v", err)
	}
	if err := near.Shutdown(t.Context(), false); err != nil {
		t.Error(err)
	}
}

func mustStatus(t *testing.T, c Client) CarrierStatus {
	t.Helper()
	list, err := c.Carriers(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	return list[0]
}

// What crosses the socket is the connection as it is, with every byte that had
// arrived; anything else is refused, and nothing stays open.
func TestHandOverReadsNothing(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/s"
	sock, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	taken := make(chan *net.TCPConn, 1)
	served := make(chan struct{})
	go func() {
		defer close(served)
		sock.serve(maxControl, func(conn *net.UnixConn) {
			c := &rightsConn{idleConn: idleConn{conn, controlIdle}}
			defer c.drop()
			line, err := bufio.NewReader(c).ReadSlice('\n')
			if err != nil {
				return // it hung up
			}
			if req, err := decodeRequest(line); err != nil || req.Op != opAccept {
				t.Errorf("%s: %v", line, err)
			}
			tcp, err := c.take()
			if err != nil {
				answer(c, failure(err))
				return
			}
			answer(c, reply{})
			taken <- tcp
		})
	}()
	defer func() {
		idle, err := net.Dial("unix", path) // one that says nothing is closed like any other
		if err != nil {
			t.Fatal(err)
		}
		defer idle.Close()
		eventually(t, "it is served", func() bool {
			sock.mu.Lock()
			defer sock.mu.Unlock()
			return len(sock.conns) > 0
		})
		sock.close()
		<-served
	}()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client := Client{path}
	round := func() {
		t.Helper()
		far, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(far, "early ")
		if err := client.HandOver(t.Context(), conn.(*net.TCPConn)); err != nil {
			t.Fatal(err)
		}
		conn.Close() // must not end it
		got := <-taken
		defer got.Close()
		fmt.Fprint(far, "late")
		text := make([]byte, len("early late"))
		for read := 0; read < len(text); {
			n, err := got.Read(text[read:])
			if err != nil {
				t.Fatal(err)
			}
			read += n
		}
		if string(text) != "early late" {
			t.Errorf("read %q", text)
		}
		if _, err := got.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := far.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	round()
	files := openFiles(t)
	for range 20 {
		round()
		// A file that is no connection, two of them, and none at all.
		for _, fds := range [][]int{{0}, {1, 2}, nil} {
			conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			var rights []byte
			if fds != nil {
				rights = unix.UnixRights(fds...)
			}
			if _, _, err := conn.WriteMsgUnix([]byte("{\"op\":\"accept\"}\n"), rights, nil); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(conn).ReadSlice('\n')
			if err != nil {
				t.Fatal(err)
			}
			if r, err := decodeReply(line); err != nil || !errors.Is(r.err(), ErrInvalid) {
				t.Errorf("%v: %s, %v", fds, line, err)
			}
			conn.Close()
		}
	}
	eventually(t, "all descriptors are closed", func() bool { return openFiles(t) <= files })
}

// Where the kernel makes the tunnels there may be no TUN devices: carriers do
// not need them, and a device that is asked for says so.
func TestCarrierWithoutTUN(t *testing.T) {
	if os.Getenv(inside) == "" {
		t.Skip("needs to make network and mount namespaces")
	}
	s := spawner(t, "run-tunless")
	if err := s.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Shutdown(context.Background(), true) })
	if _, err := s.OpenCarrier(t.Context(), Carrier{ID: [16]byte{1}, Port: 1}); err != nil {
		t.Error(err)
	}
	if err := s.Create(t.Context(), "gw-a", 1420); err == nil || !strings.Contains(err.Error(), "load the tun module") {
		t.Errorf("create: %v", err)
	}
}
