package dataplane

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Client talks to a running data plane. The zero value uses DefaultSocket.
// It holds no connection and may be used by many goroutines. All methods
// return ErrNotRunning if nothing listens, and give up when ctx ends.
type Client struct {
	Socket string
}

// Create makes a device that is down and has neither key nor peer; wgctrl
// configures it from there. ErrExists if there is a link of that name.
func (c Client) Create(ctx context.Context, name string, mtu int) error {
	_, err := c.call(ctx, request{Op: opCreate, Name: name, MTU: mtu})
	return err
}

// Delete ends a device; its link and socket are gone when Delete returns.
// ErrNoDevice if the data plane does not have it.
func (c Client) Delete(ctx context.Context, name string) error {
	_, err := c.call(ctx, request{Op: opDelete, Name: name})
	return err
}

// List gives the names of the devices, sorted.
func (c Client) List(ctx context.Context) ([]string, error) {
	r, err := c.call(ctx, request{Op: opList})
	return r.Devices, err
}

// Version gives the version of the running data plane.
func (c Client) Version(ctx context.Context) (string, error) {
	r, err := c.call(ctx, request{Op: opVersion})
	return r.Version, err
}

// Ensure reports whether the data plane answers. A Client starts none; see
// Spawner.
func (c Client) Ensure(ctx context.Context) error {
	_, err := c.Version(ctx)
	return err
}

// Shutdown stops the data plane. With devices it is refused with ErrBusy
// unless force is set. When it returns, the devices and sockets are gone and a
// successor may be started.
func (c Client) Shutdown(ctx context.Context, force bool) error {
	_, err := c.call(ctx, request{Op: opShutdown, Force: force})
	return err
}

func (c Client) call(ctx context.Context, req request) (reply, error) {
	path := cmp.Or(c.Socket, DefaultSocket)
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return reply{}, fmt.Errorf("%s: %w", path, ErrNotRunning)
	}
	if err != nil {
		return reply{}, fmt.Errorf("reach the data plane: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	r, err := exchange(conn, req)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return reply{}, fmt.Errorf("%s: ended before it answered: %w", path, ErrNotRunning)
	}
	if err != nil {
		return reply{}, fmt.Errorf("data plane %s: %w", req.Op, cmp.Or(ctx.Err(), err))
	}
	return r, r.err()
}

func exchange(conn net.Conn, req request) (reply, error) {
	b, err := json.Marshal(req)
	if err != nil {
		return reply{}, err
	}
	if _, err := conn.Write(append(b, '\n')); err != nil {
		return reply{}, err
	}
	line, err := bufio.NewReaderSize(conn, maxReply).ReadSlice('\n')
	if err != nil {
		return reply{}, err
	}
	r, err := decodeReply(line)
	if err != nil || req.Op != opShutdown || r.Code != "" {
		return r, err
	}
	// The other end hangs up when it is done.
	if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return reply{}, err
	}
	return r, nil
}
