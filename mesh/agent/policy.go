package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/core"
	"guywire/routing/topology"
	"guywire/store"
)

const (
	drainLook = 200 * time.Millisecond // between looks at what a drained thing carries
	// drainSettle is how long nothing must go over it, for far ends to hear of
	// the drain as well, and drainStay how long what has no other way must not
	// change before it is taken to stay.
	drainSettle = time.Second
	drainStay   = 3 * time.Second
)

// Topology implements api.Backend.
func (a *Agent) Topology(ctx context.Context) (api.Topology, error) {
	m, err := a.member()
	if err != nil {
		return api.Topology{}, err
	}
	var edges []topology.Edge
	known := false
	if err := m.query(ctx, func(n *core.Node) {
		if g := n.Topology(); g != nil {
			edges, known = g.Edges(), true
		}
	}); err != nil {
		return api.Topology{}, err
	}
	doc := describeTopology(m.plane.State())
	if known {
		addEdges(&doc, edges)
	}
	return doc, nil
}

var modeNames = map[store.TopologyMode]string{
	store.TopologyAuto: api.TopologyAuto, store.TopologyFull: api.TopologyFull, store.TopologyHub: api.TopologyHub,
}

// describeTopology is what the log says about who should have links to whom.
func describeTopology(s *store.State) api.Topology {
	t := s.Mesh.Topology
	pairs := func(list []store.Pair) (out []api.Pair) {
		for _, p := range list {
			a, b := nodeName(s, p.A), nodeName(s, p.B)
			out = append(out, api.Pair{A: min(a, b), B: max(a, b)})
		}
		slices.SortFunc(out, func(p, q api.Pair) int { return strings.Compare(p.A+" "+p.B, q.A+" "+q.B) })
		return out
	}
	doc := api.Topology{Mode: modeNames[t.Mode], Hub: t.Hub, Dense: t.Dense, Pinned: pairs(t.Pinned), Forbidden: pairs(t.Forbidden)}
	for id, n := range s.Nodes {
		doc.Nodes = append(doc.Nodes, api.TopologyNode{
			ID: id, Name: n.Name, Transit: !n.NoTransit, MaxDegree: n.MaxDegree, Tags: n.Tags, Drain: drainOfNode(s, id),
		})
	}
	slices.SortFunc(doc.Nodes, func(a, b api.TopologyNode) int { return strings.Compare(a.Name, b.Name) })
	return doc
}

// addEdges adds the wanted adjacencies to those nodes that the document has.
func addEdges(doc *api.Topology, edges []topology.Edge) {
	at := map[mesh.NodeID]*api.TopologyNode{}
	for i := range doc.Nodes {
		at[doc.Nodes[i].ID] = &doc.Nodes[i]
	}
	for _, e := range edges {
		a, b := at[e.A], at[e.B]
		if a == nil || b == nil {
			continue // joined or left since
		}
		a.Neighbours = append(a.Neighbours, api.Neighbour{Node: b.Name, Reason: e.Reason.String()})
		b.Neighbours = append(b.Neighbours, api.Neighbour{Node: a.Name, Reason: e.Reason.String()})
	}
	for _, n := range at {
		n.Degree = new(len(n.Neighbours))
		slices.SortFunc(n.Neighbours, func(a, b api.Neighbour) int { return strings.Compare(a.Node, b.Node) })
	}
}

// operate asks the mesh for a change in the name of the operator here.
func (a *Agent) operate(ctx context.Context, ask func(m *running, s *store.State) (store.Command, error)) (*running, error) {
	m, err := a.member()
	if err != nil {
		return nil, err
	}
	command, err := ask(m, m.plane.State())
	if err == nil {
		_, err = m.plane.Operate(ctx, command)
	}
	return m, convert(err)
}

// saySite tells the mesh once where this node is, if its configuration says so:
// what an operator sets later stays until the next start.
func (m *member) saySite(ctx context.Context) error {
	site := m.agent.config.Site
	if site == "" {
		return nil
	}
	tick := time.NewTicker(siteEvery)
	defer tick.Stop()
	for m.plane.State().Nodes[m.self].Site != site {
		_, err := m.plane.Operate(ctx, store.Command{SetNode: &store.SetNode{Node: m.self, Site: &site}})
		if err == nil {
			return nil
		}
		if _, refused := errors.AsType[*store.Refusal](err); refused {
			m.log.Warn("the mesh does not take the configured site", "site", site, mesh.LogReason, err)
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// SetTopology implements api.Backend.
func (a *Agent) SetTopology(ctx context.Context, r api.TopologyRequest) (api.Done, error) {
	sentence := "the topology is " + r.Mode
	switch {
	case r.Mode == api.TopologyHub:
		sentence += ": every node is a neighbour of those with the tag " + r.Hub
	case r.Dense:
		sentence += ", dense"
	}
	_, err := a.operate(ctx, func(*running, *store.State) (store.Command, error) {
		set := store.SetTopology{Hub: r.Hub, Dense: r.Dense}
		for mode, name := range modeNames {
			if name == r.Mode {
				set.Mode = mode
			}
		}
		return store.Command{SetTopology: &set}, nil
	})
	return api.Done{Sentence: sentence}, err
}

// SetPairs implements api.Backend.
func (a *Agent) SetPairs(ctx context.Context, r api.PairsRequest) (api.Done, error) {
	var done []string
	_, err := a.operate(ctx, func(_ *running, s *store.State) (store.Command, error) {
		var set store.SetPairs
		for _, part := range []struct {
			from []api.Pair
			to   *[]store.Pair
			now  string
		}{
			{r.Unpin, &set.Unpin, "%s and %s have links as the topology chooses"},
			{r.Allow, &set.Allow, "%s and %s may have links"},
			{r.Pin, &set.Pin, "%s and %s always have links"},
			{r.Forbid, &set.Forbid, "%s and %s never have links"},
		} {
			for _, p := range part.from {
				first, err := resolveNode(s, p.A)
				if err != nil {
					return store.Command{}, err
				}
				second, err := resolveNode(s, p.B)
				if err != nil {
					return store.Command{}, err
				}
				*part.to = append(*part.to, store.MakePair(first.ID, second.ID))
				done = append(done, fmt.Sprintf(part.now, first.Name, second.Name))
			}
		}
		return store.Command{SetPairs: &set}, nil
	})
	return api.Done{Sentence: strings.Join(done, "; ")}, err
}

// SetNode implements api.Backend.
func (a *Agent) SetNode(ctx context.Context, r api.NodeRequest) (api.Done, error) {
	m, err := a.member()
	if err != nil {
		return api.Done{}, err
	}
	n, err := resolveNode(m.plane.State(), r.Node)
	if err != nil {
		return api.Done{}, err
	}
	set := store.SetNode{Node: n.ID, Transit: r.Transit, MaxDegree: r.MaxDegree, Site: r.Site}
	if r.Tags != nil {
		set.Tags = new(append([]string{}, *r.Tags...))
	}
	var commands []store.Command
	if set != (store.SetNode{Node: n.ID}) || r.Roles == nil {
		commands = append(commands, store.Command{SetNode: &set})
	}
	if r.Roles != nil {
		commands = append(commands, store.Command{SetRoles: &store.SetRoles{Node: n.ID, Roles: rolesOf[store.NodeRole](*r.Roles)}})
	}
	for i, command := range commands {
		if _, err := m.plane.Operate(ctx, command); err != nil {
			if i > 0 {
				err = fmt.Errorf("all but the roles of %s is set: %w", n.Name, err)
			}
			return api.Done{}, convert(err)
		}
	}
	return api.Done{Sentence: describeNode(m.plane.State().Nodes[n.ID])}, nil
}

// describeNode says what operators decided about a node.
func describeNode(n store.Node) string {
	s := n.Name + ": others are reached through it"
	if n.NoTransit {
		s = n.Name + ": nothing of others goes through it"
	}
	if n.MaxDegree != 0 {
		s += fmt.Sprintf(", at most %d neighbours", n.MaxDegree)
	}
	if n.Site != "" {
		s += ", at " + n.Site
	}
	if len(n.Roles) > 0 {
		s += ", " + strings.Join(rolesOf[string](n.Roles), " and ")
	}
	if len(n.Tags) == 0 {
		return s + ", no tags"
	}
	return s + ", tags " + strings.Join(n.Tags, ", ")
}

// resolveNode finds a node by name or id.
func resolveNode(s *store.State, what string) (store.Node, error) {
	if n, ok := s.NodeByName(what); ok {
		return n, nil
	}
	if id, err := mesh.ParseNodeID(what); err == nil {
		if n, ok := s.Nodes[id]; ok {
			return n, nil
		}
	}
	return store.Node{}, api.Errorf(api.CodeNotFound, "meshctl nodes lists them", "There is no node %q", what)
}

// Drains implements api.Backend.
func (a *Agent) Drains(ctx context.Context) (api.Drains, error) {
	m, err := a.member()
	if err != nil {
		return api.Drains{}, err
	}
	links, routes, err := a.tables(ctx)
	if err != nil {
		return api.Drains{}, err
	}
	s := m.plane.State()
	var doc api.Drains
	for id, n := range s.Nodes {
		for _, d := range n.Drains {
			doc.Drains = append(doc.Drains, draining(describeDrain(s, id, d), nodeName(s, m.self), links, routes))
		}
	}
	slices.SortFunc(doc.Drains, func(a, b api.Draining) int { return strings.Compare(a.Drain.Target, b.Drain.Target) })
	return doc, nil
}

// Drain implements api.Backend.
func (a *Agent) Drain(ctx context.Context, r api.DrainRequest) (api.Drained, error) {
	m, err := a.member()
	if err != nil {
		return api.Drained{}, err
	}
	s := m.plane.State()
	set, err := parseTarget(s, m.self, r.Target, m.uplinksOf, true)
	if err != nil {
		return api.Drained{}, err
	}
	set.Drain = true
	drain := describeDrain(s, set.Node, store.Drain{Uplink: set.Uplink, Peer: set.Peer, Remote: set.Remote, By: m.self, Since: time.Now()})
	if !r.DryRun {
		result, err := m.plane.Operate(ctx, store.Command{SetDrain: &set})
		if err != nil {
			return api.Drained{}, convert(err)
		}
		if at := drainedBy(*result.Node, set); at != nil { // by whom and since when, if it was drained before
			drain = describeDrain(m.plane.State(), result.Node.ID, *at)
		}
	}
	out := api.Drained{Draining: api.Draining{Drain: drain}}
	look := func() (api.Draining, error) {
		links, routes, err := a.tables(ctx)
		return draining(drain, nodeName(s, m.self), links, routes), err
	}
	wait := time.Duration(r.WaitMs * float64(time.Millisecond))
	if r.DryRun {
		wait = 0
	}
	out.Draining, out.Done, err = watchDrain(ctx, wait, look)
	return out, err
}

// Undrain implements api.Backend.
func (a *Agent) Undrain(ctx context.Context, target string) (api.Done, error) {
	sentence := ""
	_, err := a.operate(ctx, func(m *running, s *store.State) (store.Command, error) {
		set, err := parseTarget(s, m.self, target, m.uplinksOf, false)
		if err != nil {
			return store.Command{}, err
		}
		d := store.Drain{Uplink: set.Uplink, Peer: set.Peer, Remote: set.Remote}
		sentence = describeDrain(s, set.Node, d).Target + " is in use again"
		if drainedBy(s.Nodes[set.Node], set) == nil && drainedBy(s.Nodes[set.Peer], set) == nil {
			sentence = describeDrain(s, set.Node, d).Target + " was not drained"
		}
		return store.Command{SetDrain: &set}, nil
	})
	return api.Done{Sentence: sentence}, err
}

// drainedBy finds the drain that set asks for at the end that holds it.
func drainedBy(n store.Node, set store.SetDrain) *store.Drain {
	i := slices.IndexFunc(n.Drains, func(d store.Drain) bool {
		here := d.Uplink == set.Uplink && d.Peer == set.Peer && d.Remote == set.Remote && n.ID == set.Node
		there := d.Uplink == set.Remote && d.Peer == set.Node && d.Remote == set.Uplink && n.ID == set.Peer
		return here || there
	})
	if i < 0 {
		return nil
	}
	return &n.Drains[i]
}

// watchDrain looks until nothing goes over a drained thing for drainSettle, or
// only what has no other way for drainStay, or wait is over; wait 0: once.
func watchDrain(ctx context.Context, wait time.Duration, look func() (api.Draining, error)) (last api.Draining, done bool, err error) {
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	end := time.Now().Add(wait)
	var since time.Time // it carries what last says
	for {
		d, err := look()
		if err != nil {
			return last, false, err
		}
		now := time.Now()
		if since.IsZero() || !slices.Equal(d.Carries, last.Carries) || len(d.NoOtherWay) != len(last.NoOtherWay) {
			since = now
		}
		last = d
		patience := drainStay
		if len(d.Carries) == 0 {
			patience = drainSettle
		}
		done = len(d.Carries) == len(d.NoOtherWay)
		if done && now.Sub(since) >= patience || !now.Before(end) {
			return last, done, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return last, false, ctx.Err()
		}
	}
}

// tables are the links and routes of this node as the API shows them.
func (a *Agent) tables(ctx context.Context) ([]api.Link, []api.Route, error) {
	links, err := a.Links(ctx)
	if err != nil {
		return nil, nil, err
	}
	routes, err := a.Routes(ctx)
	return links.Links, routes.Routes, err
}

// draining adds to a drain what goes over it from this node.
func draining(d api.Drain, self string, links []api.Link, routes []api.Route) api.Draining {
	out := api.Draining{Drain: d}
	on := map[string]bool{} // devices
	for _, l := range links {
		ours, theirs := api.Drain{Node: self, Uplink: l.Local, Peer: l.Peer, Remote: l.Remote}, api.Drain{Node: l.Peer, Uplink: l.Remote, Peer: self, Remote: l.Local}
		if covers(d, ours) || covers(d, theirs) {
			on[l.Device] = true
		}
	}
	over := func(origins []string, peer, device string) bool {
		if d.Uplink == "" {
			return peer == d.Node && !slices.Contains(origins, d.Node)
		}
		return on[device]
	}
	for _, r := range routes {
		carries := 0
		for _, h := range r.NextHops {
			if over(r.Origins, h.Peer, h.Device) {
				carries++
			}
		}
		if carries == 0 {
			continue
		}
		out.Carries = append(out.Carries, r.Prefix)
		if carries == len(r.NextHops) && (r.RunnerUp == nil || over(r.Origins, r.RunnerUp.Peer, r.RunnerUp.Device)) {
			out.NoOtherWay = append(out.NoOtherWay, r.Prefix)
		}
	}
	return out
}

// covers reports whether a drain of an uplink or a link is about a link, seen
// from one of its ends.
func covers(d, link api.Drain) bool {
	return d.Uplink != "" && d.Node == link.Node && d.Uplink == link.Uplink &&
		(d.Peer == "" || d.Peer == link.Peer && d.Remote == link.Remote)
}

// uplinksOf gives the names of a node's uplinks; nil: they are not known here.
func (m *member) uplinksOf(id mesh.NodeID) (names []string) {
	if id == m.self {
		for _, u := range m.rememberedUplinks() {
			names = append(names, u.Name)
		}
		return names
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	facts, _ := m.directory.Get(id)
	for _, u := range facts.Uplinks {
		names = append(names, u.Name)
	}
	return names
}

// parseTarget reads NODE, UPLINK (of self), NODE/UPLINK, or two ends of a link
// with a colon between, the first of which may be an UPLINK. With check, an
// uplink must be one of uplinks' where those are known; what is drained
// already may have been renamed since.
func parseTarget(s *store.State, self mesh.NodeID, text string, uplinks func(mesh.NodeID) []string, check bool) (store.SetDrain, error) {
	end := func(text string) (mesh.NodeID, string, error) {
		node, uplink, both := strings.Cut(text, "/")
		id := self
		if both {
			n, err := resolveNode(s, node)
			if err != nil {
				return id, "", err
			}
			id = n.ID
		} else {
			uplink = text
		}
		if known := uplinks(id); check && len(known) > 0 && !slices.Contains(known, uplink) {
			return id, "", api.Errorf(api.CodeNotFound, "choose one of "+strings.Join(known, ", "), "%s has no uplink %q", nodeName(s, id), uplink)
		}
		return id, uplink, nil
	}
	first, second, link := strings.Cut(text, ":")
	if !link && !strings.Contains(text, "/") {
		n, err := resolveNode(s, text)
		isUplink := slices.Contains(uplinks(self), text) || s.Nodes[self].UplinkDrain(text) != nil
		switch {
		case err == nil && isUplink:
			return store.SetDrain{}, api.Errorf(api.CodeInvalid, fmt.Sprintf("say %s/%s for the uplink, or %s for the node", nodeName(s, self), text, n.ID),
				"%s is both a node and an uplink of this node", text)
		case err == nil:
			return store.SetDrain{Node: n.ID}, nil
		case !isUplink:
			return store.SetDrain{}, api.Errorf(api.CodeNotFound, "meshctl nodes lists the nodes, meshctl status the uplinks", "There is no node and no uplink of this node %q", text)
		}
	}
	id, uplink, err := end(first)
	set := store.SetDrain{Node: id, Uplink: uplink}
	if err != nil || !link {
		return set, err
	}
	if !strings.Contains(second, "/") {
		return set, api.Errorf(api.CodeInvalid, "name the far end as NODE/UPLINK", "The link %q has no node at its far end", text)
	}
	set.Peer, set.Remote, err = end(second)
	return set, err
}

// describeDrain gives a drain of a node as people see it.
func describeDrain(s *store.State, id mesh.NodeID, d store.Drain) api.Drain {
	out := api.Drain{Node: nodeName(s, id), Uplink: d.Uplink, Remote: d.Remote, By: nodeName(s, d.By), Since: d.Since}
	out.Target = out.Node
	if d.Uplink != "" {
		out.Target += "/" + d.Uplink
	}
	if !d.Peer.IsZero() {
		out.Peer = nodeName(s, d.Peer)
		out.Target += ":" + out.Peer + "/" + d.Remote
	}
	if gone, removed := s.Removed[d.By]; removed {
		out.By = gone.Name
	}
	return out
}

// drainOfNode is the drain of a whole node; nil: it is in use.
func drainOfNode(s *store.State, id mesh.NodeID) *api.Drain {
	if d := s.Nodes[id].Drained(); d != nil {
		return new(describeDrain(s, id, *d))
	}
	return nil
}

// drainOfUplink is the drain of an uplink of a node, or of the whole node.
func drainOfUplink(s *store.State, id mesh.NodeID, uplink string) *api.Drain {
	if d := s.Nodes[id].UplinkDrain(uplink); d != nil {
		return new(describeDrain(s, id, *d))
	}
	return drainOfNode(s, id)
}

// drainOfLink is what keeps traffic off a link of self: the drain of the link,
// of the uplink at either end, or of the node at either end.
func drainOfLink(s *store.State, self mesh.NodeID, l mesh.LinkID) *api.Drain {
	for _, end := range []struct {
		id     mesh.NodeID
		uplink string
	}{{self, l.Local}, {l.Peer, l.Remote}} {
		if d := s.Nodes[end.id].UplinkDrain(end.uplink); d != nil {
			return new(describeDrain(s, end.id, *d))
		}
	}
	if d := s.LinkDrain(self, l); d != nil {
		id := self
		if d.Peer == self {
			id = l.Peer
		}
		return new(describeDrain(s, id, *d))
	}
	if d := drainOfNode(s, self); d != nil {
		return d
	}
	return drainOfNode(s, l.Peer)
}

// drainFindings reminds of what is drained on this node.
func drainFindings(s *store.State, self mesh.NodeID) (out []api.Finding) {
	for _, d := range s.Nodes[self].Drains {
		drain := describeDrain(s, self, d)
		out = append(out, api.Finding{
			Level: api.OK, Sentence: fmt.Sprintf("%s is drained since %s by %s", drain.Target, drain.Since.Local().Format(time.DateTime), drain.By),
			Next: "meshctl undrain " + drain.Target,
		})
	}
	return out
}
