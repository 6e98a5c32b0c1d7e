package control

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

// tendVersion takes the mesh to the next version of the state, on the leader,
// as soon as all who read the log now can read on: the voters, the learners,
// and the followers of each. A member that is away and too old keeps what it
// has, and is told to upgrade when it comes back. Who holds it back is kept for
// Status.
func (p *Plane) tendVersion(ctx context.Context, log *raftstore.Store) error {
	next := log.State().NextVersion()
	if next > store.Version {
		p.outdated.Store(nil)
		return nil
	}
	asking, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	outdated := p.streams.outdated(next)
	var mu sync.Mutex // guards outdated
	var all sync.WaitGroup
	st := log.Status()
	for _, id := range slices.Concat(st.Voters, st.Learners) {
		if id == p.id {
			continue
		}
		all.Go(func() {
			var answer headAnswer
			err := p.Do(asking, id, http.MethodGet, fmt.Sprintf("/v1/head?version=%d", next), nil, &answer)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || answer.Version < next && len(answer.Outdated) == 0 {
				outdated = append(outdated, id)
			}
			outdated = append(outdated, answer.Outdated...)
		})
	}
	all.Wait()
	slices.SortFunc(outdated, mesh.NodeID.Compare)
	outdated = slices.Compact(outdated)
	p.outdated.Store(&outdated)
	if len(outdated) > 0 {
		return nil
	}
	if err := p.propagate(ctx, log, store.Command{SetVersion: &store.SetVersion{Version: next}}); err != nil {
		return err
	}
	p.logger.Info("the mesh has another version of its state", "version", next)
	return nil
}
