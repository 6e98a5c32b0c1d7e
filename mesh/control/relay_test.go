package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/store"
)

// takes waits for what voters passed on to a machine.
func (m *machine) takes(want string) {
	m.t.Helper()
	select {
	case got := <-m.Relayed():
		if string(got) != want {
			m.t.Errorf("%s was given %s, want %s", m.name(m.ID()), got, want)
		}
	case <-time.After(patient):
		m.t.Fatalf("%s was not given %s", m.name(m.ID()), want)
	}
}

// TestRelayOffer: between all members, whichever voter they follow or are.
func TestRelayOffer(t *testing.T) {
	t.Parallel()
	all := three(t)
	for i, voter := range all { // one follower each
		m := newMachine(t)
		noVote := TokenRequest{Roles: []store.NodeRole{store.NodeNoVote}}
		p, err := Join(t.Context(), m.config, all[0].token(noVote), JoinRequest{Name: fmt.Sprint("follower", i)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.following.voter = voter.ID() // which it tries first
		all = append(all, m.run(p, nil))
	}
	for _, m := range all {
		eventually(t, "all know all", func() bool { return len(m.State().Nodes) == len(all) })
	}
	for _, m := range all[3:] {
		eventually(t, "it follows", func() bool { return !m.Status().Source.IsZero() })
	}
	for _, from := range all {
		for _, to := range all {
			if from == to {
				continue
			}
			offer := fmt.Sprintf(`{"from":%q}`, from.name(from.ID()))
			// A follower may change its voter at any time.
			eventually(t, "it is passed on", func() bool { return from.Relay(t.Context(), to.ID(), []byte(offer)) == nil })
			to.takes(offer)
		}
	}
	if err := all[0].Relay(t.Context(), mesh.NodeID{9}, []byte(`{}`)); !hasCode(err, store.CodeNotFound) {
		t.Errorf("to a stranger: %v", err)
	}
	gone := all[5].ID()
	if err := all[5].shut(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its stream is gone", func() bool { return hasCode(all[4].Relay(t.Context(), gone, []byte(`{}`)), CodeUnreached) })
}

// TestRelayIsBounded: nobody can have a voter keep or send much.
func TestRelayIsBounded(t *testing.T) {
	t.Parallel()
	one := founded(t)
	noVote := TokenRequest{Roles: []store.NodeRole{store.NodeNoVote}}
	two, three := one.admitted("two", noVote), one.admitted("three", noVote)
	eventually(t, "the third follows", func() bool { return one.streams.mailbox(three.ID()) != nil })
	eventually(t, "the third is reached", func() bool { return len(two.State().Nodes[three.ID()].Control) > 0 })
	relay := func(to *machine, request any) error {
		return two.Do(t.Context(), to.ID(), http.MethodPost, "/v1/link/relay", request, nil)
	}
	offer := json.RawMessage(`{}`)
	large := json.RawMessage(`"` + strings.Repeat("x", maxRelayed) + `"`)
	for what, c := range map[string]struct {
		by      *machine
		request any
		code    string
	}{
		"too large":                    {one, relayRequest{To: three.ID(), Offer: large}, CodeMalformed},
		"nothing":                      {one, map[string]mesh.NodeID{"to": three.ID()}, CodeMalformed},
		"as if it were a voter":        {one, relayRequest{To: three.ID(), Offer: offer, Forwarded: true}, CodeNotVoter},
		"by a member that is no voter": {three, relayRequest{To: one.ID(), Offer: offer}, CodeNotVoter},
	} {
		if err := relay(c.by, c.request); !hasCode(err, c.code) {
			t.Errorf("%s: %v, want %s", what, err, c.code)
		}
	}
	passed, began := 0, time.Now()
	for range 3 * int(relaysOfOne.burst) {
		if err := relay(one, relayRequest{To: three.ID(), Offer: offer}); err == nil {
			passed++
		} else if !hasCode(err, CodeBusy) {
			t.Fatal(err)
		}
	}
	if most := int(relaysOfOne.burst + relaysOfOne.each*time.Since(began).Seconds() + 1); passed < maxParcels || passed > most {
		t.Errorf("%d were passed on, at most %d may be", passed, most)
	}
	// The answer of a member that does not read is lost, and nobody waits for it.
	for range 10 * cap(one.relayed) {
		one.takeRelayed([]byte(`{}`))
	}
}

func TestMailbox(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	b := newMailbox()
	for i := range 2 * maxParcels {
		if room := b.put(now.Add(time.Duration(i)*time.Second), []byte{byte(i)}); room != (i < maxParcels) {
			t.Errorf("message %d: %v", i, room)
		}
	}
	if len(b.ready) != 1 {
		t.Error("the stream does not wake")
	}
	later := now.Add(parcelLife + time.Second) // two are too old
	if !b.put(later, []byte{9}) {
		t.Error("old ones take the place of new ones")
	}
	var got []string
	for _, f := range b.take(later) {
		got = append(got, fmt.Sprintf("%c%d", f[0], f[len(f)-1]))
	}
	if fmt.Sprint(got) != "[R2 R3 R9]" {
		t.Errorf("taken: %v", got)
	}
	if len(b.take(later)) > 0 {
		t.Error("taken twice")
	}

	var s streams
	s.init()
	old := s.attach(mesh.NodeID{1})
	newer := s.attach(mesh.NodeID{1})
	s.detach(mesh.NodeID{1}, old)
	if s.mailbox(mesh.NodeID{1}) != newer {
		t.Error("the end of an old stream takes the mailbox of the new one")
	}
	s.detach(mesh.NodeID{1}, newer)
	if len(s.mail) > 0 {
		t.Error("mailboxes stay")
	}
}

// With no voter in reach it is known soon.
func TestRelayWithoutVoters(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.admitted("two", TokenRequest{Roles: []store.NodeRole{store.NodeNoVote}})
	if err := one.shut(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	if err := two.Relay(ctx, one.ID(), []byte(`{}`)); err == nil || ctx.Err() != nil {
		t.Errorf("with no voter: %v", err)
	}
}
