package store

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode"
)

// eachText calls visit for every text in a value, which visit may change.
func eachText(v reflect.Value, path string, visit func(path string, text reflect.Value)) {
	switch v.Kind() {
	case reflect.String:
		visit(path, v)
	case reflect.Pointer:
		if !v.IsNil() {
			eachText(v.Elem(), path, visit)
		}
	case reflect.Slice:
		for i := range v.Len() {
			eachText(v.Index(i), fmt.Sprintf("%s[%d]", path, i), visit)
		}
	case reflect.Struct:
		for f, field := range v.Fields() {
			if f.IsExported() {
				eachText(field, path+"."+f.Name, visit)
			}
		}
	}
}

// TestB18Names: no text that is more than a name comes into the log by any
// command, nor, in the record of its refusal, to who reads the trail.
func TestB18Names(t *testing.T) {
	bad := []string{"../keys", "a b", "a\nb", "\x1b[2J", `a"b`, "a'b", "$(id)", "A", "a;b", "а", strings.Repeat("a", 33), "-a"}
	root, oslo := newJoiner("hub", "hub"), newJoiner("oslo", "oslo")
	tagged := newInvite(78)
	commands := append(newCommands(root, oslo), policyCommands(root.id(), oslo.id())...)
	commands = append(commands, Command{AddToken: &AddToken{Token{
		ID: tagged.ID, Key: tagged.Public(), Uses: 1, Expires: testNow.Add(1), Name: "narvik", Tags: []string{"site"},
	}}}, Command{RevokeToken: &RevokeToken{tagged.ID}})
	w := newWorld(t)
	w.rare = 100
	w.join(oslo)
	refuse := func(what string, c Command) {
		t.Helper()
		r := w.apply(c)
		if r.Refused == nil {
			t.Errorf("%s was taken", what)
			return
		}
		record, err := json.Marshal(r.Record)
		if err != nil {
			t.Fatal(err)
		}
		if said := r.Refused.Message + r.Record.About + r.Record.Action; strings.ContainsFunc(said, unicode.IsControl) {
			t.Errorf("%s: control characters in %q, %s", what, said, record)
		}
	}
	texts := 0
	for _, c := range commands {
		good := w.by(c)
		if c.AddKey != nil || c.DropKey != nil || c.RegisterBoot != nil || c.RotateCA != nil || c.SetVoter != nil {
			good = w.as(root, c)
		}
		eachText(reflect.ValueOf(&c).Elem(), c.action(), func(path string, text reflect.Value) {
			texts++
			was := text.String()
			for _, name := range bad {
				text.SetString(name)
				refuse(fmt.Sprintf("%s %q", path, name), good)
			}
			text.SetString(was)
		})
		if c.SetVersion == nil && c.Recover == nil { // nothing to do here, and nobody's
			w.must(good)
		}
	}
	if texts < 20 {
		t.Errorf("only %d texts were changed", texts)
	}
	inv := w.addToken(79, func(t *Token) { t.Uses = len(bad) })
	for _, name := range bad {
		j := newJoiner(name, "bad")
		refuse(fmt.Sprintf("join as %q", name), j.join(inv))
		for what, change := range map[string]func(*Init){
			"name": func(i *Init) { i.Name = name }, "mesh": func(i *Init) { i.Settings.Name = name }, "site": func(i *Init) { i.Site = name },
		} {
			c := signedInit(root)
			change(c.Init)
			empty := &world{TB: t, s: New()}
			if r := empty.apply(c); r.Refused == nil {
				t.Errorf("init with the %s %q was taken", what, name)
			}
		}
	}
}

// TestB30NameIsNotIdentity: who has a name later has nothing of who had it
// before, and the other way round.
func TestB30NameIsNotIdentity(t *testing.T) {
	w := newWorld(t)
	first, second := newJoiner("oslo", "oslo", "172.16.0.0/16"), newJoiner("oslo", "oslo#2")
	bergen := newJoiner("bergen", "bergen")
	w.join(bergen)
	old := w.join(first)
	w.refused(CodeNameTaken, second.join(w.addToken(1)))
	for _, c := range []Command{
		{SetRoles: &SetRoles{first.id(), []NodeRole{NodeOperator}}},
		{SetNode: &SetNode{Node: first.id(), Tags: &[]string{"hub"}, Site: new("north"), MaxDegree: new(8)}},
		{SetPairs: &SetPairs{Pin: []Pair{MakePair(first.id(), bergen.id())}}},
		{SetDrain: &SetDrain{Node: first.id(), Drain: true}},
		{SetVoter: &SetVoter{first.id(), true}},
	} {
		if c.SetVoter != nil {
			w.must(w.as(w.root, c))
			continue
		}
		w.must(w.by(c))
	}
	change := func(j *joiner) Command { return w.as(j, Command{RevokeToken: &RevokeToken{"none"}}) }
	w.refused(CodeNotFound, change(first)) // it may
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: first.id(), Revoke: true}}))

	now := w.join(second)
	if now.ID == old.ID || now.Addr4 == old.Addr4 || now.Addr6 == old.Addr6 {
		t.Errorf("the next oslo is %+v, and the last was %+v", now, old)
	}
	if len(now.Roles)+len(now.Tags)+len(now.Prefixes)+len(now.Drains)+now.MaxDegree != 0 || now.Site != "" || now.Voter || now.EverVoted {
		t.Errorf("the next oslo inherits: %+v", now)
	}
	if _, pinned := w.s.Owner(old.Addr4); pinned || len(w.s.Mesh.Topology.Pinned) > 0 {
		t.Errorf("rules of the last oslo are left: %+v", w.s.Mesh.Topology)
	}
	w.refused(CodeForbidden, change(second))
	w.refused(CodeForbidden, change(first))
	w.refused(CodeForbidden, w.as(first, Command{RemoveNode: &RemoveNode{Node: second.id()}}))
	w.refused(CodeRevoked, first.join(w.addToken(2))) // by no other name either
	first.name = "narvik"
	w.refused(CodeRevoked, first.join(w.addToken(3)))
	if n, found := w.s.NodeByName("oslo"); !found || n.ID != second.id() {
		t.Errorf("oslo is %+v", n)
	}

	// An operator's name neither: nor that of a node makes one.
	anna, other := newJoiner("", "anna"), newJoiner("", "another anna")
	w.must(w.by(Command{SetOperator: &SetOperator{"anna", Operator{Key: anna.identity, Right: RightChange}}}))
	w.must(w.by(Command{RemoveOperator: &RemoveOperator{"anna"}}))
	w.must(w.by(Command{SetOperator: &SetOperator{"anna", Operator{Key: other.identity, Right: RightRead}}}))
	w.refused(CodeForbidden, change(anna))
	w.refused(CodeForbidden, change(other))
}
