package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestBeat: an agent that hangs, or says that it is not well, is silent.
func TestBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told atomic.Int64
		var alive atomic.Pointer[func(context.Context) error]
		set := func(f func(context.Context) error) { alive.Store(&f) }
		wait := func(d time.Duration, want int64) {
			t.Helper()
			told.Store(0)
			time.Sleep(d) // of the bubble's clock
			synctest.Wait()
			if told := told.Load(); told != want {
				t.Errorf("%d beats in %s, want %d", told, d, want)
			}
		}
		well := func(context.Context) error { return nil }
		set(well)
		go beat(t.Context(), 10*time.Second, func() { told.Add(1) }, func(ctx context.Context) error { return (*alive.Load())(ctx) })
		wait(time.Second, 1)
		wait(30*time.Second, 3)
		set(func(context.Context) error { return errors.New("unwell") })
		wait(30*time.Second, 0)
		hang := make(chan struct{})
		set(func(ctx context.Context) error {
			select {
			case <-hang:
			case <-ctx.Done():
			}
			return nil
		})
		wait(time.Minute, 0)
		close(hang)
		wait(time.Second, 2) // the one that hung, and the one that was due meanwhile
	})
}

// TestSupervised: systemd is told what sd_notify(3) says, on its socket.
func TestSupervised(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", strconv.FormatInt(time.Hour.Microseconds(), 10))
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	supervised(ctx, slog.New(slog.DiscardHandler), func(context.Context) error { return nil })
	for i, want := range []string{"READY=1", "WATCHDOG=1", "STOPPING=1"} {
		if i == 2 {
			stop()
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, err := conn.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Fatalf("got %q, %v; want %q", b[:n], err, want)
		}
	}
}
