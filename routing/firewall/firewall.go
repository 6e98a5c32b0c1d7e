// Package firewall makes a kernel.Filter true in nftables: the table inet
// guywire, which says what may come in through a tunnel.
//
//	from a tunnel that is not listed     nothing
//	from a listed tunnel                 packets from its sources, never from our own
//	from a held one                      to us as above, but nothing in transit
//	from any listed one, to us           link-local IPv6 (probes, routing), always
//	from elsewhere                       nothing with a mesh source that is not ours; no probes
//	out by a tunnel                      no IPv6 multicast
//	through a tunnel, either way         TCP with its MSS clamped to the route's MTU
//
// The rules know only gw- devices and mesh sources; all else passes, and the
// host's own tables judge it as before. A change is one transaction that touches
// only what changes: no packet sees half a table, and what stays allowed is found
// all the time. The table is replaced as a whole only where it is not as one of
// ours left it.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"guywire/mesh/kernel"

	"github.com/google/nftables"
)

// A Firewall is the kernel.Backend of kernel.PartFilter. It is bound to the
// network namespace of the thread that called New, and safe for concurrent
// use.
type Firewall struct {
	conn   *nftables.Conn
	list   *lister
	layout [32]byte

	mu      sync.Mutex
	last    kernel.Filter // as last written, if written
	written bool
	gen     uint32                // nftables generation in which that was true
	parts   map[string][]interval // what interval sets are made of, by name, sorted
	sum     *[32]byte             // of the listing in that generation, once taken
	before  map[string]Counts     // of tables that were replaced
}

var _ kernel.Backend = (*Firewall)(nil)

// bufferSize is what a socket needs for thousands of prefixes in one
// transaction, and for the acknowledgement of each message, in bytes.
const bufferSize = 16 << 20

// grow asks for large buffers; without the right to, the system's limit
// holds, and a transaction that is larger fails as a whole.
func grow[C interface {
	SetReadBuffer(size int) error
	SetWriteBuffer(size int) error
}](c C) error {
	_, _ = c.SetReadBuffer(bufferSize), c.SetWriteBuffer(bufferSize)
	return nil
}

// New opens the netlink sockets. Close releases them.
func New() (*Firewall, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(grow))
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	list, err := newLister()
	if err != nil {
		return nil, errors.Join(err, conn.CloseLasting())
	}
	return &Firewall{conn: conn, list: list, layout: layout(), before: map[string]Counts{}}, nil
}

// Close releases the sockets. The table stays.
func (f *Firewall) Close() error {
	f.list.close()
	return f.conn.CloseLasting()
}

// Observe implements kernel.Backend. The filter is the one last set, by this
// process or an earlier one of the same version, if nobody changed our table
// since; else it is what can be read from the table, marked Foreign.
func (f *Firewall) Observe(ctx context.Context) (kernel.State, error) {
	if err := ctx.Err(); err != nil {
		return kernel.State{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	filter, err := f.observe()
	if err != nil {
		return kernel.State{}, fmt.Errorf("read nft table: %w", err)
	}
	return kernel.State{Filter: filter}, nil
}

func (f *Firewall) observe() (kernel.Filter, error) {
	gen, err := f.list.generation()
	if err != nil {
		return kernel.Filter{}, err
	}
	same := f.written && gen == f.gen
	if same && f.sum != nil {
		return f.last, nil
	}
	t, err := f.list.table()
	if err != nil || !t.exists {
		f.written = false
		return kernel.Filter{}, err
	}
	after, err := f.list.generation()
	if err != nil {
		return kernel.Filter{}, err
	}
	switch {
	case same && after == gen:
		// Nobody wrote between our transaction and this listing.
		f.sum = &t.sum
		return f.last, f.mark(t, gen)
	case f.written && f.sum != nil && *f.sum == t.sum:
		// Others wrote, but not our table.
		f.gen = gen
		return f.last, nil
	}
	filter := t.decode()
	if !f.written && after == gen && slices.Equal(t.marks, []string{f.markOf(t)}) {
		f.last, f.written, f.gen, f.sum, f.parts = filter, true, gen, &t.sum, t.intervals()
		return filter, nil
	}
	filter.Foreign = true
	return filter, nil
}

// Do implements kernel.Backend.
func (f *Firewall) Do(ctx context.Context, op kernel.Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	switch op := op.(type) {
	case kernel.SetFilter:
		err = f.set(op.Filter)
	case kernel.ClearFilter:
		err = f.clear()
	default:
		err = errors.ErrUnsupported
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// set writes the filter and notes the generation, if nobody else wrote at the
// same time.
func (f *Firewall) set(filter kernel.Filter) error {
	gen, err := f.list.generation()
	if err != nil {
		return err
	}
	known := f.written && gen == f.gen
	switch {
	case known && f.last.Equal(filter):
		return nil
	case known:
		// What an old kernel cannot do in one step is done as a whole.
		if err = f.update(f.last, filter); err == nil {
			f.forgetCounts(filter)
			break
		}
		fallthrough
	default:
		f.keepCounts()
		f.forgetCounts(filter)
		err = f.replace(filter)
	}
	f.written = false
	if err != nil {
		return err
	}
	after, err := f.list.generation()
	if err != nil {
		return err
	}
	if after == gen+1 {
		f.last, f.written, f.gen, f.sum = filter, true, after, nil
	}
	return nil
}

func (f *Firewall) clear() error {
	f.written = false
	f.before = map[string]Counts{}
	f.conn.AddTable(table()) // so that deleting one that is not there succeeds
	f.conn.DelTable(table())
	return f.conn.Flush()
}
