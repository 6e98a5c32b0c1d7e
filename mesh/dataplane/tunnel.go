package dataplane

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"golang.zx2c4.com/wireguard/device"
)

// UAPIDir is where WireGuard tools look for the sockets of userspace devices.
const UAPIDir = "/var/run/wireguard"

func uapiPath(name string) string { return filepath.Join(UAPIDir, name+".sock") }

// A tunnel is one device: TUN, WireGuard, UAPI socket. It ends as a whole.
type tunnel struct {
	link *link
	wg   *device.Device
	uapi *socket
	done chan struct{} // closed when nothing of it is left
}

// openTunnel makes a device that is ready to be configured. When it has
// ended, for whatever reason, ended is called.
func openTunnel(name string, mtu int, log *slog.Logger, ended func(*tunnel)) (*tunnel, error) {
	uapi, err := listen(uapiPath(name))
	if err != nil {
		return nil, err
	}
	l, err := openLink(name, mtu)
	if err != nil {
		uapi.close()
		return nil, err
	}
	t := &tunnel{
		link: l,
		wg:   device.NewDevice(l, newBind(), deviceLogger(log, name)),
		uapi: uapi,
		done: make(chan struct{}),
	}
	// Up although the link is not: see look. No peer is known yet, so nothing
	// is sent from the port that this picks.
	if err := t.wg.Up(); err != nil {
		uapi.close()
		t.wg.Close()
		return nil, fmt.Errorf("open UDP sockets of %s: %w", name, err)
	}
	go t.run(ended)
	return t, nil
}

// run serves the UAPI socket until the device has ended.
func (t *tunnel) run(ended func(*tunnel)) {
	served := make(chan struct{})
	go func() {
		defer close(served)
		t.uapi.serve(maxUAPI, func(conn *net.UnixConn) { t.wg.IpcHandle(idleConn{conn, uapiIdle}) })
	}()
	<-t.wg.Wait() // by close, or because the TUN reader found the link deleted
	t.uapi.close()
	<-served
	ended(t)
	close(t.done)
}

// alive reports whether the device's link still exists.
func (t *tunnel) alive() bool {
	_, err := t.link.up()
	return err == nil
}

// close ends the device and waits until its link, sockets and goroutines are
// gone. It may be called more than once.
func (t *tunnel) close() {
	t.uapi.close() // first: a client in the middle of a `set` holds up the device's end
	t.wg.Close()
	<-t.done
}

// sweep removes the UAPI sockets that a killed data plane left. Those that
// answer belong to someone.
func sweep() error {
	if err := os.MkdirAll(UAPIDir, 0o755); err != nil {
		return fmt.Errorf("make the directory of WireGuard sockets: %w", err)
	}
	stale, err := filepath.Glob(filepath.Join(UAPIDir, namePrefix+"*.sock"))
	if err != nil {
		return err
	}
	for _, path := range stale {
		// Not an error: a socket in use matters only to who wants that name.
		_ = removeStale(path)
	}
	return nil
}
