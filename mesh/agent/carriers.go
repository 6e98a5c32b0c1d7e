package agent

import (
	"context"
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/core"
)

// tendCarriers closes carriers that no link goes through: the data plane does not
// know links, and the agent that opened one may be gone.
func (m *member) tendCarriers(ctx context.Context) error {
	since := map[discovery.AttemptID]time.Time{} // when it was first found to be nobody's
	tick := time.NewTicker(carriersEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		found, err := m.kernel.Carriers.List(ctx)
		if err != nil {
			m.log.Debug("carriers cannot be listed", mesh.LogError, err)
			continue
		}
		records := m.records.Load()
		used := func(id discovery.AttemptID) bool {
			return records == nil || slices.ContainsFunc(*records, func(r core.Record) bool { return r.Carrier == id })
		}
		for id := range since {
			if !slices.Contains(found, id) {
				delete(since, id)
			}
		}
		for _, id := range found {
			first, known := since[id]
			switch {
			case used(id):
				delete(since, id)
			case !known:
				since[id] = time.Now()
			case time.Since(first) > carrierSpare: // else an attempt may be about to use it
				if err := m.kernel.Carriers.Close(ctx, id); err != nil {
					m.log.Debug("a carrier that nothing uses cannot be closed", mesh.LogError, err)
				}
			}
		}
	}
}
