package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// theirs is a protocol of which this package knows only the name.
const theirs = "somebody-elses/1"

// helloOf is what a client of crypto/tls that offers the protocols writes first.
func helloOf(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer far.Close()
	go func() {
		defer near.Close()
		config.InsecureSkipVerify = true
		_ = tls.Client(near, config).Handshake() // nobody answers
	}()
	b := make([]byte, 1<<16)
	n, err := far.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// A script is a connection that says one thing and then ends.
type script struct {
	net.Conn
	io.Reader
}

func (s script) Read(b []byte) (int, error)      { return s.Reader.Read(b) }
func (script) Write(b []byte) (int, error)       { return len(b), nil }
func (script) Close() error                      { return nil }
func (script) SetDeadline(time.Time) error       { return nil }
func (script) SetWriteDeadline(time.Time) error  { return nil }
func (script) RemoteAddr() net.Addr              { return &net.TCPAddr{} }
func (script) LocalAddr() net.Addr               { return &net.TCPAddr{} }
func (s script) SetReadDeadline(time.Time) error { return nil }

// asTLS is the slow oracle: what crypto/tls reads in a ClientHello, if it reads
// it to the end.
func asTLS(b []byte) (names []string, read bool) {
	_ = tls.Server(script{Reader: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		names, read = h.SupportedProtos, true
		return nil, errors.New("enough")
	}}).Handshake()
	return names, read
}

func hellos(t testing.TB) [][]byte {
	long := strings.Repeat("x", 255)
	return [][]byte{
		helloOf(t, &tls.Config{NextProtos: []string{theirs}}),
		helloOf(t, &tls.Config{NextProtos: []string{"h2", theirs, "http/1.1"}, ServerName: "example.net"}),
		helloOf(t, &tls.Config{ServerName: "example.net", MaxVersion: tls.VersionTLS12}),
		helloOf(t, &tls.Config{NextProtos: []string{Control}, CurvePreferences: []tls.CurveID{tls.X25519}}),
		helloOf(t, &tls.Config{NextProtos: slices.Repeat([]string{long}, 20)}), // does not fit
	}
}

func TestOffered(t *testing.T) {
	t.Parallel()
	for i, want := range [][]string{{theirs}, {"h2", theirs, "http/1.1"}, nil, {Control}, nil} {
		hello := hellos(t)[i]
		if got, whole := offered(hello); !whole || !slices.Equal(got, want) {
			t.Errorf("hello %d of %d bytes offers %q, whole %v; want %q", i, len(hello), got, whole, want)
		}
	}
	for _, foreign := range []string{"GET / HTTP/1.1\r\n", "SSH-2.0-", "\x80\x2e\x01\x00\x02", "\x00", "\x16\x03\x01\x40\x00", "\x15\x03\x01\x00\x02\x02\x28"} {
		if got, whole := offered([]byte(foreign)); got != nil || !whole {
			t.Errorf("%q: %q, whole %v", foreign, got, whole)
		}
	}
}

// craft is a small ClientHello of TLS 1.2 with a server name and the protocols.
func craft(names []string) []byte {
	vector := func(size int, parts ...[]byte) []byte {
		all := bytes.Join(parts, nil)
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(all)))[4-size:], all...)
	}
	var list []byte
	for _, n := range names {
		list = append(list, vector(1, []byte(n))...)
	}
	extensions := slices.Concat([]byte{0, 0}, vector(2, vector(2, []byte{0}, vector(2, []byte("example.net")))))
	if names != nil {
		extensions = slices.Concat(extensions, []byte{0, 16}, vector(2, vector(2, list)))
	}
	body := slices.Concat([]byte{3, 3}, make([]byte, 32), vector(1), vector(2, []byte{0xc0, 0x2f}), vector(1, []byte{0}), vector(2, extensions))
	return slices.Concat([]byte{22, 3, 1}, vector(2, []byte{1}, vector(3, body)))
}

// FuzzOffered: what the peek says is what crypto/tls will say, from the byte on
// with which the ClientHello is whole and not before.
func FuzzOffered(f *testing.F) {
	// All is fixed, so that every process of the fuzzer sees the same.
	for _, names := range [][]string{nil, {theirs}, {"h2", theirs}} {
		h := craft(names)
		if got, read := asTLS(h); !read || !slices.Equal(got, names) {
			f.Fatalf("crypto/tls reads %q, %v in a hello for %q", got, read, names)
		}
		f.Add(h, uint16(len(h)-1))
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(3))
	f.Add([]byte("\x16\x03\x01\x00\x00"), uint16(2))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		names, whole := offered(b)
		if !whole && names != nil {
			t.Fatal("names before the end")
		}
		before := b[:min(int(cut), len(b))]
		if some, done := offered(before); done && (!whole || !slices.Equal(some, names)) {
			t.Fatalf("%q of %d bytes, %q of %d", some, len(before), names, len(b))
		}
		if !whole || len(b) < 5 {
			return
		}
		first := b[:min(len(b), 5+int(b[3])<<8+int(b[4]))]
		want, read := asTLS(first)
		if len(first) > maxHello {
			want = nil
		}
		if read && !slices.Equal(names, want) {
			t.Fatalf("offers %q, crypto/tls reads %q", names, want)
		}
	})
}

// A sink takes what is diverted, as the data plane does: a copy of the
// connection, of which nothing has been read.
type sink struct {
	t     *testing.T
	files chan *os.File
}

func (s sink) divert(_ context.Context, conn *net.TCPConn) {
	f, err := conn.File()
	if err != nil {
		s.t.Error(err)
		return
	}
	s.files <- f
}

func listenDiverting(t *testing.T, n node, divert func(context.Context, *net.TCPConn), also ...string) *Listener {
	t.Helper()
	l, err := Listen(ListenConfig{
		Address: "127.0.0.1:0", Also: also, Trust: n.trust, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Divert: map[string]func(context.Context, *net.TCPConn){theirs: divert},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestDivertByALPN(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server, client := newNode(t, ca, time.Now()), newNode(t, ca, time.Now())
	s := sink{t, make(chan *os.File, 1)}
	l := listenDiverting(t, server, s.divert, "127.0.0.1:0")
	go greet(l.Stream(Control))
	if len(l.Also()) != 1 || l.Also()[0].Port() == l.Addr().Port() {
		t.Fatalf("also at %v", l.Also())
	}
	for _, addr := range append(l.Also(), l.Addr()) {
		// Our own protocols are as before, on both ports.
		c, err := client.dialer().DialNode(t.Context(), addr, server.id, Control)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, c); got != client.id.String() {
			t.Errorf("server said %q", got)
		}
		// Byte by byte, and more behind it: nothing is missing at the other end.
		hello := helloOf(t, &tls.Config{NextProtos: []string{"h2", theirs}})
		raw, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range hello {
			if _, err := raw.Write([]byte{b}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.WriteString(raw, "more"); err != nil {
			t.Fatal(err)
		}
		f := <-s.files
		diverted, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(hello)+len("more"))
		diverted.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadFull(diverted, got); err != nil || string(got) != string(hello)+"more" {
			t.Errorf("%d bytes differ from what was sent, %v", len(got), err)
		}
		if _, err := io.WriteString(diverted, "answer"); err != nil {
			t.Error(err)
		}
		diverted.Close()
		if got := read(t, raw); got != "answer" {
			t.Errorf("read %q", got)
		}
		raw.Close()
	}
	eventually(t, "all places are given back", func() bool { return pendingOf(l) == 0 })
}

// A port that another program holds is done without.
func TestAlsoInUse(t *testing.T) {
	t.Parallel()
	n := newNode(t, newAuthority(t), time.Now())
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var log bytes.Buffer
	l, err := Listen(ListenConfig{
		Address: "127.0.0.1:0", Also: []string{taken.Addr().String(), "127.0.0.1:0"}, Trust: n.trust,
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	also := l.Also()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if len(also) != 1 || also[0].Port() == 0 || also[0].String() == taken.Addr().String() {
		t.Errorf("also at %v", also)
	}
	if said := log.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, taken.Addr().String()) || !strings.Contains(said, "port is in use") {
		t.Errorf("the log says:\n%s", said)
	}
	// Closed means free again.
	again, err := net.Listen("tcp", also[0].String())
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func pendingOf(l *Listener) int {
	l.gate.mu.Lock()
	defer l.gate.mu.Unlock()
	return l.gate.waiting
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// The peek ends after a bounded time and a bounded number of bytes, whatever
// comes; and whoever is looked at, or is on its way elsewhere, takes a place
// among those in the handshake, and no more.
func TestPeekIsBounded(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server, client := newNode(t, ca, time.Now()), newNode(t, ca, time.Now())
	server.trust.Member = members(client)
	release := make(chan struct{})
	stuck := make(chan struct{}, 1000)
	l := listenDiverting(t, server, func(ctx context.Context, _ *net.TCPConn) {
		stuck <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
		}
	})
	go greet(l.Stream(Control))
	dial := func(from byte) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, from)}}
		c, err := d.DialContext(t.Context(), "tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	hello := helloOf(t, &tls.Config{NextProtos: []string{theirs}})
	for range 2 * maxPendingSource { // wanted elsewhere, where nobody takes them
		c := dial(2)
		if _, err := c.Write(hello); err != nil {
			t.Fatal(err)
		}
	}
	<-stuck
	var silent []net.Conn
	for i := range 2 * maxPending {
		c := dial(byte(3 + i%20))
		switch i % 3 {
		case 1: // a part of a ClientHello
			c.Write(hello[:len(hello)-1])
		case 2: // a record that is too long for one
			c.Write(append([]byte("\x16\x03\x01\x40\x00"), make([]byte, 5000)...))
		}
		silent = append(silent, c)
	}
	honest, err := client.dialer().DialNode(t.Context(), l.Addr(), server.id, Control)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, honest); got != client.id.String() {
		t.Errorf("server said %q", got)
	}
	l.gate.mu.Lock()
	if l.gate.waiting > maxPending || len(l.gate.pending[netip.AddrFrom4([4]byte{127, 0, 0, 2})]) > maxPendingSource {
		t.Errorf("%d in the handshake", l.gate.waiting)
	}
	l.gate.mu.Unlock()
	// All of them are gone when their handshake's time is over.
	for _, c := range silent {
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a silent connection was kept")
		}
	}
	eventually(t, "all places are given back", func() bool { return pendingOf(l) == 0 })
	close(release)
}

// Close does not wait for what the peek waits for.
func TestCloseWhilePeeking(t *testing.T) {
	t.Parallel()
	n := newNode(t, newAuthority(t), time.Now())
	entered := make(chan struct{})
	l := listenDiverting(t, n, func(ctx context.Context, _ *net.TCPConn) { close(entered); <-ctx.Done() })
	var conns [2]net.Conn
	for i := range conns {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
	}
	if _, err := conns[0].Write(helloOf(t, &tls.Config{NextProtos: []string{theirs}})); err != nil {
		t.Fatal(err)
	}
	<-entered
	eventually(t, "the silent one is looked at", func() bool { return pendingOf(l) == 2 })
	closed := make(chan struct{})
	go func() { l.Close(); close(closed) }()
	eventually(t, "it is closed", func() bool {
		select {
		case <-closed:
			return true
		default:
			return false
		}
	})
}

// A network of a test's own has no sockets to look into: all is as before.
func TestNoDivertInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := newAuthority(t)
		server, client := newNode(t, ca, time.Now()), newNode(t, ca, time.Now())
		port, err := w.Listen(netip.AddrPortFrom(host(1), 443))
		if err != nil {
			t.Fatal(err)
		}
		l, err := Listen(ListenConfig{
			Listener: port, Trust: server.trust, Logger: slog.New(slog.DiscardHandler),
			Divert: map[string]func(context.Context, *net.TCPConn){Control: func(context.Context, *net.TCPConn) { t.Error("diverted") }},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var tasks sync.WaitGroup
		tasks.Go(func() { greet(l.Stream(Control)) })
		c, err := w.dialer(client, 2, l).DialNode(t.Context(), l.Addr(), server.id, Control)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, c); got != client.id.String() {
			t.Errorf("server said %q", got)
		}
		l.Close()
		tasks.Wait()
	})
}

// However a ClientHello comes in pieces, it is whole with its last byte only.
func TestOfferedInPieces(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 1))
	for _, hello := range hellos(t)[:4] {
		for range 200 {
			if _, whole := offered(hello[:r.IntN(len(hello))]); whole {
				t.Fatal("whole too early")
			}
		}
	}
}
