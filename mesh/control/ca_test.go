package control

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/mesh/transport"
	"guywire/store"
)

const day = 24 * time.Hour

// aged is a mesh of n voters whose CA is so old that there is a next one, and
// a token from before that is good for most of a day after that.
func aged(t *testing.T, n int) (all []*machine, old string) {
	t.Helper()
	all = []*machine{founded(t)}
	if n == 3 {
		all = append(all, all[0].joined("two"), all[0].joined("three"))
		eventually(t, "three voters", func() bool { return voting(all) == 3 })
	}
	old = all[0].token(TokenRequest{Lifetime: authorityAge + day, Uses: 9})
	later(all, authorityAge+time.Hour)
	eventually(t, "there is a next CA", func() bool { return len(all[0].State().Issuers()) == 2 })
	next := all[0].State().Issuers()[1]
	if want := mustParse(t, old).Expires; !next.From.Equal(want) {
		t.Fatalf("the next CA waits until %s, the token is good until %s", next.From, want)
	}
	return all, old
}

// later sets the clocks.
func later(all []*machine, offset time.Duration) {
	for _, m := range all {
		m.offset.Store(int64(offset))
	}
}

// enters lets a machine join with a token.
func (m *machine) enters(token, name string) error {
	m.t.Helper()
	n := newMachine(m.t)
	p, err := Join(m.t.Context(), n.config, token, JoinRequest{Name: name}, nil)
	if err == nil {
		n.run(p, nil)
	}
	return err
}

// TestTokensOutliveAnAgedCA: a CA that is only old is replaced without any token
// noticing. The next one stands until tokens from before have expired, and those
// that are made meanwhile are good for both.
func TestTokensOutliveAnAgedCA(t *testing.T) {
	t.Parallel()
	all, old := aged(t, 1)
	one := all[0]
	issuers := one.State().Issuers()
	both := one.token(TokenRequest{Lifetime: authorityAge + 20*day, Uses: 9})
	if pins := mustParse(t, both).Pins; len(pins) != 2 || !slices.Contains(pins, [32]byte(issuers[0].Pin)) || !slices.Contains(pins, [32]byte(issuers[1].Pin)) {
		t.Errorf("a token that is made while there is a next CA pins %x", pins)
	}
	for name, token := range map[string]string{"with-old": old, "with-both": both} {
		if err := one.enters(token, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := one.State().Issuers(); len(got) != 2 || got[0].Pin != issuers[0].Pin {
		t.Fatalf("the next CA did not wait: %+v", got)
	}
	later(all, authorityAge+5*day)
	if pin := issuedBy(t, all, issuers[0].Pin); pin != issuers[1].Pin {
		t.Error("the current CA is not the one that was next")
	}
	if err := one.enters(both, "with-both-again"); err != nil {
		t.Errorf("with a token that pins both, after the change: %v", err)
	}
	eventually(t, "the one before is still accepted", func() bool { return slices.Contains(one.State().Pins(), [32]byte(issuers[0].Pin)) })
	if one.State().Outlived(one.State().Tokens[mustParse(t, both).ID]) {
		t.Error("a token is outlived that pins both")
	}
}

// TestRotationAtOnceDespiteTokens: an operator who changes the CA does not wait,
// not even for one that stands already, whose key is not used any more; tokens
// from before are refused with what to do.
func TestRotationAtOnceDespiteTokens(t *testing.T) {
	t.Parallel()
	all, old := aged(t, 1)
	one := all[0]
	issuers := one.State().Issuers()
	if err := one.RotateCA(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pin := issuedBy(t, all, issuers[0].Pin, issuers[1].Pin); slices.Contains(one.State().Pins(), [32]byte(issuers[1].Pin)) {
		t.Errorf("the CA that was next is accepted beside %x", pin)
	}
	if err := one.enters(old, "late"); err == nil || !strings.Contains(err.Error(), "the mesh changed its CA since the token was made") || !strings.Contains(err.Error(), "new token") {
		t.Errorf("with a token from before: %v", err)
	}
	if !one.State().Outlived(one.State().Tokens[mustParse(t, old).ID]) {
		t.Error("the token counts as good")
	}
	if err := one.enters(one.token(TokenRequest{Lifetime: authorityAge + 9*day}), "new"); err != nil {
		t.Errorf("with a new token: %v", err)
	}
}

// TestBetrayalWhileACAWaits: a voter that is revoked knows the key of the next
// CA, too. Neither issues any more, at once.
func TestBetrayalWhileACAWaits(t *testing.T) {
	t.Parallel()
	all, old := aged(t, 3)
	issuers := all[0].State().Issuers()
	eventually(t, "all voters have both keys", func() bool {
		return !slices.ContainsFunc(all, func(m *machine) bool { return len(m.voter.issuers(m.State())) != 2 })
	})
	all[0].propose(store.Command{RemoveNode: &store.RemoveNode{Node: all[1].ID(), Revoke: true}})
	if err := all[1].ended(); !errors.Is(err, ErrRemoved) {
		t.Errorf("run returned %v, want ErrRemoved", err)
	}
	// Tokens are made meanwhile, too, and all of them are good.
	token := mustParse(t, all[0].token(TokenRequest{Lifetime: authorityAge + 9*day}))
	rest := []*machine{all[0], all[2]}
	pin := issuedBy(t, rest, issuers[0].Pin, issuers[1].Pin)
	if len(token.Pins) != 1 || token.Pins[0] != pin {
		t.Errorf("a token that was made after the revocation pins %x, the CA is %x", token.Pins, pin)
	}
	eventually(t, "no CA of before is accepted", func() bool { return len(all[0].State().Pins()) == 1 })
	if err := all[0].enters(old, "late"); err == nil {
		t.Error("a token from before admits")
	}
	ca, _ := inState(all[0].State(), store.CACurrent)
	if made, err := transport.Made(ca.Root); err != nil || made.Before(time.Now().Add(authorityAge)) {
		t.Errorf("the current CA was made at %s: %v", made, err)
	}
}
