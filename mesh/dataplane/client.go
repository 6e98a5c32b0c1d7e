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
	"net/netip"
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

// Pin gives the SHA-256 of the SubjectPublicKeyInfo of the key by which far
// ends know this data plane. It changes when the process starts anew.
func (c Client) Pin(ctx context.Context) ([32]byte, error) {
	r, err := c.call(ctx, request{Op: opPin})
	if err == nil && len(r.Pin) != 32 {
		err = fmt.Errorf("data plane's answer: a pin of %d bytes", len(r.Pin))
	}
	if err != nil {
		return [32]byte{}, err
	}
	return [32]byte(r.Pin), nil
}

// OpenCarrier starts a carrier and gives WireGuard's endpoint for its far end,
// on 127.0.0.1. It does not wait for a connection; see Carriers. The carrier
// redials by itself, and lives until CloseCarrier or the end of the data plane.
// To open one that is open changes its Port at most; ErrExists if anything else
// differs.
func (c Client) OpenCarrier(ctx context.Context, spec Carrier) (netip.AddrPort, error) {
	r, err := c.call(ctx, request{Op: opOpenCarrier, Carrier: wireOfCarrier(spec)})
	return r.Local, err
}

// Carriers gives the status of all carriers, sorted by ID.
func (c Client) Carriers(ctx context.Context) ([]CarrierStatus, error) {
	r, err := c.call(ctx, request{Op: opCarriers})
	if err != nil {
		return nil, err
	}
	out := make([]CarrierStatus, len(r.Carriers))
	for i, w := range r.Carriers {
		if out[i], err = w.status(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// CloseCarrier ends a carrier and its connection. ErrNoCarrier if the data
// plane does not have it.
func (c Client) CloseCarrier(ctx context.Context, id [16]byte) error {
	_, err := c.call(ctx, request{Op: opCloseCarrier, ID: id[:]})
	return err
}

// HandOver gives the data plane a TCP connection, of which nothing has been
// read, whose far end wants a carrier. The caller closes its own conn in any
// case: the data plane has a copy. ErrNoCarrier if no carrier accepts.
func (c Client) HandOver(ctx context.Context, conn *net.TCPConn) error {
	_, err := c.send(ctx, request{Op: opAccept}, conn)
	return err
}

func (c Client) call(ctx context.Context, req request) (reply, error) { return c.send(ctx, req, nil) }

// send makes one call, with a connection to hand over unless that is nil.
func (c Client) send(ctx context.Context, req request, along *net.TCPConn) (reply, error) {
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

	r, err := exchange(conn.(*net.UnixConn), req, along)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return reply{}, fmt.Errorf("%s: ended before it answered: %w", path, ErrNotRunning)
	}
	if err != nil {
		return reply{}, fmt.Errorf("data plane %s: %w", req.Op, cmp.Or(ctx.Err(), err))
	}
	return r, r.err()
}

func exchange(conn *net.UnixConn, req request, along *net.TCPConn) (reply, error) {
	b, err := json.Marshal(req)
	if err != nil {
		return reply{}, err
	}
	if err := write(conn, append(b, '\n'), along); err != nil {
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

// write sends a line, and a connection's descriptor with it unless that is nil.
func write(conn *net.UnixConn, line []byte, along *net.TCPConn) error {
	if along == nil {
		_, err := conn.Write(line)
		return err
	}
	raw, err := along.SyscallConn()
	if err != nil {
		return err
	}
	return control(raw, func(fd int) error {
		n, _, err := conn.WriteMsgUnix(line, unix.UnixRights(fd), nil)
		if err == nil && n < len(line) {
			err = io.ErrShortWrite
		}
		return err
	})
}
