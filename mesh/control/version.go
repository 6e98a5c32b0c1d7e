package control

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"guywire/store"
	"guywire/store/raftstore"
)

// tendVersion takes the mesh to the next version of the state, on the leader,
// as soon as all who read the log now can read on: the voters, the learners,
// and the followers of each. A member that is away and too old keeps what it
// has, and is told to upgrade when it comes back.
func (p *Plane) tendVersion(ctx context.Context, log *raftstore.Store) error {
	next := log.State().NextVersion()
	if next > store.Version || p.streams.version() < next {
		return nil
	}
	asking, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	var old atomic.Bool
	var all sync.WaitGroup
	st := log.Status()
	for _, id := range slices.Concat(st.Voters, st.Learners) {
		if id == p.id {
			continue
		}
		all.Go(func() {
			var answer headAnswer
			if err := p.Do(asking, id, http.MethodGet, "/v1/head", nil, &answer); err != nil || answer.Version < next {
				old.Store(true)
			}
		})
	}
	all.Wait()
	if old.Load() {
		return nil
	}
	if err := p.propagate(ctx, log, store.Command{SetVersion: &store.SetVersion{Version: next}}); err != nil {
		return err
	}
	p.logger.Info("the mesh has another version of its state", "version", next)
	return nil
}
