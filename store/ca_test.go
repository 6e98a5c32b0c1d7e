package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/discovery/invite"
)

func TestRotateCA(t *testing.T) {
	w := newWorld(t)
	step := func(s CAStep, pin byte) Command {
		c := w.as(w.root, Command{RotateCA: &RotateCA{Step: s, Pin: Digest{pin}}})
		if s == CAAdd {
			c.RotateCA.Root = []byte{0x30, pin}
		}
		return c
	}
	check := func(pins, retired string) {
		t.Helper()
		show := func(in [][32]byte) (out string) {
			for _, p := range in {
				out += fmt.Sprint(p[0])
			}
			return out
		}
		if show(w.s.Pins()) != pins || show(w.s.Retired()) != retired {
			t.Errorf("accepted %s, retired %s; want %s and %s", show(w.s.Pins()), show(w.s.Retired()), pins, retired)
		}
	}
	check("1", "")
	w.refused(CodeInvalid, step(CARetire, 1))
	w.refused(CodeInvalid, step(CAPromote, 1))
	w.refused(CodeNotFound, step(CAPromote, 2))
	w.refused(CodeInvalid, step(CAAdd, 1))
	w.must(step(CAAdd, 2))
	w.refused(CodeInvalid, step(CAAdd, 3))
	check("12", "")
	w.must(step(CAPromote, 2))
	check("12", "")
	w.must(step(CARetire, 1))
	check("2", "1")
	w.refused(CodeInvalid, step(CARetire, 1))
	w.must(step(CAAdd, 3))
	w.must(step(CARetire, 3)) // thought better of it
	check("2", "13")
	w.must(step(CAAdd, 4))
	w.must(step(CAPromote, 4))
	w.must(step(CAAdd, 5)) // and 1 is forgotten
	check("245", "3")
	w.must(step(CAPromote, 5))
	w.must(step(CAAdd, 6))
	w.must(step(CAPromote, 6))
	w.refused(CodeInvalid, step(CAAdd, 7)) // 2, 4 and 5 are still accepted
	for _, c := range []RotateCA{{Step: "burn", Pin: Digest{6}}, {Step: CAAdd, Pin: Digest{8}}, {Step: CAPromote, Pin: Digest{6}, Root: []byte{1}}, {Step: CAAdd, Root: []byte{1}}} {
		w.refused(CodeInvalid, w.as(w.root, Command{RotateCA: &c}))
	}
}

// Who knew the key of the CA and was removed by others makes a new one due.
func TestCADue(t *testing.T) {
	w := newWorld(t)
	plain, voter, leaver := newJoiner("plain", "plain"), newJoiner("voter", "voter"), newJoiner("leaver", "leaver")
	for _, j := range []*joiner{plain, voter, leaver} {
		w.join(j)
	}
	for _, j := range []*joiner{voter, leaver} {
		w.must(w.by(Command{SetVoter: &SetVoter{j.id(), true}}))
		w.must(w.by(Command{SetVoter: &SetVoter{j.id(), false}}))
	}
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: plain.id(), Revoke: true}}))
	w.must(w.as(leaver, Command{RemoveNode: &RemoveNode{Node: leaver.id()}}))
	if w.s.Mesh.CADue {
		t.Error("due for nothing")
	}
	before := w.s
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: leaver.id(), Revoke: true}}))
	if !w.s.Mesh.CADue {
		t.Error("not due after one that had left was revoked")
	}
	w.s = before
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: voter.id()}}))
	if !w.s.Mesh.CADue {
		t.Error("not due after one that had voted was removed")
	}
	w.must(w.as(w.root, Command{RotateCA: &RotateCA{Step: CAAdd, Pin: Digest{2}, Root: []byte{0x30}}}))
	w.must(w.as(w.root, Command{RotateCA: &RotateCA{Step: CAPromote, Pin: Digest{2}}}))
	if w.s.Mesh.CADue {
		t.Error("still due")
	}
}

// TestAgedCAWaitsForTokens: the CA that follows one that is only old becomes
// current when the last token that does not pin it has expired, and no later
// than MaxCAWait; in any other change at once.
func TestAgedCAWaitsForTokens(t *testing.T) {
	w := newWorld(t)
	at := func(d time.Duration, c Command) Command {
		c.Now = testNow.Add(d)
		return c
	}
	add := func(pin byte, aged bool) Command {
		return w.as(w.root, Command{RotateCA: &RotateCA{Step: CAAdd, Pin: Digest{pin}, Root: []byte{0x30, pin}, Aged: aged}})
	}
	promote := func(pin byte) Command {
		return w.as(w.root, Command{RotateCA: &RotateCA{Step: CAPromote, Pin: Digest{pin}}})
	}
	ca := func(pin byte) CA {
		return w.s.Mesh.Authorities[slices.IndexFunc(w.s.Mesh.Authorities, func(c CA) bool { return c.Pin == Digest{pin} })]
	}
	lives := func(d time.Duration) func(*Token) {
		return func(t *Token) { t.Expires = testNow.Add(d) }
	}

	w.must(add(2, true))
	if from := ca(2).From; !from.IsZero() {
		t.Errorf("without a token the next CA waits until %s", from)
	}
	w.must(promote(2))

	old := w.addToken(1, lives(3*time.Hour))
	used := w.addToken(2, lives(9*time.Hour))
	w.must(newJoiner("oslo", "oslo").join(used))
	w.must(add(3, true))
	both := w.addToken(3, lives(20*time.Hour), func(t *Token) { t.Uses = 2 })
	if from := ca(3).From; !from.Equal(testNow.Add(3 * time.Hour)) {
		t.Errorf("the next CA waits until %s", from)
	}
	for _, d := range []time.Duration{0, 3*time.Hour - 1, 3*time.Hour - MaxCAWait} {
		w.refused(CodeInvalid, at(d, promote(3)))
	}
	w.must(at(2*time.Hour, newJoiner("bergen", "bergen").join(both)))
	early := w.s
	w.must(at(3*time.Hour, promote(3)))
	if ca(3).Waits(testNow) || !ca(3).From.Equal(testNow.Add(3*time.Hour)) || !ca(2).From.IsZero() {
		t.Errorf("the dates of the current and the previous CA: %s, %s", ca(3).From, ca(2).From)
	}
	for inv, outlived := range map[string]bool{old.ID: true, used.ID: true, both.ID: false} {
		if w.s.Outlived(w.s.Tokens[inv]) != outlived {
			t.Errorf("token %s: outlived %t", inv, !outlived)
		}
	}

	// Somebody who may know the next key goes: that CA is never current.
	w.s, w.index = early, early.Index
	w.must(w.by(Command{SetVoter: &SetVoter{newJoiner("oslo", "oslo").id(), true}}))
	w.must(w.by(Command{RemoveNode: &RemoveNode{Node: newJoiner("oslo", "oslo").id(), Revoke: true}}))
	if got := ca(3); !w.s.Mesh.CADue || got.State != CARetired || !got.From.IsZero() {
		t.Errorf("after the revocation of a voter: due %t, %+v", w.s.Mesh.CADue, got)
	}
	w.must(add(4, false))
	w.must(promote(4))
	for _, inv := range []invite.Token{old, both} {
		if !w.s.Outlived(w.s.Tokens[inv.ID]) {
			t.Errorf("token %s is good for a CA that came after it", inv.ID)
		}
		j := newJoiner("voss", "voss")
		if r := w.apply(j.join(inv)); r.Refused == nil || r.Refused.Code != CodeTokenExpired && r.Refused.Code != CodeTokenUsed {
			t.Errorf("%+v", r)
		}
	}
	if r := w.apply(newJoiner("voss", "voss").join(old)); r.Refused == nil || !strings.Contains(r.Refused.Message, "before the CA of the mesh was replaced") {
		t.Errorf("%+v", r)
	}

	// A token of a year is waited for as long as the longest of meshctl's.
	long := w.addToken(4, lives(MaxTokenLifetime))
	w.must(add(5, true))
	if from := ca(5).From; !from.Equal(testNow.Add(MaxCAWait)) || w.s.Outlived(w.s.Tokens[long.ID]) {
		t.Errorf("the next CA waits until %s", from)
	}
	// That was a clock that was wrong by a year.
	w.must(at(-365*24*time.Hour, promote(5)))
	if aged := w.as(w.root, Command{RotateCA: &RotateCA{Step: CARetire, Pin: Digest{4}, Aged: true}}); w.apply(aged).Refused == nil {
		t.Error("a CA was retired of age")
	}
}
