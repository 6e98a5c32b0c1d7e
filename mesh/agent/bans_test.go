package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/control"
	"guywire/store"
)

// memberOf is a member that only hears and says things, on a real plane.
func memberOf(t *testing.T, p *control.Plane, config control.Config) *member {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	m := &member{
		agent: &Agent{log: log, ring: config.Ring, dir: config.State, journal: newJournal(time.Now())},
		log:   log, plane: p, self: p.ID(), words: make(chan struct{}, 1),
		directory: discovery.NewDirectory(p.State().Mesh.ID, maxDirectory), bans: discovery.NewBans(),
	}
	m.agent.current = &running{member: m}
	m.loadFacts()
	m.weigh()
	return m
}

// TestBanAheadOfTheLog: a node is cut off by an operator's word wherever it is
// heard, with no voter in reach, over a restart, and until the log has it.
func TestBanAheadOfTheLog(t *testing.T) {
	founded := planeConfig(t)
	one, err := control.Init(t.Context(), founded, control.InitRequest{
		Mesh: "lab", Name: "one", Pool4: netip.MustParsePrefix("10.86.0.0/16"), Pool6: netip.MustParsePrefix("fd12:3456:789a::/48"),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- one.Run(ctx) }()
	enter := func(name string, roles ...store.NodeRole) *member {
		text, _, err := one.CreateToken(t.Context(), control.TokenRequest{Name: name, Roles: roles})
		if err != nil {
			t.Fatal(err)
		}
		config := planeConfig(t)
		p, err := control.Join(t.Context(), config, text, control.JoinRequest{Name: name}, nil)
		return memberOf(t, runPlane(t, p, err), config)
	}
	operator, plain, gone := enter("operator", store.NodeNoVote, store.NodeOperator), enter("plain", store.NodeNoVote), enter("gone", store.NodeNoVote)
	all := []*member{operator, plain, gone}
	eventually(t, "all can call all", func() bool {
		for _, m := range all {
			for _, other := range all {
				if len(m.plane.State().Nodes[other.self].Control) == 0 {
					return false
				}
			}
		}
		return true
	})
	stop() // the only voter
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	refused := func(from, at *member) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := from.plane.Do(ctx, at.self, http.MethodGet, "/v1/head", nil, nil)
		e, told := errors.AsType[*control.Error](err)
		if err != nil && (!told || e.Code != control.CodeBanned) {
			t.Errorf("%v", err)
		}
		return err != nil
	}
	for _, at := range []*member{operator, plain} {
		if refused(gone, at) {
			t.Fatal("refused before anybody said anything")
		}
	}

	if plain.ban(gone.self) || plain.ban(operator.self) {
		t.Error("a plain member's word counts")
	}
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = operator.agent.Revoke(short, "gone")
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeNoLeader || !strings.Contains(e.Message, "gone is cut off") {
		t.Errorf("without a voter: %v", err)
	}
	operator.weigh()
	said := operator.known()
	for _, s := range said.Facts {
		plain.heard(s)
		gone.heard(s)
	}
	select {
	case <-plain.words:
	default:
		t.Error("nobody is told to look")
	}
	for _, m := range []*member{operator, memberOf(t, operator.plane, control.Config{Ring: operator.agent.ring, State: operator.agent.dir}), plain} {
		now := m.weigh()
		_, still := now.state.Nodes[gone.self]
		tomb, cut := now.state.Removed[gone.self]
		if still || !cut || len(tomb.Keys) != 1 || now.names[gone.self] != "operator" {
			t.Errorf("still a member: %t; %+v by %v", still, tomb, now.names)
		}
		if m.admit(gone.self, tomb.Addr6) || len(m.seeds()) != 2 {
			t.Error("gossip goes on with it")
		}
		if !refused(gone, m) {
			t.Error("its calls are answered")
		}
	}
	if now := gone.weigh(); now.state != gone.plane.State() || len(now.bans) != 1 {
		t.Errorf("the banned node itself: %+v", now)
	}

	again, err := control.Open(founded)
	runPlane(t, again, err)
	ctx, stop = context.WithCancel(t.Context())
	go func() { ended <- operator.insist(ctx) }()
	for _, m := range []*member{operator, plain} {
		eventually(t, "the word is not needed any more", func() bool {
			now := m.weigh()
			_, removed := m.plane.State().Removed[gone.self]
			return removed && len(now.bans) == 0 && len(now.names) == 0 && now.state == m.plane.State()
		})
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The configured site comes into the log, from a node that may change no more
// of itself.
func TestConfiguredSite(t *testing.T) {
	founded, config := planeConfig(t), planeConfig(t)
	p, err := control.Init(t.Context(), founded, control.InitRequest{
		Mesh: "lab", Name: "one", Pool4: netip.MustParsePrefix("10.86.0.0/16"), Pool6: netip.MustParsePrefix("fd12:3456:789a::/48"),
	})
	one := runPlane(t, p, err)
	text, _, err := one.CreateToken(t.Context(), control.TokenRequest{Name: "two", Site: "north"})
	if err != nil {
		t.Fatal(err)
	}
	p, err = control.Join(t.Context(), config, text, control.JoinRequest{Name: "two"}, nil)
	two := memberOf(t, runPlane(t, p, err), config)
	for i, want := range []string{"north", "south", "south"} {
		if i > 0 {
			two.agent.config.Site = want
		}
		if err := two.saySite(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is in the "+want, func() bool { return two.plane.State().Nodes[two.self].Site == want })
	}
	said := 0
	for _, r := range two.plane.State().Audit.Recent {
		if r.Action == "set_node" {
			said++
		}
	}
	if said != 1 {
		t.Errorf("said %d times: by no configuration, and what was known", said)
	}
	if _, err := two.plane.Operate(t.Context(), store.Command{SetNode: &store.SetNode{Node: two.self, Tags: &[]string{"hub"}}}); err == nil {
		t.Error("it may change its tags, too")
	}
}

func TestBanFindings(t *testing.T) {
	s := lookedAt()
	word := discovery.Ban{Node: mesh.NodeID{3}, Author: mesh.IdentityKey{1}, Time: time.Now()}
	s.Nodes[word.Author.NodeID()] = store.Node{Name: "boss"}
	for _, tt := range []struct {
		self  mesh.NodeID
		level api.Level
		next  string
	}{
		{mesh.NodeID{2}, api.Degraded, "wait: boss writes"},
		{word.Author.NodeID(), api.Degraded, "wait: this node writes"},
		{mesh.NodeID{3}, api.Down, "ask the operator of boss"},
	} {
		f := banFindings(s, tt.self, []discovery.Ban{word})
		if len(f) != 1 || f[0].Level != tt.level || !strings.HasPrefix(f[0].Next, tt.next) || !strings.Contains(f[0].Sentence, "three is banned by word of boss") {
			t.Errorf("on %s: %+v", tt.self, f)
		}
	}
	if f := banFindings(s, mesh.NodeID{2}, nil); len(f) > 0 {
		t.Errorf("nobody is banned, and yet: %+v", f)
	}
}
