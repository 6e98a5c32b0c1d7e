package transport

import (
	"io"
	"net"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// B19: what costs an attacker nothing must not cost us service. Not parallel,
// because it counts the process's goroutines.
func TestB19SilentConnections(t *testing.T) {
	ca := newAuthority(t)
	server, client := newNode(t, ca, time.Now()), newNode(t, ca, time.Now())
	server.trust.Member = members(client)
	l := listen(t, server)
	go greet(l.Stream(Control))
	flood := 10_000
	if room := descriptors(t, uint64(flood+2*maxPending+200)) - 2*maxPending - 200; room < flood {
		t.Logf("%d connections only: this process may not have more descriptors", room)
		flood = room
	}
	heap := heapInUse()
	before := runtime.NumGoroutine()
	var silent []net.Conn
	defer func() {
		for _, c := range silent {
			c.Close()
		}
	}()
	served := 0
	for i := range flood {
		// From many sources, and from the one that the honest client has.
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+i%20))}}
		c, err := d.DialContext(t.Context(), "tcp4", l.Addr().String())
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		silent = append(silent, c)
		if i%500 != 499 {
			continue
		}
		honest, err := client.dialer().DialNode(t.Context(), l.Addr(), server.id, Control)
		if err != nil {
			t.Fatalf("service after %d silent connections: %v", i, err)
		}
		if got := read(t, honest); got != client.id.String() {
			t.Fatalf("server said %q", got)
		}
		served++
	}
	if served == 0 {
		t.Fatal("nobody asked for service")
	}
	l.gate.mu.Lock()
	waiting, live := l.gate.waiting, len(l.gate.live)
	for source, own := range l.gate.pending {
		if len(own) > maxPendingSource {
			t.Errorf("%d handshakes of %s, bound is %d", len(own), source, maxPendingSource)
		}
	}
	l.gate.mu.Unlock()
	if waiting > maxPending || live > maxPending+1 {
		t.Errorf("%d handshakes and %d connections, bound is %d", waiting, live, maxPending)
	}
	deadline := time.Now().Add(20 * time.Second)
	for runtime.NumGoroutine() > before+4*maxPending { // a handshake has two or three
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before the flood", runtime.NumGoroutine(), before)
		}
		runtime.Gosched()
	}
	// Our own ends of the connections are in it, too.
	if grown := heapInUse() - heap; grown > 32<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	t.Logf("%d silent connections; the heap grew by %d KiB", flood, (heapInUse()-heap)>>10)
}

// descriptors lets this process have as many open files as are wanted, if it
// may, and says how many it has.
func descriptors(t *testing.T, wanted uint64) int {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if more := (syscall.Rlimit{Cur: wanted, Max: max(wanted, limit.Max)}); limit.Cur < wanted && syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more) == nil {
		t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) })
		return int(wanted)
	}
	return int(limit.Cur)
}

// heapInUse is what is reachable, in bytes.
func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// B19, slow: a handshake that makes a little progress all the time ends as one
// that makes none does, and one of ours that is merely far away does not.
func TestB19SlowHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := newAuthority(t)
		server := newNode(t, ca, time.Now())
		l := w.listen(server, 1)
		go greet(l.Stream(Control))
		began := time.Now()
		var tasks sync.WaitGroup
		for i := range 40 {
			tasks.Go(func() {
				c, err := w.Dialer(host(byte(50+i)))(t.Context(), l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				// A record of 512 bytes, of which one comes every second.
				if _, err := io.WriteString(c, "\x16\x03\x01\x02\x00\x01"); err != nil {
					t.Error(err)
				}
				for range 60 {
					time.Sleep(time.Second)
					if _, err := c.Write([]byte{0}); err != nil {
						break
					}
				}
				if took := time.Since(began); took > HandshakeTimeout+2*time.Second {
					t.Errorf("connection %s lived for %s", strconv.Itoa(i), took)
				}
			})
		}
		tasks.Wait()
		synctest.Wait()
		l.gate.mu.Lock()
		defer l.gate.mu.Unlock()
		if len(l.gate.live) != 0 {
			t.Errorf("%d connections are left", len(l.gate.live))
		}
	})
}
