package wire

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenTAP creates the TAP device name in the network namespace of the calling thread, or attaches to one that exists
// and is free, and returns its file, which takes and gives one Ethernet frame per write and read. The device goes away
// with the file. The file stays valid whatever the thread does afterwards, and waits in the runtime's poller.
// It needs CAP_NET_ADMIN over the namespace, and permission to open /dev/net/tun, which most systems let everybody do.
func OpenTAP(name string) (*os.File, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("open tap %q: name is longer than %d bytes: %w", name, unix.IFNAMSIZ-1, err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		err = &os.PathError{Op: "open", Path: device, Err: err}
		return nil, fmt.Errorf("%w; the lab needs the tun module and read-write access to its device", err)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("create tap %q: %w", name, err)
	}
	// Only now: the poller would take a file that has no device yet for a broken one.
	return os.NewFile(uintptr(fd), name), nil
}

// setCarrier plugs or unplugs the device behind a TAP file.
func setCarrier(tap *os.File, up bool) error {
	raw, err := tap.SyscallConn()
	if err != nil {
		return fmt.Errorf("set carrier of %s: %w", tap.Name(), err)
	}
	value := 0
	if up {
		value = 1
	}
	var ioctlErr error
	err = raw.Control(func(fd uintptr) { ioctlErr = unix.IoctlSetPointerInt(int(fd), unix.TUNSETCARRIER, value) })
	if err == nil {
		err = ioctlErr
	}
	if err != nil {
		return fmt.Errorf("set carrier of %s: %w", tap.Name(), err)
	}
	return nil
}
