package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/control"
	"guywire/store"
	"guywire/store/raftstore"
)

// access says what somebody who calls the API from elsewhere may do now.
func (m *member) access(c net.Conn) api.Access { return accessOf(m.plane.Principal(c), time.Now()) }

func accessOf(p control.Principal, now time.Time) api.Access {
	switch {
	case p.ID.IsZero():
		return api.Access{Who: "nobody"}
	case p.Role.Has(store.RoleRevoked):
		return api.Access{Who: p.Name, Refused: api.Errorf(api.CodeRevoked, "to come back, join with an empty state directory and a new token", "%s was removed from the mesh", p.Name)}
	case p.Role.Has(store.RoleNode) && (p.Stale || !p.Role.Has(store.RoleReader)):
		return api.Access{Who: p.Name, Right: api.Member}
	case p.Role.Has(store.RoleOperator):
		return api.Access{Who: p.Name, Right: api.Change, Until: p.Expires}
	case p.Role.Has(store.RoleReader):
		return api.Access{Who: p.Name, Right: api.Read, Until: p.Expires}
	case !p.Expires.IsZero() && !now.Before(p.Expires):
		return api.Access{Who: p.Name, Refused: api.Errorf(api.CodeForbidden, "ask for another: meshctl operator create", "What %s may do ended at %s", p.Name, p.Expires.UTC().Format(time.RFC3339))}
	default:
		return api.Access{Who: p.Name, Refused: api.Errorf(api.CodeForbidden, "join the mesh first: meshctl join", "%s is nobody that this node knows", p.Name)}
	}
}

// DialNode implements api.Backend.
func (a *Agent) DialNode(ctx context.Context, node string) (net.Conn, error) {
	m, err := a.member()
	if err != nil {
		return nil, err
	}
	n, err := resolveNode(m.plane.State(), node)
	if err != nil {
		return nil, err
	}
	if n.ID == m.self {
		return nil, api.Errorf(api.CodeInvalid, "leave --on out", "%s is this node", n.Name)
	}
	conn, err := m.plane.DialAPI(ctx, n.ID)
	if err != nil {
		return nil, api.Errorf(api.CodeUnreachable, "see meshctl nodes", "%s is not reached: %s", n.Name, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return conn, nil
}

// Raft implements api.Backend.
func (a *Agent) Raft(ctx context.Context) (api.RaftStatus, error) {
	m, err := a.member()
	if err != nil {
		return api.RaftStatus{}, err
	}
	s, st := m.plane.State(), m.plane.Status()
	told := st.Raft // by the leader, if it answers; else what this voter knows
	if !st.Leader.IsZero() && st.Leader != m.self {
		ctx, cancel := context.WithTimeout(ctx, raftPatience)
		defer cancel()
		var far raftstore.Status
		if m.plane.Do(ctx, st.Leader, http.MethodGet, "/v1/raft", nil, &far) == nil && far.Leads() {
			told = &far
		}
	}
	return describeRaft(s, st, told), nil
}

// raftPatience is how long the leader is waited for.
const raftPatience = 3 * time.Second

func describeRaft(s *store.State, st control.Status, told *raftstore.Status) api.RaftStatus {
	out := api.RaftStatus{
		Role: st.Role, Generation: st.Generation, Version: max(s.Mesh.Version, 1), Index: st.Index, Lag: st.Lag, Problem: st.Problem,
	}
	if !st.Leader.IsZero() {
		out.Leader = nodeName(s, st.Leader)
	}
	if !st.Confirmed.IsZero() && (st.Raft == nil || !st.Raft.Leads()) {
		out.Confirmed = new(st.Confirmed)
	}
	voters, learners := st.Voters, []mesh.NodeID(nil)
	if told != nil {
		voters, learners = told.Voters, told.Learners
		out.Term, out.Commit, out.Complete = new(told.Term), new(told.Commit), told.Leads()
	}
	for i, id := range slices.Concat(voters, learners) {
		n := s.Nodes[id]
		m := api.RaftMember{ID: id, Name: nodeName(s, id), Site: n.Site, Voter: i < len(voters), Leader: id == st.Leader}
		if len(n.Control) > 0 {
			m.Addr = n.Control[0]
		}
		if told != nil && told.Leads() {
			addHealth(&m, told)
		}
		out.Members = append(out.Members, m)
	}
	slices.SortStableFunc(out.Members, func(a, b api.RaftMember) int {
		if a.Voter != b.Voter {
			if a.Voter {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

// addHealth adds what a leader knows about a member.
func addHealth(m *api.RaftMember, leader *raftstore.Status) {
	m.Connected = new(true)
	if i := slices.IndexFunc(leader.Silent, func(s raftstore.Silence) bool { return s.Node == m.ID }); i >= 0 {
		m.Connected, m.Since = new(false), new(leader.Silent[i].Since)
	}
	i := slices.IndexFunc(leader.Health, func(h raftstore.Health) bool { return h.Node == m.ID })
	last := leader.Last
	switch {
	case m.Leader:
		m.Healthy = new(!leader.Failed)
	case i >= 0:
		h := leader.Health[i]
		m.Healthy, last = new(h.Healthy && *m.Connected), h.Last
		if m.Since == nil {
			m.Since = new(h.Since)
		}
	default: // not asked yet
		return
	}
	m.Last, m.Lag = new(last), new(leader.Last-min(last, leader.Last))
}

// Recover implements api.Backend.
func (a *Agent) Recover(ctx context.Context, r api.RecoverRequest) (api.RecoverPlan, error) {
	m, err := a.member()
	if err != nil {
		return api.RecoverPlan{}, err
	}
	plan, err := m.plane.RecoverPlan(ctx)
	if err != nil {
		return api.RecoverPlan{}, convert(err)
	}
	out, err := describePlan(m.plane.State(), plan)
	if err != nil || r.Plan == "" {
		return out, err
	}
	if r.Plan != out.Plan {
		return api.RecoverPlan{}, convert(control.ErrPlanChanged)
	}
	if err := m.plane.Recover(ctx, plan); err != nil {
		return api.RecoverPlan{}, convert(err)
	}
	a.journal.add(api.Event{Kind: "recovered", Sentence: fmt.Sprintf("the mesh begins anew on this node, as generation %d", plan.Generation), Cause: "meshctl raft recover"})
	out.Done = true
	return out, nil
}

func describePlan(s *store.State, plan control.RecoverPlan) (api.RecoverPlan, error) {
	b, err := json.Marshal(plan)
	if err != nil {
		return api.RecoverPlan{}, fmt.Errorf("name the plan: %w", err)
	}
	sum := sha256.Sum256(b)
	names := func(ids []mesh.NodeID) (out []string) {
		for _, id := range ids {
			out = append(out, nodeName(s, id))
		}
		return out
	}
	out := api.RecoverPlan{
		Plan: hex.EncodeToString(sum[:16]), Generation: plan.Generation, Source: nodeName(s, plan.Source), Index: plan.Index, Trusted: plan.Trusted,
		Reached: names(plan.Reached), Silent: names(plan.Silent), LostVoters: names(plan.LostVoters),
	}
	for _, u := range plan.Appear {
		var result store.Result
		s, result = store.Apply(s, u.Index, u.Command)
		w := api.Uncommitted{Index: u.Index, Time: u.Command.Now}
		if r := result.Record; r != nil {
			w.Author, w.Action, w.About = authorName(s, r.Author), r.Action, aboutName(s, r.About)
		}
		out.Appear = append(out.Appear, w)
	}
	return out, nil
}

// Audit implements api.Backend.
func (a *Agent) Audit(ctx context.Context, q api.AuditQuery, emit func(api.AuditRecord) error) error {
	m, err := a.member()
	if err != nil {
		return err
	}
	for r, err := range m.plane.Audit(ctx, q.From) {
		if err != nil {
			return convert(err)
		}
		if err := emit(describeRecord(m.plane.State(), r)); err != nil {
			return err
		}
	}
	return nil
}

func describeRecord(s *store.State, r store.AuditRecord) api.AuditRecord {
	out := api.AuditRecord{
		N: r.N, Index: r.Index, Generation: r.Generation, Time: r.Time, Author: authorName(s, r.Author),
		Action: r.Action, About: aboutName(s, r.About), Outcome: r.Outcome,
		Command: r.Command.String(), Prev: r.Prev.String(), Head: store.Digest(r.Head()).String(),
	}
	if !r.Author.IsZero() {
		out.AuthorKey = r.Author.String()
	}
	return out
}

// authorName is what people call the holder of a key; empty: nobody.
func authorName(s *store.State, key mesh.IdentityKey) string {
	if key.IsZero() {
		return ""
	}
	for name, o := range s.Operators {
		if o.Key == key {
			return name
		}
	}
	return anyName(s, key.NodeID())
}

// aboutName puts the name for the id of a node.
func aboutName(s *store.State, about string) string {
	if id, err := mesh.ParseNodeID(about); err == nil {
		return anyName(s, id)
	}
	return about
}

// anyName is nodeName also for a node that is gone.
func anyName(s *store.State, id mesh.NodeID) string {
	if t, gone := s.Removed[id]; gone {
		return t.Name
	}
	return nodeName(s, id)
}

// Revoke implements api.Backend.
func (a *Agent) Revoke(ctx context.Context, node string) (api.Done, error) {
	m, err := a.member()
	if err != nil {
		return api.Done{}, err
	}
	s := m.plane.State()
	id, err := resolveAny(s, node)
	if err != nil {
		return api.Done{}, err
	}
	name := anyName(s, id)
	if id == m.self {
		return api.Done{}, api.Errorf(api.CodeInvalid, "run meshctl leave here, or revoke it from another node", "%s is this node", name)
	}
	m.revoking.Add(1)
	defer m.revoking.Add(-1)
	banned := m.ban(id)
	_, err = m.plane.Operate(ctx, removal(id))
	if _, refused := errors.AsType[*store.Refusal](err); banned && err != nil && !refused {
		return api.Done{}, api.Errorf(api.CodeNoLeader, "nothing is left to do: this node writes it into the log when a majority of the voters answers; until then meshctl status shows it",
			"%s is cut off by all nodes that hear of it from this one, but it is not in the log yet: no majority of the voters answers", name)
	}
	return api.Done{Sentence: name + " is revoked: its tunnels and connections end wherever this is known, and it is never let in again"}, convert(err)
}

// resolveAny finds a node by name or id, also one that is gone.
func resolveAny(s *store.State, what string) (mesh.NodeID, error) {
	n, err := resolveNode(s, what)
	if err == nil {
		return n.ID, nil
	}
	var found []mesh.NodeID
	for id, t := range s.Removed {
		if id.String() == what {
			return id, nil
		}
		if t.Name == what {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
		return mesh.NodeID{}, err
	case 1:
		return found[0], nil
	default:
		slices.SortFunc(found, mesh.NodeID.Compare)
		return mesh.NodeID{}, api.Errorf(api.CodeNotFound, "name one of them by its id", "Several nodes that are gone were called %s: %v", what, found)
	}
}

// Grant implements api.Backend.
func (a *Agent) Grant(ctx context.Context, r api.GrantRequest) (api.Done, error) {
	name := ""
	_, err := a.operate(ctx, func(_ *running, s *store.State) (store.Command, error) {
		n, err := resolveNode(s, r.Node)
		name = n.Name
		return store.Command{Grant: &store.Grant{Node: n.ID, Prefixes: r.Prefixes, Shared: r.Shared}}, err
	})
	sentence := name + " has no networks"
	if len(r.Prefixes) > 0 {
		words := make([]string, len(r.Prefixes))
		for i, p := range r.Prefixes {
			words[i] = p.String()
			if slices.Contains(r.Shared, p) {
				words[i] += " (shared)"
			}
		}
		sentence = name + " has " + strings.Join(words, ", ")
	}
	return api.Done{Sentence: sentence}, err
}

// Reservations implements api.Backend.
func (a *Agent) Reservations(context.Context) (api.Reservations, error) {
	m, err := a.member()
	if err != nil {
		return api.Reservations{}, err
	}
	var out api.Reservations
	for name, r := range m.plane.State().Reserved {
		out.Reservations = append(out.Reservations, api.Reservation{Name: name, Addrs: []netip.Addr{r.Addr4, r.Addr6}})
	}
	slices.SortFunc(out.Reservations, func(a, b api.Reservation) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Reserve implements api.Backend.
func (a *Agent) Reserve(ctx context.Context, r api.ReserveRequest) (api.Done, error) {
	m, err := a.operate(ctx, func(*running, *store.State) (store.Command, error) {
		return store.Command{Reserve: &store.Reserve{Name: r.Name, Addr: r.Addr}}, nil
	})
	if err != nil {
		return api.Done{}, err
	}
	sentence := r.Addr.String() + " is kept for " + r.Name
	if kept, still := m.plane.State().Reserved[r.Name]; still {
		sentence = fmt.Sprintf("%s and %s are kept for %s", kept.Addr4, kept.Addr6, r.Name)
	}
	return api.Done{Sentence: sentence}, nil
}

// Unreserve implements api.Backend.
func (a *Agent) Unreserve(ctx context.Context, name string) (api.Done, error) {
	_, err := a.operate(ctx, func(*running, *store.State) (store.Command, error) {
		return store.Command{Unreserve: &store.Unreserve{Name: name}}, nil
	})
	return api.Done{Sentence: "nothing is kept for " + name + " any more"}, err
}

// Operators implements api.Backend.
func (a *Agent) Operators(context.Context) (api.Operators, error) {
	m, err := a.member()
	if err != nil {
		return api.Operators{}, err
	}
	return describeOperators(m.plane.State()), nil
}

// maxServers bounds the addresses that an operator's file gets.
const maxServers = 8

func describeOperators(s *store.State) api.Operators {
	out := api.Operators{Mesh: s.Mesh.ID}
	for name, o := range s.Operators {
		about := api.Operator{Name: name, Key: o.Key, Right: string(o.Right), Created: o.Created}
		if !o.Expires.IsZero() {
			about.Expires = new(o.Expires)
		}
		out.Operators = append(out.Operators, about)
	}
	var first, others []netip.AddrPort
	for _, id := range slices.SortedFunc(maps.Keys(s.Nodes), mesh.NodeID.Compare) {
		n := s.Nodes[id]
		if !slices.Contains(n.Roles, store.NodeOperator) {
			others = append(others, n.Control...)
			continue
		}
		first = append(first, n.Control...)
		out.Operators = append(out.Operators, api.Operator{Name: n.Name, Node: true, Key: n.Identity, Right: api.RightChange, Created: n.Joined})
	}
	out.Servers = slices.Concat(first, others)
	out.Servers = out.Servers[:min(len(out.Servers), maxServers)]
	for _, pin := range s.Pins() {
		out.Pins = append(out.Pins, hex.EncodeToString(pin[:]))
	}
	slices.SortStableFunc(out.Operators, func(a, b api.Operator) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Key.String(), b.Key.String()))
	})
	return out
}

// SetOperator implements api.Backend.
func (a *Agent) SetOperator(ctx context.Context, r api.OperatorRequest) (api.Done, error) {
	o := store.Operator{Key: r.Key, Right: store.Right(r.Right)}
	sentence := r.Name + " may look at the mesh"
	if o.Right == store.RightChange {
		sentence = r.Name + " may change the mesh"
	}
	if r.TTLMs != 0 {
		o.Expires = time.Now().Add(time.Duration(r.TTLMs * float64(time.Millisecond))).UTC().Truncate(time.Second)
		sentence += " until " + o.Expires.Format(time.RFC3339)
	}
	_, err := a.operate(ctx, func(*running, *store.State) (store.Command, error) {
		return store.Command{SetOperator: &store.SetOperator{Name: r.Name, Operator: o}}, nil
	})
	return api.Done{Sentence: sentence}, err
}

// RemoveOperator implements api.Backend.
func (a *Agent) RemoveOperator(ctx context.Context, name string) (api.Done, error) {
	_, err := a.operate(ctx, func(_ *running, s *store.State) (store.Command, error) {
		if n, isNode := s.NodeByName(name); isNode && s.Operators[name].Key.IsZero() {
			return store.Command{}, api.Errorf(api.CodeNotFound, "take the role from it: meshctl node set "+n.Name+" --no-roles", "%s is a node", n.Name)
		}
		return store.Command{RemoveOperator: &store.RemoveOperator{Name: name}}, nil
	})
	return api.Done{Sentence: name + " is no operator any more"}, err
}

// Authorities implements api.Backend.
func (a *Agent) Authorities(context.Context) (api.Authorities, error) {
	m, err := a.member()
	if err != nil {
		return api.Authorities{}, err
	}
	s := m.plane.State()
	out := api.Authorities{Due: s.Mesh.CADue}
	for _, ca := range s.Mesh.Authorities {
		about := api.Authority{Pin: ca.Pin.String(), State: string(ca.State)}
		if ca.State == store.CANext && !ca.From.IsZero() {
			about.From = &ca.From
		}
		out.Authorities = append(out.Authorities, about)
	}
	if s.Mesh.Version == 0 {
		for _, pin := range s.Pins() {
			out.Authorities = append(out.Authorities, api.Authority{Pin: hex.EncodeToString(pin[:]), State: string(store.CACurrent)})
		}
	}
	return out, nil
}

// RotateCA implements api.Backend.
func (a *Agent) RotateCA(ctx context.Context) (api.Done, error) {
	m, err := a.member()
	if err == nil {
		err = m.plane.RotateCA(ctx)
	}
	return api.Done{Sentence: "certificates are made by a new CA; the nodes renew theirs by themselves, and the old CA is retired when all have"}, convert(err)
}

// Settings implements api.Backend.
func (a *Agent) Settings(context.Context) (api.Settings, error) {
	m, err := a.member()
	if err != nil {
		return api.Settings{}, err
	}
	s := m.plane.State().Mesh
	return api.Settings{Voters: s.Voters, CacheMaxAgeMs: api.Millis(s.CacheMaxAge)}, nil
}

// SetSettings implements api.Backend.
func (a *Agent) SetSettings(ctx context.Context, r api.SettingsRequest) (api.Settings, error) {
	_, err := a.operate(ctx, func(*running, *store.State) (store.Command, error) {
		set := store.SetSettings{Voters: r.Voters}
		if r.CacheMaxAgeMs != nil {
			set.CacheMaxAge = new(time.Duration(*r.CacheMaxAgeMs * float64(time.Millisecond)))
		}
		return store.Command{SetSettings: &set}, nil
	})
	if err != nil {
		return api.Settings{}, err
	}
	return a.Settings(ctx)
}

// truthFindings are the sentences on what this node knows of the mesh, and how well.
func truthFindings(s *store.State, st control.Status, offset time.Duration, now time.Time) []api.Finding {
	var out []api.Finding
	add := func(level api.Level, next, format string, args ...any) {
		out = append(out, api.Finding{Level: level, Sentence: fmt.Sprintf(format, args...), Next: next})
	}
	names := func(ids []mesh.NodeID) string {
		words := make([]string, len(ids))
		for i, id := range ids {
			words[i] = nodeName(s, id)
		}
		return strings.Join(words, ", ")
	}
	if st.Expired {
		add(api.Down, "let it reach a voter, or change meshctl settings --cache-max-age", "What this node knows of the mesh is older than the mesh allows, so it brings nothing up until a voter confirms it")
	}
	if !st.Doubled.IsZero() {
		add(api.Down, "stop one of them, and let it join as a node of its own with an empty state directory",
			"Another machine runs with the identity of this node, seen last %s ago", now.Sub(st.Doubled).Round(time.Second))
	}
	if len(st.Disputed) > 0 {
		add(api.Degraded, "meshctl raft status on each of them; a disk that was set back must not serve", "Voters with another history than this node: %s", names(st.Disputed))
	}
	if len(st.Behind) > 0 {
		add(api.Degraded, "start the other voters; what only this node knows may be lost", "Voters that lack what this node has: %s", names(st.Behind))
	}
	if st.Doubted > 0 {
		add(api.Degraded, "if it is true, empty the state directory of this node and join with a new token",
			"A node says that the mesh was recovered (generation %d), but no voter or operator that this node knows of does", st.Doubted)
	}
	if len(st.Outdated) > 0 {
		add(api.OK, "upgrade them, or take out those that nobody needs: meshctl revoke",
			"The mesh goes on to its next version when these do: %s", names(st.Outdated))
	}
	if offset.Abs() > clockTolerance {
		direction := "ahead of"
		if offset < 0 {
			direction = "behind"
		}
		add(api.Degraded, "let NTP set the clock", "The clock of this machine is %s %s those of the other voters", offset.Abs().Round(time.Second), direction)
	}
	if now.After(st.Expires) && !st.Expires.IsZero() {
		add(api.Degraded, "it renews by itself when a voter answers; if one does, look at the clock", "The certificate of this node ended %s ago", now.Sub(st.Expires).Round(time.Second))
	}
	if s.Mesh.CADue {
		add(api.OK, "", "The mesh is changing to a new CA, because a node that knew the key of the old one was removed")
	}
	if r := st.Raft; r != nil {
		if r.Failed {
			add(api.Down, "look at the disk, then start meshd again", "The disk with the log of this voter stalled, failed or is damaged")
		}
		if len(r.Doubled) > 0 {
			add(api.Degraded, "stop the copies", "An old or a second copy of a voter called: %s", names(r.Doubled))
		}
		for _, h := range r.Silent {
			add(api.Degraded, "meshctl raft status", "%s keeps the log and does not answer since %s", nodeName(s, h.Node), now.Sub(h.Since).Round(time.Second))
		}
	}
	return out
}

// banFindings tell of who is cut off by an operator's word alone.
func banFindings(s *store.State, self mesh.NodeID, bans []discovery.Ban) (out []api.Finding) {
	for _, b := range bans {
		by, since := authorName(s, b.Author), b.Time.Local().Format(time.DateTime)
		f := api.Finding{
			Level: api.Degraded, Sentence: fmt.Sprintf("%s is banned by word of %s since %s, not yet in the log", nodeName(s, b.Node), by, since),
			Next: "wait: " + by + " writes it into the log when a majority of the voters answers",
		}
		switch {
		case b.Node == self:
			f.Level, f.Next = api.Down, "ask the operator of "+by
		case b.Author.NodeID() == self:
			f.Next = "wait: this node writes it into the log when a majority of the voters answers"
		}
		out = append(out, f)
	}
	return out
}

// clockTolerance is how far a voter's clock may be from the others' unnoticed.
const clockTolerance = 30 * time.Second
