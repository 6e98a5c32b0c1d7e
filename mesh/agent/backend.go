package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/control"
	"guywire/mesh/core"
	"guywire/mesh/kernel"
	"guywire/mesh/link"
	"guywire/store"
)

// stateWords are the verdicts as people see them. A link whose far end has no
// agent now works, with less than it should have; so does one that is up and
// loses much, see verdict.
var stateWords = map[link.State]api.LinkState{
	link.Probing:  api.LinkProbing,
	link.Up:       api.LinkUp,
	link.Suspect:  api.LinkSuspect,
	link.Headless: api.LinkDegraded,
	link.Down:     api.LinkDown,
}

// verdict is the state of a link that has a tunnel, and why, as people see it.
func verdict(l core.LinkView) (state api.LinkState, why string) {
	if l.State != link.Up || max(l.LossIn, l.LossOut) <= lossLimit {
		return stateWords[l.State], l.Reason
	}
	var lost []string
	for _, d := range []struct {
		share float64
		where string
	}{{l.LossOut, "out"}, {l.LossIn, "in"}} {
		if d.share > lossLimit {
			lost = append(lost, fmt.Sprintf("%.1f %% %s", 100*d.share, d.where))
		}
	}
	return api.LinkDegraded, fmt.Sprintf("loss %s, limit %g %%", strings.Join(lost, " and "), 100*lossLimit)
}

// A view is one consistent look at the running member.
type view struct {
	*running
	state   *store.State
	bans    *standing
	control control.Status
	links   []core.LinkView
	routes  []core.RouteView
	host    core.Host
	settled bool
}

func (a *Agent) view(ctx context.Context) (view, error) {
	r, err := a.member()
	if err != nil {
		return view{}, err
	}
	v := view{running: r, state: r.plane.State(), bans: r.standing.Load(), control: r.plane.Status()}
	err = r.query(ctx, func(n *core.Node) {
		v.links, v.routes, v.host, v.settled = n.Links(), n.Routes(), n.Host(), n.Settled()
	})
	return v, err
}

func (v view) name(id mesh.NodeID) string { return nodeName(v.state, id) }

// Status implements api.Backend.
func (a *Agent) Status(ctx context.Context) (api.Status, error) {
	s := api.Status{Time: time.Now(), Version: a.version, Started: a.started, LastEvent: a.journal.newest()}
	v, err := a.view(ctx)
	if err != nil {
		finding := api.Finding{Level: api.OK, Sentence: "This machine is in no mesh", Next: "meshctl init makes one, meshctl join joins one"}
		if a.troubled() {
			s.Enrolled = true
			finding = api.Finding{Level: api.Down, Sentence: err.Error()}
			if e, ok := errors.AsType[*api.Error](err); ok {
				finding.Sentence, finding.Next = e.Message, e.Next
			}
		}
		s.Health = api.NewHealth(finding)
		return s, nil
	}
	s.Enrolled, s.Ready = true, v.settled && v.settledInKernel()
	s.Mesh, s.Node = new(v.meshInfo()), new(v.selfInfo())
	for _, n := range v.nodes() {
		if n.Reach == api.ReachSelf {
			continue
		}
		s.Nodes.Total++
		if n.Reach != api.ReachNone {
			s.Nodes.Good++
		}
	}
	for _, l := range v.links {
		if l.Tunnel {
			s.Links.Total++
			if state, _ := verdict(l); l.Usable && state == api.LinkUp {
				s.Links.Good++
			}
		}
	}
	s.Uplinks = v.uplinks()
	s.Dataplane = v.kernel.Kind()
	s.Kernel = v.revision()
	s.Health = api.NewHealth(v.findings()...)
	return s, nil
}

// findings are the sentences at the top of the status.
func (v view) findings() []api.Finding {
	var out []api.Finding
	add := func(level api.Level, next, format string, args ...any) {
		out = append(out, api.Finding{Level: level, Sentence: fmt.Sprintf(format, args...), Next: next})
	}
	var lost, transit []string
	for _, n := range v.nodes() {
		switch {
		case n.Banned != nil:
		case n.Reach == api.ReachNone:
			lost = append(lost, n.Name)
		case n.Reach == api.ReachTransit:
			transit = append(transit, n.Name+" via "+n.Via)
		}
	}
	if len(lost) > 0 {
		add(api.Down, "meshctl links shows why", "No path to %s", strings.Join(lost, ", "))
	}
	if len(transit) > 0 {
		add(api.OK, "meshctl path "+v.name(v.self)+" NODE shows the way, meshctl topology who should have links", "Reached through other nodes: %s", strings.Join(transit, ", "))
	}
	up := 0
	for _, u := range v.host.Uplinks {
		if u.Up {
			up++
		} else {
			add(api.Degraded, "check the cable and the modem", "Uplink %s is down", u.Name)
		}
	}
	if up == 0 {
		add(api.Down, "give this machine a default route", "No uplink is up")
	}
	for _, l := range v.links {
		if f, bad := v.linkFinding(l); bad {
			out = append(out, f)
		}
	}
	if v.control.Leader.IsZero() {
		add(api.Degraded, "start the voters: "+strings.Join(v.voterNames(), ", "), "No leader is known: traffic and failover go on, joins and changes wait")
	}
	if v.control.Problem != "" {
		add(api.Degraded, "meshctl raft status shows the other voters; the log of meshd says more", "This voter's log is not open: %s", v.control.Problem)
	}
	if r := v.revision(); r.Error != "" {
		add(api.Degraded, "remove the cause; meshd tries again by itself and at least once a minute", "The kernel is not as wanted: %s", r.Error)
	}
	out = append(out, truthFindings(v.state, v.control, v.plane.ClockOffset(), time.Now())...)
	out = append(out, banFindings(v.state, v.self, v.bans.bans)...)
	out = append(out, drainFindings(v.state, v.self)...)
	seen := map[string]bool{}
	return slices.DeleteFunc(out, func(f api.Finding) bool {
		again := seen[f.Sentence]
		seen[f.Sentence] = true
		return again
	})
}

// linkFinding says what is wrong with a link.
func (v view) linkFinding(l core.LinkView) (api.Finding, bool) {
	if !l.Tunnel {
		return api.Finding{}, false
	}
	id := l.Record.Link
	peer := v.name(id.Peer)
	which := fmt.Sprintf("Link to %s (%s)", peer, flow(id))
	state, why := verdict(l)
	switch {
	case state == api.LinkDown:
		return api.Finding{Level: api.Degraded, Sentence: which + " is down: " + why, Next: "meshctl links " + peer}, true
	case l.State == link.Headless:
		return api.Finding{Level: api.Degraded, Sentence: peer + " forwards, but its agent does not answer", Next: "start meshd on " + peer}, true
	case state == api.LinkDegraded:
		return api.Finding{
			Level: api.Degraded, Sentence: which + " is degraded: " + why,
			Next: fmt.Sprintf("check the lines of %s here and of %s at %s", id.Local, id.Remote, peer),
		}, true
	}
	return api.Finding{}, false
}

func (v view) voterNames() []string {
	var out []string
	for _, id := range v.control.Voters {
		out = append(out, v.name(id))
	}
	return out
}

func (m *member) meshInfo() api.MeshInfo {
	s := m.plane.State().Mesh
	return api.MeshInfo{ID: s.ID, Name: s.Name, Pool4: s.Pool4, Pool6: s.Pool6}
}

func (m *member) selfInfo() api.SelfInfo {
	state, st := m.plane.State(), m.plane.Status()
	n := state.Nodes[m.self]
	info := api.SelfInfo{
		ID: m.self, Name: n.Name, Addrs: addrsOf(n), Prefixes: n.Prefixes, Tags: n.Tags, Role: st.Role,
	}
	if !st.Leader.IsZero() {
		info.Leader = nodeName(state, st.Leader)
	}
	return info
}

func addrsOf(n store.Node) []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{n.Addr4, n.Addr6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// uplinks describes the uplinks with what was measured of them.
func (m *member) uplinks() []api.Uplink {
	host := m.host.Load()
	if host == nil {
		return nil
	}
	state := m.plane.State()
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []api.Uplink
	for _, u := range host.Uplinks {
		s := m.outsideOf(u.Name)
		out = append(out, api.Uplink{
			Name: u.Name, Interface: u.Interface, Addrs: u.Addrs, Up: u.Up, Metered: u.Metered,
			NAT: s.NAT.String(), NAT6: s.NAT6.String(), Reflexive: s.Reflexive, MTU: u.MTU, Drain: drainOfUplink(state, m.self, u.Name),
		})
	}
	return out
}

// describeUplink says what is between an uplink and the others.
func describeUplink(u api.Uplink) string {
	s := fmt.Sprintf("uplink %s (%s): ", u.Name, u.Interface)
	words := u.Outside()
	if strings.HasSuffix(words, " NAT") {
		words = "behind " + words
	}
	switch {
	case len(u.Reflexive) > 0 && words != "public":
		return s + words + ", seen as " + u.Reflexive[0].Addr().String()
	case len(u.Addrs) > 0:
		return s + words + ", " + u.Addrs[0].String()
	}
	return s + words
}

// flow is the two uplinks of a link, as people see it.
func flow(l mesh.LinkID) string { return l.Local + " → " + l.Remote }

// Nodes implements api.Backend.
func (a *Agent) Nodes(ctx context.Context, q api.NodesQuery) (api.Nodes, error) {
	if q.Consistent {
		m, err := a.member()
		if err == nil {
			_, err = m.plane.Read(ctx)
		}
		if err != nil {
			return api.Nodes{}, convert(err)
		}
	}
	v, err := a.view(ctx)
	if err != nil {
		return api.Nodes{}, err
	}
	return api.Nodes{Nodes: v.nodes()}, nil
}

func (v view) nodes() []api.Node {
	best := map[mesh.NodeID]core.RouteView{}
	for _, r := range v.routes {
		if len(r.Origins) == 1 {
			best[r.Origins[0]] = r
		}
	}
	var out []api.Node
	for id, n := range v.state.Nodes {
		node := api.Node{
			ID: id, Name: n.Name, Addrs: addrsOf(n), Prefixes: n.Prefixes, Tags: n.Tags,
			Voter: n.Voter, Joined: n.Joined, Reach: api.ReachNone,
			Shared: n.Shared, Roles: rolesOf[string](n.Roles), Site: n.Site,
			Transit: !n.NoTransit, MaxDegree: n.MaxDegree, Drain: drainOfNode(v.state, id),
		}
		if b, banned := v.bans.ban(id); banned {
			node.Banned = &api.Ban{By: authorName(v.state, b.Author), Since: b.Time}
		}
		for _, l := range v.links {
			if l.Record.Link.Peer != id || !l.Tunnel {
				continue
			}
			node.Links.Total++
			if l.Usable {
				node.Links.Good++
				if rtt := api.Millis(l.RTT); l.RTT > 0 && (node.RTTMs == nil || rtt < *node.RTTMs) {
					node.RTTMs = new(rtt)
				}
			}
			if node.LastChange == nil || l.Since.After(*node.LastChange) {
				node.LastChange = new(l.Since)
			}
		}
		if r := best[id]; len(r.Carry) > 0 {
			node.CostMs = new(api.Millis(r.Cost.Duration()))
			node.Reach = api.ReachDirect
			if via := r.Carry[0].Link.Peer; via != id {
				node.Reach, node.Via = api.ReachTransit, v.name(via)
			}
		}
		if id == v.self {
			node.Reach = api.ReachSelf
		}
		out = append(out, node)
	}
	slices.SortFunc(out, func(a, b api.Node) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Links implements api.Backend.
func (a *Agent) Links(ctx context.Context) (api.Links, error) {
	v, err := a.view(ctx)
	if err != nil {
		return api.Links{}, err
	}
	var out api.Links
	for _, l := range v.links {
		out.Links = append(out.Links, v.link(l))
	}
	slices.SortStableFunc(out.Links, func(a, b api.Link) int { return strings.Compare(a.Peer, b.Peer) })
	return out, nil
}

func (v view) link(l core.LinkView) api.Link {
	r := l.Record
	out := api.Link{
		Peer: v.name(r.Link.Peer), PeerID: r.Link.Peer, Local: r.Link.Local, Remote: r.Link.Remote,
		State: api.LinkIdle, Since: l.Since, Reason: l.Reason, Drain: drainOfLink(v.state, v.self, r.Link),
		Attempts: api.Attempts(l.Effort),
	}
	if !l.NextTry.IsZero() {
		out.NextTry = new(l.NextTry)
	}
	if l.Trying {
		out.State = api.LinkProbing
	}
	if !l.Tunnel {
		out.Reason = v.noLink(l)
		return out
	}
	out.State, out.Reason = verdict(l)
	out.Path = r.Class.String()
	out.Device, out.LocalPort, out.Endpoint, out.MTU = r.Device, r.Port, r.Endpoint, l.MTU
	out.TxBytes, out.RxBytes, out.Share = l.Traffic.Sent, l.Traffic.Received, 100*l.Share
	if l.RTT > 0 {
		out.RTTMs, out.JitterMs = new(api.Millis(l.RTT)), new(api.Millis(l.Jitter))
		out.LossIn, out.LossOut = new(100*l.LossIn), new(100*l.LossOut)
	}
	return out
}

// Routes implements api.Backend.
func (a *Agent) Routes(ctx context.Context) (api.Routes, error) {
	v, err := a.view(ctx)
	if err != nil {
		return api.Routes{}, err
	}
	missing := v.missing()
	known := map[netip.Prefix]bool{}
	var out api.Routes
	for _, r := range v.routes {
		for _, p := range r.Prefixes {
			known[p] = true
			out.Routes = append(out.Routes, v.route(r, p, missing))
		}
	}
	for id, n := range v.state.Nodes {
		for _, p := range n.Prefixes {
			switch {
			case known[p]:
			case id == v.self:
				out.Routes = append(out.Routes, api.Route{Prefix: p, Origins: []string{n.Name}, Installed: true, Why: "this site"})
			default:
				out.Routes = append(out.Routes, api.Route{Prefix: p, Origins: []string{n.Name}, Why: n.Name + " does not announce it"})
			}
		}
	}
	slices.SortFunc(out.Routes, func(a, b api.Route) int { return a.Prefix.Compare(b.Prefix) })
	return out, nil
}

func (v view) route(r core.RouteView, p netip.Prefix, missing func(objects ...string) string) api.Route {
	out := api.Route{Prefix: p, Why: "no neighbour is closer to it than this node"}
	for _, o := range r.Origins {
		out.Origins = append(out.Origins, v.name(o))
	}
	for _, l := range r.Carry {
		out.NextHops = append(out.NextHops, api.NextHop{Peer: v.name(l.Link.Peer), Device: l.Device, Weight: l.Weight, Share: 100 * l.Share})
	}
	if len(r.Carry) > 0 {
		out.CostMs = new(api.Millis(r.Cost.Duration()))
		out.Why = "least cost"
		if len(r.Carry) > 1 {
			out.Why = "within 1.4 times the least cost"
		}
		if !r.Carry[0].Sure {
			out.Why = "the last path left; its link is suspect"
		}
		lack := missing(kernel.Object(kernel.PutRoute{Route: kernel.Route{Table: mesh.RouteTable, Prefix: p}}),
			kernel.Object(kernel.PutNextHop{NextHop: kernel.NextHop{ID: r.Group}}))
		if out.Installed = lack == ""; !out.Installed {
			out.Why = lack
		}
	}
	if len(r.Armed) > 0 {
		out.RunnerUp = new(v.alternative(r.Armed[0]))
	}
	out.Feasibility = new(v.feasibility(r))
	return out
}

// feasibility tells why each neighbour may or may not carry traffic there.
func (v view) feasibility(r core.RouteView) api.Feasibility {
	f := r.Feasibility
	out := api.Feasibility{DistanceMs: finite(f.Distance), ReportedMs: finite(f.Reported), FeasibleMs: finite(f.Feasible), Active: f.Active}
	for _, report := range f.Reports {
		s := api.Successor{Peer: v.name(report.Peer), ReportedMs: finite(report.Distance), Successor: report.Successor, Use: api.UseNone}
		for _, legs := range []struct {
			list []core.LegView
			use  string
		}{{r.Armed, api.UseArmed}, {r.Carry, api.UseCarries}} {
			for _, l := range legs.list {
				if l.Link.Peer == report.Peer {
					s.Use, s.ThroughMs = legs.use, finite(l.Cost)
				}
			}
		}
		out.Neighbours = append(out.Neighbours, s)
	}
	through := func(s api.Successor) float64 {
		if s.ThroughMs == nil {
			return math.Inf(1)
		}
		return *s.ThroughMs
	}
	slices.SortStableFunc(out.Neighbours, func(a, b api.Successor) int { return cmp.Compare(through(a), through(b)) })
	return out
}

// finite is a cost in milliseconds; nil: there is no path.
func finite(c mesh.Cost) *float64 {
	if c >= mesh.Infinite {
		return nil
	}
	return new(api.Millis(c.Duration()))
}

func (v view) alternative(l core.LegView) api.Alternative {
	why := "costs more than 1.4 times the best"
	if !l.Sure {
		why = "its link is suspect"
	}
	return api.Alternative{Peer: v.name(l.Link.Peer), Device: l.Device, CostMs: new(api.Millis(l.Cost.Duration())), Why: why}
}

// Events implements api.Backend.
func (a *Agent) Events(ctx context.Context, q api.EventsQuery, emit func(api.Event) error) error {
	return a.journal.follow(ctx, q.Since, q.Follow, emit)
}

// CreateToken implements api.Backend.
func (a *Agent) CreateToken(ctx context.Context, r api.TokenRequest) (api.CreatedToken, error) {
	m, err := a.member()
	if err != nil {
		return api.CreatedToken{}, err
	}
	text, token, err := m.plane.CreateToken(ctx, control.TokenRequest{
		Uses: r.Uses, Lifetime: time.Duration(r.TTLMs * float64(time.Millisecond)), Name: r.Name, Prefixes: r.Prefixes,
		AnyPrefix: r.AnyPrefix, Tags: r.Tags, Roles: rolesOf[store.NodeRole](r.Roles), Site: r.Site,
	})
	if err != nil {
		return api.CreatedToken{}, convert(err)
	}
	return api.CreatedToken{Text: text, Token: aboutToken(token)}, nil
}

// Tokens implements api.Backend.
func (a *Agent) Tokens(context.Context) (api.Tokens, error) {
	m, err := a.member()
	if err != nil {
		return api.Tokens{}, err
	}
	return listTokens(m.plane.State(), m.plane.Tokens(), time.Now()), nil
}

// RevokeToken implements api.Backend.
func (a *Agent) RevokeToken(ctx context.Context, id string) (api.Done, error) {
	m, err := a.member()
	if err != nil {
		return api.Done{}, err
	}
	if err := m.plane.RevokeToken(ctx, id); err != nil {
		return api.Done{}, convert(err)
	}
	return api.Done{Sentence: "token " + id + " admits nobody any more"}, nil
}

// listTokens leaves out those that are used up or have expired.
func listTokens(s *store.State, tokens []store.Token, now time.Time) (out api.Tokens) {
	for _, t := range tokens {
		if t.Uses < 1 || !t.Expires.After(now) {
			continue
		}
		about := aboutToken(t)
		if s.Outlived(t) {
			about.Unusable = "made before the CA was replaced"
		}
		out.Tokens = append(out.Tokens, about)
	}
	return out
}

func aboutToken(t store.Token) api.Token {
	return api.Token{
		ID: t.ID, Name: t.Name, Prefixes: t.Prefixes, AnyPrefix: t.AnyPrefix, Tags: t.Tags, Roles: rolesOf[string](t.Roles), Site: t.Site,
		Uses: t.Uses, Created: t.Created, Expires: t.Expires,
	}
}

// rolesOf turns the names of roles from the API's type to the store's, or back.
func rolesOf[To, From ~string](roles []From) (out []To) {
	for _, r := range roles {
		out = append(out, To(r))
	}
	return out
}
