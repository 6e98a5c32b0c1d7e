package transporttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

var (
	one = netip.MustParseAddrPort("192.0.2.1:7")
	two = netip.MustParseAddr("192.0.2.2")
)

// pair is a connection, as seen by the one that dialled it and by the other.
func pair(t *testing.T, n *Network) (near, far net.Conn, l net.Listener) {
	t.Helper()
	l, err := n.Listen(one)
	if err != nil {
		t.Fatal(err)
	}
	if near, err = n.Dialer(two)(t.Context(), one.String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close(); l.Close() })
	return near, far, l
}

func TestConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Network
		near, far, l := pair(t, &n)
		if near.RemoteAddr().String() != one.String() || far.RemoteAddr().String() != near.LocalAddr().String() {
			t.Errorf("addresses %s %s", near.RemoteAddr(), far.RemoteAddr())
		}
		// More than fits, in order, both ways at once.
		sent := bytes.Repeat([]byte("0123456789abcdef"), 3*window/16)
		for _, ends := range [][2]net.Conn{{near, far}, {far, near}} {
			go func() {
				if n, err := ends[0].Write(sent); n != len(sent) || err != nil {
					t.Errorf("wrote %d %v", n, err)
				}
			}()
		}
		got := make([]byte, len(sent))
		for _, c := range []net.Conn{near, far} {
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("read: %v, equal %v", err, bytes.Equal(got, sent))
			}
		}
		// What is written fits a buffer, and ends where it ends.
		if _, err := near.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		near.Close()
		if b, err := io.ReadAll(far); string(b) != "last words" || err != nil {
			t.Errorf("after the end: %q %v", b, err)
		}
		if _, err := far.Write([]byte{1}); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write to nobody: %v", err)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read of a closed one: %v", err)
		}
		if _, err := n.Listen(one); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("listen twice: %v", err)
		}
		l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept of a closed one: %v", err)
		}
		if _, err := n.Dialer(two)(t.Context(), one.String()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial of nobody: %v", err)
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Network
		near, _, _ := pair(t, &n)
		began := time.Now()
		near.SetReadDeadline(began.Add(3 * time.Second))
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != 3*time.Second {
			t.Errorf("read: %v after %s", err, time.Since(began))
		}
		near.SetWriteDeadline(began.Add(5 * time.Second))
		if n, err := near.Write(make([]byte, window+1)); n != window || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != 5*time.Second {
			t.Errorf("write: %d %v after %s", n, err, time.Since(began))
		}
		// A deadline that is set while somebody waits counts.
		near.SetDeadline(time.Time{})
		outcome := make(chan error)
		go func() {
			_, err := near.Read(make([]byte, 1))
			outcome <- err
		}()
		synctest.Wait()
		near.SetReadDeadline(time.Now().Add(-time.Second))
		if err := <-outcome; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a past deadline: %v", err)
		}
	})
}

func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Network
		near, far, _ := pair(t, &n)
		n.Cut(func(from, _ netip.Addr) bool { return from == two }) // near is heard no more
		if _, err := near.Write([]byte("held")); err != nil {
			t.Fatal(err)
		}
		near.Close()
		far.SetReadDeadline(time.Now().Add(time.Minute))
		if b, err := io.ReadAll(far); len(b) > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("through the cut: %q %v", b, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Dialer(two)(ctx, one.String()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial through the cut: %v", err)
		}
		far.SetReadDeadline(time.Time{})
		go func() {
			time.Sleep(time.Second)
			n.Cut(nil)
		}()
		if b, err := io.ReadAll(far); string(b) != "held" || err != nil {
			t.Errorf("after it is healed: %q %v", b, err)
		}
	})
}
