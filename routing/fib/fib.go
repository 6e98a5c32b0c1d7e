// Package fib makes the forwarding part of a kernel.State true in the Linux
// kernel: overlay addresses on the loopback device, next-hop objects and
// groups, routes and policy rules, through rtnetlink.
//
// It touches only what carries Guywire's marks: routes and rules of protocol
// mesh.RouteProtocol in our tables and priorities, next hops of that protocol
// in our id range, and loopback addresses inside the overlay pools that it
// was given. Every operation is idempotent: what is already gone was deleted,
// what is already there was added. Replacing never deletes first.
//
// On a kernel without next-hop objects (before 5.3) routes carry their legs
// themselves, see legacy; the difference does not show outside.
package fib

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"guywire/mesh/kernel"

	"golang.org/x/sys/unix"
)

// A FIB is the kernel.Backend of kernel.PartForwarding. It is bound to the
// network namespace of the thread that called New. Do and Observe may run
// side by side; each is serialised in itself.
type FIB struct {
	pools  []netip.Prefix
	write  *conn
	read   *conn
	noIPv6 bool

	mu     sync.Mutex // of legacy: Do and Observe both use it
	legacy *legacy    // nil: the kernel has next-hop objects
}

var _ kernel.Backend = (*FIB)(nil)

// New opens the netlink sockets. Only loopback addresses within pools are
// ever seen as ours. Close releases the sockets.
func New(pools []netip.Prefix) (*FIB, error) {
	write, err := dial()
	if err != nil {
		return nil, err
	}
	read, err := dial()
	if err != nil {
		write.close()
		return nil, err
	}
	f := &FIB{pools: pools, write: write, read: read}
	if err := f.detect(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// detect finds out once what the kernel can do.
func (f *FIB) detect() error {
	switch _, err := f.read.rules(unix.AF_INET6); {
	case unsupported(err):
		f.noIPv6 = true
	case err != nil:
		return err
	}
	switch _, err := f.read.nextHops(); {
	case unsupported(err):
		f.legacy = newLegacy()
	case err != nil:
		return err
	}
	return nil
}

// Close releases the sockets. What is in the kernel stays.
func (f *FIB) Close() error {
	f.write.close()
	f.read.close()
	return nil
}

// Observe implements kernel.Backend. It dumps our objects; a dump that a
// change interrupted is repeated.
func (f *FIB) Observe(ctx context.Context) (kernel.State, error) {
	if err := ctx.Err(); err != nil {
		return kernel.State{}, err
	}
	var s kernel.State
	var err error
	if s.Addrs, err = f.read.addrs(f.pools); err != nil {
		return kernel.State{}, err
	}
	if s.Rules, err = f.rules(f.read); err != nil {
		return kernel.State{}, err
	}
	if f.legacy != nil {
		return f.observeLegacy(s)
	}
	// Routes first: next hops that go in between are then missed as members
	// of nothing, and a route never refers to one that was not looked for.
	found, err := f.routes(f.read)
	if err != nil {
		return kernel.State{}, err
	}
	for _, r := range found {
		s.Routes = append(s.Routes, r.Route)
	}
	if s.NextHops, err = f.nextHops(); err != nil {
		return kernel.State{}, err
	}
	s.Sort()
	return s, nil
}

// Do implements kernel.Backend.
func (f *FIB) Do(ctx context.Context, op kernel.Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := f.do(op)
	switch {
	case err == nil:
		return nil
	case f.legacy == nil && refused(op, err):
		return fmt.Errorf("%s: %w: %w", op, kernel.ErrRefused, err)
	default:
		return fmt.Errorf("%s: %w", op, err)
	}
}

// refused reports whether an error says for certain that nothing was changed:
// the operation is a single change, and the kernel answered.
func refused(op kernel.Op, err error) bool {
	switch op.(type) {
	case kernel.PutRule, kernel.DeleteRule:
		return false
	}
	var errno unix.Errno
	return errors.As(err, &errno) && errno != unix.EAGAIN && errno != unix.EINTR && errno != unix.ENOBUFS
}

func (f *FIB) do(op kernel.Op) error {
	if f.legacy != nil {
		if done, err := f.doLegacy(op); done {
			return err
		}
	}
	switch op := op.(type) {
	case kernel.AddAddr:
		return f.write.addAddr(op.Addr)
	case kernel.DeleteAddr:
		return f.write.deleteAddr(op.Addr)
	case kernel.PutNextHop:
		return f.putNextHop(op.NextHop)
	case kernel.DeleteNextHop:
		return f.write.deleteNextHop(op.ID)
	case kernel.PutRoute:
		return f.write.putRoute(op.Route, nil)
	case kernel.DeleteRoute:
		return f.write.deleteRoute(op.Route)
	case kernel.PutRule:
		return f.putRule(op.Rule)
	case kernel.DeleteRule:
		return f.deleteRule(op.Rule)
	default:
		return errors.ErrUnsupported
	}
}

// families gives the address families that the kernel knows.
func (f *FIB) families() []uint8 {
	if f.noIPv6 {
		return []uint8{unix.AF_INET}
	}
	return []uint8{unix.AF_INET, unix.AF_INET6}
}
