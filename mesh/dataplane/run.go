package dataplane

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"
)

// DefaultSocket is the control socket unless configured.
const DefaultSocket = "/run/guywire/dataplane.sock"

// Config says how to run the data plane. The zero value is complete.
type Config struct {
	Socket  string       // control socket; default DefaultSocket
	Version string       // what Client.Version reports; default from build info
	Log     *slog.Logger // default: none
	// Detach points standard error to standard output once the process
	// serves. Whoever started it (Spawner) reads standard error until then,
	// sees it end, and knows that the process is ready and on its own.
	Detach bool
	Ready  func() // called once the process serves; nil: nobody wants to know
}

// Run is the data plane: it serves the control socket until ctx ends, SIGTERM
// or SIGINT arrives or a shutdown is requested, then removes all devices,
// carriers and sockets and returns nil. It is to be the only thing that its process does:
// it changes how signals are handled and, with Detach, the standard streams.
// ErrRunning is returned if another data plane owns the socket.
func Run(ctx context.Context, cfg Config) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	// wireguard-go keeps 64 KiB buffers of which small packets touch the first
	// page only; huge pages would make all of it resident. Best effort.
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0)

	path := cmp.Or(cfg.Socket, DefaultSocket)
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the directory of the control socket: %w", err)
	}
	lock, err := acquire(ctx, path)
	if err != nil {
		return err
	}
	defer lock.release()
	if err := sweep(); err != nil {
		return err
	}
	w, err := openWatch()
	if err != nil {
		return err
	}
	defer w.close()
	carriers, err := newCarriers(log)
	if err != nil {
		return err
	}
	control, err := listen(path)
	if err != nil {
		return err
	}
	p := &process{
		log:      log,
		version:  cmp.Or(cfg.Version, buildVersion()),
		stop:     stop,
		watch:    w,
		tunnels:  map[string]*tunnel{},
		carriers: carriers,
	}
	var tasks sync.WaitGroup
	tasks.Go(func() { w.run(p) })
	tasks.Go(func() { control.serve(maxControl, p.control) })
	log.Info("data plane serves", "socket", path, "version", p.version)

	if cfg.Ready != nil {
		cfg.Ready()
	}
	if cfg.Detach {
		err = unix.Dup3(unix.Stdout, unix.Stderr, 0)
	}
	if err == nil {
		<-ctx.Done()
	}
	_ = p.shutdown(true) // forced: cannot be refused
	p.closeAll()
	carriers.closeAll()
	w.close()
	control.stop()
	// Whoever asked for the shutdown waits for its connection to end, and may
	// start the successor at once.
	lock.release()
	control.hangUp()
	tasks.Wait()
	log.Info("data plane stopped")
	return err
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}
