package wg

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"

	"guywire/mesh"
	"guywire/mesh/kernel"
)

// A Mode says who makes new devices. Existing ones are used whoever made them.
type Mode string

// Modes.
const (
	Auto      Mode = "auto"      // the kernel where it can, else the data plane
	Kernel    Mode = "kernel"    // the kernel, or nothing
	Userspace Mode = "userspace" // the data plane
)

// A Dataplane makes and removes userspace devices that serve the standard
// UAPI socket. dataplane.Spawner and dataplane.Client are such. Errors that
// mean "not there" are fs.ErrNotExist.
type Dataplane interface {
	Ensure(ctx context.Context) error // starts it if need be
	Create(ctx context.Context, name string, mtu int) error
	Delete(ctx context.Context, name string) error // the link is gone on return
	List(ctx context.Context) ([]string, error)
}

// Options configure a Backend.
type Options struct {
	Mode Mode // empty: Auto
	// Keys gives the private key of an epoch. Required.
	Keys func(mesh.Epoch) ([32]byte, error)
	// Epochs gives the public keys of all epochs whose private keys are known;
	// by them Observe names the epoch of a device. Required.
	Epochs func() map[mesh.Epoch]mesh.WireGuardKey
	// Owns reports whether an alias is one of ours. nil: every alias is,
	// on a device whose name begins with mesh.InterfacePrefix.
	Owns func(alias string) bool
	// Dataplane makes devices in Userspace mode; nil: there is none.
	Dataplane Dataplane
}

// opTimeout bounds each operation whose context has no earlier deadline.
// Everything here takes milliseconds.
const opTimeout = 10 * time.Second

// probeName is the device that Auto makes and removes to try the kernel.
const probeName = mesh.InterfacePrefix + "probe"

// A Backend is a kernel.Backend for tunnels in the network namespace in which
// it was made. It may be used by many goroutines; operations run one at a time.
type Backend struct {
	opt   Options
	maker Mode // Kernel or Userspace
	nl    *netlink.Handle
	wg    *wgctrl.Client
	slot  chan struct{} // of 1: held by the operation that runs
}

var _ kernel.Backend = (*Backend)(nil)

// New finds out who can make devices and opens the sockets to the kernel. It
// does not start the data plane: the first CreateTunnel does.
func New(opt Options) (*Backend, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	b := &Backend{opt: opt, nl: nl, slot: make(chan struct{}, 1)}
	if b.maker, err = chooseMaker(opt, b.tryKernel); err != nil {
		nl.Close()
		return nil, err
	}
	// Only now: the try may have loaded the kernel's module, and wgctrl looks
	// for it once.
	if b.wg, err = wgctrl.New(); err != nil {
		nl.Close()
		return nil, fmt.Errorf("open WireGuard control: %w", err)
	}
	return b, nil
}

func chooseMaker(opt Options, tryKernel func() error) (Mode, error) {
	var err error
	if opt.Mode != Userspace {
		if err = tryKernel(); err == nil {
			return Kernel, nil
		}
	}
	switch opt.Mode {
	case Kernel:
		return "", fmt.Errorf("%w: the kernel refuses (%w); load its wireguard module, or set the mode to %s", ErrNoMaker, err, Auto)
	case Auto, "", Userspace:
		if opt.Dataplane == nil {
			return "", fmt.Errorf("%w: no data plane is configured", ErrNoMaker)
		}
		return Userspace, nil
	}
	return "", fmt.Errorf("unknown WireGuard mode %q; use %s, %s or %s", opt.Mode, Auto, Kernel, Userspace)
}

// tryKernel makes a kernel device and removes it.
func (b *Backend) tryKernel() error {
	probe := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: probeName}}
	// One that exists is from an agent that was killed in this function.
	if err := b.nl.LinkAdd(probe); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	link, err := b.nl.LinkByName(probeName)
	if err != nil {
		return err
	}
	if _, ok := link.(*netlink.Wireguard); !ok {
		return fmt.Errorf("%s %w", probeName, ErrForeign)
	}
	return b.nl.LinkDel(link)
}

// Maker says who makes new devices: Kernel or Userspace.
func (b *Backend) Maker() Mode { return b.maker }

// Close releases the sockets to the kernel and leaves all devices as they are.
// No operation may be running or follow.
func (b *Backend) Close() error {
	b.nl.Close()
	return b.wg.Close()
}

// Observe gives all devices of ours, by both makers, sorted by name. A device
// that is not fully what CreateTunnel makes shows where: Peer is zero unless
// there is exactly one peer that may use all addresses, LinkLocal is invalid
// unless the link is up, Epoch is 0 if the key is of no known epoch.
func (b *Backend) Observe(ctx context.Context) (kernel.State, error) {
	tunnels, err := run(ctx, b, b.observe)
	if err != nil {
		return kernel.State{}, fmt.Errorf("observe tunnels: %w", err)
	}
	return kernel.State{Tunnels: tunnels}, nil
}

// Do carries out CreateTunnel, UpdateTunnel and DeleteTunnel, and refuses all
// other operations. It returns early when ctx ends; what it was doing is then
// finished or undone before the next operation begins.
func (b *Backend) Do(ctx context.Context, op kernel.Op) error {
	_, err := run(ctx, b, func(ctx context.Context) (struct{}, error) {
		switch op := op.(type) {
		case kernel.CreateTunnel:
			return struct{}{}, b.create(ctx, op.Tunnel)
		case kernel.UpdateTunnel:
			return struct{}{}, b.update(ctx, op.Tunnel, op.Reseat)
		case kernel.DeleteTunnel:
			return struct{}{}, b.delete(ctx, op.Name)
		}
		return struct{}{}, fmt.Errorf("not an operation on tunnels")
	})
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// run runs f alone. wgctrl has no deadlines, so f gets a goroutine, and when it
// does not return in time the caller does; the slot stays taken until f
// returns, so at most one goroutine is ever stuck.
func run[T any](ctx context.Context, b *Backend, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	type result struct {
		value T
		err   error
	}
	var none T
	select {
	case b.slot <- struct{}{}:
	case <-ctx.Done():
		cancel()
		return none, fmt.Errorf("%w: %w", ErrStuck, ctx.Err())
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-b.slot }()
		defer cancel()
		value, err := f(ctx)
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	// f ends its context when it returns: look again.
	select {
	case r := <-done:
		return r.value, r.err
	default:
		return none, fmt.Errorf("%w: %w", ErrStuck, ctx.Err())
	}
}
