package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/config"
)

// names are the DNS names by which the operator says where this node is reached,
// with the addresses that they have. Only their owner looks them up: others are told
// addresses.
type names struct {
	lookup  func(ctx context.Context, name string) ([]netip.Addr, error)
	log     *slog.Logger
	doubted chan struct{} // something that may be reached by a name fails
	tried   chan struct{} // closed when each was looked up once

	mu    sync.Mutex // guards known
	known map[string]resolved
}

// resolved is the last good answer on a name.
type resolved struct {
	addrs []netip.Addr
	at    time.Time
	err   error // of the last lookup; nil: it is that answer
}

func newNames(c config.Config, lookup func(context.Context, string) ([]netip.Addr, error), log *slog.Logger) *names {
	n := &names{lookup: lookup, log: log, doubted: make(chan struct{}, 1), tried: make(chan struct{}), known: map[string]resolved{}}
	for _, e := range c.Control.Advertise {
		n.add(e.Host)
	}
	for _, u := range c.Uplinks {
		n.add(u.Endpoint)
	}
	return n
}

func (n *names) add(h config.Host) {
	if h.Name != "" {
		n.known[h.Name] = resolved{}
	}
}

// run looks the names up again and again until ctx ends, and calls changed when one
// of them has other addresses.
func (n *names) run(ctx context.Context, changed func()) {
	if len(n.known) == 0 {
		close(n.tried)
		return
	}
	tick := time.NewTicker(namesEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		if n.resolve(ctx) {
			changed()
		}
		if first {
			close(n.tried)
		}
		begun := time.Now()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		case <-n.doubted:
			select {
			case <-time.After(time.Until(begun.Add(namesRest))):
			case <-ctx.Done():
				return
			}
		}
	}
}

// resolve looks all names up, side by side, and reports whether any has changed.
func (n *names) resolve(ctx context.Context) (changed bool) {
	ctx, cancel := context.WithTimeout(ctx, namesPatience)
	defer cancel()
	n.mu.Lock()
	list := slices.Sorted(maps.Keys(n.known))
	n.mu.Unlock()
	answers := make([]resolved, len(list))
	var lookups sync.WaitGroup
	for i, name := range list {
		lookups.Go(func() {
			addrs, err := n.lookup(ctx, name)
			answers[i] = resolved{addrs: reachable(addrs), err: err, at: time.Now()}
			if err == nil && len(answers[i].addrs) == 0 {
				answers[i].err = errors.New("it has no address that others can reach")
			}
		})
	}
	lookups.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, name := range list {
		old, now := n.known[name], answers[i]
		if now.err != nil {
			if old.err == nil {
				n.log.Warn("a name does not resolve; its last addresses serve for half an hour", "name", name, mesh.LogError, now.err)
			}
			now.addrs, now.at = old.addrs, old.at
			if now.at.IsZero() || time.Since(now.at) > candidateLife {
				now.addrs = nil
			}
		}
		changed = changed || !slices.Equal(old.addrs, now.addrs)
		n.known[name] = now
	}
	return changed
}

// reachable gives the addresses of a name that other sites may reach, in order.
func reachable(addrs []netip.Addr) (out []netip.Addr) {
	for _, a := range addrs {
		if a = a.Unmap(); discovery.Usable(netip.AddrPortFrom(a, 1)) == nil {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	out = slices.Compact(out)
	return out[:min(len(out), discovery.MaxForwarded)]
}

// of gives the addresses of a host; none while its name has none. It does not block.
func (n *names) of(h config.Host) []netip.Addr {
	if h.Addr.IsValid() {
		return []netip.Addr{h.Addr}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.known[h.Name].addrs
}

// await waits until each name was looked up once.
func (n *names) await(ctx context.Context) {
	select {
	case <-n.tried:
	case <-ctx.Done():
	}
}

// findings says which names do not resolve.
func (n *names) findings() (out []api.Finding) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(n.known)) {
		if r := n.known[name]; r.err != nil {
			out = append(out, api.Finding{
				Level: api.Degraded, Sentence: fmt.Sprintf("The name %s of the configuration does not resolve: %v", name, r.err),
				Next: "check the name in the configuration, and the DNS of this machine",
			})
		}
	}
	return out
}
