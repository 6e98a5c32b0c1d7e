package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"time"

	"guywire/mesh"
	"guywire/mesh/core"
)

// uplinksFile remembers which uplink has which slot, so that marks and tables
// stay the same over restarts.
const uplinksFile = "uplinks.json"

// watchHost observes the machine at once whenever it may have changed.
func (m *member) watchHost(ctx context.Context) error {
	watching := make(chan error, 1)
	go func() { watching <- m.agent.outside.Watch(ctx, func() { signal(m.hostChanged) }) }()
	defer func() { <-watching }()
	for {
		select {
		case <-m.hostChanged:
			host, err := m.observe(ctx)
			if err != nil {
				if ctx.Err() == nil {
					m.log.Warn("uplinks cannot be read; trying again", mesh.LogError, err)
					time.AfterFunc(lookAgain, func() { signal(m.hostChanged) })
				}
				continue
			}
			m.post(core.HostChanged{Host: host})
			m.publish()
			signal(m.agent.names.doubted)
		case err := <-watching:
			watching <- nil
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// observe reads the machine, applies the operator's settings and remembers
// slots.
func (m *member) observe(ctx context.Context) (core.Host, error) {
	seen, err := m.agent.outside.Observe(ctx)
	if err != nil {
		return core.Host{}, err
	}
	for i := range seen.Uplinks {
		u := &seen.Uplinks[i]
		c := m.agent.config.Uplink(u.Interface)
		u.Metered, u.Bias, u.ProbeBudget = c.Metered, c.Bias, c.ProbeBudget
		if c.Name != c.Interface { // named by the operator
			u.Name = c.Name
		}
		if c.Disabled {
			u.Slot = disabledSlot
		}
	}
	disabled := func(u mesh.Uplink) bool { return u.Slot == disabledSlot }
	off := slices.DeleteFunc(slices.Clone(seen.Uplinks), func(u mesh.Uplink) bool { return !disabled(u) })
	seen.Uplinks = slices.DeleteFunc(seen.Uplinks, disabled)
	before := slices.DeleteFunc(slices.Clone(m.rememberedUplinks()), func(b mesh.Uplink) bool {
		return slices.ContainsFunc(off, func(u mesh.Uplink) bool { return u.Interface == b.Interface })
	})
	seen.Uplinks = remember(seen.Uplinks, before)
	if !slices.EqualFunc(before, seen.Uplinks, mesh.Uplink.Equal) {
		if blob, err := json.Marshal(seen.Uplinks); err == nil {
			if err := m.agent.dir.Write(uplinksFile, blob); err != nil {
				m.log.Error("uplink slots cannot be written", mesh.LogError, err)
			}
		}
	}
	m.host.Store(&seen)
	return seen, nil
}

// disabledSlot marks an uplink that the operator switched off.
const disabledSlot = 255

func (m *member) rememberedUplinks() []mesh.Uplink {
	if h := m.host.Load(); h != nil {
		return h.Uplinks
	}
	blob, err := m.agent.dir.Read(uplinksFile, 64<<10)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			m.log.Warn("uplink slots of the last run cannot be read", mesh.LogError, err)
		}
		return nil
	}
	var before []mesh.Uplink
	if err := json.Unmarshal(blob, &before); err != nil {
		m.log.Warn("uplink slots of the last run cannot be read", mesh.LogError, err)
		return nil
	}
	return before
}

// remember gives known uplinks their old slots, new ones the lowest free, and
// keeps vanished ones, switched off, so that a modem that reboots finds its
// links again.
func remember(seen, before []mesh.Uplink) []mesh.Uplink {
	var out []mesh.Uplink
	taken := map[uint8]bool{}
	for _, b := range before {
		i := slices.IndexFunc(seen, func(u mesh.Uplink) bool { return u.Name == b.Name })
		switch {
		case i >= 0:
			slot := b.Slot
			b = seen[i]
			b.Slot = slot
		case slices.ContainsFunc(seen, func(u mesh.Uplink) bool { return u.Interface == b.Interface }):
			continue // it has another name now
		case len(before) >= mesh.MaxUplinks:
			continue // its slot is needed
		default:
			b.Up, b.Default4, b.Default6 = false, false, false
		}
		taken[b.Slot] = true
		out = append(out, b)
	}
	for _, u := range seen {
		if slices.ContainsFunc(before, func(b mesh.Uplink) bool { return b.Name == u.Name }) {
			continue
		}
		for u.Slot = 1; taken[u.Slot]; u.Slot++ {
		}
		if u.Slot > mesh.MaxUplinks {
			continue
		}
		taken[u.Slot] = true
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b mesh.Uplink) int { return strings.Compare(a.Name, b.Name) })
	return out
}
