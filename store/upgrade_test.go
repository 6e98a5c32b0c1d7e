package store

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestVersionGate plays one log to replicas of which one upgrades, until the
// mesh says that all are: nothing new is done before, everything after.
func TestVersionGate(t *testing.T) {
	w := oldWorld(t)
	j := newJoiner("oslo", "oslo", "192.168.5.0/24")
	w.must(j.join(w.addToken(1, func(t *Token) { t.Uses = 3 })))
	w.must(newJoiner("gone", "gone").join(newInvite(1)))
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: newJoiner("gone", "gone").id()}}))
	w.must(w.by(Command{SetTopology: &SetTopology{Dense: true}}))
	raise := w.as(w.root, Command{SetVersion: &SetVersion{signedVersion}})
	signed := w.as(w.root, Command{SetSettings: &SetSettings{Voters: new(3)}})
	signed.Author, signed.Request, signed.After = w.root.identity, Nonce{7}, w.s.Index
	w.refused(CodeVersion, signAs(t, w.root, signed))
	w.refused(CodeVersion, w.by(Command{SetNode: &SetNode{Node: j.id(), Site: new("x")}}))
	w.refused(CodeVersion, w.by(Command{Grant: &Grant{Node: j.id(), Shared: prefixes("192.168.5.0/24")}}))
	w.refused(CodeUnsigned, Command{Version: Version, Now: testNow, SetVersion: &SetVersion{signedVersion}})
	w.refused(CodeForbidden, w.as(j, Command{SetVersion: &SetVersion{signedVersion}})) // no voter
	w.refused(CodeVersion, w.as(w.root, Command{SetVersion: &SetVersion{signedVersion - 1}}))
	if b := encoded(t, w.signed(w.as(w.root, Command{SetVersion: &SetVersion{signedVersion}}))); !strings.HasPrefix(b, `{"version":3,`) {
		t.Errorf("%.40s", b)
	}
	if _, err := EncodeCommand(Command{Now: testNow, SetVersion: &SetVersion{Version + 1}}); err == nil {
		t.Error("a version that does not exist got into the log")
	}
	b, err := Snapshot(w.s)
	if err != nil || !strings.HasPrefix(string(b), "guywire-state 2 ") {
		t.Fatalf("%v: %.40s: something new is in the old state", err, b)
	}
	if g, _, head := w.s.Head(); g != 0 || head != ([32]byte{}) || w.s.Audit.Count() != 0 {
		t.Error("the old state has an audit trail")
	}

	before := w.s
	anchored := *before
	anchored.Index++
	r := w.must(raise)
	if r.Record == nil || r.Record.N != 1 || r.Record.Prev != Hash(&anchored) || r.Record.Action != "set_version" {
		t.Errorf("%+v", r.Record)
	}
	again, _ := Apply(restored(t, before), w.index, w.signedAgain(raise))
	if Hash(again) != Hash(w.s) {
		t.Error("a replica that restarted upgrades to another state")
	}
	hub, oslo := w.s.Nodes[w.root.id()], w.s.Nodes[j.id()]
	if !slices.Equal(hub.Roles, []NodeRole{NodeOperator}) || !hub.EverVoted || oslo.Roles != nil || oslo.EverVoted {
		t.Errorf("%+v %+v", hub, oslo)
	}
	if !reflect.DeepEqual(w.s.Pins(), before.Pins()) || len(w.s.Mesh.Authorities[0].Root) == 0 || !w.s.Tokens[newInvite(1).ID].AnyPrefix {
		t.Errorf("lost in the upgrade: %+v", w.s.Mesh)
	}
	w.refused(CodeUnsigned, Command{Version: Version, Now: testNow, RevokeToken: &RevokeToken{newInvite(1).ID}})
	w.refused(CodeVersion, w.as(w.root, Command{SetVersion: &SetVersion{signedVersion}}))
	w.must(newJoiner("bergen", "bergen", "192.168.9.0/24").join(newInvite(1))) // the old token goes on
	w.must(w.by(Command{SetSettings: &SetSettings{Voters: new(3)}}))
	restored(t, w.s)
}

// signedAgain is the command as it was signed last.
func (w *world) signedAgain(c Command) Command {
	j := machines[c.By.Node]
	c.Author, c.After = j.identity, w.index-1
	c.Request[7] = byte(w.asked)
	return signAs(w, &j, c)
}

// Without its first node an upgraded mesh has its oldest as operator.
func TestUpgradeFindsAnOperator(t *testing.T) {
	w := oldWorld(t)
	a, b := newJoiner("a", "a"), newJoiner("b", "b")
	for i, j := range []*joiner{a, b} {
		c := j.join(w.addToken(i + 1))
		c.Now = testNow.Add(time.Duration(2-i) * time.Minute)
		w.must(c)
	}
	w.must(w.by(Command{SetVoter: &SetVoter{a.id(), true}}))
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: w.root.id()}}))
	w.must(w.as(a, Command{SetVersion: &SetVersion{signedVersion}}))
	if w.s.RoleOf(b.identity, testNow) != RoleNode|RoleReader|RoleOperator || w.s.RoleOf(a.identity, testNow) != RoleNode|RoleVoter {
		t.Errorf("%+v", w.s.Nodes)
	}
}

func TestRecovered(t *testing.T) {
	for name, world := range map[string]func(testing.TB) *world{"old": oldWorld, "signed": newWorld} {
		t.Run(name, func(t *testing.T) {
			w := world(t)
			j := newJoiner("oslo", "oslo")
			w.must(j.join(w.addToken(1)))
			command := func(j *joiner, generation uint64) Command {
				c := w.as(j, Command{Recover: &Recover{j.id(), generation}})
				c.Author, c.Request = j.identity, Nonce{1}
				return signAs(t, j, c)
			}
			if _, r := Apply(w.s, w.index+1, command(j, 1)); r.Refused == nil {
				t.Error("recovered in its log")
			}
			before := Hash(w.s)
			for want, c := range map[string]Command{
				CodeInvalid:   command(j, 2),
				CodeUnsigned:  {Version: Version, Now: testNow, Recover: &Recover{j.id(), 1}},
				CodeForbidden: signAs(t, w.root, Command{Version: Version, Now: testNow, Author: w.root.identity, Request: Nonce{1}, Recover: &Recover{j.id(), 1}}),
				CodeNotFound:  command(newJoiner("x", "x"), 1),
			} {
				if s, r := Recovered(w.s, c); r.Refused == nil || r.Refused.Code != want || s != w.s {
					t.Errorf("%s: %+v", want, r.Refused)
				}
			}
			if _, r := Recovered(nil, command(j, 1)); r.Refused == nil || r.Refused.Code != CodeNotFound {
				t.Errorf("%+v", r.Refused)
			}
			s, r := Recovered(w.s, command(j, 1))
			if r.Refused != nil {
				t.Fatal(r.Refused)
			}
			if err := s.check(); err != nil {
				t.Fatal(err)
			}
			generation, index, head := s.Head()
			if Hash(w.s) != before || generation != 1 || index != w.s.Index+1 || head != r.Record.Head() || !s.Mesh.CADue {
				t.Errorf("%d %d %+v", generation, index, s.Mesh)
			}
			if s.RoleOf(j.identity, testNow) != RoleNode|RoleVoter|RoleReader|RoleOperator || s.Nodes[w.root.id()].Voter {
				t.Errorf("%+v", s.Nodes)
			}
			w.s, w.index = restored(t, s), s.Index
			w.must(w.as(j, Command{SetSettings: &SetSettings{Voters: new(1)}})) // it is an operator now
		})
	}
}
