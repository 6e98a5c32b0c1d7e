package grid

import (
	"context"
	"errors"
	"fmt"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
)

// A Fault is something that happens to the network of the right site.
type Fault string

// The faults.
const (
	// Reboot switches the site's box off and on: it forgets its mappings, and one that chooses ports chooses others.
	Reboot Fault = "reboot"
	// Readdress gives the box, or the site if it has none, another address.
	Readdress Fault = "readdress"
)

// A Recovery is how long after a fault a pair's traffic was back, in seconds.
type Recovery struct {
	Ping   float64 `json:"ping_s"`   // the first was answered, whichever way; looked for from the first tenth of a second on
	Direct float64 `json:"direct_s"` // the way was a direct link again, or what else was waited for, to about half a second
}

// Together makes a mesh with the two sites of the cell, and waits until they have a direct link. The caller closes it.
func Together(ctx context.Context, opts Options, c Cell) (*Mesh, error) {
	m, err := together(ctx, opts, c.network(), Direct, patience)
	if err != nil && m != nil {
		err = errors.Join(err, m.Close())
	}
	return m, err
}

// together returns the mesh with the error, if there is one already.
func together(ctx context.Context, opts Options, n *lab.Network, way Way, within time.Duration) (*Mesh, error) {
	m, err := build(ctx, opts, n, left, right)
	if err != nil {
		return nil, err
	}
	for _, site := range []string{left, right} {
		if err == nil {
			err = m.join(ctx, site)
		}
		if err == nil {
			err = m.surveyed(ctx, site)
		}
	}
	if err == nil {
		_, err = m.recovers(ctx, way, within)
	}
	return m, err
}

// Survive lets the fault happen and waits until the pair has a direct link again, but not for longer than a limit.
func (m *Mesh) Survive(ctx context.Context, f Fault, within time.Duration) (Recovery, error) {
	status, err := m.Lab.Status(ctx)
	if err != nil {
		return Recovery{}, err
	}
	link := right + ":isp1"
	if _, boxed := status.Node(boxOf(right)); boxed {
		link = boxOf(right) + ":wan"
	}
	if f == Reboot {
		err = m.Lab.Reboot(ctx, boxOf(right), time.Second)
	} else {
		_, err = m.Lab.Readdress(ctx, link)
	}
	if err != nil {
		return Recovery{}, err
	}
	return m.recovers(ctx, Direct, within)
}

// recovers waits until the pair's traffic takes the way, from now on.
func (m *Mesh) recovers(ctx context.Context, way Way, within time.Duration) (r Recovery, err error) {
	since := flow.Monotonic()
	pings := m.await(ctx, right, left, within)
	defer pings.Kill()
	var v verdict
	var last trace
	ok, err := poll(ctx, within, func() (bool, error) {
		ends, err := m.links(ctx)
		if err != nil {
			return false, err
		}
		v = judge(time.Now(), ends, verdict{})
		last, err = m.trace(ctx)
		return v.way == way && last.takes(way), err
	})
	r.Direct = (flow.Monotonic() - since).Seconds()
	if err == nil && !ok {
		err = fmt.Errorf("not %s in %s; at last %+v; the links say %s %s", way, within, last, v.way, v.why)
	}
	if err != nil {
		return r, err
	}
	r.Ping, err = m.answered(ctx, pings, since, within)
	return r, err
}
