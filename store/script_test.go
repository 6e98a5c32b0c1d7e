package store

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"guywire/discovery/invite"
)

// TestScripts plays the dialogues of testdata; -rewrite writes the answers.
//
//	init NAME [prefixes=(…)] [signed]                    a mesh of version 3
//	token NAME [uses=N] [expires=DURATION] [node=NAME] [prefixes=(…)] [tags=(…)] [any] [roles=(…)] [site=NAME]
//	revoke-token NAME
//	join NODE token=NAME [machine=SEED] [prefixes=(…)]   another machine than NODE's usual one
//	leave NODE | remove NODE | revoke NODE
//	topology MODE [tag=TAG] [dense]
//	pairs [pin=(A/B …)] [forbid=(…)] [unpin=(…)] [allow=(…)]
//	node NODE [transit=yes|no] [cap=N] [tags=(…)]
//	drain NODE [uplink=NAME [peer=NODE remote=NAME]] [off]
//	roles NODE [roles=(…)] | operator NAME [right=…] [off] | reserve NAME [addr=…] [off]
//	upgrade | settings [voters=N] | audit                as the trail tells it
//	grant NODE prefixes=(…) [shared=(…)] | control NODE addrs=(…) | voter NODE [off]
//	advance DURATION | snapshot | show
//
// by=NODE gives a command that node's authority in place of an operator's.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		s := &script{world: &world{TB: t, s: New()}, now: testNow, machines: map[string]*joiner{}, invites: map[string]invite.Token{}}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.world.TB = t
			return s.run(d)
		})
	})
}

type script struct {
	*world
	now      time.Time
	machines map[string]*joiner
	invites  map[string]invite.Token
}

func (s *script) run(d *datadriven.TestData) string {
	var name string
	if len(d.CmdArgs) > 0 && len(d.CmdArgs[0].Vals) == 0 {
		name = d.CmdArgs[0].Key
	}
	c := Command{Version: Version, Now: s.now}
	if s.root != nil {
		c.By = s.operator()
	}
	if a, ok := d.Arg("by"); ok {
		c.By = Authority{Node: s.machine(a.Vals[0]).id()}
	}
	switch d.Cmd {
	case "init":
		j := s.machine(name)
		j.prefixes = prefixes(vals(d, "prefixes")...)
		c = initCommand(j)
		if d.HasArg("signed") {
			c = signedInit(j)
		}
		if s.root == nil {
			s.root = j
		}
	case "token":
		inv := newInvite(len(s.invites))
		s.invites[name] = inv
		t := tokenOf(inv)
		t.Expires = s.now.Add(time.Hour)
		d.MaybeScanArgs(s, "uses", &t.Uses)
		d.MaybeScanArgs(s, "node", &t.Name)
		if a, ok := d.Arg("expires"); ok {
			t.Expires = s.now.Add(s.duration(a.Vals[0]))
		}
		t.Prefixes, t.Tags, t.AnyPrefix = prefixes(vals(d, "prefixes")...), vals(d, "tags"), d.HasArg("any")
		t.Roles = roles(d)
		d.MaybeScanArgs(s, "site", &t.Site)
		c.AddToken = &AddToken{t}
	case "revoke-token":
		c.RevokeToken = &RevokeToken{s.invites[name].ID}
	case "join":
		machine, token := name, ""
		d.MaybeScanArgs(s, "machine", &machine)
		d.ScanArgs(s, "token", &token)
		j := s.machine(machine)
		j.name, j.prefixes = name, prefixes(vals(d, "prefixes")...)
		c.Join = j.join(s.invites[token]).Join
	case "leave":
		c.By, c.RemoveNode = Authority{Node: s.machine(name).id()}, &RemoveNode{Node: s.machine(name).id()}
	case "remove", "revoke":
		c.RemoveNode = &RemoveNode{Node: s.machine(name).id(), Revoke: d.Cmd == "revoke"}
	case "grant":
		c.Grant = &Grant{Node: s.machine(name).id(), Prefixes: prefixes(vals(d, "prefixes")...), Shared: prefixes(vals(d, "shared")...)}
	case "roles":
		c.SetRoles = &SetRoles{s.machine(name).id(), roles(d)}
	case "operator":
		c.RemoveOperator = &RemoveOperator{name}
		if !d.HasArg("off") {
			o := Operator{Key: newJoiner("", name).identity, Right: RightChange}
			if a, ok := d.Arg("right"); ok {
				o.Right = Right(a.Vals[0])
			}
			c.RemoveOperator, c.SetOperator = nil, &SetOperator{name, o}
		}
	case "reserve":
		c.Unreserve = &Unreserve{name}
		if a, ok := d.Arg("addr"); ok {
			c.Unreserve, c.Reserve = nil, &Reserve{name, netip.MustParseAddr(a.Vals[0])}
		}
	case "upgrade":
		c.SetVersion = &SetVersion{signedVersion}
	case "settings":
		c.SetSettings = &SetSettings{Voters: new(int)}
		d.ScanArgs(s, "voters", c.SetSettings.Voters)
	case "audit":
		var b strings.Builder
		for _, r := range s.s.Audit.Recent {
			fmt.Fprintf(&b, "%d %s %s %s %s by %s\n", r.N, r.Time.Format(time.TimeOnly), r.Action, r.About, r.Outcome, s.s.name(r.Author.NodeID()))
		}
		return b.String()
	case "control":
		var addrs []netip.AddrPort
		for _, a := range vals(d, "addrs") {
			addrs = append(addrs, netip.MustParseAddrPort(a))
		}
		c.SetControl = &SetControl{s.machine(name).id(), addrs}
	case "voter":
		c.SetVoter = &SetVoter{s.machine(name).id(), !d.HasArg("off")}
	case "topology":
		c.SetTopology = &SetTopology{Mode: TopologyMode(strings.TrimPrefix(name, "auto")), Dense: d.HasArg("dense")}
		d.MaybeScanArgs(s, "tag", &c.SetTopology.Hub)
	case "pairs":
		c.SetPairs = &SetPairs{Pin: s.pairs(d, "pin"), Forbid: s.pairs(d, "forbid"), Unpin: s.pairs(d, "unpin"), Allow: s.pairs(d, "allow")}
	case "node":
		c.SetNode = &SetNode{Node: s.machine(name).id()}
		if a, ok := d.Arg("transit"); ok {
			c.SetNode.Transit = new(a.Vals[0] == "yes")
		}
		if d.HasArg("cap") {
			c.SetNode.MaxDegree = new(int)
			d.ScanArgs(s, "cap", c.SetNode.MaxDegree)
		}
		if d.HasArg("tags") {
			c.SetNode.Tags = new(slices.DeleteFunc(append([]string{}, vals(d, "tags")...), func(tag string) bool { return tag == "" }))
		}
	case "drain":
		c.SetDrain = &SetDrain{Node: s.machine(name).id(), Drain: !d.HasArg("off")}
		d.MaybeScanArgs(s, "uplink", &c.SetDrain.Uplink)
		d.MaybeScanArgs(s, "remote", &c.SetDrain.Remote)
		if a, ok := d.Arg("peer"); ok {
			c.SetDrain.Peer = s.machine(a.Vals[0]).id()
		}
	case "advance":
		s.now = s.now.Add(s.duration(name))
		return ""
	case "snapshot":
		s.s = restored(s, s.s)
		return "restored\n"
	case "show":
		return s.show()
	default:
		s.Fatalf("%s: no such verb", d.Cmd)
	}
	r := s.apply(c)
	switch {
	case r.Refused != nil:
		return fmt.Sprintf("refused %s\n  %s\n", r.Refused.Code, r.Refused.Message)
	case r.Node != nil:
		for _, j := range s.machines {
			if j.id() == r.Node.ID {
				s.machines[r.Node.Name] = j // from now on the name means this machine
				break
			}
		}
		return fmt.Sprintf("ok %s\n", describe(*r.Node))
	}
	return "ok\n"
}

func (s *script) pairs(d *datadriven.TestData, key string) (out []Pair) {
	for _, v := range vals(d, key) {
		a, b, _ := strings.Cut(v, "/")
		out = append(out, Pair{s.machine(a).id(), s.machine(b).id()})
	}
	return out
}

func roles(d *datadriven.TestData) (out []NodeRole) {
	for _, r := range vals(d, "roles") {
		out = append(out, NodeRole(r))
	}
	return out
}

func (s *script) machine(seed string) *joiner {
	if s.machines[seed] == nil {
		s.machines[seed] = newJoiner(seed, seed)
	}
	return s.machines[seed]
}

func (s *script) duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		s.Fatal(err)
	}
	return d
}

func (s *script) show() string {
	var b strings.Builder
	fmt.Fprintf(&b, "mesh %s, index %d\n", s.s.Mesh.Name, s.s.Index)
	for _, n := range s.nodes() {
		fmt.Fprintln(&b, "node", describe(n))
		for _, drain := range n.Drains {
			fmt.Fprintf(&b, "  drained %s by %s since %s\n", s.target(drain), s.s.name(drain.By), drain.Since.Format(time.TimeOnly))
		}
	}
	if t := s.s.Mesh.Topology; !t.IsZero() {
		fmt.Fprintf(&b, "topology %q hub %q dense %v\n", t.Mode, t.Hub, t.Dense)
		for _, p := range t.Pinned {
			fmt.Fprintln(&b, "pinned", s.s.name(p.A), s.s.name(p.B))
		}
		for _, p := range t.Forbidden {
			fmt.Fprintln(&b, "forbidden", s.s.name(p.A), s.s.name(p.B))
		}
	}
	names := make([]string, 0, len(s.invites))
	for name := range s.invites {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if t, ok := s.s.Tokens[s.invites[name].ID]; ok {
			fmt.Fprintf(&b, "token %s uses %d\n", name, t.Uses)
		}
	}
	gone := make([]Tombstone, 0, len(s.s.Removed))
	for _, t := range s.s.Removed {
		gone = append(gone, t)
	}
	slices.SortFunc(gone, func(a, b Tombstone) int { return a.Addr4.Compare(b.Addr4) })
	for _, t := range gone {
		how := "left"
		if t.Revoked {
			how = "revoked"
		}
		fmt.Fprintf(&b, "%s %s %s %s\n", how, t.Name, t.Addr4, t.Addr6)
	}
	return b.String()
}

// target says what a drain is about.
func (s *script) target(d Drain) string {
	switch {
	case d.Uplink == "":
		return "wholly"
	case d.Peer.IsZero():
		return d.Uplink
	default:
		return fmt.Sprintf("%s:%s/%s", d.Uplink, s.s.name(d.Peer), d.Remote)
	}
}

func (s *script) nodes() []Node {
	var nodes []Node
	for _, id := range s.s.ids() {
		nodes = append(nodes, s.s.Nodes[id])
	}
	slices.SortFunc(nodes, func(a, b Node) int { return a.Addr4.Compare(b.Addr4) })
	return nodes
}

func describe(n Node) string {
	var b strings.Builder
	b.WriteString(fmt.Sprintf("%s %s %s", n.Name, n.Addr4, n.Addr6))
	for _, part := range []struct {
		label string
		what  any
		show  bool
	}{
		{"prefixes", n.Prefixes, len(n.Prefixes) > 0}, {"tags", n.Tags, len(n.Tags) > 0}, {"control", n.Control, len(n.Control) > 0},
	} {
		if part.show {
			b.WriteString(fmt.Sprintf(" %s %v", part.label, part.what))
		}
	}
	if len(n.Shared) > 0 {
		b.WriteString(fmt.Sprintf(" shared %v", n.Shared))
	}
	if n.Site != "" {
		b.WriteString(" site " + n.Site)
	}
	if len(n.Roles) > 0 {
		b.WriteString(fmt.Sprintf(" roles %v", n.Roles))
	}
	if n.Voter {
		b.WriteString(" voter")
	}
	if n.NoTransit {
		b.WriteString(" no transit")
	}
	if n.MaxDegree != 0 {
		b.WriteString(fmt.Sprint(" cap ", n.MaxDegree))
	}
	if n.Drained() != nil {
		b.WriteString(" drained")
	}
	return b.String()
}

func vals(d *datadriven.TestData, key string) []string {
	a, _ := d.Arg(key)
	return a.Vals
}
