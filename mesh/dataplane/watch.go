package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A watch hears of changes of links and of sockets in UAPIDir. What it hears
// is only a hint to look: messages may be lost when the kernel's queue is full,
// and the loss itself is heard.
type watch struct {
	links   *os.File // rtnetlink, RTNLGRP_LINK
	files   *os.File // inotify
	filesFD int      // of files, for adding the directory
}

func openWatch() (*watch, error) {
	sock, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	if err := unix.Bind(sock, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		unix.Close(sock)
		return nil, fmt.Errorf("watch links: %w", err)
	}
	notify, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		unix.Close(sock)
		return nil, fmt.Errorf("watch %s: %w", UAPIDir, err)
	}
	return &watch{os.NewFile(uintptr(sock), "rtnetlink"), os.NewFile(uintptr(notify), "inotify"), notify}, nil
}

// sockets watches UAPIDir, which it makes if it is missing. It is called again
// before each new device, because the directory may have been replaced.
func (w *watch) sockets() error {
	if err := os.MkdirAll(UAPIDir, 0o755); err != nil {
		return fmt.Errorf("make the directory of WireGuard sockets: %w", err)
	}
	if _, err := unix.InotifyAddWatch(w.filesFD, UAPIDir, unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_ONLYDIR); err != nil {
		return fmt.Errorf("watch %s: %w", UAPIDir, err)
	}
	return nil
}

// run calls p until close.
func (w *watch) run(p *process) {
	var wg sync.WaitGroup
	wg.Go(func() { hear(w.links, p.linksChanged, p.log) })
	wg.Go(func() { hear(w.files, p.socketsChanged, p.log) })
	wg.Wait()
}

func (w *watch) close() {
	w.links.Close()
	w.files.Close()
}

func hear(from *os.File, changed func(), log *slog.Logger) {
	buf := make([]byte, 16<<10)
	for {
		_, err := from.Read(buf)
		switch {
		case err == nil, errors.Is(err, unix.ENOBUFS):
			changed()
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, os.ErrClosed):
			return
		default:
			log.Error("watch ended; devices still forward", "of", from.Name(), "error", err)
			return
		}
	}
}
