package dataplane

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const tunPath = "/dev/net/tun"

// A link is a TUN device as wireguard-go wants it, with events of our own
// making: wireguard-go's listener has two goroutines and three descriptors for
// each device, ends the device when its netlink socket overflows, and can
// report down after up.
type link struct {
	tun.Device
	name string

	mu     sync.Mutex
	events chan tun.Event // of 1; the newest replaces an unread one, each says all
	closed bool
	wasUp  bool
}

// openLink makes a TUN device. It never attaches to one that exists.
func openLink(name string, mtu int) (*link, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, tunError(err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		switch err {
		case unix.EBUSY, unix.EEXIST:
			return nil, fmt.Errorf("%s: %w outside this data plane", name, ErrExists)
		case unix.EPERM:
			return nil, fmt.Errorf("make TUN device %s: %w; the data plane needs CAP_NET_ADMIN in its network namespace", name, err)
		}
		return nil, fmt.Errorf("make TUN device %s: %w", name, err)
	}
	dev, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("make TUN device %s: %w", name, err)
	}
	l := &link{Device: dev, name: name, events: make(chan tun.Event, 1)}
	if err := l.setMTU(mtu); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// tunError explains why /dev/net/tun cannot be opened.
func tunError(err error) error {
	switch err {
	case unix.ENOENT, unix.ENODEV, unix.ENXIO:
		return fmt.Errorf("open %s: %w; load the tun module, or pass the device into this container", tunPath, err)
	case unix.EACCES, unix.EPERM:
		return fmt.Errorf("open %s: %w; run as root, or make the device accessible", tunPath, err)
	}
	return fmt.Errorf("open %s: %w", tunPath, err)
}

// Events is where wireguard-go learns of MTU and administrative state.
func (l *link) Events() <-chan tun.Event { return l.events }

// Close removes the TUN device and ends Events.
func (l *link) Close() error {
	err := l.Device.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		close(l.events)
	}
	return err
}

// look tells wireguard-go the state that the link has now. Down is not told
// before the first up: the device is opened up, so that setting a port in use
// fails at once instead of being an unheard error later.
func (l *link) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	up, err := l.up()
	if err != nil {
		return // the link is gone; its reader ends the device
	}
	event := tun.Event(tun.EventMTUUpdate)
	switch {
	case up:
		l.wasUp = true
		event |= tun.EventUp
	case l.wasUp:
		event |= tun.EventDown
	}
	select {
	case <-l.events:
	default:
	}
	l.events <- event
}

func (l *link) up() (bool, error) {
	var flags uint16
	err := l.ioctl(unix.SIOCGIFFLAGS, func(r *unix.Ifreq) {}, func(r *unix.Ifreq) { flags = r.Uint16() })
	return flags&unix.IFF_UP != 0, err
}

func (l *link) setMTU(mtu int) error {
	err := l.ioctl(unix.SIOCSIFMTU, func(r *unix.Ifreq) { r.SetUint32(uint32(mtu)) }, func(*unix.Ifreq) {})
	if err != nil {
		return fmt.Errorf("set MTU %d of %s: %w", mtu, l.name, err)
	}
	return nil
}

func (l *link) ioctl(code uint, fill, read func(*unix.Ifreq)) error {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	req, err := unix.NewIfreq(l.name)
	if err != nil {
		return err
	}
	fill(req)
	if err := unix.IoctlIfreq(sock, code, req); err != nil {
		return err
	}
	read(req)
	return nil
}
