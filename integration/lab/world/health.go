package world

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"guywire/mesh/api"
)

// healthy says what keeps a site from being as it was at first; empty when nothing does. wanted are the links that were up.
func healthy(s api.Status, links []api.Link, wanted []linkKey) string {
	switch {
	case !s.Enrolled || s.Node == nil:
		return "in no mesh"
	case !s.Ready:
		return "its first tunnels and routes are not in the kernel"
	case s.Node.Leader == "":
		return "knows no leader"
	case s.Nodes.Good < s.Nodes.Total:
		return fmt.Sprintf("reaches %d of %d nodes", s.Nodes.Good, s.Nodes.Total)
	case s.Kernel.Applied != s.Kernel.Wanted:
		return strings.TrimSuffix(fmt.Sprintf("revision %d is in the kernel, %d is wanted: %s", s.Kernel.Applied, s.Kernel.Wanted, s.Kernel.Error), ": ")
	}
	up := upLinks(links)
	for _, k := range wanted {
		if !slices.Contains(up, k) {
			return "link " + k.String() + " is " + linkStory(k, links)
		}
	}
	return ""
}

// linkKey names a link of a site.
type linkKey struct{ peer, local, remote string }

func (k linkKey) String() string { return fmt.Sprintf("%s %s → %s", k.peer, k.local, k.remote) }

func keyOf(l api.Link) linkKey { return linkKey{l.Peer, l.Local, l.Remote} }

// upLinks returns the links that can carry traffic.
func upLinks(links []api.Link) []linkKey {
	var up []linkKey
	for _, l := range links {
		if l.State == api.LinkUp || l.State == api.LinkDegraded {
			up = append(up, keyOf(l))
		}
	}
	return up
}

func linkStory(k linkKey, links []api.Link) string {
	for _, l := range links {
		if keyOf(l) == k {
			return string(l.State) + ": " + l.Reason
		}
	}
	return "gone"
}

// UntilHealthy waits until the sites are well and have the links of the baseline.
func (w *World) UntilHealthy(ctx context.Context, what string, sites []*Site) error {
	return w.Until(ctx, what, healLimit, func(ctx context.Context) (string, error) {
		states := make([]string, len(sites))
		_ = w.Each(sites, func(s *Site) error { // what goes wrong is the state
			var st api.Status
			var links api.Links
			state := &states[slices.Index(sites, s)]
			if err := w.Ctl(ctx, s, &st, "status"); err != nil {
				*state = OneLine(err)
			} else if err := w.Ctl(ctx, s, &links, "links"); err != nil {
				*state = OneLine(err)
			} else if why := healthy(st, links.Links, w.baseline[s.Name]); why != "" {
				*state = s.Name + ": " + why
			}
			return nil
		})
		states = slices.DeleteFunc(states, func(s string) bool { return s == "" })
		return strings.Join(states, "; "), nil
	})
}

// UntilTalk starts the echoes and waits until all hosts answer each other, by IPv6 too if v6 is set. It is called once.
func (w *World) UntilTalk(ctx context.Context, v6 bool) error {
	if err := w.startEchoes(ctx); err != nil {
		return err
	}
	return w.Until(ctx, "all pairs talk", TalkLimit, func(ctx context.Context) (string, error) {
		m, err := w.Matrix(ctx, 1)
		if !v6 {
			m.Pair6.Good = m.Pair6.Total
		}
		return m.Missing(), err
	})
}

// Settle waits until all hosts talk and all sites are well, and notes the links that are up: UntilHealthy waits for those
// from now on. It is called once.
func (w *World) Settle(ctx context.Context) error {
	if err := w.UntilTalk(ctx, true); err != nil {
		return err
	}
	if err := w.UntilHealthy(ctx, "all sites well", w.Sites); err != nil {
		return err
	}
	if silent := w.Look(ctx); len(silent) > 0 {
		return fmt.Errorf("no links from %s", strings.Join(silent, ", "))
	}
	for _, s := range w.Sites {
		w.baseline[s.Name] = upLinks(w.Links[s.Name])
	}
	return nil
}
