package wg

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// Errors that callers tell apart with errors.Is. A UDP port in use is
// syscall.EADDRINUSE.
var (
	// ErrForeign: a device of that name exists and is not ours.
	ErrForeign = errors.New("exists and was not made by Guywire; remove or rename it")
	// ErrNoMaker: neither kernel nor data plane can make devices.
	ErrNoMaker = errors.New("no way to make WireGuard devices")
	// ErrStuck: the data plane or the kernel does not answer.
	ErrStuck = errors.New("WireGuard does not answer; if the data plane hangs, end it: its tunnels are made anew")
)

// configError gives back the error number that wgctrl's userspace client
// leaves in the text of its error.
func configError(err error) error {
	if err == nil {
		return nil
	}
	_, number, found := strings.Cut(err.Error(), "errno=-")
	if !found {
		return err
	}
	n, convErr := strconv.ParseUint(number, 10, 8)
	if convErr != nil || n == 0 {
		return err
	}
	return syscall.Errno(n)
}

func portError(device string, port uint16, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s: UDP port %d is taken by another program: %w", device, port, syscall.EADDRINUSE)
	}
	return fmt.Errorf("configure %s: %w", device, err)
}
