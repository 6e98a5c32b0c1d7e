package store

import (
	"maps"
	"slices"

	"guywire/mesh"
)

func (s *State) setTopology(c SetTopology) *Refusal {
	t := s.Mesh.Topology
	t.Mode, t.Hub, t.Dense = c.Mode, c.Hub, c.Dense
	if refused := checkMode(t); refused != nil {
		return refused
	}
	if t.Mode == TopologyHub && !s.tagged(t.Hub, mesh.NodeID{}) {
		return refuse(CodeTopologyRefused, "no node has the tag %s, so there would be no hub; give it to one first: meshctl node set NODE --tag %s", t.Hub, t.Hub)
	}
	return s.keepWhole(func() { s.Mesh.Topology = t })
}

func checkMode(t Topology) *Refusal {
	switch t.Mode {
	case TopologyAuto:
		if t.Hub != "" {
			return refuse(CodeInvalid, "only the topology hub has hubs; leave out --tag, or say hub")
		}
	case TopologyFull, TopologyHub:
		if t.Dense {
			return refuse(CodeInvalid, "only the topology auto can be dense; leave out --dense, or say auto")
		}
		if (t.Mode == TopologyHub) != (t.Hub != "") {
			return refuse(CodeInvalid, "the topology hub, and no other, needs the tag of its hubs; say hub --tag TAG")
		}
	default:
		return refuse(CodeInvalid, "there is no topology %q; choose auto, full or hub", t.Mode)
	}
	if t.Hub == "" {
		return nil
	}
	if err := mesh.CheckName(t.Hub); err != nil {
		return refuse(CodeInvalid, "tag: %s; change --tag", err)
	}
	return nil
}

// tagged reports whether a node other than besides has the tag.
func (s *State) tagged(tag string, besides mesh.NodeID) bool {
	for id, n := range s.Nodes {
		if id != besides && slices.Contains(n.Tags, tag) {
			return true
		}
	}
	return false
}

// setPairs takes rules away before it gives new ones, so that one command can
// turn a pinned pair into a forbidden one.
func (s *State) setPairs(c SetPairs) *Refusal {
	for _, p := range slices.Concat(c.Unpin, c.Allow, c.Pin, c.Forbid) {
		if p.A == p.B {
			return refuse(CodeInvalid, "a pair is two different nodes, and %s is named twice", s.name(p.A))
		}
		for _, id := range []mesh.NodeID{p.A, p.B} {
			if _, refused := s.live(id); refused != nil {
				return refused
			}
		}
	}
	t := s.Mesh.Topology
	t.Pinned = change(t.Pinned, c.Unpin, c.Pin)
	t.Forbidden = change(t.Forbidden, c.Allow, c.Forbid)
	if len(t.Pinned)+len(t.Forbidden) > MaxPairs {
		return refuse(CodeTopologyRefused, "a mesh may pin and forbid %d pairs together, not %d; take some back first: meshctl topology lists them", MaxPairs, len(t.Pinned)+len(t.Forbidden))
	}
	for _, p := range t.Pinned {
		a, b := s.name(p.A), s.name(p.B)
		switch {
		case !holds(t.Forbidden, p):
		case holds(s.Mesh.Topology.Forbidden, p):
			return refuse(CodeTopologyRefused, "a link of %s and %s is forbidden; allow it first: meshctl topology allow %[1]s %[2]s", a, b)
		case holds(s.Mesh.Topology.Pinned, p):
			return refuse(CodeTopologyRefused, "a link of %s and %s is pinned; unpin it first: meshctl topology unpin %[1]s %[2]s", a, b)
		default:
			return refuse(CodeTopologyRefused, "a link of %s and %s cannot be both pinned and forbidden; choose one", a, b)
		}
	}
	return s.keepWhole(func() { s.Mesh.Topology = t })
}

// change gives list without some pairs and with others, in canonical form.
func change(list, without, with []Pair) []Pair {
	order := func(in []Pair) []Pair {
		out := make([]Pair, 0, len(in))
		for _, p := range in {
			out = append(out, MakePair(p.A, p.B))
		}
		slices.SortFunc(out, Pair.Compare)
		return slices.Compact(out)
	}
	without = order(without)
	kept := slices.DeleteFunc(slices.Clone(list), func(p Pair) bool { return holds(without, p) })
	return clone(order(append(kept, with...)))
}

// holds looks a pair up in a sorted list.
func holds(sorted []Pair, p Pair) bool {
	_, found := slices.BinarySearchFunc(sorted, p, Pair.Compare)
	return found
}

// keepWhole makes a change of the policy, and refuses one after which it
// leaves no way between two nodes. A mesh that is in parts already, because a
// node between them was removed, may be changed at will.
func (s *State) keepWhole(change func()) *Refusal {
	if a, _ := s.parted(); !a.IsZero() {
		change()
		return nil
	}
	change()
	if a, b := s.parted(); !a.IsZero() {
		return refuse(CodeTopologyRefused, "with this no way could lead from %s to %s; allow a link of two nodes between them, or transit through one (meshctl topology)", s.name(a), s.name(b))
	}
	return nil
}

// parted gives two nodes between which the policy leaves no way, if there are
// such: by pairs that may have a link, over nodes that carry transit. What
// one of those reaches, all others reach through it, so one search is enough.
func (s *State) parted() (a, b mesh.NodeID) {
	ids := s.ids()
	mayLink := s.linkable()
	transit := func(id mesh.NodeID) bool { return !s.Nodes[id].NoTransit }
	first := slices.IndexFunc(ids, transit)
	if first < 0 { // only links lead anywhere
		for i, a := range ids {
			for _, b := range ids[:i] {
				if !mayLink(a, b) {
					return b, a
				}
			}
		}
		return a, b
	}
	start := ids[first]
	left, next := slices.Delete(slices.Clone(ids), first, first+1), []mesh.NodeID{start}
	for len(next) > 0 && len(left) > 0 {
		at := next[len(next)-1]
		next = next[:len(next)-1]
		left = slices.DeleteFunc(left, func(id mesh.NodeID) bool {
			reached := mayLink(at, id)
			if reached && transit(id) {
				next = append(next, id)
			}
			return reached
		})
	}
	if len(left) == 0 {
		return a, b
	}
	return start, left[0]
}

// linkable reports of two nodes whether the policy lets them have links.
func (s *State) linkable() func(a, b mesh.NodeID) bool {
	t := s.Mesh.Topology
	chosen := t.Mode != TopologyHub || !s.tagged(t.Hub, mesh.NodeID{}) // without hubs the mesh chooses
	hub := func(id mesh.NodeID) bool { return slices.Contains(s.Nodes[id].Tags, t.Hub) }
	return func(a, b mesh.NodeID) bool {
		p := MakePair(a, b)
		return !holds(t.Forbidden, p) && (chosen || hub(a) || hub(b) || holds(t.Pinned, p))
	}
}

func (s *State) setNode(c SetNode) (*Node, *Refusal) {
	n, refused := s.live(c.Node)
	if refused != nil {
		return nil, refused
	}
	if c.Transit == nil && c.MaxDegree == nil && c.Tags == nil && c.Site == nil {
		return nil, refuse(CodeInvalid, "there is nothing to set; say --transit, --cap, --tag or --no-tags")
	}
	if c.Site != nil {
		if refused := checkSite(*c.Site); refused != nil {
			return nil, refused
		}
		n.Site = *c.Site
	}
	if c.Transit != nil {
		n.NoTransit = !*c.Transit
	}
	if c.MaxDegree != nil {
		n.MaxDegree = *c.MaxDegree
	}
	if refused := checkDegree(n.MaxDegree); refused != nil {
		return nil, refused
	}
	if c.Tags != nil {
		if refused := checkTags(*c.Tags); refused != nil {
			return nil, refused
		}
		n.Tags = sortedSet(*c.Tags)
		t := s.Mesh.Topology
		if t.Mode == TopologyHub && !slices.Contains(n.Tags, t.Hub) && s.tagged(t.Hub, mesh.NodeID{}) && !s.tagged(t.Hub, n.ID) {
			return nil, refuse(CodeTopologyRefused, "%s is the last hub; give the tag %s to another node first, or choose another topology: meshctl topology set auto", n.Name, t.Hub)
		}
	}
	var node *Node
	refused = s.keepWhole(func() { node = s.put(n) })
	return node, refused
}

func checkDegree(degree int) *Refusal {
	if degree != 0 && (degree < MinDegreeCap || degree > MaxDegreeCap) {
		return refuse(CodeInvalid, "a node may have %d to %d neighbours at most, or 0 for the default, not %d; change --cap", MinDegreeCap, MaxDegreeCap, degree)
	}
	return nil
}

func checkSite(site string) *Refusal {
	if site == "" {
		return nil
	}
	if err := mesh.CheckName(site); err != nil {
		return refuse(CodeInvalid, "site: %s; change --site", err)
	}
	return nil
}

func checkTags(tags []string) *Refusal {
	if len(tags) > MaxTags {
		return refuse(CodeInvalid, "a node may have %d tags, not %d; leave some out", MaxTags, len(tags))
	}
	for _, tag := range tags {
		if err := mesh.CheckName(tag); err != nil {
			return refuse(CodeInvalid, "tag: %s; change --tag", err)
		}
	}
	return nil
}

// setDrain is idempotent: what is drained already keeps by whom and since when.
// The drain of a link may be in the record of the other node, so whoever is no
// operator gets little room there; and the whole node can always be drained.
func (s *State) setDrain(command Command, by mesh.NodeID) (*Node, *Refusal) {
	c := *command.SetDrain
	id, d := named(c.Node, Drain{Uplink: c.Uplink, Peer: c.Peer, Remote: c.Remote, By: by, Since: command.Now})
	n, refused := s.live(id)
	if refused != nil {
		return nil, refused
	}
	if refused := s.checkDrain(id, d); refused != nil {
		return nil, refused
	}
	i, drained := slices.BinarySearchFunc(n.Drains, d, Drain.target)
	signed, whole := s.Mesh.Version >= signedVersion, d.target(Drain{}) == 0
	switch {
	case drained == c.Drain:
		return &n, nil
	case c.Drain && signed && !d.Peer.IsZero() && n.to(d.Peer) >= maxPairDrains && !s.RoleOf(command.Author, command.Now).Has(RoleOperator):
		return nil, refuse(CodeForbidden, "%d links of %s and %s are drained, and only an operator may drain more; drain the whole uplink, or the node: meshctl drain %s", maxPairDrains, n.Name, s.name(d.Peer), s.name(c.Node))
	case c.Drain && (!signed && len(n.Drains) >= MaxDrains || !whole && n.parts() >= MaxDrains):
		return nil, refuse(CodeInvalid, "%s has %d drains and may have no more; drain the whole uplink, or the node: meshctl drain %s", n.Name, MaxDrains, n.Name)
	case c.Drain:
		n.Drains = slices.Insert(slices.Clone(n.Drains), i, d)
	default:
		n.Drains = clone(slices.Delete(slices.Clone(n.Drains), i, i+1))
	}
	return s.put(n), nil
}

// checkDrain refuses a target that cannot be; which uplinks a node has, the
// log does not know.
func (s *State) checkDrain(id mesh.NodeID, d Drain) *Refusal {
	if d.Uplink == "" && d.Peer.IsZero() && d.Remote == "" {
		return nil
	}
	if d.Peer.IsZero() && d.Remote != "" || !d.Peer.IsZero() && (d.Uplink == "" || d.Remote == "") {
		return refuse(CodeInvalid, "a link has an uplink at both ends; name it as UPLINK:NODE/UPLINK")
	}
	names := []string{d.Uplink}
	if !d.Peer.IsZero() {
		names = append(names, d.Remote)
		if d.Peer == id {
			return refuse(CodeInvalid, "a link leads to another node, and %s is named twice", s.name(id))
		}
		if _, refused := s.live(d.Peer); refused != nil {
			return refused
		}
	}
	for _, name := range names {
		if err := mesh.CheckName(name); err != nil {
			return refuse(CodeInvalid, "uplink %s; meshctl links shows their names", err)
		}
	}
	return nil
}

// forget takes a node that is gone out of the policy of all others.
func (s *State) forget(gone mesh.NodeID) {
	without := func(list []Pair) []Pair {
		if !slices.ContainsFunc(list, func(p Pair) bool { return p.has(gone) }) {
			return list
		}
		return clone(slices.DeleteFunc(slices.Clone(list), func(p Pair) bool { return p.has(gone) }))
	}
	s.Mesh.Topology.Pinned = without(s.Mesh.Topology.Pinned)
	s.Mesh.Topology.Forbidden = without(s.Mesh.Topology.Forbidden)
	names := func(d Drain) bool { return d.Peer == gone }
	for _, n := range slices.Collect(maps.Values(s.Nodes)) {
		if slices.ContainsFunc(n.Drains, names) {
			n.Drains = clone(slices.DeleteFunc(slices.Clone(n.Drains), names))
			s.put(n)
		}
	}
}

// name is a node's name for people; its id when it has none here.
func (s *State) name(id mesh.NodeID) string {
	if n, ok := s.Nodes[id]; ok {
		return n.Name
	}
	return id.String()
}
